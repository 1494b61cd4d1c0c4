//! Waiting for what platform-api does about several nodes, over one connection to the database.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::timeout_at;

use super::conclude::CONVERGENCE;
use super::{Condition, Events, GRACE, Wait, WatchError, all_ok, polls};
use crate::clock::PlatformTime;
use crate::history::{Event, History, NodeRow, Status, What, now_us};
use crate::seed::{FleetNode, NodeId};
use crate::topology::{Topology, TopologyError};

/// Listens to what happens to some nodes, from now on.
pub struct FleetWatch<'a> {
    topology: &'a Topology,
    nodes: Vec<NodeId>,
    events: Events<'a>,
    /// Last version of each node's row that was read.
    last: BTreeMap<String, NodeRow>,
}

impl Topology {
    /// Watches nodes: what is written to their rows from now on is waited for, and recorded.
    ///
    /// ```no_run
    /// # async fn doc(topology: wopr_harness::Topology) -> Result<(), Box<dyn std::error::Error>> {
    /// use wopr_harness::clock::polls;
    /// use wopr_harness::watch::all_ok;
    ///
    /// let nodes = topology.seed_fleet().await?;
    /// let mut watch = topology.watch_fleet(&nodes).await?;
    /// watch.until_each(all_ok()).within(polls(3)).await?;
    /// watch.conclude().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`TopologyError::Database`].
    pub async fn watch_fleet(&self, nodes: &[FleetNode]) -> Result<FleetWatch<'_>, TopologyError> {
        self.watch_nodes(nodes.iter().map(|node| node.id.clone())).await
    }

    /// The same for nodes of any ids; rows of theirs may come later.
    ///
    /// # Errors
    /// [`TopologyError::Database`].
    pub async fn watch_nodes(
        &self,
        nodes: impl IntoIterator<Item = NodeId>,
    ) -> Result<FleetWatch<'_>, TopologyError> {
        Ok(FleetWatch {
            topology: self,
            nodes: nodes.into_iter().collect(),
            events: self.events().await?,
            last: BTreeMap::new(),
        })
    }
}

impl<'a> FleetWatch<'a> {
    /// Waits until each node has had a version of its row, from now on, that meets a condition; not all need
    /// to do so at the same moment. With [`UntilEach::within`].
    pub fn until_each(&mut self, condition: Condition) -> UntilEach<'_, 'a> {
        let nodes = self.nodes.clone();
        self.until_these(&nodes, condition)
    }

    /// The same for some of them.
    pub fn until_these(&mut self, nodes: &[NodeId], condition: Condition) -> UntilEach<'_, 'a> {
        UntilEach {
            nodes: nodes.to_vec(),
            watch: self,
            condition,
        }
    }

    /// Waits for the next poll of any of the nodes that is written after this call.
    ///
    /// # Errors
    /// [`WatchError::TimedOut`] when none comes in two intervals.
    pub async fn next_poll(&mut self) -> Result<NodeRow, WatchError> {
        let (from_us, wait) = (now_us(), self.wait(polls(2)));
        loop {
            let Some((at_us, before, row)) = self.next_row(&wait).await? else {
                let missing: Vec<_> = self.nodes.iter().map(NodeId::to_string).collect();
                return Err(self
                    .timed_out(&missing, "a poll of any node".to_owned(), wait)
                    .await);
            };
            if at_us >= from_us && row.is_poll_after(before.as_ref()) {
                return Ok(row);
            }
        }
    }

    /// Waits until each node has been polled that often from now on.
    ///
    /// # Errors
    /// [`WatchError::TimedOut`] with a node that is not polled within twice the time.
    pub async fn polls(&mut self, count: u32) -> Result<(), WatchError> {
        let mut left: BTreeMap<String, u32> =
            self.nodes.iter().map(|node| (node.to_string(), count)).collect();
        let wait = self.wait(polls(count * 2));
        while !left.is_empty() {
            let Some((_, before, row)) = self.next_row(&wait).await? else {
                let missing: Vec<_> = left.keys().cloned().collect();
                return Err(self
                    .timed_out(&missing, format!("{count} polls of each node"), wait)
                    .await);
            };
            if !row.is_poll_after(before.as_ref()) {
                continue;
            }
            if let Some(polls_left) = left.get_mut(&row.id) {
                *polls_left -= 1;
                if *polls_left == 0 {
                    left.remove(&row.id);
                }
            }
        }
        Ok(())
    }

    /// Everything that has happened.
    ///
    /// # Errors
    /// [`WatchError::Topology`].
    pub async fn history(&self) -> Result<History, WatchError> {
        Ok(self.topology.history().await?)
    }

    /// Ends a scenario of several nodes: every fault healed, each node well again within six polls unless it has
    /// failed for good, and the oracle's judgement of every one.
    ///
    /// # Errors
    /// As [`Watch::conclude`](super::Watch::conclude), of the first node that fails it.
    pub async fn conclude(mut self) -> Result<History, WatchError> {
        self.topology.end_faults().await?;
        let history = self.history().await?;
        let lives = |node: &&NodeId| history.statuses(node.as_str()).last() != Some(&Status::Failed);
        let living: Vec<_> = self.nodes.iter().filter(lives).cloned().collect();
        self.until_these(&living, all_ok()).within(CONVERGENCE).await?;
        // What follows from that poll is written after it.
        self.nodes = living;
        self.polls(1).await?;
        self.topology.judged().await
    }

    fn wait(&self, within: PlatformTime) -> Wait {
        Wait {
            within,
            began_us: now_us(),
            deadline: tokio::time::Instant::now() + self.topology.rate().real(within) + GRACE,
        }
    }

    /// The next version of any of the rows, when it was written, and the one before it; `None` at the deadline.
    async fn next_row(&mut self, wait: &Wait) -> Result<Option<(i64, Option<NodeRow>, NodeRow)>, WatchError> {
        loop {
            while let Some(Event { what, at_us }) = self.events.written().await? {
                if let What::Row(row) = what {
                    let before = self.last.insert(row.id.clone(), *row.clone());
                    return Ok(Some((at_us, before, *row)));
                }
            }
            match timeout_at(wait.deadline, self.events.until_told()).await {
                Ok(told) => told?,
                Err(_) => return Ok(None),
            }
        }
    }

    /// Tells of the first of those that are missing, and names the others.
    async fn timed_out(&self, missing: &[String], what: String, wait: Wait) -> WatchError {
        let named = self
            .nodes
            .iter()
            .find(|node| Some(node.as_str()) == missing.first().map(String::as_str));
        let what = format!("{what} (missing: {})", missing.join(", "));
        let Some(node) = named.or(self.nodes.first()) else {
            // Without nodes nothing is waited for.
            return TopologyError::NotUp.into();
        };
        match self.topology.watch(node).await {
            Ok(watch) => watch.timed_out(what, wait).await,
            Err(error) => error,
        }
    }
}

/// A wait for several nodes that has no limit yet.
#[must_use = "call within(…)"]
pub struct UntilEach<'w, 'a> {
    watch: &'w mut FleetWatch<'a>,
    nodes: Vec<NodeId>,
    condition: Condition,
}

impl UntilEach<'_, '_> {
    /// Waits so long, in platform-api's time.
    ///
    /// # Errors
    /// [`WatchError::TimedOut`] with the nodes that did not.
    pub async fn within(self, limit: PlatformTime) -> Result<(), WatchError> {
        let mut missing: BTreeSet<String> = self.nodes.iter().map(NodeId::to_string).collect();
        let wait = self.watch.wait(limit);
        while !missing.is_empty() {
            let Some((_, _, row)) = self.watch.next_row(&wait).await? else {
                let missing: Vec<_> = missing.into_iter().collect();
                let what = self.condition.what;
                return Err(self.watch.timed_out(&missing, what, wait).await);
            };
            if missing.contains(&row.id) && (self.condition.holds)(&row) {
                missing.remove(&row.id);
            }
        }
        Ok(())
    }
}
