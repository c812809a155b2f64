//! Small changes of large files: stored by themselves at first, and folded into chunks when the file is quiet.
//!
//! A few kilobytes in the middle of a chunk would otherwise cost the sealing of all of it, at every fsync. So a short stretch becomes, with
//! others, the plaintext of a block of its own, and the file names parts of the old chunk before and behind it. That fragments files and
//! keeps blocks alive for a part of them; folding cuts such places anew, as if they had been written in one go.
//!
//! Invariant: neither changes a byte of any file. Called by `write_back` and `background`.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::blocks::Cut;
use super::error::{Result, VolumeError};
use super::open_file::{OpenFile, State};
use super::pieces::{Pieces, Source};
use super::spill::{BATCH, Spill, same_since};
use super::{Volume, Wait};
use crate::base::limits::{CHUNK_AVG, CHUNK_MIN};
use crate::folder::host::attr_of;

/// So many short stretches are sealed together with the chunks around them at once when a file is closed.
const FOLD_AT_ONCE: usize = 4;

/// So many loose pieces in a row are folded with what is appended to them, so that a log does not fall to pieces.
const LOOSE_MAX: usize = 16;

/// Only pieces of at most so many bytes count for that: not what short changes leave of a chunk.
const LOOSE_LEN: u64 = CHUNK_MIN as u64 / 4;

/// A file with so many loose pieces is folded when it is quiet.
const WORTH_FOLDING: usize = 256;

/// Folded also while it is being written: the list of its pieces costs more than that by now.
const FOLD_NOW: usize = 1 << 16;

/// So long nothing was written back to a file that is quiet.
const QUIET: Duration = Duration::from_secs(10);

/// Files with many loose pieces, and since when nothing was written back.
#[derive(Debug, Default)]
pub struct Fragmented {
    files: Mutex<HashMap<u64, Instant>>,
}

impl Fragmented {
    /// A file was written back.
    pub fn note(&self, ino: u64, pieces: &Pieces) {
        if pieces.loose() >= WORTH_FOLDING {
            let since = if pieces.loose() >= FOLD_NOW {
                Instant::now().checked_sub(QUIET)
            } else {
                None
            };
            self.files.lock().insert(ino, since.unwrap_or_else(Instant::now));
        }
    }

    /// The files that are quiet; they are not listed any more.
    fn take_quiet(&self) -> Vec<u64> {
        let mut files = self.files.lock();
        let quiet: Vec<u64> = files
            .iter()
            .filter(|(_, since)| since.elapsed() >= QUIET)
            .map(|(ino, _)| *ino)
            .collect();
        files.retain(|ino, _| !quiet.contains(ino));
        quiet
    }
}

/// Short stretches about to be stored together.
struct Patches {
    /// Each stretch: where it is in the file, which of the blocks it goes to, and where in its plaintext.
    stretches: Vec<(Range<u64>, usize, u32)>,
    data: Vec<u8>,
    blocks: Vec<usize>,
    stamp: u64,
}

impl Volume {
    /// Whether the short stretches of a file are too many to be folded when it is closed.
    pub(super) fn is_scattered(&self, file: &OpenFile) -> bool {
        let state = file.state.lock();
        let (mut from, mut short) = (0, 0);
        while let Some(range) = state.pieces.unsettled_after(from) {
            short += usize::from(is_short(&range));
            if short > FOLD_AT_ONCE {
                return true;
            }
            from = range.end;
        }
        false
    }

    /// Stores short stretches by themselves. The lock for write-backs is held.
    pub(super) fn stage(&self, file: &OpenFile) -> Result<()> {
        let mut from = 0;
        while let Some(patches) = { gather(&file.state.lock(), &mut from) } {
            let cuts: Vec<Cut> = patches.blocks.iter().map(|len| Cut::Data(*len)).collect();
            let (stored, seq) = self
                .blocks
                .store(&patches.data, &cuts, self.needs_of_open(file))?;
            let mut state = file.state.lock();
            let before = state.pieces.in_memory();
            for (range, block, skip) in patches.stretches {
                // One that was written to meanwhile has another turn.
                if !same_since(&state.pieces, &range, patches.stamp) {
                    continue;
                }
                if let Some(id) = stored[block].block {
                    let whole = patches.blocks[block] as u32;
                    let source = Source::Block { id, skip, whole };
                    let len = range.end - range.start;
                    state.pieces.replace(range, [(len, source)]);
                }
            }
            state.seq = state.seq.max(seq);
            self.budget.changed(before, state.pieces.in_memory());
        }
        Ok(())
    }

    /// Folds the files that have been quiet for a while.
    pub(super) fn fold_quiet(&self, stop: &dyn Fn() -> bool) {
        for ino in self.fragmented.take_quiet() {
            if stop() {
                return;
            }
            let folded = self.with_open(ino, true, |file| self.fold(file, stop));
            if let Err(error) = folded {
                // Gone, or some of it is on other devices only: nothing is lost by leaving it as it is.
                tracing::debug!(file = %self.nodes.shown_path(ino), %error, "a file was not folded");
            }
        }
    }

    /// Cuts all loose places of a file anew.
    pub(super) fn fold(&self, file: &OpenFile, stop: &dyn Fn() -> bool) -> Result<()> {
        self.expand_where(file, 0..u64::MAX, 0, Wait::Never)?;
        let mut from = 0;
        while let Some(range) = { file.state.lock().pieces.loose_after(from) } {
            let range = range.start..range.end.min(range.start + BATCH);
            let is_gone = {
                let state = file.state.lock();
                state.unlinked || state.aside.is_some()
            };
            if stop() || is_gone {
                break;
            }
            self.nearby(file, &range)?;
            let _one = file.lock_write_back()?;
            from = self.reseal(file, range, Spill::All)?.max(from + 1);
            let mut state = file.state.lock();
            state.changed = true;
            if state.mtime.is_none() {
                // Writing the slot is no change of the file.
                let stat = rustix::fs::fstat(&file.host)
                    .map_err(|error| VolumeError::host("look at the .f", error))?;
                state.mtime = Some(attr_of(&stat).mtime);
            }
        }
        self.write_back(file)
    }

    /// An error when blocks of the range are not on this device: folding is no reason to fetch them.
    fn nearby(&self, file: &OpenFile, range: &Range<u64>) -> Result<()> {
        let pieces = file.state.lock().pieces.part(range.clone());
        for piece in pieces {
            if let Source::Block { id, .. } = piece.source
                && !self
                    .blocks
                    .tiered()
                    .store()
                    .contains(&id)
                    .map_err(VolumeError::store)?
            {
                return Err(VolumeError::WouldWait);
            }
        }
        Ok(())
    }
}

/// Too short for a chunk.
fn is_short(range: &Range<u64>) -> bool {
    range.end - range.start < CHUNK_MIN as u64
}

/// The next short stretches from `from` on, until they are a batch.
fn gather(state: &State, from: &mut u64) -> Option<Patches> {
    let pieces = &state.pieces;
    let mut patches = Patches {
        stretches: Vec::new(),
        data: Vec::new(),
        blocks: Vec::new(),
        stamp: pieces.stamp(),
    };
    while let Some(range) = pieces.unsettled_after(*from) {
        if patches.data.len() as u64 >= BATCH {
            break;
        }
        *from = range.end;
        if !is_short(&range) || pieces.loose_before(range.start, LOOSE_LEN, LOOSE_MAX) == LOOSE_MAX {
            continue;
        }
        let len = (range.end - range.start) as usize;
        match patches.blocks.last_mut() {
            Some(last) if *last + len <= CHUNK_AVG => *last += len,
            _ => patches.blocks.push(len),
        }
        let block = patches.blocks.len() - 1;
        let skip = patches.blocks[block] - len;
        for (_, piece) in pieces.touching(range.clone()) {
            if let Source::Memory { bytes, from } = &piece.source {
                patches
                    .data
                    .extend_from_slice(&bytes[*from..*from + piece.len as usize]);
            }
        }
        patches.stretches.push((range, block, skip as u32));
    }
    (!patches.stretches.is_empty()).then_some(patches)
}
