//! Reading: pieces to bytes, index blocks looked up on the way, and what comes next brought near before it is asked for.
//!
//! Invariant: every byte comes from a hole, from memory, or from a block that passed its checks and has the length that the manifest gives.

use std::ops::Range;
use std::sync::Arc;

use super::beside::Fresh;
use super::error::{BlockError, Result, VolumeError};
use super::open_file::{OpenFile, source_of};
use super::pieces::{Piece, Source};
use super::{Volume, Wait};
use crate::base::limits::INDEX_DEPTH_MAX;
use crate::base::{BlockId, RootId};
use crate::object::index;

/// Chunks opened ahead of a sequential reader: enough to keep the cores busy between two requests.
const OPEN_AHEAD_BYTES: u64 = 4 << 20;

/// The window of blocks fetched ahead of a sequential reader when it begins, and the largest it grows to.
const WINDOW_FIRST: u64 = 1 << 20;
const WINDOW_MAX: u64 = 24 << 20;

/// Bytes that are read in one go before more is brought: one read of a program, which the kernel cuts into several, is no sequence yet, and
/// what is fetched beside the first block would delay it.
const RUN_FIRST: u64 = 128 << 10;

/// How far from the last read a read may begin and still count as sequential: the kernel reads ahead out of order.
const SEEK_TOLERANCE: u64 = 4 << 20;

/// Reads that may be put off at a time.
const AGAIN_MAX: usize = 32;

/// Where a handle has been reading.
#[derive(Debug, Default)]
pub struct ReadAhead {
    next: u64,
    /// Bytes read since the last jump.
    run: u64,
    window: u64,
    /// Up to here everything was asked for already.
    fetched: u64,
    opened: u64,
    /// What was planned at reads that will come again: few, for as many as the kernel has under way.
    again: Vec<(u64, Planned)>,
}

/// What to open and what to fetch; `None` for a reader that is not sequential.
type Planned = Option<(Range<u64>, Range<u64>)>;

impl ReadAhead {
    /// As [`ReadAhead::plan`], or what was put off at this very read.
    pub(super) fn plan_once(&mut self, offset: u64, len: u64) -> Planned {
        match self.again.iter().position(|(at, _)| *at == offset) {
            Some(at) => self.again.swap_remove(at).1,
            None => self.plan(offset, len),
        }
    }

    /// The read at `offset` comes again: what was planned is to be done then.
    pub(super) fn put_off(&mut self, offset: u64, planned: Planned) {
        if self.again.len() >= AGAIN_MAX {
            self.again.clear();
        }
        self.again.push((offset, planned));
    }

    /// Takes note of a read, and says what to open and what to fetch.
    pub(super) fn plan(&mut self, offset: u64, len: u64) -> Planned {
        let end = offset + len;
        // Out of order by much only where the kernel reads ahead by much.
        let tolerance = if self.window == 0 {
            RUN_FIRST
        } else {
            SEEK_TOLERANCE
        };
        let sequential = offset <= self.next + tolerance && offset + tolerance >= self.next;
        if !sequential {
            *self = Self {
                next: end,
                run: len,
                window: 0,
                fetched: end,
                opened: end,
                again: Vec::new(),
            };
            return None;
        }
        self.next = self.next.max(end);
        self.run += len;
        if self.run <= RUN_FIRST {
            return Some((end..end, end..end));
        }
        self.window = (self.window * 2).clamp(WINDOW_FIRST, WINDOW_MAX);
        let open = self.opened.max(end)..(end + OPEN_AHEAD_BYTES.min(self.window)).max(end);
        // In steps of a quarter window, so that not every small read walks the list of pieces.
        let target = end + self.window;
        if target < self.fetched.saturating_add(self.window / 4) && open.is_empty() {
            return Some((end..end, end..end));
        }
        let fetch = self.fetched.max(end)..target;
        self.fetched = self.fetched.max(target);
        self.opened = self.opened.max(open.end);
        Some((open, fetch))
    }
}

impl Volume {
    /// Appends the bytes of `range`, as far as the file goes, to `out`. A chunk that is opened for part of it is left in `fresh`, if that is
    /// wanted. Calls `next` when what it needs from elsewhere was asked for, or when it has read what is here.
    pub(super) fn read_file(
        &self,
        file: &OpenFile,
        range: Range<u64>,
        out: &mut Vec<u8>,
        wait: Wait,
        mut fresh: Option<&mut Option<Fresh>>,
        next: &mut dyn FnMut(),
    ) -> Result<()> {
        let offset = range.start;
        loop {
            let (pieces, root, stamp) = {
                let state = file.state.lock();
                let end = range.end.min(state.pieces.size());
                if offset >= end {
                    return Ok(());
                }
                let pieces: Vec<(u64, Piece, Range<usize>)> = state
                    .pieces
                    .touching(offset..end)
                    .map(|(at, piece)| {
                        let from = offset.saturating_sub(at);
                        let to = (end - at).min(piece.len);
                        (at, piece.clone(), from as usize..to as usize)
                    })
                    .collect();
                (pieces, state.root, state.pieces.stamp())
            };
            if pieces
                .iter()
                .any(|(_, piece, _)| matches!(piece.source, Source::Index { .. }))
            {
                self.expand(file, range.clone(), wait)?;
                continue;
            }
            let waits = wait == Wait::Bounded && self.remote;
            if waits {
                // Some of it is elsewhere: all of that comes at the same time, and before what comes next.
                self.fetch_together(&pieces, root);
                next();
            }
            for (at, piece, part) in &pieces {
                let opened = self.append_part(file.ino, piece, part, root, out, wait)?;
                if let (Some(chunk), Some(fresh), Source::Block { skip, .. }) =
                    (opened, &mut fresh, &piece.source)
                {
                    let skip = *skip as usize;
                    **fresh = Some(Fresh {
                        stamp,
                        offset: *at,
                        chunk,
                        part: skip..skip + piece.len as usize,
                    });
                }
            }
            if !waits {
                next();
            }
            return Ok(());
        }
    }

    fn fetch_together(&self, pieces: &[(u64, Piece, Range<usize>)], root: Option<RootId>) {
        let blocks = pieces.iter().filter_map(|(_, piece, _)| match piece.source {
            Source::Block { id, .. } => Some(id),
            _ => None,
        });
        let mut blocks: Vec<BlockId> = blocks.collect();
        blocks.dedup();
        self.blocks.fetch(blocks, root, false);
    }

    fn append_part(
        &self,
        ino: u64,
        piece: &Piece,
        part: &Range<usize>,
        root: Option<RootId>,
        out: &mut Vec<u8>,
        wait: Wait,
    ) -> Result<Option<Arc<Vec<u8>>>> {
        match &piece.source {
            Source::Hole => out.resize(out.len() + part.len(), 0),
            Source::Memory { bytes, from } => {
                out.extend_from_slice(&bytes[from + part.start..from + part.end])
            }
            Source::Block { id, skip, whole } => {
                let (chunk, fresh) = self.chunk(ino, *id, *whole, root, wait)?;
                let skip = *skip as usize;
                out.extend_from_slice(&chunk[skip + part.start..skip + part.end]);
                return Ok((fresh && (part.len() as u64) < piece.len).then_some(chunk));
            }
            Source::Index { .. } => {
                return Err(VolumeError::Invalid(
                    "an index block has no plaintext of the file",
                ));
            }
        }
        Ok(None)
    }

    /// The plaintext of one chunk, of exactly the length that the manifest gives, and whether it was opened just now.
    pub(super) fn chunk(
        &self,
        ino: u64,
        id: BlockId,
        whole: u32,
        root: Option<RootId>,
        wait: Wait,
    ) -> Result<(Arc<Vec<u8>>, bool)> {
        let path = || self.shown_path(ino);
        let (chunk, fresh) = self
            .blocks
            .plaintext(id, root, wait)
            .map_err(|error| VolumeError::block(path, error))?;
        if chunk.len() == whole as usize {
            return Ok((chunk, fresh));
        }
        let reason = format!("it holds {} bytes where the manifest says {whole}", chunk.len());
        Err(VolumeError::block(path, BlockError::Damaged { id, reason }))
    }

    /// Looks up the index blocks that stand for parts of `range`, down to extents.
    pub(super) fn expand(&self, file: &OpenFile, range: Range<u64>, wait: Wait) -> Result<()> {
        self.expand_where(file, range, 0, wait)
    }

    /// Looks up every index block that lists index blocks, so that only the lowest kind is left.
    pub(super) fn expand_upper(&self, file: &OpenFile) -> Result<()> {
        self.expand_where(file, 0..u64::MAX, 1, Wait::Bounded)
    }

    pub(super) fn expand_where(
        &self,
        file: &OpenFile,
        range: Range<u64>,
        deeper_than: u8,
        wait: Wait,
    ) -> Result<()> {
        let next = || {
            let state = file.state.lock();
            let mut found =
                state
                    .pieces
                    .touching(range.clone())
                    .filter_map(|(at, piece)| match piece.source {
                        Source::Index { id, depth } if depth > deeper_than => {
                            Some((at, piece.len, id, depth))
                        }
                        _ => None,
                    });
            let found = found.next();
            found.map(|piece| (piece, state.root))
        };
        while let Some(((at, len, id, depth), root)) = next() {
            let path = || self.shown_path(file.ino);
            let damaged = |reason: String| VolumeError::block(path, BlockError::Damaged { id, reason });
            if depth > INDEX_DEPTH_MAX {
                return Err(damaged("its index is deeper than any file's".into()));
            }
            let plain = self
                .blocks
                .read_once(id, root, wait)
                .map_err(|error| VolumeError::block(path, error))?;
            let below: Vec<(u64, Source)> = if depth == 1 {
                let extents = index::decode_extents(&plain).map_err(|error| damaged(error.to_string()))?;
                extents
                    .iter()
                    .map(|extent| (extent.len, source_of(extent)))
                    .collect()
            } else {
                let refs = index::decode_refs(&plain).map_err(|error| damaged(error.to_string()))?;
                refs.iter()
                    .map(|entry| {
                        (
                            entry.len,
                            Source::Index {
                                id: entry.id,
                                depth: depth - 1,
                            },
                        )
                    })
                    .collect()
            };
            if below.iter().map(|(len, _)| *len).sum::<u64>() != len {
                return Err(damaged("its index does not cover the file".into()));
            }
            file.state.lock().pieces.expand(at, id, depth, below);
        }
        Ok(())
    }

    /// Brings near what a sequential reader will ask for next.
    pub(super) fn read_ahead(&self, file: &OpenFile, open: &Range<u64>, fetch: &Range<u64>) {
        if open.is_empty() && fetch.is_empty() {
            return;
        }
        let (mut to_open, mut to_fetch) = (Vec::new(), Vec::new());
        let root = {
            let state = file.state.lock();
            for (at, piece) in state
                .pieces
                .touching(open.start.min(fetch.start)..fetch.end.max(open.end))
            {
                match piece.source {
                    Source::Block { id, .. } if at < open.end => to_open.push(id),
                    Source::Block { id, .. } | Source::Index { id, .. } => to_fetch.push(id),
                    _ => {}
                }
            }
            state.root
        };
        // Parts of one block follow each other.
        to_open.dedup();
        to_fetch.dedup();
        if !self.remote {
            to_fetch.clear();
        } else {
            // What is read next comes first.
            to_fetch.splice(0..0, to_open.iter().copied());
        }
        self.blocks.prefetch(&to_open, &to_fetch, root);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_grows_for_a_sequential_reader_and_closes_for_a_random_one() {
        let mut ahead = ReadAhead::default();
        let mut last = 0;
        for step in 0..64u64 {
            if let Some((_, fetch)) = ahead.plan(step << 17, 1 << 17) {
                assert!(fetch.start >= last, "nothing is asked for twice");
                last = fetch.end;
            }
        }
        assert_eq!(last, (64 << 17) + WINDOW_MAX);
        assert!(ahead.plan(1 << 40, 4096).is_none());
        assert!(ahead.plan(1 << 30, 4096).is_none());
        // One read of 64 KiB, as the kernel may pass it on.
        assert!(ahead.plan(1 << 32, 32 << 10).is_none());
        let (open, fetch) = ahead.plan((1 << 32) + (32 << 10), 32 << 10).unwrap();
        assert!(open.is_empty() && fetch.is_empty());
    }
}
