//! Waiting for what platform-api does about a node: by listening to the database, in platform-api's time.

mod conclude;
mod fleet;

use std::collections::VecDeque;
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::time::{Instant, timeout_at};

use crate::clock::{PlatformTime, polls};
use crate::history::{CHANNEL, Event, Health, History, NodeRow, Status, What, Window, now_us};
use crate::oracle::Judgement;
use crate::report::{self, Failing, Meta, Timeline};
use crate::seed::NodeId;
use crate::topology::{Topology, TopologyError};

pub use fleet::{FleetWatch, UntilEach};

/// What platform-api and the host may take beyond platform-api's own time: a poll's requests, the
/// database, a busy processor. Real time, since none of it runs faster on a fast clock.
const GRACE: Duration = Duration::from_secs(3);

/// What came before a wait that ends in vain, and may be why: two polls.
const BEFORE: PlatformTime = PlatformTime(Duration::from_secs(30 * 2));

/// How long what the recorder got is apart from the next look at it: it keeps it in memory, and answers at once.
const LOOK: Duration = Duration::from_millis(20);

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
    #[error("{judgement}{timeline}")]
    Breach {
        /// What it does not allow.
        judgement: Judgement,
        /// The history as a page.
        timeline: Timeline,
    },
    /// It did not happen.
    #[error(
        "{what} did not happen to {node} within {within} of platform-api's time; what did:\n{}{timeline}",
        .history.excerpt(&[*.window])
    )]
    TimedOut {
        /// What was waited for.
        what: String,
        /// The node.
        node: NodeId,
        /// How long.
        within: PlatformTime,
        /// What happened instead.
        history: Box<History>,
        /// The wait, and a little before it.
        window: Window,
        /// The same as a page.
        timeline: Timeline,
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

/// The watchdog found each of these services so.
pub fn services<const N: usize>(wanted: [(&'static str, Health); N]) -> Condition {
    let named = wanted.map(|(service, health)| format!("{service} {health:?}"));
    Condition::new(named.join(", "), move |row| {
        let found = row.health();
        wanted
            .iter()
            .all(|(service, health)| found.get(*service) == Some(health))
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
    /// The one node, or all.
    node: Option<NodeId>,
    /// Number of the last row version that was read.
    seen: i64,
    /// Read, and not yet asked for.
    read: VecDeque<Event>,
}

impl Topology {
    /// Listens to what is written to any node's row from now on.
    ///
    /// # Errors
    /// [`TopologyError::Database`].
    pub async fn events(&self) -> Result<Events<'_>, TopologyError> {
        self.events_of(None).await
    }

    async fn events_of(&self, node: Option<NodeId>) -> Result<Events<'_>, TopologyError> {
        self.record_rows().await?;
        let listener = self.listen().await?;
        Ok(Events {
            topology: self,
            listener,
            node,
            seen: self.newest_version().await?,
            read: VecDeque::new(),
        })
    }

    async fn history_since_watch(&self) -> Result<History, TopologyError> {
        let since = self.deeds().watched_us().unwrap_or_default();
        Ok(self.history().await?.with_rows_since(since))
    }

    async fn page(&self, history: &History, failings: Vec<Failing>) -> Timeline {
        let meta = Meta {
            title: report::test_name(),
            topology: self.id().to_owned(),
            failings,
            notes: Vec::new(),
        };
        report::write(self.dirs(), history.clone(), meta).await
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
            if let Some(event) = self.written().await? {
                return Ok(event);
            }
            self.until_told().await?;
        }
    }

    /// The next event that is in the database already.
    async fn written(&mut self) -> Result<Option<Event>, TopologyError> {
        if self.read.is_empty() {
            let node = self.node.as_ref().map(NodeId::as_str);
            for (seq, event) in self.topology.row_versions(self.seen, node).await? {
                self.seen = seq;
                self.read.push_back(event);
            }
        }
        Ok(self.read.pop_front())
    }

    /// Until the database tells of a new version. A connection that broke is opened anew, and that counts as
    /// being told: something may have been missed.
    async fn until_told(&mut self) -> Result<(), TopologyError> {
        let told = self.listener.try_recv().await;
        told.map(drop)
            .map_err(TopologyError::database("listen to the database"))
    }
}

/// Listens to what happens to one node, from now on.
pub struct Watch<'a> {
    topology: &'a Topology,
    node: NodeId,
    events: Events<'a>,
    /// Last version of the row, polls told apart by it.
    last: Option<NodeRow>,
}

impl Topology {
    /// Watches a node: what is written to its row from now on is waited for, and recorded.
    ///
    /// # Errors
    /// [`WatchError::Topology`].
    pub async fn watch(&self, node: &NodeId) -> Result<Watch<'_>, WatchError> {
        self.deeds().watch();
        Ok(Watch {
            topology: self,
            node: node.clone(),
            events: self.events_of(Some(node.clone())).await?,
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
        self.poll_written_after(0).await
    }

    async fn poll_written_after(&mut self, from_us: i64) -> Result<NodeRow, WatchError> {
        let wait = self.wait(polls(2));
        loop {
            let before = self.last.clone();
            let Some((at_us, row)) = self.next_version(&wait).await? else {
                return Err(self.timed_out("a poll".to_owned(), wait).await);
            };
            if at_us >= from_us && row.is_poll_after(before.as_ref()) {
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

    /// Waits for a poll that asked the services after this call: what was done before it shows in its row, whatever
    /// the poll says that was under way.
    ///
    /// # Errors
    /// [`WatchError::TimedOut`].
    pub async fn next_whole_poll(&mut self) -> Result<NodeRow, WatchError> {
        // One that was under way, and versions that were written while nobody looked.
        self.poll_written_after(now_us()).await?;
        self.next_poll().await
    }

    /// Waits for a poll that asked the services after this call and finds what a condition says: the first such, or
    /// one of the two after it. On a fast clock an answer has milliseconds, and a busy host may lose one; the oracle
    /// allows as much. What holds for good shows in all of them.
    ///
    /// # Errors
    /// [`WatchError::TimedOut`] with what was found instead.
    pub async fn found(&mut self, condition: Condition) -> Result<NodeRow, WatchError> {
        let first = self.next_whole_poll().await?;
        if (condition.holds)(&first) {
            return Ok(first);
        }
        self.until(condition).within(polls(2)).await
    }

    /// Waits until platform-api has sent a webhook of this type about the node, as `gpu_node_degraded`; one that it
    /// has sent already counts.
    ///
    /// # Errors
    /// [`WatchError::TimedOut`] when none comes in three intervals.
    pub async fn until_notified(&mut self, what: &str) -> Result<(), WatchError> {
        let wait = self.wait(polls(3));
        loop {
            let recorded = self.topology.recorded().await?;
            let history = History::new(self.topology.rate(), recorded);
            let told = history.notifications(self.node.as_str());
            if told.iter().any(|told| told == what) {
                return Ok(());
            }
            if Instant::now() > wait.deadline {
                return Err(self.timed_out(format!("the notification {what}"), wait).await);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What has happened, with versions of rows since the first watch of the topology;
    /// [`Topology::history`] has those from before as well.
    ///
    /// # Errors
    /// [`WatchError::Topology`].
    pub async fn history(&self) -> Result<History, WatchError> {
        Ok(self.topology.history_since_watch().await?)
    }

    fn wait(&self, within: PlatformTime) -> Wait {
        Wait {
            within,
            began_us: now_us(),
            deadline: Instant::now() + self.topology.rate().real(within) + GRACE,
        }
    }

    /// The next version of the node's row, and when it was written; `None` at the deadline.
    async fn next_version(&mut self, wait: &Wait) -> Result<Option<(i64, NodeRow)>, WatchError> {
        loop {
            while let Some(Event { what, at_us }) = self.events.written().await? {
                if let What::Row(row) = what {
                    self.last = Some(*row.clone());
                    return Ok(Some((at_us, *row)));
                }
            }
            match timeout_at(wait.deadline, self.events.until_told()).await {
                Ok(told) => told?,
                Err(_) => return Ok(None),
            }
        }
    }

    async fn timed_out(&self, what: String, wait: Wait) -> WatchError {
        let ended_us = now_us();
        let history = self.topology.evidence().await;
        let window = history.window(wait.began_us, BEFORE, ended_us, polls(0));
        let failing = Failing {
            what: format!("{what} did not happen to {} within {}", self.node, wait.within),
            from_us: wait.began_us,
            at_us: ended_us,
        };
        let timeline = self.topology.page(&history, vec![failing]).await;
        WatchError::TimedOut {
            what,
            node: self.node.clone(),
            within: wait.within,
            history: Box::new(history),
            window,
            timeline,
        }
    }
}

/// A wait under way.
struct Wait {
    within: PlatformTime,
    /// In microseconds since 1970.
    began_us: i64,
    deadline: Instant,
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
        let wait = self.watch.wait(limit);
        while let Some((_, row)) = self.watch.next_version(&wait).await? {
            if (self.condition.holds)(&row) {
                return Ok(row);
            }
        }
        Err(self.watch.timed_out(self.condition.what, wait).await)
    }
}
