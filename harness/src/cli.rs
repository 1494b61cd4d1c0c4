//! The command line.

/// Prints a line. A reader that has seen enough (`wopr status | head`) ends the command quietly.
macro_rules! say {
    ($($words:tt)*) => { $crate::cli::print_line(format_args!($($words)*)) };
}

mod bars;
mod bench;
mod bench_cloud;
mod bench_fleet;
mod doctor;
mod droplet;
mod fault;
mod history;
mod images;
mod inspect;
mod logs;
mod table;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The WOPR stack as two machines on this host: boot it, look at it, break it.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed, or found something wrong; 2 wrong usage; 3 no topology is up.\n\
     `wopr exec` ends with the code of its program.";

/// Exit code when nothing is up.
const NOT_UP: u8 = 3;

#[derive(Subcommand)]
enum Command {
    /// Say what this host has and lacks for running machines.
    Doctor(doctor::Doctor),
    /// Boot both machines, wait until all is healthy, and seed the GPU node.
    Up(up::Up),
    /// Show machines, services, their health, and the nodes.
    Status(inspect::Status),
    /// Write the GPU machine's row of gpu_nodes, and restart platform-api.
    Seed(up::Seed),
    /// Show what machines and services wrote.
    Logs(logs::Logs),
    /// Run a program in a machine, or in a service on it.
    Exec(inspect::Exec),
    /// List every topology on this host.
    Ps(inspect::Ps),
    /// Restart a service, and wait until it is healthy.
    Restart(up::Restart),
    /// Stop and remove the machines; their data stays unless --volumes is given.
    Down(up::Down),
    /// Remove what dead tests left, and idle topologies whose time is over; each boot does so, too.
    Reap,
    /// Build and list images and golden volumes.
    #[command(subcommand)]
    Images(images::Images),
    /// Remove image sets that nobody has used for a while, with their golden volumes; a new one does so for
    /// what is older than two weeks or beyond 6 GiB.
    Prune(images::Prune),
    /// What an operator of the cloud does: list, create, reboot and destroy droplets of the topology that
    /// `wopr up --rack N` started.
    #[command(subcommand)]
    Droplet(droplet::Droplet),
    /// Break something, show what proves it, and heal it after a while or on Ctrl-C.
    #[command(subcommand)]
    Fault(fault::Fault),
    /// List the faults that are in effect now.
    Faults,
    /// Heal every fault.
    Heal,
    /// Show what happens to the nodes, as it happens.
    Watch,
    /// Show what has happened: the nodes' rows, webhooks, cloud calls, connections and log lines.
    History(history::History),
    /// Measure boots, and print a table.
    Bench(bench::Bench),
}

/// An error of any of the commands.
type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome = Result<ExitCode, Failure>;

fn print_line(words: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    if writeln!(anstream::stdout(), "{words}").is_err() {
        std::process::exit(0);
    }
}

/// Runs the command that was given.
pub(crate) async fn run() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.command {
        Command::Doctor(doctor) => doctor.run().await,
        Command::Up(up) => up.run().await,
        Command::Status(status) => status.run().await,
        Command::Seed(seed) => seed.run().await,
        Command::Logs(logs) => logs.run().await,
        Command::Exec(exec) => exec.run().await,
        Command::Ps(ps) => ps.run().await,
        Command::Restart(restart) => restart.run().await,
        Command::Down(down) => down.run().await,
        Command::Reap => up::reap().await,
        Command::Images(images) => images.run().await,
        Command::Prune(prune) => prune.run().await,
        Command::Droplet(droplet) => droplet.run().await,
        Command::Fault(fault) => fault.run().await,
        Command::Faults => fault::list().await,
        Command::Heal => fault::heal().await,
        Command::Watch => fault::watch().await,
        Command::History(history) => history.run().await,
        Command::Bench(bench) => bench.run().await,
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            anstream::eprintln!("wopr: {error}");
            let not_up = error
                .downcast_ref()
                .is_some_and(|error| matches!(error, wopr_harness::topology::TopologyError::NotUp));
            if not_up {
                ExitCode::from(NOT_UP)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}
