//! A file that is open, shared by all its handles: its pieces, its place in the folder, and which of its two slots holds what.
//!
//! Invariant: the slot that holds the last version known to be durable is never written (promise 3). Lock order: `write_back`, `gate`,
//! `state`; `state` is never held while a block is read, fetched or sealed. Called by the rest of `volume`.

use std::fs::File;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use rustix::io::Errno;

use super::Wait;
use super::aside::Aside;
use super::durability::Version;
use super::error::{Result, VolumeError};
use super::pieces::{Pieces, Source};
use crate::base::activity::{self, Waits};
use crate::base::types::Timestamp;
use crate::base::{FileId, RootId};
use crate::folder::slots::{Slot, SlotBytes};
use crate::keys::VolumeKeys;
use crate::object::{Content, Extent, Manifest, slot};
use crate::store::{BlockStore, CommitSeq};

/// An open file.
#[derive(Debug)]
pub struct OpenFile {
    /// Its inode number in the mount.
    pub ino: u64,
    /// The `.f`; of a file as it was, which has none, the folder's top directory, through which nothing can be written.
    pub host: File,
    /// Whether `host` may be written.
    pub writable: bool,
    /// Held while the file is written back, so that one write-back runs at a time.
    pub write_back: Mutex<()>,
    /// Held shared by whoever changes the content; exclusively by a write-back that must come to an end.
    pub gate: RwLock<()>,
    /// What changes.
    pub state: Mutex<State>,
    /// `State::given` became less.
    pub given: Condvar,
}

impl OpenFile {
    /// A file in a state.
    pub fn new(ino: u64, host: File, writable: bool, state: State) -> Arc<Self> {
        Arc::new(Self {
            ino,
            host,
            writable,
            write_back: Mutex::new(()),
            gate: RwLock::new(()),
            state: Mutex::new(state),
            given: Condvar::new(),
        })
    }
}

impl OpenFile {
    /// The lock for write-backs. Another one that is under way may be waiting for the network.
    pub fn lock_write_back(&self) -> Result<MutexGuard<'_, ()>> {
        if let Some(locked) = self.write_back.try_lock() {
            return Ok(locked);
        }
        let _waiting = activity::wait(Waits::File)?;
        Ok(self.write_back.lock())
    }

    /// An error when another device's version took the name: whoever came by an old number finds that one when he looks again, as the kernel does.
    pub fn may_change(&self) -> Result<()> {
        match self.state.lock().replaced {
            true => Err(VolumeError::Stale),
            false => Ok(()),
        }
    }

    /// The gate, to keep writers out. One of them may be waiting for the network.
    pub fn close_gate(&self) -> Result<RwLockWriteGuard<'_, ()>> {
        if let Some(closed) = self.gate.try_write() {
            return Ok(closed);
        }
        let _waiting = activity::wait(Waits::File)?;
        Ok(self.gate.write())
    }

    /// The gate, to change the content. A write-back that keeps writers out may be waiting for the network.
    pub fn enter(&self, wait: Wait) -> Result<RwLockReadGuard<'_, ()>> {
        if let Some(entered) = self.gate.try_read() {
            return Ok(entered);
        }
        if wait == Wait::Never {
            return Err(VolumeError::WouldWait);
        }
        let _waiting = activity::wait(Waits::File)?;
        Ok(self.gate.read())
    }
}

/// The changing part of an open file.
#[derive(Debug)]
pub struct State {
    /// Content.
    pub pieces: Pieces,
    /// Identity that follows the file.
    pub id: FileId,
    /// Generation of the newest slot.
    pub generation: u64,
    /// Under which its holders announce themselves.
    pub root: Option<RootId>,
    /// The slot that holds the newest version.
    pub latest: Option<Slot>,
    /// The slot that holds the newest version known to be durable; `None`: the file was empty then.
    pub durable: Option<Slot>,
    /// The file is empty, but its `.f` is not: what is there did not reach the disk whole, or its blocks did not.
    pub leftover: bool,
    /// The content is not what the newest slot says.
    pub changed: bool,
    /// The newest commit of the store that the pieces rely on.
    pub seq: CommitSeq,
    /// Time of the last write that the slot does not hold yet, or that was set by hand since.
    pub mtime: Option<Timestamp>,
    /// No name is left: nothing needs to be written back.
    pub unlinked: bool,
    /// Another device's version took its last name. Who comes by its number to write is not to.
    pub replaced: bool,
    /// So it did while the file was open for writing, and nothing was written to it since.
    pub aside: Option<Box<Aside>>,
    /// Directories that the table of nodes knows for its sake: one reference to each.
    pub ways: Vec<u64>,
    /// Waits for, or is in, a background write-back.
    pub queued: bool,
    /// Why the last background write-back failed.
    pub failed: Option<String>,
    /// How many syncs of its content failed while it was open, and how the last one did.
    pub failed_syncs: (u64, Option<Errno>),
    /// Open handles.
    pub handles: usize,
    /// Those of them that may change the content.
    pub writers: usize,
    /// Chunks on their way to the kernel's cache (see `beside`): none while there are writers.
    pub given: usize,
}

/// The newest whole version of a file.
#[derive(Debug)]
pub struct Chosen {
    /// `None`: the empty file it was when created.
    pub manifest: Option<Manifest>,
    /// Where it was found.
    pub slot: Option<Slot>,
    /// What is wrong with the other slot, for the log.
    pub warning: Option<String>,
}

/// Picks the newest slot that is whole and whose blocks reached the disk (the crash rule).
pub fn choose(
    bytes: &SlotBytes,
    keys: &VolumeKeys,
    store: &dyn BlockStore,
) -> std::result::Result<Chosen, String> {
    let mut best: Option<(Slot, Manifest)> = None;
    let mut damaged: Option<String> = None;
    for place in [Slot::A, Slot::B] {
        match slot::decode(bytes.slot(place), keys) {
            Ok(None) => {}
            Ok(Some(manifest)) => {
                let lost =
                    manifest.content.root().is_some() && store.may_be_lost(&manifest.store, manifest.seq);
                let newer = best
                    .as_ref()
                    .is_none_or(|(_, other)| manifest.generation > other.generation);
                if !lost && newer {
                    best = Some((place, manifest));
                }
            }
            Err(error) => damaged = Some(format!("slot {place:?} of its .f is damaged: {error}")),
        }
    }
    match (best, damaged) {
        (Some((place, manifest)), damaged) => Ok(Chosen {
            manifest: Some(manifest),
            slot: Some(place),
            warning: damaged,
        }),
        (None, None) => Ok(Chosen {
            manifest: None,
            slot: None,
            warning: None,
        }),
        (None, Some(reason)) => Err(format!(
            "{reason}, and the other slot holds no version: restore the .f from a copy"
        )),
    }
}

impl State {
    /// The state of a file with no content.
    pub fn empty(id: FileId) -> Self {
        Self {
            pieces: Pieces::default(),
            id,
            generation: 0,
            root: None,
            latest: None,
            durable: None,
            leftover: false,
            changed: false,
            seq: 0,
            mtime: None,
            unlinked: false,
            replaced: false,
            aside: None,
            ways: Vec::new(),
            queued: false,
            failed: None,
            failed_syncs: (0, None),
            handles: 0,
            writers: 0,
            given: 0,
        }
    }

    /// The state that a `.f` describes. Everything in it counts as durable unless the caller knows better.
    pub fn of(chosen: Chosen, new_id: FileId, store: &dyn BlockStore) -> Self {
        let mut state = Self::empty(new_id);
        state.latest = chosen.slot;
        state.durable = chosen.slot;
        let Some(manifest) = chosen.manifest else {
            return state;
        };
        state.id = manifest.file_id;
        state.generation = manifest.generation;
        if manifest.store == store.id() {
            state.seq = manifest.seq;
        }
        state.fill(manifest.content);
        state
    }

    /// The state of a file that is nothing but content.
    pub fn of_content(id: FileId, content: Content) -> Self {
        let mut state = Self::empty(id);
        state.fill(content);
        state
    }

    fn fill(&mut self, content: Content) {
        self.root = content.root();
        match content {
            Content::Inline(bytes) => {
                self.pieces.push(
                    bytes.len() as u64,
                    Source::Memory {
                        bytes: Arc::new(bytes),
                        from: 0,
                    },
                );
            }
            Content::Extents(extents) => {
                for extent in &extents {
                    self.pieces.push(extent.len, source_of(extent));
                }
            }
            Content::Index { depth, refs } => {
                for entry in refs {
                    self.pieces.push(entry.len, Source::Index { id: entry.id, depth });
                }
            }
        }
    }

    /// Whether the newest version must be durable before another is written: both slots hold one, and none of the two is durable yet.
    /// One that is overwritten in place may be lost as a whole, so that nothing would be left.
    pub fn must_settle(&self) -> bool {
        self.durable.is_none() && self.latest == Some(Slot::B)
    }

    /// The newest version.
    pub fn version(&self) -> Version {
        (self.id, self.generation)
    }

    /// The slot for the next version: never the durable one.
    pub fn next_slot(&self) -> Slot {
        match (self.durable, self.latest) {
            (Some(durable), _) => durable.other(),
            (None, Some(latest)) => latest.other(),
            (None, None) => Slot::A,
        }
    }
}

/// The piece of an extent.
pub fn source_of(extent: &Extent) -> Source {
    match extent.block {
        Some(id) => Source::Block {
            id,
            skip: extent.skip,
            whole: extent.whole,
        },
        None => Source::Hole,
    }
}

/// A new random file id.
pub fn new_file_id() -> Result<FileId> {
    let mut id = [0; FileId::LEN];
    getrandom::fill(&mut id).map_err(|_| VolumeError::Invalid("the system's random source failed"))?;
    Ok(FileId(id))
}
