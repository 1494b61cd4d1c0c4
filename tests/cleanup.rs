//! Nothing is left, however a test ends.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use pretty_assertions::assert_eq;
use rstest::rstest;
use wopr_harness::dirs::Dirs;
use wopr_harness::engine::{Engine, LABEL_OWNER, LABEL_TOPOLOGY};
use wopr_harness::image::{self, ImageSet};
use wopr_harness::profile::Profile;
use wopr_harness::progress::Progress;
use wopr_harness::settings::StackSettings;
use wopr_harness::topology::{Owner, Sweep, list, sweep};
use wopr_harness::{GPU, Service, Topology};

/// A removal takes two seconds; this is for a busy host.
const PATIENCE: Duration = Duration::from_secs(60);
/// Says to the victim that it is meant.
const VICTIM: &str = "WOPR_TEST_VICTIM";

/// Not a test: what the tests below kill. It boots a topology, says its id, and waits for its end.
#[tokio::test]
async fn victim() -> Result<()> {
    let Ok(how) = std::env::var(VICTIM) else {
        return Ok(());
    };
    let topology = Topology::builder().boot().await?;
    let mut frozen = Vec::new();
    if how == "freeze" {
        frozen.push(topology.pause_service(Service::Whisper).await?);
        frozen.push(topology.pause_machine(&GPU).await?);
    }
    println!("victim {}", topology.id());
    match how.as_str() {
        "panic" => panic!("on purpose"),
        _ => std::future::pending().await,
    }
}

fn start_victim(how: &str) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--exact", "victim", "--nocapture"])
        .env(VICTIM, how);
    Ok(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?)
}

fn booted_id(child: &mut Child) -> Result<String> {
    let out = BufReader::new(child.stdout.take().context("no output")?);
    for line in out.lines() {
        // The test runner writes its own words on the same line.
        if let Some((_, id)) = line?.split_once("victim ")
            && id.len() == 6
        {
            return Ok(id.to_owned());
        }
    }
    bail!("the victim ended before it booted")
}

/// Waits until nothing of a topology is there.
async fn until_gone(id: &str) -> Result<()> {
    let (engine, dirs) = (Engine::connect().await?, Dirs::find()?);
    let label = format!("{LABEL_TOPOLOGY}={id}");
    let began = Instant::now();
    loop {
        let there = engine.topologies_with_label(&label).await?;
        if there.is_empty() && !dirs.run.join(id).exists() {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            bail!(
                "topology {id} is still there {} s after its owner ended",
                PATIENCE.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[rstest]
#[case::killed("SIGKILL")]
#[case::terminated("SIGTERM")]
#[case::interrupted("SIGINT")]
#[tokio::test]
async fn a_test_that_is_ended_by_a_signal_leaves_nothing(#[case] signal: &str) -> Result<()> {
    let mut victim = start_victim("wait")?;
    let id = booted_id(&mut victim)?;
    let pid = victim.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-s", signal.trim_start_matches("SIG"), &pid])
            .status()?
            .success()
    );
    victim.wait()?;
    until_gone(&id).await
}

#[tokio::test]
async fn a_test_that_is_killed_with_a_frozen_machine_leaves_nothing() -> Result<()> {
    let mut victim = start_victim("freeze")?;
    let id = booted_id(&mut victim)?;
    victim.kill()?;
    victim.wait()?;
    until_gone(&id).await
}

#[tokio::test]
async fn a_topology_goes_with_its_handle_though_a_machine_is_frozen() -> Result<()> {
    let topology = Topology::builder().boot().await?;
    let id = topology.id().to_owned();
    let service = topology.pause_service(Service::Whisper).await?;
    let machine = topology.pause_machine(&GPU).await?;
    drop(topology);
    until_gone(&id).await?;
    drop((service, machine));
    Ok(())
}

#[tokio::test]
async fn a_test_that_panics_leaves_nothing() -> Result<()> {
    let mut victim = start_victim("panic")?;
    let id = booted_id(&mut victim)?;
    assert!(!victim.wait()?.success());
    until_gone(&id).await
}

#[rstest]
#[tokio::test]
async fn a_test_that_is_killed_while_it_boots_leaves_nothing(
    #[values(150, 400, 700, 1000, 1400)] after_ms: u64,
) -> Result<()> {
    let mut victim = start_victim("wait")?;
    let pid = victim.id();
    // No event to wait for: the moment itself is what varies.
    tokio::time::sleep(Duration::from_millis(after_ms)).await;
    victim.kill()?;
    victim.wait()?;
    until_nothing_is_left_of(pid).await
}

/// Waits until nothing is there that a process made.
async fn until_nothing_is_left_of(pid: u32) -> Result<()> {
    let (engine, dirs) = (Engine::connect().await?, Dirs::find()?);
    let label = format!("wopr.pid={pid}");
    let began = Instant::now();
    loop {
        let there = engine.topologies_with_label(&label).await?;
        // The keeper signs for what it is about to remove.
        let being_removed = directories_held_by(&dirs.run, &format!("(process {pid})"))
            + directories_held_by(&dirs.run, "its keeper");
        if there.is_empty() && being_removed == 0 {
            return Ok(());
        }
        assert!(
            began.elapsed() < PATIENCE,
            "of process {pid} there is left: {there:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn directories_held_by(run: &Path, who: &str) -> usize {
    let entries = std::fs::read_dir(run).into_iter().flatten().flatten();
    let holders = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("holder")).ok());
    holders.filter(|holder| holder.contains(who)).count()
}

#[tokio::test]
async fn a_boot_that_is_dropped_half_way_leaves_nothing() -> Result<()> {
    for after in [50, 200, 500, 900] {
        let boot = Topology::builder().boot();
        let _ = tokio::time::timeout(Duration::from_millis(after), boot).await;
    }
    until_nothing_is_left_of(std::process::id()).await
}

#[tokio::test]
async fn a_topology_by_another_living_process_is_not_touched() -> Result<()> {
    let mut victim = start_victim("wait")?;
    let id = booted_id(&mut victim)?;
    let own = Topology::builder().boot().await?;
    own.down().await?;
    let (engine, dirs) = (Engine::connect().await?, Dirs::find()?);
    let listed = list(&engine, &dirs).await?;
    let owner = listed
        .iter()
        .find(|entry| entry.id == id)
        .map(|entry| &entry.owner);
    assert!(matches!(owner, Some(Owner::Alive(_))), "{owner:?}");
    victim.kill()?;
    victim.wait()?;
    until_gone(&id).await
}

/// Directories of a test's own, and an image to make containers of.
async fn alone(run: &Path) -> Result<(Engine, Dirs, ImageSet)> {
    let (engine, dirs) = (Engine::connect().await?, Dirs::find()?);
    let settings = StackSettings::for_tests(&dirs)?;
    let set = image::ensure(&engine, &dirs, &Profile::local(), &settings, &Progress::silent()).await?;
    let dirs = Dirs {
        run: run.to_owned(),
        ..dirs
    };
    Ok((engine, dirs, set))
}

/// Makes a container by hand that looks into an image, as by a process whose directory this is.
fn make_look(run: &Path, id: &str, image: &str) -> Result<()> {
    let made = Command::new("docker")
        .args(["create", "--name", &format!("wopr-{id}")])
        .args(["--label", &format!("{LABEL_TOPOLOGY}={id}")])
        .args(["--label", &format!("{LABEL_OWNER}={}", run.display())])
        .args([image, "true"])
        .output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::create_dir(run.join(id))?;
    std::fs::write(run.join(id).join("lease"), "")?;
    Ok(())
}

#[tokio::test]
async fn what_looks_into_an_image_goes_when_its_owner_is_dead_and_not_before() -> Result<()> {
    let run = tempfile::tempdir()?;
    let (engine, dirs, set) = alone(run.path()).await?;
    let [dead, alive] = ["dead", "alive"].map(|name| format!("look-{name}-{}", std::process::id()));
    for id in [&dead, &alive] {
        make_look(run.path(), id, &set.machine)?;
    }
    // The kernel lets go of what a dead owner held.
    let held = std::fs::File::open(run.path().join(&alive).join("lease"))?;
    held.lock()?;
    let owned = format!("{LABEL_OWNER}={}", run.path().display());

    let swept = sweep(&engine, &dirs, Sweep::Expired(Duration::from_secs(60))).await?;
    assert_eq!(swept.gone, [dead]);
    let left = engine.containers_with_label(&owned).await?;
    assert_eq!(left, [format!("wopr-{alive}")]);

    drop(held);
    let swept = sweep(&engine, &dirs, Sweep::Free).await?;
    assert_eq!(swept.gone, [alive]);
    assert!(engine.containers_with_label(&owned).await?.is_empty());
    assert_eq!(std::fs::read_dir(run.path())?.count(), 0);
    Ok(())
}

#[tokio::test]
async fn a_look_into_an_image_that_is_broken_off_goes_by_itself() -> Result<()> {
    let run = tempfile::tempdir()?;
    let (engine, dirs, set) = alone(run.path()).await?;
    let profile = Profile::local().with_image(Service::PlatformApi, &set.services[&Service::PlatformApi]);
    let owned = format!("{LABEL_OWNER}={}", run.path().display());
    image::check_clock(&engine, &dirs, &profile, &Progress::silent()).await?;
    let left = engine.containers_with_label(&owned).await?;
    assert_eq!(left, Vec::<String>::new(), "one that ends leaves nothing");

    // A look takes a moment: which one breaks it off has to be tried.
    for moment in (10..200).step_by(10) {
        let progress = Progress::silent();
        let look = image::check_clock(&engine, &dirs, &profile, &progress);
        let _ = tokio::time::timeout(Duration::from_millis(moment), look).await;
        // The engine makes what it was asked for, though nobody waits for it.
        let (began, mut was_made) = (Instant::now(), false);
        loop {
            let made = engine.containers_with_label(&owned).await?;
            was_made |= !made.is_empty();
            if made.is_empty() && std::fs::read_dir(run.path())?.count() == 0 {
                break;
            }
            ensure!(
                began.elapsed() < Duration::from_secs(60),
                "{made:?} is still there"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if was_made {
            return Ok(());
        }
    }
    bail!("no look was broken off in time")
}
