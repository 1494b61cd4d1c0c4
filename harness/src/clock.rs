//! platform-api's time. A library that is preloaded into its container makes it run faster, so that 30 s
//! pass in one; a scenario's durations are written in that time and converted once, here.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use wopr_machine::paths::{CLOCK, CLOCK_RATE};

/// One watchdog interval, as the contract has it.
pub const POLL: PlatformTime = PlatformTime(Duration::from_secs(30));

/// A duration in platform-api's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlatformTime(pub Duration);

/// That many watchdog intervals.
pub fn polls(count: u32) -> PlatformTime {
    PlatformTime(POLL.0 * count)
}

/// That many seconds of platform-api's.
pub fn seconds(count: f64) -> PlatformTime {
    PlatformTime(Duration::from_secs_f64(count))
}

/// That many minutes of platform-api's.
pub fn minutes(count: u64) -> PlatformTime {
    PlatformTime(Duration::from_secs(60 * count))
}

impl fmt::Display for PlatformTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s", self.0.as_secs_f64())
    }
}

/// How many seconds pass for platform-api in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u32);

/// A text that is no rate.
#[derive(Debug, thiserror::Error)]
#[error("{given:?} is no rate: a whole number from 1 to {}", Rate::MOST)]
pub struct BadRate {
    given: String,
}

impl Rate {
    /// True time.
    pub const TRUE: Rate = Rate(1);
    /// What scenarios run at unless told otherwise: a poll every second, and the watchdog's 5 s time-out in
    /// 167 ms. The fastest of those that `ci/calibrate` tried at which fifty rounds of ten watchdog tests, four at
    /// once on two cores, all passed: at ×45 a poll came too late in the thirtieth, at ×60 in the third.
    pub const FAST: Rate = Rate(30);
    /// Beyond this the library's own cost shows.
    const MOST: u32 = 1000;

    /// The rate of `WOPR_CLOCK_RATE`, else [`Rate::FAST`].
    ///
    /// # Errors
    /// [`BadRate`].
    pub fn from_environment() -> Result<Self, BadRate> {
        match std::env::var("WOPR_CLOCK_RATE") {
            Ok(text) if !text.is_empty() => text.parse(),
            _ => Ok(Self::FAST),
        }
    }

    /// How many seconds pass for platform-api in one.
    pub fn get(self) -> u32 {
        self.0
    }

    /// How long a duration of platform-api's takes.
    pub fn real(self, time: PlatformTime) -> Duration {
        time.0 / self.0
    }

    /// How much passes for platform-api in a duration.
    pub fn platform(self, time: Duration) -> PlatformTime {
        PlatformTime(time * self.0)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "×{}", self.0)
    }
}

impl FromStr for Rate {
    type Err = BadRate;

    fn from_str(text: &str) -> Result<Self, BadRate> {
        match text.trim_start_matches(['x', '×']).parse() {
            Ok(rate @ 1..=Self::MOST) => Ok(Self(rate)),
            _ => Err(BadRate {
                given: text.to_owned(),
            }),
        }
    }
}

/// Writes the rate into the VPS machine's control directory; a process takes it from its next look at the
/// time on, with its own start as zero.
pub(crate) fn write(control: &Path, rate: Rate) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = control.join(CLOCK);
    std::fs::create_dir_all(&directory)?;
    let (partial, path) = (directory.join(".rate"), directory.join(CLOCK_RATE));
    let text = if rate == Rate::TRUE {
        "+0\n".to_owned()
    } else {
        format!("+0 x{}\n", rate.0)
    };
    std::fs::write(&partial, text)?;
    // The container's own user reads it; the directories above are private.
    std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(0o644))?;
    std::fs::rename(&partial, &path)
}

/// platform-api's clock does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// Its answers carry no time.
    #[error(
        "platform-api's answers have no Date, by which its clock could be seen to run as asked; run it at WOPR_CLOCK_RATE=1, which needs no proof: {0}"
    )]
    NoDate(String),
    /// It does not answer.
    #[error("platform-api's clock cannot be seen: {0}")]
    NoAnswer(String),
    /// It runs otherwise.
    #[error(
        "platform-api's clock was to run at {asked}, and {found}: {}",
        if .found.is_true_time() {
            format!(
                "its image {image} does not load libfaketime, as one that is built on musl, statically, or on a C library before 2.34 does not; run it at WOPR_CLOCK_RATE=1, or build it on glibc"
            )
        } else {
            format!("{image} loads libfaketime, and something else changes its time")
        }
    )]
    Wrong {
        /// Its image.
        image: String,
        /// The rate that was asked for.
        asked: Rate,
        /// What was measured.
        found: Paces,
    },
}

/// What two looks at platform-api's clock show. Each look lies somewhere between its request and its answer, so that
/// the time between the two is known to lie between two bounds, however slow the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paces {
    /// Least time that passed between the looks.
    pub least: Duration,
    /// Most.
    pub most: Duration,
    /// The time that passed for platform-api, in whole seconds.
    pub platform: Duration,
}

impl Paces {
    /// Whether they show the rate.
    pub(crate) fn show(self, rate: Rate) -> bool {
        let expected = |real: Duration| real.as_secs_f64() * f64::from(rate.0);
        let found = self.platform.as_secs_f64();
        // A Date has whole seconds: each look may be off by one.
        (0.95 * expected(self.least) - 1.5..=1.05 * expected(self.most) + 1.5).contains(&found)
    }

    fn is_true_time(self) -> bool {
        self.show(Rate::TRUE)
    }
}

impl fmt::Display for Paces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (passed, least, most) = (self.platform.as_secs(), self.least, self.most);
        write!(
            f,
            "{passed} s passed for it in {} to {} ms",
            least.as_millis(),
            most.as_millis()
        )
    }
}

/// An error and what led to it: the first of reqwest's own names the address alone.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// How long platform-api has for an answer to be begun.
const ANSWER: Duration = Duration::from_secs(3);
/// One request of those: it may fall into the moment in which a container gets its network, and is never answered then.
const ATTEMPT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(25);

/// Where platform-api's time is told: in the Date of its answers.
#[derive(Debug, Clone)]
pub(crate) struct Dial {
    http: reqwest::Client,
    url: String,
}

impl Dial {
    pub(crate) fn new(http: reqwest::Client, url: String) -> Self {
        Self { http, url }
    }

    /// Its time, in whole seconds. A request that a busy host loses is sent again.
    pub(crate) async fn time(&self) -> Result<SystemTime, ClockError> {
        let began = Instant::now();
        let answer = loop {
            match self.http.get(&self.url).timeout(ATTEMPT).send().await {
                Ok(answer) => break answer,
                Err(error) if began.elapsed() > ANSWER => return Err(ClockError::NoAnswer(chain(&error))),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        };
        let date = answer
            .headers()
            .get(reqwest::header::DATE)
            .and_then(|date| date.to_str().ok());
        let date = date.ok_or_else(|| ClockError::NoDate(format!("{:?}", answer.headers())))?;
        httpdate::parse_http_date(date).map_err(|error| ClockError::NoDate(format!("{date:?}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poll_takes_a_second_at_the_fast_rate() {
        assert_eq!(Rate::FAST.real(polls(1)), Duration::from_secs(1));
        assert_eq!(Rate::TRUE.real(minutes(10)), Duration::from_secs(600));
    }

    #[test]
    fn a_clock_that_does_not_run_is_noticed() {
        let half = Duration::from_millis(500);
        let after = |seconds| Paces {
            least: half,
            most: half,
            platform: Duration::from_secs(seconds),
        };
        assert!(after(15).show(Rate::FAST));
        let found = after(0);
        assert!(!found.show(Rate::FAST));
        let (image, asked) = ("platform-api:alpine".to_owned(), Rate::FAST);
        let error = ClockError::Wrong { image, asked, found }.to_string();
        assert!(
            error.contains(
                "×30, and 0 s passed for it in 500 to 500 ms: its image platform-api:alpine does not load"
            ),
            "{error}"
        );
    }

    #[test]
    fn a_rate_is_a_whole_number() {
        assert_eq!("x100".parse::<Rate>().unwrap(), Rate(100));
        assert!("0".parse::<Rate>().is_err() && "1.5".parse::<Rate>().is_err());
    }
}
