//! What services wrote, as events.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::timeout;

use super::{Event, What};
use crate::service::Service;
use crate::settings::Secrets;
use crate::topology::Topology;

/// So many lines of one service a history holds: the last ones.
const MOST: usize = 2000;
/// So many bytes of one line.
const LONGEST: usize = 4096;
/// An engine answers within milliseconds; one in a frozen machine never does.
const PATIENCE: Duration = Duration::from_secs(5);

/// What one source has to tell, and what it lacks.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Told {
    pub(super) events: Vec<Event>,
    pub(super) gap: Option<String>,
}

impl Told {
    /// Nothing, for a reason.
    pub(super) fn nothing(gap: String) -> Self {
        Self {
            events: Vec::new(),
            gap: Some(gap),
        }
    }
}

impl Topology {
    /// What a service wrote, from a time on, or else since its machine's container was made, and nothing
    /// from before this lease. The engine's stamps date the lines: its clock is the host's.
    pub(super) async fn log_of(
        &self,
        service: Service,
        since: Option<SystemTime>,
        secrets: &Secrets,
    ) -> Told {
        let machine = self.machine_of(service);
        if machine.is_light() {
            // One process answers for all its services, and writes no line for a request.
            return Told {
                events: Vec::new(),
                gap: None,
            };
        }
        let read = async {
            let boot = machine.state().await?.and_then(|state| state.created);
            let since = since.max(boot).max(self.deeds().since()).unwrap_or(UNIX_EPOCH);
            machine
                .engine()
                .log_since(&service.container(), since, MOST)
                .await
        };
        let log = match timeout(PATIENCE, read).await {
            Ok(Ok(log)) => log,
            Ok(Err(error)) => return Told::nothing(format!("the log of {service}: {error}")),
            Err(_) => {
                let waited = PATIENCE.as_secs();
                return Told::nothing(format!("the log of {service}: no answer within {waited} s"));
            }
        };
        let events = log.lines.into_iter().map(|line| Event {
            at_us: micros(line.at),
            what: What::Log {
                service,
                line: tidy(&line.text, secrets),
            },
        });
        let gap = log
            .is_cut
            .then(|| format!("lines of {service} before its last {MOST}"));
        Told {
            events: events.collect(),
            gap,
        }
    }
}

/// Microseconds since 1970.
pub(super) fn micros(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// A line fit to be shown anywhere: without the codes that colour a terminal or drive it otherwise, without
/// secrets, and of bearable length. In this order, so that no code hides a secret and no cut bares half of one.
fn tidy(line: &str, secrets: &Secrets) -> String {
    let mut line = secrets.mask(&without_codes(line));
    if line.len() > LONGEST {
        let mut end = LONGEST;
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        let more = line.len() - end;
        line.truncate(end);
        line.push_str(&format!("… and {more} bytes"));
    }
    line
}

/// Drops escape sequences; other control characters are shown as Rust writes them.
fn without_codes(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            '\u{1b}' if rest.peek() == Some(&'[') => {
                rest.next();
                // Parameters, and the one character that ends them.
                while rest.next_if(|code| !('@'..='~').contains(code)).is_some() {}
                rest.next();
            }
            '\t' => plain.push(' '),
            control if control.is_control() => plain.extend(control.escape_default()),
            plainly => plain.push(plainly),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    #[test]
    fn colours_are_dropped_and_other_controls_are_shown() {
        assert_eq!(
            without_codes("\u{1b}[32m INFO\u{1b}[0m ok\tthen\u{7}"),
            " INFO ok then\\u{7}"
        );
        assert_eq!(without_codes("cut \u{1b}[3"), "cut ");
        assert_eq!(without_codes("größer → ok"), "größer → ok");
    }

    #[test]
    fn a_long_line_is_cut_and_says_so() {
        let line = tidy(&"ü".repeat(3000), &Secrets::default());
        assert!(
            line.ends_with("ü… and 1904 bytes"),
            "{}",
            &line[line.len() - 40..]
        );
    }

    #[test]
    fn a_secret_in_a_line_is_masked_even_with_a_code_inside() {
        let secrets = Secrets::of(["hunter2"]);
        assert_eq!(tidy("token hun\u{1b}[1mter2", &secrets), "token [secret]");
        let at_the_cut = format!("{}hunter2 and more", "x".repeat(LONGEST - 3));
        assert!(!tidy(&at_the_cut, &secrets).contains("hun"));
    }
}
