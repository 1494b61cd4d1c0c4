//! `wopr logs`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use futures_util::StreamExt as _;
use futures_util::stream::select_all;
use wopr_harness::engine::Follow;
use wopr_harness::machine::MachineName;
use wopr_harness::service::Service;
use wopr_harness::topology::Topology;

use super::Outcome;
use super::up::{check_place, parse_service};

#[derive(Args)]
pub(crate) struct Logs {
    /// vps or gpu; both unless it is given.
    machine: Option<MachineName>,
    /// A service on it; the machine's own log and all its services unless it is given.
    #[arg(value_parser = parse_service)]
    service: Option<Service>,
    /// Show new lines as they come.
    #[arg(short, long)]
    follow: bool,
    /// Begin with this many of the last lines of each.
    #[arg(short = 'n', long, default_value_t = 50)]
    tail: usize,
}

impl Logs {
    pub(crate) async fn run(self) -> Outcome {
        if let (Some(machine), Some(service)) = (&self.machine, self.service) {
            check_place(machine, service)?;
        }
        let topology = Topology::by_hand().await?;
        let follow = if self.follow { Follow::Yes } else { Follow::No };
        let mut logs = Vec::new();
        let wanted = |name: &MachineName| self.machine.as_ref().is_none_or(|machine| machine == name);
        for machine in topology.machines().filter(|machine| wanted(machine.name())) {
            let all = topology.expected_services();
            let here = all
                .into_iter()
                .filter(|service| service.role() == machine.name().role());
            let services: Vec<_> = here
                .filter(|service| self.service.is_none_or(|one| one == *service))
                .collect();
            if self.service.is_none() {
                let lines = topology
                    .engine()
                    .log_lines(machine.container(), self.tail, follow);
                let name = format!("{} (machine)", machine.name());
                logs.push(lines.map(move |line| (name.clone(), line)).boxed());
            }
            for service in services {
                let lines = machine
                    .engine()
                    .log_lines(&service.container(), self.tail, follow);
                logs.push(lines.map(move |line| (service.to_string(), line)).boxed());
            }
        }
        let alone = logs.len() == 1;
        let mut lines = select_all(logs);
        let mut out = std::io::stdout().lock();
        while let Some((source, line)) = lines.next().await {
            let written = if alone {
                writeln!(out, "{line}")
            } else {
                writeln!(out, "{source:15} | {line}")
            };
            // The reader of the pipe has seen enough.
            if written.and_then(|()| out.flush()).is_err() {
                break;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
