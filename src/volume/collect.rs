//! Giving back the blocks that no file needs any more: mark what the folder and the open files refer to, sweep the rest.
//!
//! Invariant: a block goes only if no slot that may count after a crash names it, no open file holds it, and nobody took it up since the
//! marking began. In doubt (a damaged `.f`, an index block that is elsewhere) nothing goes. Called by the background thread.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};

use super::error::{BlockError, Result, VolumeError};
use super::import::entries;
use super::open_file::choose;
use super::pieces::Source;
use super::wishes::Needs;
use super::{Volume, Wait};
use crate::base::names::{self, HostName};
use crate::base::{BlockId, limits::INDEX_DEPTH_MAX};
use crate::folder::host::open_below;
use crate::folder::slots::{Slot, SlotBytes};
use crate::object::{Content, index, slot};

/// Freed or rewritten bytes that make a collection worth its walk over the folder.
const WORTH_BYTES: u64 = 64 << 20;

/// Blocks looked at, and at most removed, in one step: writers wait for no longer than that.
const STEP: usize = 256;

/// How long the collection waits for a write-back, which may be waiting for the network.
const WRITE_BACK_WITHIN: Duration = Duration::from_secs(2);

/// Blocks that are needed, each with what it needs for the sake of the files that name it.
#[derive(Debug)]
pub struct Marked {
    /// Those with content.
    data: HashMap<BlockId, Needs>,
    /// Those that name others.
    index: HashMap<BlockId, Needs>,
    /// Of the file that is being looked at.
    pub(super) needs: Needs,
    /// Blocks that name others and are elsewhere, with their depth and what they need; `None`: there must not be any.
    elsewhere: Option<Vec<(BlockId, u8, Needs)>>,
}

impl Marked {
    /// None yet; the files to come have these needs.
    pub(super) fn new(needs: Needs) -> Self {
        Self {
            data: HashMap::new(),
            index: HashMap::new(),
            needs,
            elsewhere: None,
        }
    }

    /// As [`Marked::new`], but blocks that name others may be elsewhere: they are collected, to be looked at later.
    pub(super) fn as_far_as_here(needs: Needs) -> Self {
        Self {
            elsewhere: Some(Vec::new()),
            ..Self::new(needs)
        }
    }

    /// Whether what they name is not known because it is elsewhere.
    pub(super) fn is_incomplete(&self) -> bool {
        self.elsewhere.as_ref().is_some_and(|missing| !missing.is_empty())
    }

    /// Whether a block is needed.
    pub fn contains(&self, id: &BlockId) -> bool {
        self.data.contains_key(id) || self.index.contains_key(id)
    }

    /// All of them. Those that name others stay here: without them nobody can say what a file needs.
    pub fn iter(&self) -> impl Iterator<Item = (&BlockId, Needs)> {
        let data = self.data.iter().map(|(id, needs)| (id, *needs));
        let pinned = |needs: &Needs| Needs {
            pinned: true,
            ..*needs
        };
        data.chain(self.index.iter().map(move |(id, needs)| (id, pinned(needs))))
    }

    /// Those with content alone: without the others nobody can say what a file needs.
    pub fn into_data(self) -> HashMap<BlockId, Needs> {
        let (mut data, index) = (self.data, self.index);
        data.retain(|id, _| !index.contains_key(id));
        data
    }

    fn add(&mut self, id: BlockId) {
        let needs = self.needs;
        let of_all = self.data.entry(id).or_insert(needs);
        *of_all = of_all.and(needs);
    }

    /// Adds what is not there yet.
    pub(super) fn add_missing(&mut self, other: Self) {
        for (id, needs) in other.data {
            self.data.entry(id).or_insert(needs);
        }
        for (id, needs) in other.index {
            self.index.entry(id).or_insert(needs);
        }
    }

    /// False when the block, and so all below it, was looked at for a file with no lesser needs.
    pub(super) fn add_index(&mut self, id: BlockId) -> bool {
        let needs = self.needs;
        match self.index.entry(id) {
            Entry::Vacant(place) => {
                place.insert(needs);
                true
            }
            Entry::Occupied(mut place) => {
                let all = place.get().and(needs);
                std::mem::replace(place.get_mut(), all) != all
            }
        }
    }
}

impl Volume {
    /// Takes note of bytes that may be of no use any more.
    pub(super) fn freed(&self, bytes: u64) {
        self.garbage.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether enough was freed since the last collection.
    pub(super) fn is_worth_collecting(&self) -> bool {
        self.garbage.load(Ordering::Relaxed) >= WORTH_BYTES
    }

    /// Removes the blocks that nothing refers to. Returns how many.
    pub fn collect(&self) -> Result<u64> {
        // An import has blocks that no file names yet.
        let _alone = self.lock_collection();
        let garbage = self.garbage.swap(0, Ordering::Relaxed);
        self.collected.store(garbage, Ordering::Relaxed);
        self.sync_all()?;
        if let Some(retention) = self.blocks.retention() {
            retention.begin();
        }
        self.blocks.begin_watch();
        let marked = self.mark();
        if let Some(retention) = self.blocks.retention() {
            retention.end(marked.as_ref().ok());
        }
        let outcome = marked.and_then(|marked| self.sweep(&marked));
        self.blocks.end_watch();
        if outcome.is_err() {
            self.freed(garbage);
        }
        outcome
    }

    /// What the `.f` files and the retained snapshots name and the open files hold.
    pub(super) fn mark(&self) -> Result<Marked> {
        self.moved.store(false, Ordering::SeqCst);
        let mut marked = self.mark_folder()?;
        self.mark_snapshots(&mut marked)?;
        self.mark_elsewhere(&mut marked)?;
        self.mark_open(&mut marked)?;
        self.mark_elsewhere(&mut marked)?;
        Ok(marked)
    }

    /// What the `.f` at a path of the volume names, or those below it.
    pub(super) fn mark_path(&self, path: &Path, marked: &mut Marked) -> Result<()> {
        let parent = host_path(path.parent().unwrap_or(Path::new("")));
        if let Some(name) = path.file_name() {
            let host = names::file_to_host(name);
            let dir = self
                .folder
                .dir(&parent)
                .map_err(|error| VolumeError::host("open a directory", error))?;
            let flags = OFlags::RDONLY | OFlags::NONBLOCK;
            if let Ok(file) = open_below(dir.as_fd(), &host, flags, Mode::empty()) {
                marked.needs = self.needs_below(self.needs_of_dir(&parent)?, file.as_fd());
                return self.mark_file(&File::from(file), &parent.join(&host), marked);
            }
        }
        let needs = self.needs_of_dir(&parent)?;
        self.mark_below(host_path(path), needs, marked)
    }

    /// What a `.f` names, by its host name in an open directory.
    pub(super) fn mark_at(&self, dir: &OwnedFd, host: &OsStr, marked: &mut Marked) -> Result<()> {
        let file = open_below(
            dir.as_fd(),
            host,
            OFlags::RDONLY | OFlags::NONBLOCK,
            Mode::empty(),
        )
        .map_err(|error| VolumeError::host("open a .f", error))?;
        self.mark_file(&File::from(file), Path::new(host), marked)
    }

    /// What the `.f` files name.
    pub(super) fn mark_folder(&self) -> Result<Marked> {
        let mut marked = Marked::as_far_as_here(self.default_needs());
        self.mark_below(PathBuf::new(), marked.needs, &mut marked)?;
        if self.moved.load(Ordering::SeqCst) {
            return Err(VolumeError::Invalid("files moved while the folder was walked"));
        }
        Ok(marked)
    }

    fn mark_below(&self, top: PathBuf, above: Needs, marked: &mut Marked) -> Result<()> {
        let mut todo = vec![(top, above)];
        while let Some((directory, above)) = todo.pop() {
            // No directory may move from where it has not been looked for to where it has.
            let _still = self.renames.read();
            let dir = match self.folder.dir(&directory) {
                Ok(dir) => dir,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(VolumeError::Invalid("the folder changed while it was walked"));
                }
                Err(error) => return Err(VolumeError::host("open a directory", error)),
            };
            let needs = self.needs_below(above, dir.as_fd());
            for (name, kind) in entries(&dir)? {
                match kind {
                    FileType::Directory => todo.push((directory.join(&name), needs)),
                    FileType::RegularFile if matches!(names::from_host(&name), Some(HostName::File(_))) => {
                        match open_below(
                            dir.as_fd(),
                            &name,
                            OFlags::RDONLY | OFlags::NONBLOCK,
                            Mode::empty(),
                        ) {
                            Ok(host) => {
                                marked.needs = self.needs_below(needs, host.as_fd());
                                self.mark_file(&File::from(host), &directory.join(&name), marked)?;
                            }
                            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                            Err(error) => return Err(VolumeError::host("open a .f", error)),
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// What the open files hold. One that was closed since its `.f` was looked at took note of what it named then.
    pub(super) fn mark_open(&self, marked: &mut Marked) -> Result<()> {
        for file in self.handles.all() {
            // What is being written back has its blocks in the pieces once the lock is free.
            let locked = file.write_back.try_lock_for(WRITE_BACK_WITHIN);
            let _no_write_back =
                locked.ok_or(VolumeError::Invalid("a file has been written back for long"))?;
            marked.needs = self.needs_of_open(&file);
            let state = file.state.lock();
            for (_, piece) in state.pieces.iter() {
                match piece.source {
                    Source::Block { id, .. } => marked.add(id),
                    Source::Index { id, depth } => self.mark_index(id, depth, marked)?,
                    _ => {}
                }
            }
            state.pieces.intact_blocks().for_each(|id| marked.add(id));
        }
        Ok(())
    }

    pub(super) fn mark_file(&self, host: &File, path: &Path, marked: &mut Marked) -> Result<()> {
        let bytes = SlotBytes::read(host).map_err(|error| VolumeError::host("read a .f", error))?;
        let keys = self.blocks.keys();
        let damaged = |reason: String| VolumeError::Damaged {
            path: path.display().to_string(),
            reason: format!("{reason}; nothing is collected while it is in the folder"),
        };
        let chosen = choose(&bytes, keys, self.blocks.tiered().store().as_ref()).map_err(damaged)?;
        if let Some(manifest) = chosen.manifest {
            self.mark_content(&manifest.content, marked)?;
        }
        // The older slot still counts while the newer one is not known to be durable.
        for place in [Slot::A, Slot::B] {
            if chosen.slot != Some(place)
                && let Ok(Some(manifest)) = slot::decode(bytes.slot(place), keys)
                && self.has_unsynced(host)?
            {
                self.mark_content(&manifest.content, marked)?;
            }
        }
        Ok(())
    }

    fn has_unsynced(&self, host: &File) -> Result<bool> {
        let stat = rustix::fs::fstat(host).map_err(|error| VolumeError::host("look at a .f", error))?;
        Ok(self.durability.of(self.shown_ino(stat.st_ino)).is_some())
    }

    pub(super) fn mark_content(&self, content: &Content, marked: &mut Marked) -> Result<()> {
        match content {
            Content::Index { depth, refs } => refs
                .iter()
                .try_for_each(|entry| self.mark_index(entry.id, *depth, marked)),
            other => {
                other.block_ids().for_each(|id| marked.add(id));
                Ok(())
            }
        }
    }

    fn mark_index(&self, id: BlockId, depth: u8, marked: &mut Marked) -> Result<()> {
        if depth == 0 || depth > INDEX_DEPTH_MAX || !marked.add_index(id) {
            return Ok(());
        }
        let needs = marked.needs;
        let read = match (
            self.blocks.read_once(id, None, Wait::Never),
            &mut marked.elsewhere,
        ) {
            (Err(BlockError::WouldWait), Some(missing)) => {
                missing.push((id, depth, needs));
                return Ok(());
            }
            (read, _) => read,
        };
        let plain = read.map_err(|error| unreadable(&id, &error))?;
        self.mark_named(&id, depth, &plain, marked)
    }

    /// Looks at what was elsewhere, with nothing locked.
    pub(super) fn mark_elsewhere(&self, marked: &mut Marked) -> Result<()> {
        while let Some((id, depth, needs)) = marked.elsewhere.as_mut().and_then(Vec::pop) {
            marked.needs = needs;
            let read = self.blocks.read_once(id, None, Wait::Bounded);
            let plain = read.map_err(|error| unreadable(&id, &error))?;
            self.mark_named(&id, depth, &plain, marked)?;
        }
        Ok(())
    }

    fn mark_named(&self, id: &BlockId, depth: u8, plain: &[u8], marked: &mut Marked) -> Result<()> {
        if depth == 1 {
            let extents = index::decode_extents(plain).map_err(|error| unreadable(id, &error))?;
            let blocks = extents.iter().filter_map(|extent| extent.block);
            blocks.for_each(|id| marked.add(id));
            return Ok(());
        }
        let refs = index::decode_refs(plain).map_err(|error| unreadable(id, &error))?;
        refs.iter()
            .try_for_each(|entry| self.mark_index(entry.id, depth - 1, marked))
    }

    /// Blocks of the store that nothing refers to. Removes none.
    pub fn garbage(&self) -> Result<Vec<BlockId>> {
        let _alone = self.lock_collection();
        self.sync_all()?;
        self.blocks.begin_watch();
        let found = self.mark().and_then(|marked| {
            let store = self.blocks.tiered().store();
            let (mut after, mut unused) = (None, Vec::new());
            loop {
                let page = store.list(after, STEP).map_err(VolumeError::store)?;
                let Some((last, _)) = page.last() else { break };
                after = Some(*last);
                unused.extend(page.iter().map(|(id, _)| *id).filter(|id| !marked.contains(id)));
            }
            Ok(self.blocks.not_taken_up(unused))
        });
        self.blocks.end_watch();
        found
    }

    pub(super) fn sweep(&self, marked: &Marked) -> Result<u64> {
        let store = self.blocks.tiered().store();
        let (mut after, mut removed) = (None, 0);
        loop {
            let page = store.list(after, STEP).map_err(VolumeError::store)?;
            let Some((last, _)) = page.last() else {
                return Ok(removed);
            };
            after = Some(*last);
            let unmarked: Vec<BlockId> = page
                .iter()
                .map(|(id, _)| *id)
                .filter(|id| !marked.contains(id))
                .collect();
            removed += self.blocks.remove_unused(&unmarked)?;
        }
    }
}

fn unreadable(id: &BlockId, why: &dyn std::fmt::Display) -> VolumeError {
    VolumeError::Damaged {
        path: format!("index block {}", id.short()),
        reason: why.to_string(),
    }
}

/// Where a directory of the volume is in the folder.
pub(super) fn host_path(path: &Path) -> PathBuf {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(names::dir_to_host(name)),
            _ => None,
        })
        .collect()
}
