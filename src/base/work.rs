//! How much work this process has done since it started: counts that only grow, so that a change that makes an operation cost more is
//! seen whatever else the machine is doing.
//!
//! Invariant: each is added to in the one place where that work is done. Called by `store` and `volume`; read for the status.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Statements that SQLite began to run, those that begin and end transactions among them.
pub static STATEMENTS: Counter = Counter::new();
/// Commits of the store.
pub static COMMITS: Counter = Counter::new();
/// Chunks that were sealed into blocks.
pub static SEALED: Counter = Counter::new();
/// Bytes of these blocks.
pub static SEALED_BYTES: Counter = Counter::new();
/// Blocks that were opened into chunks.
pub static OPENED: Counter = Counter::new();
/// Bytes of these blocks.
pub static OPENED_BYTES: Counter = Counter::new();

/// A count that only grows.
#[derive(Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts so many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All counts of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Work {
    /// Statements that SQLite began to run.
    pub statements: u64,
    /// Commits of the store.
    pub commits: u64,
    /// Chunks that were sealed into blocks.
    pub sealed: u64,
    /// Bytes of these blocks.
    pub sealed_bytes: u64,
    /// Blocks that were opened into chunks.
    pub opened: u64,
    /// Bytes of these blocks.
    pub opened_bytes: u64,
}

/// The counts as they are now.
pub fn so_far() -> Work {
    Work {
        statements: STATEMENTS.get(),
        commits: COMMITS.get(),
        sealed: SEALED.get(),
        sealed_bytes: SEALED_BYTES.get(),
        opened: OPENED.get(),
        opened_bytes: OPENED_BYTES.get(),
    }
}
