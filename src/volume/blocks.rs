//! Plaintext of blocks, and blocks of plaintext: where the volume's keys, the store and the cores meet.
//!
//! Invariant: plaintext leaves here only after its block passed the check of its id and of its tag. No lock is held while a block is
//! read, fetched, opened or sealed; several readers of one block wait for one opening. Called by `read` and `write_back`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::{Condvar, Mutex, RwLock};

use super::Wait;
use super::error::{BlockError, Result, VolumeError};
use super::retention::Retention;
use super::wishes::Needs;
use crate::base::activity::{self, Refused, Waits};
use crate::base::limits::CHUNK_MAX;
use crate::base::{BlockId, PlainHash, RootId, work};
use crate::keys::VolumeKeys;
use crate::seal::{Chunker, Opener, Piece, SealPool, epoch_of};
use crate::store::{CommitSeq, Put, PutKind, Tiered, Want};

/// Longest first chunk of a long file, in bytes: with what stands around it, it fits what a resting TCP connection sends in two round trips.
const FIRST_MAX: usize = 32 << 10;

/// Opened chunks kept in memory, in bytes.
const PLAIN_CACHE_BYTES: usize = 48 << 20;

/// Openers kept for reuse; more threads than this at once make their own.
const IDLE_OPENERS: usize = 16;

/// Stretches stored in turn before others may collect.
const IN_TURN: usize = 8;

/// zstd level: level 1 costs a quarter less time than 3 for a few percent of size.
const COMPRESSION_LEVEL: i32 = 1;

/// A chunk to be sealed, or a run of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// So many bytes of data.
    Data(usize),
    /// So many zeros.
    Zeros(usize),
}

/// What a stretch of plaintext became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Length of the plaintext, in bytes.
    pub len: usize,
    /// The block; `None` for a hole.
    pub block: Option<BlockId>,
}

/// A stretch on its way into the store: its mark, what it became, and the thread that stores it.
type Storing<'scope, T> = (T, Vec<Stored>, ScopedJoinHandle<'scope, Result<CommitSeq>>);

/// The blocks of one volume.
pub struct Blocks {
    keys: Arc<VolumeKeys>,
    tiered: Arc<Tiered>,
    chunker: Chunker,
    sealers: SealPool,
    openers: Mutex<Vec<Opener>>,
    ahead: rayon::ThreadPool,
    plain: Mutex<PlainCache>,
    opened: Condvar,
    /// Blocks taken up since a collection began; held shared while blocks are stored, exclusively while some are removed.
    watch: RwLock<Option<Mutex<HashSet<BlockId>>>>,
    retention: Option<Arc<dyn Retention>>,
    timeout: Duration,
}

struct PlainCache {
    chunks: LruCache<BlockId, Arc<Vec<u8>>>,
    bytes: usize,
    /// Blocks that a thread is opening, and whether that may take a fetch.
    opening: HashMap<BlockId, Wait>,
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocks").finish_non_exhaustive()
    }
}

impl Blocks {
    /// The blocks of the volume with these keys. `timeout` bounds every wait for a block.
    pub fn new(
        keys: Arc<VolumeKeys>,
        tiered: Arc<Tiered>,
        retention: Option<Arc<dyn Retention>>,
        timeout: Duration,
    ) -> Result<Self> {
        let ahead = rayon::ThreadPoolBuilder::new()
            .thread_name(|index| format!("dfs-open-{index}"))
            .build()
            .map_err(|_| VolumeError::Invalid("threads cannot be started"))?;
        let sealers = SealPool::new(0, COMPRESSION_LEVEL).map_err(VolumeError::seal)?;
        Ok(Self {
            chunker: Chunker::new(keys.chunk_key()),
            keys,
            tiered,
            sealers,
            openers: Mutex::new(Vec::new()),
            ahead,
            plain: Mutex::new(PlainCache {
                chunks: LruCache::unbounded(),
                bytes: 0,
                opening: HashMap::new(),
            }),
            opened: Condvar::new(),
            watch: RwLock::new(None),
            retention,
            timeout,
        })
    }

    /// The volume's keys.
    pub fn keys(&self) -> &Arc<VolumeKeys> {
        &self.keys
    }

    /// Who is told what is needed.
    pub fn retention(&self) -> Option<&dyn Retention> {
        self.retention.as_deref()
    }

    /// Where blocks come from.
    pub fn tiered(&self) -> &Arc<Tiered> {
        &self.tiered
    }

    /// The plaintext of a block, and whether it was opened just now. Kept in memory for the next reader.
    pub fn plaintext(
        &self,
        id: BlockId,
        root: Option<RootId>,
        wait: Wait,
    ) -> std::result::Result<(Arc<Vec<u8>>, bool), BlockError> {
        let deadline = Instant::now() + self.timeout;
        let mut cache = self.plain.lock();
        loop {
            if let Some(chunk) = cache.chunks.get(&id) {
                return Ok((Arc::clone(chunk), false));
            }
            match cache.opening.get(&id) {
                None => break,
                // Another thread is opening it from the local store: sooner done than anything else.
                Some(Wait::Never) => {}
                Some(Wait::Bounded) if wait == Wait::Never => return Err(BlockError::WouldWait),
                Some(Wait::Bounded) => {}
            }
            let _waiting = match cache.opening.get(&id) {
                Some(Wait::Bounded) => {
                    Some(activity::wait(Waits::Network).map_err(|why| not_waited(id, why))?)
                }
                _ => None,
            };
            if self.opened.wait_until(&mut cache, deadline).timed_out() {
                return Err(BlockError::Late(id));
            }
        }
        cache.opening.insert(id, wait);
        drop(cache);
        let outcome = self
            .open_block(
                Want {
                    id,
                    root,
                    ahead: false,
                },
                wait,
            )
            .map(Arc::new);
        let mut cache = self.plain.lock();
        cache.opening.remove(&id);
        if let Ok(chunk) = &outcome {
            cache.keep(id, chunk);
        }
        drop(cache);
        self.opened.notify_all();
        outcome.map(|chunk| (chunk, true))
    }

    /// A block that is read once, past the cache: an index block.
    pub fn read_once(
        &self,
        id: BlockId,
        root: Option<RootId>,
        wait: Wait,
    ) -> std::result::Result<Vec<u8>, BlockError> {
        self.open_block(
            Want {
                id,
                root,
                ahead: false,
            },
            wait,
        )
    }

    /// Starts to fetch blocks that are not here: somebody waits for them, or they are wanted `ahead`.
    pub fn fetch(&self, blocks: impl IntoIterator<Item = BlockId>, root: Option<RootId>, ahead: bool) {
        let want = |id| Want { id, root, ahead };
        let wants: Vec<Want> = blocks.into_iter().map(want).collect();
        self.tiered.prefetch(&wants);
    }

    /// Starts to bring blocks near that will be read soon: those of `open` into memory, where they are in the store; and those of `fetch`
    /// into the store.
    pub fn prefetch(self: &Arc<Self>, open: &[BlockId], fetch: &[BlockId], root: Option<RootId>) {
        self.fetch(fetch.iter().copied(), root, true);
        for id in open {
            let cache = self.plain.lock();
            let known = cache.chunks.contains(id) || cache.opening.contains_key(id);
            drop(cache);
            if !known {
                let (blocks, id) = (Arc::clone(self), *id);
                self.ahead
                    .spawn(move || drop(blocks.plaintext(id, root, Wait::Never)));
            }
        }
    }

    /// Where the plaintext is to be cut, which is that of the file from `offset` on. With `last`, all of it; otherwise as far as the cuts
    /// are certain. A long file begins with a short chunk: whoever only wants to know what it is, or to begin, has
    /// the first bytes soonest.
    pub fn cuts(&self, data: &[u8], offset: u64, last: bool) -> Vec<Cut> {
        let mut cuts = Vec::with_capacity(data.len() / (CHUNK_MAX / 4) + 1);
        let mut at = 0;
        let begins = offset == 0 && data.len() >= CHUNK_MAX;
        while at < data.len() {
            match self.chunker.cut(&data[at..], last) {
                Some(Piece::Data(len)) => {
                    let len = if begins && at == 0 {
                        len.min(FIRST_MAX)
                    } else {
                        len
                    };
                    cuts.push(Cut::Data(len));
                    at += len;
                }
                Some(Piece::Zeros(len)) => {
                    cuts.push(Cut::Zeros(len));
                    at += len;
                }
                None => break,
            }
        }
        cuts
    }

    /// Seals plaintext along its cuts on all cores and stores the blocks, for a file with these needs. They survive the death of the process
    /// when this returns.
    pub fn store(&self, data: &[u8], cuts: &[Cut], needs: Needs) -> Result<(Vec<Stored>, CommitSeq)> {
        let watch = self.watch.read();
        let (stored, batch) = self.seal(data, cuts, watch.as_ref())?;
        let seq = self.put(batch)?;
        self.tell(named(&stored), needs);
        Ok((stored, seq))
    }

    /// Blocks of nodes, to be stored together later. They are not looked for by their plaintext: a change makes nodes that are new.
    pub fn seal_nodes(&self, nodes: &[Vec<u8>]) -> Result<Vec<Put>> {
        let pieces: Vec<&[u8]> = nodes.iter().map(Vec::as_slice).collect();
        let (epoch, key) = self.keys.current();
        let sealed = self
            .sealers
            .seal_all(epoch, key, self.keys.index_key(), &pieces, &|_| None);
        let mut batch = Vec::with_capacity(nodes.len());
        for result in sealed {
            let sealed = result.map_err(VolumeError::seal)?;
            let bytes = sealed
                .block
                .ok_or(VolumeError::Invalid("a node was not sealed"))?;
            work::SEALED.add(1);
            work::SEALED_BYTES.add(bytes.len() as u64);
            batch.push(Put {
                id: sealed.id,
                bytes,
                kind: PutKind::Dirty,
                plain: None,
            });
        }
        Ok(batch)
    }

    /// Stores what was sealed, in one commit.
    pub fn store_sealed(&self, batch: Vec<Put>, needs: Needs) -> Result<()> {
        let watch = self.watch.read();
        let ids: Vec<BlockId> = batch.iter().map(|put| put.id).collect();
        if let Some(taken_up) = watch.as_ref() {
            taken_up.lock().extend(&ids);
        }
        self.put(batch)?;
        self.tell(ids, needs);
        Ok(())
    }

    /// Tells what is going to be named.
    fn tell(&self, ids: Vec<BlockId>, needs: Needs) {
        let Some(retention) = &self.retention else { return };
        if needs == Needs::of_all(&**retention) {
            retention.stored(&ids);
        } else {
            retention.wished(&ids.into_iter().map(|id| (id, needs)).collect::<Vec<_>>());
        }
    }

    /// As [`Blocks::store`] for several stretches: while one is stored the next is sealed. `next` gives plaintext, cuts and a mark, and
    /// must not wait for other computers; `done` is told of each in the same order.
    pub fn store_in_turn<T>(
        &self,
        needs: Needs,
        mut next: impl FnMut() -> Result<Option<(Vec<u8>, Vec<Cut>, T)>>,
        mut done: impl FnMut(T, &[Stored], CommitSeq),
    ) -> Result<()> {
        // Not for longer than some of them take: a collection may be waiting for it, and others for the collection.
        let watch = self.watch.read();
        std::thread::scope(|scope| {
            let mut storing = None;
            let mut finish = |storing: &mut Option<Storing<'_, T>>| {
                let Some((mark, stored, put)) = storing.take() else {
                    return Ok(());
                };
                let seq = put
                    .join()
                    .map_err(|_| VolumeError::Invalid("a thread ended by a fault"))??;
                self.tell(named(&stored), needs);
                done(mark, &stored, seq);
                Ok(())
            };
            for _ in 0..IN_TURN {
                let Some((data, cuts, mark)) = next()? else { break };
                let (stored, batch) = self.seal(&data, &cuts, watch.as_ref())?;
                finish(&mut storing)?;
                storing = Some((mark, stored, scope.spawn(move || self.put(batch))));
            }
            finish(&mut storing)
        })
    }

    fn put(&self, batch: Vec<Put>) -> Result<CommitSeq> {
        let store = self.tiered.store();
        if batch.is_empty() {
            return Ok(store.last_seq());
        }
        store.put(batch).map_err(VolumeError::store)
    }

    /// What each cut becomes, and the blocks that are not in the store yet.
    fn seal(
        &self,
        data: &[u8],
        cuts: &[Cut],
        watch: Option<&Mutex<HashSet<BlockId>>>,
    ) -> Result<(Vec<Stored>, Vec<Put>)> {
        let mut pieces = Vec::with_capacity(cuts.len());
        let mut at = 0;
        for cut in cuts {
            let (Cut::Data(len) | Cut::Zeros(len)) = *cut;
            if matches!(cut, Cut::Data(_)) {
                pieces.push(&data[at..at + len]);
            }
            at += len;
        }
        let (epoch, key) = self.keys.current();
        let known = |plain: &PlainHash| self.known(plain);
        let sealed = self
            .sealers
            .seal_all(epoch, key, self.keys.index_key(), &pieces, &known);
        let mut batch = Vec::new();
        let mut ids = Vec::with_capacity(pieces.len());
        for result in sealed {
            let sealed = result.map_err(VolumeError::seal)?;
            ids.push(sealed.id);
            if let Some(bytes) = sealed.block {
                work::SEALED.add(1);
                work::SEALED_BYTES.add(bytes.len() as u64);
                batch.push(Put {
                    id: sealed.id,
                    bytes,
                    kind: PutKind::Dirty,
                    plain: Some(sealed.plain),
                });
            }
        }
        if let Some(taken_up) = watch {
            taken_up.lock().extend(&ids);
        }
        let mut ids = ids.into_iter();
        let stored = cuts.iter().map(|cut| match *cut {
            Cut::Data(len) => Stored {
                len,
                block: ids.next(),
            },
            Cut::Zeros(len) => Stored { len, block: None },
        });
        Ok((stored.collect(), batch))
    }

    /// From now on, takes note of the blocks that are stored or found to be there already.
    pub fn begin_watch(&self) {
        *self.watch.write() = Some(Mutex::default());
    }

    /// During a collection, takes note of blocks that a `.f` names from now on.
    pub fn take_note(&self, ids: impl FnOnce() -> Vec<BlockId>) {
        if let Some(taken_up) = &*self.watch.read() {
            taken_up.lock().extend(ids());
        }
    }

    /// Ends what `begin_watch` began.
    pub fn end_watch(&self) {
        *self.watch.write() = None;
    }

    /// Takes up blocks for one more file, so that they are neither collected nor evicted. Returns the commit that says so; `None` when
    /// not all of them are on this device.
    pub fn take_up(&self, ids: &[BlockId]) -> Result<Option<CommitSeq>> {
        let watch = self.watch.read();
        let store = self.tiered.store();
        let all_here = || {
            for id in ids {
                if !store.contains(id).map_err(VolumeError::store)? {
                    return Ok(false);
                }
            }
            Ok::<_, VolumeError>(true)
        };
        if !all_here()? {
            return Ok(None);
        }
        if let Some(taken_up) = &*watch {
            taken_up.lock().extend(ids);
        }
        store.set_dirty(ids, true).map_err(VolumeError::store)?;
        if let Some(retention) = &self.retention {
            retention.stored(ids);
        }
        // One may have been evicted just before.
        Ok(all_here()?.then(|| store.last_seq()))
    }

    /// Those that nobody has taken up since `begin_watch`.
    pub fn not_taken_up(&self, mut ids: Vec<BlockId>) -> Vec<BlockId> {
        if let Some(taken_up) = &*self.watch.read() {
            let taken_up = taken_up.lock();
            ids.retain(|id| !taken_up.contains(id));
        }
        ids
    }

    /// Removes those of `unmarked` that nobody has taken up since `begin_watch`. Returns how many.
    pub fn remove_unused(&self, unmarked: &[BlockId]) -> Result<u64> {
        let watch = self.watch.write();
        let Some(taken_up) = &*watch else { return Ok(0) };
        let taken_up = taken_up.lock();
        let unused: Vec<BlockId> = unmarked
            .iter()
            .filter(|id| !taken_up.contains(id))
            .copied()
            .collect();
        if !unused.is_empty() {
            self.tiered.store().remove(&unused).map_err(VolumeError::store)?;
        }
        Ok(unused.len() as u64)
    }

    /// The block that this plaintext is in already. Its bytes are read and checked: the new file will have no other copy of them.
    fn known(&self, plain: &PlainHash) -> Option<BlockId> {
        let store = self.tiered.store();
        let id = store.find_plain(plain).ok().flatten()?;
        let block: Bytes = store.get(&id).ok().flatten()?;
        // A block of an older epoch stays readable to a device that was removed since: new data goes under the new key.
        (epoch_of(&block).ok()? == self.keys.current().0).then_some(id)
    }

    fn open_block(&self, want: Want, wait: Wait) -> std::result::Result<Vec<u8>, BlockError> {
        let block = match wait {
            Wait::Never => self.tiered.get_local(&want.id)?.ok_or(BlockError::WouldWait)?,
            Wait::Bounded => match self.tiered.get_local(&want.id) {
                Ok(Some(block)) => block,
                // What is wrong here is found again, and mended, by asking others.
                Ok(None) | Err(_) => {
                    let waiting = activity::wait(Waits::Network).map_err(|why| not_waited(want.id, why));
                    if matches!(waiting, Err(BlockError::WouldWait)) {
                        // So that it is here when it is looked for again.
                        self.tiered.prefetch(&[want]);
                    }
                    let _waiting = waiting?;
                    self.tiered.get(want)?
                }
            },
        };
        let damaged = |reason: String| BlockError::Damaged { id: want.id, reason };
        let epoch = epoch_of(&block).map_err(|error| damaged(error.to_string()))?;
        let key = self
            .keys
            .epoch(epoch)
            .ok_or(BlockError::NoKey { id: want.id, epoch })?;
        let mut opener = self.openers.lock().pop().unwrap_or_default();
        let mut plain = Vec::new();
        let outcome = opener.open(key, &block, &mut plain);
        let mut idle = self.openers.lock();
        if idle.len() < IDLE_OPENERS {
            idle.push(opener);
        }
        drop(idle);
        outcome.map_err(|error| damaged(error.to_string()))?;
        work::OPENED.add(1);
        work::OPENED_BYTES.add(block.len() as u64);
        Ok(plain)
    }
}

fn named(stored: &[Stored]) -> Vec<BlockId> {
    stored.iter().filter_map(|stored| stored.block).collect()
}

fn not_waited(id: BlockId, why: Refused) -> BlockError {
    match why {
        Refused::Impatient => BlockError::WouldWait,
        Refused::Crowded => BlockError::Crowded(id),
    }
}

impl PlainCache {
    fn keep(&mut self, id: BlockId, chunk: &Arc<Vec<u8>>) {
        self.bytes += chunk.len();
        if let Some(old) = self.chunks.put(id, Arc::clone(chunk)) {
            self.bytes -= old.len();
        }
        while self.bytes > PLAIN_CACHE_BYTES {
            let Some((_, old)) = self.chunks.pop_lru() else {
                break;
            };
            self.bytes -= old.len();
        }
    }
}
