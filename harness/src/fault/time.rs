//! Faults of platform-api's time: its wall clock jumps or drifts while its timers go on, or all of its time runs
//! at another rate.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use wopr_machine::protocol::{Request, Retiming};

use super::{Applying, Fault, FaultError};
use crate::clock::{self, ClockError, Dial, PlatformTime, Rate};
use crate::history::{Meaning, Upset};
use crate::machine::VPS;
use crate::service::Service;
use crate::topology::Topology;

/// Whole seconds are told, and each of two looks may be off by one; a second more for the host.
const UNSURE: f64 = 3.0;
/// A Date that does not move for so many seconds of platform-api's stands still.
const STILL: f64 = 4.0 * UNSURE;
/// How long a change is looked for.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(25);

/// platform-api's clock, for faults of it. One is in effect at a time.
#[derive(Debug, Clone, Copy)]
pub struct PlatformClock<'a> {
    topology: &'a Topology,
}

/// A look at the clock.
#[derive(Debug, Clone, Copy)]
struct Look {
    /// Between the request and its answer.
    at: (Instant, Instant),
    told: SystemTime,
}

async fn look(dial: &Dial) -> Result<Look, ClockError> {
    let asked = Instant::now();
    let told = dial.time().await?;
    Ok(Look {
        at: (asked, Instant::now()),
        told,
    })
}

impl Look {
    /// Seconds by which a later look is ahead of what the rate would have it be, give or take the time that the
    /// looks took.
    fn ahead(self, later: Self, rate: Rate) -> (f64, f64) {
        let passed = signed_seconds(self.told, later.told);
        let most = (later.at.1 - self.at.0).as_secs_f64() * f64::from(rate.get());
        let least = later.at.0.saturating_duration_since(self.at.1).as_secs_f64() * f64::from(rate.get());
        (passed - (most + least) / 2.0, (most - least) / 2.0 + UNSURE)
    }

    /// Whether the time that is told has stood still up to a later look. So it does after a clock went back, on a
    /// server that renders its Date once per second and waits for the next: hyper is one.
    fn stands_still(self, later: Self, rate: Rate) -> bool {
        let least = later.at.0.saturating_duration_since(self.at.1).as_secs_f64() * f64::from(rate.get());
        least > STILL && signed_seconds(self.told, later.told) <= UNSURE
    }
}

fn signed_seconds(from: SystemTime, to: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(ahead) => ahead.as_secs_f64(),
        Err(behind) => -behind.duration().as_secs_f64(),
    }
}

/// The clock before a fault of it.
#[derive(Debug)]
pub(super) struct ClockBefore {
    dial: Dial,
    look: Look,
    rate: Rate,
}

impl ClockBefore {
    /// Sees that a wall clock is right again.
    pub(super) async fn is_back(&self, fault: &str) -> Result<(), FaultError> {
        let began = Instant::now();
        let first = look(&self.dial).await?;
        loop {
            let now = look(&self.dial).await?;
            let (ahead, unsure) = self.look.ahead(now, self.rate);
            if ahead.abs() <= unsure || (ahead > 0.0 && first.stands_still(now, self.rate)) {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(FaultError::ClockStillOff {
                    fault: fault.to_owned(),
                    ahead,
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Topology {
    /// platform-api's clock, for faults of it.
    pub fn clock(&self) -> PlatformClock<'_> {
        PlatformClock { topology: self }
    }
}

impl PlatformClock<'_> {
    /// What platform-api takes for the time, in whole seconds.
    ///
    /// # Errors
    /// [`ClockError::NoDate`].
    pub async fn now(&self) -> Result<SystemTime, ClockError> {
        self.topology.dial().time().await
    }

    /// The wall clock is set ahead. Timers go on as before, as when NTP sets a clock. It is set right by the heal.
    ///
    /// # Errors
    /// [`FaultError`]; [`FaultError::TooSmall`] for a jump that whole seconds do not show.
    pub async fn jump(&self, by: PlatformTime) -> Result<Fault, FaultError> {
        self.set_off(
            format!("jump of {by} of platform-api's clock"),
            by.0.as_secs_f64(),
            0.0,
        )
        .await
    }

    /// The wall clock is set back. A server that keeps its Date until the next second, as hyper does, shows a
    /// Date that stands still from then on: that is what the receipt says then.
    ///
    /// # Errors
    /// As [`PlatformClock::jump`].
    pub async fn jump_back(&self, by: PlatformTime) -> Result<Fault, FaultError> {
        let name = format!("jump back of {by} of platform-api's clock");
        self.set_off(name, -by.0.as_secs_f64(), 0.0).await
    }

    /// The wall clock gains this share of the time that passes, or loses it where it is below 0: 0.01 is a clock
    /// that is 36 s ahead after an hour of platform-api's. The call returns once seconds show it.
    ///
    /// # Errors
    /// As [`PlatformClock::jump`], for a share that shows in twenty real seconds not at all.
    pub async fn skew(&self, share: f64) -> Result<Fault, FaultError> {
        let name = format!("skew of {} % of platform-api's clock", share * 100.0);
        self.set_off(name, 0.0, share).await
    }

    /// All of platform-api's time runs at another rate from now on, without a jump; a sleep that has begun keeps
    /// its length. `Topology::rate`, and what is converted by it, stays at the rate of the boot.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn run_at(&self, rate: Rate) -> Result<Fault, FaultError> {
        let mut applying = Applying::new(format!("platform-api's time runs at {rate}"), clock_is_off());
        let dial = self.topology.dial();
        let before = look(&dial).await?;
        self.retime(&mut applying, Retiming::Rate { rate: rate.get() })
            .await?;
        let seen = self.see_rate(&dial, before, rate).await;
        self.end(applying, seen, None).await
    }

    async fn see_rate(&self, dial: &Dial, before: Look, rate: Rate) -> Result<Vec<String>, FaultError> {
        let first = look(dial).await?;
        // Long enough for a Date that is two seconds old, as one that is kept for a second can be.
        let a_poll = rate.real(clock::seconds(30.0));
        tokio::time::sleep(a_poll.clamp(Duration::from_millis(500), Duration::from_secs(5))).await;
        let second = look(dial).await?;
        let found = clock::Paces {
            least: second.at.0 - first.at.1,
            most: second.at.1 - first.at.0,
            platform: second.told.duration_since(first.told).unwrap_or_default(),
        };
        if !found.show(rate) {
            return Err(ClockError::Wrong {
                image: self.image().await?,
                asked: rate,
                found,
            }
            .into());
        }
        // Between the old pace and the new one, whichever is quicker: a jump would be beyond.
        let slower = if rate < self.topology.rate() {
            rate
        } else {
            self.topology.rate()
        };
        let (ahead, unsure) = before.ahead(first, slower);
        let between =
            (first.at.1 - before.at.0).as_secs_f64() * f64::from(rate.get().max(self.topology.rate().get()));
        if ahead < -unsure || ahead > unsure + between {
            return Err(self
                .not_in_effect("a change of rate without a jump", ahead)
                .await?);
        }
        Ok(vec![format!("of platform-api's time {found}")])
    }

    async fn set_off(&self, name: String, ahead: f64, gains: f64) -> Result<Fault, FaultError> {
        let rate = self.topology.rate();
        let shown = PATIENCE.as_secs_f64() * f64::from(rate.get()) * gains;
        if ahead.abs() <= 2.0 * UNSURE && shown.abs() <= 2.0 * UNSURE {
            return Err(FaultError::TooSmall { fault: name });
        }
        let mut applying = Applying::new(name, clock_is_off());
        let dial = self.topology.dial();
        let before = look(&dial).await?;
        let since = before.told.duration_since(UNIX_EPOCH).unwrap_or_default();
        let with = Retiming::Wall {
            ahead_ns: nanos(ahead),
            gains_millionths: rounded(gains * 1e6),
            since_ns: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        };
        self.retime(&mut applying, with).await?;
        let seen = self.see_off(&dial, before, ahead, gains).await;
        let before = ClockBefore {
            dial,
            look: before,
            rate,
        };
        self.end(applying, seen, Some(before)).await
    }

    /// Looks until the clock is as far off as it should be, and clearly off.
    async fn see_off(
        &self,
        dial: &Dial,
        before: Look,
        jump: f64,
        gains: f64,
    ) -> Result<Vec<String>, FaultError> {
        let rate = self.topology.rate();
        loop {
            let now = look(dial).await?;
            let (ahead, unsure) = before.ahead(now, rate);
            let passed = (now.at.0 - before.at.0).as_secs_f64() * f64::from(rate.get());
            let expected = jump + passed * gains;
            if (ahead - expected).abs() <= unsure && ahead.abs() > unsure {
                let told = httpdate::fmt_http_date(now.told);
                return Ok(vec![format!("platform-api takes it for {told}: {ahead:+.0} s")]);
            }
            if expected < -STILL && before.stands_still(now, rate) {
                let told = httpdate::fmt_http_date(now.told);
                return Ok(vec![format!(
                    "platform-api's Date stands still at {told}, as one does that waits for a clock which was set back"
                )]);
            }
            if before.at.0.elapsed() > PATIENCE {
                return Err(self.not_in_effect(&format!("{expected:+.0} s"), ahead).await?);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn retime(&self, applying: &mut Applying, with: Retiming) -> Result<(), FaultError> {
        let service = Service::PlatformApi;
        let state = self.topology.machine(&VPS).service(service).await?;
        let process = state
            .and_then(|state| state.pid)
            .and_then(|pid| u32::try_from(pid).ok());
        let request = Request::Retime {
            name: applying.name.clone(),
            process: process.ok_or(FaultError::NotRunning { service })?,
            with,
        };
        applying
            .mechanism
            .push(format!("{VPS}: the files of platform-api's clock: {with:?}"));
        applying
            .ask(&VPS, self.topology.control(&VPS).await?, &request)
            .await
    }

    async fn end(
        &self,
        applying: Applying,
        seen: Result<Vec<String>, FaultError>,
        before: Option<ClockBefore>,
    ) -> Result<Fault, FaultError> {
        let observed = match seen {
            Ok(observed) => observed,
            Err(error) => return Err(applying.give_up(error).await),
        };
        let mut fault = applying.confirm(&[], self.topology.deeds().clone()).await?;
        fault.receipt.observed = observed;
        fault.clock_before = before;
        Ok(fault)
    }

    async fn image(&self) -> Result<String, FaultError> {
        let state = self.topology.machine(&VPS).service(Service::PlatformApi).await?;
        Ok(state.map(|state| state.image).unwrap_or_default())
    }

    async fn not_in_effect(&self, expected: &str, ahead: f64) -> Result<FaultError, FaultError> {
        Ok(FaultError::ClockNotInEffect {
            image: self.image().await?,
            expected: expected.to_owned(),
            ahead,
        })
    }
}

fn clock_is_off() -> Meaning {
    Meaning::upsets([Upset::Clock])
}

fn nanos(seconds: f64) -> i64 {
    rounded(seconds * 1e9)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "rounded before; beyond 292 years it is the last of them"
)]
fn rounded(number: f64) -> i64 {
    number.round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_that_waits_for_its_clock_stands_still() {
        let now = Instant::now();
        let look = |after, told| Look {
            at: (
                now + Duration::from_millis(after),
                now + Duration::from_millis(after),
            ),
            told: UNIX_EPOCH + Duration::from_secs(told),
        };
        let first = look(0, 1_000_000);
        assert!(first.stands_still(look(500, 1_000_001), Rate::FAST));
        // Six seconds of its own are too few to tell; and one that moves does not stand.
        assert!(!first.stands_still(look(200, 1_000_000), Rate::FAST));
        assert!(!first.stands_still(look(500, 1_000_015), Rate::FAST));
    }

    #[test]
    fn a_jump_is_what_the_rate_does_not_explain() {
        let now = Instant::now();
        let told = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let later = now + Duration::from_secs(2);
        let before = Look { at: (now, now), told };
        let after = |seconds| Look {
            at: (later, later),
            told: UNIX_EPOCH + Duration::from_secs(seconds),
        };
        assert_eq!(before.ahead(after(1_000_060), Rate::FAST), (0.0, UNSURE));
        assert_eq!(before.ahead(after(1_000_360), Rate::FAST), (300.0, UNSURE));
        assert_eq!(before.ahead(after(999_760), Rate::FAST), (-300.0, UNSURE));
    }
}
