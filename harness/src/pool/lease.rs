//! Exclusive use of a topology out of the pool.

use std::ops::Deref;

use super::PoolError;
use super::ahead::Ahead;
use super::reset::reset;
use super::state::State;
use crate::topology::Topology;

/// A topology that is this test's alone. When it is dropped, it is brought back to what it was at first, and
/// stays for the next test; one that cannot be brought back is removed, and that is told of.
#[derive(Debug)]
pub struct Lease {
    /// `None` once it was given back.
    topology: Option<Topology>,
    /// What it looked like at first; `None` where it does not go back to a pool.
    baseline: Option<State>,
    /// What boots meanwhile for the next test.
    ahead: Option<Ahead>,
}

impl Lease {
    /// A lease on a member of the pool.
    pub(super) fn of_the_pool(topology: Topology, baseline: State) -> Self {
        Self {
            topology: Some(topology),
            baseline: Some(baseline),
            ahead: None,
        }
    }

    /// A lease on a topology that goes with it.
    pub(super) fn of_its_own(topology: Topology) -> Self {
        Self {
            topology: Some(topology),
            baseline: None,
            ahead: None,
        }
    }

    /// The same, whose end waits for what boots meanwhile.
    pub(super) fn followed_by(mut self, ahead: Option<Ahead>) -> Self {
        self.ahead = ahead;
        self
    }

    /// Gives it back, and tells what became of it.
    ///
    /// # Errors
    /// [`PoolError::Left`] when the test left something that a reset does not undo; the topology is removed
    /// then, as with any other error.
    pub async fn give_back(mut self) -> Result<(), PoolError> {
        let given = match self.topology.take() {
            Some(topology) => give_back(topology, self.baseline.take()).await,
            None => Ok(()),
        };
        if let Some(ahead) = self.ahead.take() {
            // Where the wait is cancelled, the process waits no more, and the keeper removes what is half booted.
            let _ = tokio::task::spawn_blocking(|| ahead.finish()).await;
        }
        given
    }
}

async fn give_back(topology: Topology, baseline: Option<State>) -> Result<(), PoolError> {
    let Some(baseline) = baseline else {
        return Ok(topology.down().await?);
    };
    match reset(&topology, &baseline).await {
        Ok(()) => Ok(topology.let_go()?),
        Err(error) => {
            topology.down().await?;
            Err(error)
        }
    }
}

impl Deref for Lease {
    type Target = Topology;

    fn deref(&self) -> &Topology {
        match &self.topology {
            Some(topology) => topology,
            // Taken by what consumes the lease alone.
            None => unreachable!("a lease that was given back is gone"),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(topology) = self.topology.take() else {
            return;
        };
        let Some(baseline) = self.baseline.take() else {
            // Its own drop removes it.
            return;
        };
        let (id, who) = (topology.id().to_owned(), crate::lease::who());
        // A thread with a runtime of its own, as the one that this is dropped in may be ending. Joined, since
        // a process that ends would take the thread along.
        let returned = std::thread::spawn(move || -> Result<(), PoolError> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|source| PoolError::File {
                action: "make a runtime to reset",
                path: topology.id().into(),
                source,
            })?;
            runtime.block_on(async { give_back(topology.anew().await?, Some(baseline)).await })
        });
        if let Ok(Err(error)) = returned.join() {
            eprintln!("wopr: topology {id} is removed after {who}: {error}");
        }
        if let Some(ahead) = self.ahead.take() {
            ahead.finish();
        }
    }
}
