//! The known defects of production: each test shows one on the behaviour that the contract describes, and
//! shows it gone on the reference platform-api with the mended behaviour. A platform-api image that was
//! chosen is taken as it is: only the first of the two is run on it.

#[path = "common/rounds.rs"]
mod rounds;

use anyhow::Result;
use pretty_assertions::assert_eq;
use rounds::{seed_while_stopped, start};
use rstest::rstest;
use wopr_harness::clock::{Rate, polls};
use wopr_harness::history::Status::{Active, Degraded, Failed};
use wopr_harness::machine::Role;
use wopr_harness::profile::Profile;
use wopr_harness::seed::{self, NodeSpec};
use wopr_harness::topology::{Builder, TopologyError};
use wopr_harness::watch::{all_down, all_ok, status};
use wopr_harness::{GPU, Service, Topology, VPS};

const DROPLET: &str = "412345678";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Production,
    Mended,
}

impl Behaviour {
    /// What boots a platform-api that behaves so; none where that is a chosen image, which is as it is.
    fn of(self, builder: Builder) -> Option<Builder> {
        let chosen = Profile::from_environment().chosen(Service::PlatformApi).is_some();
        match self {
            Behaviour::Production => Some(builder),
            Behaviour::Mended if chosen => None,
            Behaviour::Mended => Some(builder.with(Role::Vps, "WOPR_MENDED", "true")),
        }
    }
}

/// A topology whose platform-api behaves so, where it can.
async fn topology(behaviour: Behaviour) -> Result<Option<Topology>> {
    let builder = Topology::builder().rate(Rate::from_environment()?);
    match behaviour.of(builder) {
        Some(builder) => Ok(Some(builder.boot().await?)),
        None => Ok(None),
    }
}

/// Ends a scenario: the contract allows what production does.
async fn allowed(behaviour: Behaviour, topology: &Topology) -> Result<()> {
    if behaviour == Behaviour::Production {
        topology.conclude().await?;
    }
    Ok(())
}

#[rstest]
#[tokio::test]
async fn finding_1_a_node_that_recovers_across_a_restart_stays_degraded(
    #[values(Behaviour::Production, Behaviour::Mended)] behaviour: Behaviour,
) -> Result<()> {
    let Some(topology) = topology(behaviour).await? else {
        return Ok(());
    };
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let cut = topology.link(VPS, GPU).reset().await?;
    watch.until(status(Degraded)).within(polls(3)).await?;
    let stopped = topology.stop_service(Service::PlatformApi).await?;
    cut.heal().await?;
    stopped.heal().await?;
    topology.until_healthy(&[Service::PlatformApi]).await?;
    watch.until(all_ok()).within(polls(3)).await?;
    let row = watch.polls(2).await?.remove(1);

    let expected = if behaviour == Behaviour::Production {
        Degraded
    } else {
        Active
    };
    assert_eq!(row.status, expected, "\n{}", watch.history().await?);
    allowed(behaviour, &topology).await
}

#[rstest]
#[tokio::test]
async fn finding_1_shows_after_a_power_cut_of_the_vps_machine_as_well(
    #[values(Behaviour::Production, Behaviour::Mended)] behaviour: Behaviour,
) -> Result<()> {
    let Some(topology) = topology(behaviour).await? else {
        return Ok(());
    };
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let cut = topology.link(VPS, GPU).reset().await?;
    watch.until(status(Degraded)).within(polls(3)).await?;
    // Told of, too: that comes after the row.
    watch.until_notified("gpu_node_degraded").await?;
    // The packet rules were in the machine's memory, and are gone with it.
    topology.power_cut(&VPS).await?;
    cut.heal().await?;
    watch.until(all_ok()).within(polls(3)).await?;
    let row = watch.polls(2).await?.remove(1);

    let (expected, history) = match behaviour {
        // The contract allows it, and knows what was told before the power cut.
        Behaviour::Production => (Degraded, watch.conclude().await?),
        Behaviour::Mended => (Active, watch.history().await?),
    };
    assert_eq!(row.status, expected, "\n{history}");
    assert_eq!(
        history.notifications(node.as_str()),
        ["gpu_node_degraded"],
        "\n{history}"
    );
    Ok(())
}

#[rstest]
#[tokio::test]
async fn finding_2_a_restart_in_the_reboot_window_leads_to_a_second_reboot(
    #[values(Behaviour::Production, Behaviour::Mended)] behaviour: Behaviour,
) -> Result<()> {
    let Some(topology) = topology(behaviour).await? else {
        return Ok(());
    };
    let node = topology.seed_gpu_node_with_droplet(DROPLET).await?;
    let mut watch = topology.watch(&node).await?;

    let _cut = topology.link(VPS, GPU).reset().await?;
    watch.until(status(Degraded)).within(polls(3)).await?;
    watch.next_poll().await?;
    topology.restart(Service::PlatformApi).await?;
    watch.polls(4).await?;

    let history = watch.history().await?;
    let expected = if behaviour == Behaviour::Production { 2 } else { 1 };
    assert_eq!(history.reboots(DROPLET), expected, "\n{history}");
    allowed(behaviour, &topology).await
}

#[rstest]
#[tokio::test]
async fn finding_4_last_health_at_moves_on_failed_polls(
    #[values(Behaviour::Production, Behaviour::Mended)] behaviour: Behaviour,
) -> Result<()> {
    let Some(topology) = topology(behaviour).await? else {
        return Ok(());
    };
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let good = watch.until(all_ok()).within(polls(2)).await?;
    let _cut = topology.link(VPS, GPU).reset().await?;
    watch.until(all_down()).within(polls(2)).await?;
    let bad = watch.until(status(Degraded)).within(polls(2)).await?;
    assert_eq!(
        bad.last_health_at > good.last_health_at,
        behaviour == Behaviour::Production,
        "{good:?} {bad:?}"
    );
    allowed(behaviour, &topology).await
}

#[rstest]
#[tokio::test]
async fn finding_5_seeded_booleans_stay_until_the_first_poll(
    #[values(Behaviour::Production, Behaviour::Mended)] behaviour: Behaviour,
) -> Result<()> {
    let Some(topology) = topology(behaviour).await? else {
        return Ok(());
    };
    let node = topology.seed_gpu_node().await?;
    // As production's own seeder writes it.
    let health = Some(r#"{"llama":true,"chatterbox":true,"whisper":true,"qwen":true}"#);
    let spec = NodeSpec {
        service_health: health,
        ..NodeSpec::at(node.clone(), topology.address(&GPU))
    };
    seed::write(&topology, &spec.status("failed")).await?;
    topology.restart(Service::PlatformApi).await?;

    let mut database = topology.database().await?;
    let (text,): (String,) = sqlx::query_as("SELECT service_health FROM gpu_nodes")
        .fetch_one(&mut database)
        .await?;
    assert_eq!(
        text.contains("true"),
        behaviour == Behaviour::Production,
        "{text}"
    );
    allowed(behaviour, &topology).await
}

#[rstest]
#[tokio::test]
async fn finding_6_done_activates_a_node_that_has_no_host(
    #[values(Behaviour::Production, Behaviour::Mended)] behaviour: Behaviour,
) -> Result<()> {
    let Some(topology) = topology(behaviour).await? else {
        return Ok(());
    };
    let spec = NodeSpec::at("hostless".parse()?, "").status("provisioning");
    seed::write(&topology, &NodeSpec { host: None, ..spec }).await?;

    let secret = topology.settings().value(Role::Vps, "GPU_NODE_SECRET")?;
    let asked = reqwest::Client::new()
        .post(topology.url(3100, "/internal/gpu/register?stage=done"))
        .bearer_auth(secret)
        .body(r#"{"nodeId":"hostless"}"#)
        .send()
        .await?;
    let mut database = topology.database().await?;
    let (status,): (String,) = sqlx::query_as("SELECT status FROM gpu_nodes")
        .fetch_one(&mut database)
        .await?;
    let (code, expected) = if behaviour == Behaviour::Production {
        (200, "active")
    } else {
        (409, "provisioning")
    };
    assert_eq!((asked.status().as_u16(), status.as_str()), (code, expected));
    allowed(behaviour, &topology).await
}

#[rstest]
#[tokio::test]
async fn finding_7_a_node_that_failed_stays_failed_when_its_services_return(
    #[values(Behaviour::Production, Behaviour::Mended)] behaviour: Behaviour,
) -> Result<()> {
    let Some(topology) = topology(behaviour).await? else {
        return Ok(());
    };
    let node = topology.seed_gpu_node().await?;
    let other = NodeSpec::at("failed".parse()?, topology.address(&GPU)).status("failed");
    seed::write(&topology, &other).await?;
    let mut watch = topology.watch(&node).await?;
    watch.polls(3).await?;

    let mut database = topology.database().await?;
    let query = "SELECT status FROM gpu_nodes WHERE id = 'failed'";
    let (status,): (String,) = sqlx::query_as(query).fetch_one(&mut database).await?;
    let expected = if behaviour == Behaviour::Production {
        Failed
    } else {
        Active
    };
    assert_eq!(status, format!("{expected:?}").to_lowercase());
    allowed(behaviour, &topology).await
}

#[rstest]
#[tokio::test]
async fn finding_3_polls_of_eight_black_holed_nodes_overlap(
    #[values(Behaviour::Production, Behaviour::Mended)] behaviour: Behaviour,
) -> Result<()> {
    let Some(topology) = topology(behaviour).await? else {
        return Ok(());
    };
    // The first poll begins with all eight; eight times five seconds are more than thirty.
    let (nodes, stopped) = seed_while_stopped(&topology, 8).await?;
    let _hole = topology.link(VPS, GPU).drop_packets().await?;
    start(&topology, stopped).await?;
    topology.watch_nodes(nodes.clone()).await?.polls(2).await?;

    let history = topology.history().await?;
    let nth = |place: usize| {
        let polls = nodes.iter().map(|node| history.polls(node.as_str()));
        let times = polls.filter_map(|polls| Some(polls.get(place)?.0));
        times.collect::<Vec<_>>()
    };
    let (firsts, seconds) = (nth(0), nth(1));
    assert_eq!((firsts.len(), seconds.len()), (8, 8), "\n{history}");
    let overlap = seconds.iter().min() < firsts.iter().max();
    assert_eq!(
        overlap,
        behaviour == Behaviour::Production,
        "whether a node was polled again before each was polled once\n{history}"
    );
    allowed(behaviour, &topology).await
}

#[tokio::test]
async fn finding_8_host_gateway_names_the_wrong_machine_and_ours_names_the_right_one() -> Result<()> {
    let topology = Topology::builder().rate(Rate::from_environment()?).boot().await?;
    let node = topology.seed_gpu_node().await?;
    // The VPS machine has nothing at the services' ports.
    seed::write(&topology, &NodeSpec::at(node.clone(), "wopr-gpu")).await?;
    let mut watch = topology.watch(&node).await?;
    let row = watch.found(all_ok()).await?;
    assert_eq!(row.host.as_deref(), Some("wopr-gpu"));
    watch.conclude().await?;
    Ok(())
}

#[rstest]
#[tokio::test]
async fn finding_9_without_a_cloud_token_production_does_not_start(
    #[values(Behaviour::Production, Behaviour::Mended)] behaviour: Behaviour,
) -> Result<()> {
    let builder = Topology::builder().with(Role::Vps, "DO_API_TOKEN", "");
    let Some(builder) = behaviour.of(builder) else {
        return Ok(());
    };
    let booted = builder.boot().await;
    match behaviour {
        Behaviour::Mended => assert!(booted.is_ok(), "{booted:?}"),
        // What it says before it dies is its own affair.
        Behaviour::Production => assert!(
            matches!(
                booted,
                Err(TopologyError::Unhealthy {
                    service: Service::PlatformApi,
                    ..
                })
            ),
            "{booted:?}"
        ),
    }
    Ok(())
}
