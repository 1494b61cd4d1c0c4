//! Where images come from.

use std::collections::BTreeMap;

use wopr_machine::envfile::Settings;

use crate::service::Service;

/// The image that each service runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// Services whose image somebody chose; the others run what is built here.
    chosen: BTreeMap<Service, String>,
    toxiproxy: Option<String>,
    login: Option<Login>,
}

/// A registry's login.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The registry's host, or none for the default one.
    pub server: Option<String>,
    /// User.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("server", &self.server)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

impl Profile {
    /// Everything built here from Debian's packages and this repository: the default.
    pub fn local() -> Self {
        Self::default()
    }

    /// The choices in this process's environment: `PLATFORM_API_IMAGE`, `POSTGRES_IMAGE`, … and
    /// `REGISTRY_SERVER`, `REGISTRY_USERNAME`, `REGISTRY_PASSWORD`.
    pub fn from_environment() -> Self {
        Self::choosing(|name| std::env::var(name).ok())
    }

    /// The choices of settings files, under those of the environment.
    pub fn from_settings(settings: &Settings) -> Self {
        Self::choosing(|name| {
            let own = std::env::var(name).ok().filter(|value| !value.is_empty());
            own.or_else(|| settings.get(name).cloned())
        })
    }

    fn choosing(value: impl Fn(&str) -> Option<String>) -> Self {
        let value = |name: &str| value(name).filter(|value| !value.is_empty());
        let chosen = Service::ALL
            .into_iter()
            .filter_map(|service| Some((service, with_tag(value(&service.image_variable())?))))
            .collect();
        let login = value("REGISTRY_USERNAME")
            .zip(value("REGISTRY_PASSWORD"))
            .map(|(username, password)| Login {
                server: value("REGISTRY_SERVER"),
                username,
                password,
            });
        let toxiproxy = value("WOPR_TOXIPROXY_IMAGE").map(with_tag);
        Self {
            chosen,
            toxiproxy,
            login,
        }
    }

    /// The image that somebody chose for a service.
    pub fn chosen(&self, service: Service) -> Option<&str> {
        self.chosen.get(&service).map(String::as_str)
    }

    /// The same profile with another image for a service.
    #[must_use]
    pub fn with_image(mut self, service: Service, image: &str) -> Self {
        self.chosen.insert(service, with_tag(image.to_owned()));
        self
    }

    /// The image that somebody chose for the Toxiproxy sidecar, by `WOPR_TOXIPROXY_IMAGE`.
    pub fn toxiproxy(&self) -> Option<&str> {
        self.toxiproxy.as_deref()
    }

    /// The registry's login.
    pub fn login(&self) -> Option<&Login> {
        self.login.as_ref()
    }
}

/// A reference without a tag means `latest`.
fn with_tag(image: String) -> String {
    let name = image.rsplit('/').next().unwrap_or(&image);
    if name.contains(':') || name.contains('@') {
        image
    } else {
        format!("{image}:latest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_choice_is_none() {
        let settings = Settings::from([("PLATFORM_API_IMAGE".into(), String::new())]);
        assert_eq!(Profile::from_settings(&settings), Profile::local());
    }

    #[test]
    fn a_port_in_a_registrys_name_is_not_a_tag() {
        assert_eq!(
            with_tag("reg.example:5000/a/b".into()),
            "reg.example:5000/a/b:latest"
        );
        assert_eq!(with_tag("a/b:v1".into()), "a/b:v1");
    }

    #[test]
    fn a_login_is_shown_without_its_password() {
        let login = Login {
            server: None,
            username: "me".into(),
            password: "hunter2".into(),
        };
        assert!(!format!("{login:?}").contains("hunter2"));
    }
}
