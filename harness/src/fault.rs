//! Faults: something broken on purpose, seen to be in effect, and healed on request, on drop, and when
//! this process dies, by the machine itself.

mod bend;
mod cure;
mod disk;
mod end;
mod error;
mod group;
mod link;
mod loss;
mod machine;
mod name;
mod probe;
mod query;
mod reach;
mod route;
mod rules;
mod service;
mod sidecar;
mod sight;
mod time;
mod toxic;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use wopr_machine::protocol::{Reply, Request, Step};

use crate::control::{Control, ControlError};
use crate::history::{Deed, Deeds, Heal, Meaning, now_us};
use crate::machine::{MachineName, RunningMachine};
use crate::topology::Topology;

pub use end::{End, NoSuchEnd};
pub use error::FaultError;
pub use group::Split;
pub use link::Link;
pub use machine::Names;
pub use name::DnsName;
pub use probe::{Connection, Outcome, Probe};
pub(crate) use sidecar::Sidecar;
pub use time::PlatformClock;
pub use toxic::{Stream, Toxic};
pub use wopr_machine::protocol::{Answer, Caller, Manner};

/// What shows that a fault is in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The commands that were carried out, and where.
    pub mechanism: Vec<String>,
    /// Traffic that was sent to see it.
    pub probes: Vec<Probe>,
    /// What else was seen, in words: packets that were lost, a name that was looked up, a time that was told.
    pub observed: Vec<String>,
    /// From the call to the moment when it was in place everywhere; what came before are looks at traffic
    /// that it was to harm or to spare.
    pub applied_after: Duration,
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for probe in &self.probes {
            writeln!(f, "  seen: {probe}")?;
        }
        for words in &self.observed {
            writeln!(f, "  seen: {words}")?;
        }
        for command in &self.mechanism {
            writeln!(f, "  by:   {command}")?;
        }
        writeln!(f, "  in:   {} ms", self.applied_after.as_millis())
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
    after: Vec<sight::After>,
    /// The same for the database.
    query: Option<query::Query>,
    /// Machines whose other faults could keep that from going well.
    machines: Vec<(String, PathBuf)>,
    /// For a fault of a name, what it was before.
    name_before: Option<name::NameBefore>,
    /// For a fault of the wall clock, what that was before.
    clock_before: Option<time::ClockBefore>,
    /// For a toxic, how it is changed.
    bent: Option<bend::Bent>,
    deeds: Deeds,
    /// Tells it from others of its name.
    id: u64,
    ending: Ending,
}

/// How far the heal of a fault is.
#[derive(Debug, Clone, Copy)]
enum Ending {
    NotAsked,
    /// Asked for at this time, in microseconds since 1970.
    Asked(i64),
    /// And seen to be over.
    Seen(i64),
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
        let asked_us = now_us();
        self.ending = Ending::Asked(asked_us);
        self.undo().await?;
        self.ending = Ending::Seen(asked_us);
        Ok(())
    }

    async fn undo(&mut self) -> Result<(), FaultError> {
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
        if let Some(query) = &self.query {
            query.is_answered_again(&self.name).await?;
        }
        if let Some(before) = &self.name_before {
            before.is_back(&self.name, &self.machines).await?;
        }
        if let Some(before) = &self.clock_before {
            before.is_back(&self.name).await?;
        }
        let after = std::mem::take(&mut self.after);
        sight::healed(&self.name, after, &self.machines).await
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        // Those conversations that are left end here, and each machine undoes what this one held.
        let (from_us, heal) = match self.ending {
            Ending::NotAsked => (now_us(), Heal::Unseen),
            Ending::Asked(at) => (at, Heal::Unseen),
            Ending::Seen(at) => (at, Heal::Seen),
        };
        self.deeds
            .note(Deed::healed(&self.name, heal).since(from_us).of(self.id));
    }
}

impl Topology {
    /// The machines' names and control directories.
    fn control_directories(&self) -> Vec<(String, PathBuf)> {
        let of = |machine: &RunningMachine| (machine.name().to_string(), machine.control_directory().clone());
        self.machines().map(of).collect()
    }

    /// Looks whether a fault is in effect, on connections from before as well.
    async fn see(&self, applying: Applying, sight: sight::Sight) -> Result<Fault, FaultError> {
        let mut fault = applying.see(sight, self.deeds().clone()).await?;
        fault.machines = self.control_directories();
        Ok(fault)
    }

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
    /// What it does to polls.
    meaning: Meaning,
    began: Instant,
    /// The same, in microseconds since 1970.
    began_us: i64,
    applied_after: Duration,
}

impl Applying {
    /// A fault about to be applied; from here on it may show.
    fn new(name: String, meaning: Meaning) -> Self {
        Self {
            name,
            meaning,
            began_us: now_us(),
            held: Vec::new(),
            mechanism: Vec::new(),
            began: Instant::now(),
            applied_after: Duration::ZERO,
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
        self.applied_after = self.began.elapsed();
        Ok(())
    }

    /// Makes another part of the same fault one with it.
    fn take_in(&mut self, part: Self) {
        self.held.extend(part.held);
        self.mechanism.extend(part.mechanism);
        self.applied_after = self.began.elapsed();
    }

    /// Undoes it before its error is told. Dropping it does so as well, but soon after.
    async fn give_up(mut self, error: FaultError) -> FaultError {
        for (_, control) in &mut self.held {
            // What would not be undone now is undone, or complained of, when the conversation ends.
            let _ = control.ask(&Request::Release).await;
        }
        error
    }

    /// Looks whether it is in effect. Until this returns, dropping it undoes it.
    async fn confirm(
        self,
        expected: &[(probe::Question, Outcome)],
        deeds: Deeds,
    ) -> Result<Fault, FaultError> {
        self.see(sight::Sight::of_new(expected), deeds).await
    }

    /// Looks whether it is in effect, also on connections from before. Until this returns, dropping it
    /// undoes it.
    async fn see(self, sight: sight::Sight, deeds: Deeds) -> Result<Fault, FaultError> {
        let (probes, after) = match sight.after(&self.name).await {
            Ok(seen) => seen,
            Err(error) => return Err(self.give_up(error).await),
        };
        let id = rand::random();
        deeds.note(Deed::begun(&self.name, self.meaning).since(self.began_us).of(id));
        let receipt = Receipt {
            mechanism: self.mechanism,
            probes,
            observed: Vec::new(),
            applied_after: self.applied_after,
        };
        Ok(Fault {
            name: self.name,
            held: self.held,
            cure: None,
            receipt,
            after,
            query: None,
            machines: Vec::new(),
            name_before: None,
            clock_before: None,
            bent: None,
            deeds,
            id,
            ending: Ending::NotAsked,
        })
    }
}
