//! How a scenario ends: every fault healed, the nodes well again, and all that happened judged.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Watch, WatchError, all_ok};
use crate::clock::PlatformTime;
use crate::fault::{Answer, Caller};
use crate::history::{Deed, Heal, History, NodeRow, Status, What, now_us};
use crate::oracle::{self, Breach, Judgement};
use crate::report::Failing;
use crate::seed::NodeId;
use crate::topology::Topology;

/// A service that was stopped starts in under a second, and the next poll finds it.
pub(super) const CONVERGENCE: PlatformTime = PlatformTime(Duration::from_secs(30 * 6));

impl Topology {
    /// Ends a scenario that watched no node in particular: every fault healed, each node well again within six
    /// polls unless it has failed for good or nothing of this topology answers at its host, and the oracle's
    /// judgement of all that happened.
    ///
    /// # Errors
    /// [`WatchError::TimedOut`] when a node does not recover, [`WatchError::Breach`] when the contract does not
    /// allow its history.
    pub async fn conclude(&self) -> Result<History, WatchError> {
        self.end_faults().await?;
        for node in self.polled().await? {
            self.watch(&node).await?.until_well().await?;
        }
        self.judged().await
    }

    /// Nothing that the harness did is in effect any more.
    pub(super) async fn end_faults(&self) -> Result<(), WatchError> {
        for caller in [Caller::Webhook, Caller::Cloud] {
            self.answer(caller, Answer::Well).await?;
        }
        let from_us = now_us();
        let healed = self.heal_all().await.map_err(Box::new)?;
        let names: BTreeSet<_> = healed.into_iter().map(|(_, name)| name).collect();
        for name in names {
            // Nobody looked whether it is well.
            self.deeds().note(Deed::healed(name, Heal::Unseen).since(from_us));
        }
        Ok(())
    }

    /// The nodes that the watchdog polls, at a host where services answer.
    async fn polled(&self) -> Result<Vec<NodeId>, WatchError> {
        let history = self.history().await?;
        let is_polled = |row: &NodeRow| {
            let host = row.host.as_deref().and_then(|host| host.parse().ok());
            let answers = host.is_some_and(|host| history.serves_at(host));
            answers && matches!(row.status, Status::Active | Status::Degraded)
        };
        let rows = history.events.iter().filter_map(|event| match &event.what {
            What::Row(row) => Some((row.id.as_str(), is_polled(row))),
            What::Deleted(id) => Some((id.as_str(), false)),
            _ => None,
        });
        let last: std::collections::BTreeMap<_, _> = rows.collect();
        let polled = last.into_iter().filter(|(_, polled)| *polled);
        // One with a name that no seeder gives is not awaited.
        Ok(polled.filter_map(|(id, _)| id.parse().ok()).collect())
    }

    /// The history, which the contract allows.
    pub(super) async fn judged(&self) -> Result<History, WatchError> {
        let history = self.history().await?;
        match oracle::judge_all(&history) {
            Ok(()) => Ok(history),
            Err(judgement) => Err(self.breach(judgement).await),
        }
    }

    /// A history that was judged, with every service's log for the reader.
    async fn breach(&self, judgement: Judgement) -> WatchError {
        let failing = |breach: &Breach| Failing {
            what: breach.what.clone(),
            from_us: breach.at_us,
            at_us: breach.at_us,
        };
        let failings = judgement.breaches.iter().map(failing).collect();
        let timeline = self.page(&self.evidence().await, failings).await;
        WatchError::Breach { judgement, timeline }
    }
}

impl Watch<'_> {
    /// Ends a scenario as each should end: every fault healed, the node well again within six polls
    /// unless it has failed for good, and the oracle's judgement of all that happened, to this node and to others.
    /// Of its history, what [`Watch::history`] tells is returned.
    ///
    /// # Errors
    /// [`WatchError::TimedOut`] when the node does not recover, [`WatchError::Breach`] when the contract does
    /// not allow its history.
    pub async fn conclude(mut self) -> Result<History, WatchError> {
        self.topology.end_faults().await?;
        self.until_well().await?;
        let since = self.topology.deeds().watched_us().unwrap_or_default();
        Ok(self.topology.judged().await?.with_rows_since(since))
    }

    /// Until the node is well, and what follows from that is written; or has failed already.
    async fn until_well(&mut self) -> Result<(), WatchError> {
        let history = self.topology.history().await?;
        if history.statuses(self.node.as_str()).last() == Some(&Status::Failed) {
            return Ok(());
        }
        self.until(all_ok()).within(CONVERGENCE).await?;
        // What follows from that poll is written after it.
        self.next_poll().await?;
        Ok(())
    }
}
