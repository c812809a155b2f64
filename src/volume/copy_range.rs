//! Copying a range between files of the volume: the copy names the same blocks, and no byte is moved.
//!
//! Invariant: a block that two files name is here and may not be evicted, and no collection that is under way takes it. Blocks that are
//! only elsewhere are left to the caller, who reads and writes instead. Called by `fuse`.

use std::sync::Arc;

use super::attributes::now;
use super::error::{Result, VolumeError};
use super::open_file::OpenFile;
use super::pieces::{Piece, Source};
use super::{Synced, Volume, Wait};
use crate::base::BlockId;
use crate::base::limits::FILE_MAX;
use crate::store::CommitSeq;

impl Volume {
    /// Copies up to `len` bytes from `offset` of one handle's file to `to_offset` of another's, which may be the same; fewer only at the
    /// end of the source. Returns how many.
    ///
    /// # Errors
    /// [`VolumeError::Unsupported`] when some of it is not on this device, [`VolumeError::Invalid`] when the ranges overlap.
    pub fn copy_file_range(&self, from: u64, offset: u64, to: u64, to_offset: u64, len: u64) -> Result<u64> {
        let (source, target) = (self.handles.get(from)?, self.handles.get(to)?);
        if !target.mode.write || target.mode.append {
            return Err(VolumeError::BadHandle);
        }
        if self.budget.is_over() {
            self.make_room(&target.file)?;
        }
        let (pieces, seq) = self.part_of(&source.file, offset, len)?;
        let copied = pieces.iter().map(|piece| piece.len).sum();
        if copied == 0 {
            return Ok(0);
        }
        let end = to_offset
            .checked_add(copied)
            .filter(|end| *end <= FILE_MAX)
            .ok_or(VolumeError::TooLarge)?;
        if Arc::ptr_eq(&source.file, &target.file) && to_offset < offset + copied && offset < end {
            return Err(VolumeError::Invalid("the ranges of a copy overlap"));
        }
        let ids: Vec<BlockId> = pieces
            .iter()
            .filter_map(|piece| match piece.source {
                Source::Block { id, .. } => Some(id),
                _ => None,
            })
            .collect();
        let taken = self.blocks.take_up(&ids)?.ok_or(VolumeError::Unsupported)?;
        self.put_pieces(&target.file, to_offset, &pieces, seq.max(taken))?;
        if target.mode.sync {
            self.sync_for(&target, Synced::All)?;
        }
        Ok(copied)
    }

    /// The pieces of a range, and the commit that they rely on.
    fn part_of(&self, file: &OpenFile, offset: u64, len: u64) -> Result<(Vec<Piece>, CommitSeq)> {
        let end = offset.saturating_add(len);
        loop {
            let state = file.state.lock();
            let end = end.min(state.pieces.size());
            if offset >= end {
                return Ok((Vec::new(), 0));
            }
            let pieces = state.pieces.part(offset..end);
            if !pieces
                .iter()
                .any(|piece| matches!(piece.source, Source::Index { .. }))
            {
                return Ok((pieces, state.seq));
            }
            drop(state);
            self.expand(file, offset..end, Wait::Bounded)?;
        }
    }

    fn put_pieces(&self, file: &Arc<OpenFile>, offset: u64, pieces: &[Piece], seq: CommitSeq) -> Result<()> {
        let end = offset + pieces.iter().map(|piece| piece.len).sum::<u64>();
        let _gate = file.enter(Wait::Bounded)?;
        loop {
            let mut state = file.state.lock();
            let mut touching = state.pieces.touching(offset..end);
            if touching.any(|(_, piece)| matches!(piece.source, Source::Index { .. })) {
                drop(touching);
                drop(state);
                self.expand(file, offset..end, Wait::Bounded)?;
                continue;
            }
            drop(touching);
            let before = state.pieces.in_memory();
            if state.generation > 0 {
                let replaced = end.min(state.pieces.size()).saturating_sub(offset);
                self.freed(replaced);
            }
            state.pieces.put(offset, pieces);
            state.seq = state.seq.max(seq);
            state.changed = true;
            state.mtime = Some(now());
            self.budget.changed(before, state.pieces.in_memory());
            return Ok(());
        }
    }
}
