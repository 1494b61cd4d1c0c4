//! The pool: one test holds a topology at a time, and gets it as new, whatever the one before left.
//!
//! Each test plays in a pool of its own, through processes of their own: this file's `player`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use pretty_assertions::{assert_eq, assert_ne};
use rstest::rstest;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use wopr_harness::clock::Rate;
use wopr_harness::dirs::Dirs;
use wopr_harness::engine::{Engine, LABEL_TOPOLOGY};
use wopr_harness::fault::{Stream, Toxic};
use wopr_harness::pool::{self, Lease, PoolError};
use wopr_harness::topology::{Sweep, sweep};
use wopr_harness::{GPU, Service, Topology, VPS};

/// What a player does, one word after the other.
const SCRIPT: &str = "WOPR_TEST_PLAYER";
const LIMIT: Duration = Duration::from_secs(10);

/// Not a test: what the tests below start. It says `leased ID`, `gave back`, and `left …`.
#[tokio::test]
async fn player() -> Result<()> {
    let Ok(script) = std::env::var(SCRIPT) else {
        return Ok(());
    };
    let mut held: Option<Lease> = None;
    for word in script.split_whitespace() {
        match word {
            "lease" => held = Some(take(Topology::builder()).await?),
            "lease-fast" => held = Some(take(Topology::builder().rate(Rate::FAST)).await?),
            "give" => match held.take().context("nothing is held")?.give_back().await {
                Ok(()) => println!("player: gave back"),
                Err(PoolError::Left { differences }) => println!("player: left {}", differences[0]),
                Err(error) => println!("player: error {error}"),
            },
            "drop" => drop(held.take()),
            "panic" => panic!("on purpose"),
            "wait" => std::future::pending().await,
            "rest" => tokio::time::sleep(Duration::from_millis(300)).await,
            mess => leave(mess, held.as_ref().context("nothing is held")?).await?,
        }
    }
    Ok(())
}

async fn take(builder: wopr_harness::topology::Builder) -> Result<Lease> {
    let lease = pool::lease(builder).await?;
    let rows = count_rows(&lease).await?;
    println!("player: leased {} with {rows} rows", lease.id());
    Ok(lease)
}

async fn count_rows(topology: &Topology) -> Result<i64> {
    let mut database = topology.database().await?;
    Ok(sqlx::query_scalar("SELECT count(*) FROM gpu_nodes")
        .fetch_one(&mut database)
        .await?)
}

/// What a careless test leaves.
async fn leave(mess: &str, topology: &Topology) -> Result<()> {
    let vps = || topology.machine(&VPS);
    match mess {
        "rows" => drop(topology.seed_gpu_node().await?),
        "partition" => std::mem::forget(topology.link(VPS, GPU).partition().await?),
        "toxic" => {
            let link = topology.link(VPS, GPU).port(8080);
            std::mem::forget(
                link.toxic(Toxic::Bandwidth { rate: 1 }, Stream::Downstream)
                    .await?,
            );
        }
        "frozen-service" => std::mem::forget(topology.pause_service(Service::Whisper).await?),
        "stopped-database" => {
            vps()
                .engine()
                .stop(&Service::Postgres.container(), Duration::ZERO)
                .await?
        }
        "watch" => std::mem::forget(topology.watch(&topology.seed_gpu_node().await?).await?),
        "packet-rule" => {
            in_vps(
                topology,
                &[
                    "iptables",
                    "--append",
                    "OUTPUT",
                    "--destination",
                    "192.0.2.1",
                    "--jump",
                    "DROP",
                ],
            )
            .await?
        }
        "program" => {
            in_vps(
                topology,
                &["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 </dev/null &"],
            )
            .await?
        }
        "trigger" => {
            sql(
                topology,
                "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            )
            .await?
        }
        "database-setting" => sql(topology, "ALTER DATABASE wopr_platform SET work_mem = '1MB'").await?,
        "no-service" => {
            topology
                .machine(&GPU)
                .engine()
                .remove_container(&Service::Whisper.container())
                .await?
        }
        "dead-machine" => topology.machine(&GPU).kill().await?,
        other => bail!("{other} is no word of a script"),
    }
    Ok(())
}

async fn in_vps(topology: &Topology, argv: &[&str]) -> Result<()> {
    topology.control(&VPS).await?.run(argv, LIMIT).await?;
    Ok(())
}

async fn sql(topology: &Topology, statement: &'static str) -> Result<()> {
    sqlx::raw_sql(statement)
        .execute(&mut topology.database().await?)
        .await?;
    Ok(())
}

/// A directory for the topologies of one test; whatever of them is left goes with it.
struct RunDirectory(tempfile::TempDir);

/// A pool of a test's own.
struct Pool {
    run: RunDirectory,
    most: usize,
    idle: Duration,
}

impl Pool {
    fn of(most: usize) -> Result<Self> {
        // Short: a socket's path has 107 bytes.
        let run = tempfile::Builder::new().prefix("wp").tempdir_in("/tmp")?;
        let run = RunDirectory(run);
        let idle = Duration::from_secs(60);
        Ok(Self { run, most, idle })
    }

    fn start(&self, script: &str) -> Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["--exact", "player", "--nocapture"])
            .env(SCRIPT, script);
        command
            .env("WOPR_RUN_DIR", self.run.0.path())
            .env("WOPR_POOL", self.most.to_string())
            .env("WOPR_POOL_IDLE", self.idle.as_secs().to_string());
        Ok(command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?)
    }

    /// Plays to the end; returns what the player said.
    async fn play(&self, script: &str) -> Result<Vec<String>> {
        let played = self.start(script)?.wait_with_output().await?;
        Ok(said(&played))
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        let run = self.0.path().to_owned();
        // A runtime of its own, since the test's is ending.
        let swept = std::thread::spawn(move || -> Result<()> {
            let dirs = Dirs { run, ..Dirs::find()? };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                sweep(&Engine::connect().await?, &dirs, Sweep::Free).await?;
                Ok(())
            })
        });
        if let Ok(Err(error)) = swept.join() {
            eprintln!("the test's pool is not gone: {error}");
        }
    }
}

fn said(output: &Output) -> Vec<String> {
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let words = text
        .lines()
        .filter_map(|line| Some(line.split_once("player: ")?.1.to_owned()));
    words.collect()
}

/// The id in `leased ID with …`.
fn id(said: &str) -> Result<&str> {
    let rest = said
        .strip_prefix("leased ")
        .with_context(|| format!("not leased: {said}"))?;
    rest.split(' ').next().context("no id")
}

/// Waits for a player to say that it leased; returns the id.
async fn until_leased(player: &mut Child) -> Result<String> {
    let mut lines = BufReader::new(player.stdout.take().context("no output")?).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some((_, words)) = line.split_once("player: ") {
            return Ok(id(words)?.to_owned());
        }
    }
    bail!("the player ended before it leased")
}

#[tokio::test]
async fn a_topology_that_was_given_back_is_leased_again_across_processes() -> Result<()> {
    let pool = Pool::of(2)?;
    let first = pool.play("lease rows give lease drop").await?;
    let second = pool.play("lease give").await?;
    let ids: BTreeSet<&str> = [&first[0], &first[2], &second[0]]
        .into_iter()
        .map(|said| id(said))
        .collect::<Result<_>>()?;
    assert_eq!(ids.len(), 1, "{first:?} {second:?}");
    assert!(second[0].ends_with("with 0 rows"), "{second:?}");
    Ok(())
}

#[rstest]
#[case::rows("rows")]
#[case::a_partition("partition")]
#[case::a_toxic("toxic")]
#[case::a_frozen_service("frozen-service")]
#[case::a_stopped_database("stopped-database")]
#[case::a_watched_node("watch")]
#[tokio::test]
async fn what_a_reset_undoes_is_gone_for_the_next(#[case] mess: &str) -> Result<()> {
    let pool = Pool::of(1)?;
    let said = pool.play(&format!("lease {mess} give lease drop")).await?;
    assert_eq!(said[1], "gave back");
    assert_eq!(id(&said[0])?, id(&said[2])?);
    assert!(said[2].ends_with("with 0 rows"), "{said:?}");
    Ok(())
}

#[rstest]
#[case::a_packet_rule("packet-rule", "192.0.2.1")]
#[case::a_program("program", "program sleep")]
#[case::a_function_in_the_database("trigger", "function f()")]
#[case::a_setting_of_the_database("database-setting", "work_mem = 1024")]
#[case::no_service("no-service", "lost \"service whisper\"")]
#[case::no_machine("dead-machine", "lost \"machine gpu\"")]
#[tokio::test]
async fn what_a_reset_does_not_undo_is_named_and_its_topology_replaced(
    #[case] mess: &str,
    #[case] named: &str,
) -> Result<()> {
    let pool = Pool::of(1)?;
    let said = pool.play(&format!("lease {mess} give lease drop")).await?;
    assert!(
        said[1].starts_with("left ") && said[1].contains(named),
        "{said:?}"
    );
    assert_ne!(id(&said[0])?, id(&said[2])?);
    Ok(())
}

#[tokio::test]
async fn a_test_that_panics_poisons_nothing() -> Result<()> {
    let pool = Pool::of(1)?;
    let first = pool.play("lease partition panic").await?;
    let second = pool.play("lease drop").await?;
    assert_eq!(id(&first[0])?, id(&second[0])?);
    assert!(second[0].ends_with("with 0 rows"), "{second:?}");
    Ok(())
}

#[tokio::test]
async fn what_a_killed_test_held_is_never_handed_on() -> Result<()> {
    let pool = Pool::of(1)?;
    let mut killed = pool.start("lease wait")?;
    let first = until_leased(&mut killed).await?;
    killed.kill().await?;
    let next = pool.play("lease drop").await?;
    assert_ne!(first, id(&next[0])?);
    Ok(())
}

#[tokio::test]
async fn two_tests_never_hold_one_topology() -> Result<()> {
    let pool = Pool::of(2)?;
    let players = (0..4).map(|_| pool.play("lease rows rest drop lease rest drop"));
    let said = futures_util::future::try_join_all(players).await?;
    let leased: Vec<&String> = said
        .iter()
        .flatten()
        .filter(|words| words.starts_with("leased"))
        .collect();
    assert_eq!(leased.len(), 8, "{said:?}");
    // Had two held it at once, one would have seen the other's row.
    assert!(
        leased.iter().all(|words| words.ends_with("with 0 rows")),
        "{said:?}"
    );
    let ids: BTreeSet<&str> = leased.iter().map(|words| id(words)).collect::<Result<_>>()?;
    assert_eq!(ids.len(), 2, "the pool holds two: {said:?}");
    Ok(())
}

#[tokio::test]
async fn a_test_that_waits_says_for_whom() -> Result<()> {
    let pool = Pool::of(1)?;
    let mut holder = pool.start("lease wait")?;
    let held = until_leased(&mut holder).await?;
    let mut waiting = pool.start("lease drop")?;
    let mut errors = BufReader::new(waiting.stderr.take().context("no errors")?).lines();
    let line = tokio::time::timeout(Duration::from_secs(60), errors.next_line())
        .await??
        .unwrap_or_default();
    assert!(
        line.contains(&format!("waiting for a topology: {held} is held by pool player")),
        "{line}"
    );
    holder.kill().await?;
    assert!(waiting.wait().await?.success());
    Ok(())
}

#[tokio::test]
async fn an_idle_topology_of_another_kind_makes_room() -> Result<()> {
    let pool = Pool::of(1)?;
    let said = pool.play("lease drop lease-fast drop lease drop").await?;
    let ids: BTreeSet<&str> = said.iter().map(|words| id(words)).collect::<Result<_>>()?;
    assert_eq!(ids.len(), 3, "{said:?}");
    Ok(())
}

#[tokio::test]
async fn two_pools_share_nothing() -> Result<()> {
    let (one, other) = (Pool::of(1)?, Pool::of(1)?);
    let (first, second) = (one.play("lease drop").await?, other.play("lease drop").await?);
    assert_ne!(id(&first[0])?, id(&second[0])?);
    Ok(())
}

#[tokio::test]
async fn an_idle_topology_goes_when_its_time_is_over() -> Result<()> {
    let pool = Pool {
        idle: Duration::from_secs(2),
        ..Pool::of(1)?
    };
    let said = pool.play("lease drop").await?;
    until_gone(&pool, id(&said[0])?).await
}

async fn until_gone(pool: &Pool, id: &str) -> Result<()> {
    let (engine, began) = (Engine::connect().await?, Instant::now());
    let directory: PathBuf = pool.run.0.path().join(id);
    let label = format!("{LABEL_TOPOLOGY}={id}");
    while directory.exists() || !engine.topologies_with_label(&label).await?.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60), "{id} is still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[tokio::test]
async fn machines_end_by_themselves_when_the_keeper_is_killed_too() -> Result<()> {
    let pool = Pool {
        idle: Duration::from_secs(2),
        ..Pool::of(1)?
    };
    let mut holder = pool.start("lease wait")?;
    let id = until_leased(&mut holder).await?;
    kill_keeper(&id)?;
    holder.kill().await?;
    let (engine, began) = (Engine::connect().await?, Instant::now());
    for machine in ["vps", "gpu"] {
        let name = format!("wopr-{id}-{machine}");
        while engine.container(&name).await?.is_some_and(|state| state.running) {
            assert!(began.elapsed() < Duration::from_secs(60), "{name} still runs");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    // The next boot sweeps the rest.
    pool.play("lease drop").await?;
    until_gone(&pool, &id).await?;
    Ok(())
}

/// The keeper of one topology, known by its arguments.
fn kill_keeper(id: &str) -> Result<()> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = arguments.split(|byte| *byte == 0).collect();
        if words.contains(&b"wopr-keeper".as_slice()) && words.contains(&id.as_bytes()) {
            let pid = entry.file_name();
            let killed = std::process::Command::new("kill")
                .arg("-KILL")
                .arg(pid)
                .status()?;
            anyhow::ensure!(killed.success());
            return Ok(());
        }
    }
    bail!("topology {id} has no keeper")
}
