//! `wopr droplet`: the cloud's API, as one of its operators uses it, against the stand-in of the topology by hand.

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use wopr_harness::VPS;
use wopr_harness::cloud::{Conduct, Reboots};
use wopr_harness::machine::{Role, RunningMachine};
use wopr_harness::topology::Topology;
use wopr_machine::paths::{DNS_ADDRESS, PLATFORM_TLS_PORT, RECORDER_PORT};
use wopr_machine::protocol::{CloudRequest, Reply, Request};

use super::table::table;
use super::{Failure, Outcome};

/// The stand-in answers at once, unless a fault keeps it from that.
const LIMIT: Duration = Duration::from_secs(40);

#[derive(Subcommand)]
pub(crate) enum Droplet {
    /// List the droplets, each with its machine.
    List(List),
    /// Create one: `wopr droplet operate` makes a machine of it.
    Create(Create),
    /// Reboot one.
    Reboot(One),
    /// Destroy one, and its machine with it.
    Destroy(One),
    /// Make machines of droplets, and carry out what platform-api and others ask the cloud for, until Ctrl-C.
    Operate(Operate),
}

#[derive(Args)]
pub(crate) struct List {
    /// One JSON document: the API's own answer.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct Create {
    /// Its name.
    name: String,
    /// Slug of its region.
    #[arg(long, default_value = "nyc2")]
    region: String,
    /// Slug of its size.
    #[arg(long, default_value = "gpu-h100x1-80gb")]
    size: String,
}

#[derive(Args)]
pub(crate) struct One {
    /// Its number, as `wopr droplet list` shows it.
    droplet: u64,
}

#[derive(Args)]
pub(crate) struct Operate {
    /// What becomes of reboots.
    #[arg(long, value_enum, default_value_t = OnReboot::PowerCycle)]
    reboots: OnReboot,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum OnReboot {
    /// The power is cut, and comes back.
    PowerCycle,
    /// The machine is shut down, its services first.
    Clean,
    /// They are accepted, and never happen.
    Never,
    /// The machine comes back at another address.
    Moved,
}

impl Droplet {
    pub(crate) async fn run(self) -> Outcome {
        let topology = Topology::by_hand().await?;
        match self {
            Self::List(list) => list.run(&topology).await?,
            Self::Create(create) => create.run(&topology).await?,
            Self::Reboot(One { droplet }) => {
                check(&topology, droplet).await?;
                let path = format!("/droplets/{droplet}/actions");
                call(&topology, "POST", &path, Some(json!({ "type": "reboot" }))).await?;
                say!("a reboot of droplet {droplet} is asked for");
            }
            Self::Destroy(One { droplet }) => {
                check(&topology, droplet).await?;
                call(&topology, "DELETE", &format!("/droplets/{droplet}"), None).await?;
                say!("droplet {droplet} is destroyed");
            }
            Self::Operate(operate) => operate.run(&topology).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Refuses a droplet that nobody made. The stand-in itself takes a reboot of any: the rows of tests name droplets
/// that never were.
async fn check(topology: &Topology, droplet: u64) -> Result<(), Failure> {
    let known: Vec<_> = topology
        .droplets()
        .await?
        .iter()
        .map(|droplet| droplet.id.to_string())
        .collect();
    if known.contains(&droplet.to_string()) {
        return Ok(());
    }
    let there = match known[..] {
        [] => "there is none".to_owned(),
        _ => format!("there are {}", known.join(", ")),
    };
    Err(format!("no droplet is {droplet}: {there}").into())
}

/// Calls the stand-in from the VPS machine, where it listens. The token goes through curl's standard input: a list
/// of processes does not show it.
async fn call(topology: &Topology, method: &str, path: &str, body: Option<Value>) -> Result<Value, Failure> {
    let token = topology.settings().value(Role::Vps, "DO_API_TOKEN")?;
    let quoted = |text: &str| Value::from(text).to_string();
    let mut config = format!(
        "url = \"http://{DNS_ADDRESS}:{RECORDER_PORT}/v2{path}\"\nrequest = {method}\nheader = {}\n",
        quoted(&format!("Authorization: Bearer {token}"))
    );
    if let Some(body) = body {
        config.push_str("header = \"Content-Type: application/json\"\n");
        config.push_str(&format!("data = {}\n", quoted(&body.to_string())));
    }
    let argv = [
        "curl",
        "--silent",
        "--show-error",
        "--max-time",
        "30",
        "--write-out",
        "\n%{http_code}",
        "--config",
        "-",
    ];
    let run = Request::Run {
        argv: argv.map(str::to_owned).to_vec(),
        stdin: Some(config),
        timeout_ms: u64::try_from(LIMIT.as_millis()).unwrap_or(u64::MAX),
    };
    let exited = topology.control(&VPS).await?.ask(&run).await?;
    let Reply::Exited { stdout, stderr, .. } = exited else {
        return Err(
            format!("{method} {path}: the machine vps gave another answer than was asked for").into(),
        );
    };
    let (text, status) = stdout.rsplit_once('\n').unwrap_or(("", ""));
    let answer = serde_json::from_str(text).unwrap_or(Value::Null);
    match status.parse::<u16>() {
        Ok(200..=299) => Ok(answer),
        Ok(status @ 100..) => Err(format!("the cloud answers {method} {path} with {status}: {text}").into()),
        _ => Err(format!("the cloud does not answer {method} {path}: {}", stderr.trim()).into()),
    }
}

/// The machine at an address.
fn machine_at(topology: &Topology, address: Option<Ipv4Addr>) -> Option<&RunningMachine> {
    topology
        .machines()
        .find(|machine| Some(machine.address()) == address)
}

impl List {
    async fn run(self, topology: &Topology) -> Result<(), Failure> {
        let answer = call(topology, "GET", "/droplets?per_page=200", None).await?;
        if self.json {
            say!("{answer:#}");
            return Ok(());
        }
        let droplets = answer["droplets"].as_array().cloned().unwrap_or_default();
        if droplets.is_empty() {
            say!(
                "there is no droplet, and room for {} more machines",
                topology.room()
            );
            return Ok(());
        }
        let rows = droplets.iter().map(|droplet| {
            let networks = droplet["networks"]["v4"].as_array().cloned().unwrap_or_default();
            let public = networks.iter().find(|address| address["type"] == "public");
            let public = public.and_then(|address| address["ip_address"].as_str());
            let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
            [
                droplet["id"].to_string(),
                text(&droplet["name"]),
                text(&droplet["status"]),
                public.unwrap_or("none").to_owned(),
                machine_at(topology, public.and_then(|text| text.parse().ok()))
                    .map_or_else(|| "none".to_owned(), |machine| machine.name().to_string()),
                text(&droplet["region"]["slug"]),
                text(&droplet["size_slug"]),
            ]
        });
        let head = [
            "droplet", "name", "status", "address", "machine", "region", "size",
        ];
        say!("{}", table(head, rows));
        Ok(())
    }
}

impl Create {
    async fn run(self, topology: &Topology) -> Result<(), Failure> {
        let body = json!({
            "name": self.name, "region": self.region, "size": self.size,
            "image": "gpu-h100x1-80gb-ubuntu-22-04", "tags": ["wopr-by-hand"],
        });
        let answer = call(topology, "POST", "/droplets", Some(body)).await?;
        say!("droplet {} is created", answer["droplet"]["id"]);
        if topology.room() == 0 {
            say!("no machine can be made of it: `wopr down` and `wopr up --rack 1` make room for one");
        }
        Ok(())
    }
}

impl Operate {
    async fn run(self, topology: &Topology) -> Result<(), Failure> {
        let url = topology
            .settings()
            .value(Role::Vps, "PLATFORM_URL")
            .unwrap_or_default();
        let own = format!("https://{}:{PLATFORM_TLS_PORT}", VPS.hostname());
        if url != own {
            say!(
                "droplets will not reach platform-api: set PLATFORM_URL={own} in local/vps/.env, and run `wopr up`"
            );
        }
        let mut conduct = Conduct::default().reboots(match self.reboots {
            OnReboot::PowerCycle => Reboots::PowerCycle,
            OnReboot::Clean => Reboots::Clean,
            OnReboot::Never => Reboots::Never,
            OnReboot::Moved => Reboots::Moved,
        });
        for droplet in topology.droplets().await? {
            if let Some(machine) = machine_at(topology, droplet.public) {
                conduct = conduct.machine(droplet.id, machine.name());
            }
        }
        let room = topology.room();
        let operator = topology.operate_cloud(conduct).await?;
        say!("droplets become machines; there is room for {room} more. Ctrl-C ends it");
        let mut told = 0;
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        loop {
            let done = topology.done();
            for event in done.iter().skip(told) {
                say!("{event}");
            }
            told = done.len();
            tokio::select! {
                ended = &mut interrupted => { ended?; break }
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
        let trouble = operator.end();
        // From here on droplets are notes again.
        let notes = Request::Cloud(CloudRequest::Machines(false));
        topology.control(&VPS).await?.ask(&notes).await?;
        say!("machines that droplets became stay until `wopr droplet destroy` or `wopr down`");
        Ok(trouble?)
    }
}
