//! The closed loop: a droplet that platform-api creates is a machine that boots, registers and serves; a reboot
//! that its watchdog asks for is one.

#[path = "common/making.rs"]
mod making;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;
use making::{NODE, STAGES, admin, judged, machines_left, provision, stage, stages, the_droplet, with_rack};
use pretty_assertions::assert_eq;
use reqwest::{Method, StatusCode};
use rstest::rstest;
use serde_json::{Value, json};
use wopr_harness::clock::{minutes, polls, seconds};
use wopr_harness::cloud::standin::{Answer, Calls};
use wopr_harness::cloud::{Conduct, Reboots};
use wopr_harness::history::Status::{Active, Degraded, Failed};
use wopr_harness::seed::NodeId;
use wopr_harness::testing::topology;
use wopr_harness::watch::{all_down, all_ok, status};
use wopr_harness::{GPU, Service};

const DROPLET: u64 = 412_345_678;

#[tokio::test]
async fn a_droplet_is_a_machine_that_registers_stage_by_stage_and_serves() -> Result<()> {
    let topology = with_rack(1).await?;
    let conduct = Conduct::default().first_boot_begins_after(topology.rate().real(polls(1)));
    let operator = topology.operate_cloud(conduct).await?;
    let node: NodeId = NODE.parse()?;
    let mut watch = topology.watch(&node).await?;

    let (code, answer) = provision(&topology).await?;
    assert_eq!(code, StatusCode::CREATED, "{answer}");
    watch.until(status(Active)).within(minutes(10)).await?;
    watch.until(all_ok()).within(polls(3)).await?;

    let history = watch.history().await?;
    assert_eq!(stages(&history), STAGES, "\n{history}");
    let droplet = the_droplet(&topology).await?;
    let machine = operator.machine_of(droplet.id)?;
    let (_, row) = history.rows(NODE).last().context("a row")?;
    assert_eq!(row.host, Some(topology.address(&machine).to_string()));
    assert_eq!(row.droplet_id, Some(droplet.id.to_string()));
    operator.end()?;
    judged(&topology).await?;
    Ok(())
}

#[rstest]
#[case::installing_drivers("installing_drivers")]
#[case::installing_docker("installing_docker")]
#[case::downloading_models("downloading_models")]
#[case::starting_services("starting_services")]
#[case::registering("registering")]
#[tokio::test]
async fn a_first_boot_that_dies_leaves_the_node_at_its_last_stage(#[case] last: &'static str) -> Result<()> {
    let topology = with_rack(1).await?;
    let conduct = Conduct::default()
        .first_boot_begins_after(topology.rate().real(polls(1)))
        .first_boot_dies_after(last);
    let operator = topology.operate_cloud(conduct).await?;
    let node: NodeId = NODE.parse()?;
    let mut watch = topology.watch(&node).await?;

    provision(&topology).await?;
    watch.until(stage(last)).within(minutes(10)).await?;
    tokio::time::sleep(topology.rate().real(polls(3))).await;
    let history = watch.history().await?;
    assert!(
        history.rows(NODE).all(|(_, row)| row.status.is_in_the_making()),
        "\n{history}"
    );
    assert_eq!(history.polls(NODE).len(), 0, "it is not polled\n{history}");
    assert_eq!(
        stages(&history).last().map(String::as_str),
        Some(last),
        "\n{history}"
    );
    operator.end()?;
    judged(&topology).await?;
    Ok(())
}

#[rstest]
#[case::unauthorised(401)]
#[case::too_many(429)]
#[case::broken(500)]
#[tokio::test]
async fn a_creation_that_the_cloud_refuses_fails_the_node_and_leaves_no_machine(
    #[case] code: u16,
) -> Result<()> {
    let topology = with_rack(1).await?;
    let operator = topology.operate_cloud(Conduct::default()).await?;
    topology
        .cloud_answers(Answer::Status { code }.to(Calls::new("POST", "/v2/droplets")))
        .await?;

    let watch = topology.watch(&NODE.parse()?).await?;
    provision(&topology).await?;
    let history = watch.history().await?;
    let (_, row) = history.rows(NODE).last().context("a row")?;
    assert_eq!(row.status, Failed, "\n{history}");
    assert!(row.last_error.is_some(), "it says why\n{history}");
    assert_eq!(topology.droplets().await?, []);
    assert_eq!(machines_left(&topology).await?, Vec::<String>::new());
    operator.end()?;
    judged(&topology).await?;
    Ok(())
}

#[tokio::test]
async fn a_droplet_that_stays_new_fails_its_node_after_five_minutes_and_is_left() -> Result<()> {
    let topology = with_rack(1).await?;
    let operator = topology.operate_cloud(Conduct::default()).await?;
    topology
        .cloud_answers(Answer::StuckNew.to(Calls::new("POST", "/v2/droplets")))
        .await?;

    let watch = topology.watch(&NODE.parse()?).await?;
    let (_, body) = provision(&topology).await?;
    let history = watch.history().await?;
    let (failed_at, row) = history.rows(NODE).last().context("a row")?;
    assert_eq!(row.status, Failed, "{body}\n{history}");
    assert!(row.last_error.is_some(), "it says why\n{history}");
    let mut rows = history.rows(NODE);
    let waits = rows.find(|(_, row)| row.provision_stage == "waiting_active");
    let (waits_at, _) = waits.context("it waited")?;
    let waited = Duration::from_micros(u64::try_from(failed_at - waits_at)?);
    let waited = topology.rate().platform(waited);
    assert!(
        seconds(299.0) <= waited && waited <= seconds(330.0),
        "it waited {waited}\n{history}"
    );
    // Nobody removes it: platform-api knows of it no more than what its row says.
    assert_eq!(topology.droplets().await?.len(), 1, "\n{history}");
    operator.end()?;
    judged(&topology).await?;
    Ok(())
}

#[tokio::test]
async fn a_droplet_without_a_public_address_fails_its_node_and_is_left() -> Result<()> {
    let topology = with_rack(1).await?;
    let operator = topology.operate_cloud(Conduct::default()).await?;
    topology
        .cloud_answers(Answer::NoPublicAddress.to(Calls::new("POST", "/v2/droplets")))
        .await?;

    let watch = topology.watch(&NODE.parse()?).await?;
    provision(&topology).await?;
    let history = watch.history().await?;
    let (_, row) = history.rows(NODE).last().context("a row")?;
    assert_eq!(row.status, Failed, "\n{history}");
    assert!(row.last_error.is_some(), "it says why\n{history}");
    assert_eq!(topology.droplets().await?.len(), 1, "\n{history}");
    operator.end()?;
    judged(&topology).await?;
    Ok(())
}

#[tokio::test]
async fn a_step_that_fails_registers_a_node_that_serves_nothing_and_the_watchdog_finds_it() -> Result<()> {
    let topology = with_rack(1).await?;
    let operator = topology.operate_cloud(Conduct::default().fails("docker")).await?;
    let node: NodeId = NODE.parse()?;
    let mut watch = topology.watch(&node).await?;

    provision(&topology).await?;
    watch.until(status(Active)).within(minutes(10)).await?;
    watch.until(all_down()).within(polls(2)).await?;
    watch.until(status(Degraded)).within(polls(2)).await?;
    drop(operator);
    judged(&topology).await?;
    Ok(())
}

#[rstest]
#[case::deleted(false)]
#[case::behind_its_back(true)]
#[tokio::test]
async fn a_node_that_goes_leaves_nothing_of_its_machine(#[case] behind_its_back: bool) -> Result<()> {
    let topology = with_rack(1).await?;
    let operator = topology.operate_cloud(Conduct::default()).await?;
    let node: NodeId = NODE.parse()?;
    let mut watch = topology.watch(&node).await?;
    provision(&topology).await?;
    watch.until(all_ok()).within(minutes(10)).await?;

    let droplet = the_droplet(&topology).await?;
    if behind_its_back {
        topology.lose_droplet(droplet.id).await?;
        watch.until(status(Degraded)).within(polls(4)).await?;
    }
    let path = format!("/{NODE}");
    let (code, body) = admin(&topology, Method::DELETE, &path, Value::Null).await?;
    assert_eq!(code, StatusCode::OK, "{body}");
    let (code, _) = admin(&topology, Method::GET, &path, Value::Null).await?;
    assert_eq!(code, StatusCode::NOT_FOUND);
    let gone = async {
        while !(topology.droplets().await?.is_empty() && machines_left(&topology).await?.is_empty()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(Duration::from_secs(15), gone).await??;
    operator.end()?;
    judged(&topology).await?;
    Ok(())
}

#[tokio::test]
async fn a_node_that_is_being_made_is_not_deleted() -> Result<()> {
    let topology = with_rack(1).await?;
    let conduct = Conduct::default()
        .first_boot_begins_after(topology.rate().real(polls(1)))
        .first_boot_dies_after("installing_drivers");
    let operator = topology.operate_cloud(conduct).await?;
    let mut watch = topology.watch(&NODE.parse()?).await?;
    provision(&topology).await?;
    watch
        .until(stage("installing_drivers"))
        .within(minutes(10))
        .await?;

    let (code, body) = admin(&topology, Method::DELETE, &format!("/{NODE}"), Value::Null).await?;
    assert_eq!(code, StatusCode::CONFLICT, "{body}");
    assert_eq!(topology.droplets().await?.len(), 1);
    operator.end()?;
    judged(&topology).await?;
    Ok(())
}

#[tokio::test]
async fn a_registration_that_is_lost_on_the_wire_is_sent_again() -> Result<()> {
    let topology = with_rack(1).await?;
    let conduct = Conduct::default()
        .first_boot_begins_after(topology.rate().real(polls(1)))
        .each_download_takes(Duration::from_millis(700));
    let operator = topology.operate_cloud(conduct).await?;
    let mut watch = topology.watch(&NODE.parse()?).await?;
    provision(&topology).await?;
    let droplet = the_droplet(&topology).await?;
    let machine = operator.machine_of(droplet.id)?;

    watch
        .until(stage("installing_drivers"))
        .within(minutes(10))
        .await?;
    let cut = topology.link(machine, wopr_harness::VPS).reset().await?;
    // The next stage is tried in vain, and after five seconds once more.
    tokio::time::sleep(Duration::from_secs(2)).await;
    cut.heal().await?;
    watch.until(status(Active)).within(minutes(10)).await?;
    let history = watch.history().await?;
    assert_eq!(stages(&history), STAGES, "\n{history}");
    operator.end()?;
    judged(&topology).await?;
    Ok(())
}

#[rstest]
#[case::power_cycle(Reboots::PowerCycle)]
#[case::clean(Reboots::Clean)]
#[case::late(Reboots::After(Duration::from_secs(3)))]
#[tokio::test]
async fn a_reboot_brings_the_services_back_and_nobody_helps(#[case] reboots: Reboots) -> Result<()> {
    let topology = topology().await;
    let conduct = Conduct::default().machine(DROPLET, &GPU).reboots(reboots);
    let operator = topology.operate_cloud(conduct).await?;
    let node = topology.seed_gpu_node_with_droplet(&DROPLET.to_string()).await?;
    let mut watch = topology.watch(&node).await?;
    watch.until(all_ok()).within(polls(2)).await?;

    topology.end_services(&GPU).await?;
    watch.until(status(Degraded)).within(polls(4)).await?;
    watch.until(status(Active)).within(minutes(9)).await?;
    let history = watch.conclude().await?;
    assert_eq!(
        history.statuses(node.as_str()),
        [Active, Degraded, Active],
        "\n{history}"
    );
    assert_eq!(history.reboots(&DROPLET.to_string()), 1, "\n{history}");
    operator.end()?;
    judged(&topology).await?;
    Ok(())
}

#[rstest]
#[case::that_never_happens(Reboots::Never)]
#[case::to_another_address(Reboots::Moved)]
#[tokio::test]
async fn a_reboot_that_does_not_help_fails_the_node_after_ten_minutes(
    #[case] reboots: Reboots,
) -> Result<()> {
    let topology = topology().await;
    let conduct = Conduct::default().machine(DROPLET, &GPU).reboots(reboots);
    let operator = topology.operate_cloud(conduct).await?;
    let node = topology.seed_gpu_node_with_droplet(&DROPLET.to_string()).await?;
    let mut watch = topology.watch(&node).await?;

    topology.end_services(&GPU).await?;
    watch.until(status(Degraded)).within(polls(4)).await?;
    watch.until(status(Failed)).within(minutes(12)).await?;
    // The row says so before it is told.
    watch.until_notified("gpu_node_failed").await?;
    let history = watch.history().await?;
    assert_eq!(
        history.notifications(node.as_str()),
        ["gpu_node_degraded", "gpu_node_failed"],
        "\n{history}"
    );
    assert_eq!(history.reboots(&DROPLET.to_string()), 1, "\n{history}");
    operator.end()?;
    judged(&topology).await?;
    Ok(())
}

#[tokio::test]
async fn a_restart_of_platform_api_while_the_machine_reboots_loses_no_node() -> Result<()> {
    let topology = topology().await;
    let conduct = Conduct::default().machine(DROPLET, &GPU);
    let operator = topology.operate_cloud(conduct).await?;
    let node = topology.seed_gpu_node_with_droplet(&DROPLET.to_string()).await?;
    let mut watch = topology.watch(&node).await?;

    topology.end_services(&GPU).await?;
    watch.until(status(Degraded)).within(polls(4)).await?;
    topology.restart(Service::PlatformApi).await?;
    watch.until(all_ok()).within(minutes(9)).await?;
    watch.conclude().await?;
    drop(operator);
    Ok(())
}

#[tokio::test]
async fn nodes_that_are_made_at_once_are_machines_of_their_own() -> Result<()> {
    let topology = with_rack(3).await?;
    let operator = topology.operate_cloud(Conduct::default()).await?;
    let names = ["made-001", "made-002", "made-003"];
    let mut watches = Vec::new();
    for name in names {
        watches.push(topology.watch(&name.parse()?).await?);
    }
    let made = names.map(|name| admin(&topology, Method::POST, "", json!({ "name": name })));
    for (code, body) in try_join_all(made).await? {
        assert_eq!(code, StatusCode::CREATED, "{body}");
    }
    for watch in &mut watches {
        watch.until(all_ok()).within(minutes(20)).await?;
    }
    let history = topology.history().await?;
    let hosts: BTreeSet<_> = names
        .iter()
        .filter_map(|name| history.rows(name).last()?.1.host.clone())
        .collect();
    assert_eq!(hosts.len(), 3, "\n{history}");
    operator.end()?;
    judged(&topology).await?;
    Ok(())
}

#[tokio::test]
async fn a_droplet_that_finds_no_room_is_told_of_and_stays_new() -> Result<()> {
    let topology = with_rack(1).await?;
    let operator = topology.operate_cloud(Conduct::default()).await?;
    let mut first = topology.watch(&NODE.parse()?).await?;
    provision(&topology).await?;
    first.until(all_ok()).within(minutes(10)).await?;

    let mut second = topology.watch(&"made-002".parse()?).await?;
    let (_, body) = admin(&topology, Method::POST, "", json!({ "name": "made-002" })).await?;
    second.until(status(Failed)).within(minutes(6)).await?;
    let error = operator.end().unwrap_err().to_string();
    assert!(error.contains("no machine is free for droplet"), "{error} {body}");
    judged(&topology).await?;
    Ok(())
}

#[tokio::test]
async fn a_made_node_whose_services_end_is_rebooted_and_serves_again() -> Result<()> {
    let topology = with_rack(1).await?;
    let operator = topology.operate_cloud(Conduct::default()).await?;
    let node: NodeId = NODE.parse()?;
    let mut watch = topology.watch(&node).await?;
    provision(&topology).await?;
    watch.until(all_ok()).within(minutes(10)).await?;

    let droplet = the_droplet(&topology).await?;
    let machine = operator.machine_of(droplet.id)?;
    topology.end_services(&machine).await?;
    watch.until(status(Degraded)).within(polls(4)).await?;
    watch.until(status(Active)).within(minutes(9)).await?;
    let history = watch.history().await?;
    assert_eq!(history.reboots(&droplet.id.to_string()), 1, "\n{history}");
    operator.end()?;
    judged(&topology).await?;
    Ok(())
}
