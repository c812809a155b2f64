//! The one thread that writes: takes what waits in its channel, commits it together, answers, and keeps house between commits.
//!
//! Invariant: a number is handed out only after its commit, and no number at all before the start of this session is durable.
//! Owned by [`SqliteStore`](super::SqliteStore), which talks to it through [`Job`]s.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rusqlite::{Connection, TransactionBehavior};

use super::failure::{self, Failure};
use super::meta::{JUMP, Meta};
use super::schema::{PAGE_SIZE, WAL_LIMIT};
use super::{Shared, tables};
use crate::base::BlockId;
use crate::store::{CommitSeq, Put, StoreError};

/// Most jobs that one commit takes.
const GROUP_JOBS: usize = 256;

/// Bytes of blocks after which a commit takes no further job.
const GROUP_BYTES: usize = 16 << 20;

/// Quiet after which the writer keeps house.
pub(super) const IDLE: Duration = Duration::from_millis(500);

/// Size of the log at which it is copied into the database, in bytes. It bounds how long a commit may wait for that.
const CHECKPOINT_AT: u64 = 32 << 20;

/// Size of the log at which the writer waits for readers so that the log can start again from its beginning, in bytes.
const CHECKPOINT_HARD: u64 = 4 * WAL_LIMIT;

/// Free pages that stay in the file for the next blocks.
const FREE_PAGES_KEPT: u64 = (4 << 20) / PAGE_SIZE as u64;

/// Free pages given back in one step of housekeeping: 4 MiB.
const VACUUM_STEP: u64 = (4 << 20) / PAGE_SIZE as u64;

/// Cached bytes that may stay even when dirty blocks alone exceed the bound, but no more than an eighth of it: what is being read
/// must not be evicted under the reader.
const CACHED_FLOOR: u64 = 64 << 20;

/// Free bytes of the file system below which cached blocks make room for new ones.
const LOW_DISK: u64 = 256 << 20;

/// What the disk is to have left beyond the next commit, in bytes.
const RESERVE: u64 = 1 << 20;

/// What is to be done.
#[derive(Debug)]
pub(super) enum Task {
    Put(Vec<Put>),
    Remove(Vec<BlockId>),
    SetDirty(Vec<BlockId>, bool),
    /// Makes durable what was committed before.
    Sync,
    /// Writes down which blocks were read.
    Touch,
    /// Does now all that would be done in quiet times.
    Tidy,
    Close,
}

impl Task {
    fn bytes(&self) -> usize {
        match self {
            Self::Put(batch) => batch.iter().map(|put| put.bytes.len()).sum(),
            _ => 0,
        }
    }
}

/// A task and who waits for it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) task: Task,
    pub(super) reply: Sender<Result<CommitSeq, StoreError>>,
}

/// The writer's own state.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) conn: Connection,
    pub(super) failure: Failure,
    pub(super) shared: Arc<Shared>,
    pub(super) jobs: Receiver<Job>,
    /// State as of the newest commit.
    pub(super) meta: Meta,
    /// Whether this session has begun durably: see [`Writer::begin`].
    pub(super) begun: bool,
    pub(super) cache_size: u64,
    /// Whether the connection is set to sync its commits.
    pub(super) full: bool,
    /// Quiet after which the writer keeps house.
    pub(super) idle: Duration,
    /// Number of the newest commit that is known to be durable.
    pub(super) synced: CommitSeq,
    /// About how many bytes the log holds.
    pub(super) log_bytes: u64,
    /// Set when a sync failed: what the kernel then dropped, no later sync brings back.
    pub(super) broken: Option<StoreError>,
}

impl Writer {
    /// Starts a session: from here on the store counts as unclean, and after an unclean stop numbers go on far ahead.
    /// Durable before it returns, and in the database file itself, so that losing the log does not undo it.
    pub(super) fn begin(&mut self) -> Result<(), StoreError> {
        if self.begun {
            return Ok(());
        }
        let mut next = self.meta.clone();
        if next.clean {
            next.seq += 1;
            next.clean = false;
        } else {
            next.jump();
        }
        self.commit(next, true, |_, _| Ok(()))?;
        self.begun = true;
        if let Err(error) = self.checkpoint("TRUNCATE") {
            tracing::warn!(%error, "the store's log could not be emptied at the start");
        }
        Ok(())
    }

    /// Runs until the store is closed or dropped.
    pub(super) fn run(mut self) {
        let mut quiet = false;
        loop {
            let first = if quiet {
                self.jobs.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                self.jobs.recv_timeout(self.idle)
            };
            match first {
                Ok(Job {
                    task: Task::Close,
                    reply,
                }) => {
                    let _ = reply.send(self.close());
                    return;
                }
                Ok(job) => {
                    quiet = false;
                    if let Some(close) = self.work(job) {
                        let _ = close.send(self.close());
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    quiet = self.tidy_step().unwrap_or_else(|error| {
                        tracing::warn!(%error, "the store could not be tidied");
                        true
                    });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    if let Err(error) = self.close() {
                        tracing::error!(%error, "the store could not be closed; the next start treats it as after a crash");
                    }
                    return;
                }
            }
        }
    }

    /// Commits `first` and what waits behind it. Returns who asked to close, if anyone did.
    fn work(&mut self, first: Job) -> Option<Sender<Result<CommitSeq, StoreError>>> {
        let mut bytes = first.task.bytes();
        let mut group = vec![first];
        let mut close = None;
        while group.len() < GROUP_JOBS && bytes < GROUP_BYTES {
            match self.jobs.try_recv() {
                Ok(Job {
                    task: Task::Close,
                    reply,
                }) => {
                    close = Some(reply);
                    break;
                }
                Ok(job) => {
                    bytes += job.task.bytes();
                    group.push(job);
                }
                Err(_) => break,
            }
        }
        self.make_room(bytes as u64);
        match self.commit_group(&group) {
            Err(error) if group.len() > 1 && self.broken.is_none() => {
                tracing::debug!(%error, "a shared commit failed; its parts are tried one by one");
                for job in &group {
                    let result = self.commit_group(std::slice::from_ref(job));
                    let _ = job.reply.send(result);
                }
            }
            result => {
                for job in &group {
                    let _ = job.reply.send(result.clone());
                }
            }
        }
        self.make_room(0);
        if self.log_bytes > 0 && self.log_bytes >= self.log_limit() {
            self.checkpoint_or_warn();
        }
        close
    }

    /// All or nothing of the group.
    fn commit_group(&mut self, group: &[Job]) -> Result<CommitSeq, StoreError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        self.begin()?;
        let tidy = group.iter().any(|job| matches!(job.task, Task::Tidy));
        let sync = group.iter().any(|job| matches!(job.task, Task::Sync))
            // The jump after an unclean stop must be longer than what a power cut can take.
            || self.meta.seq - self.synced > JUMP / 2;
        let shared = self.shared.clone();
        let touched = if tidy || group.iter().any(|job| matches!(job.task, Task::Touch)) {
            self.shared.take_touched()
        } else {
            Vec::new()
        };
        let must_sync = sync && self.synced < self.meta.seq;
        self.commit(self.next(), sync, |conn, meta| {
            let mut changed = must_sync || !touched.is_empty();
            for job in group {
                match &job.task {
                    Task::Put(batch) => {
                        for put in batch {
                            changed |= tables::put(conn, meta, put)?;
                        }
                    }
                    Task::Remove(ids) => {
                        for id in ids {
                            changed |= tables::remove(conn, meta, id, shared.damaged())?;
                        }
                    }
                    Task::SetDirty(ids, dirty) => {
                        for id in ids {
                            changed |= tables::set_dirty(conn, meta, id, *dirty)?;
                        }
                    }
                    Task::Sync | Task::Touch | Task::Tidy | Task::Close => {}
                }
            }
            for id in &touched {
                tables::touch(conn, meta, id)?;
            }
            if !changed {
                meta.seq -= 1;
            }
            Ok(())
        })?;
        if tidy {
            while !self.tidy_step()? {}
        }
        Ok(self.meta.seq)
    }

    /// The state that the next commit starts from.
    fn next(&self) -> Meta {
        let mut next = self.meta.clone();
        next.seq += 1;
        next
    }

    /// One transaction that ends in the state `next`, durable when `sync`. `change` may alter `next`; leaving the commit number as it is
    /// says that nothing changed.
    fn commit(
        &mut self,
        mut next: Meta,
        sync: bool,
        change: impl FnOnce(&Connection, &mut Meta) -> rusqlite::Result<()>,
    ) -> Result<(), StoreError> {
        let old_bytes = self.meta.bytes;
        let old_seq = self.meta.seq;
        let (conn, full) = (&mut self.conn, &mut self.full);
        let run = || -> rusqlite::Result<bool> {
            if *full != sync {
                conn.pragma_update(None, "synchronous", if sync { "FULL" } else { "NORMAL" })?;
                *full = sync;
            }
            let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            change(&tx, &mut next)?;
            if next.seq == old_seq {
                tx.rollback()?;
                return Ok(false);
            }
            next.save(&tx)?;
            tx.commit()?;
            Ok(true)
        };
        match run() {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                if !self.conn.is_autocommit()
                    && let Err(error) = self.conn.execute_batch("ROLLBACK")
                {
                    tracing::error!(%error, "a failed commit could not be rolled back");
                }
                return Err(self.fail(&error));
            }
        }
        // The new blocks, their share of the trees, and the state row.
        self.log_bytes += next.bytes.saturating_sub(old_bytes) * 9 / 8 + 8 * u64::from(PAGE_SIZE);
        self.meta = next;
        if sync {
            self.synced = self.meta.seq;
        }
        self.shared.publish(&self.meta);
        Ok(())
    }

    /// The store's word for an error; after a failed sync nothing is written any more.
    fn fail(&mut self, error: &rusqlite::Error) -> StoreError {
        let store_error = self.failure.of(error);
        if failure::is_failed_sync(error) {
            self.broken = Some(StoreError::Io(format!(
                "{store_error}; the disk may have lost what it was given: stop dfs, check the disk and start again"
            )));
        }
        store_error
    }

    /// Evicts until `incoming` more bytes stay within the bound and, as far as cached blocks can help, on the disk.
    fn make_room(&mut self, incoming: u64) {
        let cached = self.meta.bytes - self.meta.dirty_bytes.min(self.meta.bytes);
        if cached == 0 || self.broken.is_some() {
            return;
        }
        let excess = self
            .over_bound(incoming, cached)
            .max(self.over_disk(incoming))
            .min(cached);
        if excess == 0 {
            return;
        }
        if let Err(error) = self.evict(excess) {
            tracing::warn!(%error, "the store could not evict blocks and is over its bound");
        }
    }

    /// Bytes that must go so that `incoming` more do not exceed `cache_size`.
    fn over_bound(&self, incoming: u64, cached: u64) -> u64 {
        if self.cache_size == 0 {
            return 0;
        }
        let floor = (self.cache_size / 8).min(CACHED_FLOOR);
        let over = (self.meta.bytes + incoming).saturating_sub(self.cache_size);
        over.min((cached + incoming).saturating_sub(floor))
    }

    /// Bytes that must go so that `incoming` more find room on the disk: in the log, and in free pages when the log is copied.
    fn over_disk(&self, incoming: u64) -> u64 {
        let available = self.available();
        if incoming == 0 || available > LOW_DISK {
            return 0;
        }
        let free = self.free_pages().unwrap_or(0) * u64::from(PAGE_SIZE);
        (self.log_bytes + 3 * incoming + RESERVE).saturating_sub(available + free)
    }

    /// Free bytes of the file system.
    fn available(&self) -> u64 {
        let dir = self
            .failure
            .path()
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty());
        rustix::fs::statvfs(dir.unwrap_or(std::path::Path::new(".")))
            .map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Pages of the database that the next blocks can use.
    fn free_pages(&self) -> Result<u64, StoreError> {
        self.conn
            .query_row("PRAGMA freelist_count", [], |row| row.get::<_, i64>(0))
            .map(|pages| pages as u64)
            .map_err(|error| self.failure.of(&error))
    }

    /// Deletes at least `bytes` of cached blocks, or all.
    fn evict(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.begin()?;
        let touched = self.shared.take_touched();
        let shared = self.shared.clone();
        self.commit(self.next(), false, |conn, meta| {
            for id in &touched {
                tables::touch(conn, meta, id)?;
            }
            tables::evict(conn, meta, bytes, shared.damaged()).inspect_err(|error| shared.note_damage(error))
        })
    }

    /// Size of the log at which it is copied into the database, in bytes: there must always be room for the copy.
    fn log_limit(&self) -> u64 {
        CHECKPOINT_AT.min(self.available() / 2)
    }

    fn checkpoint_or_warn(&mut self) {
        let mode = if self.log_bytes >= CHECKPOINT_HARD {
            "TRUNCATE"
        } else {
            "PASSIVE"
        };
        if let Err(error) = self.checkpoint(mode) {
            // What is in the log is safe there; the next commit tries again.
            tracing::warn!(%error, "the store's log could not be copied into the database");
        }
    }

    /// Copies the log into the database.
    fn checkpoint(&mut self, mode: &str) -> Result<(), StoreError> {
        let copied = self
            .conn
            .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
                Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
            })
            .map_err(|error| self.fail(&error))?;
        match copied {
            (log, done) if log == done && log >= 0 => {
                // Both files were synced for it.
                self.log_bytes = 0;
                self.synced = self.meta.seq;
            }
            // Readers still use the rest, or another process is at it (then the numbers are negative and say nothing).
            (log, _) => {
                if let Ok(log) = u64::try_from(log) {
                    self.log_bytes = log * u64::from(PAGE_SIZE);
                }
            }
        }
        Ok(())
    }

    /// One small step of what is done in quiet times; true when there is nothing left to do.
    fn tidy_step(&mut self) -> Result<bool, StoreError> {
        if self.broken.is_some() || !self.begun {
            return Ok(true);
        }
        let free = self.free_pages()?;
        if free > FREE_PAGES_KEPT {
            let step = VACUUM_STEP.min(free - FREE_PAGES_KEPT);
            self.vacuum(step).map_err(|error| self.failure.of(&error))?;
            self.log_bytes += step * 2 * u64::from(PAGE_SIZE);
            if self.log_bytes >= CHECKPOINT_AT {
                self.checkpoint("PASSIVE")?;
            }
            return Ok(false);
        }
        if self.log_bytes > 0 {
            self.checkpoint("PASSIVE")?;
        }
        Ok(true)
    }

    fn vacuum(&self, pages: u64) -> rusqlite::Result<()> {
        // Each row that the pragma yields is a page given back: it must be stepped to its end.
        let mut statement = self
            .conn
            .prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        Ok(())
    }

    /// Makes everything durable and marks the store as clean.
    fn close(&mut self) -> Result<CommitSeq, StoreError> {
        self.shared.close();
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        if !self.begun {
            return Ok(self.meta.seq);
        }
        let touched = self.shared.take_touched();
        let mut next = self.next();
        next.clean = true;
        self.commit(next, true, |conn, meta| {
            touched.iter().try_for_each(|id| tables::touch(conn, meta, id))
        })?;
        if let Err(error) = self.checkpoint("TRUNCATE") {
            tracing::warn!(%error, "the store's log could not be emptied; the next start does it");
        }
        Ok(self.meta.seq)
    }
}
