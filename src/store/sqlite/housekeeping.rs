//! What the writer does between commits: eviction, copying the log into the database, giving space back, and looking after a crash.
//!
//! Invariant: space is given back only when the deletion that freed it is durable, because a power cut would bring the rows back.

use std::ops::Range;

use super::schema::WAL_LIMIT;
use super::segments::{ALIGN, addresses, padded, segment_of};
use super::tables;
use super::writer::Writer;
use crate::base::BlockId;
use crate::store::{CommitSeq, StoreError};

/// Size of the log at which it is copied into the database, in bytes. It bounds how long a commit may wait for that.
const CHECKPOINT_AT: u64 = 32 << 20;

/// Size of the log at which the writer waits for readers so that the log can start again from its beginning, in bytes.
const CHECKPOINT_HARD: u64 = 4 * WAL_LIMIT;

/// Free pages that stay in the file for the next blocks, in bytes.
const FREE_KEPT: u64 = 4 << 20;

/// Free pages given back in one step of housekeeping, in bytes.
const VACUUM_STEP: u64 = 4 << 20;

/// Cached bytes that may stay even when dirty blocks alone exceed the bound, but no more than an eighth of it: what is being read
/// must not be evicted under the reader.
const CACHED_FLOOR: u64 = 64 << 20;

/// Free bytes of the file system below which cached blocks make room for new ones.
const LOW_DISK: u64 = 256 << 20;

/// What the disk is to have left beyond the next commit, in bytes.
const RESERVE: u64 = 1 << 20;

/// Ranges given back in one step of housekeeping: some milliseconds' worth.
const RELEASE_STEP: usize = 512;

/// Bytes to be given back, and bytes not yet durable, that housekeeping takes care of even when it is never quiet.
const RELEASE_AT: u64 = 64 << 20;
pub(super) const SYNC_AT: u64 = 1 << 30;

/// Rows looked at in one step of a search.
const SEARCH_STEP: usize = 4096;

/// What more than its blocks a segment may take on the disk before holes are searched in it, in bytes.
const SLACK: u64 = 1 << 20;

/// Space of deleted blocks in the segments that is to be given back.
#[derive(Debug, Default)]
pub(super) struct Freed {
    /// Ranges of addresses, each within one segment, and the commit that deleted what was there.
    ranges: Vec<(Range<u64>, CommitSeq)>,
    bytes: u64,
    /// The next segment to search for space that an earlier session did not come to give back.
    search: Option<u64>,
}

impl Freed {
    /// What may have been left over is to be searched.
    pub(super) fn search_all(&mut self) {
        self.search = Some(0);
    }

    /// Takes note of blocks, as addresses and lengths, that commit `seq` deleted.
    pub(super) fn add(&mut self, blocks: Vec<(u64, u64)>, seq: CommitSeq) {
        for (at, len) in blocks {
            let range = at..at.saturating_add(padded(len)).min(addresses(segment_of(at)).end);
            self.bytes += range.end - range.start;
            match self.ranges.last_mut() {
                // Files are deleted whole: mostly one block lies after the other.
                Some((last, deleted))
                    if last.end == range.start && segment_of(last.start) == segment_of(at) =>
                {
                    last.end = range.end;
                    *deleted = seq;
                }
                _ => self.ranges.push((range, seq)),
            }
        }
    }

    /// Up to `limit` ranges that were freed by commits up to `synced`.
    fn take(&mut self, synced: CommitSeq, limit: usize) -> Vec<Range<u64>> {
        let ready = self.ranges.partition_point(|(_, seq)| *seq <= synced);
        let taken: Vec<_> = self
            .ranges
            .drain(..ready.min(limit))
            .map(|(range, _)| range)
            .collect();
        self.bytes -= taken.iter().map(|range| range.end - range.start).sum::<u64>();
        taken
    }
}

impl Writer {
    /// Looks for blocks that a power cut took, before this session begins. Commits from the first that lost one are lost as a whole.
    pub(super) fn look_after_crash(&mut self) -> Result<(), StoreError> {
        let sql = |error: rusqlite::Error| self.failure.of(&error);
        let mut first_lost = None;
        let mut from = self.segments.synced();
        loop {
            let extents = tables::extents(&self.conn, from, i64::MAX as u64, SEARCH_STEP).map_err(sql)?;
            let Some(last) = extents.last() else { break };
            from = last.at + 1;
            for extent in &extents {
                let id = BlockId::from_slice(&extent.id);
                let there = id.is_some_and(|id| {
                    self.segments
                        .read(extent.at, extent.len)
                        .is_ok_and(|bytes| id.matches(&bytes))
                });
                if !there && let Some(seq) = tables::commit_of(&self.conn, extent).map_err(sql)? {
                    first_lost = Some(first_lost.map_or(seq, |first: CommitSeq| first.min(seq)));
                    self.lost.extend(id);
                }
            }
        }
        if let Some(first) = first_lost {
            tracing::warn!(
                blocks = self.lost.len(),
                "blocks that were stored last did not reach the disk"
            );
            // Numbers before the last jump were durable when it was made.
            let floor = self.meta.voids.last().map_or(0, |void| void.1);
            self.meta.seq = self.meta.seq.min(first.saturating_sub(1).max(floor));
        }
        self.freed.search_all();
        Ok(())
    }

    /// Whether there is something that cannot wait for a quiet time.
    pub(super) fn must_keep_house(&self) -> bool {
        (self.log_bytes > 0 && self.log_bytes >= CHECKPOINT_AT.min(self.log_limit()))
            || self.freed.bytes >= RELEASE_AT
    }

    /// What cannot wait for a quiet time.
    pub(super) fn keep_house(&mut self) {
        if self.log_bytes > 0 && self.log_bytes >= self.log_limit() {
            self.checkpoint_or_warn();
        }
        if self.freed.bytes >= RELEASE_AT {
            self.release(RELEASE_STEP);
        }
        if self.segments.end() - self.segments.synced() >= SYNC_AT
            && let Err(error) = self.sync()
        {
            tracing::warn!(%error, "the store could not be synced");
        }
    }

    /// Evicts until `incoming` more bytes stay within the bound and, as far as cached blocks can help, on the disk.
    pub(super) fn make_room(&mut self, incoming: u64) {
        let cached = self.meta.bytes - self.meta.dirty_bytes.min(self.meta.bytes);
        if cached == 0 || self.broken.is_some() {
            return;
        }
        let short = self.over_disk(incoming);
        let excess = self.over_bound(incoming, cached).max(short).min(cached);
        if excess == 0 {
            return;
        }
        let made = self.evict(excess).and_then(|()| {
            if short > 0 {
                self.sync()?;
                self.release(usize::MAX);
            }
            Ok(())
        });
        if let Err(error) = made {
            tracing::warn!(%error, "the store could not evict blocks and is over its bound");
        }
    }

    /// Bytes that must go so that `incoming` more do not exceed `cache_size`.
    fn over_bound(&self, incoming: u64, cached: u64) -> u64 {
        if self.cache_size == 0 {
            return 0;
        }
        let floor = (self.cache_size / 8).min(CACHED_FLOOR);
        let mut over = (self.meta.bytes + incoming).saturating_sub(self.cache_size);
        if over > 0 {
            // What is kept for others is not this device's cache.
            let held = self
                .conn
                .query_row("SELECT bytes FROM held", [], |row| row.get::<_, i64>(0));
            over = over.saturating_sub(held.unwrap_or(0).max(0).unsigned_abs());
        }
        over.min((cached + incoming).saturating_sub(floor))
    }

    /// Bytes that must go so that `incoming` more find room on the disk: in the segments, or in the log and again when that is copied.
    fn over_disk(&self, incoming: u64) -> u64 {
        let available = self.available();
        if incoming == 0 || available > LOW_DISK {
            return 0;
        }
        (self.log_bytes + 2 * incoming + RESERVE).saturating_sub(available)
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
        self.commit(self.next(), false, |change| {
            for id in &touched {
                change.touch(id)?;
            }
            change.evict(bytes).inspect_err(|error| shared.note_damage(error))
        })
    }

    /// Makes everything durable.
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        if self.synced < self.meta.seq || self.segments.synced() < self.segments.end() {
            self.commit(self.next(), true, |_| Ok(()))?;
        }
        Ok(())
    }

    /// Gives back up to `limit` ranges of the segments whose deletion is durable, and whole segments. True when any was there.
    pub(super) fn release(&mut self, limit: usize) -> bool {
        let mut ranges = self.freed.take(self.synced, limit);
        if ranges.is_empty() {
            return false;
        }
        ranges.sort_by_key(|range| range.start);
        for range in &ranges {
            if let Err(error) = self.segments.punch(range.clone()) {
                tracing::warn!(%error, "deleted blocks still take space beside the store");
            }
        }
        let mut segments: Vec<u64> = ranges.iter().map(|range| segment_of(range.start)).collect();
        segments.dedup();
        for segment in segments {
            self.delete_if_empty(segment);
        }
        true
    }

    fn delete_if_empty(&self, segment: u64) {
        let addresses = addresses(segment);
        if addresses.end > self.segments.end() || self.shared.damaged() {
            return;
        }
        let deleted = tables::extents(&self.conn, addresses.start, addresses.end, 1)
            .map_err(|error| self.failure.of(&error))
            .and_then(|left| match left.is_empty() {
                true => self
                    .segments
                    .delete(segment)
                    .map_err(|error| self.failure.io("delete blocks beside it", &error)),
                false => Ok(()),
            });
        if let Err(error) = deleted {
            tracing::warn!(%error, "an empty file beside the store stays");
        }
    }

    /// Searches one segment for space that belongs to no block: a session that died did not give it back. True when all are searched.
    fn search_step(&mut self) -> Result<bool, StoreError> {
        let Some(segment) = self.freed.search else {
            return Ok(true);
        };
        let end = self.segments.end();
        if segment > segment_of(end) || self.shared.damaged() {
            self.freed.search = None;
            return Ok(true);
        }
        self.freed.search = Some(segment + 1);
        let addresses = addresses(segment);
        let sql = |error: rusqlite::Error| self.failure.of(&error);
        let (mut from, mut taken, mut holes) = (addresses.start, 0_u64, Vec::new());
        loop {
            let extents = tables::extents(&self.conn, from, addresses.end, SEARCH_STEP).map_err(sql)?;
            for extent in &extents {
                // What the two rows of a block do not agree on is not judged.
                if extent.at % ALIGN != 0
                    || extent.at < from
                    || tables::commit_of(&self.conn, extent).map_err(sql)?.is_none()
                {
                    tracing::warn!(
                        at = extent.at,
                        "the store's rows disagree on a block; run fsck.dfs"
                    );
                    return Ok(false);
                }
                if from < extent.at {
                    holes.push(from..extent.at);
                }
                from = extent.at.saturating_add(padded(extent.len));
                taken = padded(extent.len).saturating_add(taken);
            }
            if extents.len() < SEARCH_STEP {
                break;
            }
        }
        let last = end.min(addresses.end);
        if from < last {
            holes.push(from..last);
        }
        let failed = |error: std::io::Error| self.failure.io("give back space beside it", &error);
        if taken == 0 && addresses.end <= end {
            self.segments.delete(segment).map_err(failed)?;
        } else if self.segments.disk_bytes(segment).map_err(failed)? > taken.saturating_add(SLACK) {
            holes
                .into_iter()
                .try_for_each(|hole| self.segments.punch(hole))
                .map_err(failed)?;
        }
        Ok(false)
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
    pub(super) fn checkpoint(&mut self, mode: &str) -> Result<(), StoreError> {
        let copied = self
            .conn
            .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
                Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
            })
            .map_err(|error| self.fail(&error))?;
        match copied {
            (log, done) if log == done && log >= 0 => {
                self.log_bytes = 0;
                // The log and the database were synced for it.
                if self.segments.synced() == self.segments.end() {
                    self.synced = self.meta.seq;
                }
            }
            // Readers still use the rest, or another process is at it (then the numbers are negative and say nothing).
            (log, _) => {
                if let Ok(log) = u64::try_from(log) {
                    self.log_bytes = log * self.page_size;
                }
            }
        }
        Ok(())
    }

    /// One small step of what is done in quiet times; true when there is nothing left to do.
    pub(super) fn tidy_step(&mut self) -> Result<bool, StoreError> {
        if self.broken.is_some() || !self.begun {
            return Ok(true);
        }
        if !self.freed.ranges.is_empty() || self.segments.synced() < self.segments.end() {
            self.sync()?;
            if self.release(RELEASE_STEP) {
                return Ok(false);
            }
        }
        let free = self.free_pages()?;
        let kept = FREE_KEPT / self.page_size;
        if free > kept {
            let step = (VACUUM_STEP / self.page_size).min(free - kept);
            self.vacuum(step).map_err(|error| self.failure.of(&error))?;
            self.log_bytes += step * 2 * self.page_size;
            if self.log_bytes >= CHECKPOINT_AT {
                self.checkpoint("PASSIVE")?;
            }
            return Ok(false);
        }
        if self.log_bytes > 0 {
            self.checkpoint("PASSIVE")?;
        }
        self.search_step()
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
}
