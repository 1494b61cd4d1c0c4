//! For the head of a scenario: a topology on the clock that scenarios run at.

use crate::clock::Rate;
use crate::topology::Topology;

/// A topology at the rate of `WOPR_CLOCK_RATE`, else at [`Rate::FAST`].
///
/// # Panics
/// With the reason, when it does not boot: a fixture has no other way to fail a test.
pub async fn topology() -> Topology {
    let rate = Rate::from_environment().unwrap_or_else(|error| panic!("WOPR_CLOCK_RATE: {error}"));
    let booted = Topology::builder().rate(rate).boot().await;
    booted.unwrap_or_else(|error| panic!("the topology did not boot: {error}"))
}
