//! `wopr images`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use wopr_harness::by_hand;
use wopr_harness::dirs::Dirs;
use wopr_harness::engine::Engine;
use wopr_harness::image::{self, ImageSet, Policy, Stocked};
use wopr_harness::profile::Profile;
use wopr_harness::settings::StackSettings;
use wopr_machine::envfile::{self, Settings};

use super::{Failure, Outcome, bars};

/// What the topology by hand runs: the choices in local/*/.env under those of the environment. No file
/// is made for it.
fn profile(dirs: &Dirs) -> Result<Profile, Failure> {
    let mut all = Settings::new();
    for role in ["vps", "gpu"] {
        let file = dirs.root.join(format!("local/{role}/.env"));
        if file.is_file() {
            all.extend(envfile::read(&file)?);
        }
    }
    Ok(Profile::from_settings(&all))
}

#[derive(Subcommand)]
pub(crate) enum Images {
    /// Build what is missing: images from Debian's packages and this checkout, and the golden volume
    /// that machines boot from. Minutes the first time, milliseconds when all is there.
    Build,
    /// List the image sets on this host, the one used last first.
    List,
    /// Write all images of the image set into one file (a tar), for a cache that makes a fresh machine fast.
    /// Builds what is missing first.
    Save {
        /// The file.
        file: PathBuf,
    },
    /// Load images from a file that `save` wrote, and make the golden volume of them.
    Load {
        /// The file.
        file: PathBuf,
    },
}

impl Images {
    pub(crate) async fn run(self) -> Outcome {
        let (engine, dirs) = (Engine::connect().await?, Dirs::find()?);
        match self {
            Self::Build => show(&build(&engine, &dirs).await?),
            Self::Save { file } => {
                let set = build(&engine, &dirs).await?;
                let task = bars::progress().begin(format!("saving image set {}", set.id));
                let bytes = image::save(&engine, &set, &file).await?;
                task.done();
                say!(
                    "image set {} is in {} ({} MiB)",
                    set.id,
                    file.display(),
                    bytes >> 20
                );
            }
            Self::Load { file } => {
                let task = bars::progress().begin(format!("loading images from {}", file.display()));
                image::load(&engine, &file).await?;
                task.done();
                show(&build(&engine, &dirs).await?);
            }
            Self::List => {
                for set in image::list(&engine, &dirs).await? {
                    say!(
                        "{}  golden volume {} MiB, {}",
                        set.id,
                        set.bytes >> 20,
                        last_used(&set)
                    );
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn build(engine: &Engine, dirs: &Dirs) -> Result<ImageSet, Failure> {
    let settings = StackSettings::for_tests(dirs)?;
    let set = image::ensure(engine, dirs, &profile(dirs)?, &settings, &bars::progress()).await?;
    by_hand::write_env(dirs, &set)?;
    Ok(set)
}

fn show(set: &ImageSet) {
    say!("image set {}", set.id);
    for (service, image) in &set.services {
        say!("  {service:16} {image}");
    }
}

fn last_used(set: &Stocked) -> String {
    match set.unused.as_secs() / 3600 {
        _ if set.unused == Duration::MAX => "never used".to_owned(),
        0 => "used within the hour".to_owned(),
        hours if hours < 48 => format!("used {hours} hours ago"),
        hours => format!("used {} days ago", hours / 24),
    }
}

/// `wopr prune`.
#[derive(Args)]
pub(crate) struct Prune {
    /// How many of the sets that were used last stay, whatever they take.
    #[arg(long, default_value_t = 1)]
    keep: usize,
    /// Remove others that were not used for so long.
    #[arg(long, value_name = "DURATION", default_value = "7d")]
    unused: humantime::Duration,
    /// Remove others, the longest unused first, until the golden volumes take no more than so many MiB.
    #[arg(long, value_name = "MIB")]
    most: Option<u64>,
}

impl Prune {
    pub(crate) async fn run(self) -> Outcome {
        let (engine, dirs) = (Engine::connect().await?, Dirs::find()?);
        let policy = Policy {
            keep: self.keep,
            unused: *self.unused,
            most_bytes: self.most.map_or(u64::MAX, |mib| mib.saturating_mul(1 << 20)),
        };
        let task = bars::progress().begin("removing image sets");
        let pruned = image::prune(&engine, &dirs, policy).await?;
        task.done();
        if pruned.is_empty() {
            say!("nothing to remove");
        }
        for set in pruned {
            say!(
                "removed image set {} (golden volume {} MiB, {})",
                set.id,
                set.bytes >> 20,
                last_used(&set)
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
