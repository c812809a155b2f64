//! Keeps a program that retries a failing call from filling the log: the same line is written once in a while, with how often it was
//! left out. Called by `errno`.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

/// How long the same line is left out after it was written.
const QUIET: Duration = Duration::from_secs(10);

/// Different lines remembered; with more than these failing at once each is written again.
const LINES: NonZeroUsize = NonZeroUsize::new(512).unwrap();

/// The lines written last.
#[derive(Debug)]
pub(super) struct Repeats(Mutex<LruCache<blake3::Hash, (Instant, u64)>>);

impl Repeats {
    /// Nothing written yet.
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::new(LINES)))
    }

    /// Whether a line is to be written now; if so, how often it was left out since it last was.
    pub(super) fn pass(&self, line: &str, now: Instant) -> Option<u64> {
        let mut lines = self.0.lock();
        let key = blake3::hash(line.as_bytes());
        match lines.get_mut(&key) {
            Some((written, left_out)) if now.saturating_duration_since(*written) < QUIET => {
                *left_out += 1;
                None
            }
            Some(entry) => Some(std::mem::replace(entry, (now, 0)).1),
            None => {
                lines.put(key, (now, 0));
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_line_comes_once_in_a_while_and_says_how_often_it_was_left_out() {
        let (repeats, start) = (Repeats::new(), Instant::now());
        assert_eq!(repeats.pass("a", start), Some(0));
        assert_eq!(repeats.pass("b", start), Some(0));
        for _ in 0..5 {
            assert_eq!(repeats.pass("a", start + QUIET / 2), None);
        }
        assert_eq!(repeats.pass("a", start + QUIET), Some(5));
        assert_eq!(repeats.pass("a", start + QUIET * 3), Some(0));
    }
}
