//! `wopr images`.

use std::process::ExitCode;

use clap::Subcommand;
use wopr_harness::dirs::Dirs;
use wopr_harness::engine::Engine;
use wopr_harness::image;
use wopr_harness::profile::Profile;
use wopr_harness::settings::StackSettings;

use super::{Outcome, bars};

#[derive(Subcommand)]
pub(crate) enum Images {
    /// Build what is missing: images from Debian's packages and this checkout, and the golden volume
    /// that machines boot from. Minutes the first time, milliseconds when all is there.
    Build,
    /// List the image sets on this host.
    List,
}

impl Images {
    pub(crate) async fn run(self) -> Outcome {
        let engine = Engine::connect().await?;
        match self {
            Self::Build => {
                let dirs = Dirs::find()?;
                let settings = StackSettings::for_tests(&dirs)?;
                let set = image::ensure(
                    &engine,
                    &dirs,
                    &Profile::from_environment(),
                    &settings,
                    &bars::progress(),
                )
                .await?;
                println!("image set {}", set.id);
                for (service, image) in &set.services {
                    println!("  {service:16} {image}");
                }
            }
            Self::List => {
                for id in image::list(&engine).await? {
                    println!("{id}");
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
