//! Faults of a service: stopped, paused, or another answers in its place.

use std::time::Duration;

use wopr_machine::protocol::{Answer, Caller, Manner, Request, Step};

use super::probe::Question;
use super::{Applying, Fault, FaultError, Outcome};
use crate::machine::VPS;
use crate::service::{Health, Service};
use crate::topology::{Topology, TopologyError};

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
        self.hold_service("stop", service, step, Outcome::Refused).await
    }

    /// Freezes a service: connections to it come about, and nothing is said.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn pause_service(&self, service: Service) -> Result<Fault, FaultError> {
        let name = service.container();
        let step = command(["docker", "pause", &name], ["docker", "unpause", &name]);
        self.hold_service("pause", service, step, Outcome::NoAnswer).await
    }

    async fn hold_service(
        &self,
        word: &str,
        service: Service,
        step: Step,
        outcome: Outcome,
    ) -> Result<Fault, FaultError> {
        let machine = self.machine_of(service).name().clone();
        let mut applying = Applying::new(format!("{word} of {service}"));
        applying
            .hold(&machine, self.control(&machine).await?, vec![step])
            .await?;
        let expected: Vec<_> = self
            .service_question(service, Asker::Itself)
            .into_iter()
            .map(|asked| (asked, outcome))
            .collect();
        applying.confirm(&expected, self.deeds().clone()).await
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
        let mut applying = Applying::new(format!("{service} answers so: {manner:?}"));
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
        self.deeds()
            .note(format!("{to:?} calls are answered so: {with:?}"));
        Ok(())
    }

    /// A request to a service's published port; none for the database.
    fn service_question(&self, service: Service, asker: Asker) -> Vec<Question> {
        let Health::Get { port, path, .. } = service.health() else {
            return Vec::new();
        };
        let here = self.machine_of(service);
        let from = match asker {
            Asker::Itself => here,
            Asker::Other => self
                .machines()
                .find(|machine| machine.name() != here.name())
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
enum Asker {
    /// Its own machine: no link is in the way.
    Itself,
    /// The other machine: as a client of it.
    Other,
}

fn command<const N: usize, const M: usize>(apply: [&str; N], undo: [&str; M]) -> Step {
    Step {
        apply: apply.iter().map(|word| (*word).to_owned()).collect(),
        undo: undo.iter().map(|word| (*word).to_owned()).collect(),
    }
}
