//! An engine of a test's own, which it may stop, kill and start again: the host's is everybody's.
//!
//! It runs in namespaces of its own for network, mounts and processes: two engines in one network flush each
//! other's packet rules, what it mounts is nobody else's to unmount, and all its processes end with the first
//! one. A warden beside the test ends that one and the engine's users when the test has ended, however it did, and
//! then removes the files and control groups.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::process::{Child, Command};
use wopr_harness::dirs::Dirs;
use wopr_harness::engine::Engine;
use wopr_harness::image;
use wopr_harness::profile::Profile;
use wopr_harness::progress::Progress;
use wopr_harness::settings::StackSettings;

use crate::players::Pool;

/// An engine starts in half a second, and stops in ten with machines that are busy; this is for a busy host.
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(50);

/// Arguments: the engine's directory, its control group. It ends when its input does. The first process says its
/// number as the host counts before it sees its own /proc; it reaps what others leave, as a host's does. An
/// engine would take the host's containerd for its own, were that to be seen.
const WARDEN: &str = r#"
unshare --net --mount --pid --fork --kill-child sh -c '
  read -r number _ </proc/self/stat
  mount -t proc proc /proc
  ip link set lo up
  if [ -d /run/containerd ]; then mount -t tmpfs tmpfs /run/containerd; fi
  echo $number >"$1/first.new" && mv "$1/first.new" "$1/first"
  while :; do sleep 3600 & wait $!; done' first "$1" </dev/null &
unshare=$!
read -r _
# Keepers would wait ten minutes for an engine that never comes back.
for process in /proc/[0-9]*; do
  tr '\0' '\n' <$process/environ | grep -qxF "DOCKER_HOST=unix://$1/docker.sock" && kill -KILL ${process#/proc/}
done
first=$(cat "$1/first")
kill -KILL $unshare
wait $unshare
rounds=0
# Once it is a zombie, all others are gone.
while [ -e /proc/$first ] && ! grep -q '^State:.[ZX]' /proc/$first/status && [ $rounds -lt 300 ]; do
  rounds=$((rounds + 1))
  sleep 0.1
done
for group in /sys/fs/cgroup/$2 /sys/fs/cgroup/*/$2; do
  [ -d $group ] && find $group -depth -type d -exec rmdir {} \;
done
rm -rf "$1"
"#;

/// How an engine ends.
#[derive(Debug, Clone, Copy)]
pub enum End {
    /// As `systemctl stop` does: it stops its containers first.
    Stopped,
    /// As a crash does: its containers run on.
    Killed,
}

impl End {
    /// Ids of what an engine that ended so never hears of again, since it was killed before it noted it: containers that
    /// it was just starting, for which a shim runs, and layers of those that it was just making.
    fn forgotten(self, data: &Path) -> Result<BTreeSet<String>> {
        match self {
            Self::Stopped => Ok(BTreeSet::new()),
            Self::Killed => Ok(&containers_not_started(data)? | &layers_of_none(data)),
        }
    }
}

fn containers_not_started(data: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for directory in entries(&data.join("containers")) {
        // One that was just being made has none, and has not been started.
        let Ok(noted) = fs::read(directory.join("config.v2.json")) else {
            continue;
        };
        let noted: serde_json::Value = serde_json::from_slice(&noted)?;
        if noted["State"]["Running"] != true {
            found.extend(name(&directory));
        }
    }
    Ok(found)
}

/// Layers that neither an image nor a container has.
fn layers_of_none(data: &Path) -> BTreeSet<String> {
    let noted = data.join("image/overlay2/layerdb");
    let owners = entries(&noted.join("sha256")).chain(entries(&noted.join("mounts")));
    let ids = owners.flat_map(|owner| ["cache-id", "mount-id", "init-id"].map(|id| owner.join(id)));
    let had: BTreeSet<String> = ids.filter_map(|id| fs::read_to_string(id).ok()).collect();
    let layers = entries(&data.join("overlay2")).filter_map(|layer| name(&layer));
    // Not a layer: the short names of all.
    layers
        .filter(|layer| layer != "l" && !had.contains(layer))
        .collect()
}

fn name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_string_lossy().into_owned())
}

/// The engine, whether it runs or not.
pub struct SecondEngine {
    home: PathBuf,
    warden: std::process::Child,
    /// The first process of the engine's namespaces, as the host counts.
    first: String,
    /// What entered the namespaces to be dockerd's parent; it ends with it.
    dockerd: Option<Child>,
    /// Ids of what no client can remove any more: see [`End::forgotten`].
    forgotten: BTreeSet<String>,
}

impl SecondEngine {
    /// Starts it, with no images.
    pub async fn start() -> Result<Self> {
        ensure!(
            fs::metadata("/proc/self")?.uid() == 0,
            "this test starts an engine of its own, which takes root: it was started by another user"
        );
        for program in ["dockerd", "docker", "unshare", "nsenter", "ip", "iptables-save"] {
            let found = std::env::var_os("PATH")
                .is_some_and(|path| std::env::split_paths(&path).any(|place| place.join(program).is_file()));
            ensure!(
                found,
                "this test starts an engine of its own, which takes {program}: it is not on this host"
            );
        }
        // Short: a socket's path has 107 bytes. The warden removes it.
        let home = tempfile::Builder::new().prefix("we").tempdir_in("/tmp")?.keep();
        fs::write(home.join("daemon.json"), "{}")?;
        let errors = fs::File::create(home.join("warden.log"))?;
        // In a session of its own: what ends the test's process group is what it waits for.
        let warden = std::process::Command::new("setsid")
            .args(["sh", "-c", WARDEN, "warden"])
            .args([home.as_os_str(), group(&home).as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .context("start the engine's warden")?;
        let mut engine = Self {
            home,
            warden,
            first: String::new(),
            dockerd: None,
            forgotten: BTreeSet::new(),
        };
        engine.first = engine.until_first().await?;
        engine.start_again().await?;
        Ok(engine)
    }

    async fn until_first(&mut self) -> Result<String> {
        let began = Instant::now();
        loop {
            if let Ok(first) = fs::read_to_string(self.home.join("first")) {
                return Ok(first.trim().to_owned());
            }
            ensure!(
                self.warden.try_wait()?.is_none() && began.elapsed() < PATIENCE,
                "no namespaces for an engine: {}",
                fs::read_to_string(self.home.join("warden.log"))?
            );
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Brings what machines are made of into it, from the host's engine. The first player makes a golden volume of
    /// that, which takes a quarter of a minute: it has to be done by a process that takes this engine for its own.
    pub async fn take_images(&self) -> Result<()> {
        let (host, dirs, profile) = (
            Engine::connect().await?,
            Dirs::find()?,
            Profile::from_environment(),
        );
        let settings = StackSettings::for_tests(&dirs)?;
        let set = image::ensure(&host, &dirs, &profile, &settings, &Progress::lines()).await?;
        let mut images: Vec<String> = set.services.into_values().collect();
        images.extend([set.machine, set.toxiproxy]);
        host.carry_images(&images, &self.connect().await?).await?;
        let said = self.pool(1, Duration::ZERO)?.play("lease drop").await?;
        ensure!(
            said.len() == 1,
            "no topology boots on the second engine: {said:?}"
        );
        Ok(())
    }

    /// Locks and settings of those who use this engine.
    fn state(&self) -> PathBuf {
        self.home.join("state")
    }

    fn socket(&self) -> PathBuf {
        self.home.join("docker.sock")
    }

    /// The value of `DOCKER_HOST` that leads to it.
    fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// A new connection to it.
    pub async fn connect(&self) -> Result<Engine> {
        Ok(Engine::at(self.socket()).await?)
    }

    /// A pool of so many topologies on this engine.
    pub fn pool(&self, most: usize, idle: Duration) -> Result<Pool> {
        let network = format!("--net=/proc/{}/ns/net", self.first);
        let mut pool = Pool::below(&self.home, most)?
            .with("DOCKER_HOST", self.address())
            .with("WOPR_STATE_DIR", self.state().display().to_string());
        pool.idle = idle;
        pool.through = ["nsenter", &network, "--"].map(str::to_owned).to_vec();
        Ok(pool)
    }

    /// Calls `docker` as a person does; returns what it printed.
    pub async fn docker(&self, arguments: &[&str]) -> Result<String> {
        let mut docker = Command::new("docker");
        let called = docker.env("DOCKER_HOST", self.address()).args(arguments);
        let called = called.output().await?;
        ensure!(
            called.status.success(),
            "docker {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&called.stderr)
        );
        Ok(String::from_utf8(called.stdout)?)
    }

    fn within(&self, namespaces: &[&str], argv: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first]).args(namespaces).arg("--");
        command.args(argv);
        command
    }

    /// Starts it, and waits until it answers.
    pub async fn start_again(&mut self) -> Result<()> {
        let at = |name: &str| self.home.join(name).display().to_string();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.home.join("dockerd.log"))?;
        let mut dockerd = self.within(&["--net", "--mount", "--pid"], &["dockerd", "--bridge", "none"]);
        dockerd
            .args(["--config-file", &at("daemon.json"), "--pidfile", &at("pid")])
            .args(["--data-root", &at("data"), "--exec-root", &at("exec")])
            .args(["--host", &self.address(), "--cgroup-parent"])
            .arg(format!("/{}", group(&self.home)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut dockerd = dockerd.spawn()?;
        let began = Instant::now();
        while self.connect().await.is_err() {
            ensure!(
                dockerd.try_wait()?.is_none() && began.elapsed() < PATIENCE,
                "the second engine does not answer; the end of its log:\n{}",
                self.last_words()?
            );
            tokio::time::sleep(PAUSE).await;
        }
        self.dockerd = Some(dockerd);
        Ok(())
    }

    fn last_words(&self) -> Result<String> {
        let log = fs::read_to_string(self.home.join("dockerd.log"))?;
        let lines: Vec<_> = log.lines().collect();
        Ok(lines[lines.len().saturating_sub(20)..].join("\n"))
    }

    /// Ends it, and waits for its end.
    pub async fn end(&mut self, how: End) -> Result<()> {
        let mut dockerd = self.dockerd.take().context("the second engine does not run")?;
        let signal = match how {
            End::Stopped => "TERM",
            End::Killed => "KILL",
        };
        let number = fs::read_to_string(self.home.join("pid"))?;
        let send = ["sh", "-c", "kill -s $1 $2", "send", signal, number.trim()];
        ensure!(self.within(&["--pid"], &send).status().await?.success());
        let ended = tokio::time::timeout(PATIENCE, dockerd.wait()).await;
        ended.with_context(|| format!("the engine did not end within {} s", PATIENCE.as_secs()))??;
        // As it has them on disk: once it is back, it and its users change them.
        self.forgotten.extend(how.forgotten(&self.home.join("data"))?);
        Ok(())
    }

    /// Ends it and starts it again.
    pub async fn restart(&mut self, how: End) -> Result<()> {
        self.end(how).await?;
        self.start_again().await
    }

    /// All that this engine and what runs on it have on the host, each in a line, but for what it has forgotten.
    pub async fn belongings(&self) -> Result<Belongings> {
        let mut all = BTreeSet::new();
        for (kind, list) in [
            ("container", ["ps", "--all", "--format", "{{.Names}}"].as_slice()),
            ("network", &["network", "ls", "--format", "{{.Name}}"]),
            ("volume", &["volume", "ls", "--format", "{{.Name}}"]),
        ] {
            let listed = self.docker(list).await?;
            all.extend(listed.lines().map(|name| format!("{kind} {name}")));
        }
        let process = Path::new("/proc").join(&self.first);
        let mounts = fs::read_to_string(process.join("mounts"))?;
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        all.extend(places.map(|place| format!("mount {place}")));
        let links = fs::read_to_string(process.join("net/dev"))?;
        let names = links
            .lines()
            .filter_map(|line| Some(line.split_once(':')?.0.trim()));
        all.extend(names.map(|name| format!("network interface {name}")));
        let rules = self.within(&["--net"], &["iptables-save"]).output().await?;
        let rules = String::from_utf8(rules.stdout)?;
        let rules = rules.lines().filter(|line| line.starts_with('-'));
        all.extend(rules.map(|rule| format!("packet rule {rule}")));
        all.extend(self.processes()?);
        // Not exec/netns: an engine removes the empty files there by itself, once a minute.
        for below in ["data/containers", "data/volumes", "data/overlay2"] {
            all.extend(entries(&self.home.join(below)).map(|path| format!("file {}", path.display())));
        }
        for place in
            std::iter::once(PathBuf::from("/sys/fs/cgroup")).chain(entries(Path::new("/sys/fs/cgroup")))
        {
            let groups = entries(&place.join(group(&self.home))).filter(|path| path.is_dir());
            all.extend(groups.map(|path| format!("control group {}", path.display())));
        }
        all.retain(|line| !self.is_forgotten(line));
        Ok(Belongings(all))
    }

    /// Whether it is the shim, a control group or a layer of what the engine has forgotten.
    fn is_forgotten(&self, line: &str) -> bool {
        let of_one = self.forgotten.iter().any(|id| line.contains(id.as_str()));
        of_one && (is_shim(line) || line.starts_with("control group ") || line.contains("/data/overlay2/"))
    }

    /// How many shims and layers are there that it has forgotten.
    pub fn forgotten(&self) -> Result<usize> {
        let shims = self.processes()?.into_iter();
        let layers = entries(&self.home.join("data/overlay2"));
        let layers = layers.map(|layer| layer.display().to_string());
        Ok(shims.chain(layers).filter(|line| self.is_forgotten(line)).count())
    }

    /// Arguments of the processes in its namespaces, but for the engine itself.
    fn processes(&self) -> Result<Vec<String>> {
        let namespace = |of: &Path| fs::read_link(of.join("ns/pid")).ok();
        let ours = namespace(&Path::new("/proc").join(&self.first));
        ensure!(ours.is_some(), "the second engine's namespaces are gone");
        let within = entries(Path::new("/proc")).filter(|process| namespace(process) == ours);
        let arguments = within.map(|process| fs::read(process.join("cmdline")).unwrap_or_default());
        let arguments = arguments.map(|all| String::from_utf8_lossy(&all).replace('\0', " "));
        Ok(arguments
            .map(|arguments| format!("process {arguments}"))
            .collect())
    }
}

fn is_shim(line: &str) -> bool {
    line.strip_prefix("process ")
        .and_then(|arguments| arguments.split(' ').next())
        .is_some_and(|program| program.ends_with("containerd-shim-runc-v2"))
}

/// The control group that its containers' are in.
fn group(home: &Path) -> String {
    let name = home.file_name().unwrap_or_default().to_string_lossy();
    format!("wopr-{name}")
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

/// What an engine and all that runs on it have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Belongings(BTreeSet<String>);

impl Belongings {
    /// What is here and was not there before.
    pub fn since(&self, before: &Self) -> Self {
        Self(self.0.difference(&before.0).cloned().collect())
    }

    /// Those whose line begins so.
    pub fn of(&self, beginnings: &[String]) -> Self {
        let wanted = |line: &&String| beginnings.iter().any(|beginning| line.starts_with(beginning));
        Self(self.0.iter().filter(wanted).cloned().collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Belongings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

impl Drop for SecondEngine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "the second engine's last words:\n{}",
                self.last_words().unwrap_or_default()
            );
        }
        // Its end of the line is what the warden waits for.
        drop(self.warden.stdin.take());
        let ended = self.warden.wait();
        if self.home.exists() {
            eprintln!("{} is still there; its warden: {ended:?}", self.home.display());
        }
    }
}
