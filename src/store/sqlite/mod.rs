//! Blocks in one SQLite database: the [`BlockStore`] of a device.
//!
//! Invariant: what `put` returned for survives the death of the process, what `sync` returned for survives a power cut, and every
//! block that leaves was checked against its id. The schema and the reasoning about crashes are in `docs/store.md`.
//! Opened by `daemon`; everyone else sees the trait.

mod failure;
mod groups;
mod housekeeping;
mod log;
mod meta;
mod readers;
mod replica;
mod report;
mod schema;
mod segments;
mod tables;
mod turns;
mod writer;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rusqlite::{Connection, OptionalExtension, params};

use self::failure::Failure;
use self::meta::{Meta, Void};
use self::readers::Readers;
use self::segments::Segments;
use self::tables::Place;
use self::turns::Turns;
use self::writer::{Task, Writer};
use super::{BlockStore, CommitSeq, Put, StoreError, StoreStats};
use crate::base::{BlockId, PlainHash, StoreId};

/// No address of the segments is as high as this.
const ADDRESS_MAX: u64 = 1 << 60;

/// Blocks whose last use is remembered until the writer writes it down; beyond this uses are forgotten.
const TOUCHED_MAX: usize = 8192;

/// How a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreOptions {
    /// Bytes that the store may hold before it evicts cached blocks; zero: no bound. Dirty blocks count and stay; when they fill
    /// it, an eighth of it (at most 64 MiB) remains for cached ones, so that what is being read stays until it is read.
    pub cache_size: u64,
}

/// State that readers and the writer share.
#[derive(Debug)]
struct Shared {
    /// The newest commit. Written after `state`, so that who reads it first never finds the state older.
    last: AtomicU64,
    state: RwLock<(StoreStats, Vec<Void>)>,
    touched: Mutex<HashSet<BlockId>>,
    readers: Readers,
    closed: AtomicBool,
    /// Damage was seen since the start: from then on nothing is freed that was not checked.
    damaged: AtomicBool,
    cache_size: u64,
}

impl Shared {
    fn damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    fn note_damage(&self, error: &rusqlite::Error) {
        if failure::is_corrupt(error) {
            self.damaged.store(true, Ordering::Release);
        }
    }

    /// Makes the state after a commit visible.
    fn publish(&self, meta: &Meta) {
        let mut state = self.state.write();
        state.0 = meta.stats(self.cache_size);
        if state.1.len() != meta.voids.len() {
            state.1.clone_from(&meta.voids);
        }
        drop(state);
        self.last.store(meta.seq, Ordering::Release);
    }

    fn take_touched(&self) -> Vec<BlockId> {
        self.touched.lock().drain().collect()
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.readers.close();
    }
}

/// What the database knows of a block.
enum Found {
    Bytes(Bytes),
    /// It is in the segments: its address and length.
    At(u64, u64),
}

/// The blocks of one device in a SQLite database, the larger ones in files beside it.
#[derive(Debug)]
pub struct SqliteStore {
    shared: Arc<Shared>,
    failure: Failure,
    turns: Arc<Turns>,
    housekeeper: Mutex<Option<JoinHandle<()>>>,
    segments: Arc<Segments>,
    store: StoreId,
    unclean: bool,
    _lock: schema::Lock,
}

impl SqliteStore {
    /// Opens the store in the database `path`, which is created, readable by its owner only, when it does not exist.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] when another process has it open, when it is not a store, damaged, or written by a newer dfs;
    /// nothing is changed or deleted then.
    pub fn open(path: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        Self::open_tidying_after(path, options, writer::IDLE)
    }

    /// As [`SqliteStore::open`]; the writer tidies up after `idle` without work.
    fn open_tidying_after(path: &Path, options: StoreOptions, idle: Duration) -> Result<Self, StoreError> {
        let failure = Failure::new(path);
        let lock = schema::lock(&failure)?;
        let (conn, meta) = schema::open_writer(&failure)?;
        let (store, unclean) = (meta.store, !meta.clean);
        let shared = Arc::new(Shared {
            last: AtomicU64::new(0),
            state: RwLock::new((StoreStats::default(), Vec::new())),
            touched: Mutex::new(HashSet::new()),
            readers: Readers::new(failure.clone()),
            closed: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            cache_size: options.cache_size,
        });
        let segments = Arc::new(
            Segments::open(schema::beside(path, "-blocks"))
                .map_err(|error| failure.io("create the directory of its blocks", &error))?,
        );
        let (synced, end) = tables::tail(&conn).map_err(|error| failure.of(&error))?;
        let page_size = schema::page_size(&conn).map_err(|error| failure.of(&error))?;
        if synced.max(end) >= ADDRESS_MAX {
            return Err(failure.unusable("it says that its blocks lie beyond the end of any disk"));
        }
        segments.resume(synced, synced.max(segments::padded(end)));
        let mut writer = Writer {
            conn,
            failure: failure.clone(),
            shared: shared.clone(),
            meta,
            begun: false,
            full: true,
            cache_size: options.cache_size,
            synced: 0,
            log: None,
            log_bytes: 0,
            page_size,
            broken: None,
            segments: segments.clone(),
            freed: housekeeping::Freed::default(),
            lost: Vec::new(),
        };
        if unclean {
            writer.look_after_crash()?;
        }
        writer.shared.publish(&writer.meta);
        match writer.begin() {
            Ok(()) => {}
            // What is here can be read; the first write that finds room begins.
            Err(error @ StoreError::NoSpace(_)) => {
                tracing::warn!(%error, "the store is opened on a full disk")
            }
            Err(error) => return Err(error),
        }
        let turns = Arc::new(Turns::new(writer));
        let house = Arc::clone(&turns);
        let thread = std::thread::Builder::new()
            .name("dfs-store".into())
            .spawn(move || house.keep_house(idle))
            .map_err(|error| failure.io("start its housekeeper", &error))?;
        Ok(Self {
            shared,
            failure,
            turns,
            housekeeper: Mutex::new(Some(thread)),
            segments,
            store,
            unclean,
            _lock: lock,
        })
    }

    /// Whether the store was not closed before it was opened: the process died, or the power was cut.
    pub fn opened_unclean(&self) -> bool {
        self.unclean
    }

    /// Path of the database.
    pub fn path(&self) -> &Path {
        self.failure.path()
    }

    /// Gives deleted space back to the file system and empties the log, which otherwise happens step by step in quiet times.
    pub fn tidy(&self) -> Result<(), StoreError> {
        self.run(Task::Tidy).map(|_| ())
    }

    /// What SQLite's own check of the database's structure finds; empty when it is sound. Blocks are checked when they are read.
    pub fn check(&self) -> Result<Vec<String>, StoreError> {
        self.read(|conn| {
            let mut statement = conn.prepare("PRAGMA quick_check(20)")?;
            let found = statement.query_map([], |row| row.get::<_, String>(0))?;
            Ok(found
                .collect::<rusqlite::Result<Vec<_>>>()?
                .into_iter()
                .filter(|line| line != "ok")
                .collect())
        })
    }

    /// Makes everything durable, marks the store as clean and lets no one use it any more. Dropping the store does the same, but
    /// cannot report an error.
    pub fn close(&self) -> Result<(), StoreError> {
        let closed = self.turns.close().map(|_| ());
        self.join();
        closed
    }

    fn join(&self) {
        let thread = self.housekeeper.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's housekeeper ended by a fault");
        }
    }

    fn run(&self, task: Task) -> Result<CommitSeq, StoreError> {
        self.turns.run(task, None)
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        self.shared
            .readers
            .with(|conn| read(conn).map_err(|error| self.failure.of(&error)))
    }

    /// Where a block is, or the block itself when it is in the database.
    fn find(&self, id: &BlockId) -> Result<Option<Found>, StoreError> {
        self.shared.readers.with(|conn| {
            let found: rusqlite::Result<Option<Result<Found, StoreError>>> = conn
                .prepare_cached(
                    "SELECT place, len, data.bytes FROM block LEFT JOIN data ON data.n = block.place WHERE block.id = ?1",
                )
                .and_then(|mut statement| {
                    statement
                        .query_row([&id.as_bytes()[..]], |row| {
                            if let Place::Segment(at) = Place::from_column(row.get(0)?) {
                                return Ok(Ok(Found::At(at, row.get::<_, i64>(1)? as u64)));
                            }
                            Ok(match row.get_ref(2)?.as_blob() {
                                Ok(bytes) if id.matches(bytes) => Ok(Found::Bytes(Bytes::copy_from_slice(bytes))),
                                _ => Err(StoreError::Damaged(*id)),
                            })
                        })
                        .optional()
                });
            match found {
                Ok(found) => found.transpose(),
                // The database is broken at least here; the block may be had from elsewhere.
                Err(error) if failure::is_corrupt(&error) => {
                    tracing::error!(block = %id, path = %self.failure.path().display(), %error, "the store is damaged");
                    Err(StoreError::Damaged(*id))
                }
                Err(error) => Err(self.failure.of(&error)),
            }
        })
    }

    /// The block from the segments, checked.
    fn get_at(&self, id: &BlockId, at: u64, len: u64) -> Result<Option<Bytes>, StoreError> {
        match self.segments.read(at, len) {
            Ok(bytes) if id.matches(&bytes) => return Ok(Some(bytes)),
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => {
                tracing::error!(block = %id, path = %self.failure.path().display(), %error, "a block cannot be read");
            }
            _ => {}
        }
        // It may have been deleted since its place was looked up, or replaced.
        match self.find(id)? {
            None => Ok(None),
            Some(Found::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Found::At(now, len)) if now != at => match self.segments.read(now, len) {
                Ok(bytes) if id.matches(&bytes) => Ok(Some(bytes)),
                _ => Err(StoreError::Damaged(*id)),
            },
            Some(Found::At(..)) => Err(StoreError::Damaged(*id)),
        }
    }

    /// The writer knows by itself when this failed.
    fn sync_ahead(&self) {
        if let Err(error) = self.segments.sync_ahead() {
            tracing::error!(%error, path = %self.failure.path().display(), "the blocks beside the store cannot be synced");
        }
    }

    /// Remembers that a block was read.
    fn touch(&self, id: &BlockId) {
        if self.shared.cache_size == 0 {
            return;
        }
        let mut touched = self.shared.touched.lock();
        if touched.len() < TOUCHED_MAX {
            touched.insert(*id);
        }
        let full = touched.len() == TOUCHED_MAX;
        drop(touched);
        if full {
            self.turns.leave(Task::Touch);
        }
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        if let Err(error) = self.turns.close() {
            tracing::error!(%error, "the store could not be closed; the next start treats it as after a crash");
        }
        self.join();
    }
}

impl BlockStore for SqliteStore {
    fn get(&self, id: &BlockId) -> Result<Option<Bytes>, StoreError> {
        let found = self.find(id).and_then(|found| match found {
            Some(Found::At(at, len)) => self.get_at(id, at, len),
            Some(Found::Bytes(bytes)) => Ok(Some(bytes)),
            None => Ok(None),
        });
        match &found {
            Ok(Some(_)) => self.touch(id),
            Err(StoreError::Damaged(_)) => self.shared.damaged.store(true, Ordering::Release),
            _ => {}
        }
        found
    }

    fn contains(&self, id: &BlockId) -> Result<bool, StoreError> {
        self.read(|conn| {
            conn.prepare_cached("SELECT 1 FROM block WHERE id = ?1")?
                .exists([&id.as_bytes()[..]])
        })
    }

    fn put(&self, batch: Vec<Put>) -> Result<CommitSeq, StoreError> {
        self.run(Task::Put(batch))
    }

    fn find_plain(&self, hash: &PlainHash) -> Result<Option<BlockId>, StoreError> {
        let found: Option<Vec<u8>> = self.read(|conn| {
            conn.prepare_cached("SELECT id FROM block WHERE plain = ?1")?
                .query_row([&hash.as_bytes()[..]], |row| row.get(0))
                .optional()
        })?;
        Ok(found.and_then(|id| BlockId::from_slice(&id)))
    }

    fn sync(&self) -> Result<CommitSeq, StoreError> {
        self.sync_ahead();
        self.run(Task::Sync)
    }

    fn sync_with(&self, meanwhile: &mut dyn FnMut()) -> Result<CommitSeq, StoreError> {
        self.sync_ahead();
        self.turns.run(Task::Sync, Some(meanwhile))
    }

    fn remove(&self, ids: &[BlockId]) -> Result<(), StoreError> {
        self.run(Task::Remove(ids.to_vec())).map(|_| ())
    }

    fn set_dirty(&self, ids: &[BlockId], dirty: bool) -> Result<(), StoreError> {
        self.run(Task::SetDirty(ids.to_vec(), dirty)).map(|_| ())
    }

    fn list(&self, after: Option<BlockId>, limit: usize) -> Result<Vec<(BlockId, CommitSeq)>, StoreError> {
        let after: &[u8] = after.as_ref().map_or(&[], |id| &id.as_bytes()[..]);
        let rows: Vec<(Vec<u8>, i64)> = self.read(|conn| {
            conn.prepare_cached("SELECT id, seq FROM block WHERE id > ?1 ORDER BY id LIMIT ?2")?
                .query_map(params![after, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?
                .collect()
        })?;
        rows.into_iter()
            .map(|(id, seq)| Some((BlockId::from_slice(&id)?, seq as u64)))
            .collect::<Option<_>>()
            .ok_or_else(|| self.failure.unusable("a block's id has the wrong length"))
    }

    fn id(&self) -> StoreId {
        self.store
    }

    fn last_seq(&self) -> CommitSeq {
        self.shared.last.load(Ordering::Acquire)
    }

    fn may_be_lost(&self, store: &StoreId, seq: CommitSeq) -> bool {
        if *store != self.store || seq == 0 {
            return false;
        }
        let last = self.last_seq();
        meta::is_void(&self.shared.state.read().1, last, seq)
    }

    fn stats(&self) -> Result<StoreStats, StoreError> {
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        Ok(self.shared.state.read().0)
    }
}
