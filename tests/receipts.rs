//! What a fault's receipt shows, before the call that asked for the fault returns.

use std::time::Duration;

use anyhow::Result;
use pretty_assertions::assert_eq;
use rstest::rstest;
use wopr_harness::fault::Connection::{Flowing, New};
use wopr_harness::fault::Outcome::{Answered, Broken, NoAnswer, NoConnection, Refused};
use wopr_harness::fault::{Connection, Fault, FaultError, Link, Outcome, Receipt};
use wopr_harness::testing::topology;
use wopr_harness::{GPU, Service, VPS};

/// How what was asked for at an address ended, on this kind of connection.
fn outcome(receipt: &Receipt, from: &str, url: &str, connection: Connection) -> Option<Outcome> {
    let those = |probe: &&wopr_harness::fault::Probe| {
        probe.from == from && probe.url.contains(url) && probe.connection == connection
    };
    receipt.probes.iter().find(those).map(|probe| probe.outcome)
}

#[derive(Debug, Clone, Copy)]
enum Cut {
    Partition,
    Drop,
    Reset,
    NoRoute,
    NewRefused,
    NewDropped,
    Cable,
}

impl Cut {
    /// With what each does to new connections, and to those that flow.
    const ALL: [(Cut, Outcome, Outcome); 7] = [
        (Cut::Partition, NoConnection, NoAnswer),
        (Cut::Drop, NoConnection, NoAnswer),
        (Cut::Reset, Refused, Broken),
        (Cut::NoRoute, Refused, NoAnswer),
        (Cut::NewRefused, Refused, Answered),
        (Cut::NewDropped, NoConnection, Answered),
        (Cut::Cable, Answered, NoAnswer),
    ];

    async fn apply(self, link: &Link<'_>) -> Result<Fault, FaultError> {
        match self {
            Cut::Partition => link.partition().await,
            Cut::Drop => link.drop_packets().await,
            Cut::Reset => link.reset().await,
            Cut::NoRoute => link.unreachable().await,
            Cut::NewRefused => link.refuse_new().await,
            Cut::NewDropped => link.drop_new().await,
            Cut::Cable => link.cut_flowing().await,
        }
    }
}

#[tokio::test]
async fn each_cut_is_seen_on_new_and_on_flowing_connections_and_so_is_its_heal() -> Result<()> {
    let topology = topology().await;
    let links = [
        (topology.link(VPS, GPU), ":8080"),
        (topology.link(VPS, GPU).port(8082), ":8082"),
        (topology.link(Service::PlatformApi, GPU), ":8080"),
        (topology.link(Service::PlatformApi, Service::Postgres), ":5432"),
    ];
    for (link, url) in &links {
        for (cut, new, flowing) in Cut::ALL {
            let fault = cut.apply(link).await?;
            let seen = [New, Flowing].map(|on| outcome(fault.receipt(), "platform-api", url, on));
            assert_eq!(
                seen,
                [Some(new), Some(flowing)],
                "{}\n{}",
                fault.name(),
                fault.receipt()
            );
            fault.heal().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_beside_a_cut_is_seen_unharmed_on_both_kinds_of_connections() -> Result<()> {
    let topology = topology().await;
    let cut = topology.link(VPS, GPU).port(8080).reset().await?;
    for (from, url) in [("platform-api", ":8081"), ("gpu", ":3100")] {
        for on in [New, Flowing] {
            let seen = outcome(cut.receipt(), from, url, on);
            assert_eq!(seen, Some(Answered), "{from} {url} {on:?}\n{}", cut.receipt());
        }
    }
    cut.heal().await?;

    let cut = topology.link(Service::PlatformApi, GPU).drop_packets().await?;
    for on in [New, Flowing] {
        let seen = outcome(cut.receipt(), "vps", ":8080", on);
        assert_eq!(seen, Some(Answered), "the machine around it\n{}", cut.receipt());
    }
    cut.heal().await?;
    Ok(())
}

#[tokio::test]
async fn a_loss_is_in_effect_once_a_packet_was_lost() -> Result<()> {
    let topology = topology().await;
    for share in [0.01, 0.3] {
        let lossy = topology.link(VPS, GPU).lose(share).await?;
        let observed = lossy.receipt().observed.join("\n");
        assert!(observed.starts_with("packets lost until then: "), "{observed}");
        lossy.heal().await?;
    }
    let none = topology.link(VPS, GPU).lose(0.0).await;
    assert!(matches!(none, Err(FaultError::NothingLost { .. })), "{none:?}");
    assert_eq!(topology.faults().await?, [], "what was refused is undone");
    Ok(())
}

#[tokio::test]
async fn of_two_cuts_of_one_link_each_heals_by_itself() -> Result<()> {
    let topology = topology().await;
    let link = topology.link(VPS, GPU);
    let (first, second) = (link.drop_packets().await?, link.reset().await?);
    first.heal().await?;
    assert_eq!(topology.faults().await?.len(), 1);
    second.heal().await?;
    assert_eq!(topology.faults().await?, []);
    Ok(())
}

#[tokio::test]
async fn a_cut_of_one_service_that_its_restart_ended_does_not_pass_for_healed() -> Result<()> {
    let topology = topology().await;
    let cut = topology.link(Service::PlatformApi, GPU).drop_packets().await?;
    topology.restart(Service::PlatformApi).await?;
    let error = cut.heal().await.unwrap_err().to_string();
    assert!(error.contains("platform-api has ended since then"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_cut_between_machines_heals_where_the_service_that_it_was_seen_from_was_restarted() -> Result<()> {
    let topology = topology().await;
    for cut in [Cut::Partition, Cut::Cable] {
        let cut = cut.apply(&topology.link(VPS, GPU)).await?;
        topology.restart(Service::PlatformApi).await?;
        cut.heal().await?;
    }
    Ok(())
}

#[rstest]
#[case::without_power(true)]
#[case::frozen(false)]
#[tokio::test]
async fn a_cut_heals_though_nothing_answers_at_its_end(#[case] off: bool) -> Result<()> {
    let topology = topology().await;
    let cut = topology.link(VPS, GPU).drop_packets().await?;
    let other = match off {
        true => topology.kill_machine(&GPU).await?,
        false => topology.pause_machine(&GPU).await?,
    };
    // It ends, and does not wait for the machine.
    tokio::time::timeout(Duration::from_secs(20), cut.heal()).await??;
    other.heal().await?;
    topology.until_healthy(&topology.expected_services()).await?;
    Ok(())
}

#[tokio::test]
async fn a_link_that_leads_nowhere_is_refused() -> Result<()> {
    let topology = topology().await;
    let links = [
        topology.link(VPS, VPS),
        topology.link(VPS, Service::Postgres),
        topology.link(GPU, Service::Postgres),
        topology.link(Service::PlatformApi, Service::PlatformApi),
    ];
    for link in links {
        let refused = link.reset().await;
        assert!(
            matches!(refused, Err(FaultError::NoSuchLink { .. })),
            "{refused:?}"
        );
    }
    Ok(())
}
