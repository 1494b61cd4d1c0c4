//! What the harness is doing, for whoever waits.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A step in the harness's work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A task began.
    Began {
        /// What it does, as "building the machine image".
        task: &'a str,
    },
    /// A task got on.
    Detail {
        /// The task.
        task: &'a str,
        /// How far it is, in a line.
        text: &'a str,
    },
    /// A task waits for something that others have to do.
    Waits {
        /// The task.
        task: &'a str,
        /// For what.
        text: &'a str,
    },
    /// A task ended well. One that fails ends in an error, which says more.
    Done {
        /// The task.
        task: &'a str,
        /// How long it took.
        took: Duration,
    },
}

/// Where events go. Cheap to clone.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(Event<'_>) + Send + Sync>);

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}

impl Progress {
    /// Hands each event to `sink`.
    pub fn new(sink: impl Fn(Event<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sink))
    }

    /// Tells nobody.
    pub fn silent() -> Self {
        Self::new(|_| {})
    }

    /// A line on standard error when a task begins and when it has ended. Past the test harness's
    /// capture, since a first build takes minutes.
    pub fn lines() -> Self {
        Self::new(|event| {
            let line = match event {
                Event::Began { task } => format!("wopr: {task} …\n"),
                Event::Detail { .. } => return,
                Event::Waits { task, text } => format!("wopr: {task}: {text}\n"),
                Event::Done { task, took } => format!("wopr: {task}: {:.1} s\n", took.as_secs_f64()),
            };
            let _ = std::io::stderr().write_all(line.as_bytes());
        })
    }

    /// As [`Progress::lines`], for those tasks alone that take longer than `patience` or wait for others.
    pub fn lines_after(patience: Duration) -> Self {
        Self::new(move |event| {
            let line = match event {
                Event::Done { task, took } if took > patience => {
                    format!("wopr: {task}: {:.1} s\n", took.as_secs_f64())
                }
                Event::Waits { task, text } => format!("wopr: {task}: {text}\n"),
                _ => return,
            };
            let _ = std::io::stderr().write_all(line.as_bytes());
        })
    }

    /// Tells of a task that begins now.
    pub fn begin(&self, task: impl Into<String>) -> Task {
        let task = Task {
            progress: self.clone(),
            name: task.into(),
            began: Instant::now(),
        };
        (self.0)(Event::Began { task: &task.name });
        task
    }
}

/// A task under way.
#[must_use = "a task that nobody ends is shown as running"]
pub struct Task {
    progress: Progress,
    name: String,
    began: Instant,
}

impl Task {
    /// Tells how far it is.
    pub fn detail(&self, text: &str) {
        (self.progress.0)(Event::Detail {
            task: &self.name,
            text,
        });
    }

    /// Tells for what it waits.
    pub fn waits(&self, text: &str) {
        (self.progress.0)(Event::Waits {
            task: &self.name,
            text,
        });
    }

    /// Tells that it ended well.
    pub fn done(self) {
        (self.progress.0)(Event::Done {
            task: &self.name,
            took: self.began.elapsed(),
        });
    }
}
