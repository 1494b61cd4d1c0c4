//! `wopr fault clock`.

use std::time::Duration;

use clap::Subcommand;
use wopr_harness::clock::{PlatformTime, Rate};
use wopr_harness::fault::{Fault, FaultError, PlatformClock};

use super::Lasting;

/// What becomes of platform-api's clock.
#[derive(Subcommand)]
pub(crate) enum Timing {
    /// The wall clock is set ahead; timers go on as before.
    Jump {
        /// By how much, as `11m`.
        #[arg(value_parser = humantime::parse_duration)]
        by: Duration,
        #[command(flatten)]
        lasting: Lasting,
    },
    /// The wall clock is set back.
    JumpBack {
        /// By how much.
        #[arg(value_parser = humantime::parse_duration)]
        by: Duration,
        #[command(flatten)]
        lasting: Lasting,
    },
    /// The wall clock gains this share of the time that passes; loses it below 0.
    Skew {
        /// As `0.01` for one per cent.
        #[arg(allow_negative_numbers = true)]
        share: f64,
        #[command(flatten)]
        lasting: Lasting,
    },
    /// All of platform-api's time runs this many times as fast.
    Rate {
        /// As `x10`.
        rate: Rate,
        #[command(flatten)]
        lasting: Lasting,
    },
}

impl Timing {
    pub(super) async fn begin(self, clock: PlatformClock<'_>) -> Result<(Fault, Lasting), FaultError> {
        Ok(match self {
            Self::Jump { by, lasting } => (clock.jump(PlatformTime(by)).await?, lasting),
            Self::JumpBack { by, lasting } => (clock.jump_back(PlatformTime(by)).await?, lasting),
            Self::Skew { share, lasting } => (clock.skew(share).await?, lasting),
            Self::Rate { rate, lasting } => (clock.run_at(rate).await?, lasting),
        })
    }
}
