//! Progress on a terminal: a line for each task with what it is at; plain lines when piped.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use wopr_harness::progress::{Event, Progress};

const TICK: Duration = Duration::from_millis(120);

/// Where the progress of a command goes: standard error, so that output can be piped.
pub(crate) fn progress() -> Progress {
    if !std::io::stderr().is_terminal() {
        return Progress::lines();
    }
    let all = MultiProgress::new();
    let bars: Mutex<HashMap<String, ProgressBar>> = Mutex::default();
    let running = style("{spinner} {prefix} {wide_msg:.dim} {elapsed:>4}");
    Progress::new(move |event| {
        let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Began { task } => {
                let bar = all.add(ProgressBar::new_spinner().with_style(running.clone()));
                bar.set_prefix(task.to_owned());
                bar.enable_steady_tick(TICK);
                bars.insert(task.to_owned(), bar);
            }
            Event::Detail { task, text } | Event::Waits { task, text } => {
                if let Some(bar) = bars.get(task) {
                    bar.set_message(text.to_owned());
                }
            }
            Event::Done { task, took } => {
                if let Some(bar) = bars.remove(task) {
                    bar.set_style(style("✓ {prefix} {msg:.dim}"));
                    bar.finish_with_message(format!("{:.1} s", took.as_secs_f64()));
                }
            }
        }
    })
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
