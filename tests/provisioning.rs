//! How a node comes about and goes when something is in the way: a partition, a restart of platform-api, a
//! registration that comes early, or twice.

#[path = "common/making.rs"]
mod making;

use std::time::Duration;

use anyhow::{Context as _, Result};
use making::{
    NODE, STAGES, admin, judged, machines_left, order, provision, register, stage, stages, the_droplet,
    with_rack,
};
use pretty_assertions::assert_eq;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use wopr_harness::clock::{minutes, polls, seconds};
use wopr_harness::cloud::standin::{Answer, Calls};
use wopr_harness::cloud::{Conduct, Operator, Reboots};
use wopr_harness::history::Status::{Active, Degraded, Failed};
use wopr_harness::watch::{all_ok, status};
use wopr_harness::{Service, Topology, VPS};

/// A machine takes a moment to go.
const GONE: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(20);

async fn nothing_is_left(topology: &Topology) -> Result<()> {
    let gone = async {
        while !(topology.droplets().await?.is_empty() && machines_left(topology).await?.is_empty()) {
            tokio::time::sleep(LOOK).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(GONE, gone)
        .await
        .context("a droplet or its machine is left")?
}

/// A node is ordered, and found well.
async fn a_node_is_made(topology: &Topology, operator: Operator<'_>) -> Result<()> {
    let mut watch = topology.watch(&NODE.parse()?).await?;
    let (code, body) = provision(topology).await?;
    assert_eq!(code, StatusCode::CREATED, "{body}");
    watch.until(all_ok()).within(minutes(10)).await?;
    operator.end()?;
    judged(topology).await?;
    Ok(())
}

#[tokio::test]
async fn a_node_that_is_cut_off_is_deleted_with_its_machine() -> Result<()> {
    let topology = with_rack(1).await?;
    let operator = topology.operate_cloud(Conduct::default()).await?;
    let mut watch = topology.watch(&NODE.parse()?).await?;
    provision(&topology).await?;
    watch.until(all_ok()).within(minutes(10)).await?;

    let machine = operator.machine_of(the_droplet(&topology).await?.id)?;
    let _cut = topology.link(VPS, machine).partition().await?;
    watch.until(status(Degraded)).within(polls(4)).await?;
    let (code, body) = admin(&topology, Method::DELETE, &format!("/{NODE}"), Value::Null).await?;
    assert_eq!(code, StatusCode::OK, "{body}");
    nothing_is_left(&topology).await?;
    judged(&topology).await?;
    Ok(())
}

#[tokio::test]
async fn finding_a_restart_in_mid_provisioning_leaves_the_node_provisioning_for_ever() -> Result<()> {
    let topology = with_rack(1).await?;
    // A machine that registers would be active, without a host that is polled.
    let conduct = Conduct::default().first_boot_begins_after(topology.rate().real(minutes(20)));
    let operator = topology.operate_cloud(conduct).await?;
    topology
        .cloud_answers(Answer::StuckNew.to(Calls::new("POST", "/v2/droplets")))
        .await?;
    let mut watch = topology.watch(&NODE.parse()?).await?;
    // Its client may be cut off by the restart.
    let made = order(&topology);
    let restarted = async {
        watch.until(stage("waiting_active")).within(minutes(2)).await?;
        topology.restart(Service::PlatformApi).await?;
        anyhow::Ok(())
    };
    let (_, restarted) = tokio::join!(made, restarted);
    restarted?;

    tokio::time::sleep(topology.rate().real(polls(12))).await;
    let history = watch.history().await?;
    assert!(
        history.rows(NODE).all(|(_, row)| row.status.is_in_the_making()),
        "\n{history}"
    );
    let (code, body) = admin(&topology, Method::DELETE, &format!("/{NODE}"), Value::Null).await?;
    assert_eq!(code, StatusCode::CONFLICT, "and nobody can delete it: {body}");
    assert_eq!(topology.droplets().await?.len(), 1, "its droplet costs money");
    drop(operator);
    judged(&topology).await?;
    Ok(())
}

#[tokio::test]
async fn finding_a_stage_that_is_registered_early_is_written_over() -> Result<()> {
    let topology = with_rack(1).await?;
    let time = |time| topology.rate().real(time);
    let conduct = Conduct::default()
        .creation_takes(time(seconds(60.0)))
        .first_boot_begins_after(time(minutes(20)));
    let operator = topology.operate_cloud(conduct).await?;
    let mut watch = topology.watch(&NODE.parse()?).await?;
    let early = async {
        watch.until(stage("waiting_active")).within(minutes(2)).await?;
        register(&topology, NODE, "installing_docker").await
    };
    let (made, early) = tokio::join!(provision(&topology), early);
    assert_eq!((made?.0, early?), (StatusCode::CREATED, StatusCode::OK));

    let history = judged(&topology).await?;
    let seen = stages(&history);
    let after = seen.iter().skip_while(|stage| *stage != "installing_docker");
    let after: Vec<_> = after.map(String::as_str).collect();
    assert_eq!(after, ["installing_docker", "waiting_agent"], "\n{history}");
    drop(operator);
    Ok(())
}

#[tokio::test]
async fn finding_a_creation_whose_answer_is_lost_leaves_a_droplet_that_no_row_knows() -> Result<()> {
    let topology = with_rack(1).await?;
    let operator = topology.operate_cloud(Conduct::default()).await?;
    topology
        .cloud_answers(Answer::Lose.to(Calls::new("POST", "/v2/droplets")))
        .await?;
    provision(&topology).await?;
    let history = judged(&topology).await?;
    let (_, row) = history.rows(NODE).last().context("a row")?;
    assert_eq!((row.status, &row.droplet_id), (Failed, &None), "\n{history}");
    assert_eq!(topology.droplets().await?.len(), 1, "it costs money\n{history}");
    drop(operator);
    Ok(())
}

/// The watchdog's memory ends with platform-api: it asks for another reboot of a machine that is being rebooted.
#[tokio::test]
async fn finding_2_a_restart_in_the_reboot_window_asks_for_a_second_reboot() -> Result<()> {
    let topology = with_rack(1).await?;
    let operator = topology
        .operate_cloud(Conduct::default().reboots(Reboots::Never).fails("docker"))
        .await?;
    let mut watch = topology.watch(&NODE.parse()?).await?;
    provision(&topology).await?;
    // Its services never start.
    watch.until(status(Degraded)).within(minutes(15)).await?;
    watch.until_notified("gpu_node_degraded").await?;
    topology.restart(Service::PlatformApi).await?;
    watch.polls(4).await?;
    let droplet = the_droplet(&topology).await?.id.to_string();
    let history = judged(&topology).await?;
    assert_eq!(history.reboots(&droplet), 2, "\n{history}");
    drop(operator);
    Ok(())
}

#[tokio::test]
async fn a_cloud_that_is_out_of_reach_fails_the_node_with_a_reason() -> Result<()> {
    let topology = with_rack(1).await?;
    let operator = topology.operate_cloud(Conduct::default()).await?;
    topology.cloud_answers(Answer::Close.to(Calls::all())).await?;
    provision(&topology).await?;
    let history = judged(&topology).await?;
    let (_, row) = history.rows(NODE).last().context("a row")?;
    assert_eq!(
        (row.status, row.last_error.is_some()),
        (Failed, true),
        "\n{history}"
    );
    assert_eq!(topology.droplets().await?.len(), 0);
    drop(operator);
    Ok(())
}

#[tokio::test]
async fn a_slow_cloud_makes_a_node_all_the_same() -> Result<()> {
    let topology = with_rack(1).await?;
    let operator = topology.operate_cloud(Conduct::default()).await?;
    let slowly = topology.rate().real(seconds(20.0)).as_millis();
    let slow = Answer::After {
        ms: u64::try_from(slowly)?,
    };
    topology.cloud_answers(slow.to(Calls::all())).await?;
    a_node_is_made(&topology, operator).await
}

#[tokio::test]
async fn two_topologies_do_not_see_each_others_droplets() -> Result<()> {
    let (one, other) = tokio::try_join!(with_rack(1), with_rack(1))?;
    let operators = (
        one.operate_cloud(Conduct::default()).await?,
        other.operate_cloud(Conduct::default()).await?,
    );
    let mut watch = one.watch(&NODE.parse()?).await?;
    provision(&one).await?;
    watch.until(all_ok()).within(minutes(10)).await?;
    assert_eq!(one.droplets().await?.len(), 1);
    assert_eq!(other.droplets().await?, []);
    assert_eq!(machines_left(&other).await?, Vec::<String>::new());
    operators.0.end()?;
    operators.1.end()?;
    Ok(())
}

#[tokio::test]
async fn a_registration_that_is_sent_twice_is_taken_twice() -> Result<()> {
    let topology = with_rack(1).await?;
    let conduct = Conduct::default().first_boot_begins_after(topology.rate().real(minutes(20)));
    let operator = topology.operate_cloud(conduct).await?;
    let mut watch = topology.watch(&NODE.parse()?).await?;
    provision(&topology).await?;
    for stage in &STAGES[3..] {
        for _ in 0..2 {
            assert_eq!(register(&topology, NODE, stage).await?, StatusCode::OK, "{stage}");
        }
    }
    watch.until(status(Active)).within(polls(1)).await?;
    let history = judged(&topology).await?;
    assert_eq!(stages(&history), STAGES, "\n{history}");
    let mut statuses = history.statuses(NODE);
    statuses.retain(|status| !status.is_in_the_making());
    assert_eq!(statuses.first(), Some(&Active), "\n{history}");
    drop(operator);
    Ok(())
}

#[tokio::test]
async fn droplets_become_machines_after_the_vps_machine_lost_its_power() -> Result<()> {
    let topology = with_rack(1).await?;
    let operator = topology.operate_cloud(Conduct::default()).await?;
    topology.kill_machine(&VPS).await?.heal().await?;
    topology.until_healthy(&[Service::PlatformApi]).await?;

    a_node_is_made(&topology, operator).await
}

/// Failed or made, a node that cannot be reached for its removal is removed once the cloud answers.
#[tokio::test]
async fn a_removal_that_the_cloud_refuses_leaves_the_node_and_its_machine_until_it_is_tried_again()
-> Result<()> {
    let topology = with_rack(1).await?;
    let operator = topology.operate_cloud(Conduct::default()).await?;
    let mut watch = topology.watch(&NODE.parse()?).await?;
    provision(&topology).await?;
    watch.until(all_ok()).within(minutes(10)).await?;

    let removals = Calls::new("DELETE", "/v2/droplets/*");
    topology
        .cloud_answers(Answer::Status { code: 500 }.to(removals).times(1))
        .await?;
    let path = format!("/{NODE}");
    let (code, body) = admin(&topology, Method::DELETE, &path, Value::Null).await?;
    assert!(code.is_server_error(), "{code} {body}");
    assert_eq!(topology.droplets().await?.len(), 1);
    let (code, body) = admin(&topology, Method::DELETE, &path, Value::Null).await?;
    assert_eq!(code, StatusCode::OK, "{body}");
    nothing_is_left(&topology).await?;
    operator.end()?;
    judged(&topology).await?;
    Ok(())
}
