//! `wopr fault dns`.

use std::time::Duration;

use clap::Subcommand;
use wopr_harness::fault::{DnsName, Fault, FaultError};

use super::Lasting;

/// What becomes of a name, and for how long.
#[derive(Subcommand)]
pub(crate) enum Naming {
    /// Nobody answers for it.
    Unanswered(Lasting),
    /// There is no such name (NXDOMAIN).
    Unknown(Lasting),
    /// The server fails (SERVFAIL).
    Failing(Lasting),
    /// It has another address.
    Wrong {
        /// The address.
        address: std::net::Ipv4Addr,
        #[command(flatten)]
        lasting: Lasting,
    },
    /// The answer comes late.
    Late {
        /// By how much, as `2s`.
        #[arg(value_parser = humantime::parse_duration)]
        by: Duration,
        #[command(flatten)]
        lasting: Lasting,
    },
}

impl Naming {
    pub(super) async fn begin(self, name: &DnsName<'_>) -> Result<(Fault, Lasting), FaultError> {
        Ok(match self {
            Self::Unanswered(lasting) => (name.unanswered().await?, lasting),
            Self::Unknown(lasting) => (name.unknown().await?, lasting),
            Self::Failing(lasting) => (name.failing().await?, lasting),
            Self::Wrong { address, lasting } => (name.wrong(address).await?, lasting),
            Self::Late { by, lasting } => (name.late(by).await?, lasting),
        })
    }
}
