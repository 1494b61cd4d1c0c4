//! `wopr history`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use wopr_harness::history::{Scope, UNRECORDED};
use wopr_harness::report::{self, Meta};
use wopr_harness::service::Service;
use wopr_harness::topology::Topology;

use super::up::parse_service;
use super::{Failure, Outcome};

#[derive(Args)]
pub(crate) struct History {
    /// Write it as a page: one file, which needs no network and only you may read.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// With this service's log lines; give it again for more. A page has platform-api's unless it is given.
    #[arg(long = "service", value_name = "NAME", value_parser = parse_service)]
    services: Vec<Service>,
    /// How far back, as `10m` or `2h`.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "1h")]
    last: Duration,
}

impl History {
    pub(crate) async fn run(self) -> Outcome {
        let topology = Topology::by_hand().await?;
        let services = match self.services.as_slice() {
            [] if self.html.is_some() => vec![Service::PlatformApi],
            named => named.to_vec(),
        };
        let scope = Scope {
            services,
            since: SystemTime::now().checked_sub(self.last),
        };
        let history = topology.history_of(&scope).await?;
        // What is written to rows later is there when this is asked again.
        topology.record_rows().await?;
        let faults = topology.faults().await?;
        let notes = faults
            .iter()
            .map(|(machine, name)| format!("In effect now, whenever it began: {name} (held by {machine})."));
        let mut notes: Vec<String> = notes.collect();
        if history.gaps.iter().any(|gap| gap == UNRECORDED) {
            notes.push("From now on versions of rows are recorded.".to_owned());
        }
        let Some(file) = self.html else {
            let zero = UNIX_EPOCH + Duration::from_micros(u64::try_from(history.zero_us())?);
            say!(
                "zero is {} by this host's clock",
                humantime::format_rfc3339_millis(zero)
            );
            say!("{}", history.whole().to_string().trim_end());
            notes.iter().for_each(|note| say!("  {note}"));
            return Ok(ExitCode::SUCCESS);
        };
        let meta = Meta {
            title: format!("The last {}", humantime::format_duration(self.last)),
            topology: topology.id().to_owned(),
            failings: Vec::new(),
            notes,
        };
        let page = report::html(&history, &meta);
        let written = report::write_private(&file, &page);
        written.map_err(|error| Failure::from(format!("cannot write {}: {error}", file.display())))?;
        say!("timeline: {}", file.display());
        Ok(ExitCode::SUCCESS)
    }
}
