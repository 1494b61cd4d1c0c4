//! A node's row, and what the watchdog wrote into it.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A node's status, as the contract names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the contract's own words")]
pub enum Status {
    Provisioning,
    Bootstrapping,
    Active,
    Degraded,
    Failed,
    Destroying,
}

impl Status {
    /// Whether the node is still being made. At which stage one of the two becomes the other the contract leaves open.
    pub fn is_in_the_making(self) -> bool {
        matches!(self, Self::Provisioning | Self::Bootstrapping)
    }
}

/// Health of one service, as the watchdog writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the contract's own words")]
pub enum Health {
    Ok,
    Down,
}

/// A version of a node's row.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NodeRow {
    /// Its id.
    pub id: String,
    /// What the watchdog polls.
    pub host: Option<String>,
    /// Its droplet.
    pub droplet_id: Option<String>,
    /// Its status.
    pub status: Status,
    /// How far its set-up is.
    pub provision_stage: String,
    /// JSON in a text column.
    pub service_health: Option<String>,
    /// Epoch seconds of the last poll, in platform-api's time.
    pub last_health_at: Option<i64>,
    /// What went wrong.
    pub last_error: Option<String>,
    /// Epoch seconds of the last write, in platform-api's time.
    pub updated_at: i64,
}

/// Writes of one poll are closer together than this, in seconds of platform-api's; polls are not.
const ONE_POLL: i64 = 10;

impl NodeRow {
    /// Health of each service by its key; empty where nothing, or something else, is written.
    pub fn health(&self) -> BTreeMap<String, Health> {
        let text = self.service_health.as_deref().unwrap_or("{}");
        serde_json::from_str(text).unwrap_or_default()
    }

    /// Whether this version, which came after `last`, is what a poll wrote. Each poll writes the health;
    /// a change of status follows in a write of its own. A platform-api that dates good polls alone writes
    /// the same again: that is told by the time since.
    pub fn is_poll_after(&self, last: Option<&NodeRow>) -> bool {
        let Some(last) = last else {
            return self.service_health.is_some();
        };
        let found = self.last_health_at != last.last_health_at || self.service_health != last.service_health;
        let again = self.status == last.status
            && self.provision_stage == last.provision_stage
            && self.updated_at - last.updated_at >= ONE_POLL;
        self.service_health.is_some() && (found || again)
    }

    /// Whether every service of a poll was down.
    pub fn is_silent(&self) -> bool {
        let health = self.health();
        !health.is_empty() && health.values().all(|health| *health == Health::Down)
    }
}
