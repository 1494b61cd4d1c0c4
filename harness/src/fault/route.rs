//! Where a link's packets are met, where they lead, and what shows how they fare.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::end::End;
use super::link::Link;
use super::probe::Question;
use super::rules::{Fate, Packets, Place, Rule};
use super::{Applying, FaultError};
use crate::history::{Bearing, Impact, Meaning, Upset};
use crate::machine::{MachineName, Role, VPS};
use crate::service::{Health, Service};
use crate::topology::Topology;

/// The other way of a link, while a fault of this way is in effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Back {
    Spared,
    Harmed,
}

/// Where a link leads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) address: Ipv4Addr,
    /// All ports, or this one.
    pub(super) port: Option<u16>,
    /// What can be asked there.
    asked: (u16, Asked),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Health,
    Postgres,
}

/// A rule, and the machine whose first process makes it.
pub(super) struct PlacedRule {
    machine: MachineName,
    place: Place,
    pub(super) rule: Rule,
}

impl PlacedRule {
    pub(super) async fn hold(&self, applying: &mut Applying, topology: &Topology) -> Result<(), FaultError> {
        let control = topology.control(&self.machine).await?;
        applying
            .hold(&self.machine, control, self.rule.steps(&self.place))
            .await
    }

    pub(super) fn machine(&self) -> &MachineName {
        &self.machine
    }

    /// Commands that print the rules of its chains with their counters.
    pub(super) fn list_commands(&self) -> Vec<Vec<String>> {
        self.place.list_commands()
    }
}

impl<'a> Link<'a> {
    /// The machine that packets of this link come from.
    pub(super) fn source(&self) -> &MachineName {
        machine_of(self.topology, &self.from)
    }

    /// The network in which they are met first.
    pub(super) async fn place(&self) -> Result<Place, FaultError> {
        let End::Service(service) = self.from else {
            return Ok(Place::Machine);
        };
        let state = self.topology.machine_of(service).service(service).await?;
        match state.and_then(|state| state.pid) {
            Some(process) => Ok(Place::Service(service, process)),
            None => Err(FaultError::NotRunning { service }),
        }
    }

    /// Whether the watchdog's requests take it.
    pub(super) fn is_of_polls(&self) -> bool {
        let from = match &self.from {
            End::Machine(machine) => machine.role() == Role::Vps,
            End::Service(service) => *service == Service::PlatformApi,
        };
        from && machine_of(self.topology, &self.to).role() == Role::Gpu
    }

    /// What a fault of it means for polls.
    pub(super) async fn meaning(&self, impact: Impact) -> Result<Meaning, FaultError> {
        let target = self.target().await?;
        let bearing = Bearing::at(target.address, target.port);
        if self.is_of_polls() {
            return Ok(Meaning {
                impact,
                bearing,
                upsets: Vec::new(),
            });
        }
        match (&self.from, &self.to) {
            (End::Service(Service::PlatformApi), End::Service(Service::Postgres)) => {
                Ok(Meaning::upsets([Upset::Database]))
            }
            (End::Service(Service::PlatformApi), _) => Ok(Meaning::unknown()),
            // What another service of the VPS machine sends is none of a poll's.
            (End::Service(service), _) if service.role() == Role::Vps => Ok(Meaning::nothing()),
            // Answers travel this way.
            _ => Ok(Meaning::may_harm(Bearing::ALL)),
        }
    }

    pub(super) async fn rule(&self, fate: Fate, packets: Packets) -> Result<PlacedRule, FaultError> {
        let target = self.target().await?;
        let rule = Rule {
            to: target.address,
            port: target.port,
            fate,
            packets,
        };
        Ok(PlacedRule {
            machine: self.source().clone(),
            place: self.place().await?,
            rule,
        })
    }

    /// Where it leads.
    pub(super) async fn target(&self) -> Result<Target, FaultError> {
        let there = machine_of(self.topology, &self.to);
        let on_one_machine = there == self.source();
        match (&self.from, &self.to) {
            (_, End::Machine(_)) if on_one_machine => Err(self.no_link("both are one machine")),
            (_, End::Machine(machine)) => {
                let usual = match machine.role() {
                    Role::Gpu => 8080,
                    Role::Vps => 3100,
                };
                Ok(Target {
                    address: self.topology.address(machine),
                    port: self.port,
                    asked: (self.port.unwrap_or(usual), Asked::Health),
                })
            }
            (from, to) if from == to => Err(self.no_link("both are one service")),
            (End::Machine(_), End::Service(_)) if on_one_machine => {
                Err(self.no_link("name the service that the connections come from"))
            }
            (_, End::Service(service)) if on_one_machine => self.inside(*service).await,
            (_, End::Service(service)) => {
                let Health::Get { port, .. } = service.health() else {
                    return Err(self.no_link("it is not published to the other machine"));
                };
                let port = self.port.unwrap_or(port);
                Ok(Target {
                    address: self.topology.address(there),
                    port: Some(port),
                    asked: (port, Asked::Health),
                })
            }
        }
    }

    /// Within a machine a service has an address of its own.
    async fn inside(&self, service: Service) -> Result<Target, FaultError> {
        let state = self.topology.machine_of(service).service(service).await?;
        let address = state.and_then(|state| state.address());
        let asked = match service {
            Service::Postgres => Asked::Postgres,
            _ => Asked::Health,
        };
        Ok(Target {
            address: address.ok_or(FaultError::NotRunning { service })?,
            port: self.port,
            asked: (self.port.unwrap_or(service.inner_port()), asked),
        })
    }

    fn no_link(&self, reason: &'static str) -> FaultError {
        FaultError::NoSuchLink {
            from: self.from.clone(),
            to: self.to.clone(),
            reason,
        }
    }

    /// What travels on it: from the VPS machine platform-api's poll, from the GPU machine a registration,
    /// which the machine itself sends; from a service, what that service would send.
    pub(super) async fn question(&self) -> Result<Question, FaultError> {
        let asker = match &self.from {
            End::Service(service) => Some(*service),
            End::Machine(machine) if machine.role() == Role::Vps => Some(Service::PlatformApi),
            End::Machine(_) => None,
        };
        Ok(self.asked_by(asker, self.target().await?))
    }

    /// The same question, from a service's network or from the machine's own.
    fn asked_by(&self, asker: Option<Service>, target: Target) -> Question {
        let machine = self.topology.machine(self.source());
        let (port, asked) = target.asked;
        let address = target.address;
        Question {
            from: asker.map_or_else(|| machine.name().to_string(), |service| service.to_string()),
            machine: (machine.name().to_string(), machine.control_directory().clone()),
            container: asker.map(|service| (machine.engine().clone(), service.container())),
            url: match asked {
                Asked::Health => format!("http://{address}:{port}/health"),
                Asked::Postgres => format!("postgres://{address}:{port}"),
            },
            slower_by: Duration::ZERO,
        }
    }

    /// What a fault of this link must not touch: another port, the way back, and the machine around a
    /// service.
    pub(super) async fn bystanders(&self, back: Back) -> Result<Vec<Question>, FaultError> {
        let mut bystanders = Vec::new();
        if let Some(neighbour) = self.neighbour() {
            bystanders.push(neighbour.question().await?);
        }
        if back == Back::Spared {
            let back = Link {
                port: None,
                ..self.reversed()
            };
            // There may be none: nothing leads from the GPU machine to the database.
            if let Ok(question) = back.question().await {
                bystanders.push(question);
            }
        }
        if matches!(self.from, End::Service(_)) {
            bystanders.push(self.asked_by(None, self.target().await?));
        }
        Ok(bystanders)
    }

    /// A port that a fault of one port must not touch.
    fn neighbour(&self) -> Option<Link<'a>> {
        let (port, End::Machine(machine)) = (self.port?, &self.to) else {
            return None;
        };
        let others: &[u16] = match machine.role() {
            Role::Gpu => &[8080, 8081],
            Role::Vps => &[3100, 80],
        };
        let other = others.iter().find(|other| **other != port)?;
        let expected = self.topology.expected_services();
        expected.contains(&service_at(machine, *other)).then(|| Link {
            port: Some(*other),
            ..self.clone()
        })
    }
}

fn machine_of<'a>(topology: &'a Topology, end: &'a End) -> &'a MachineName {
    match end {
        End::Machine(machine) => machine,
        End::Service(service) => topology.machine_of(*service).name(),
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
