//! Sealing what is in memory: cut by content, a batch at a time, and put in the place of what it was made of.
//!
//! Invariant: blocks take the place of plaintext only while that is what it was when they were made. No lock but the one for write-backs
//! is held meanwhile. Called by `write_back`, `fold` and the background threads.

use std::ops::Range;

use super::blocks::{Cut, Stored};
use super::error::{Result, VolumeError};
use super::open_file::{OpenFile, State};
use super::pieces::{Piece, Pieces, Source};
use super::{Volume, Wait};
use crate::base::limits::{CHUNK_MAX, CHUNK_MIN};
use crate::store::CommitSeq;

/// Plaintext sealed at once: enough chunks for all cores, little against the memory budget.
pub const BATCH: u64 = 4 << 20;

/// A stretch shorter than this is not worth sealing before the file is flushed: it may still change.
pub const STREAM_MIN: u64 = 4 << 20;

/// What to seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spill {
    /// Long stretches, as far as their cuts are certain: the file is still being written.
    Streams,
    /// Everything, as little as possible of it: somebody waits, and will again (see `fold`).
    Quick,
    /// Everything.
    All,
}

/// A stretch about to be sealed.
struct Plan {
    pieces: Vec<Piece>,
    /// Settled blocks behind the stretch, to be taken in when its last chunk would be too short.
    behind: Vec<Piece>,
    /// The stretch goes on behind `pieces`.
    goes_on: bool,
    stamp: u64,
}

impl Volume {
    /// Seals what is in memory without touching the `.f`.
    pub(super) fn spill(&self, file: &OpenFile, what: Spill) -> Result<()> {
        let _one = file.lock_write_back()?;
        self.spill_locked(file, what)
    }

    pub(super) fn spill_locked(&self, file: &OpenFile, what: Spill) -> Result<()> {
        if what == Spill::Quick || (what == Spill::All && self.is_scattered(file)) {
            self.stage(file)?;
        }
        let mut from = 0;
        while let Some(range) = { file.state.lock().pieces.unsettled_after(from) } {
            if what == Spill::Streams && range.end - range.start < STREAM_MIN {
                from = range.end;
                continue;
            }
            let wide = file.state.lock().pieces.with_loose_around(range.clone());
            let streamed = match wide.start == range.start {
                true => self.stream(file, range.start)?,
                false => range.start,
            };
            from = match streamed == range.start {
                true => self.reseal(file, wide, what)?.max(from),
                false => streamed,
            };
        }
        Ok(())
    }

    /// Seals the batches of a long stretch in memory that begins at `start`, all but its last one: the next is sealed while one is stored.
    /// Returns where to go on.
    fn stream(&self, file: &OpenFile, start: u64) -> Result<u64> {
        let mut at = start;
        let mut meanwhile = false;
        let next = || {
            let plan = {
                let state = file.state.lock();
                let range = state.pieces.unsettled_after(at).filter(|range| range.start == at);
                range
                    .and_then(|range| plan(&state, range))
                    .filter(|plan| plan.goes_on)
            };
            let Some(plan) = plan else { return Ok(None) };
            let mut data = Vec::with_capacity(BATCH as usize + CHUNK_MAX);
            for piece in &plan.pieces {
                self.append_plaintext(file, piece, &mut data)?;
            }
            let cuts = self.blocks.cuts(&data, at, false);
            let covered = at..at + cuts.iter().map(|cut| cut_len(*cut) as u64).sum::<u64>();
            let mut state = file.state.lock();
            if covered.is_empty() || !same_since(&state.pieces, &covered, plan.stamp) {
                return Ok(None);
            }
            // The next batch begins with a piece.
            state.pieces.divide(covered.end);
            at = covered.end;
            data.truncate((covered.end - covered.start) as usize);
            Ok(Some((data, cuts, (covered, plan.stamp))))
        };
        let done = |(covered, stamp): (Range<u64>, u64), stored: &[Stored], seq| {
            meanwhile |= !self.settle_range(&mut file.state.lock(), covered, stamp, stored, seq);
        };
        self.blocks.store_in_turn(self.needs_of_open(file), next, done)?;
        Ok(if meanwhile { u64::MAX } else { at })
    }

    /// Seals a stretch, or the beginning of it. Returns where to go on. The lock for write-backs is held.
    pub(super) fn reseal(&self, file: &OpenFile, range: Range<u64>, what: Spill) -> Result<u64> {
        let Some(plan) = plan(&file.state.lock(), range.clone()) else {
            return Ok(range.start);
        };
        let mut data = Vec::new();
        for piece in &plan.pieces {
            self.append_plaintext(file, piece, &mut data)?;
        }
        let cuts = self.cut_plan(file, &plan, &mut data, range.start, what)?;
        let covered: usize = cuts.iter().map(|cut| cut_len(*cut)).sum();
        if covered == 0 {
            return Ok(range.end);
        }
        let (stored, seq) = self
            .blocks
            .store(&data[..covered], &cuts, self.needs_of_open(file))?;
        let covered = range.start..range.start + covered as u64;
        let end = covered.end;
        let settled = self.settle_range(&mut file.state.lock(), covered, plan.stamp, &stored, seq);
        Ok(if settled { end } else { u64::MAX })
    }

    /// Puts blocks in the place of what they were made of. False when that was written to meanwhile: it has another turn, and the blocks
    /// are left for the collector.
    fn settle_range(
        &self,
        state: &mut State,
        covered: Range<u64>,
        stamp: u64,
        stored: &[Stored],
        seq: CommitSeq,
    ) -> bool {
        if !same_since(&state.pieces, &covered, stamp) {
            return false;
        }
        let before = state.pieces.in_memory();
        if state.generation > 0 {
            // In place of what an older version had here.
            self.freed(covered.end - covered.start);
        }
        state.pieces.replace(covered, stored.iter().map(settle));
        state.seq = state.seq.max(seq);
        self.budget.changed(before, state.pieces.in_memory());
        true
    }

    /// Cuts the plan's plaintext, which begins at `start` in the file. A last chunk that would be too short takes in the blocks behind it.
    fn cut_plan(
        &self,
        file: &OpenFile,
        plan: &Plan,
        data: &mut Vec<u8>,
        start: u64,
        what: Spill,
    ) -> Result<Vec<Cut>> {
        if plan.goes_on || what == Spill::Streams {
            return Ok(self.blocks.cuts(data, start, false));
        }
        let mut behind = plan.behind.iter();
        loop {
            let cuts = self.blocks.cuts(data, start, true);
            let short = matches!(cuts.last(), Some(Cut::Data(len)) if *len < CHUNK_MIN);
            match behind.next() {
                Some(piece) if short => self.append_plaintext(file, piece, data)?,
                _ => return Ok(cuts),
            }
        }
    }

    pub(super) fn append_plaintext(&self, file: &OpenFile, piece: &Piece, out: &mut Vec<u8>) -> Result<()> {
        let len = piece.len as usize;
        match &piece.source {
            Source::Hole => out.resize(out.len() + len, 0),
            Source::Memory { bytes, from } => out.extend_from_slice(&bytes[*from..*from + len]),
            Source::Block { id, skip, whole } => {
                let (chunk, _) = self.chunk(file.ino, *id, *whole, None, Wait::Bounded)?;
                let skip = *skip as usize;
                out.extend_from_slice(&chunk[skip..skip + len]);
            }
            Source::Index { .. } => {
                return Err(VolumeError::Invalid(
                    "an index block has no plaintext of the file",
                ));
            }
        }
        Ok(())
    }
}

fn plan(state: &State, range: Range<u64>) -> Option<Plan> {
    let pieces = &state.pieces;
    let mut plan = Plan {
        pieces: Vec::new(),
        behind: Vec::new(),
        goes_on: false,
        stamp: pieces.stamp(),
    };
    let mut total = 0;
    for (offset, piece) in pieces.touching(range.start..u64::MAX) {
        if offset >= range.end {
            if !matches!(piece.source, Source::Block { .. }) || plan.behind.len() == 2 {
                break;
            }
            plan.behind.push(piece.clone());
        } else if total >= BATCH {
            plan.goes_on = true;
            break;
        } else {
            total += piece.len;
            plan.pieces.push(piece.clone());
        }
    }
    (total > 0).then_some(plan)
}

pub(super) fn same_since(pieces: &Pieces, covered: &Range<u64>, stamp: u64) -> bool {
    covered.end <= pieces.size()
        && pieces
            .touching(covered.clone())
            .all(|(_, piece)| piece.stamp <= stamp)
}

fn settle(stored: &Stored) -> (u64, Source) {
    let source = match stored.block {
        Some(id) => Source::Block {
            id,
            skip: 0,
            whole: stored.len as u32,
        },
        None => Source::Hole,
    };
    (stored.len as u64, source)
}

fn cut_len(cut: Cut) -> usize {
    let (Cut::Data(len) | Cut::Zeros(len)) = cut;
    len
}
