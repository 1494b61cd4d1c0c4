//! Toxics: what the Toxiproxy sidecar does to a connection that is led through it.

use std::time::Duration;

use serde_json::{Value, json};

use super::Outcome;

/// No request or answer of HTTP with its headers is as short as this.
const SHORT: u32 = 64;

/// Which way a toxic works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// On what the client sends.
    Upstream,
    /// On what it gets.
    Downstream,
}

impl Stream {
    fn word(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Downstream => "downstream",
        }
    }
}

/// A toxic, with durations in real time: convert them by `Topology::rate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toxic {
    /// Each chunk comes later, by `latency` give or take `jitter`.
    Latency {
        /// How much later.
        latency: Duration,
        /// Give or take.
        jitter: Duration,
    },
    /// So many kilobytes a second pass; none at 0.
    Bandwidth {
        /// Kilobytes of 1000 bytes.
        rate: u32,
    },
    /// The close comes later.
    SlowClose {
        /// How much later.
        delay: Duration,
    },
    /// Data is swallowed; the connection is closed after a quiet time, or never at 0.
    Timeout {
        /// The quiet time.
        timeout: Duration,
    },
    /// The connection is reset once there is data, after a time.
    ResetPeer {
        /// The time.
        timeout: Duration,
    },
    /// Data comes in pieces, with a pause after each.
    Slicer {
        /// Bytes of a piece.
        average_size: u32,
        /// Give or take.
        size_variation: u32,
        /// The pause.
        delay: Duration,
    },
    /// The connection is closed after so many bytes.
    LimitData {
        /// The bytes.
        bytes: u32,
    },
    /// Nobody listens: connections are refused.
    Down,
}

impl Toxic {
    /// Its name in the sidecar, as the server would choose it, and a number: several of one kind add up on a port.
    /// And what the API is sent. None for [`Toxic::Down`], which is no toxic to it.
    pub(super) fn body(self, id: u32, stream: Stream) -> Option<(String, Value)> {
        let (kind, attributes) = match self {
            Self::Latency { latency, jitter } => (
                "latency",
                json!({ "latency": millis(latency), "jitter": millis(jitter) }),
            ),
            Self::Bandwidth { rate } => ("bandwidth", json!({ "rate": rate })),
            Self::SlowClose { delay } => ("slow_close", json!({ "delay": millis(delay) })),
            Self::Timeout { timeout } => ("timeout", json!({ "timeout": millis(timeout) })),
            Self::ResetPeer { timeout } => ("reset_peer", json!({ "timeout": millis(timeout) })),
            Self::Slicer {
                average_size,
                size_variation,
                delay,
            } => {
                let delay = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
                let sizes =
                    json!({ "average_size": average_size, "size_variation": size_variation, "delay": delay });
                ("slicer", sizes)
            }
            Self::LimitData { bytes } => ("limit_data", json!({ "bytes": bytes })),
            Self::Down => return None,
        };
        let name = format!("{kind}_{}_{id:08x}", stream.word());
        let body = json!({
            "name": &name, "type": kind, "stream": stream.word(), "toxicity": 1.0, "attributes": attributes,
        });
        Some((name, body))
    }

    /// Whether the other differs in its attributes alone.
    pub(super) fn is_kind_of(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other) && self != Self::Down
    }

    /// Whether a health check may be too short to show it: then it is read back, and a check may end either way.
    pub(super) fn may_spare_a_check(self) -> bool {
        matches!(self, Self::LimitData { bytes } if bytes >= SHORT)
    }

    /// How a health check through it ends.
    pub(super) fn outcome(self) -> Outcome {
        match self {
            Self::Down => Outcome::Refused,
            Self::ResetPeer { .. } | Self::LimitData { .. } => Outcome::Broken,
            Self::Bandwidth { rate: 0 } => Outcome::NoAnswer,
            Self::Timeout { timeout } if timeout.is_zero() => Outcome::NoAnswer,
            Self::Timeout { .. } => Outcome::Broken,
            Self::Latency { .. } | Self::Bandwidth { .. } | Self::SlowClose { .. } | Self::Slicer { .. } => {
                Outcome::Answered
            }
        }
    }

    /// Whether no answer ever comes through it.
    pub(super) fn swallows_all(self) -> bool {
        matches!(self, Self::Down | Self::Timeout { .. })
    }

    /// What it adds to a chunk's way at most.
    pub(super) fn most(self) -> Duration {
        match self {
            Self::Latency { latency, jitter } => latency + jitter,
            Self::Timeout { timeout } | Self::ResetPeer { timeout } => timeout,
            Self::SlowClose { delay } => delay,
            _ => Duration::ZERO,
        }
    }

    /// Less than this no request through it takes.
    pub(super) fn least(self) -> Duration {
        match self {
            Self::Latency { latency, jitter } => latency.saturating_sub(jitter),
            _ => Duration::ZERO,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
