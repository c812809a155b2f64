//! Sealing on all cores: threads of its own, each with a sealer that keeps its memory (touching new memory is slow on virtual machines).
//!
//! Called by `volume`; one pool serves all open files.

use bytes::Bytes;
use parking_lot::Mutex;
use rayon::prelude::{IntoParallelRefIterator, ParallelIterator};

use super::buffers::Buffers;
use super::{EpochKey, SealError, Sealer, plain_hash};
use crate::base::{BlockId, PlainHash};

/// Sealers kept beyond one for each thread: single pieces are sealed on the callers' threads.
const CALLERS: usize = 8;

/// A piece that was sealed, or found to be sealed already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Keyed hash of the plaintext, for the local index.
    pub plain: PlainHash,
    /// The block's id.
    pub id: BlockId,
    /// The block; `None` when the caller knew it already.
    pub block: Option<Bytes>,
}

/// Threads that seal.
pub struct SealPool {
    threads: rayon::ThreadPool,
    level: i32,
    /// Sealers that no thread uses at the moment: one for each thread and `CALLERS` more at most.
    idle: Mutex<Vec<Sealer>>,
    buffers: Buffers,
}

impl std::fmt::Debug for SealPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealPool")
            .field("threads", &self.threads.current_num_threads())
            .field("level", &self.level)
            .finish()
    }
}

impl SealPool {
    /// A pool of `threads` threads (zero: one for each core) that compresses at zstd `level`.
    pub fn new(threads: usize, level: i32) -> Result<Self, SealError> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("dfs-seal-{index}"))
            .build()
            .map_err(|error| SealError::Threads(error.to_string()))?;
        let buffers = Buffers::default();
        let idle = Mutex::new(vec![Sealer::with_buffers(level, buffers.clone())?]);
        Ok(Self {
            threads,
            level,
            idle,
            buffers,
        })
    }

    /// How many threads seal.
    pub fn threads(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// Seals every piece (1 to `CHUNK_MAX` bytes each) and returns the results in the same order. A single piece is sealed on the
    /// thread of the caller.
    ///
    /// `known` is asked once for each piece, on the sealing threads: the id of a block that exists already spares sealing.
    pub fn seal_all<P: AsRef<[u8]> + Sync>(
        &self,
        epoch: u32,
        key: &EpochKey,
        index_key: &[u8; 32],
        pieces: &[P],
        known: &(dyn Fn(&PlainHash) -> Option<BlockId> + Sync),
    ) -> Vec<Result<Sealed, SealError>> {
        let seal = |piece: &P| self.seal_one(epoch, key, index_key, piece.as_ref(), known);
        if pieces.len() == 1 {
            return pieces.iter().map(seal).collect();
        }
        self.threads.install(|| pieces.par_iter().map(seal).collect())
    }

    fn seal_one(
        &self,
        epoch: u32,
        key: &EpochKey,
        index_key: &[u8; 32],
        piece: &[u8],
        known: &(dyn Fn(&PlainHash) -> Option<BlockId> + Sync),
    ) -> Result<Sealed, SealError> {
        let plain = plain_hash(index_key, piece);
        if let Some(id) = known(&plain) {
            return Ok(Sealed {
                plain,
                id,
                block: None,
            });
        }
        let idle = self.idle.lock().pop();
        let mut sealer = match idle {
            Some(sealer) => sealer,
            None => Sealer::with_buffers(self.level, self.buffers.clone())?,
        };
        let sealed = sealer.seal(epoch, key, piece);
        let mut idle = self.idle.lock();
        if idle.len() < self.threads() + CALLERS {
            idle.push(sealer);
        }
        drop(idle);
        sealed.map(|(id, block)| Sealed {
            plain,
            id,
            block: Some(block),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn seals_in_order_as_one_sealer_would_and_spares_what_is_known() {
        let pool = SealPool::new(3, 1).unwrap();
        let (key, index_key) = (EpochKey::derive(&[1; 32]), [2; 32]);
        let pieces: Vec<Vec<u8>> = (1..40_u8).map(|n| vec![n; usize::from(n) * 100]).collect();
        let spared = plain_hash(&index_key, &pieces[7]);
        let asked = AtomicUsize::new(0);
        let known = |hash: &PlainHash| {
            asked.fetch_add(1, Ordering::Relaxed);
            (*hash == spared).then_some(BlockId([7; 32]))
        };
        let sealed = pool.seal_all(4, &key, &index_key, &pieces, &known);
        assert_eq!(asked.load(Ordering::Relaxed), pieces.len());
        let mut sealer = Sealer::new(1).unwrap();
        for (at, (sealed, piece)) in sealed.into_iter().zip(&pieces).enumerate() {
            let sealed = sealed.unwrap();
            assert_eq!(sealed.plain, plain_hash(&index_key, piece));
            if at == 7 {
                assert_eq!((sealed.id, sealed.block), (BlockId([7; 32]), None));
            } else {
                let (id, block) = sealer.seal(4, &key, piece).unwrap();
                assert_eq!((sealed.id, sealed.block), (id, Some(block)));
            }
        }
        assert!(pool.idle.lock().len() <= 3 + CALLERS);
    }

    #[test]
    fn one_bad_piece_fails_alone() {
        let pool = SealPool::new(2, 1).unwrap();
        let key = EpochKey::derive(&[1; 32]);
        let sealed = pool.seal_all(1, &key, &[2; 32], &[&b"a"[..], b"", b"c"], &|_| None);
        assert!(sealed[0].is_ok() && sealed[2].is_ok());
        assert!(matches!(sealed[1], Err(SealError::Length(0))));
        assert!(
            pool.seal_all(1, &key, &[2; 32], &[] as &[&[u8]], &|_| None)
                .is_empty()
        );
    }
}
