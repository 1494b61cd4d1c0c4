//! Faults of a service: stopped, killed, paused, or another answers in its place.

use std::time::{Duration, Instant};

use wopr_machine::protocol::{Answer, Caller, Halt, Manner, Request, Step};

use super::probe::Question;
use super::query::Query;
use super::{Applying, Fault, FaultError, Outcome};
use crate::history::{Bearing, Deed, Meaning, Upset, now_us};
use crate::machine::{MachineName, Role, RunningMachine, VPS};
use crate::service::{Health, Instance, Service};
use crate::topology::{Topology, TopologyError};

/// An engine starts what has ended within 100 ms, and later each time: this is for the seventh in a row.
const CRASH: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(20);

impl Topology {
    /// Stops a service: connections to it are refused. Its engine starts it again when this heals.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn stop_service(&self, service: impl Into<Instance>) -> Result<Fault, FaultError> {
        let service = service.into();
        let name = service.service.container();
        let end = Ending {
            word: "stop",
            step: command(
                ["docker", "stop", "--time", "0", &name],
                ["docker", "start", &name],
            ),
            light: Some(Halt::Stop),
            outcome: Outcome::Refused,
        };
        self.hold_service(&service, end).await
    }

    /// Kills a service, and keeps it dead: connections to it are refused, and what it had not written is lost. Its
    /// engine starts it again when this heals.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn kill_service(&self, service: impl Into<Instance>) -> Result<Fault, FaultError> {
        let service = service.into();
        let name = service.service.container();
        let end = Ending {
            word: "kill",
            step: command(["docker", "kill", &name], ["docker", "start", &name]),
            light: None,
            outcome: Outcome::Refused,
        };
        self.hold_service(&service, end).await
    }

    /// Kills a service's first process from outside, as the kernel's out-of-memory killer does: its engine
    /// starts it again at once. It is well, as another process, when this returns.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn crash_service(&self, service: impl Into<Instance>) -> Result<(), FaultError> {
        let instance = service.into();
        let (service, machine) = (instance.service, self.machine_with(&instance));
        if machine.is_light() {
            return Err(needs_engine(machine, &format!("crash of {instance}")));
        }
        let refused = |reason: String| FaultError::Refused {
            fault: format!("crash of {instance}"),
            machine: machine.name().clone(),
            reason,
        };
        let pid = machine.service(service).await?.and_then(|state| state.pid);
        let pid = pid.ok_or_else(|| refused("it does not run".to_owned()))?;
        let from_us = now_us();
        let kill = ["kill", "-KILL", &pid.to_string()];
        machine.control().await?.run(&kill, CRASH).await?;
        let began = Instant::now();
        loop {
            let state = machine.service(service).await?;
            match state.as_ref().and_then(|state| state.pid) {
                Some(next) if next != pid => break,
                _ if began.elapsed() > CRASH => {
                    let waited = CRASH.as_secs();
                    return Err(refused(format!(
                        "{waited} s after its process {pid} was killed: {state:?}"
                    )));
                }
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
        let crash = Deed::over(format!("crash of {instance}"), self.end_of(&instance));
        self.deeds().note(crash.since(from_us));
        Ok(self.until_healthy_on(machine, service).await?)
    }

    /// Stops a service, and nobody holds it so: what starts it again is the next start of its machine, or whoever
    /// wants it. A fault that is healed is [`Topology::stop_service`].
    ///
    /// # Errors
    /// [`FaultError::Light`], [`FaultError::Engine`].
    pub async fn end_service(&self, service: impl Into<Instance>) -> Result<(), FaultError> {
        let instance = service.into();
        let machine = self.machine_with(&instance);
        if machine.is_light() {
            return Err(needs_engine(machine, &format!("end of {instance}")));
        }
        let from_us = now_us();
        let container = instance.service.container();
        machine.engine().stop(&container, Duration::ZERO).await?;
        let ended = Deed::onward(format!("ended {instance}"), self.end_of(&instance));
        self.deeds().note(ended.since(from_us));
        Ok(())
    }

    /// The same for each service of a GPU machine: an outage that nothing but its reboot ends.
    ///
    /// # Errors
    /// As [`Topology::end_service`].
    pub async fn end_services(&self, machine: &MachineName) -> Result<(), FaultError> {
        for service in self.expected_services() {
            if service.role() == Role::Gpu {
                self.end_service(service.on(machine)).await?;
            }
        }
        Ok(())
    }

    /// Freezes a service: connections to it come about, and nothing is said.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn pause_service(&self, service: impl Into<Instance>) -> Result<Fault, FaultError> {
        let service = service.into();
        let name = service.service.container();
        let end = Ending {
            word: "pause",
            step: command(["docker", "pause", &name], ["docker", "unpause", &name]),
            light: Some(Halt::Freeze),
            outcome: Outcome::NoAnswer,
        };
        self.hold_service(&service, end).await
    }

    async fn hold_service(&self, service: &Instance, end: Ending) -> Result<Fault, FaultError> {
        let here = self.machine_with(service);
        let machine = here.name();
        let meaning = match (end.outcome, service.service) {
            // Frozen it keeps its memory.
            (Outcome::NoAnswer, Service::PlatformApi) => Meaning::upsets([Upset::Running]),
            _ => self.end_of(service),
        };
        let mut applying = Applying::new(format!("{} of {service}", end.word), meaning);
        let control = here.control().await?;
        match (here.is_light(), end.light, service.service.health()) {
            (false, ..) => applying.hold(machine, control, vec![end.step]).await?,
            (true, Some(halt), Health::Get { port, .. }) => {
                applying
                    .mechanism
                    .push(format!("{machine}: {halt:?} of what answers at port {port}"));
                let name = applying.name.clone();
                let request = Request::Halt { name, port, halt };
                applying.ask(machine, control, &request).await?;
            }
            (true, ..) => return Err(needs_engine(here, &applying.name)),
        }
        let expected: Vec<_> = self
            .question_at(here, service.service, Asker::Itself)
            .into_iter()
            .map(|asked| (asked, end.outcome))
            .collect();
        let fault = applying.confirm(&expected, self.deeds().clone()).await?;
        match service.service.health() {
            Health::Query => {
                let query = Query(self.database_options()?);
                fault.seen_by(query, &[end.outcome]).await
            }
            Health::Get { .. } => Ok(fault),
        }
    }

    /// Another answers at a service's published port, in this manner. Delays are real time: convert them by
    /// [`Topology::rate`].
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn impersonate(
        &self,
        service: impl Into<Instance>,
        manner: Manner,
    ) -> Result<Fault, FaultError> {
        let service = service.into();
        let here = self.machine_with(&service);
        let Health::Get { port, .. } = service.service.health() else {
            let reason = "it has no published port".to_owned();
            let machine = here.name().clone();
            return Err(FaultError::Refused {
                fault: format!("{manner:?} of {service}"),
                machine,
                reason,
            });
        };
        let machine = here.name().clone();
        // A connection from before may still lead to the service itself.
        let bearing = Bearing::at(self.address(&machine), Some(port));
        let meaning = match service.service.role() {
            Role::Gpu => Meaning::may_harm(bearing),
            Role::Vps => Meaning::nothing(),
        };
        let mut applying = Applying::new(format!("{service} answers so: {manner:?}"), meaning);
        applying
            .mechanism
            .push(format!("{machine}: another process answers at port {port}"));
        let name = applying.name.clone();
        applying
            .ask(
                &machine,
                self.control(&machine).await?,
                &Request::Impersonate { name, port, manner },
            )
            .await?;
        let outcome = match manner {
            Manner::Status { code: 200..=299, .. } | Manner::Body { .. } => Outcome::Answered,
            Manner::Status { code: 400.., .. } => Outcome::OtherStatus,
            // curl follows no redirect unless told, and takes one for an answer.
            Manner::Status { .. } | Manner::RedirectLoop => Outcome::Answered,
            Manner::HeadersThenHang | Manner::Silent => Outcome::NoAnswer,
            Manner::Close => Outcome::Broken,
        };
        let slower_by = match manner {
            Manner::Status { after_ms, .. } => Duration::from_millis(after_ms),
            _ => Duration::ZERO,
        };
        let expected: Vec<_> = self
            .question_at(here, service.service, Asker::Other)
            .into_iter()
            .map(|asked| (asked.slower_by(slower_by), outcome))
            .collect();
        applying.confirm(&expected, self.deeds().clone()).await
    }

    /// How the recorder answers platform-api's webhooks or cloud calls from now on.
    ///
    /// # Errors
    /// [`TopologyError::Control`].
    pub async fn answer(&self, to: Caller, with: Answer) -> Result<(), TopologyError> {
        self.control(&VPS)
            .await?
            .ask(&Request::Answer { to, with })
            .await?;
        let what = format!("{to:?} calls are answered so: {with:?}");
        self.deeds().note(Deed::over(what, Meaning::nothing()));
        Ok(())
    }

    /// What it means for polls that a service is not there, or starts.
    pub(crate) fn end_of(&self, instance: &Instance) -> Meaning {
        let service = instance.service;
        match (service, service.health()) {
            (Service::PlatformApi, _) => Meaning::upsets([Upset::Memory, Upset::Running]).and(Upset::Rules),
            (Service::Postgres, _) => Meaning::upsets([Upset::Database]),
            (_, Health::Get { port, .. }) if service.role() == Role::Gpu => {
                let address = self.machine_with(instance).address();
                Meaning::cuts(Bearing::at(address, Some(port)))
            }
            _ => Meaning::nothing(),
        }
    }

    /// A request to a service's published port on a machine; none for the database.
    pub(super) fn question_at(&self, here: &RunningMachine, service: Service, asker: Asker) -> Vec<Question> {
        let Health::Get { port, path, .. } = service.health() else {
            return Vec::new();
        };
        let from = match asker {
            Asker::Itself => here,
            Asker::Other => self
                .machines()
                .find(|machine| machine.name().role() != here.name().role())
                .unwrap_or(here),
        };
        vec![Question {
            from: from.name().to_string(),
            machine: (from.name().to_string(), from.control_directory().clone()),
            container: None,
            url: format!("http://{}:{port}{path}", here.address()),
            slower_by: Duration::ZERO,
        }]
    }
}

/// A way in which a service is put out, by its engine.
struct Ending {
    word: &'static str,
    step: Step,
    /// The same where it has none, if there is such a way.
    light: Option<Halt>,
    outcome: Outcome,
}

/// A machine that has no engine was to have something done by it.
pub(super) fn needs_engine(machine: &RunningMachine, fault: &str) -> FaultError {
    FaultError::Light {
        fault: fault.to_owned(),
        machine: machine.name().clone(),
    }
}

/// Where a service is asked from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// Its own machine: no link is in the way.
    Itself,
    /// The other machine: as a client of it.
    Other,
}

pub(super) fn command<const N: usize, const M: usize>(apply: [&str; N], undo: [&str; M]) -> Step {
    Step {
        apply: apply.iter().map(|word| (*word).to_owned()).collect(),
        undo: undo.iter().map(|word| (*word).to_owned()).collect(),
    }
}
