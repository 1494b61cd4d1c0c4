//! The private bridge network of a topology: a small explicit subnet, taken under a lock.
//!
//! Docker's own default pools end at about 31 networks; a /26 from a range of ours leaves room for a
//! thousand topologies, each with sixty addresses for machines and sidecars.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::path::Path;

use bollard::models::{EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig, NetworkConnectRequest};
use bollard::models::{NetworkCreateRequest, NetworkDisconnectRequest, NetworkInspect};
use bollard::query_parameters::{InspectNetworkOptions, ListNetworksOptions, ListNetworksOptionsBuilder};

use super::error::absent_is_fine;
use super::{Engine, EngineError};

/// First two octets of every topology's subnet. The topology started by hand has the last /28.
pub const SUBNET_RANGE: &str = "10.87.0.0/16";
const PREFIX: u8 = 26;
const SIZE: u32 = 1 << (32 - PREFIX);
const FIRST: u32 = Ipv4Addr::new(10, 87, 0, 0).to_bits();
const COUNT: u32 = (1 << 16) / SIZE;

/// A topology's network, `wopr-dev` to those on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lan {
    base: u32,
    prefix: u8,
}

impl Lan {
    /// The subnet of the topology that people start by hand, as local/docker-compose.yml has it.
    pub const BY_HAND: Lan = Lan {
        base: FIRST + (1 << 16) - (1 << 4),
        prefix: 28,
    };

    fn number(index: u32) -> Self {
        Self {
            base: FIRST + index * SIZE,
            prefix: PREFIX,
        }
    }

    /// The subnet, as `10.87.0.64/26`.
    pub fn subnet(self) -> String {
        format!("{}/{}", Ipv4Addr::from_bits(self.base), self.prefix)
    }

    /// The `n`th address for a machine or sidecar, from 0 to 60. The first of all is the gateway's.
    pub fn address(self, n: u8) -> Ipv4Addr {
        debug_assert!(
            u32::from(n) < (1 << (32 - self.prefix)) - 3,
            "{} has no such address",
            self.subnet()
        );
        Ipv4Addr::from_bits(self.base + 2 + u32::from(n))
    }

    /// The bridge's own address on the host.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base + 1)
    }

    fn overlaps(self, base: u32, prefix: u32) -> bool {
        let shorter = prefix.min(u32::from(self.prefix));
        let mask = u32::MAX.checked_shl(32 - shorter).unwrap_or(0);
        self.base & mask == base & mask
    }
}

impl Engine {
    /// Makes a network on a free subnet. `lock` keeps two processes from taking the same one.
    ///
    /// # Errors
    /// [`EngineError::NoSubnet`], [`EngineError::Call`], [`EngineError::Io`] for the lock.
    pub async fn create_lan(
        &self,
        name: &str,
        labels: HashMap<String, String>,
        lock: &Path,
    ) -> Result<Lan, EngineError> {
        let _held = lock_file(lock).await?;
        let taken = self.taken_subnets().await?;
        let free = (0..COUNT - 1)
            .map(Lan::number)
            .find(|lan| !taken.iter().any(|&(base, prefix)| lan.overlaps(base, prefix)));
        let lan = free.ok_or_else(|| EngineError::NoSubnet {
            range: SUBNET_RANGE.to_owned(),
            taken: taken.len(),
        })?;
        self.create_lan_at(name, lan, labels).await?;
        Ok(lan)
    }

    /// Makes a network on that very subnet.
    ///
    /// # Errors
    /// [`EngineError::Call`], as when it overlaps with another.
    pub async fn create_lan_at(
        &self,
        name: &str,
        lan: Lan,
        labels: HashMap<String, String>,
    ) -> Result<(), EngineError> {
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".into()),
            labels: Some(labels),
            ipam: Some(Ipam {
                config: Some(vec![IpamConfig {
                    subnet: Some(lan.subnet()),
                    ..Default::default()
                }]),
                ..Default::default()
            }),
            ..Default::default()
        };
        let made = self.docker().create_network(request).await;
        made.map(drop).map_err(EngineError::call(format!(
            "make network {name} on {}",
            lan.subnet()
        )))
    }

    async fn taken_subnets(&self) -> Result<HashSet<(u32, u32)>, EngineError> {
        let networks = self.docker().list_networks(None::<ListNetworksOptions>).await;
        let networks = networks.map_err(EngineError::call("list networks"))?;
        let by_engine = networks
            .into_iter()
            .filter_map(|network| network.ipam?.config)
            .flatten()
            .filter_map(|config| parse_subnet(&config.subnet?));
        // Routes of other programs (a VPN, a cloud's own network) are taken as well.
        let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
        Ok(by_engine.chain(parse_routes(&routes)).collect())
    }

    /// Attaches a container at a fixed address, under names that the others on it can look up.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn attach(
        &self,
        network: &str,
        container: &str,
        address: Ipv4Addr,
        names: Vec<String>,
    ) -> Result<(), EngineError> {
        let request = NetworkConnectRequest {
            container: container.to_owned(),
            endpoint_config: Some(EndpointSettings {
                ipam_config: Some(EndpointIpamConfig {
                    ipv4_address: Some(address.to_string()),
                    ..Default::default()
                }),
                aliases: Some(names),
                ..Default::default()
            }),
        };
        let attached = self.docker().connect_network(network, request).await;
        attached.map_err(EngineError::call(format!(
            "attach {container} to {network} at {address}"
        )))
    }

    /// Detaches a container from a network.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn detach(&self, network: &str, container: &str) -> Result<(), EngineError> {
        let request = NetworkDisconnectRequest {
            container: container.to_owned(),
            force: Some(true),
        };
        let detached = self.docker().disconnect_network(network, request).await;
        detached.map_err(EngineError::call(format!("detach {container} from {network}")))
    }

    /// The highest address of a network that nobody on it has, `besides` these: those that are given out grow
    /// from the lowest.
    ///
    /// # Errors
    /// [`EngineError::NoFreeAddress`], [`EngineError::Call`].
    pub async fn free_address(&self, network: &str, besides: &[Ipv4Addr]) -> Result<Ipv4Addr, EngineError> {
        let found = self.inspect_lan(network).await?;
        let subnets = found.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
        let subnet = subnets.into_iter().find_map(|config| config.subnet);
        let (base, prefix) = subnet.as_deref().and_then(parse_subnet).unwrap_or((0, 32));
        let size = 1_u32.checked_shl(32 - prefix.min(32)).unwrap_or(0);
        let taken: HashSet<u32> = (found.containers.unwrap_or_default().into_values())
            .filter_map(|container| Some(parse_subnet(&container.ipv4_address?)?.0))
            .chain(besides.iter().map(|address| address.to_bits()))
            .collect();
        // Neither the network's own address, nor the gateway's, nor the one that means all.
        let free = (base + 2..(base + size).saturating_sub(1))
            .rev()
            .find(|address| !taken.contains(address));
        free.map(Ipv4Addr::from_bits)
            .ok_or_else(|| EngineError::NoFreeAddress {
                network: network.to_owned(),
                taken: taken.len(),
            })
    }

    /// Removes a network; one that is not there is fine.
    ///
    /// An engine forgets at times to detach a container that it removes (moby issue 33156), and then takes the
    /// network for used: such ends of containers that are no more are detached here.
    ///
    /// # Errors
    /// [`EngineError::Call`], as when a container is still attached.
    pub async fn remove_network(&self, name: &str) -> Result<(), EngineError> {
        match self.delete_lan(name).await {
            Err(error) if error.is_in_use() => {
                for ghost in self.ghosts(name).await? {
                    self.detach(name, &ghost).await?;
                }
                self.delete_lan(name).await
            }
            other => other,
        }
    }

    async fn delete_lan(&self, name: &str) -> Result<(), EngineError> {
        let removed = self.docker().remove_network(name).await;
        absent_is_fine(removed.map_err(EngineError::call(format!("remove network {name}"))))
    }

    async fn inspect_lan(&self, name: &str) -> Result<NetworkInspect, EngineError> {
        let options = None::<InspectNetworkOptions>;
        let found = self.docker().inspect_network(name, options).await;
        found.map_err(EngineError::call(format!("look at network {name}")))
    }

    /// What is attached to a network and belongs to no container, by the name that the container had.
    async fn ghosts(&self, network: &str) -> Result<Vec<String>, EngineError> {
        let found = self.inspect_lan(network).await?;
        let mut ghosts = Vec::new();
        for attached in found.containers.unwrap_or_default().into_values() {
            let Some(name) = attached.name else { continue };
            if self.container(&name).await?.is_none() {
                ghosts.push(name);
            }
        }
        Ok(ghosts)
    }

    /// Ids of the networks with a label.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn networks_with_label(&self, label: &str) -> Result<Vec<String>, EngineError> {
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
        let listed = self.docker().list_networks(Some(options)).await;
        let listed = listed.map_err(EngineError::call("list networks"))?;
        Ok(listed.into_iter().filter_map(|network| network.id).collect())
    }
}

/// Waits for an exclusive lock on a file, which ends with this process at the latest.
pub(crate) async fn lock_file(path: &Path) -> Result<std::fs::File, EngineError> {
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| EngineError::Io { action, path, source }
    };
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(io("open", path))?;
    let waited = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
    waited
        .unwrap_or_else(|_| Err(std::io::Error::other("the wait for it was cancelled")))
        .map_err(io("lock", path))
}

fn parse_subnet(text: &str) -> Option<(u32, u32)> {
    let (address, prefix) = text.split_once('/')?;
    Some((address.parse::<Ipv4Addr>().ok()?.to_bits(), prefix.parse().ok()?))
}

/// `/proc/net/route`: destination and mask are hexadecimal in the kernel's byte order.
fn parse_routes(table: &str) -> Vec<(u32, u32)> {
    let parse = |field: &str| Some(u32::from_str_radix(field, 16).ok()?.swap_bytes());
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            Some((parse(fields.get(1)?)?, parse(fields.get(7)?)?.count_ones()))
        })
        // The default route leads everywhere and takes nothing.
        .filter(|&(_, prefix)| prefix > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_address_is_the_gateways() {
        let lan = Lan::number(1);
        assert_eq!(lan.subnet(), "10.87.0.64/26");
        assert_eq!(lan.gateway().to_string(), "10.87.0.65");
        assert_eq!(lan.address(0).to_string(), "10.87.0.66");
    }

    #[test]
    fn the_last_subnet_is_kept_for_the_topology_by_hand() {
        assert_eq!(Lan::BY_HAND.subnet(), "10.87.255.240/28");
        let compose = include_str!("../../../local/docker-compose.yml");
        assert!(compose.contains(&format!("subnet: {}", Lan::BY_HAND.subnet())));
        assert!(compose.contains(&format!("ipv4_address: {}", Lan::BY_HAND.address(0))));
        assert!(compose.contains(&format!("ipv4_address: {}", Lan::BY_HAND.address(1))));
    }

    #[test]
    fn a_wider_network_takes_the_subnets_in_it() {
        let (base, prefix) = parse_subnet("10.87.0.0/24").unwrap();
        assert!(Lan::number(3).overlaps(base, prefix));
        assert!(!Lan::number(4).overlaps(base, prefix));
    }

    #[test]
    fn the_default_route_takes_nothing() {
        let table = "Iface Destination Gateway Flags RefCnt Use Metric Mask\n\
                     eth0 00000000 010011AC 0003 0 0 0 00000000 0 0 0\n\
                     br0 4000570A 00000000 0001 0 0 0 C0FFFFFF 0 0 0\n";
        assert_eq!(parse_routes(table), [(Lan::number(1).base, 26)]);
    }
}
