//! For the head of a scenario: a topology on the clock that scenarios run at.

use crate::clock::Rate;
use crate::pool::{self, Lease};
use crate::topology::Topology;

/// A lease on a topology at the rate of `WOPR_CLOCK_RATE`, else at [`Rate::FAST`].
///
/// # Panics
/// With the reason, when there is none: a fixture has no other way to fail a test.
pub async fn topology() -> Lease {
    let rate = Rate::from_environment().unwrap_or_else(|error| panic!("WOPR_CLOCK_RATE: {error}"));
    let leased = pool::lease(Topology::builder().rate(rate)).await;
    leased.unwrap_or_else(|error| panic!("there is no topology for this test: {error}"))
}

/// A fleet of light machines at the same rate, of this test's own.
///
/// # Panics
/// As [`topology`].
pub async fn light_fleet(count: usize) -> Topology {
    let rate = Rate::from_environment().unwrap_or_else(|error| panic!("WOPR_CLOCK_RATE: {error}"));
    let booted = Topology::builder().rate(rate).gpus(count).light().boot().await;
    booted.unwrap_or_else(|error| panic!("there is no fleet for this test: {error}"))
}
