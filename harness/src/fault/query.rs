//! A query that shows whether the database answers: over its Unix socket, a way that no fault of the network
//! touches.

use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, Executor as _};

use super::{Fault, FaultError, Outcome, Probe};

/// A database that answers at all answers well within this.
const ANSWER: Duration = Duration::from_millis(900);
/// One that was killed recovers in well under ten seconds.
const PATIENCE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(50);

/// A query that can be sent.
#[derive(Debug, Clone)]
pub(super) struct Query(pub(super) PgConnectOptions);

impl Query {
    async fn ask(&self) -> Probe {
        let began = Instant::now();
        let asked = tokio::time::timeout(ANSWER, async {
            let mut connection = PgConnection::connect_with(&self.0).await?;
            connection.execute("SELECT 1").await.map(drop)
        });
        let outcome = match asked.await {
            Err(_) => Outcome::NoAnswer,
            Ok(Ok(())) => Outcome::Answered,
            // The socket is gone, or nobody listens at it.
            Ok(Err(sqlx::Error::Io(error)))
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
                ) =>
            {
                Outcome::Refused
            }
            Ok(Err(sqlx::Error::Database(_))) => Outcome::OtherStatus,
            Ok(Err(_)) => Outcome::Broken,
        };
        Probe {
            from: "the harness".to_owned(),
            url: "SELECT 1".to_owned(),
            connection: super::Connection::New,
            outcome,
            took: began.elapsed(),
        }
    }

    /// Asks until it ends in one of these ways, or long enough; returns the last.
    async fn ask_until(&self, wanted: &[Outcome]) -> Probe {
        let began = Instant::now();
        let mut probe = self.ask().await;
        while !wanted.contains(&probe.outcome) && began.elapsed() < PATIENCE {
            tokio::time::sleep(PAUSE).await;
            probe = self.ask().await;
        }
        probe
    }

    /// Sees that the database answers again after a heal.
    pub(super) async fn is_answered_again(&self, fault: &str) -> Result<(), FaultError> {
        let probe = self.ask_until(&[Outcome::Answered]).await;
        if probe.outcome == Outcome::Answered {
            return Ok(());
        }
        Err(FaultError::StillInEffect {
            fault: fault.to_owned(),
            probe,
        })
    }
}

impl Fault {
    /// Sees by a query, too, that this is in effect; its heal is seen so as well.
    pub(super) async fn seen_by(mut self, query: Query, outcomes: &[Outcome]) -> Result<Self, FaultError> {
        let probe = query.ask_until(outcomes).await;
        if !outcomes.contains(&probe.outcome) {
            return Err(FaultError::NotInEffect {
                fault: self.name.clone(),
                probe,
            });
        }
        self.receipt.probes.push(probe);
        self.query = Some(query);
        Ok(self)
    }
}
