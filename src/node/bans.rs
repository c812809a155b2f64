//! Who is shut out for a while because it did harm: each time longer, and forgiven again with time. Pure; the clock is passed in.
//!
//! Invariant: at most [`DEVICES_MAX`] devices are remembered, the latest offenders. Used by the node (broken and abusive connections)
//! and by `fetch` (wrong bytes).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::base::DeviceId;

/// Most devices remembered.
const DEVICES_MAX: usize = 4096;
/// Each offence makes the ban so many times longer.
const HARDER: u32 = 4;

/// How long bans are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// The first one.
    pub(super) first: Duration,
    /// The longest one.
    pub(super) longest: Duration,
    /// One offence is forgotten after each such time without another.
    pub(super) forgive: Duration,
}

#[derive(Debug)]
struct Entry {
    strikes: u32,
    /// Until when it is shut out.
    until: Instant,
}

/// The bans.
#[derive(Debug)]
pub(super) struct Bans {
    terms: Terms,
    entries: HashMap<DeviceId, Entry>,
}

impl Bans {
    /// Nobody is shut out.
    pub(super) fn new(terms: Terms) -> Self {
        Self {
            terms,
            entries: HashMap::new(),
        }
    }

    /// The device did harm. Returns how long it is shut out.
    pub(super) fn strike(&mut self, device: DeviceId, now: Instant) -> Duration {
        self.forgive(now);
        if self.entries.len() >= DEVICES_MAX
            && !self.entries.contains_key(&device)
            && let Some(first) = self.entries.iter().min_by_key(|(_, e)| e.until).map(|(d, _)| *d)
        {
            self.entries.remove(&first);
        }
        let entry = self.entries.entry(device).or_insert(Entry {
            strikes: 0,
            until: now,
        });
        let length = self
            .terms
            .first
            .saturating_mul(HARDER.saturating_pow(entry.strikes));
        let length = length.min(self.terms.longest);
        entry.strikes = entry.strikes.saturating_add(1);
        entry.until = entry.until.max(now + length);
        length
    }

    /// For how much longer the device is shut out.
    pub(super) fn left(&self, device: &DeviceId, now: Instant) -> Option<Duration> {
        let left = self.entries.get(device)?.until.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// Whether the device is shut out.
    pub(super) fn is_banned(&self, device: &DeviceId, now: Instant) -> bool {
        self.left(device, now).is_some()
    }

    fn forgive(&mut self, now: Instant) {
        let forgive = self.terms.forgive;
        self.entries.retain(|_, entry| {
            while entry.strikes > 0 && entry.until + forgive <= now {
                entry.strikes -= 1;
                entry.until += forgive;
            }
            entry.strikes > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms {
        first: Duration::from_secs(10),
        longest: Duration::from_secs(3600),
        forgive: Duration::from_secs(7200),
    };

    #[test]
    fn bans_grow_to_a_bound_and_are_forgiven() {
        let (mut bans, mut now) = (Bans::new(TERMS), Instant::now());
        let device = DeviceId([1; 32]);
        let mut lengths = Vec::new();
        for _ in 0..7 {
            assert!(!bans.is_banned(&device, now));
            let length = bans.strike(device, now);
            assert!(bans.is_banned(&device, now + length - Duration::from_secs(1)));
            now += length;
            lengths.push(length.as_secs());
        }
        assert_eq!(lengths, [10, 40, 160, 640, 2560, 3600, 3600]);
        assert!(!bans.is_banned(&DeviceId([2; 32]), now), "others are not");
        // Three quiet terms forgive three of the seven.
        now += TERMS.forgive * 3;
        assert_eq!(bans.strike(device, now).as_secs(), 2560);
        now += TERMS.forgive * 10;
        assert_eq!(bans.strike(device, now).as_secs(), 10, "all is forgiven");
    }

    #[test]
    fn the_latest_offenders_are_remembered() {
        let (mut bans, now) = (Bans::new(TERMS), Instant::now());
        for n in 0..2 * DEVICES_MAX as u64 {
            let mut device = [0; 32];
            device[..8].copy_from_slice(&n.to_le_bytes());
            bans.strike(DeviceId(device), now + Duration::from_millis(n));
        }
        assert_eq!(bans.entries.len(), DEVICES_MAX);
        assert!(!bans.entries.contains_key(&DeviceId([0; 32])));
    }
}
