//! How much written data may be in memory at once, over all files.
//!
//! Invariant: `used` is the sum of the memory pieces of all open files. Writers wait here, for a bounded time, when it is over the limit.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// The budget.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: Mutex<u64>,
    freed: Condvar,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            used: Mutex::new(0),
            freed: Condvar::new(),
        }
    }

    /// Takes note that a file's memory went from `before` to `after` bytes.
    pub fn changed(&self, before: u64, after: u64) {
        if before == after {
            return;
        }
        let mut used = self.used.lock();
        *used = used.saturating_add(after).saturating_sub(before);
        if after < before {
            self.freed.notify_all();
        }
    }

    /// Whether writers must wait.
    pub fn is_over(&self) -> bool {
        *self.used.lock() > self.limit
    }

    /// Whether so much is used that files should be written back before writers must wait.
    pub fn is_tight(&self) -> bool {
        *self.used.lock() > self.limit / 2
    }

    /// Waits until there is room; false when there was none by `deadline`.
    pub fn wait(&self, deadline: Instant) -> bool {
        let mut used = self.used.lock();
        while *used > self.limit {
            if self.freed.wait_until(&mut used, deadline).timed_out() {
                return *used <= self.limit;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn waits_only_while_it_is_over() {
        let budget = Budget::new(10);
        budget.changed(0, 11);
        assert!(budget.is_over() && !budget.wait(Instant::now() + Duration::from_millis(1)));
        std::thread::scope(|scope| {
            scope.spawn(|| budget.changed(11, 4));
            assert!(budget.wait(Instant::now() + Duration::from_secs(30)));
        });
        assert!(!budget.is_over());
    }
}
