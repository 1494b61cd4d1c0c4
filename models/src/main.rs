//! `models`: verifies model files, and makes tiny ones.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use wopr_models::{Manifest, Set, tiny, verify};

/// The model files of the GPU machine.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say what is missing, truncated or of the wrong kind in a directory. Ends with 1 if anything is.
    Verify {
        /// The directory.
        dir: PathBuf,
        /// Which files should be there.
        #[arg(long, value_enum, default_value_t = Wanted::Production)]
        set: Wanted,
    },
    /// Write tiny models of random weights that the real engines load: the same bytes every time.
    Tiny {
        /// The directory; made if it is not there.
        dir: PathBuf,
    },
    /// List the models of the manifest.
    List,
}

#[derive(Clone, Copy, ValueEnum)]
enum Wanted {
    /// Real weights.
    Production,
    /// Those of `models tiny`.
    Tiny,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("models: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Box<dyn std::error::Error>> {
    match command {
        Command::Verify { dir, set } => {
            let set = match set {
                Wanted::Production => Set::Production,
                Wanted::Tiny => Set::Tiny,
            };
            let report = verify(&dir, set)?;
            print!("{report}");
            return Ok(if report.is_well() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Command::Tiny { dir } => {
            for path in tiny::write_all(&dir)? {
                println!("{}", path.display());
            }
        }
        Command::List => {
            let manifest = Manifest::load()?;
            println!(
                "{:16} {:10} {:8} {:>9}  file",
                "service", "model", "weights", "VRAM"
            );
            for model in manifest.models(Set::Production).chain(manifest.models(Set::Tiny)) {
                let file = model.file.as_deref().unwrap_or("(fetched by its engine)");
                let weights = model.quantisation.as_deref().unwrap_or("-");
                println!(
                    "{:16} {:10} {weights:8} {:>5} MiB  {file}",
                    model.service, model.architecture, model.vram_mib
                );
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
