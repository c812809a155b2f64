//! The members that can be asked, and whether each said what it offers since it was met.
//!
//! Invariant: the node's thread changes it before anybody hears of the change.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::base::DeviceId;

/// How long a member that was just met is waited for to say what it offers.
const GREETING: Duration = Duration::from_secs(5);

/// The members that can be asked, with the time since when it is waited for what they offer.
#[derive(Default)]
pub(super) struct Met(Mutex<HashMap<DeviceId, Option<Instant>>>);

impl Met {
    /// A member can be asked from now on, or no longer.
    pub(super) fn set(&self, device: DeviceId, reachable: bool) {
        let mut all = self.0.lock();
        let _ = match reachable {
            true => all.insert(device, Some(Instant::now())),
            false => all.remove(&device),
        };
    }

    /// A member said what it offers.
    pub(super) fn said(&self, device: &DeviceId) {
        if let Some(since) = self.0.lock().get_mut(device) {
            *since = None;
        }
    }

    /// Whether what somebody offers may still be on its way.
    pub(super) fn is_greeting(&self) -> bool {
        let all = self.0.lock();
        all.values().flatten().any(|since| since.elapsed() < GREETING)
    }

    /// Whether any of these can be asked.
    pub(super) fn any(&self, of: impl IntoIterator<Item = DeviceId>) -> bool {
        let all = self.0.lock();
        of.into_iter().any(|device| all.contains_key(&device))
    }

    /// All that can be asked.
    pub(super) fn all(&self) -> HashSet<DeviceId> {
        self.0.lock().keys().copied().collect()
    }
}
