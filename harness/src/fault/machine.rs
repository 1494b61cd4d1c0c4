//! Faults of a whole machine: frozen, off, off the network, and moved; and of its engine.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use wopr_machine::protocol::{Phase, Reply, Request};

use super::cure::{Cure, Harm, Patient};
use super::probe::Question;
use super::service::{Asker, needs_engine};
use super::{Applying, Fault, FaultError, Outcome, Probe};
use crate::history::{Bearing, Deed, Impact, Meaning, Upset, now_us};
use crate::machine::{MachineName, Role, RunningMachine, VPS};
use crate::service::{Health, Service};
use crate::topology::Topology;

/// An engine that was killed is noticed within milliseconds.
const NOTICE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
/// A packet that is to be lost is; a neighbour that is to be forgotten is so after some seconds at most.
const EFFECT: Duration = Duration::from_secs(15);
/// Ends dockerd alone, as the kernel's out-of-memory killer does.
const KILL_DOCKERD: &str = "kill -KILL $(cat /run/docker.pid)";

/// Whether names keep up with a machine that moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// Its name leads to its new address, on every machine and in every service.
    Follow,
    /// Its name leads to the old address, as with a resolver that was not told.
    Stale,
}

impl Topology {
    /// Freezes a machine: connections to it come about, and nothing is said.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn pause_machine(&self, machine: &MachineName) -> Result<Fault, FaultError> {
        self.harm(machine, Harm::Pause).await
    }

    /// Cuts a machine's power. It starts again, on the same volumes and at the same address, when this heals.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn kill_machine(&self, machine: &MachineName) -> Result<Fault, FaultError> {
        self.harm(machine, Harm::PowerCut).await
    }

    /// Shuts a machine down, its services first. It starts again, on the same volumes and at the same address,
    /// when this heals.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn stop_machine(&self, machine: &MachineName) -> Result<Fault, FaultError> {
        self.harm(machine, Harm::Shutdown).await
    }

    /// Takes a machine off the network; it comes back at the same address. Its published ports lead nowhere
    /// meanwhile, and to other ports of the host after; its engine, its database and its first process are
    /// reached all the same.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn disconnect_machine(&self, machine: &MachineName) -> Result<Fault, FaultError> {
        self.harm(machine, Harm::Away).await
    }

    /// Shuts a machine down and starts it again; a service that was well is so when this returns.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn reboot(&self, machine: &MachineName) -> Result<(), FaultError> {
        self.stop_machine(machine).await?.heal().await
    }

    /// Cuts a machine's power, and starts it again; a service that was well is so when this returns.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn power_cut(&self, machine: &MachineName) -> Result<(), FaultError> {
        self.kill_machine(machine).await?.heal().await
    }

    /// Shuts a machine down and starts it again at an address that nobody had; returns that. A row that names
    /// the old one is stale from now on.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn reboot_at_new_address(
        &self,
        machine: &MachineName,
        names: Names,
    ) -> Result<Ipv4Addr, FaultError> {
        let taken: Vec<_> = self.machines().map(RunningMachine::address).collect();
        let network = self.setting().network();
        let address = self.engine().free_address(&network, &taken).await?;
        self.reboot_at(machine, address, names).await?;
        Ok(address)
    }

    /// Shuts a machine down and starts it again at this address, which has to be free.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn reboot_at(
        &self,
        machine: &MachineName,
        address: Ipv4Addr,
        names: Names,
    ) -> Result<(), FaultError> {
        let from_us = now_us();
        let moving = self.machine(machine);
        let before = moving.address();
        let mut off = self.stop_machine(machine).await?;
        let mut away = Cure::of(self.patient(machine), Harm::Away);
        let network = self.setting().network();
        self.engine().detach(&network, moving.container()).await?;
        moving.move_to(address, &network).await?;
        if names == Names::Follow {
            for other in self.machines() {
                other.learn(machine, address).await?;
            }
        }
        away.undo(off.name()).await?;
        if let Some(question) = off.cure.as_mut().and_then(|cure| cure.back.as_mut()) {
            question.url = question.url.replace(&before.to_string(), &address.to_string());
        }
        off.heal().await?;
        let moved = Deed::onward(
            format!("{machine} is at {address} and no longer at {before}"),
            Meaning {
                impact: Impact::May,
                bearing: Bearing {
                    hosts: Some(vec![before, address]),
                    port: None,
                },
                upsets: vec![Upset::Rules],
            },
        );
        self.deeds().note(moved.since(from_us));
        Ok(())
    }

    /// Kills a machine's engine; the machine starts it again, and that its services, since a container does
    /// not outlive its engine here. The engine answers when this returns.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn kill_engine(&self, machine: &MachineName) -> Result<(), FaultError> {
        let target = self.machine(machine);
        if target.is_light() {
            return Err(needs_engine(target, &format!("kill of the engine of {machine}")));
        }
        let mut control = target.control().await?;
        let from_us = now_us();
        control.run(&["sh", "-c", KILL_DOCKERD], NOTICE).await?;
        let killed = Deed::over(format!("killed the engine of {machine}"), Meaning::nothing());
        self.deeds().note(killed.since(from_us));
        let began = Instant::now();
        while let Reply::Status(status) = control.ask(&Request::Status).await? {
            if status.phase != Phase::Ready {
                break;
            }
            if began.elapsed() > NOTICE {
                return Err(FaultError::Refused {
                    fault: format!("kill of the engine of {machine}"),
                    machine: machine.clone(),
                    reason: format!("it says that its engine runs, {} s after", NOTICE.as_secs()),
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
        target.until_ready().await?;
        let back = Deed::over(
            format!("the engine of {machine} is back"),
            self.end_of_all(machine),
        );
        self.deeds().note(back.since(from_us));
        Ok(())
    }

    /// What it means for polls that a machine's services end and start again, all of them.
    fn end_of_all(&self, machine: &MachineName) -> Meaning {
        match machine.role() {
            Role::Vps => Meaning::upsets([Upset::Memory, Upset::Running, Upset::Database]).and(Upset::Rules),
            Role::Gpu => Meaning::cuts(Bearing::at(self.address(machine), None)).and(Upset::Rules),
        }
    }

    fn patient(&self, machine: &MachineName) -> Patient {
        Patient {
            machine: self.machine(machine).clone(),
            network: self.setting().network(),
        }
    }

    /// What can be seen to be wrong with a machine as a whole.
    pub(super) async fn harms(&self, machine: &RunningMachine) -> Result<Vec<Harm>, FaultError> {
        Ok(self.patient(machine.name()).harms().await?)
    }

    /// Undoes whatever is wrong with a machine as a whole.
    pub(super) async fn put_right(&self, machine: &RunningMachine) -> Result<(), FaultError> {
        for harm in self.harms(machine).await? {
            let name = harm.found(machine);
            Cure::of(self.patient(machine.name()), harm).undo(&name).await?;
        }
        Ok(())
    }

    async fn harm(&self, machine: &MachineName, harm: Harm) -> Result<Fault, FaultError> {
        let patient = self.patient(machine);
        let question = self.question_to(machine).await?;
        let ends = matches!(harm, Harm::PowerCut | Harm::Shutdown);
        if *machine == VPS && ends && patient.harms().await?.is_empty() {
            // The recorder's memory goes with the machine.
            self.deeds().keep(self.recorded().await?);
        }
        let meaning = match (harm, machine.role()) {
            // platform-api keeps its memory.
            (Harm::Pause, Role::Vps) => Meaning::upsets([Upset::Running, Upset::Database]),
            // It has its services within, and no way out.
            (Harm::Away, Role::Vps) => Meaning::cuts(Bearing::ALL),
            (Harm::PowerCut | Harm::Shutdown, _) => self.end_of_all(machine),
            (Harm::Pause | Harm::Away, Role::Gpu) => Meaning::cuts(Bearing::at(self.address(machine), None)),
        };
        let mut applying = Applying::new(harm.name(machine), meaning);
        applying.mechanism = vec![harm.mechanism(&patient)];
        let mut cure = Cure::of(patient.clone(), harm);
        cure.apply().await?;
        if !cure.shows().await? {
            return Err(cure.refused("the engine has done it, and its container does not show it"));
        }
        let mut probes = Vec::new();
        if let Some(question) = &question {
            let probe = ask_until_any(question, harm.outcomes()).await?;
            if !harm.outcomes().contains(&probe.outcome) {
                return Err(FaultError::NotInEffect {
                    fault: applying.name,
                    probe,
                });
            }
            probes.push(probe);
        }
        let mut fault = applying.confirm(&[], self.deeds().clone()).await?;
        fault.receipt.probes = probes;
        cure.back = question;
        fault.cure = Some(cure);
        Ok(fault)
    }

    /// A request from the other machine that is answered now; none when every service is harmed already, or the
    /// other machine is.
    async fn question_to(&self, machine: &MachineName) -> Result<Option<Question>, FaultError> {
        // The one that would ask: in a fleet, others may be down, and this one is seen to be all the same.
        let asker = match machine.role() {
            Role::Vps => self.machines().find(|other| other.name() != machine),
            Role::Gpu => Some(self.machine(&VPS)),
        };
        if let Some(other) = asker
            && !self.harms(other).await?.is_empty()
        {
            return Ok(None);
        }
        if !self.harms(self.machine(machine)).await?.is_empty() {
            return Ok(None);
        }
        let published = |service: &Service| match machine.role() {
            Role::Vps => *service == Service::PlatformApi,
            Role::Gpu => service.role() == Role::Gpu && matches!(service.health(), Health::Get { .. }),
        };
        for service in self.expected_services().into_iter().filter(published) {
            for question in self.question_at(self.machine(machine), service, Asker::Other) {
                if question.ask().await?.outcome == Outcome::Answered {
                    return Ok(Some(question));
                }
            }
        }
        Ok(None)
    }
}

/// Asks until it ends in one of these ways, or long enough; returns the last.
async fn ask_until_any(question: &Question, wanted: &[Outcome]) -> Result<Probe, FaultError> {
    let began = Instant::now();
    let mut probe = question.ask().await?;
    while !wanted.contains(&probe.outcome) && began.elapsed() < EFFECT {
        tokio::time::sleep(PAUSE).await;
        probe = question.ask().await?;
    }
    Ok(probe)
}
