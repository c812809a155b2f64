//! What a read asks for a block: memory, then the store, then [`Fetch`]; the one place where a miss turns into a fetch.
//!
//! Invariant: every block that leaves was checked against its id; however many readers want a block, it is read or fetched once;
//! no call waits longer than the timeout (and [`MARGIN`]). Called by `volume`.

mod admit;
mod flight;
mod memory_cache;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Sender, TrySendError, bounded};
use parking_lot::{Mutex, RwLock};

use self::admit::Admit;
use self::flight::{Flight, Landing};
use self::memory_cache::MemoryCache;
use super::{BlockStore, CheckedBlock, Fetch, FetchError, StoreError, Want};
use crate::base::BlockId;
use crate::base::limits::FETCH_TIMEOUT_SECS;

/// What a read waits beyond the timeout for an answer that comes at the last moment.
pub const MARGIN: Duration = Duration::from_millis(500);

/// Prefetches that may be under way at once, from their start until they are in the store.
pub const PREFETCH_MAX: usize = 64;

/// Why a block cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The copy on this device is damaged, and no other could be had.
    #[error("block {id} is damaged on this device, and no other copy could be had: {source}")]
    Damaged {
        /// The block.
        id: BlockId,
        /// Why no other copy was had, and who was asked.
        source: FetchError,
    },
    /// The copy on this device is damaged, and nobody else was asked.
    #[error("block {0} is damaged on this device")]
    DamagedHere(BlockId),
    /// The block is not here and could not be had from elsewhere.
    #[error(transparent)]
    Unavailable(FetchError),
    /// The store failed, and no other copy could be had.
    #[error("{0}")]
    Store(StoreError),
}

/// How blocks are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TieredOptions {
    /// Longest wait for a block from elsewhere.
    pub timeout: Duration,
    /// Bytes of blocks kept in memory.
    pub memory: usize,
}

impl Default for TieredOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(FETCH_TIMEOUT_SECS),
            memory: 16 << 20,
        }
    }
}

/// What callbacks of fetches reach, also after the [`Tiered`] is gone.
#[derive(Debug)]
struct Shared {
    memory: MemoryCache,
    flights: Mutex<HashMap<BlockId, Arc<Flight>>>,
    prefetching: Arc<AtomicUsize>,
    admit: RwLock<Option<Sender<Admit>>>,
}

/// One of the [`PREFETCH_MAX`] prefetches; given back when dropped.
#[derive(Debug)]
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Lands its flight, also when a fetch forgets to answer.
struct Answer {
    shared: Weak<Shared>,
    flight: Arc<Flight>,
    id: BlockId,
    local: Option<StoreError>,
    slot: Option<Slot>,
}

/// Reads blocks from memory, the store or elsewhere.
pub struct Tiered {
    shared: Arc<Shared>,
    store: Arc<dyn BlockStore>,
    fetch: Arc<dyn Fetch>,
    timeout: Duration,
    admitter: Mutex<Option<JoinHandle<()>>>,
}

/// Its thread ends with it, also where nobody closed it.
impl Drop for Tiered {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Tiered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tiered")
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl Tiered {
    /// Reads through `store` and, on a miss, `fetch`, waiting up to `timeout`; the rest as in [`TieredOptions::default`].
    pub fn new(store: Arc<dyn BlockStore>, fetch: Arc<dyn Fetch>, timeout: Duration) -> Arc<Self> {
        let options = TieredOptions {
            timeout,
            ..TieredOptions::default()
        };
        Self::with_options(store, fetch, options)
    }

    /// As [`Tiered::new`], with all options.
    pub fn with_options(
        store: Arc<dyn BlockStore>,
        fetch: Arc<dyn Fetch>,
        options: TieredOptions,
    ) -> Arc<Self> {
        let (sender, queue) = bounded(admit::QUEUE);
        let shared = Arc::new(Shared {
            memory: MemoryCache::new(options.memory),
            flights: Mutex::new(HashMap::new()),
            prefetching: Arc::new(AtomicUsize::new(0)),
            admit: RwLock::new(Some(sender)),
        });
        let (kept, into) = (shared.clone(), store.clone());
        let admitter = std::thread::Builder::new()
            .name("dfs-admit".into())
            .spawn(move || admit::run(&queue, &kept, &*into))
            .inspect_err(|error| tracing::error!(%error, "fetched blocks will not be kept: no thread for it"))
            .ok();
        Arc::new(Self {
            shared,
            store,
            fetch,
            timeout: options.timeout,
            admitter: Mutex::new(admitter),
        })
    }

    /// The block: from memory or the store, else by a fetch that all who want it share. A damaged block of the store is fetched
    /// and replaced.
    pub fn get(&self, want: Want) -> Result<Bytes, ReadError> {
        let started = Instant::now();
        let fetch_until = started + self.timeout;
        let wait_until = fetch_until + MARGIN;
        loop {
            if let Some(bytes) = self.in_memory(&want.id) {
                return Ok(bytes);
            }
            let (flight, own) = self.shared.join(&want.id);
            if own {
                self.lead(want, &flight, fetch_until, None);
            } else {
                self.hurry(&want, &flight);
            }
            match flight.wait(wait_until) {
                Some(Landing::Block(block)) => {
                    if flight.take_refused() {
                        self.shared.admit_patiently(block.clone(), &flight, fetch_until);
                    }
                    return Ok(block.bytes().clone());
                }
                Some(Landing::Closed) => return Err(ReadError::Store(StoreError::Closed)),
                // Someone else's fetch may have begun long ago and with less time: only an own one is the last word.
                Some(Landing::Missing(..)) if !own && Instant::now() < fetch_until => {
                    self.shared.end(&want.id, &flight);
                }
                Some(Landing::Missing(error, local)) => return Err(read_error(want.id, error, local)),
                None => {
                    self.shared.end(&want.id, &flight);
                    return Err(unavailable(want.id, "no answer in time"));
                }
            }
        }
    }

    /// The block, if it is on this device; never waits for the network.
    pub fn get_local(&self, id: &BlockId) -> Result<Option<Bytes>, ReadError> {
        if let Some(bytes) = self.in_memory(id) {
            return Ok(Some(bytes));
        }
        let flight = self.shared.flights.lock().get(id).cloned();
        if let Some(flight) = flight {
            if let Some(Landing::Block(block)) = flight.landing() {
                return Ok(Some(block.bytes().clone()));
            }
            if flight.is_remote() {
                return Ok(None);
            }
        }
        match self.store.get(id) {
            Ok(Some(bytes)) => {
                let block = CheckedBlock::from_store(*id, bytes.clone());
                self.shared.memory.insert(block);
                Ok(Some(bytes))
            }
            Ok(None) => Ok(None),
            Err(StoreError::Damaged(id)) => Err(ReadError::DamagedHere(id)),
            Err(error) => Err(ReadError::Store(error)),
        }
    }

    /// Starts to fetch what is not here; what is wanted ahead as far as the bound on prefetches allows. What comes goes into the store;
    /// failures are ignored.
    pub fn prefetch(&self, wants: &[Want]) {
        for want in wants {
            if self.shared.memory.get(&want.id).is_some() {
                continue;
            }
            let under_way = self.shared.flights.lock().get(&want.id).cloned();
            if let Some(flight) = under_way {
                self.hurry(want, &flight);
                continue;
            }
            if self.store.contains(&want.id).unwrap_or(true) {
                continue;
            }
            // Who waits for a block takes care of it.
            let slot = match want.ahead {
                true => match self.shared.slot() {
                    Some(slot) => Some(slot),
                    None => return,
                },
                false => None,
            };
            let (flight, own) = self.shared.join(&want.id);
            match own {
                true => self.lead(*want, &flight, Instant::now() + self.timeout, slot),
                false => self.hurry(want, &flight),
            }
        }
    }

    /// A block under way is wanted again: now, unless ahead.
    fn hurry(&self, want: &Want, flight: &Flight) {
        if !want.ahead && flight.hurry() {
            self.fetch.hurry(&want.id);
        }
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn BlockStore> {
        &self.store
    }

    /// Waits until what was fetched is in the store; nothing that is fetched later is kept. Call it before the store is closed.
    pub fn close(&self) {
        *self.shared.admit.write() = None;
        let thread = self.admitter.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that keeps fetched blocks ended by a fault");
        }
    }

    fn in_memory(&self, id: &BlockId) -> Option<Bytes> {
        Some(self.shared.memory.get(id)?.bytes().clone())
    }

    /// Brings a flight on its way: it lands with what the store has, or with what a fetch brings.
    fn lead(&self, want: Want, flight: &Arc<Flight>, deadline: Instant, slot: Option<Slot>) {
        let local = match self.store.get(&want.id) {
            Ok(Some(bytes)) => {
                let block = CheckedBlock::from_store(want.id, bytes);
                self.shared.memory.insert(block.clone());
                flight.land(Landing::Block(block));
                self.shared.end(&want.id, flight);
                return;
            }
            Ok(None) => None,
            Err(StoreError::Closed) => {
                flight.land(Landing::Closed);
                self.shared.end(&want.id, flight);
                return;
            }
            Err(error) => {
                tracing::warn!(block = %want.id, %error, "a block cannot be read from the local store; others are asked for it");
                Some(error)
            }
        };
        let want = Want {
            ahead: flight.go_remote(deadline, want.ahead),
            ..want
        };
        let mut answer = Answer {
            shared: Arc::downgrade(&self.shared),
            flight: flight.clone(),
            id: want.id,
            local,
            slot,
        };
        self.fetch
            .start(want, deadline, Box::new(move |result| answer.take(result)));
    }
}

impl Shared {
    /// The flight of a block, and whether it is new, so that the caller has to lead it.
    fn join(&self, id: &BlockId) -> (Arc<Flight>, bool) {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(id)
            && !flight.is_overdue(Instant::now())
        {
            return (flight.clone(), false);
        }
        let flight = Arc::new(Flight::default());
        flights.insert(*id, flight.clone());
        (flight, true)
    }

    /// Lets the next who wants the block start anew.
    fn end(&self, id: &BlockId, flight: &Arc<Flight>) {
        let mut flights = self.flights.lock();
        if flights
            .get(id)
            .is_some_and(|current| Arc::ptr_eq(current, flight))
        {
            flights.remove(id);
        }
    }

    fn slot(&self) -> Option<Slot> {
        self.prefetching
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n < PREFETCH_MAX).then_some(n + 1)
            })
            .ok()
            .map(|_| Slot(self.prefetching.clone()))
    }

    /// Queues a block for the store, or leaves it to the reader that waits for it. Never waits.
    fn admit(&self, admit: Admit) {
        let refused = match &*self.admit.read() {
            Some(sender) => match sender.try_send(admit) {
                Ok(()) => return,
                Err(TrySendError::Full(admit) | TrySendError::Disconnected(admit)) => admit,
            },
            None => admit,
        };
        refused.flight.refuse();
        self.end(refused.block.id(), &refused.flight);
    }

    /// Waits for room in the store's queue: a reader that is faster than the disk is slowed down to it.
    fn admit_patiently(&self, block: CheckedBlock, flight: &Arc<Flight>, deadline: Instant) {
        let Some(sender) = self.admit.read().clone() else {
            return;
        };
        let admit = Admit {
            block,
            flight: flight.clone(),
            slot: None,
        };
        if let Err(error) = sender.send_deadline(admit, deadline) {
            tracing::debug!(%error, "a fetched block is not kept: the store is behind");
        }
    }
}

impl Answer {
    /// Takes the result of the fetch. Runs on a thread that must not be blocked: no hashing, no disk.
    fn take(&mut self, result: Result<CheckedBlock, FetchError>) {
        let Some(shared) = self.shared.upgrade() else {
            self.flight.land(Landing::Missing(FetchError::Closed, None));
            return;
        };
        match result {
            Ok(block) if *block.id() == self.id => {
                shared.memory.insert(block.clone());
                // Before it lands, so that a waiter sees whether there was room.
                shared.admit(Admit {
                    block: block.clone(),
                    flight: self.flight.clone(),
                    slot: self.slot.take(),
                });
                self.flight.land(Landing::Block(block));
            }
            other => {
                let error = other.err().unwrap_or_else(|| FetchError::Unavailable {
                    id: self.id,
                    asked: "an answer that is another block".into(),
                });
                self.flight.land(Landing::Missing(error, self.local.take()));
                shared.end(&self.id, &self.flight);
            }
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let forgotten = FetchError::Unavailable {
            id: self.id,
            asked: "the fetch was dropped without an answer".into(),
        };
        if self.flight.land(Landing::Missing(forgotten, self.local.take()))
            && let Some(shared) = self.shared.upgrade()
        {
            shared.end(&self.id, &self.flight);
        }
    }
}

fn unavailable(id: BlockId, asked: &str) -> ReadError {
    ReadError::Unavailable(FetchError::Unavailable {
        id,
        asked: asked.into(),
    })
}

fn read_error(id: BlockId, source: FetchError, local: Option<StoreError>) -> ReadError {
    match local {
        Some(StoreError::Damaged(_)) => ReadError::Damaged { id, source },
        Some(error) => ReadError::Store(error),
        None => ReadError::Unavailable(source),
    }
}
