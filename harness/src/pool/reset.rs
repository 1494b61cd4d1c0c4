//! After a lease: back to what the topology was at first, and read back that it is.

use std::time::Duration;

use futures_util::future::try_join_all;
use wopr_machine::protocol::Request;

use super::state::{Difference, State};
use super::{PoolError, database};
use crate::clock;
use crate::machine::{RunningMachine, VPS};
use crate::service::Service;
use crate::topology::{Topology, TopologyError};

/// Connections that a fault kept half-open must not outlive it. Prints those that the kernel still knows
/// afterwards; a new one may have got the number of one that went, hence three rounds.
const FORGET_CONNECTIONS: &str = r#"
numbers() { conntrack --dump --output id 2>/dev/null | grep -o 'id=[0-9]*' | sort -u; }
for round in 1 2 3; do
  before=$(numbers)
  conntrack --flush 2>/dev/null
  left=$({ echo "$before"; numbers; } | sort | uniq -d)
  [ -n "$left" ] || break
done
echo "$left"
"#;
const LIMIT: Duration = Duration::from_secs(10);

/// Brings a topology back to `baseline`.
pub(crate) async fn reset(topology: &Topology, baseline: &State) -> Result<(), PoolError> {
    whole(topology).await?;
    let engine = topology.machine_of(Service::PlatformApi).engine();
    let platform_api = Service::PlatformApi.container();
    let machines = try_join_all(topology.machines().map(heal));
    let (connections, ()) = tokio::try_join!(machines, remove_sidecar(topology))?;
    // Before the rows go: it writes them, and its watchdog remembers.
    engine
        .stop(&platform_api, Duration::ZERO)
        .await
        .map_err(TopologyError::from)?;
    let directory = topology.machine(&VPS).control_directory();
    clock::write(directory, topology.rate()).map_err(TopologyError::io("set the clock in", directory))?;
    start_others(topology).await?;
    topology.until_healthy(&[Service::Postgres]).await?;
    let recorder = async {
        let forgotten = topology.control(&VPS).await?.ask(&Request::ForgetRecords).await;
        forgotten.map(drop).map_err(TopologyError::from)
    };
    tokio::try_join!(database::clean(topology, baseline), recorder)?;
    engine
        .start_again(&platform_api)
        .await
        .map_err(TopologyError::from)?;
    topology.until_healthy(&topology.expected_services()).await?;
    let mut differences = baseline.differences(&State::read(topology).await?);
    differences.extend(connections.into_iter().flatten());
    if differences.is_empty() {
        Ok(())
    } else {
        Err(PoolError::Left { differences })
    }
}

/// Machines and services that are gone do not come back: no need to wait for them. Frozen machines go on.
async fn whole(topology: &Topology) -> Result<(), PoolError> {
    let mut lost = Vec::new();
    for machine in topology.machines() {
        let state = machine.state().await.map_err(TopologyError::from)?;
        let name = machine.name();
        let Some(state) = state.filter(|state| state.running || state.paused) else {
            lost.push(format!("machine {name}"));
            continue;
        };
        if state.paused {
            // Its engine would not answer below.
            machine.unpause().await.map_err(TopologyError::from)?;
        }
        // Off the network no service of it would ever be found well.
        let at = topology.setting().addresses.get(name).copied();
        let now = state
            .networks
            .get(&topology.setting().network())
            .copied()
            .flatten();
        if now != at {
            lost.push(format!("machine {name} at its address"));
        }
    }
    if lost.is_empty() {
        for service in topology.expected_services() {
            let state = topology.machine_of(service).service(service).await;
            if state.map_err(TopologyError::from)?.is_none() {
                lost.push(format!("service {service}"));
            }
        }
    }
    if lost.is_empty() {
        return Ok(());
    }
    let differences = vec![Difference {
        aspect: "topology".to_owned(),
        lost,
        left: Vec::new(),
    }];
    Err(PoolError::Left { differences })
}

/// Heals what is held in a machine; says which connections it could not be made to forget.
async fn heal(machine: &RunningMachine) -> Result<Option<Difference>, TopologyError> {
    let mut control = machine.control().await?;
    control.ask(&Request::HealAll).await?;
    control.ask(&Request::Thaw).await?;
    let kept = control.run(&["sh", "-c", FORGET_CONNECTIONS], LIMIT).await?;
    let left: Vec<_> = kept.split_whitespace().map(str::to_owned).collect();
    Ok((!left.is_empty()).then(|| Difference {
        aspect: format!("connections of {}", machine.name()),
        lost: Vec::new(),
        left,
    }))
}

async fn remove_sidecar(topology: &Topology) -> Result<(), TopologyError> {
    let name = topology.setting().sidecar().name;
    if topology.engine().container(&name).await?.is_some() {
        topology.engine().remove_container(&name).await?;
    }
    Ok(())
}

/// Starts what a test stopped. platform-api is stopped by us.
async fn start_others(topology: &Topology) -> Result<(), TopologyError> {
    let services = topology.expected_services();
    let others = services
        .iter()
        .filter(|service| **service != Service::PlatformApi)
        .map(|service| async move {
            let machine = topology.machine_of(*service);
            let state = machine.service(*service).await?;
            match state {
                Some(state) if state.paused => machine.engine().unpause(&service.container()).await,
                Some(state) if !state.running => machine.engine().start_again(&service.container()).await,
                // One that is gone is for the comparison to find.
                _ => Ok(()),
            }
        });
    try_join_all(others).await.map(drop).map_err(Into::into)
}

impl std::fmt::Display for super::Differences<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown: Vec<String> = self.0.iter().map(Difference::to_string).collect();
        f.write_str(&shown.join("; "))
    }
}
