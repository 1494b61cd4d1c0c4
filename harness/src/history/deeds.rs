//! What the harness itself did.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::{Deed, Event, What};

/// What the harness did, as it notes it down. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deeds(Arc<Mutex<Notes>>);

#[derive(Debug, Default)]
struct Notes {
    since: Option<SystemTime>,
    watched_us: Option<i64>,
    events: Vec<Event>,
}

impl Deeds {
    /// Notes a deed, done now. Words alone are one that the oracle knows nothing of.
    pub(crate) fn note(&self, deed: impl Into<Deed>) {
        let event = Event {
            at_us: now_us(),
            what: What::Deed(deed.into()),
        };
        self.notes().events.push(event);
    }

    /// Keeps events whose own record is about to be lost; those that are kept already are not kept twice.
    pub(crate) fn keep(&self, events: Vec<Event>) {
        let mut notes = self.notes();
        for event in events {
            if !notes.events.contains(&event) {
                notes.events.push(event);
            }
        }
    }

    /// Begins the history here: what services wrote before is of somebody else's lease.
    pub(crate) fn begin(&self) {
        self.notes().since = Some(SystemTime::now());
    }

    /// Where the history begins; none where that is the boot.
    pub(super) fn since(&self) -> Option<SystemTime> {
        self.notes().since
    }

    /// A watch begins now.
    pub(crate) fn watch(&self) {
        self.notes().watched_us.get_or_insert_with(now_us);
    }

    /// When the first watch began, in microseconds since 1970.
    pub(crate) fn watched_us(&self) -> Option<i64> {
        self.notes().watched_us
    }

    pub(crate) fn all(&self) -> Vec<Event> {
        self.notes().events.clone()
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Microseconds since 1970.
pub(crate) fn now_us() -> i64 {
    super::logs::micros(SystemTime::now())
}
