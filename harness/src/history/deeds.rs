//! What the harness itself did.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Event, What};

/// What the harness did, as it notes it down. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deeds(Arc<Mutex<Vec<Event>>>);

impl Deeds {
    /// Notes a deed, done now.
    pub(crate) fn note(&self, what: impl Into<String>) {
        let event = Event {
            at_us: now_us(),
            what: What::Deed(what.into()),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    pub(super) fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Microseconds since 1970.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
