//! From memory to blocks to the slot: sealing what was written and naming it in the `.f`.
//!
//! Invariant: a slot is written only for a content whose blocks are all committed to the store, and only while no writer changes it, so
//! that each version on disk is one that existed between two writes. Called by `flush`, `fsync`, the background threads and shutdown.

use std::sync::Arc;

use super::Volume;
use super::blocks::{Blocks, Cut};
use super::changes::Note;
use super::error::{Result, VolumeError};
use super::open_file::{OpenFile, State};
use super::pieces::{Piece, Pieces, Source};
use super::spill::Spill;
use super::wishes::Needs;
use crate::base::BlockId;
use crate::base::limits::{CHUNK_MAX, CHUNK_MIN};
use crate::base::types::Timestamp;
use crate::folder::slots;
use crate::object::slot::SlotError;
use crate::object::{Content, Extent, IndexRef, Manifest, index, slot};

/// After so many rounds in which writers kept changing the file, they are made to wait.
const PATIENT_ROUNDS: usize = 2;

/// What of a file is to survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synced {
    /// Its content, as `fdatasync` asks. On most file systems that is cheaper, since the `.f` is overwritten in place.
    Content,
    /// Its times, mode and owner too.
    All,
}

impl Volume {
    /// Brings the `.f` up to date with what was written. It survives the death of the process when this returns.
    pub(super) fn write_back(&self, file: &OpenFile) -> Result<()> {
        let _one = file.lock_write_back()?;
        self.write_back_locked(file, Spill::All)
    }

    /// As `write_back`, and survives a power cut.
    pub(super) fn write_through(&self, file: &OpenFile, what: Synced) -> Result<()> {
        // Until the newest version is known to be durable no newer one may be written over it.
        let _one = file.lock_write_back()?;
        self.write_back_locked(file, Spill::Quick)?;
        if file.state.lock().unlinked {
            return Ok(());
        }
        self.settle(file, what)
    }

    /// Makes the newest version in the `.f` durable. The caller holds `write_back`, so that no newer one is written meanwhile.
    fn settle(&self, file: &OpenFile, what: Synced) -> Result<()> {
        // Side by side: neither has to be durable before the other, since the slot says what it relies on.
        let mut synced = Ok(());
        let stored = self.blocks.tiered().store().sync_with(&mut || {
            synced = match what {
                Synced::Content => file.host.sync_data(),
                Synced::All => file.host.sync_all(),
            }
        });
        synced.map_err(|error| {
            self.sync_failed(file.ino, &error);
            VolumeError::host("fsync the .f", error)
        })?;
        stored.map_err(VolumeError::store)?;
        if self.durability.is_suspect(file.ino) {
            return Err(VolumeError::host(
                "fsync the .f, of which an earlier sync failed",
                rustix::io::Errno::IO,
            ));
        }
        let mut state = file.state.lock();
        state.durable = state.latest;
        self.durability.is_durable(file.ino, state.version());
        Ok(())
    }

    fn write_back_locked(&self, file: &OpenFile, what: Spill) -> Result<()> {
        {
            let state = file.state.lock();
            if state.aside.is_some() && !state.changed {
                return Ok(());
            }
        }
        let suspect = file.writable && self.durability.is_suspect(file.ino);
        if suspect {
            file.state.lock().changed = true;
        }
        for round in 0.. {
            let is_aside = {
                let state = file.state.lock();
                if !state.changed || state.unlinked {
                    return Ok(());
                }
                state.aside.is_some()
            };
            if is_aside {
                self.surface(file)?;
            }
            if !suspect && file.state.lock().must_settle() {
                self.settle(file, Synced::Content)?;
            }
            let _quiet = match round >= PATIENT_ROUNDS {
                true => Some(file.close_gate()?),
                false => None,
            };
            self.expand_upper(file)?;
            if self.write_small(file)? {
                return Ok(());
            }
            self.spill_locked(file, what)?;
            if self.write_slot(file)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// A file that fits into its slot is written there. Says whether it was.
    pub(super) fn write_small(&self, file: &OpenFile) -> Result<bool> {
        let (pieces, stamp, size) = {
            let state = file.state.lock();
            if state.pieces.size() > slot::packed_max() as u64 {
                return Ok(false);
            }
            let pieces: Vec<Piece> = state.pieces.iter().map(|(_, piece)| piece.clone()).collect();
            if pieces
                .iter()
                .any(|piece| matches!(piece.source, Source::Index { .. }))
            {
                return Ok(false);
            }
            (pieces, state.pieces.stamp(), state.pieces.size())
        };
        let mut data = Vec::with_capacity(size as usize);
        for piece in &pieces {
            self.append_plaintext(file, piece, &mut data)?;
        }
        drop(pieces);
        let mut state = file.state.lock();
        if state.pieces.stamp() != stamp || state.aside.is_some() {
            return Ok(false);
        }
        if !state.changed || state.unlinked {
            return Ok(true);
        }
        self.commit(file, &mut state, Content::Inline(data), 0, Vec::new())
    }

    /// Writes the slot of a content that is all settled. False when it is not, or was changed meanwhile.
    fn write_slot(&self, file: &OpenFile) -> Result<bool> {
        let (leaves, stamp, mut seq) = {
            let mut state = file.state.lock();
            if !state.changed || state.unlinked {
                return Ok(true);
            }
            let upper = |piece: &Piece| matches!(piece.source, Source::Index { depth: 2.., .. });
            if state.aside.is_some()
                || !state.pieces.is_settled()
                || state.pieces.iter().any(|(_, piece)| upper(piece))
            {
                return Ok(false);
            }
            if let Some(extents) = flat_extents(&state.pieces) {
                let content = Content::Extents(extents);
                if slot::fits(&content) {
                    let seq = state.seq;
                    self.named(self.commit(file, &mut state, content, seq, Vec::new())?)?;
                    return Ok(true);
                }
            }
            (Leaves::of(&state.pieces), state.pieces.stamp(), state.seq)
        };
        // Without the lock, so that nobody who looks at the file waits for the store.
        let (leaves, put) = self.leaf_refs(leaves)?;
        seq = seq.max(put);
        let intact: Vec<(u64, IndexRef)> = offsets(&leaves).collect();
        let (mut depth, mut refs, mut between) = (1, leaves, Vec::new());
        while !slot::fits(&Content::Index {
            depth,
            refs: refs.clone(),
        }) {
            let groups = index::cut_refs(&refs);
            let encoded: Vec<Vec<u8>> = groups
                .iter()
                .map(|range| index::encode_refs(&refs[range.clone()]))
                .collect();
            let (ids, put) = store_all(&self.blocks, &encoded)?;
            seq = seq.max(put);
            between.extend_from_slice(&ids);
            refs = groups
                .iter()
                .zip(ids)
                .map(|(range, id)| IndexRef {
                    len: refs[range.clone()].iter().map(|r| r.len).sum(),
                    id,
                })
                .collect();
            depth += 1;
        }
        let mut state = file.state.lock();
        if state.pieces.stamp() != stamp || state.aside.is_some() {
            // It has another turn, and the new index blocks are left for the collector.
            return Ok(false);
        }
        if !state.unlinked {
            self.named(self.commit(file, &mut state, Content::Index { depth, refs }, seq, intact)?)?;
            self.blocks.take_note(|| between);
        }
        Ok(true)
    }

    /// What was checked to fit did.
    fn named(&self, fits: bool) -> Result<()> {
        debug_assert!(fits, "the content was checked to fit");
        match fits {
            true => Ok(()),
            false => Err(VolumeError::Invalid("the content does not fit its slot")),
        }
    }

    /// Stores the index blocks that are new.
    fn leaf_refs(&self, leaves: Leaves) -> Result<(Vec<IndexRef>, u64)> {
        let (ids, seq) = store_all(&self.blocks, &leaves.encoded)?;
        let mut ids = ids.into_iter();
        let refs = leaves
            .leaves
            .into_iter()
            .filter_map(|leaf| match leaf {
                Leaf::Ready(entry) => Some(entry),
                Leaf::New { len } => ids.next().map(|id| IndexRef { len, id }),
            })
            .collect();
        Ok((refs, seq))
    }

    /// Writes the next generation in place, and takes note that it is not durable yet. False when the content does not fit a slot.
    fn commit(
        &self,
        file: &OpenFile,
        state: &mut State,
        content: Content,
        seq: u64,
        intact: Vec<(u64, IndexRef)>,
    ) -> Result<bool> {
        let root = content.root();
        let named: Vec<BlockId> = content.block_ids().collect();
        let manifest = Manifest {
            file_id: state.id,
            generation: state.generation + 1,
            size: state.pieces.size(),
            store: self.blocks.tiered().store().id(),
            seq: if root.is_some() { seq } else { 0 },
            content,
        };
        let encoded = match slot::encode(&manifest, self.blocks.keys()) {
            Err(SlotError::TooLarge(_)) => return Ok(false),
            encoded => encoded.map_err(VolumeError::seal)?,
        };
        let target = state.next_slot();
        if state.leftover {
            // Overwritten in place it could be lost in part, and would then count as damaged. The file is empty, and so is its .f now.
            file.host
                .set_len(0)
                .map_err(|error| VolumeError::host("empty the .f", error))?;
            state.leftover = false;
        }
        slots::write(&file.host, target, &encoded)
            .map_err(|error| VolumeError::host("write the .f", error))?;
        state.generation = manifest.generation;
        state.latest = Some(target);
        state.changed = false;
        state.failed = None;
        if state.root != root {
            state.root = root;
            if let (Some(root), Some(announce)) = (root, &self.announce) {
                announce(root);
            }
        }
        state.pieces.set_intact(intact);
        self.fragmented.note(file.ino, &state.pieces);
        let needs = self.needs_of_open(file);
        if needs != self.default_needs()
            && let Some(retention) = self.blocks.retention()
        {
            let ids = state.pieces.iter().filter_map(|(_, piece)| match piece.source {
                Source::Block { id, .. } | Source::Index { id, .. } => Some((id, needs)),
                _ => None,
            });
            retention.wished(&ids.collect::<Vec<_>>());
        }
        // A collection may have looked at the .f before this, and look at open files when this one is closed.
        self.blocks.take_note(|| {
            let blocks = state.pieces.iter().filter_map(|(_, piece)| match piece.source {
                Source::Block { id, .. } | Source::Index { id, .. } => Some(id),
                _ => None,
            });
            blocks.chain(state.pieces.intact_blocks()).chain(named).collect()
        });
        self.durability.wrote(file.ino, state);
        self.nodes.content_seen(file.ino, state.generation);
        let known = (state.pieces.size(), state.pieces.stored());
        let mtime = state.mtime.take();
        let set = mtime.map_or(Ok(()), |mtime| set_mtime(&file.host, mtime));
        self.note_inode(file.ino, Note::Written);
        set?;
        self.size_written(file, known, mtime);
        Ok(true)
    }
}

/// The index blocks over all extents: those of unchanged stretches as they are, new ones for the rest.
struct Leaves {
    leaves: Vec<Leaf>,
    /// The content of those that are new.
    encoded: Vec<Vec<u8>>,
}

enum Leaf {
    Ready(IndexRef),
    New { len: u64 },
}

impl Leaves {
    fn of(pieces: &Pieces) -> Self {
        let mut all = Self {
            leaves: Vec::new(),
            encoded: Vec::new(),
        };
        let (mut pending, mut covered): (Vec<Extent>, u64) = (Vec::new(), 0);
        for (offset, piece) in pieces.iter() {
            if offset < covered {
                continue;
            }
            let ready = match (&piece.source, pieces.intact_at(offset)) {
                (Source::Index { id, .. }, _) => Some(IndexRef {
                    len: piece.len,
                    id: *id,
                }),
                (_, intact) => intact,
            };
            if let Some(ready) = ready {
                all.close(&mut pending);
                covered = offset + ready.len;
                all.leaves.push(Leaf::Ready(ready));
            } else {
                push_extent(&mut pending, piece);
            }
        }
        all.close(&mut pending);
        all
    }

    fn close(&mut self, pending: &mut Vec<Extent>) {
        for range in index::cut_extents(pending) {
            self.leaves.push(Leaf::New {
                len: pending[range.clone()].iter().map(|extent| extent.len).sum(),
            });
            self.encoded.push(index::encode_extents(&pending[range]));
        }
        pending.clear();
    }
}

/// Sets only the time of the last change.
pub(super) fn set_mtime(host: &std::fs::File, mtime: Timestamp) -> Result<()> {
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        last_modification: rustix::fs::Timespec {
            tv_sec: mtime.secs,
            tv_nsec: i64::from(mtime.nanos),
        },
    };
    rustix::fs::futimens(host, &times).map_err(|error| VolumeError::host("set the time of the .f", error))
}

fn push_extent(extents: &mut Vec<Extent>, piece: &Piece) {
    let extent = Pieces::extent_of(piece);
    match extents.last_mut() {
        Some(last) if last.block.is_none() && extent.block.is_none() => last.len += extent.len,
        _ => extents.push(extent),
    }
}

/// All extents, unless index blocks stand for some.
fn flat_extents(pieces: &Pieces) -> Option<Vec<Extent>> {
    let mut extents = Vec::new();
    for (_, piece) in pieces.iter() {
        if matches!(piece.source, Source::Index { .. }) || extents.len() > 2 * CHUNK_MAX / CHUNK_MIN * 64 {
            return None;
        }
        push_extent(&mut extents, piece);
    }
    Some(extents)
}

fn offsets(refs: &[IndexRef]) -> impl Iterator<Item = (u64, IndexRef)> {
    let mut at = 0;
    refs.iter().map(move |entry| {
        let here = at;
        at += entry.len;
        (here, *entry)
    })
}

/// What blocks need without which nobody can say here what a file, or the tree, needs.
pub(super) fn of_indexes(blocks: &Blocks) -> Needs {
    Needs {
        replicas: blocks.retention().map_or(0, super::Retention::default_replicas),
        pinned: true,
    }
}

pub(super) fn store_all(blocks: &Arc<Blocks>, encoded: &[Vec<u8>]) -> Result<(Vec<BlockId>, u64)> {
    if encoded.is_empty() {
        return Ok((Vec::new(), 0));
    }
    let cuts: Vec<Cut> = encoded.iter().map(|bytes| Cut::Data(bytes.len())).collect();
    let (stored, seq) = blocks.store(&encoded.concat(), &cuts, of_indexes(blocks))?;
    Ok((stored.into_iter().filter_map(|s| s.block).collect(), seq))
}
