//! The command line.

mod bars;
mod images;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The WOPR stack as two machines on this host: boot it, look at it, break it.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The images, and the golden volumes made of them.
    #[command(subcommand)]
    Images(images::Images),
}

/// An error of any of the commands: shown with its causes.
type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome = Result<ExitCode, Failure>;

/// Runs the command that was given.
pub(crate) async fn run() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.command {
        Command::Images(images) => images.run().await,
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            anstream::eprintln!("wopr: {error}");
            ExitCode::FAILURE
        }
    }
}
