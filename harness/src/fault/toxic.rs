//! Faults of a link above TCP: its connections are led through the Toxiproxy sidecar, by a rule in the machine
//! that opens them. The row keeps the machine's own address, and platform-api notices nothing but the fault.

use std::time::Duration;

use serde_json::{Value, json};
use wopr_machine::protocol::Step;

use super::link::Link;
use super::{Applying, Fault, FaultError, Outcome, Probe};

/// Which way a toxic works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// On what the client sends.
    Upstream,
    /// On what it gets.
    Downstream,
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
    /// What the API is sent; none for [`Toxic::Down`], which is no toxic to it.
    pub(super) fn body(self, stream: Stream) -> Option<Value> {
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
        let stream = match stream {
            Stream::Upstream => "upstream",
            Stream::Downstream => "downstream",
        };
        Some(json!({ "type": kind, "stream": stream, "toxicity": 1.0, "attributes": attributes }))
    }

    /// How a health check through it ends.
    fn outcome(self) -> Outcome {
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

    /// What it adds to a chunk's way at most.
    fn most(self) -> Duration {
        match self {
            Self::Latency { latency, jitter } => latency + jitter,
            Self::Timeout { timeout } | Self::ResetPeer { timeout } => timeout,
            Self::SlowClose { delay } => delay,
            _ => Duration::ZERO,
        }
    }

    /// Less than this no request through it takes.
    fn least(self) -> Duration {
        match self {
            Self::Latency { latency, jitter } => latency.saturating_sub(jitter),
            _ => Duration::ZERO,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Link<'_> {
    /// Leads the connections of one port through the sidecar, with a toxic. One at a time for a port: the last
    /// that was begun takes them all.
    ///
    /// # Errors
    /// [`FaultError::Sidecar`] for a toxic that is refused, [`FaultError::NotInEffect`].
    ///
    /// # Panics
    /// Unless the link is that of one port.
    pub async fn toxic(&self, toxic: Toxic, stream: Stream) -> Result<Fault, FaultError> {
        let Some(port) = self.its_port() else {
            panic!("a toxic is for one port: call port(…) first");
        };
        let (topology, from) = (self.topology(), self.source());
        let target = self.target_address();
        let proxy = topology
            .sidecar()
            .await?
            .proxy(&format!("{target}:{port}"), toxic, stream)
            .await?;
        let mut applying = Applying::new(format!("{toxic:?} {stream:?} on {}", self.name()));
        let (host, own) = proxy.listens;
        let steps = steps(&target.to_string(), port, &format!("{host}:{own}"));
        // A request and its answer may each be late by the most that there is.
        let question = self.question().slower_by(toxic.most() * 2);
        let expected = [(question, toxic.outcome())];
        let held = async {
            applying.hold(from, topology.control(from).await?, steps).await?;
            let fault = applying.confirm(&expected, topology.deeds().clone()).await?;
            match too_quick(&fault, toxic.least()) {
                None => Ok(fault),
                Some(probe) => Err(FaultError::NotInEffect {
                    fault: fault.name().to_owned(),
                    probe,
                }),
            }
        };
        match held.await {
            Ok(mut fault) => {
                fault.proxies.push(proxy);
                // Through it every check went well, or late: without it they go well at once.
                fault.after = vec![self.question()];
                Ok(fault)
            }
            Err(error) => {
                proxy.remove().await?;
                Err(error)
            }
        }
    }
}

/// The probe that was quicker than a fault allows.
fn too_quick(fault: &Fault, least: Duration) -> Option<Probe> {
    fault
        .receipt()
        .probes
        .iter()
        .find(|probe| probe.took < least)
        .cloned()
}

/// For inner containers, for the machine itself, and for connections that flow already, which keep their way
/// until the kernel forgets it.
fn steps(target: &str, port: u16, to: &str) -> Vec<Step> {
    let rule = |chain: &str| {
        let port = port.to_string();
        let words = |action: &str| {
            let words = [
                "iptables",
                "--wait",
                "--table",
                "nat",
                action,
                chain,
                "--destination",
                target,
                "--protocol",
                "tcp",
                "--dport",
                &port,
                "--jump",
                "DNAT",
                "--to-destination",
                to,
            ];
            words.map(str::to_owned).to_vec()
        };
        Step {
            apply: words("--insert"),
            undo: words("--delete"),
        }
    };
    // Ends with 1 when there was nothing to forget.
    let script = format!(
        "conntrack --delete --proto tcp --orig-dst {target} --orig-port-dst {port} 2>/dev/null; true"
    );
    let forget = ["sh", "-c", &script].map(str::to_owned).to_vec();
    // Undone last first: the way back is forgotten after the rules are gone.
    let nothing = vec!["true".to_owned()];
    vec![
        Step {
            apply: nothing.clone(),
            undo: forget.clone(),
        },
        rule("PREROUTING"),
        rule("OUTPUT"),
        Step {
            apply: forget,
            undo: nothing,
        },
    ]
}
