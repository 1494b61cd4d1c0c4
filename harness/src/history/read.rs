//! A history out of its sources: the database, the recorder, the engines, the sidecar, and the harness's own
//! notes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use sqlx::{Connection as _, Row as _};
use tokio::time::timeout;
use wopr_machine::protocol::{Caller, Record, Reply, Request};

use super::logs::{Told, micros};
use super::{Event, History, NodeRow, What};
use crate::VPS;
use crate::machine::Role;
use crate::service::{Health, Service};
use crate::settings::Secrets;
use crate::topology::{Topology, TopologyError};

/// The trigger that records row versions.
const TRIGGER: &str = include_str!("../../../fixtures/sql/history.sql");
/// What the trigger notifies.
pub(crate) const CHANNEL: &str = "wopr_harness";
/// A source that a failing test cannot wait for any longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The gap of a history that was read before anything recorded row versions.
pub const UNRECORDED: &str = "versions of rows, which nothing has recorded yet";

/// What a history is read from, beside the rows, the recorder, the sidecar and the harness's own notes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The services whose log lines it holds.
    pub services: Vec<Service>,
    /// Nothing from before; unless given, log lines are those since the boot or the lease, and all else is
    /// there.
    pub since: Option<SystemTime>,
}

impl Default for Scope {
    fn default() -> Self {
        Self {
            services: vec![Service::PlatformApi],
            since: None,
        }
    }
}

impl Topology {
    /// Has every version of every row recorded from now on; doing it again changes nothing. A topology that the
    /// harness booted does so from its boot on.
    ///
    /// # Errors
    /// [`TopologyError::Database`].
    pub async fn record_rows(&self) -> Result<(), TopologyError> {
        if self.records_rows().await? {
            return Ok(());
        }
        let mut database = self.database().await?;
        let installed = sqlx::raw_sql(TRIGGER).execute(&mut database).await;
        installed.map_err(TopologyError::database("record the versions of gpu_nodes"))?;
        database
            .close()
            .await
            .map_err(TopologyError::database("close the connection to postgres"))
    }

    /// Everything that has happened until now, with platform-api's log, since the boot or the lease; by hand, row
    /// versions since somebody had them recorded. A log that cannot be read is one of its gaps.
    ///
    /// # Errors
    /// [`TopologyError`] when database or recorder cannot be read.
    pub async fn history(&self) -> Result<History, TopologyError> {
        self.history_of(&Scope::default()).await
    }

    /// The same, with the logs of other services, or from a time on.
    ///
    /// # Errors
    /// [`TopologyError`] when database or recorder cannot be read.
    pub async fn history_of(&self, scope: &Scope) -> Result<History, TopologyError> {
        let secrets = self.settings().secrets();
        let (rows, records, beside) = tokio::join!(
            self.all_rows(&secrets),
            self.records(&secrets),
            self.beside(scope, &secrets)
        );
        Ok(self.assemble(scope, rows?, records?, beside))
    }

    /// All that can still be had, with every service's log: for a test that has failed, be it for the very
    /// reason that a machine is gone. What cannot be had is one of its gaps.
    pub(crate) async fn evidence(&self) -> History {
        let scope = Scope {
            services: self.expected_services(),
            since: None,
        };
        let secrets = self.settings().secrets();
        let (rows, records, beside) = tokio::join!(
            timeout(PATIENCE, self.all_rows(&secrets)),
            timeout(PATIENCE, self.records(&secrets)),
            self.beside(&scope, &secrets)
        );
        let late = || Told::nothing(format!("no answer within {} s", PATIENCE.as_secs()));
        let rows = rows.unwrap_or_else(|_| Ok(late()));
        let records = records.unwrap_or_else(|_| Ok(late()));
        let about = |what: &str, read: Result<Told, TopologyError>| {
            let mut told = read.unwrap_or_else(|error| Told::nothing(error.to_string()));
            told.gap = told.gap.map(|gap| format!("{what}: {gap}"));
            told
        };
        let rows = about("rows", rows);
        let records = about("webhooks and cloud calls", records);
        self.assemble(&scope, rows, records, beside)
    }

    fn assemble(&self, scope: &Scope, rows: Told, records: Told, beside: Vec<Told>) -> History {
        let kept = self.deeds().all();
        let mut events = kept.clone();
        let mut gaps = Vec::new();
        for told in [rows, records].into_iter().chain(beside) {
            // What was kept because its record was about to be lost may be told again.
            let fresh: Vec<_> = told
                .events
                .into_iter()
                .filter(|event| !kept.contains(event))
                .collect();
            events.extend(fresh);
            gaps.extend(told.gap);
        }
        if let Some(since) = scope.since.map(micros) {
            events.retain(|event| event.at_us >= since);
        }
        History::new(self.rate(), events)
            .lacking(gaps)
            .serving(self.served())
    }

    /// Where the watchdog finds services.
    fn served(&self) -> BTreeMap<Ipv4Addr, Vec<u16>> {
        let ports: Vec<u16> = self
            .expected_services()
            .into_iter()
            .filter(|service| service.role() == Role::Gpu)
            .filter_map(|service| match service.health() {
                Health::Get { port, .. } => Some(port),
                Health::Query => None,
            })
            .collect();
        let machines = self
            .machines()
            .filter(|machine| machine.name().role() == Role::Gpu);
        machines
            .map(|machine| (machine.address(), ports.clone()))
            .collect()
    }

    /// What stands beside the told: logs and connections.
    async fn beside(&self, scope: &Scope, secrets: &Secrets) -> Vec<Told> {
        let logs = scope
            .services
            .iter()
            .map(|service| self.log_of(*service, scope.since, secrets));
        let (mut told, connections) = tokio::join!(join_all(logs), self.connections());
        told.push(connections);
        told
    }

    async fn all_rows(&self, secrets: &Secrets) -> Result<Told, TopologyError> {
        if !self.records_rows().await? {
            return Ok(Told::nothing(UNRECORDED.to_owned()));
        }
        let versions = self.row_versions(0, None).await?;
        let mut events: Vec<_> = versions.into_iter().map(|(_, event)| event).collect();
        // A topology that was booted again on its volumes has those of before.
        let since = self.deeds().since().map_or(0, micros);
        events.retain(|event| event.at_us >= since);
        for event in &mut events {
            if let What::Row(row) = &mut event.what {
                row.last_error = row.last_error.as_deref().map(|error| secrets.mask(error));
            }
        }
        Ok(Told { events, gap: None })
    }

    /// Whether [`Topology::record_rows`] was called, by whomever.
    async fn records_rows(&self) -> Result<bool, TopologyError> {
        let mut database = self.database().await?;
        let query = "SELECT to_regclass('wopr_harness.row_versions') IS NOT NULL";
        let found = sqlx::query_scalar(query).fetch_one(&mut database).await;
        found.map_err(TopologyError::database("look for the versions of gpu_nodes"))
    }

    /// Number of the newest row version; 0 before the first.
    pub(crate) async fn newest_version(&self) -> Result<i64, TopologyError> {
        let mut database = self.database().await?;
        let query = "SELECT coalesce(max(seq), 0) FROM wopr_harness.row_versions";
        let newest = sqlx::query_scalar(query).fetch_one(&mut database).await;
        newest.map_err(TopologyError::database("read the versions of gpu_nodes"))
    }

    /// Row versions after a number, of one node or of all. Those of one node have their numbers in the
    /// order in which they became visible: its row is locked until they do. Those of several have not.
    pub(crate) async fn row_versions(
        &self,
        after: i64,
        node: Option<&str>,
    ) -> Result<Vec<(i64, Event)>, TopologyError> {
        let mut database = self.database().await?;
        let query = "SELECT seq, at_us, node_id, version::text FROM wopr_harness.row_versions \
             WHERE seq > $1 AND ($2::text IS NULL OR node_id = $2) ORDER BY seq";
        let rows = sqlx::query(query)
            .bind(after)
            .bind(node)
            .fetch_all(&mut database)
            .await;
        let rows = rows.map_err(TopologyError::database("read the versions of gpu_nodes"))?;
        let events: Result<_, sqlx::Error> = rows.iter().map(version).collect();
        events.map_err(TopologyError::database("understand the versions of gpu_nodes"))
    }

    /// What the recorder on the VPS machine got since that booted: it keeps it in memory.
    pub(crate) async fn recorded(&self) -> Result<Vec<Event>, TopologyError> {
        Ok(self.records(&self.settings().secrets()).await?.events)
    }

    async fn records(&self, secrets: &Secrets) -> Result<Told, TopologyError> {
        let asked = self.control(&VPS).await?.ask(&Request::Records).await?;
        let Reply::Records { records } = asked else {
            return Ok(Told::default());
        };
        let event = |mut record: Record| {
            record.path = secrets.mask(&record.path);
            secrets.mask_json(&mut record.body);
            Event {
                at_us: record.at_us,
                what: match record.caller {
                    Caller::Webhook => What::Webhook(record),
                    Caller::Cloud => What::Cloud(record),
                },
            }
        };
        Ok(Told {
            events: records.into_iter().map(event).collect(),
            gap: None,
        })
    }
}

/// One row of wopr_harness.row_versions, with its number.
fn version(row: &sqlx::postgres::PgRow) -> Result<(i64, Event), sqlx::Error> {
    let text: Option<String> = row.try_get("version")?;
    let what = match text {
        None => What::Deleted(row.try_get("node_id")?),
        Some(text) => {
            let version: NodeRow =
                serde_json::from_str(&text).map_err(|error| sqlx::Error::Decode(error.into()))?;
            What::Row(Box::new(version))
        }
    };
    let event = Event {
        at_us: row.try_get("at_us")?,
        what,
    };
    Ok((row.try_get("seq")?, event))
}
