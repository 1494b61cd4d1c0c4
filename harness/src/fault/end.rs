//! The ends of a link.

use std::fmt;
use std::str::FromStr;

use crate::machine::MachineName;
use crate::service::Service;

/// Where connections are opened, or where they lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// A machine, with all that runs on it.
    Machine(MachineName),
    /// One service alone.
    Service(Service),
}

/// A text that names neither.
#[derive(Debug, thiserror::Error)]
#[error("{given:?} is neither a machine (vps, gpu) nor a service; the services are {}", Service::ALL.map(Service::name).join(", "))]
pub struct NoSuchEnd {
    given: String,
}

impl From<MachineName> for End {
    fn from(machine: MachineName) -> Self {
        Self::Machine(machine)
    }
}

impl From<Service> for End {
    fn from(service: Service) -> Self {
        Self::Service(service)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(machine) => machine.fmt(f),
            Self::Service(service) => service.fmt(f),
        }
    }
}

impl FromStr for End {
    type Err = NoSuchEnd;

    fn from_str(text: &str) -> Result<Self, NoSuchEnd> {
        if let Ok(machine) = text.parse() {
            return Ok(Self::Machine(machine));
        }
        match Service::from_name(text) {
            Some(service) => Ok(Self::Service(service)),
            None => Err(NoSuchEnd {
                given: text.to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GPU;

    #[test]
    fn an_end_is_a_machine_or_a_service() {
        assert_eq!("gpu".parse::<End>().unwrap(), End::from(GPU));
        let service = "platform-api".parse::<End>().unwrap();
        assert_eq!(service, End::from(Service::PlatformApi));
        let error = "db".parse::<End>().unwrap_err().to_string();
        assert!(
            error.starts_with(
                r#""db" is neither a machine (vps, gpu) nor a service; the services are postgres"#
            )
        );
    }
}
