//! What a service of the topology reaches: asked from its container's own network, and at its container's own
//! resolver. No program of its image takes part, whatever that holds.

use std::net::Ipv4Addr;

use super::FaultError;
use super::name::Resolver;
use super::probe::{Probe, Question};
use super::sight::UNHARMED;
use crate::service::Service;
use crate::topology::Topology;

impl Topology {
    /// Asks for `http://address:port/path`, or at `postgres://address:port`, as a service would, once.
    ///
    /// # Errors
    /// [`FaultError::BadUrl`], [`FaultError::Engine`], [`FaultError::Control`].
    pub async fn ask_from(&self, service: Service, url: &str) -> Result<Probe, FaultError> {
        let machine = self.machine_of(service);
        let question = Question {
            from: service.to_string(),
            machine: (machine.name().to_string(), machine.control_directory().clone()),
            container: Some((machine.engine().clone(), service.container())),
            url: url.to_owned(),
            slower_by: UNHARMED,
        };
        question.ask().await
    }

    /// The address that a service takes a name for; none where it is told none.
    ///
    /// # Errors
    /// [`FaultError::NotRunning`], [`FaultError::Engine`], [`FaultError::Control`].
    pub async fn address_for(&self, service: Service, name: &str) -> Result<Option<Ipv4Addr>, FaultError> {
        Resolver::of(self, service).address(name).await
    }
}
