//! The Toxiproxy sidecar: a container on wopr-dev that links are led through.
//!
//! The published client blocks, and does not look at the status of an answer: it is kept off the async
//! threads, and what it did is read back.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use toxiproxy_rust::client::Client;
use toxiproxy_rust::proxy::ProxyPack;

use super::FaultError;
use super::toxic::{Stream, Toxic};
use crate::machine::{TOXIPROXY_API, VPS};
use crate::topology::Topology;

/// Ports of the proxies: below those that the kernel gives to connections.
const FIRST_PORT: u16 = 20_000;
/// The server listens within milliseconds of its start.
const START_TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(25);

/// The sidecar of a topology.
#[derive(Debug)]
pub(crate) struct Sidecar {
    address: Ipv4Addr,
    api: SocketAddr,
    next: AtomicU16,
}

/// A proxy of the sidecar.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    name: String,
    api: SocketAddr,
    /// Where it listens on wopr-dev.
    pub(super) listens: (Ipv4Addr, u16),
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
        let (engine, spec) = (topology.engine(), topology.setting().sidecar());
        // The machines have the first two addresses.
        let address = Ipv4Addr::from_bits(topology.address(&VPS).to_bits() + 2);
        if engine.container(&spec.name).await?.is_none() {
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
            next: AtomicU16::new(FIRST_PORT),
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

    /// A new proxy to an upstream, with a toxic.
    pub(super) async fn proxy(
        &self,
        upstream: &str,
        toxic: Toxic,
        stream: Stream,
    ) -> Result<Proxy, FaultError> {
        let port = self.next.fetch_add(1, Ordering::Relaxed);
        let proxy = Proxy {
            name: format!("link-{port}"),
            api: self.api,
            listens: (self.address, port),
        };
        let pack = ProxyPack::new(proxy.name.clone(), format!("0.0.0.0:{port}"), upstream.to_owned());
        let (api, name) = (self.api, proxy.name.clone());
        blocking("add a proxy", move || Client::new(api).populate(vec![pack])).await?;
        match toxic.body(stream) {
            None => {
                let name = name.clone();
                blocking("disable a proxy", move || {
                    Client::new(api).find_proxy(&name)?.disable()
                })
                .await?;
            }
            Some(body) => self.add(&name, &body).await?,
        }
        Ok(proxy)
    }

    /// Adds a toxic and reads it back. Not by the client: it lacks reset_peer, and takes a refusal for success.
    async fn add(&self, name: &str, body: &Value) -> Result<(), FaultError> {
        let action = format!("add {body}");
        let url = format!("http://{}/proxies/{name}/toxics", self.api);
        let sent = reqwest::Client::new().post(&url).json(body).send().await;
        let answer = sent.map_err(|error| failed(&action, error))?;
        if !answer.status().is_success() {
            let words = answer.text().await.unwrap_or_default();
            return Err(failed(&action, words));
        }
        let (api, name, kind) = (self.api, name.to_owned(), body["type"].clone());
        let toxics = blocking("tell its toxics", move || {
            Client::new(api).find_proxy(&name)?.toxics()
        })
        .await?;
        let there = toxics.iter().any(|toxic| json!(toxic.r#type) == kind);
        if there {
            Ok(())
        } else {
            Err(failed(&action, "it is not there when it is read back"))
        }
    }
}

impl Proxy {
    /// Removes it, and with it its toxics and connections.
    pub(super) async fn remove(self) -> Result<(), FaultError> {
        blocking("remove a proxy", move || {
            Client::new(self.api).find_proxy(&self.name)?.delete()
        })
        .await
    }
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
