//! Reads every block of the store once a month, a few each minute, so that a disk that forgets is noticed while others still have a copy.
//!
//! What is damaged is replaced by what others have; what nobody has is told in the status until it is right again. Called by `run`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::care::mend;
use crate::base::BlockId;
use crate::store::{BlockStore, Number, ReplicaChange, ReplicaStore, SqliteStore, StoreError, Tiered};

/// Between two steps.
const EVERY: Duration = Duration::from_secs(60);

/// Steps in which everything is read once: a month of running time.
const STEPS: u64 = 30 * 24 * 60;

/// Steps after which the place is remembered.
const REMEMBERED: u64 = 60;

/// Damaged blocks that are told at most; there are more problems than these then.
const TOLD_MAX: usize = 1000;

/// Blocks that are damaged and could not be replaced.
pub(super) type Damaged = Arc<Mutex<BTreeSet<BlockId>>>;

/// The thread that reads; ends when dropped.
#[derive(Debug)]
pub(super) struct Scrub {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Scrub {
    /// Starts to read.
    pub(super) fn start(
        store: &Arc<SqliteStore>,
        tiered: &Arc<Tiered>,
        damaged: &Damaged,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let pass = Pass {
            store: Arc::clone(store),
            tiered: Arc::clone(tiered),
            damaged: Arc::clone(damaged),
        };
        let thread = std::thread::Builder::new().name("scrub".into()).spawn(move || {
            let mut at = pass.remembered();
            for step in 1u64.. {
                if stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
                let blocks = pass.store.stats().map_or(0, |stats| stats.blocks);
                at = pass.step(at, blocks.div_ceil(STEPS) as usize);
                if step % REMEMBERED == 0 {
                    pass.remember(at);
                }
            }
        })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Scrub {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

struct Pass {
    store: Arc<SqliteStore>,
    tiered: Arc<Tiered>,
    damaged: Damaged,
}

impl Pass {
    /// Reads the next blocks after one, and says where to go on.
    fn step(&self, after: Option<BlockId>, count: usize) -> Option<BlockId> {
        let Ok(page) = self.store.list(after, count) else {
            return after;
        };
        for (block, _) in &page {
            let is_right = match self.store.get(block) {
                Err(StoreError::Damaged(_)) => mend(&self.store, &self.tiered, *block),
                _ => true,
            };
            let mut damaged = self.damaged.lock();
            if is_right {
                damaged.remove(block);
            } else if damaged.len() < TOLD_MAX && damaged.insert(*block) {
                tracing::error!(%block, "a block in the store is damaged, and no device that can be reached has it");
            }
        }
        // From the beginning again after the last.
        page.last().map(|(block, _)| *block)
    }

    fn remembered(&self) -> Option<BlockId> {
        let number = self
            .store
            .number(Number::Scrub)
            .ok()
            .filter(|number| *number > 0)?;
        let mut id = [0; 32];
        id[..8].copy_from_slice(&number.to_be_bytes());
        Some(BlockId(id))
    }

    fn remember(&self, at: Option<BlockId>) {
        let mut first = [0; 8];
        if let Some(block) = at {
            first.copy_from_slice(&block.0[..8]);
        }
        let change = ReplicaChange::Number(Number::Scrub, u64::from_be_bytes(first));
        if let Err(error) = self.store.apply(&[change], false) {
            tracing::debug!(%error, "the scrub begins where it began before when dfs is started again");
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::{NoFetch, Put, PutKind, StoreOptions};

    #[test]
    fn every_block_has_its_turn_and_the_damaged_one_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.sqlite");
        let store = Arc::new(SqliteStore::open(&path, StoreOptions::default()).unwrap());
        let put = |n: u8| {
            let bytes = Bytes::from(vec![n; 200_000]);
            Put {
                id: BlockId::of(&bytes),
                bytes,
                kind: PutKind::Dirty,
                plain: None,
            }
        };
        store.put((0..20).map(put).collect()).unwrap();
        store.sync().unwrap();
        let blocks = std::fs::read_dir(dir.path().join("store.sqlite-blocks")).unwrap();
        let segment = blocks.map(|entry| entry.unwrap().path()).next().unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(segment).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"bit rot", 250_000).unwrap();
        let dyn_store = Arc::clone(&store) as Arc<dyn BlockStore>;
        let pass = Pass {
            tiered: Tiered::new(dyn_store, Arc::new(NoFetch), Duration::from_millis(10)),
            store,
            damaged: Damaged::default(),
        };
        let mut at = pass.remembered();
        for step in 0..6 {
            at = pass.step(at, 7);
            pass.remember(at);
            if step == 1 {
                // After a restart it goes on near where it was.
                at = pass.remembered();
            }
        }
        assert_eq!(pass.damaged.lock().len(), 1);
        pass.tiered.close();
    }
}
