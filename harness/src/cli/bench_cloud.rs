//! The closed loop in figures: a node from the order to `active`, and an outage that a real reboot ends.

use std::time::{Duration, Instant};

use serde_json::json;
use wopr_harness::clock::{Rate, minutes, polls};
use wopr_harness::cloud::Conduct;
use wopr_harness::history::Status::{Active, Degraded};
use wopr_harness::machine::Role;
use wopr_harness::topology::Topology;
use wopr_harness::watch::{all_ok, status};

use super::Failure;

const NODE: &str = "bench-001";

/// How long both took, on a topology of their own, with a cloud and a first boot that take no time of their own.
pub(super) struct Loop {
    /// From the order to the row that says `active`: a full machine boots, and registers every stage.
    pub(super) provisioned: Duration,
    /// From the end of its services until the row says `active` again: two polls, a reboot, a good poll.
    pub(super) recovered: Duration,
}

pub(super) async fn measure() -> Result<Loop, Failure> {
    let topology = Topology::builder().rate(Rate::FAST).rack(1).boot().await?;
    let operator = topology.operate_cloud(Conduct::default()).await?;
    let mut watch = topology.watch(&NODE.parse()?).await?;
    let token = topology.settings().value(Role::Vps, "FLEET_API_TOKEN_ADMIN")?;
    let request = reqwest::Client::new()
        .post(topology.url(3100, "/api/admin/gpu"))
        .bearer_auth(token)
        .json(&json!({ "name": NODE }));
    let began = Instant::now();
    let ordered = async { Ok::<_, Failure>(request.send().await?.error_for_status()?) };
    let active = async { Ok::<_, Failure>(watch.until(status(Active)).within(minutes(10)).await?) };
    tokio::try_join!(ordered, active)?;
    let provisioned = began.elapsed();
    watch.until(all_ok()).within(polls(4)).await?;

    let droplets = topology.droplets().await?;
    let droplet = droplets.first().ok_or("the cloud has no droplet")?;
    let machine = operator.machine_of(droplet.id)?;
    let began = Instant::now();
    topology.end_services(&machine).await?;
    watch.until(status(Degraded)).within(polls(5)).await?;
    watch.until(status(Active)).within(minutes(9)).await?;
    let recovered = began.elapsed();
    operator.end()?;
    topology.down().await?;
    Ok(Loop {
        provisioned,
        recovered,
    })
}
