//! Whether the services are well: by a real request through the real path, and for the database by a
//! query.

use std::net::SocketAddrV4;
use std::time::Duration;

use sqlx::{Connection as _, Executor as _};
use tokio::time::Instant;
use wopr_machine::protocol::{Outcome, Reply, Request, Talk};

use super::{Topology, TopologyError};
use crate::machine::RunningMachine;
use crate::service::{Health, Service};

/// How long services get. The slowest, a production platform-api, takes 4 s; this is for a busy host.
pub const HEALTH_PATIENCE: Duration = Duration::from_secs(90);
/// A machine's published port accepts before its service listens: an attempt must not hang on that.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The first attempt of a wait, which may fall into the moment in which a service's container gets its network, and is
/// never answered then. Each after it that is not answered has twice as long: a busy host may need that.
const FIRST_ATTEMPT: Duration = Duration::from_millis(400);
const PAUSE: Duration = Duration::from_millis(15);
/// A service that has ended so often will not come up: the engine's pauses between add up to 6 s by
/// then. One that waits for the database may end a few times.
const RESTARTS: i64 = 6;
/// Asking the engine costs more than asking the service.
const LOOK: Duration = Duration::from_secs(1);
/// Lines of a service's log that an error shows.
const SHOWN: usize = 25;

/// How a service answered when it was asked for its health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceHealth {
    /// Well.
    Ok,
    /// Not well, and how that showed.
    Down(String),
}

impl ServiceHealth {
    /// Whether it is well.
    pub fn is_ok(&self) -> bool {
        *self == Self::Ok
    }
}

impl Topology {
    /// Asks a service for its health, once.
    pub async fn health(&self, service: Service) -> ServiceHealth {
        self.health_on(self.machine_of(service), service).await
    }

    /// The same on one machine of several that have the service.
    pub async fn health_on(&self, machine: &RunningMachine, service: Service) -> ServiceHealth {
        let asked = self.ask(machine, service, ATTEMPT).await;
        asked.unwrap_or_else(|| ServiceHealth::Down(format!("no answer within {} s", ATTEMPT.as_secs())))
    }

    /// None where there is no answer in time.
    async fn ask(
        &self,
        machine: &RunningMachine,
        service: Service,
        patience: Duration,
    ) -> Option<ServiceHealth> {
        let asked = tokio::time::timeout(patience, async {
            match service.health() {
                Health::Query => self.query().await,
                Health::Get { port, path, .. } if machine.is_light() => ask_itself(machine, port, path).await,
                Health::Get { port, path, host } => self.get(machine, port, path, host).await,
            }
        });
        asked.await.ok()
    }

    async fn query(&self) -> ServiceHealth {
        match self.database().await {
            Ok(mut connection) => match connection.execute("SELECT 1").await {
                Ok(_) => {
                    let _ = connection.close().await;
                    ServiceHealth::Ok
                }
                Err(error) => ServiceHealth::Down(error.to_string()),
            },
            Err(error) => ServiceHealth::Down(error.to_string()),
        }
    }

    async fn get(
        &self,
        machine: &RunningMachine,
        port: u16,
        path: &str,
        host: Option<&str>,
    ) -> ServiceHealth {
        // None while its machine is off, or off the network.
        let Some(published) = machine.port(port) else {
            return ServiceHealth::Down(format!("port {port} of its machine leads nowhere now"));
        };
        let url = format!("http://127.0.0.1:{published}{path}");
        let mut request = self.http().get(url);
        if let Some(host) = host {
            request = request.header(reqwest::header::HOST, host);
        }
        match request.send().await {
            Ok(answer) if answer.status().is_success() => ServiceHealth::Ok,
            Ok(answer) => ServiceHealth::Down(format!("GET {path} answered {}", answer.status())),
            Err(error) => ServiceHealth::Down(format!("GET {path}: {}", root_cause(&error))),
        }
    }

    /// Waits until every one of these answers well.
    ///
    /// # Errors
    /// [`TopologyError::Unhealthy`] for the first that does not in [`HEALTH_PATIENCE`].
    pub async fn until_healthy(&self, services: &[Service]) -> Result<(), TopologyError> {
        let waits = services
            .iter()
            .map(|service| self.until_one_healthy(self.machine_of(*service), *service));
        futures_util::future::try_join_all(waits).await.map(drop)
    }

    /// The same on one machine of several that have the service.
    pub(crate) async fn until_healthy_on(
        &self,
        machine: &RunningMachine,
        service: Service,
    ) -> Result<(), TopologyError> {
        self.until_one_healthy(machine, service).await
    }

    /// Waits until every service of every machine that runs answers well.
    pub(super) async fn until_all_healthy(&self) -> Result<(), TopologyError> {
        let expected = self.expected_services();
        let waits = self.machines().flat_map(|machine| {
            let here = expected
                .iter()
                .filter(|service| service.role() == machine.name().role());
            here.map(|service| self.until_one_healthy(machine, *service))
        });
        futures_util::future::try_join_all(waits).await.map(drop)
    }

    async fn until_one_healthy(
        &self,
        machine: &RunningMachine,
        service: Service,
    ) -> Result<(), TopologyError> {
        let began = Instant::now();
        let (mut looked, mut patience) = (began, FIRST_ATTEMPT);
        loop {
            let answer = match self.ask(machine, service, patience).await {
                Some(answer) => answer,
                None => {
                    let waited = patience.as_millis();
                    patience = (patience * 2).min(ATTEMPT);
                    ServiceHealth::Down(format!("no answer within {waited} ms"))
                }
            };
            match answer {
                ServiceHealth::Ok => return Ok(()),
                ServiceHealth::Down(answer) if began.elapsed() > HEALTH_PATIENCE => {
                    return Err(unhealthy(machine, service, began.elapsed(), answer).await);
                }
                ServiceHealth::Down(_) if looked.elapsed() > LOOK && !machine.is_light() => {
                    looked = Instant::now();
                    let state = machine.service(service).await?;
                    let restarts = state.map_or(0, |state| state.restarts);
                    if restarts >= RESTARTS {
                        let answer =
                            format!("it has ended {restarts} times, and was started again each time");
                        return Err(unhealthy(machine, service, began.elapsed(), answer).await);
                    }
                }
                ServiceHealth::Down(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

/// A light machine publishes no ports on the host: its first process asks in its own network.
async fn ask_itself(machine: &RunningMachine, port: u16, path: &str) -> ServiceHealth {
    let request = Request::Ask {
        from: None,
        to: SocketAddrV4::new(machine.address(), port),
        talk: Talk::Http {
            path: path.to_owned(),
        },
        connect_ms: millis(ATTEMPT),
        answer_ms: millis(ATTEMPT),
    };
    let asked = async { machine.control().await?.ask(&request).await };
    match asked.await {
        Ok(Reply::Asked {
            outcome: Outcome::Answered,
            ..
        }) => ServiceHealth::Ok,
        Ok(Reply::Asked { outcome, .. }) => ServiceHealth::Down(format!("GET {path}: {outcome:?}")),
        Ok(other) => ServiceHealth::Down(format!("the machine answered {other:?}")),
        Err(error) => ServiceHealth::Down(error.to_string()),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn unhealthy(
    machine: &RunningMachine,
    service: Service,
    waited: Duration,
    answer: String,
) -> TopologyError {
    let log = if machine.is_light() {
        machine.host().log_tail(machine.container(), SHOWN).await
    } else {
        machine.engine().log_tail(&service.container(), SHOWN).await
    };
    TopologyError::Unhealthy {
        service,
        machine: machine.name().to_string(),
        waited,
        answer,
        log: log.unwrap_or_else(|error| error.to_string()),
    }
}

/// reqwest's own words name the address, which says less than why.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
