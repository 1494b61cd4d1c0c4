//! A pool of a test's own, and the player: a process that leases from it, leaves a mess, and gives back.

#![allow(dead_code, reason = "each file of tests uses a part")]

pub mod measure;

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use measure::Measured;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use wopr_harness::clock::{Rate, minutes};
use wopr_harness::cloud::Conduct;
use wopr_harness::dirs::Dirs;
use wopr_harness::engine::Engine;
use wopr_harness::fault::{Names, Stream, Toxic};
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
            "told" => until_told().await?,
            "use" => use_until_it_fails(held.as_ref().context("nothing is held")?).await?,
            "rest" => tokio::time::sleep(Duration::from_millis(300)).await,
            "measure" => {
                let measured = Measured::of(held.as_ref().context("nothing is held")?).await?;
                println!("player: measured {}", measured.to_line());
            }
            "files" => println!("player: has {} open files", measure::open_files()?),
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

/// Waits for a word of the test that started it.
async fn until_told() -> Result<()> {
    let told = tokio::task::spawn_blocking(|| std::io::stdin().lines().next());
    told.await?.context("the test ended without a word")??;
    Ok(())
}

/// Asks the database and a machine's engine for something, over and over, as a long test does.
async fn use_until_it_fails(topology: &Topology) -> Result<()> {
    loop {
        count_rows(topology).await?;
        topology.machine(&GPU).service(Service::Whisper).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn count_rows(topology: &Topology) -> Result<i64> {
    let mut database = topology.database().await?;
    Ok(sqlx::query_scalar("SELECT count(*) FROM gpu_nodes")
        .fetch_one(&mut database)
        .await?)
}

/// What a reset undoes: the topology is as new for the next.
pub const UNDONE: [&str; 10] = [
    "rows",
    "watch",
    "operated-cloud",
    "partition",
    "toxic",
    "wrong-name",
    "frozen-service",
    "frozen-machine",
    "stopped-database",
    "clock-jump",
];
/// What it does not: the topology is replaced.
pub const NOT_UNDONE: [&str; 12] = [
    "packet-rule",
    "program",
    "program-of-a-service",
    "listener",
    "file",
    "file-of-a-service",
    "trigger",
    "database-setting",
    "no-service",
    "dead-machine",
    "absent-machine",
    "moved-machine",
];

/// What a careless test leaves: one of [`UNDONE`] or [`NOT_UNDONE`].
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
        "frozen-machine" => std::mem::forget(topology.pause_machine(&GPU).await?),
        "clock-jump" => std::mem::forget(topology.clock().jump(minutes(20)).await?),
        "wrong-name" => std::mem::forget(topology.dns_name("wopr-gpu").unknown().await?),
        "absent-machine" => std::mem::forget(topology.disconnect_machine(&GPU).await?),
        "moved-machine" => {
            topology.reboot_at_new_address(&GPU, Names::Follow).await?;
        }
        "operated-cloud" => {
            std::mem::forget(topology.operate_cloud(Conduct::default()).await?);
        }
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
        "listener" => {
            let listens =
                "use IO::Socket; $s = IO::Socket::INET->new(Listen => 1, LocalPort => 7777); sleep 600";
            let started = format!("setsid perl -e '{listens}' >/dev/null 2>&1 </dev/null &");
            in_vps(topology, &["sh", "-c", &started]).await?
        }
        "file" => in_vps(topology, &["touch", "/etc/left-behind"]).await?,
        "file-of-a-service" => {
            let postgres = Service::Postgres.container();
            in_vps(
                topology,
                &[
                    "docker",
                    "exec",
                    "--user",
                    "0",
                    &postgres,
                    "touch",
                    "/etc/left-behind",
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
        "program-of-a-service" => {
            let postgres = Service::Postgres.container();
            let argv = ["docker", "exec", "--detach", &postgres, "sleep", "600"];
            in_vps(topology, &argv).await?
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
pub struct RunDirectory(tempfile::TempDir);

impl RunDirectory {
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A pool of a test's own.
pub struct Pool {
    pub run: RunDirectory,
    pub most: usize,
    pub idle: Duration,
    pub environment: Vec<(&'static str, String)>,
    /// The program and its arguments that start a player; none where the test does.
    pub through: Vec<String>,
}

impl Pool {
    pub fn of(most: usize) -> Result<Self> {
        // Short: a socket's path has 107 bytes.
        Self::below(Path::new("/tmp"), most)
    }

    pub fn below(parent: &Path, most: usize) -> Result<Self> {
        let run = tempfile::Builder::new().prefix("wp").tempdir_in(parent)?;
        let run = RunDirectory(run);
        let idle = Duration::from_secs(60);
        Ok(Self {
            run,
            most,
            idle,
            environment: vec![("WOPR_POOL_AHEAD", "0".to_owned())],
            through: Vec::new(),
        })
    }

    /// The same with a variable set for its players.
    pub fn with(mut self, variable: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((variable, value.into()));
        self
    }

    pub fn start(&self, script: &str) -> Result<Child> {
        let program = std::env::current_exe()?;
        let mut command = match self.through.split_first() {
            Some((first, others)) => {
                let mut command = Command::new(first);
                command.args(others).arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .args(["--exact", "players::player", "--nocapture"])
            .env(SCRIPT, script);
        command
            .envs(
                self.environment
                    .iter()
                    .map(|(variable, value)| (*variable, value)),
            )
            .env("WOPR_RUN_DIR", self.run.path())
            .env("WOPR_POOL", self.most.to_string())
            .env("WOPR_POOL_IDLE", self.idle.as_secs().to_string());
        Ok(command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?)
    }

    /// Plays to the end; returns what the player said.
    pub async fn play(&self, script: &str) -> Result<Vec<String>> {
        let played = self.start(script)?.wait_with_output().await?;
        // For the reader of a test that fails: what the harness had to say.
        let errors = String::from_utf8_lossy(&played.stderr);
        for line in errors.lines().filter(|line| line.starts_with("wopr: ")) {
            eprintln!("{line}");
        }
        Ok(said(&played))
    }

    /// Directories, processes and mounts of this pool that are still on the host.
    pub fn left_on_the_host(&self) -> Result<Vec<String>> {
        let run = self.run.path().display().to_string();
        let directories = std::fs::read_dir(&run)?.flatten();
        let mut left: Vec<String> = directories
            .map(|entry| format!("directory {}", entry.file_name().to_string_lossy()))
            .collect();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
            if arguments.contains(&run) {
                left.push(format!("process {arguments}"));
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let mounts = mounts.lines().filter(|mount| mount.contains(&run));
        left.extend(mounts.map(|mount| format!("mount {mount}")));
        Ok(left)
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
                let swept = sweep(&Engine::connect().await?, &dirs, Sweep::Free).await?;
                swept
                    .refused
                    .into_iter()
                    .next()
                    .map_or(Ok(()), |error| Err(error.into()))
            })
        });
        if let Ok(Err(error)) = swept.join() {
            eprintln!("the test's pool is not gone: {error}");
        }
    }
}

pub fn said(output: &Output) -> Vec<String> {
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let words = text
        .lines()
        .filter_map(|line| Some(line.split_once("player: ")?.1.to_owned()));
    words.collect()
}

/// The id in `leased ID with …`.
pub fn id(said: &str) -> Result<&str> {
    let rest = said
        .strip_prefix("leased ")
        .with_context(|| format!("not leased: {said}"))?;
    rest.split(' ').next().context("no id")
}

/// Waits for a player to say that it leased; returns the id.
pub async fn until_leased(player: &mut Child) -> Result<String> {
    let mut lines = BufReader::new(player.stdout.take().context("no output")?).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some((_, words)) = line.split_once("player: ") {
            // Left open: a test runner that cannot say how long it has run ends.
            player.stdout = Some(lines.into_inner().into_inner());
            return Ok(id(words)?.to_owned());
        }
    }
    let mut errors = String::new();
    let mut stream = player.stderr.take().context("no errors")?;
    stream.read_to_string(&mut errors).await?;
    bail!("the player ended before it leased: {}", errors.trim())
}

/// Kills the keeper of one topology, known by its arguments.
pub fn kill_keeper(id: &str) -> Result<()> {
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
