//! `wopr images`.

use std::process::ExitCode;

use clap::Subcommand;
use wopr_harness::by_hand;
use wopr_harness::dirs::Dirs;
use wopr_harness::engine::Engine;
use wopr_harness::image;
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
    /// List the image sets on this host.
    List,
    /// Remove the golden volumes of all but the newest image sets, unless a topology runs on them.
    Prune {
        /// How many to keep.
        #[arg(long, default_value_t = 1)]
        keep: usize,
    },
}

impl Images {
    pub(crate) async fn run(self) -> Outcome {
        let engine = Engine::connect().await?;
        match self {
            Self::Build => {
                let dirs = Dirs::find()?;
                let settings = StackSettings::for_tests(&dirs)?;
                let set =
                    image::ensure(&engine, &dirs, &profile(&dirs)?, &settings, &bars::progress()).await?;
                by_hand::write_env(&dirs, &set)?;
                say!("image set {}", set.id);
                for (service, image) in &set.services {
                    say!("  {service:16} {image}");
                }
            }
            Self::Prune { keep } => {
                let pruned = image::prune(&engine, keep).await?;
                if pruned.is_empty() {
                    say!("nothing to remove");
                }
                for id in pruned {
                    say!("removed image set {id}");
                }
            }
            Self::List => {
                for id in image::list(&engine).await? {
                    say!("{id}");
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
