//! Light machines: what breaks on a full machine breaks on them alike, and what needs an engine is refused.

use anyhow::Result;
use pretty_assertions::assert_eq;
use rstest::rstest;
use wopr_harness::clock::polls;
use wopr_harness::fault::{Fault, FaultError, Manner, Outcome};
use wopr_harness::history::Health::Down;
use wopr_harness::history::Status::{Active, Degraded};
use wopr_harness::machine::MachineName;
use wopr_harness::testing::light_fleet;
use wopr_harness::watch::{all_down, all_ok, health, status};
use wopr_harness::{GPU, Service, Topology, VPS};

fn second() -> MachineName {
    MachineName::gpu(2)
}

#[tokio::test]
async fn light_machines_are_found_well_without_an_engine() -> Result<()> {
    let topology = light_fleet(2).await;
    let nodes = topology.seed_fleet().await?;
    let mut watch = topology.watch_fleet(&nodes).await?;
    watch.until_each(all_ok()).within(polls(3)).await?;
    for machine in [GPU, second()] {
        let machine = topology.machine(&machine);
        assert!(machine.is_light());
        let engines = [
            "sh",
            "-c",
            "ls /proc/*/exe -l | grep -c -E 'dockerd|containerd'; true",
        ];
        let limit = std::time::Duration::from_secs(5);
        let found = machine.control().await?.run(&engines, limit).await?;
        assert_eq!(found.trim(), "0");
    }
    watch.conclude().await?;
    Ok(())
}

#[derive(Debug, Clone, Copy)]
enum Harm {
    Answers503,
    Hangs,
    Stops,
    Freezes,
}

async fn harm(topology: &Topology, harm: Harm) -> Result<Fault, FaultError> {
    let whisper = Service::Whisper.on(&second());
    let unavailable = Manner::Status {
        code: 503,
        after_ms: 0,
    };
    match harm {
        Harm::Answers503 => topology.impersonate(whisper, unavailable).await,
        Harm::Hangs => topology.impersonate(whisper, Manner::Silent).await,
        Harm::Stops => topology.stop_service(whisper).await,
        Harm::Freezes => topology.pause_service(whisper).await,
    }
}

#[rstest]
#[case::that_answers_503(Harm::Answers503, Outcome::OtherStatus)]
#[case::that_hangs(Harm::Hangs, Outcome::NoAnswer)]
#[case::that_refuses(Harm::Stops, Outcome::Refused)]
#[case::that_is_frozen(Harm::Freezes, Outcome::NoAnswer)]
#[tokio::test]
async fn a_service_of_one_light_machine_is_down_there_alone(
    #[case] harmed: Harm,
    #[case] seen: Outcome,
) -> Result<()> {
    let topology = light_fleet(2).await;
    let nodes = topology.seed_fleet().await?;
    let mut watch = topology.watch_fleet(&nodes).await?;
    let second = [nodes[1].id.clone()];

    let fault = harm(&topology, harmed).await?;
    assert_eq!(fault.receipt().probes[0].outcome, seen, "{}", fault.receipt());
    watch
        .until_these(&second, health("whisper", Down))
        .within(polls(4))
        .await?;
    let others = Service::of(GPU.role()).filter(|service| *service != Service::Whisper);
    for service in others {
        let machine = topology.machine(&second_of(&nodes));
        assert!(topology.health_on(machine, service).await.is_ok(), "{service}");
    }
    fault.heal().await?;

    let history = watch.conclude().await?;
    for node in &nodes {
        assert_eq!(history.statuses(node.id.as_str()), [Active], "\n{history}");
    }
    Ok(())
}

fn second_of(nodes: &[wopr_harness::seed::FleetNode]) -> MachineName {
    nodes[1].machine.clone()
}

#[derive(Debug, Clone, Copy)]
enum Loss {
    Frozen,
    PowerCut,
    Shutdown,
    OffTheNetwork,
    CutOff,
}

async fn lose(topology: &Topology, machine: &MachineName, loss: Loss) -> Result<Fault, FaultError> {
    match loss {
        Loss::Frozen => topology.pause_machine(machine).await,
        Loss::PowerCut => topology.kill_machine(machine).await,
        Loss::Shutdown => topology.stop_machine(machine).await,
        Loss::OffTheNetwork => topology.disconnect_machine(machine).await,
        Loss::CutOff => topology.link(VPS, machine.clone()).partition().await,
    }
}

#[rstest]
#[case::frozen(Loss::Frozen)]
#[case::without_power(Loss::PowerCut)]
#[case::shut_down(Loss::Shutdown)]
#[case::off_the_network(Loss::OffTheNetwork)]
#[case::cut_off(Loss::CutOff)]
#[tokio::test]
async fn a_light_machine_that_is_lost_degrades_its_node_until_it_is_back(#[case] loss: Loss) -> Result<()> {
    let topology = light_fleet(2).await;
    let nodes = topology.seed_fleet().await?;
    let mut watch = topology.watch_fleet(&nodes).await?;
    let lost_node = [nodes[1].id.clone()];

    let lost = lose(&topology, &nodes[1].machine, loss).await?;
    assert!(!lost.receipt().probes.is_empty(), "{}", lost.receipt());
    watch
        .until_these(&lost_node, status(Degraded))
        .within(polls(5))
        .await?;
    lost.heal().await?;

    let history = watch.conclude().await?;
    let expected = [Active, Degraded, Active];
    assert_eq!(history.statuses(lost_node[0].as_str()), expected, "\n{history}");
    assert_eq!(history.statuses(nodes[0].id.as_str()), [Active], "\n{history}");
    Ok(())
}

#[tokio::test]
async fn a_light_machine_reboots_and_moves() -> Result<()> {
    let topology = light_fleet(1).await;
    let nodes = topology.seed_fleet().await?;
    let mut watch = topology.watch_fleet(&nodes).await?;
    topology.reboot(&GPU).await?;
    watch.until_each(all_ok()).within(polls(4)).await?;

    let before = topology.address(&GPU);
    let after = topology
        .reboot_at_new_address(&GPU, wopr_harness::fault::Names::Follow)
        .await?;
    assert_ne!(after, before);
    watch.until_each(all_down()).within(polls(3)).await?;
    // The row names the old address: whoever knows the new one writes it.
    wopr_harness::seed::write(&topology, &nodes[0].spec(&topology)).await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_fault_that_needs_an_engine_is_refused_by_name() -> Result<()> {
    let topology = light_fleet(2).await;
    let whisper = || Service::Whisper.on(&second());
    let refusals = [
        (
            "kill of whisper on gpu-2",
            topology.kill_service(whisper()).await.map(drop),
        ),
        (
            "crash of whisper on gpu-2",
            topology.crash_service(whisper()).await,
        ),
        (
            "kill of the engine of gpu-2",
            topology.kill_engine(&second()).await,
        ),
    ];
    for (name, refused) in refusals {
        let Err(FaultError::Light { fault, machine }) = &refused else {
            panic!("{name} was not refused as it should be: {refused:?}");
        };
        assert_eq!((fault.as_str(), machine), (name, &second()));
        let words = refused.unwrap_err().to_string();
        assert!(
            words.starts_with("machine gpu-2 is light: it has no engine"),
            "{words}"
        );
    }
    assert_eq!(topology.faults().await?, []);
    Ok(())
}
