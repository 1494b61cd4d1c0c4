//! The eight services: where each runs and how it shows that it is well.

use std::fmt;

use crate::machine::{MachineName, Role};

/// A service of the stack: an inner container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// The database.
    Postgres,
    /// The system under test.
    PlatformApi,
    /// The page that lists the GPU nodes.
    PlatformUi,
    /// The VPS machine's web server.
    Caddy,
    /// Chat completions.
    LlamaCpp,
    /// Text to speech.
    Chatterbox,
    /// Speech to text.
    Whisper,
    /// Embeddings.
    QwenEmbeddings,
}

/// How a service's health is asked for from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// A query over its Unix socket.
    Query,
    /// `GET path` on the machine's published `port`, with this Host header where one matters; any
    /// 2xx is well.
    Get {
        /// Port of the machine.
        port: u16,
        /// Path and Host header.
        path: &'static str,
        /// Host header.
        host: Option<&'static str>,
    },
}

impl Service {
    /// All eight, in the order in which they are shown.
    pub const ALL: [Service; 8] = [
        Self::Postgres,
        Self::PlatformApi,
        Self::PlatformUi,
        Self::Caddy,
        Self::LlamaCpp,
        Self::Chatterbox,
        Self::Whisper,
        Self::QwenEmbeddings,
    ];

    /// Name of the service in its compose file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::PlatformApi => "platform-api",
            Self::PlatformUi => "platform-ui",
            Self::Caddy => "caddy",
            Self::LlamaCpp => "llama-cpp",
            Self::Chatterbox => "chatterbox",
            Self::Whisper => "whisper",
            Self::QwenEmbeddings => "qwen-embeddings",
        }
    }

    /// The service of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.name() == name)
    }

    /// The kind of machine it runs on.
    pub fn role(self) -> Role {
        match self {
            Self::Postgres | Self::PlatformApi | Self::PlatformUi | Self::Caddy => Role::Vps,
            Self::LlamaCpp | Self::Chatterbox | Self::Whisper | Self::QwenEmbeddings => Role::Gpu,
        }
    }

    /// The services of a kind of machine.
    pub fn of(role: Role) -> impl Iterator<Item = Service> {
        Self::ALL
            .into_iter()
            .filter(move |service| service.role() == role)
    }

    /// The variable that chooses its image, as `PLATFORM_API_IMAGE`.
    pub fn image_variable(self) -> String {
        format!("{}_IMAGE", self.name().to_uppercase().replace('-', "_"))
    }

    /// Name of its container in the machine's engine.
    pub fn container(self) -> String {
        format!("wopr-{}-{}", self.role(), self.name())
    }

    /// The port that it listens on in its container.
    pub fn inner_port(self) -> u16 {
        match self {
            Self::Postgres => 5432,
            Self::PlatformApi => 3100,
            Self::PlatformUi => 3000,
            Self::Caddy => 80,
            Self::LlamaCpp | Self::QwenEmbeddings => 8080,
            Self::Chatterbox => 5123,
            Self::Whisper => 8000,
        }
    }

    /// The profile of the GPU stack that it belongs to.
    pub fn profile(self) -> Option<&'static str> {
        match self {
            Self::LlamaCpp | Self::QwenEmbeddings => Some("llm"),
            Self::Chatterbox | Self::Whisper => Some("voice"),
            _ => None,
        }
    }

    /// How its health is asked for.
    pub fn health(self) -> Health {
        let get = |port, path| Health::Get {
            port,
            path,
            host: None,
        };
        match self {
            Self::Postgres => Health::Query,
            Self::PlatformApi => get(3100, "/health"),
            // Not published by itself: the web server leads any Host but api.localhost to it.
            Self::PlatformUi => get(80, "/health"),
            Self::Caddy => Health::Get {
                port: 80,
                path: "/health",
                host: Some("api.localhost"),
            },
            Self::LlamaCpp => get(8080, "/health"),
            Self::Chatterbox => get(8081, "/health"),
            Self::Whisper => get(8082, "/health"),
            Self::QwenEmbeddings => get(8083, "/health"),
        }
    }
}

/// A service on one machine. A [`Service`] alone is the one of the VPS machine or of the first GPU machine;
/// [`Service::on`] names another of a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub(crate) service: Service,
    pub(crate) machine: Option<MachineName>,
}

impl Service {
    /// This service on a machine of a fleet.
    pub fn on(self, machine: &MachineName) -> Instance {
        Instance {
            service: self,
            machine: Some(machine.clone()),
        }
    }
}

impl From<Service> for Instance {
    fn from(service: Service) -> Self {
        Self {
            service,
            machine: None,
        }
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.machine {
            Some(machine) => write!(f, "{} on {machine}", self.service),
            None => self.service.fmt(f),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_variables_are_those_of_the_compose_files() {
        let compose = concat!(
            include_str!("../../local/vps/docker-compose.yml"),
            include_str!("../../local/gpu/docker-compose.yml")
        );
        for service in Service::ALL {
            let image = format!("image: ${{{}:?}}", service.image_variable());
            assert!(compose.contains(&image), "{image} is in no compose file");
            let container = format!("container_name: {}", service.container());
            assert!(compose.contains(&container), "{container} is in no compose file");
        }
    }

    #[test]
    fn a_service_is_found_by_its_name() {
        for service in Service::ALL {
            assert_eq!(Service::from_name(service.name()), Some(service));
        }
        assert_eq!(Service::from_name("nginx"), None);
    }
}
