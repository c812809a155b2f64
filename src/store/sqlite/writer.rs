//! What writes: commits what waits together, answers, and keeps house between commits. Whose turn it is to use it: `turns`.
//!
//! Invariant: a number is handed out only after its commit, and no number at all before the start of this session is durable.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use parking_lot::Mutex;
use rusqlite::{Connection, TransactionBehavior};

use super::Shared;
use super::failure::{self, Failure};
use super::housekeeping::Freed;
use super::log::Log;
use super::meta::{JUMP, Meta};
use super::replica::Batch;
use super::segments::{Appender, Segments};
use super::tables::{self, Change};
use crate::base::{BlockId, work};
use crate::store::{CommitSeq, Put, StoreError};

/// Most jobs that one commit takes.
const GROUP_JOBS: usize = 256;

/// Bytes of blocks after which a commit takes no further job.
const GROUP_BYTES: usize = 16 << 20;

/// Quiet after which the writer keeps house.
pub(super) const IDLE: Duration = Duration::from_millis(500);

/// What is to be done.
#[derive(Debug)]
pub(super) enum Task {
    Put(Vec<Put>),
    Remove(Vec<BlockId>),
    SetDirty(Vec<BlockId>, bool),
    /// Changes what is remembered of replication.
    Replica(Batch),
    /// Makes durable what was committed before.
    Sync,
    /// Writes down which blocks were read.
    Touch,
    /// Does now all that would be done in quiet times.
    Tidy,
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
    /// State as of the newest commit.
    pub(super) meta: Meta,
    /// Whether this session has begun durably: see [`Writer::begin`].
    pub(super) begun: bool,
    pub(super) cache_size: u64,
    /// Whether the connection is set to sync its commits.
    pub(super) full: bool,
    /// Number of the newest commit that is known to be durable.
    pub(super) synced: CommitSeq,
    /// The log, to be synced without a commit; `None`: SQLite syncs it.
    pub(super) log: Option<Log>,
    /// About how many bytes the log holds.
    pub(super) log_bytes: u64,
    /// Page size of the database, in bytes.
    pub(super) page_size: u64,
    /// Set when a sync failed: what the kernel then dropped, no later sync brings back.
    pub(super) broken: Option<StoreError>,
    pub(super) segments: Arc<Segments>,
    /// Space of deleted blocks in the segments that is still to be given back.
    pub(super) freed: Freed,
    /// Blocks of the segments that an unclean stop took, until they are deleted.
    pub(super) lost: Vec<BlockId>,
}

/// What a transaction did beside the tables.
struct Done {
    /// Where the segments end now.
    end: u64,
    /// About how much longer the log is.
    log_bytes: u64,
    /// Address and length of what was deleted in the segments.
    freed: Vec<(u64, u64)>,
}

/// Why a transaction failed.
enum CommitError {
    Sql(rusqlite::Error),
    /// Blocks could not be written to the segments.
    Write(std::io::Error),
    /// The segments could not be synced.
    Sync(std::io::Error),
}

impl From<rusqlite::Error> for CommitError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
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
        let lost = std::mem::take(&mut self.lost);
        let begun = self.commit(next, true, |change| {
            lost.iter().try_for_each(|id| change.forget_lost(id))
        });
        self.lost = lost;
        begun?;
        self.lost.clear();
        self.begun = true;
        if let Err(error) = self.checkpoint("TRUNCATE") {
            tracing::warn!(%error, "the store's log could not be emptied at the start");
        }
        let log = Log::open(self.failure.path()).and_then(|mut log| log.reserve(0).map(|()| log));
        self.log = log
            .inspect_err(|error| tracing::debug!(%error, "SQLite syncs its log by itself"))
            .ok();
        Ok(())
    }

    /// Commits `first` and what waits behind it in `queue`, and answers all.
    pub(super) fn work(&mut self, first: Job, queue: &Mutex<VecDeque<Job>>) {
        let mut bytes = first.task.bytes();
        let mut group = vec![first];
        while group.len() < GROUP_JOBS && bytes < GROUP_BYTES {
            let Some(job) = queue.lock().pop_front() else {
                break;
            };
            bytes += job.task.bytes();
            group.push(job);
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
    }

    /// All or nothing of the group.
    fn commit_group(&mut self, group: &[Job]) -> Result<CommitSeq, StoreError> {
        if self.broken.is_none() && self.segments.has_failed() {
            self.fail_sync(&StoreError::Io(format!(
                "{}: cannot sync the blocks beside it",
                self.failure.path().display()
            )));
        }
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        self.begin()?;
        let tidy = group.iter().any(|job| matches!(job.task, Task::Tidy));
        let sync = group.iter().any(|job| matches!(&job.task, Task::Sync | Task::Replica(Batch { durable: true, .. })))
            // The jump after an unclean stop must be longer than what a power cut can take.
            || self.meta.seq - self.synced > JUMP / 2;
        let touched = if tidy || group.iter().any(|job| matches!(job.task, Task::Touch)) {
            self.shared.take_touched()
        } else {
            Vec::new()
        };
        // The log is synced by itself, unless more than the log is to be made durable.
        let by_log = sync && self.log.is_some() && self.segments.synced() >= self.segments.end();
        if by_log && group.iter().all(|job| matches!(job.task, Task::Sync)) {
            self.sync_log()?;
            return Ok(self.meta.seq);
        }
        let must_sync = sync && !by_log && self.synced < self.meta.seq;
        self.commit(self.next(), sync && !by_log, |change| {
            let mut changed = must_sync || !touched.is_empty();
            for job in group {
                match &job.task {
                    Task::Put(batch) => {
                        for put in batch {
                            changed |= change.put(put)?;
                        }
                    }
                    Task::Remove(ids) => {
                        for id in ids {
                            changed |= change.remove(id)?;
                        }
                    }
                    Task::SetDirty(ids, dirty) => {
                        for id in ids {
                            changed |= change.set_dirty(id, *dirty)?;
                        }
                    }
                    Task::Replica(batch) => changed |= change.replica(batch)?,
                    Task::Sync | Task::Touch | Task::Tidy => {}
                }
            }
            for id in &touched {
                change.touch(id)?;
            }
            if !changed {
                change.meta.seq -= 1;
            }
            Ok(())
        })?;
        if by_log {
            self.sync_log()?;
        }
        if tidy {
            while !self.tidy_step()? {}
        }
        Ok(self.meta.seq)
    }

    /// Makes all commits durable by a sync of the log, or by a commit if that cannot be.
    fn sync_log(&mut self) -> Result<(), StoreError> {
        if self.synced >= self.meta.seq {
            return Ok(());
        }
        let synced = match &mut self.log {
            Some(log) if self.segments.synced() >= self.segments.end() => {
                if let Err(error) = log.reserve(self.log_bytes) {
                    tracing::debug!(%error, "the store's log grows with each sync");
                }
                log.sync()
            }
            _ => return self.sync(),
        };
        if let Err(error) = synced {
            let error = self.failure.io("sync its log", &error);
            return Err(self.fail_sync(&error));
        }
        self.synced = self.meta.seq;
        Ok(())
    }

    /// The state that the next commit starts from.
    pub(super) fn next(&self) -> Meta {
        let mut next = self.meta.clone();
        next.seq += 1;
        next
    }

    /// One transaction that ends in the state `next`, durable when `sync`. `change` may alter the state; leaving the commit number as it
    /// is says that nothing changed.
    pub(super) fn commit(
        &mut self,
        mut next: Meta,
        sync: bool,
        change: impl FnOnce(&mut Change<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), StoreError> {
        let old_seq = self.meta.seq;
        let old_end = self.segments.end();
        let (conn, full, segments) = (&mut self.conn, &mut self.full, &*self.segments);
        let careful = self.shared.damaged();
        let next_state = &mut next;
        let run = move || -> Result<Option<Done>, CommitError> {
            if *full != sync {
                conn.pragma_update(None, "synchronous", if sync { "FULL" } else { "NORMAL" })?;
                *full = sync;
            }
            let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut changes = Change {
                conn: &tx,
                meta: next_state,
                segments,
                appender: Appender::new(old_end),
                freed: Vec::new(),
                in_rows: 0,
                careful,
            };
            change(&mut changes)?;
            let Change {
                meta,
                appender,
                freed,
                in_rows,
                ..
            } = changes;
            if meta.seq == old_seq {
                tx.rollback()?;
                return Ok(None);
            }
            segments.write(appender.blocks()).map_err(CommitError::Write)?;
            // The database must never be durable before what it names.
            if sync {
                segments.sync(appender.end()).map_err(CommitError::Sync)?;
                if segments.synced() < appender.end() {
                    tables::save_tail(&tx, appender.end())?;
                }
            }
            meta.save(&tx)?;
            tx.commit()?;
            Ok(Some(Done {
                end: appender.end(),
                log_bytes: in_rows * 9 / 8 + appender.blocks().len() as u64 * 128,
                freed,
            }))
        };
        let Done {
            end,
            log_bytes,
            freed,
        } = match run() {
            Ok(Some(done)) => done,
            Ok(None) => return Ok(()),
            Err(error) => return Err(self.undo(&error, old_end)),
        };
        work::COMMITS.add(1);
        self.segments.advance(end);
        // The blocks, their share of the trees, and the state row.
        self.log_bytes += log_bytes + 8 * self.page_size;
        self.meta = next;
        if sync {
            self.synced = self.meta.seq;
            self.segments.note_synced(end);
        }
        self.freed.add(freed, self.meta.seq);
        self.shared.publish(&self.meta);
        Ok(())
    }

    /// Undoes what a failed transaction did, and says why it failed.
    fn undo(&mut self, error: &CommitError, old_end: u64) -> StoreError {
        if !self.conn.is_autocommit()
            && let Err(error) = self.conn.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "a failed commit could not be rolled back");
        }
        let error = match error {
            CommitError::Sql(error) => self.fail(error),
            CommitError::Write(error) => self.failure.io("write blocks beside it", error),
            CommitError::Sync(error) => self.fail_sync(&self.failure.io("sync the blocks beside it", error)),
        };
        // After a failed sync nobody knows what is on the disk: the next start looks.
        if self.broken.is_none() {
            self.segments.cut(old_end);
        }
        error
    }

    /// The store's word for an error; after a failed sync nothing is written any more.
    pub(super) fn fail(&mut self, error: &rusqlite::Error) -> StoreError {
        let store_error = self.failure.of(error);
        if failure::is_failed_sync(error) {
            return self.fail_sync(&store_error);
        }
        store_error
    }

    /// From here on nothing is written any more.
    pub(super) fn fail_sync(&mut self, error: &StoreError) -> StoreError {
        let broken = StoreError::Io(format!(
            "{error}; the disk may have lost what it was given: stop dfs, check the disk and start again"
        ));
        self.broken = Some(broken);
        error.clone()
    }

    /// Makes everything durable and marks the store as clean.
    pub(super) fn close(&mut self) -> Result<CommitSeq, StoreError> {
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
        self.commit(next, true, |change| {
            touched.iter().try_for_each(|id| change.touch(id))
        })?;
        self.release(usize::MAX);
        if let Err(error) = self.checkpoint("TRUNCATE") {
            tracing::warn!(%error, "the store's log could not be emptied; the next start does it");
        }
        Ok(self.meta.seq)
    }
}
