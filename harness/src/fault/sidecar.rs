//! The Toxiproxy sidecar: a container on wopr-dev that links are led through.
//!
//! The published client blocks, and does not look at the status of an answer: it is kept off the async
//! threads, and what it did is read back.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use serde_json::Value;
use toxiproxy_rust::client::Client;
use toxiproxy_rust::proxy::ProxyPack;
use wopr_machine::protocol::Step;

use super::FaultError;
use super::rules::strings;
use crate::image;
use crate::machine::{TOXIPROXY_API, VPS};
use crate::profile::Profile;
use crate::progress::Progress;
use crate::settings::StackSettings;
use crate::topology::{Topology, TopologyError};

/// The server listens within milliseconds of its start.
const START_TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(25);
/// Ports of the proxies begin here, below those that the kernel gives to connections.
const FIRST_PORT: u16 = 20_000;

/// The sidecar of a topology.
#[derive(Debug)]
pub(crate) struct Sidecar {
    address: Ipv4Addr,
    api: SocketAddr,
    choosing: tokio::sync::Mutex<()>,
}

/// A proxy of the sidecar.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    name: String,
    /// The server's API, for the harness.
    api: SocketAddr,
    /// The same, for the machines.
    inside: SocketAddr,
    /// Where it listens on wopr-dev.
    pub(super) listens: SocketAddrV4,
}

fn failed(action: &str, reason: impl ToString) -> FaultError {
    FaultError::Sidecar {
        action: action.to_owned(),
        reason: reason.to_string(),
    }
}

impl Sidecar {
    /// Starts it, or finds the one that another process started on the topology by hand.
    pub(crate) async fn start(topology: &Topology) -> Result<Self, FaultError> {
        let (engine, mut spec) = (topology.engine(), topology.setting().sidecar());
        // The machines have the first two addresses.
        let address = Ipv4Addr::from_bits(topology.address(&VPS).to_bits() + 2);
        if engine.container(&spec.name).await?.is_none() {
            // Of a topology that this process did not boot, only what runs is known.
            if spec.image.is_empty() {
                spec.image = its_image(topology).await?;
            }
            engine
                .start(&spec, Some((&topology.setting().network(), address)))
                .await?;
        }
        let state = engine.container(&spec.name).await?;
        let port = state.and_then(|state| state.ports.get(&TOXIPROXY_API).copied());
        let port = port.ok_or_else(|| failed("start", "its API is not published"))?;
        let sidecar = Self {
            address,
            api: SocketAddr::from(([127, 0, 0, 1], port)),
            choosing: tokio::sync::Mutex::default(),
        };
        let url = format!("http://{}/version", sidecar.api);
        for _ in 0..START_TRIES {
            if topology
                .http()
                .get(&url)
                .send()
                .await
                .is_ok_and(|answer| answer.status().is_success())
            {
                return Ok(sidecar);
            }
            tokio::time::sleep(PAUSE).await;
        }
        let log = engine.log_tail(&spec.name, 10).await?;
        Err(failed(
            "start",
            format!("its API does not answer; its last words: {log}"),
        ))
    }

    /// The proxy of a link to one port: the one that is there, or a new one. All toxics of that link share it,
    /// and one without a toxic is out of everybody's way.
    pub(super) async fn proxy(&self, of: &str, upstream: &str) -> Result<Proxy, FaultError> {
        // One at a time: each is to have a port of its own.
        let _choosing = self.choosing.lock().await;
        let api = self.api;
        let all = blocking("tell its proxies", move || Client::new(api).all()).await?;
        let listening = all
            .into_iter()
            .filter_map(|(name, proxy)| Some((name, proxy.proxy_pack.listen.parse().ok()?)));
        let listening: Vec<(String, SocketAddrV4)> = listening.collect();
        let own = listening.iter().find(|(name, _)| name == of);
        let port = own.map_or_else(|| free_port(&listening), |(_, at)| at.port());
        let proxy = Proxy {
            name: of.to_owned(),
            api: self.api,
            inside: SocketAddr::from((self.address, TOXIPROXY_API)),
            listens: SocketAddrV4::new(self.address, port),
        };
        // By its own address: the server tells by the text whether this is the proxy that it has.
        let pack = ProxyPack::new(of.to_owned(), proxy.listens.to_string(), upstream.to_owned());
        blocking("add a proxy", move || Client::new(api).populate(vec![pack])).await?;
        Ok(proxy)
    }

    /// Where nobody listens.
    pub(super) fn nobody(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, 1)
    }
}

impl Proxy {
    /// The step by which a machine adds a toxic, and removes it when nobody holds it any more. Not by the
    /// client: it lacks reset_peer, takes a refusal for success, and dies with this process.
    pub(super) fn toxic_step(&self, name: &str, body: &Value) -> Step {
        let toxics = format!("http://{}/proxies/{}/toxics", self.inside, self.name);
        let call = |method: &str, rest: &str| {
            // The server's own words about a refusal are in the body.
            let script = format!(
                "curl --silent --show-error --fail-with-body --noproxy '*' --max-time 5 --request {method} {rest} >&2"
            );
            strings(&["sh", "-c", &script])
        };
        Step {
            apply: call("POST", &format!("--json '{body}' '{toxics}'")),
            undo: call("DELETE", &format!("'{toxics}/{name}'")),
        }
    }

    /// Changes attributes of a toxic that is in effect.
    pub(super) async fn update(&self, name: &str, body: &Value) -> Result<(), FaultError> {
        let action = format!("change {name} to {body}");
        let url = format!("http://{}/proxies/{}/toxics/{name}", self.api, self.name);
        let sent = reqwest::Client::new().post(&url).json(body).send().await;
        let answer = sent.map_err(|error| failed(&action, error))?;
        if answer.status().is_success() {
            return Ok(());
        }
        let words = answer.text().await.unwrap_or_default();
        Err(failed(&action, words))
    }

    /// Reads back that a toxic is there.
    pub(super) async fn has(&self, name: &str) -> Result<(), FaultError> {
        let (api, proxy) = (self.api, self.name.clone());
        let toxics = blocking("tell its toxics", move || {
            Client::new(api).find_proxy(&proxy)?.toxics()
        })
        .await?;
        if toxics.iter().any(|toxic| toxic.name == name) {
            return Ok(());
        }
        Err(failed(
            &format!("add {name}"),
            "it is not there when it is read back",
        ))
    }
}

/// The first port that no proxy has.
fn free_port(taken: &[(String, SocketAddrV4)]) -> u16 {
    let free = |port: &u16| taken.iter().all(|(_, at)| at.port() != *port);
    (FIRST_PORT..).find(free).unwrap_or(FIRST_PORT)
}

/// The sidecar's image, built where it is missing.
async fn its_image(topology: &Topology) -> Result<String, FaultError> {
    let settings = StackSettings::for_tests(topology.dirs()).map_err(TopologyError::from)?;
    let (profile, progress) = (Profile::from_environment(), Progress::silent());
    let set = image::ensure(topology.engine(), topology.dirs(), &profile, &settings, &progress).await;
    Ok(set.map_err(TopologyError::from)?.toxiproxy)
}

/// Runs a call of the blocking client where blocking is allowed.
async fn blocking<T: Send + 'static>(
    action: &str,
    call: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, FaultError> {
    let done = tokio::task::spawn_blocking(call).await;
    done.map_err(|error| failed(action, error))?
        .map_err(|reason| failed(action, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_proxy_has_a_port_of_its_own() {
        let at = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let mut taken = vec![("vps-to-gpu-8080".to_owned(), at(20_000))];
        assert_eq!(free_port(&taken), 20_001);
        taken.push(("vps-to-gpu-2-8080".to_owned(), at(20_001)));
        assert_eq!(free_port(&taken), 20_002);
    }
}
