//! What the acceptance tests stand on: real programs run with a bound, volumes in temporary folders, namespaces that play computers.
//!
//! Everything made here is taken away when its value is dropped, also after a failed test. Processes are ended by their own id only.

pub mod calls;
pub mod command;
pub mod disk;
pub mod ledger;
pub mod namespaces;
#[cfg(target_arch = "x86_64")]
pub mod tracer;
pub mod tree;
pub mod volume;
pub mod worker;
pub mod workers;

use std::time::{Duration, Instant};

/// Longest wait for something that ought to happen at once, on a machine that may be busy.
pub const SOON: Duration = Duration::from_secs(30);

/// Asks `done` until it answers yes. Panics with `what` when it has not within `bound`.
#[track_caller]
pub fn wait_for(what: &str, bound: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < bound, "{what}: not within {bound:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Bytes that no compressor makes smaller, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    reader.fill(&mut out);
    out
}

/// Whether this run is `tests/run --long`: full sizes instead of those that fit CI.
pub fn long() -> bool {
    std::env::var("NEXTEST_PROFILE").is_ok_and(|profile| profile == "long")
}

/// The seed of a random test: from `DFS_TEST_SEED`, to repeat a run, or a new one. It is printed.
pub fn seed() -> u64 {
    let given = std::env::var("DFS_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        since.as_nanos() as u64 % 1_000_000_000
    });
    eprintln!("DFS_TEST_SEED={seed}");
    seed
}

/// xorshift64: the same throws for the same seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
