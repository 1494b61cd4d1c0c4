//! What containers write.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};

use super::{Engine, EngineError};

/// Whether a log is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// To the end of what is there.
    No,
    /// Until the container ends.
    Yes,
}

/// A line that a container wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When the engine got it, by the engine's clock.
    pub at: SystemTime,
    /// The line, without its end.
    pub text: String,
}

/// Lines that a container wrote, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The lines.
    pub lines: Vec<LogLine>,
    /// Whether there were more lines before these.
    pub is_cut: bool,
}

impl Engine {
    /// The lines that a container writes, from the last `tail` ones on; with [`Follow::Yes`] until it
    /// ends.
    pub fn log_lines(&self, name: &str, tail: usize, follow: Follow) -> impl Stream<Item = String> + use<> {
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .follow(follow == Follow::Yes)
            .tail(&tail.to_string())
            .build();
        let pieces = self.docker().logs(name, Some(options));
        // The engine sends a line as one piece unless it is longer than 16 KiB.
        pieces.filter_map(async |piece| Some(piece.ok()?.to_string().trim_end().to_owned()))
    }

    /// The last lines that a container wrote.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn log_tail(&self, name: &str, lines: usize) -> Result<String, EngineError> {
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .tail(&lines.to_string())
            .build();
        let pieces: Vec<_> = self
            .docker()
            .logs(name, Some(options))
            .try_collect()
            .await
            .map_err(EngineError::call(format!("read the log of {name}")))?;
        Ok(pieces.iter().map(ToString::to_string).collect())
    }

    /// What a container wrote from a time on: its last lines, `most` at most.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn log_since(&self, name: &str, since: SystemTime, most: usize) -> Result<Log, EngineError> {
        let whole_seconds = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .since(i32::try_from(whole_seconds).unwrap_or(i32::MAX))
            // One more than is wanted shows whether there were more.
            .tail(&(most + 1).to_string())
            .build();
        let pieces: Vec<LogOutput> = self
            .docker()
            .logs(name, Some(options))
            .try_collect()
            .await
            .map_err(EngineError::call(format!("read the log of {name}")))?;
        let mut lines = join(pieces);
        lines.retain(|line| line.at >= since);
        Ok(last(lines, most))
    }
}

fn last(mut lines: Vec<LogLine>, most: usize) -> Log {
    let before = lines.len().saturating_sub(most);
    lines.drain(..before);
    Log {
        lines,
        is_cut: before > 0,
    }
}

/// Lines out of the engine's pieces, each of which begins with a stamp. A line of more than 16 KiB comes in
/// several, of which the last ends it, and others may come between them from the other stream.
fn join(pieces: impl IntoIterator<Item = LogOutput>) -> Vec<LogLine> {
    let mut lines: Vec<(LogLine, Vec<u8>)> = Vec::new();
    // By stream: which line goes on with its next piece.
    let mut unended: HashMap<bool, usize> = HashMap::new();
    for piece in pieces {
        let is_error = matches!(piece, LogOutput::StdErr { .. });
        let bytes = piece.into_bytes();
        let Some((at, text)) = stamped(&bytes) else {
            continue;
        };
        let ends = text.ends_with(b"\n");
        let place = unended.remove(&is_error).unwrap_or_else(|| {
            let line = LogLine {
                at,
                text: String::new(),
            };
            lines.push((line, Vec::new()));
            lines.len() - 1
        });
        lines[place].1.extend_from_slice(text);
        if !ends {
            unended.insert(is_error, place);
        }
    }
    let whole = lines.into_iter().map(|(line, bytes)| LogLine {
        text: String::from_utf8_lossy(&bytes)
            .trim_end_matches(['\n', '\r'])
            .to_owned(),
        ..line
    });
    whole.collect()
}

fn stamped(bytes: &[u8]) -> Option<(SystemTime, &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let at = stamp(std::str::from_utf8(&bytes[..space]).ok()?)?;
    Some((at, &bytes[space + 1..]))
}

/// A time as engines write it, as `2026-11-24T01:56:55.123456789Z`.
fn stamp(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(text).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pretty_assertions::assert_eq;

    use super::*;

    fn out(text: &str) -> LogOutput {
        LogOutput::StdOut {
            message: text.to_owned().into(),
        }
    }

    fn err(text: &str) -> LogOutput {
        LogOutput::StdErr {
            message: text.to_owned().into(),
        }
    }

    fn line(micros: u64, text: &str) -> LogLine {
        LogLine {
            at: UNIX_EPOCH + Duration::from_micros(micros),
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_line_is_dated_by_the_engines_stamp() {
        let pieces = [
            out("1970-01-01T00:00:01.000002Z listens on 3100\n"),
            err("1970-01-01T00:00:02Z  indented\r\n"),
        ];
        assert_eq!(
            join(pieces),
            [line(1_000_002, "listens on 3100"), line(2_000_000, " indented")]
        );
    }

    #[test]
    fn the_pieces_of_a_long_line_are_put_together_by_stream() {
        let pieces = [
            out("1970-01-01T00:00:01Z one "),
            err("1970-01-01T00:00:02Z between\n"),
            out("1970-01-01T00:00:03Z line\n"),
            out("1970-01-01T00:00:04Z next\n"),
        ];
        assert_eq!(
            join(pieces),
            [
                line(1_000_000, "one line"),
                line(2_000_000, "between"),
                line(4_000_000, "next")
            ]
        );
    }

    #[test]
    fn what_has_no_stamp_is_passed_over() {
        assert_eq!(join([out("no stamp\n"), out("")]), []);
    }

    #[test]
    fn of_too_many_lines_the_last_are_kept_and_that_is_told() {
        let all: Vec<_> = (0..3).map(|number| line(number, "line")).collect();
        let cut = Log {
            lines: all[1..].to_vec(),
            is_cut: true,
        };
        assert_eq!(last(all.clone(), 2), cut);
        assert!(!last(all, 3).is_cut);
    }
}
