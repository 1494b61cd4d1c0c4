//! The Toxiproxy sidecar's connection log, as events.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::timeout;

use super::logs::Told;
use super::{Connection, Event, What};
use crate::machine::TOXIPROXY_API;
use crate::topology::Topology;

/// So many connections a history holds: the last ones.
const MOST: usize = 2000;
/// The sidecar answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// `GET /wopr/connections`, which our sidecar has and the official server has not.
#[derive(Debug, Deserialize)]
struct Page {
    connections: Vec<Entry>,
}

/// Times in milliseconds since 1970.
#[derive(Debug, Deserialize)]
struct Entry {
    proxy: String,
    client: String,
    opened_ms: i64,
    closed_ms: Option<i64>,
    bytes_up: u64,
    bytes_down: u64,
    toxics: Vec<String>,
}

impl Topology {
    /// The connections through the sidecar, whichever process started it; none without one, and none where
    /// another image that keeps no such log took its place.
    pub(super) async fn connections(&self) -> Told {
        let what = "the sidecar's connections";
        match timeout(PATIENCE, self.connection_log()).await {
            Ok(Ok(Some(page))) => told(page),
            Ok(Ok(None)) => Told::default(),
            Ok(Err(reason)) => Told::nothing(format!("{what}: {reason}")),
            Err(_) => Told::nothing(format!("{what}: no answer within {} s", PATIENCE.as_secs())),
        }
    }

    async fn connection_log(&self) -> Result<Option<Page>, String> {
        let name = self.setting().name("toxiproxy");
        let state = self.engine().container(&name).await;
        let state = state.map_err(|error| error.to_string())?;
        let port = state.and_then(|state| state.ports.get(&TOXIPROXY_API).copied());
        let Some(port) = port else {
            return Ok(None);
        };
        let url = format!("http://127.0.0.1:{port}/wopr/connections");
        let answer = self.http().get(url).send().await;
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.status() == reqwest::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let answer = answer.error_for_status().map_err(|error| error.to_string())?;
        answer.json().await.map(Some).map_err(|error| error.to_string())
    }
}

fn told(page: Page) -> Told {
    let mut connections = page.connections;
    let before = connections.len().saturating_sub(MOST);
    connections.drain(..before);
    let events = connections.into_iter().map(|entry| Event {
        at_us: entry.opened_ms * 1000,
        what: What::Connection(Connection {
            proxy: entry.proxy,
            client: entry.client,
            opened_us: entry.opened_ms * 1000,
            closed_us: entry.closed_ms.map(|closed| closed * 1000),
            bytes_up: entry.bytes_up,
            bytes_down: entry.bytes_down,
            toxics: entry.toxics,
        }),
    });
    Told {
        events: events.collect(),
        gap: (before > 0).then(|| format!("connections before the last {MOST}")),
    }
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;
    use serde_json::json;

    use super::*;

    fn page(count: usize) -> Page {
        let entry = |id| {
            json!({
                "id": id, "proxy": "link-20000", "client": "10.87.0.2:4711", "opened_ms": 1000 + id,
                "closed_ms": null, "bytes_up": 80, "bytes_down": 0, "toxics": ["timeout_upstream"],
            })
        };
        let entries: Vec<_> = (1..=count).map(entry).collect();
        serde_json::from_value(json!({ "next": count + 1, "connections": entries })).unwrap()
    }

    #[test]
    fn the_sidecars_log_is_read_as_it_writes_it() {
        let told = told(page(1));
        let expected = Connection {
            proxy: "link-20000".into(),
            client: "10.87.0.2:4711".into(),
            opened_us: 1_001_000,
            closed_us: None,
            bytes_up: 80,
            bytes_down: 0,
            toxics: vec!["timeout_upstream".into()],
        };
        let event = Event {
            at_us: 1_001_000,
            what: What::Connection(expected),
        };
        assert_eq!((told.events, told.gap), (vec![event], None));
    }

    #[test]
    fn of_too_many_connections_the_last_are_kept_and_that_is_said() {
        let told = told(page(MOST + 5));
        assert_eq!(told.events.len(), MOST);
        assert_eq!(told.events[0].at_us, 1_006_000);
        assert_eq!(told.gap.as_deref(), Some("connections before the last 2000"));
    }
}
