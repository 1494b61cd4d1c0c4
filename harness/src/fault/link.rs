//! Faults of a link, below TCP: packet rules in the machine where the packets come from.

use wopr_machine::protocol::Step;

use super::probe::Question;
use super::{Applying, Fault, FaultError, Outcome};
use crate::machine::{GPU, MachineName, Role, VPS};
use crate::service::Service;
use crate::topology::Topology;

/// A directed path: the connections that one machine opens to another, to all of its ports or to one.
#[derive(Debug, Clone)]
pub struct Link<'a> {
    topology: &'a Topology,
    from: MachineName,
    to: MachineName,
    port: Option<u16>,
}

impl Topology {
    /// The link from one machine to another.
    pub fn link(&self, from: MachineName, to: MachineName) -> Link<'_> {
        Link {
            topology: self,
            from,
            to,
            port: None,
        }
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Drop,
    Reset,
    Unreachable,
    /// Dropped with this probability.
    Lose(f64),
}

/// Which packets to the other machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packets {
    /// Every one.
    All,
    /// Those of connections that were opened from here.
    Outgoing,
}

impl Fate {
    fn words(self) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Drop => &["--jump", "DROP"],
            Self::Reset => &["--jump", "REJECT", "--reject-with", "tcp-reset"],
            Self::Unreachable => &["--jump", "REJECT", "--reject-with", "icmp-host-unreachable"],
            Self::Lose(share) => {
                let share = format!("{share:.4}");
                let words = [
                    "--match",
                    "statistic",
                    "--mode",
                    "random",
                    "--probability",
                    &share,
                    "--jump",
                    "DROP",
                ];
                return words.map(str::to_owned).to_vec();
            }
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn needs_tcp(self) -> bool {
        matches!(self, Self::Reset)
    }
}

impl<'a> Link<'a> {
    /// The same link, for one port of the machine that it leads to.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The other way.
    #[must_use]
    pub fn reversed(&self) -> Link<'a> {
        Link {
            topology: self.topology,
            from: self.to.clone(),
            to: self.from.clone(),
            port: self.port,
        }
    }

    pub(super) fn its_port(&self) -> Option<u16> {
        self.port
    }

    pub(super) fn topology(&self) -> &'a Topology {
        self.topology
    }

    pub(super) fn source(&self) -> &MachineName {
        &self.from
    }

    pub(super) fn target_address(&self) -> std::net::Ipv4Addr {
        self.topology.address(&self.to)
    }

    pub(super) fn name(&self) -> String {
        match self.port {
            Some(port) => format!("{} → {}:{port}", self.from, self.to),
            None => format!("{} → {}", self.from, self.to),
        }
    }

    /// Both machines are cut off from each other: no packet passes in either direction, on connections that
    /// flow as little as on new ones.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn partition(&self) -> Result<Fault, FaultError> {
        let mut applying = Applying::new(format!("partition of {} and {}", self.from, self.to));
        for link in [self.clone(), self.reversed()] {
            link.hold(&mut applying, Fate::Drop, Packets::All).await?;
        }
        let mut expected = vec![(self.question(), Outcome::NoConnection)];
        expected.push((self.reversed().question(), Outcome::NoConnection));
        applying.confirm(&expected, self.topology.deeds().clone()).await
    }

    /// Packets of this direction vanish.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn drop_packets(&self) -> Result<Fault, FaultError> {
        self.break_with("drop", Fate::Drop, Outcome::NoConnection).await
    }

    /// Connections in this direction are reset at once.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn reset(&self) -> Result<Fault, FaultError> {
        self.break_with("reset", Fate::Reset, Outcome::Refused).await
    }

    /// No way leads to the other machine, and the sender is told so.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn unreachable(&self) -> Result<Fault, FaultError> {
        self.break_with("no route", Fate::Unreachable, Outcome::Refused)
            .await
    }

    /// Packets of this direction are lost with a probability between 0 and 1. What shows it is the rule
    /// alone: any single request may come through.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn lose(&self, share: f64) -> Result<Fault, FaultError> {
        let mut applying = Applying::new(format!("loss of {:.0} % on {}", share * 100.0, self.name()));
        self.hold(&mut applying, Fate::Lose(share), Packets::Outgoing)
            .await?;
        applying.confirm(&[], self.topology.deeds().clone()).await
    }

    async fn break_with(&self, word: &str, fate: Fate, outcome: Outcome) -> Result<Fault, FaultError> {
        let mut unharmed_before = Vec::new();
        let back = Link {
            port: None,
            ..self.reversed()
        };
        for link in self.neighbour().into_iter().chain([back.clone()]) {
            let probe = link.question().ask().await?;
            if probe.outcome == Outcome::Answered {
                unharmed_before.push(probe.url);
            }
        }
        let mut applying = Applying::new(format!("{word} on {}", self.name()));
        self.hold(&mut applying, fate, Packets::Outgoing).await?;
        let mut expected = vec![(self.question(), outcome)];
        for unharmed in self.neighbour().into_iter().chain([back]) {
            let question = unharmed.question();
            // What another fault keeps from answering says nothing about this one.
            if unharmed_before.contains(&question.url) {
                expected.push((question, Outcome::Answered));
            }
        }
        applying.confirm(&expected, self.topology.deeds().clone()).await
    }

    /// A port that a fault of one port must not touch.
    fn neighbour(&self) -> Option<Link<'a>> {
        let port = self.port?;
        let others: &[u16] = if self.to == GPU {
            &[8080, 8081]
        } else {
            &[3100, 80]
        };
        let other = others.iter().find(|other| **other != port)?;
        let healthy = self
            .topology
            .expected_services()
            .contains(&service_at(&self.to, *other));
        healthy.then(|| Link {
            port: Some(*other),
            ..self.clone()
        })
    }

    async fn hold(&self, applying: &mut Applying, fate: Fate, packets: Packets) -> Result<(), FaultError> {
        let control = self.topology.control(&self.from).await?;
        let to = self.topology.address(&self.to).to_string();
        let steps = ["DOCKER-USER", "OUTPUT"].map(|chain| {
            let rule = |action: &str| {
                let mut words: Vec<String> = ["iptables", "--wait", action, chain, "--destination", &to]
                    .map(str::to_owned)
                    .to_vec();
                if self.port.is_some() || fate.needs_tcp() {
                    words.extend(["--protocol", "tcp"].map(str::to_owned));
                }
                if let Some(port) = self.port {
                    words.extend(["--dport".to_owned(), port.to_string()]);
                }
                if packets == Packets::Outgoing {
                    // Answers to what the other machine opened pass: the way back is a link of its own.
                    words.extend(["--match", "conntrack", "--ctdir", "ORIGINAL"].map(str::to_owned));
                }
                words.extend(fate.words());
                words
            };
            Step {
                apply: rule("--insert"),
                undo: rule("--delete"),
            }
        });
        applying.hold(&self.from, control, steps.to_vec()).await
    }

    /// What travels on it: on the way to the GPU machine platform-api's poll, on the way back a
    /// registration, which the machine itself sends.
    pub(super) fn question(&self) -> Question {
        let machine = self.topology.machine(&self.from);
        let address = self.topology.address(&self.to);
        let port = self.port.unwrap_or(if self.to == GPU { 8080 } else { 3100 });
        let (from, container) = match self.from.role() {
            Role::Vps => {
                let platform_api = (machine.engine().clone(), Service::PlatformApi.container());
                ("platform-api".to_owned(), Some(platform_api))
            }
            Role::Gpu => (self.from.to_string(), None),
        };
        Question {
            from,
            machine: (self.from.to_string(), machine.control_directory().clone()),
            container,
            url: format!("http://{address}:{port}/health"),
            slower_by: std::time::Duration::ZERO,
        }
    }
}

fn service_at(machine: &MachineName, port: u16) -> Service {
    match port {
        _ if *machine == VPS && port == 80 => Service::Caddy,
        _ if *machine == VPS => Service::PlatformApi,
        8081 => Service::Chatterbox,
        8082 => Service::Whisper,
        8083 => Service::QwenEmbeddings,
        _ => Service::LlamaCpp,
    }
}
