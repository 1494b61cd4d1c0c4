//! Waiting for what platform-api does about a node: by listening to the database, in platform-api's time.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::time::{Instant, timeout_at};

use crate::clock::{POLL, PlatformTime};
use crate::fault::{Answer, Caller};
use crate::history::{CHANNEL, Event, Health, History, NodeRow, Status, What};
use crate::seed::NodeId;
use crate::topology::{Topology, TopologyError};

/// What platform-api and the host may take beyond platform-api's own time: a poll's requests, the
/// database, a busy processor. Real time, since none of it runs faster on a fast clock.
const GRACE: Duration = Duration::from_secs(3);

/// A service that was stopped starts in under a second, and the next poll finds it.
const CONVERGENCE: PlatformTime = PlatformTime(Duration::from_secs(30 * 6));

/// Why waiting ended without what was waited for.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The topology.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The faults could not be healed.
    #[error(transparent)]
    Fault(#[from] Box<crate::fault::FaultError>),
    /// The contract does not allow what happened.
    #[error(transparent)]
    Breach(#[from] crate::oracle::Judgement),
    /// It did not happen.
    #[error("{what} did not happen to {node} within {within} of platform-api's time; what did:\n{history}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// The node.
        node: NodeId,
        /// How long.
        within: PlatformTime,
        /// What happened instead.
        history: Box<History>,
    },
}

/// What a version of a row is to show.
pub struct Condition {
    what: String,
    holds: Box<dyn Fn(&NodeRow) -> bool + Send + Sync>,
}

impl Condition {
    /// A condition with a name for it.
    pub fn new(what: impl Into<String>, holds: impl Fn(&NodeRow) -> bool + Send + Sync + 'static) -> Self {
        Self {
            what: what.into(),
            holds: Box::new(holds),
        }
    }
}

/// The node has this status.
pub fn status(wanted: Status) -> Condition {
    Condition::new(format!("status {wanted:?}"), move |row| row.status == wanted)
}

/// The watchdog found a service (`llama`, `chatterbox`, `whisper`, `qwen`) so.
pub fn health(service: &'static str, wanted: Health) -> Condition {
    Condition::new(format!("{service} {wanted:?}"), move |row| {
        row.health().get(service) == Some(&wanted)
    })
}

/// The watchdog found every service ok.
pub fn all_ok() -> Condition {
    Condition::new("every service ok", |row| {
        let health = row.health();
        health.len() == 4 && health.values().all(|health| *health == Health::Ok)
    })
}

/// The watchdog found no service ok.
pub fn all_down() -> Condition {
    Condition::new("every service down", NodeRow::is_silent)
}

/// What happens to all nodes, from now on.
pub struct Events<'a> {
    topology: &'a Topology,
    listener: PgListener,
    seen: i64,
}

impl Topology {
    /// Listens to what is written to any node's row from now on.
    ///
    /// # Errors
    /// [`TopologyError::Database`].
    pub async fn events(&self) -> Result<Events<'_>, TopologyError> {
        self.record_rows().await?;
        let listener = self.listen().await?;
        let seen = self.row_versions(0).await?.last().map_or(0, |(seq, _)| *seq);
        Ok(Events {
            topology: self,
            listener,
            seen,
        })
    }

    async fn listen(&self) -> Result<PgListener, TopologyError> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .connect_lazy_with(self.database_options()?);
        let failed = || TopologyError::database("listen to the database");
        let mut listener = PgListener::connect_with(&pool).await.map_err(failed())?;
        listener.listen(CHANNEL).await.map_err(failed())?;
        Ok(listener)
    }
}

impl Events<'_> {
    /// The next event.
    ///
    /// # Errors
    /// [`TopologyError::Database`].
    pub async fn next(&mut self) -> Result<Event, TopologyError> {
        loop {
            if let Some((seq, event)) = self.topology.row_versions(self.seen).await?.into_iter().next() {
                self.seen = seq;
                return Ok(event);
            }
            // `None` is a connection that was opened anew: then we look again as well.
            self.listener
                .try_recv()
                .await
                .map_err(TopologyError::database("listen to the database"))?;
        }
    }
}

/// Listens to what happens to one node, from now on.
pub struct Watch<'a> {
    topology: &'a Topology,
    node: NodeId,
    listener: PgListener,
    /// Number of the last row version that was looked at.
    seen: i64,
    /// Last version of the row, polls told apart by it.
    last: Option<NodeRow>,
}

impl Topology {
    /// Watches a node: what is written to its row from now on is waited for, and recorded.
    ///
    /// # Errors
    /// [`WatchError::Topology`].
    pub async fn watch(&self, node: &NodeId) -> Result<Watch<'_>, WatchError> {
        self.record_rows().await?;
        let listener = self.listen().await?;
        let seen = self.row_versions(0).await?.last().map_or(0, |(seq, _)| *seq);
        Ok(Watch {
            topology: self,
            node: node.clone(),
            listener,
            seen,
            last: None,
        })
    }
}

impl<'a> Watch<'a> {
    /// Waits for a version of the row that meets a condition, with [`Until::within`].
    pub fn until(&mut self, condition: Condition) -> Until<'_, 'a> {
        Until {
            watch: self,
            condition,
        }
    }

    /// Waits for the next poll to be written.
    ///
    /// # Errors
    /// [`WatchError::TimedOut`] when none comes in two intervals.
    pub async fn next_poll(&mut self) -> Result<NodeRow, WatchError> {
        let deadline = self.deadline(PlatformTime(POLL.0 * 2));
        loop {
            let before = self.last.clone();
            let row = self.next_row(deadline).await?;
            let Some(row) = row else {
                return Err(self
                    .timed_out("a poll".to_owned(), PlatformTime(POLL.0 * 2))
                    .await?);
            };
            if row.is_poll_after(before.as_ref()) {
                return Ok(row);
            }
        }
    }

    /// Waits for that many polls.
    ///
    /// # Errors
    /// [`WatchError::TimedOut`].
    pub async fn polls(&mut self, count: u32) -> Result<Vec<NodeRow>, WatchError> {
        let mut rows = Vec::new();
        for _ in 0..count {
            rows.push(self.next_poll().await?);
        }
        Ok(rows)
    }

    /// Everything that has happened.
    ///
    /// # Errors
    /// [`WatchError::Topology`].
    pub async fn history(&self) -> Result<History, WatchError> {
        Ok(self.topology.history().await?)
    }

    /// Ends a scenario as each should end: every fault healed, the node well again within six polls
    /// unless it has failed for good, and the oracle's judgement of all that happened.
    ///
    /// # Errors
    /// [`WatchError::TimedOut`] when the node does not recover, [`WatchError::Breach`] when the contract does
    /// not allow its history.
    pub async fn conclude(mut self) -> Result<History, WatchError> {
        for caller in [Caller::Webhook, Caller::Cloud] {
            self.topology.answer(caller, Answer::Well).await?;
        }
        self.topology.heal_all().await.map_err(Box::new)?;
        let failed = |history: &History, node: &NodeId| {
            history.statuses(node.as_str()).last() == Some(&Status::Failed)
        };
        if !failed(&self.history().await?, &self.node) {
            self.until(all_ok()).within(CONVERGENCE).await?;
            // What follows from that poll is written after it.
            self.next_poll().await?;
        }
        let history = self.history().await?;
        crate::oracle::judge(self.topology.rate(), &history, self.node.as_str())?;
        Ok(history)
    }

    fn deadline(&self, within: PlatformTime) -> Instant {
        Instant::now() + self.topology.rate().real(within) + GRACE
    }

    /// The next version of the node's row; `None` at the deadline.
    async fn next_row(&mut self, deadline: Instant) -> Result<Option<NodeRow>, WatchError> {
        loop {
            for (seq, Event { what, .. }) in self.topology.row_versions(self.seen).await? {
                self.seen = seq;
                if let What::Row(row) = what
                    && row.id == self.node.as_str()
                {
                    self.last = Some(*row.clone());
                    return Ok(Some(*row));
                }
            }
            // A connection that broke is opened anew, and says so by `None`: then we look again as well.
            match timeout_at(deadline, self.listener.try_recv()).await {
                Err(_) => return Ok(None),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(TopologyError::database("listen to the database")(error).into()),
            }
        }
    }

    async fn timed_out(&self, what: String, within: PlatformTime) -> Result<WatchError, WatchError> {
        let history = Box::new(self.history().await?);
        Ok(WatchError::TimedOut {
            what,
            node: self.node.clone(),
            within,
            history,
        })
    }
}

/// A wait that has no limit yet.
#[must_use = "call within(…)"]
pub struct Until<'w, 'a> {
    watch: &'w mut Watch<'a>,
    condition: Condition,
}

impl Until<'_, '_> {
    /// Waits so long, in platform-api's time.
    ///
    /// # Errors
    /// [`WatchError::TimedOut`] with what happened instead.
    pub async fn within(self, limit: PlatformTime) -> Result<NodeRow, WatchError> {
        let deadline = self.watch.deadline(limit);
        while let Some(row) = self.watch.next_row(deadline).await? {
            if (self.condition.holds)(&row) {
                return Ok(row);
            }
        }
        Err(self.watch.timed_out(self.condition.what, limit).await?)
    }
}
