//! The engine is restarted under a running test, and nothing is left of the test; its neighbours, and what a
//! person started by hand, are not touched.
//!
//! All of it happens on an engine of the test's own, by players in processes of their own.

#[path = "common/players.rs"]
mod players;
#[path = "common/second_engine.rs"]
mod second_engine;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use players::{Pool, id, until_leased};
use rstest::rstest;
use second_engine::{Belongings, End, SecondEngine};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;
use wopr_harness::engine::LABEL_OWNER;

/// What nobody holds is gone after this, and a few seconds for the removal.
const IDLE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(100);

/// Five minutes each, as root: `cargo nextest run --test engine --no-capture --run-ignored all engine_is`.
#[rstest]
#[case::stopped(End::Stopped)]
#[case::killed(End::Killed)]
#[tokio::test]
#[ignore = "starts a second engine and copies the images into it: takes minutes"]
async fn nothing_is_left_of_tests_whose_engine_is_restarted(#[case] how: End) -> Result<()> {
    let began = Instant::now();
    let step = |what: &str| println!("{:6.1} s  {what}", began.elapsed().as_secs_f64());
    let mut engine = SecondEngine::start().await?;
    engine.take_images().await?;
    step("a second engine runs, and topologies boot on it");
    let by_hand = ByHand::start(&engine).await?;
    let mut neighbour = Neighbour::start(&engine).await?;

    a_test_sees_its_engine_go(&mut engine, how).await?;
    step("a test saw its engine go, and failed: nothing is left");
    a_test_goes_on_after_the_restart(&mut engine, how).await?;
    step("a test went on after the restart, and failed: nothing is left");
    a_test_is_killed_after_the_restart(&mut engine, how).await?;
    step("a test was killed after the restart: nothing is left");
    a_test_is_killed_while_the_engine_is_away(&mut engine, how).await?;
    step("a test was killed while the engine was away: nothing is left");
    for moment in [Moment::Network, Moment::Container, Moment::Running] {
        a_topology_boots(&mut engine, how, moment).await?;
        step(&format!(
            "the engine went in a boot that had come to {moment:?}: nothing is left"
        ));
    }
    an_idle_topology_is_not_handed_on(&mut engine, how).await?;
    step("the engine was restarted under an idle topology: it was replaced, and nothing is left");
    the_next_start_clears_what_no_keeper_does(&mut engine, how).await?;
    step("a test and its keeper were killed: the next start cleared what they left");

    neighbour.ensure_untouched(&engine).await?;
    by_hand.ensure_untouched(&engine).await?;
    step("the neighbour's topology and all that was made by hand are still there");
    neighbour.end(&engine).await?;
    step("the neighbour was killed: nothing is left of it");
    Ok(())
}

async fn a_test_sees_its_engine_go(engine: &mut SecondEngine, how: End) -> Result<()> {
    let (before, pool) = (engine.belongings().await?, engine.pool(1, IDLE)?);
    let mut player = pool.start("lease use")?;
    until_leased(&mut player).await?;
    engine.end(how).await?;
    if let End::Killed = how {
        // Its machines run on until the engine comes back, which ends them.
        engine.start_again().await?;
    }
    let failed = until_failed(player).await?;
    if let End::Stopped = how {
        engine.start_again().await?;
    }
    until_nothing_is_left(engine, &pool, &before)
        .await
        .context(failed)
}

async fn a_test_goes_on_after_the_restart(engine: &mut SecondEngine, how: End) -> Result<()> {
    let (before, pool) = (engine.belongings().await?, engine.pool(1, IDLE)?);
    let mut player = pool.start("lease told rows")?;
    until_leased(&mut player).await?;
    engine.restart(how).await?;
    let mut line = player.stdin.take().context("the player cannot be told")?;
    line.write_all(b"go on\n").await?;
    let failed = until_failed(player).await?;
    until_nothing_is_left(engine, &pool, &before)
        .await
        .context(failed)
}

async fn a_test_is_killed_after_the_restart(engine: &mut SecondEngine, how: End) -> Result<()> {
    let (before, pool) = (engine.belongings().await?, engine.pool(1, IDLE)?);
    let mut player = pool.start("lease partition wait")?;
    until_leased(&mut player).await?;
    engine.restart(how).await?;
    player.kill().await?;
    until_nothing_is_left(engine, &pool, &before).await
}

async fn a_test_is_killed_while_the_engine_is_away(engine: &mut SecondEngine, how: End) -> Result<()> {
    let (before, pool) = (engine.belongings().await?, engine.pool(1, IDLE)?);
    let mut player = pool.start("lease frozen-machine wait")?;
    until_leased(&mut player).await?;
    engine.end(how).await?;
    player.kill().await?;
    engine.start_again().await?;
    until_nothing_is_left(engine, &pool, &before).await
}

/// How far a boot has come.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Network,
    Container,
    Running,
}

async fn a_topology_boots(engine: &mut SecondEngine, how: End, moment: Moment) -> Result<()> {
    let (before, pool) = (engine.belongings().await?, engine.pool(1, IDLE)?);
    let player = pool.start("lease wait")?;
    until_it_has_come(engine, &pool, moment).await?;
    engine.end(how).await?;
    let failed = match how {
        End::Stopped => {
            let failed = until_failed(player).await?;
            engine.start_again().await?;
            failed
        }
        // What waits for a machine would wait as long as that runs.
        End::Killed => {
            engine.start_again().await?;
            until_failed(player).await?
        }
    };
    until_nothing_is_left(engine, &pool, &before)
        .await
        .context(failed)
}

async fn until_it_has_come(engine: &SecondEngine, pool: &Pool, moment: Moment) -> Result<()> {
    let owner = format!("label={LABEL_OWNER}={}", pool.run.path().display());
    let list: &[&str] = match moment {
        Moment::Network => &["network", "ls", "--quiet", "--filter", &owner],
        Moment::Container => &["ps", "--all", "--quiet", "--filter", &owner],
        Moment::Running => &["ps", "--quiet", "--filter", &owner],
    };
    let began = Instant::now();
    while engine.docker(list).await?.is_empty() {
        ensure!(began.elapsed() < PATIENCE, "no boot has come to {moment:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn an_idle_topology_is_not_handed_on(engine: &mut SecondEngine, how: End) -> Result<()> {
    // Longer than the restart takes.
    let (before, pool) = (engine.belongings().await?, engine.pool(1, 60 * IDLE)?);
    let first = pool.play("lease give").await?;
    engine.restart(how).await?;
    let mut next = pool.start("lease wait")?;
    let leased = until_leased(&mut next).await?;
    next.start_kill()?;
    let told = next.wait_with_output().await?.stderr;
    let told = String::from_utf8_lossy(&told);
    println!("--- {}", told.trim());
    let idle = id(&first[0])?;
    ensure!(
        leased != idle,
        "a topology whose machines had ended was handed on"
    );
    ensure!(
        told.contains(&format!("topology {idle} of the pool is removed"))
            && told.contains("does not run any more"),
        "{told}"
    );
    until_nothing_is_left(engine, &pool, &before).await
}

async fn the_next_start_clears_what_no_keeper_does(engine: &mut SecondEngine, how: End) -> Result<()> {
    let (before, pool) = (engine.belongings().await?, engine.pool(1, IDLE)?);
    let mut player = pool.start("lease wait")?;
    let held = until_leased(&mut player).await?;
    engine.end(how).await?;
    players::kill_keeper(&held)?;
    player.kill().await?;
    engine.start_again().await?;
    // One that runs while the other is cleared.
    let mut neighbour = Neighbour::start(engine).await?;
    let said = pool.play("lease drop").await?;
    ensure!(said.len() == 1 && id(&said[0])? != held, "{said:?}");
    neighbour.ensure_untouched(engine).await?;
    neighbour.ensure_running(engine).await?;
    neighbour.end(engine).await?;
    until_nothing_is_left(engine, &pool, &before).await
}

/// Waits for a player to fail; returns what it printed.
async fn until_failed(mut player: Child) -> Result<String> {
    let began = Instant::now();
    let mut errors = player.stderr.take().context("no errors")?;
    let mut words = String::new();
    let read = tokio::time::timeout(PATIENCE, errors.read_to_string(&mut words)).await;
    ensure!(
        read.is_ok(),
        "{} s after its engine went, the test still runs",
        began.elapsed().as_secs()
    );
    let status = player.wait().await?;
    ensure!(!status.success(), "the test whose engine went is green");
    println!(
        "--- after {:.1} s, {status}:\n{}\n---",
        began.elapsed().as_secs_f64(),
        words.trim()
    );
    Ok(words)
}

/// Waits until all that is there was there before.
async fn until_nothing_is_left(engine: &SecondEngine, pool: &Pool, before: &Belongings) -> Result<()> {
    let (began, mut told) = (Instant::now(), 10);
    loop {
        let (left, host) = (engine.belongings().await?.since(before), pool.left_on_the_host()?);
        if left.is_empty() && host.is_empty() {
            let (after, forgotten) = (began.elapsed().as_secs_f64(), engine.forgotten()?);
            println!(
                "--- nothing is left after {after:.1} s, but for {forgotten} that the engine has forgotten"
            );
            return Ok(());
        }
        if began.elapsed().as_secs() >= told {
            println!("--- {told} s later there is left:\n{left}and on the host {host:?}");
            told += 10;
        }
        if began.elapsed() > PATIENCE {
            bail!(
                "{} s later there is left:\n{left}and on the host {host:?}",
                PATIENCE.as_secs()
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Another test, which holds a topology in a pool of its own.
struct Neighbour {
    before: Belongings,
    pool: Pool,
    player: Child,
    id: String,
    its: Belongings,
}

impl Neighbour {
    async fn start(engine: &SecondEngine) -> Result<Self> {
        let (before, pool) = (engine.belongings().await?, engine.pool(1, IDLE)?);
        let mut player = pool.start("lease wait")?;
        let id = until_leased(&mut player).await?;
        let its = Self::of(&id, &engine.belongings().await?);
        // Two machines, two volumes of each, and a network.
        ensure!(its.len() == 7, "the neighbour has:\n{its}");
        Ok(Self {
            before,
            pool,
            player,
            id,
            its,
        })
    }

    fn of(id: &str, all: &Belongings) -> Belongings {
        all.of(&["container", "network", "volume"].map(|kind| format!("{kind} wopr-{id}-")))
    }

    async fn ensure_untouched(&mut self, engine: &SecondEngine) -> Result<()> {
        ensure!(self.player.try_wait()?.is_none(), "the neighbour has ended");
        let now = Self::of(&self.id, &engine.belongings().await?);
        ensure!(now == self.its, "of\n{}the neighbour has\n{now}", self.its);
        let lease = self.pool.run.path().join(&self.id).join("lease");
        ensure!(lease.exists(), "the neighbour's directory is gone");
        Ok(())
    }

    async fn ensure_running(&self, engine: &SecondEngine) -> Result<()> {
        for machine in ["vps", "gpu"] {
            let name = format!("wopr-{}-{machine}", self.id);
            let state = engine
                .docker(&["inspect", "--format", "{{.State.Status}}", &name])
                .await?;
            ensure!(
                state.trim() == "running",
                "the neighbour's {machine} machine is {state}"
            );
        }
        Ok(())
    }

    async fn end(mut self, engine: &SecondEngine) -> Result<()> {
        self.player.kill().await?;
        until_nothing_is_left(engine, &self.pool, &self.before).await
    }
}

/// What a person made on the same engine: it has no label of the harness.
struct ByHand {
    made: Belongings,
}

impl ByHand {
    /// On the host's network, so that a restart gives it nothing new.
    async fn start(engine: &SecondEngine) -> Result<Self> {
        let before = engine.belongings().await?;
        let image = engine.docker(&["image", "ls", "--quiet", "wopr/machine"]).await?;
        let image = image.lines().next().context("no image")?;
        engine.docker(&["network", "create", "by-hand"]).await?;
        engine.docker(&["volume", "create", "by-hand"]).await?;
        let runs = [
            "run",
            "--detach",
            "--restart",
            "always",
            "--network",
            "host",
            "--name",
            "by-hand-runs",
        ];
        let sleeps = [
            "--volume",
            "by-hand:/data",
            "--entrypoint",
            "sleep",
            image,
            "infinity",
        ];
        engine.docker(&[&runs[..], &sleeps].concat()).await?;
        let stopped = [
            "create",
            "--network",
            "by-hand",
            "--name",
            "by-hand-stopped",
            image,
        ];
        engine.docker(&stopped).await?;
        let made = Self::of(&engine.belongings().await?.since(&before));
        ensure!(made.len() == 4, "by hand there is:\n{made}");
        Ok(Self { made })
    }

    fn of(all: &Belongings) -> Belongings {
        all.of(&["container", "network", "volume"].map(|kind| format!("{kind} by-hand")))
    }

    async fn ensure_untouched(&self, engine: &SecondEngine) -> Result<()> {
        let now = Self::of(&engine.belongings().await?);
        ensure!(now == self.made, "of\n{}there is by hand\n{now}", self.made);
        let state = engine
            .docker(&["inspect", "--format", "{{.State.Status}}", "by-hand-runs"])
            .await?;
        ensure!(state.trim() == "running", "what was started by hand is {state}");
        Ok(())
    }
}
