//! What the harness itself has to undo: a machine that is frozen, off or off the network cannot. On request, and
//! when the handle is dropped, also while the harm is still being done. When the harness is killed, the topology
//! goes with it; on the one by hand `wopr heal` undoes it.

use std::thread;
use std::time::Instant;

use tokio::sync::oneshot;

use super::probe::Question;
use super::{FaultError, Outcome};
use crate::engine::{Engine, EngineError};
use crate::machine::{BootError, MachineName, RunningMachine};
use crate::topology::HEALTH_PATIENCE;

/// What is wrong with a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Harm {
    Pause,
    PowerCut,
    Shutdown,
    Away,
}

impl Harm {
    pub(super) fn name(self, machine: &MachineName) -> String {
        match self {
            Self::Pause => format!("pause of {machine}"),
            Self::PowerCut => format!("power cut of {machine}"),
            Self::Shutdown => format!("shutdown of {machine}"),
            Self::Away => format!("absence of {machine} from the network"),
        }
    }

    /// As a look at the machine tells it: how it was put off cannot be seen.
    pub(super) fn found(self, machine: &RunningMachine) -> String {
        match self {
            Self::PowerCut | Self::Shutdown => format!("{} is off", machine.name()),
            other => other.name(machine.name()),
        }
    }

    /// Whether the machine cannot be asked.
    pub(super) fn silences(self) -> bool {
        self != Self::Away
    }

    /// How a request to the machine may end.
    pub(super) fn outcomes(self) -> &'static [Outcome] {
        match self {
            // Its kernel is the host's, and takes the connection.
            Self::Pause => &[Outcome::NoAnswer],
            // The second once the sender's kernel knows that nobody has the address.
            _ => &[Outcome::NoConnection, Outcome::Refused],
        }
    }

    async fn apply(self, on: &Patient) -> Result<(), EngineError> {
        let (host, container) = (on.machine.host(), on.machine.container());
        match self {
            Self::Pause => host.pause(container).await,
            Self::PowerCut => on.machine.kill().await,
            Self::Shutdown => on.machine.stop().await,
            Self::Away => host.detach(&on.network, container).await,
        }
    }

    /// Undoes it where it is so, to the point from which the machine goes on by itself.
    async fn undo(self, on: &Patient) -> Result<(), BootError> {
        // Without a container the whole topology is gone, and this with it.
        let Some(state) = on.machine.state().await? else {
            return Ok(());
        };
        match self {
            Self::Pause if state.paused => {
                on.machine.unpause().await?;
                on.machine.tell_moved().await?;
            }
            Self::PowerCut | Self::Shutdown if !state.running && !state.paused => on.machine.begin().await?,
            Self::Away if !state.networks.contains_key(&on.network) => on.machine.join(&on.network).await?,
            _ => {}
        }
        Ok(())
    }

    pub(super) fn mechanism(self, on: &Patient) -> String {
        let container = on.machine.container();
        match self {
            Self::Pause => format!("host: docker pause {container}"),
            Self::PowerCut => format!("host: docker kill {container}"),
            Self::Shutdown => format!("host: docker stop {container}"),
            Self::Away => format!("host: docker network disconnect {} {container}", on.network),
        }
    }
}

/// A machine, and the network that it belongs on.
#[derive(Debug, Clone)]
pub(super) struct Patient {
    pub(super) machine: RunningMachine,
    pub(super) network: String,
}

impl Patient {
    /// The harms that can be seen.
    pub(super) async fn harms(&self) -> Result<Vec<Harm>, EngineError> {
        let Some(state) = self.machine.state().await? else {
            return Ok(vec![Harm::PowerCut]);
        };
        let seen = [
            (Harm::Pause, state.paused),
            (Harm::PowerCut, !state.running && !state.paused),
            (Harm::Away, !state.networks.contains_key(&self.network)),
        ];
        Ok(seen
            .into_iter()
            .filter(|(_, is)| *is)
            .map(|(harm, _)| harm)
            .collect())
    }
}

/// The duty to undo a harm, from before it is done.
#[derive(Debug)]
pub(super) struct Cure {
    patient: Patient,
    harm: Harm,
    /// What was asked of the engine is not taken back: it is waited for, and then undone.
    under_way: Option<thread::JoinHandle<()>>,
    /// Answered before, and to be answered again.
    pub(super) back: Option<Question>,
    done: bool,
}

impl Cure {
    /// The duty alone: somebody else does the harm.
    pub(super) fn of(patient: Patient, harm: Harm) -> Self {
        Self {
            patient,
            harm,
            under_way: None,
            back: None,
            done: false,
        }
    }

    /// Does the harm. Whoever stops waiting for it drops this, which waits and undoes it.
    pub(super) async fn apply(&mut self) -> Result<(), FaultError> {
        let (tell, told) = oneshot::channel();
        let (patient, harm) = (self.patient.clone(), self.harm);
        self.under_way = Some(thread::spawn(move || {
            let _ = tell.send(apart(patient, async |on| Ok(harm.apply(&on).await?)));
        }));
        match told.await {
            Ok(applied) => Ok(applied?),
            Err(_) => Err(self.refused("the thread that asked the engine for it has ended")),
        }
    }

    pub(super) fn refused(&self, reason: &str) -> FaultError {
        let machine = self.patient.machine.name().clone();
        FaultError::Refused {
            fault: self.harm.name(&machine),
            machine,
            reason: reason.to_owned(),
        }
    }

    /// Whether the machine shows the harm. How it was put off cannot be seen.
    pub(super) async fn shows(&self) -> Result<bool, FaultError> {
        let wanted = match self.harm {
            Harm::Shutdown => Harm::PowerCut,
            other => other,
        };
        Ok(self.patient.harms().await?.contains(&wanted))
    }

    /// Undoes it, and sees that it is undone; a machine that was off is booted when this returns, and answers what
    /// it answered before.
    pub(super) async fn undo(&mut self, fault: &str) -> Result<(), FaultError> {
        self.harm.undo(&self.patient).await?;
        if matches!(self.harm, Harm::PowerCut | Harm::Shutdown) {
            self.patient.machine.until_ready().await?;
        }
        if self.shows().await? {
            return Err(self.refused("it is undone, and its container shows it all the same"));
        }
        self.done = true;
        let Some(question) = &self.back else {
            return Ok(());
        };
        let began = Instant::now();
        loop {
            let probe = question.ask_until(Outcome::Answered).await?;
            if probe.outcome == Outcome::Answered {
                return Ok(());
            }
            if began.elapsed() > HEALTH_PATIENCE {
                let fault = fault.to_owned();
                return Err(FaultError::StillInEffect { fault, probe });
            }
        }
    }
}

impl Drop for Cure {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let (patient, harm, under_way) = (self.patient.clone(), self.harm, self.under_way.take());
        // Joined, since a process that ends would take the thread along.
        let undone = thread::spawn(move || {
            if let Some(under_way) = under_way {
                let _ = under_way.join();
            }
            apart(patient, async |on| harm.undo(&on).await)
        });
        if let Ok(Err(error)) = undone.join() {
            eprintln!(
                "wopr: {} was not undone: {error}",
                harm.name(self.patient.machine.name())
            );
        }
    }
}

/// Does something in a runtime of its own: the caller's may be ending, and its connections with it.
fn apart(
    patient: Patient,
    work: impl AsyncFnOnce(Patient) -> Result<(), BootError>,
) -> Result<(), BootError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| EngineError::Io {
        action: "start a runtime for",
        path: patient.machine.container().into(),
        source,
    })?;
    runtime.block_on(async {
        let host = Engine::at(patient.machine.host().socket().to_owned()).await?;
        let machine = patient.machine.through(host);
        work(Patient { machine, ..patient }).await
    })
}
