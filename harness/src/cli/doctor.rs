//! `wopr doctor`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use wopr_harness::doctor::{self, Finding};

use super::Outcome;

#[derive(Args)]
pub(crate) struct Doctor {
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// Ends with 1 when something that is needed is missing.
    pub(crate) async fn run(self) -> Outcome {
        let findings = doctor::examine().await;
        let well = findings
            .iter()
            .all(|(_, finding)| !matches!(finding, Finding::Missing { .. }));
        if self.json {
            let entry = |(what, finding): &(&str, Finding)| json!({ "what": what, "state": finding.word(), "detail": finding.detail() });
            say!(
                "{:#}",
                json!({ "ok": well, "findings": findings.iter().map(entry).collect::<Vec<_>>() })
            );
        } else {
            for (what, finding) in &findings {
                say!("{:8} {what:18} {}", finding.word(), finding.detail());
            }
        }
        Ok(if well {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}
