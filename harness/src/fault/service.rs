//! Faults of a service: stopped, killed, paused, or another answers in its place.

use std::time::{Duration, Instant};

use wopr_machine::protocol::{Answer, Caller, Manner, Request, Step};

use super::probe::Question;
use super::query::Query;
use super::{Applying, Fault, FaultError, Outcome};
use crate::history::{Bearing, Deed, Meaning, Upset, now_us};
use crate::machine::{Role, RunningMachine, VPS};
use crate::service::{Health, Service};
use crate::topology::{Topology, TopologyError};

/// An engine starts what has ended within 100 ms, and later each time: this is for the seventh in a row.
const CRASH: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(20);

impl Topology {
    /// Stops a service: connections to it are refused. Its engine starts it again when this heals.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn stop_service(&self, service: Service) -> Result<Fault, FaultError> {
        let name = service.container();
        let step = command(
            ["docker", "stop", "--time", "0", &name],
            ["docker", "start", &name],
        );
        self.hold_service("stop", service, step, Outcome::Refused, self.end_of(service))
            .await
    }

    /// Kills a service, and keeps it dead: connections to it are refused, and what it had not written is lost. Its
    /// engine starts it again when this heals.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn kill_service(&self, service: Service) -> Result<Fault, FaultError> {
        let name = service.container();
        let step = command(["docker", "kill", &name], ["docker", "start", &name]);
        self.hold_service("kill", service, step, Outcome::Refused, self.end_of(service))
            .await
    }

    /// Kills a service's first process from outside, as the kernel's out-of-memory killer does: its engine
    /// starts it again at once. It is well, as another process, when this returns.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn crash_service(&self, service: Service) -> Result<(), FaultError> {
        let machine = self.machine_of(service);
        let refused = |reason: String| FaultError::Refused {
            fault: format!("crash of {service}"),
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
        let crash = Deed::over(format!("crash of {service}"), self.end_of(service));
        self.deeds().note(crash.since(from_us));
        Ok(self.until_healthy(&[service]).await?)
    }

    /// Freezes a service: connections to it come about, and nothing is said.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn pause_service(&self, service: Service) -> Result<Fault, FaultError> {
        let name = service.container();
        let step = command(["docker", "pause", &name], ["docker", "unpause", &name]);
        let meaning = match service {
            // It keeps its memory.
            Service::PlatformApi => Meaning::upsets([Upset::Running]),
            other => self.end_of(other),
        };
        self.hold_service("pause", service, step, Outcome::NoAnswer, meaning)
            .await
    }

    async fn hold_service(
        &self,
        word: &str,
        service: Service,
        step: Step,
        outcome: Outcome,
        meaning: Meaning,
    ) -> Result<Fault, FaultError> {
        let machine = self.machine_of(service).name().clone();
        let mut applying = Applying::new(format!("{word} of {service}"), meaning);
        applying
            .hold(&machine, self.control(&machine).await?, vec![step])
            .await?;
        let expected: Vec<_> = self
            .service_question(service, Asker::Itself)
            .into_iter()
            .map(|asked| (asked, outcome))
            .collect();
        let fault = applying.confirm(&expected, self.deeds().clone()).await?;
        match service.health() {
            Health::Query => {
                let query = Query(self.database_options()?);
                fault.seen_by(query, &[outcome]).await
            }
            Health::Get { .. } => Ok(fault),
        }
    }

    /// Another answers at a service's published port, in this manner. Delays are real time: convert them by
    /// [`Topology::rate`].
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn impersonate(&self, service: Service, manner: Manner) -> Result<Fault, FaultError> {
        let Health::Get { port, .. } = service.health() else {
            let reason = "it has no published port".to_owned();
            let machine = self.machine_of(service).name().clone();
            return Err(FaultError::Refused {
                fault: format!("{manner:?} of {service}"),
                machine,
                reason,
            });
        };
        let machine = self.machine_of(service).name().clone();
        // A connection from before may still lead to the service itself.
        let bearing = Bearing::at(self.address(&machine), Some(port));
        let meaning = match service.role() {
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
            .service_question(service, Asker::Other)
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
    pub(crate) fn end_of(&self, service: Service) -> Meaning {
        match (service, service.health()) {
            (Service::PlatformApi, _) => Meaning::upsets([Upset::Memory, Upset::Running]).and(Upset::Rules),
            (Service::Postgres, _) => Meaning::upsets([Upset::Database]),
            (_, Health::Get { port, .. }) if service.role() == Role::Gpu => {
                let address = self.machine_of(service).address();
                Meaning::cuts(Bearing::at(address, Some(port)))
            }
            _ => Meaning::nothing(),
        }
    }

    /// A request to a service's published port; none for the database.
    pub(super) fn service_question(&self, service: Service, asker: Asker) -> Vec<Question> {
        self.question_at(self.machine_of(service), service, asker)
    }

    /// The same on one machine of several that have the service.
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
