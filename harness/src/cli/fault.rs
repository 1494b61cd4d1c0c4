//! `wopr fault`, `faults`, `heal`, `watch`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use wopr_harness::Topology;
use wopr_harness::fault::{self, Manner};
use wopr_harness::machine::MachineName;
use wopr_harness::service::Service;

use super::up::parse_service;
use super::{Failure, Outcome};

/// How long a fault lasts.
#[derive(Args)]
pub(crate) struct Lasting {
    /// Heal after this long, as `90s` or `5m`; on Ctrl-C unless it is given.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
}

/// A link, and which part of it.
#[derive(Args)]
pub(crate) struct Place {
    /// The machine that opens connections: vps or gpu.
    from: MachineName,
    /// The machine that they lead to.
    to: MachineName,
    /// One port of it; all unless it is given.
    #[arg(long)]
    port: Option<u16>,
    #[command(flatten)]
    lasting: Lasting,
}

/// A service.
#[derive(Args)]
pub(crate) struct Which {
    /// The service.
    #[arg(value_parser = parse_service)]
    service: Service,
    #[command(flatten)]
    lasting: Lasting,
}

#[derive(Subcommand)]
pub(crate) enum Fault {
    /// Cut both machines off from each other, in both directions.
    Partition(Lasting),
    /// Let packets of a link vanish.
    Drop(Place),
    /// Reset connections of a link.
    Reset(Place),
    /// Tell the sender that no way leads there.
    Unreachable(Place),
    /// Lose packets of a link at random.
    Loss {
        /// Share of the packets, from 0 to 1.
        #[arg(long, default_value_t = 0.1)]
        share: f64,
        #[command(flatten)]
        place: Place,
    },
    /// Stop a service: connections to it are refused.
    Stop(Which),
    /// Freeze a service: it accepts, and says nothing.
    Pause(Which),
    /// Answer in a service's place with a status.
    Status {
        /// HTTP status.
        #[arg(long, default_value_t = 503)]
        code: u16,
        /// Wait so long before the answer.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "0s")]
        after: Duration,
        #[command(flatten)]
        which: Which,
    },
    /// Answer in a service's place with headers, and never a body.
    Hang(Which),
}

impl Fault {
    pub(crate) async fn run(self) -> Outcome {
        let topology = Topology::by_hand().await?;
        let link = |place: &Place| {
            let link = topology.link(place.from.clone(), place.to.clone());
            match place.port {
                Some(port) => link.port(port),
                None => link,
            }
        };
        let (fault, lasting) = match self {
            Self::Partition(lasting) => (
                topology
                    .link(wopr_harness::VPS, wopr_harness::GPU)
                    .partition()
                    .await?,
                lasting,
            ),
            Self::Drop(place) => (link(&place).drop_packets().await?, place.lasting),
            Self::Reset(place) => (link(&place).reset().await?, place.lasting),
            Self::Unreachable(place) => (link(&place).unreachable().await?, place.lasting),
            Self::Loss { share, place } => (link(&place).lose(share).await?, place.lasting),
            Self::Stop(which) => (topology.stop_service(which.service).await?, which.lasting),
            Self::Pause(which) => (topology.pause_service(which.service).await?, which.lasting),
            Self::Status { code, after, which } => {
                let after_ms = u64::try_from(after.as_millis())?;
                let manner = Manner::Status { code, after_ms };
                (topology.impersonate(which.service, manner).await?, which.lasting)
            }
            Self::Hang(which) => (
                topology
                    .impersonate(which.service, Manner::HeadersThenHang)
                    .await?,
                which.lasting,
            ),
        };
        hold(fault, &lasting).await
    }
}

async fn hold(fault: fault::Fault, lasting: &Lasting) -> Outcome {
    let name = fault.name().to_owned();
    say!("in effect: {name}");
    for line in fault.receipt().to_string().lines() {
        say!("{line}");
    }
    let ended = async {
        match lasting.time {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };
    if lasting.time.is_none() {
        say!("Ctrl-C heals it");
    }
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        () = ended => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    fault.heal().await?;
    say!("healed: {name}");
    Ok(ExitCode::SUCCESS)
}

/// `wopr faults`.
pub(crate) async fn list() -> Outcome {
    let faults = Topology::by_hand().await?.faults().await?;
    if faults.is_empty() {
        say!("no fault is in effect");
    }
    for (machine, name) in faults {
        say!("{name} (held by {machine})");
    }
    Ok(ExitCode::SUCCESS)
}

/// `wopr heal`.
pub(crate) async fn heal() -> Outcome {
    let topology = Topology::by_hand().await?;
    let healed = topology.heal_all().await?;
    let left = topology.faults().await?;
    if !left.is_empty() {
        let names: Vec<_> = left.into_iter().map(|(_, name)| name).collect();
        return Err(Failure::from(format!("still in effect: {}", names.join(", "))));
    }
    match healed.as_slice() {
        [] => say!("no fault was in effect"),
        healed => healed
            .iter()
            .for_each(|(machine, name)| say!("healed: {name} (on {machine})")),
    }
    Ok(ExitCode::SUCCESS)
}

/// `wopr watch`: until Ctrl-C.
pub(crate) async fn watch() -> Outcome {
    let topology = Topology::by_hand().await?;
    let mut events = topology.events().await?;
    say!("watching; Ctrl-C ends it");
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                return Ok(ExitCode::SUCCESS);
            }
        };
        let at = std::time::UNIX_EPOCH + Duration::from_micros(u64::try_from(event.at_us)?);
        say!("{}  {}", humantime::format_rfc3339_millis(at), event.what);
    }
}
