//! Faults: something broken on purpose, seen to be in effect, and healed on request, on drop, and when
//! this process dies, by the machine itself.

mod cure;
mod disk;
mod link;
mod machine;
mod probe;
mod query;
mod service;
mod sidecar;
mod toxic;

use std::fmt;

use wopr_machine::protocol::{Reply, Request, Step};

use crate::control::{Control, ControlError};
use crate::engine::EngineError;
use crate::history::Deeds;
use crate::machine::{BootError, MachineName};
use crate::topology::{Topology, TopologyError};

pub use link::Link;
pub use machine::Names;
pub use probe::{Outcome, Probe};
pub(crate) use sidecar::Sidecar;
pub use toxic::{Stream, Toxic};
pub use wopr_machine::protocol::{Answer, Caller, Manner};

/// Why a fault is not in effect, or not healed.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// The topology.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The machine.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// An engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A machine that was to come back.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The machine could not apply it.
    #[error("{fault}: {machine} refused it: {reason}")]
    Refused {
        /// The fault.
        fault: String,
        /// The machine.
        machine: MachineName,
        /// Its reason.
        reason: String,
    },
    /// The Toxiproxy sidecar.
    #[error("the Toxiproxy sidecar could not {action}: {reason}")]
    Sidecar {
        /// What was asked of it.
        action: String,
        /// Its words.
        reason: String,
    },
    /// It was applied, and traffic does not show it.
    #[error("{fault} is applied and not in effect: {probe}")]
    NotInEffect {
        /// The fault.
        fault: String,
        /// What was seen.
        probe: Probe,
    },
    /// It was healed, and traffic still shows it.
    #[error("{fault} is healed and still in effect: {probe}")]
    StillInEffect {
        /// The fault.
        fault: String,
        /// What was seen.
        probe: Probe,
    },
}

/// What shows that a fault is in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The commands that were carried out, and where.
    pub mechanism: Vec<String>,
    /// Traffic that was sent to see it.
    pub probes: Vec<Probe>,
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for probe in &self.probes {
            writeln!(f, "  seen: {probe}")?;
        }
        for command in &self.mechanism {
            writeln!(f, "  by:   {command}")?;
        }
        Ok(())
    }
}

/// A fault in effect. It heals when this is dropped.
#[must_use = "a fault that nobody holds is healed at once"]
pub struct Fault {
    name: String,
    /// One conversation for each machine that holds a part of it: its end undoes that part.
    held: Vec<(MachineName, Control)>,
    /// What the harness itself has to undo.
    cure: Option<cure::Cure>,
    receipt: Receipt,
    /// Asked again after the heal, and expected to go well then.
    after: Vec<probe::Question>,
    /// The same for the database.
    query: Option<query::Query>,
    proxies: Vec<sidecar::Proxy>,
    deeds: Deeds,
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault")
            .field("name", &self.name)
            .field("receipt", &self.receipt)
            .finish_non_exhaustive()
    }
}

impl Fault {
    /// What it is, as `drop of all from vps to gpu`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What shows that it is in effect.
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// Heals it, and sees that traffic flows again.
    ///
    /// # Errors
    /// [`FaultError::Refused`], [`FaultError::StillInEffect`].
    pub async fn heal(mut self) -> Result<(), FaultError> {
        for (machine, control) in &mut self.held {
            match control.ask(&Request::Release).await {
                // A machine that has ended since has taken along what it held.
                Ok(_) | Err(ControlError::Ended { .. }) => {}
                Err(ControlError::Refused { reason, .. }) => {
                    return Err(FaultError::Refused {
                        fault: self.name.clone(),
                        machine: machine.clone(),
                        reason,
                    });
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.held.clear();
        if let Some(cure) = &mut self.cure {
            cure.undo(&self.name).await?;
        }
        for proxy in std::mem::take(&mut self.proxies) {
            proxy.remove().await?;
        }
        if let Some(query) = &self.query {
            query.is_answered_again(&self.name).await?;
        }
        for question in &self.after {
            let probe = question.ask_until(Outcome::Answered).await?;
            if probe.outcome != Outcome::Answered {
                return Err(FaultError::StillInEffect {
                    fault: self.name.clone(),
                    probe,
                });
            }
        }
        Ok(())
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        // The conversations end here, and each machine undoes what this one held.
        self.deeds.note(format!("healed: {}", self.name));
    }
}

impl Topology {
    /// Names of the faults that are in effect now, whoever holds them, by machine. One that is frozen or off
    /// cannot tell what it holds besides.
    ///
    /// # Errors
    /// [`FaultError::Control`].
    pub async fn faults(&self) -> Result<Vec<(MachineName, String)>, FaultError> {
        let mut faults = Vec::new();
        for machine in self.machines() {
            let harms = self.harms(machine).await?;
            let silent = harms.iter().any(|harm| harm.silences());
            faults.extend(
                harms
                    .iter()
                    .map(|harm| (machine.name().clone(), harm.found(machine))),
            );
            if silent {
                continue;
            }
            if let Reply::Faults { names } = machine.control().await?.ask(&Request::Faults).await? {
                faults.extend(names.into_iter().map(|name| (machine.name().clone(), name)));
            }
        }
        Ok(faults)
    }

    /// Heals every fault, whoever holds it; returns the names of those that there were.
    ///
    /// # Errors
    /// [`FaultError::Control`].
    pub async fn heal_all(&self) -> Result<Vec<(MachineName, String)>, FaultError> {
        let faults = self.faults().await?;
        for machine in self.machines() {
            self.put_right(machine).await?;
            machine.control().await?.ask(&Request::HealAll).await?;
        }
        Ok(faults)
    }
}

/// A fault under way: what a machine holds of it.
struct Applying {
    name: String,
    held: Vec<(MachineName, Control)>,
    mechanism: Vec<String>,
}

impl Applying {
    fn new(name: String) -> Self {
        Self {
            name,
            held: Vec::new(),
            mechanism: Vec::new(),
        }
    }

    /// Lets a machine hold these steps.
    async fn hold(
        &mut self,
        machine: &MachineName,
        control: Control,
        steps: Vec<Step>,
    ) -> Result<(), FaultError> {
        let shown = steps
            .iter()
            .map(|step| format!("{machine}: {}", step.apply.join(" ")));
        self.mechanism.extend(shown.collect::<Vec<_>>());
        self.ask(
            machine,
            control,
            &Request::Hold {
                name: self.name.clone(),
                steps,
            },
        )
        .await
    }

    async fn ask(
        &mut self,
        machine: &MachineName,
        mut control: Control,
        request: &Request,
    ) -> Result<(), FaultError> {
        let refused = |reason: String| FaultError::Refused {
            fault: self.name.clone(),
            machine: machine.clone(),
            reason,
        };
        match control.ask(request).await {
            Ok(Reply::Done | Reply::Exited { code: Some(0), .. }) => {}
            Ok(Reply::Exited { stderr, .. }) => return Err(refused(stderr.trim().to_owned())),
            Ok(other) => return Err(refused(format!("an answer that is none: {other:?}"))),
            Err(ControlError::Refused { reason, .. }) => return Err(refused(reason)),
            Err(error) => return Err(error.into()),
        }
        self.held.push((machine.clone(), control));
        Ok(())
    }

    /// Looks whether it is in effect. Until this returns, dropping it undoes it.
    async fn confirm(
        self,
        expected: &[(probe::Question, Outcome)],
        deeds: Deeds,
    ) -> Result<Fault, FaultError> {
        let mut probes = Vec::new();
        for (question, outcome) in expected {
            let probe = question.ask_until(*outcome).await?;
            if probe.outcome != *outcome {
                return Err(FaultError::NotInEffect {
                    fault: self.name,
                    probe,
                });
            }
            probes.push(probe);
        }
        deeds.note(format!("begun:  {}", self.name));
        // What it left unharmed is no sign of its heal: another fault may harm that by now.
        let harmed = expected
            .iter()
            .filter(|(_, outcome)| *outcome != Outcome::Answered);
        let after = harmed.map(|(question, _)| question.clone()).collect();
        let receipt = Receipt {
            mechanism: self.mechanism,
            probes,
        };
        Ok(Fault {
            name: self.name,
            held: self.held,
            cure: None,
            receipt,
            after,
            query: None,
            proxies: Vec::new(),
            deeds,
        })
    }
}
