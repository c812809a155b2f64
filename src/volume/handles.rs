//! What is open: handles, the files behind them, and the operations on content.
//!
//! Invariant: an inode has at most one `OpenFile`, loaded under the lock of its shard, so that no one works on a version that another
//! has already replaced; it stays in the table until its last handle is closed and what was written is in its `.f`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::attributes::now;
use super::beside::Beside;
use super::error::{Result, VolumeError};
use super::listing::DirHandle;
use super::nameless::has_no_name;
use super::open_file::{OpenFile, State, choose, new_file_id};
use super::pieces::{Piece, Source};
use super::read::ReadAhead;
use super::shown::is_shown;
use super::spill::{STREAM_MIN, Spill};
use super::write_back::Synced;
use super::{Allocate, Opened, SeekTo, Volume, Wait};
use crate::base::activity::{self, Waits};
use crate::base::limits::{CHUNK_MAX, FILE_MAX};
use crate::base::types::{Attr, Caller, FileKind, OpenMode};
use crate::folder::host::{self, attr_of, open_below};
use crate::folder::slots::SlotBytes;
use crate::object::slot;

const SHARDS: usize = 64;

/// An open handle of a file.
#[derive(Debug)]
pub struct Handle {
    pub(super) file: Arc<OpenFile>,
    pub(super) mode: OpenMode,
    ahead: Mutex<ReadAhead>,
    /// How many failed syncs of the file its owner knows of.
    told: AtomicU64,
}

/// All handles, and all open files.
#[derive(Debug)]
pub struct Handles {
    files: Vec<Mutex<HashMap<u64, Arc<OpenFile>>>>,
    handles: RwLock<HashMap<u64, Arc<Handle>>>,
    dirs: RwLock<HashMap<u64, Arc<DirHandle>>>,
    /// Handles of what dfs shows of itself: the text as it was when opened.
    pub(super) texts: RwLock<HashMap<u64, Arc<Vec<u8>>>>,
    pub(super) next: AtomicU64,
}

impl Default for Handles {
    fn default() -> Self {
        Self {
            files: (0..SHARDS).map(|_| Mutex::default()).collect(),
            handles: RwLock::default(),
            dirs: RwLock::default(),
            texts: RwLock::default(),
            next: AtomicU64::new(1),
        }
    }
}

impl Handles {
    /// The open file of an inode.
    pub fn open_file(&self, ino: u64) -> Option<Arc<OpenFile>> {
        self.shard(ino).lock().get(&ino).cloned()
    }

    /// The open file behind a handle.
    pub fn file(&self, fh: u64) -> Option<Arc<OpenFile>> {
        self.handles
            .read()
            .get(&fh)
            .map(|handle| Arc::clone(&handle.file))
    }

    /// All open files.
    pub fn all(&self) -> Vec<Arc<OpenFile>> {
        self.files
            .iter()
            .flat_map(|shard| shard.lock().values().cloned().collect::<Vec<_>>())
            .collect()
    }

    /// The table that an inode's open file is in.
    pub fn shard(&self, ino: u64) -> &Mutex<HashMap<u64, Arc<OpenFile>>> {
        &self.files[(ino % SHARDS as u64) as usize]
    }

    /// A directory handle.
    pub fn dir(&self, fh: u64) -> Result<Arc<DirHandle>> {
        self.dirs.read().get(&fh).cloned().ok_or(VolumeError::BadHandle)
    }

    /// Adds a directory handle.
    pub fn add_dir(&self, dir: DirHandle) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        self.dirs.write().insert(fh, Arc::new(dir));
        fh
    }

    /// Drops a directory handle.
    pub fn remove_dir(&self, fh: u64) {
        self.dirs.write().remove(&fh);
    }

    pub(super) fn get(&self, fh: u64) -> Result<Arc<Handle>> {
        self.handles
            .read()
            .get(&fh)
            .cloned()
            .ok_or(VolumeError::BadHandle)
    }

    pub(super) fn add(&self, file: Arc<OpenFile>, mode: OpenMode) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        let told = AtomicU64::new(file.state.lock().failed_syncs.0);
        self.handles.write().insert(
            fh,
            Arc::new(Handle {
                file,
                mode,
                ahead: Mutex::default(),
                told,
            }),
        );
        fh
    }
}

/// Reads a byte of the `.f` as a program would: the host decides whether that changes the time of the last access. It changes no other,
/// as setting the time would. A file is as good without it.
fn note_access(host: &File) {
    let noted = host::note_access(host.as_fd(), true)
        .and_then(|()| host.read_at(&mut [0], 0))
        .and_then(|_| host::note_access(host.as_fd(), false));
    if let Err(error) = noted {
        tracing::debug!(%error, "an access is not noted");
    }
}

impl Volume {
    /// Opens a file. May have to wait for the kernel's cache when it is opened for writing.
    pub fn open(&self, ino: u64, mode: OpenMode, wait: Wait) -> Result<Opened> {
        if mode.write || mode.truncate {
            self.check_writable()?;
        }
        if is_shown(ino) {
            return self.open_shown(ino, mode, wait);
        }
        let write = mode.write || mode.truncate;
        let file = self.acquire(ino, write, wait)?;
        let begun = self.begin(&file, mode);
        if let Err(error) = begun {
            self.give_back(&file, write);
            return Err(error);
        }
        if mode.note_access {
            note_access(&file.host);
        }
        let generation = file.state.lock().generation;
        let keep_cache = self.nodes.content_seen(ino, generation) && !mode.truncate;
        Ok(Opened {
            fh: self.handles.add(file, mode),
            keep_cache,
            direct: false,
        })
    }

    /// Creates and opens a file.
    pub fn create(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        open: OpenMode,
        caller: &Caller,
    ) -> Result<(Attr, Opened)> {
        let _still = self.renames.read();
        let (host, stat) = self.create_host(parent, name, mode, caller)?;
        let mut attr = attr_of(&stat);
        attr.ino = self.shown_ino(stat.st_ino);
        self.durability.forget(attr.ino);
        let mut state = State::empty(new_file_id()?);
        state.handles = 1;
        state.writers = usize::from(open.write || open.truncate);
        let file = OpenFile::new(attr.ino, host, true, state);
        self.handles
            .shard(attr.ino)
            .lock()
            .insert(attr.ino, Arc::clone(&file));
        attr.generation = self.nodes.created(attr.ino, FileKind::Regular, parent, name);
        self.nodes.content_seen(attr.ino, 0);
        Ok((
            attr,
            Opened {
                fh: self.handles.add(file, open),
                keep_cache: false,
                direct: false,
            },
        ))
    }

    /// Replaces the content of `out` by up to `len` bytes from `offset`; fewer only at the end of the file. Returns what was opened
    /// beside them for a random read: see [`Volume::give_beside`].
    pub fn read(
        &self,
        fh: u64,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
        wait: Wait,
    ) -> Result<Option<Beside>> {
        out.clear();
        let text = self.handles.texts.read().get(&fh).cloned();
        if let Some(text) = text {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
            out.extend_from_slice(&text[from..from.saturating_add(len).min(text.len())]);
            return Ok(None);
        }
        let handle = self.handles.get(fh)?;
        if wait == Wait::Bounded {
            self.check_kept(handle.file.ino)?;
        }
        let planned = handle.ahead.lock().plan_once(offset, len as u64);
        let mut fresh = None;
        let wanted = planned.is_none().then_some(&mut fresh);
        let mut next = || {
            if let Some((open, fetch)) = &planned {
                self.read_ahead(&handle.file, open, fetch);
            }
        };
        let range = offset..offset.saturating_add(len as u64);
        let read = self.read_file(&handle.file, range, out, wait, wanted, &mut next);
        if wait == Wait::Never && read.is_err() {
            // It is read again at once, by somebody who may wait.
            handle.ahead.lock().put_off(offset, planned);
        }
        read.map(|()| fresh.map(|fresh| fresh.of(&handle.file)))
    }

    /// Writes all of `data`. Waits while the write budget is used up.
    pub fn write(&self, fh: u64, offset: u64, data: &[u8], wait: Wait) -> Result<()> {
        let handle = self.handles.get(fh)?;
        if !handle.mode.write {
            return Err(VolumeError::BadHandle);
        }
        if wait == Wait::Never && handle.mode.sync {
            return Err(VolumeError::WouldWait);
        }
        let file = &handle.file;
        if self.budget.is_over() {
            if wait == Wait::Never {
                return Err(VolumeError::WouldWait);
            }
            self.make_room(file)?;
        }
        self.put(
            file,
            if handle.mode.append { None } else { Some(offset) },
            data,
            wait,
        )?;
        if handle.mode.sync {
            self.sync_for(&handle, Synced::All)
        } else {
            Ok(())
        }
    }

    /// Buffers a write, at the end of the file where no offset is given.
    pub(super) fn put(
        &self,
        file: &Arc<OpenFile>,
        offset: Option<u64>,
        data: &[u8],
        wait: Wait,
    ) -> Result<()> {
        let _gate = file.enter(wait)?;
        loop {
            let mut state = file.state.lock();
            let offset = offset.unwrap_or(state.pieces.size());
            let end = offset
                .checked_add(data.len() as u64)
                .filter(|end| *end <= FILE_MAX)
                .ok_or(VolumeError::TooLarge)?;
            let mut touching = state.pieces.touching(offset..end);
            if touching.any(|(_, piece)| matches!(piece.source, Source::Index { .. })) {
                drop(touching);
                drop(state);
                self.expand(file, offset..end, wait)?;
                continue;
            }
            drop(touching);
            let before = state.pieces.in_memory();
            state.pieces.write(offset, data);
            state.changed = true;
            state.mtime = Some(now());
            let after = state.pieces.in_memory();
            self.budget.changed(before, after);
            let worth_it = after >= STREAM_MIN * 2 || (after > 0 && self.budget.is_tight());
            if worth_it && !state.queued {
                state.queued = self.background.queue(file);
            }
            return Ok(());
        }
    }

    /// Called at every `close`: what was written survives the death of the daemon once this returns.
    pub fn flush(&self, fh: u64) -> Result<()> {
        if self.handles.texts.read().contains_key(&fh) {
            return Ok(());
        }
        let handle = self.handles.get(fh)?;
        self.write_back(&handle.file)
    }

    /// As [`Volume::flush`], if that takes no waiting: nothing was written, or a content that fits into the slot. Says whether it did.
    pub fn flush_at_once(&self, fh: u64) -> Result<bool> {
        if self.handles.texts.read().contains_key(&fh) {
            return Ok(true);
        }
        let handle = self.handles.get(fh)?;
        let Some(_one) = handle.file.write_back.try_lock() else {
            return Ok(false);
        };
        {
            let state = handle.file.state.lock();
            if !state.changed || state.unlinked {
                return Ok(true);
            }
            let in_memory = |piece: &Piece| matches!(piece.source, Source::Memory { .. } | Source::Hole);
            if state.pieces.size() > slot::packed_max() as u64
                || state.must_settle()
                || !state.pieces.iter().all(|(_, piece)| in_memory(piece))
            {
                return Ok(false);
            }
        }
        self.write_small(&handle.file)
    }

    /// Whether closing a handle leaves nothing to be written back.
    pub fn is_flushed(&self, fh: u64) -> bool {
        self.handles
            .get(fh)
            .is_ok_and(|handle| !handle.file.state.lock().changed)
    }

    /// What was written survives a power cut once this returns.
    pub fn fsync(&self, fh: u64, what: Synced) -> Result<()> {
        let handle = self.handles.get(fh)?;
        if is_shown(handle.file.ino) {
            return Ok(());
        }
        self.sync_for(&handle, what)?;
        if self.fsync_replicas && !self.wait_for_replicas(&handle.file)? {
            return Err(VolumeError::host(
                "have the replicas that fsync is to wait for",
                Errno::TIMEDOUT,
            ));
        }
        Ok(())
    }

    /// Makes durable what was written. Fails, once for each handle, also when a sync failed since the handle was opened or was told of one,
    /// even if what was written has become durable since.
    pub(super) fn sync_for(&self, handle: &Handle, what: Synced) -> Result<()> {
        let synced = self.write_through(&handle.file, what);
        let (failed, errno) = handle.file.state.lock().failed_syncs;
        let told = handle.told.swap(failed, Ordering::SeqCst);
        synced?;
        if told < failed {
            return Err(VolumeError::host(
                "sync what was written before",
                errno.unwrap_or(Errno::IO),
            ));
        }
        Ok(())
    }

    /// Closes a handle.
    pub fn release(&self, fh: u64) {
        self.handles.texts.write().remove(&fh);
        let handle = self.handles.handles.write().remove(&fh);
        if let Some(handle) = handle {
            self.give_back(&handle.file, handle.mode.write || handle.mode.truncate);
        }
    }

    /// Reserves or frees space of a file.
    pub fn fallocate(&self, fh: u64, offset: u64, len: u64, what: Allocate, keep_size: bool) -> Result<()> {
        let handle = self.handles.get(fh)?;
        let file = &handle.file;
        let end = offset
            .checked_add(len)
            .filter(|end| *end <= FILE_MAX)
            .ok_or(VolumeError::TooLarge)?;
        if what != Allocate::Reserve {
            self.expand(
                file,
                offset.saturating_sub(1)..end.saturating_add(1),
                Wait::Bounded,
            )?;
            let _gate = file.enter(Wait::Bounded)?;
            let mut state = file.state.lock();
            let before = state.pieces.in_memory();
            state.pieces.punch(offset..end);
            state.changed = true;
            state.mtime = Some(now());
            self.budget.changed(before, state.pieces.in_memory());
        }
        if !keep_size && end > file.state.lock().pieces.size() {
            self.resize(file, end)?;
        }
        Ok(())
    }

    /// The next byte that is, or is not, in a hole.
    pub fn lseek(&self, fh: u64, offset: u64, to: SeekTo) -> Result<u64> {
        let handle = self.handles.get(fh)?;
        let size = handle.file.state.lock().pieces.size();
        if offset >= size {
            return Err(VolumeError::NoSuchData);
        }
        self.expand(&handle.file, offset..size, Wait::Bounded)?;
        let state = handle.file.state.lock();
        let wanted = |source: &Source| matches!(source, Source::Hole) == (to == SeekTo::Hole);
        let mut found = state
            .pieces
            .touching(offset..size)
            .filter(|(_, piece)| wanted(&piece.source));
        match (found.next(), to) {
            (Some((at, _)), _) => Ok(at.max(offset)),
            (None, SeekTo::Hole) => Ok(size),
            (None, SeekTo::Data) => Err(VolumeError::NoSuchData),
        }
    }

    /// Runs something on a file as if it were open, for writing if `write`.
    pub(super) fn with_open<T>(
        &self,
        ino: u64,
        write: bool,
        run: impl FnOnce(&Arc<OpenFile>) -> Result<T>,
    ) -> Result<T> {
        let file = self.acquire(ino, write, Wait::Bounded)?;
        let outcome = run(&file);
        self.give_back(&file, write);
        outcome
    }

    /// The open file of an inode, loaded if need be, with one more handle counted, and one more writer if `write`.
    fn acquire(&self, ino: u64, write: bool, wait: Wait) -> Result<Arc<OpenFile>> {
        let file = self.count_in(ino, write)?;
        if write && let Err(error) = self.await_given(&file, wait) {
            self.give_back(&file, write);
            return Err(error);
        }
        Ok(file)
    }

    fn count_in(&self, ino: u64, write: bool) -> Result<Arc<OpenFile>> {
        let _still = self.renames.read();
        let mut shard = self.handles.shard(ino).lock();
        if let Some(file) = shard.get(&ino)
            && (file.writable || !write)
        {
            let mut state = file.state.lock();
            state.handles += 1;
            state.writers += usize::from(write);
            return Ok(Arc::clone(file));
        }
        if shard.contains_key(&ino) {
            // Opened before without the right to write, and the right was given since.
            return Err(VolumeError::NotPermitted);
        }
        let (host, writable) = self.open_host(ino, write)?;
        let bytes = SlotBytes::read(&host).map_err(|error| VolumeError::host("read the .f", error))?;
        let store = self.blocks.tiered().store();
        let chosen =
            choose(&bytes, self.blocks.keys(), store.as_ref()).map_err(|reason| VolumeError::Damaged {
                path: self.nodes.shown_path(ino),
                reason,
            })?;
        if let Some(warning) = &chosen.warning {
            tracing::warn!(file = %self.nodes.shown_path(ino), %warning, "an older version of a file is used");
        }
        let mut state = State::of(chosen, new_file_id()?, store.as_ref());
        self.sizes.lock().check(ino, state.pieces.size());
        if let Some(unsynced) = self.durability.of(ino) {
            state.durable = unsynced.durable;
        }
        state.leftover = state.latest.is_none() && !bytes.is_empty();
        state.handles = 1;
        state.writers = usize::from(write);
        state.unlinked = self.nameless.has(ino) && has_no_name(&host);
        state.replaced = self.nameless.is_replaced(ino);
        self.budget.changed(0, state.pieces.in_memory());
        let file = OpenFile::new(ino, host, writable, state);
        shard.insert(ino, Arc::clone(&file));
        Ok(file)
    }

    fn open_host(&self, ino: u64, write: bool) -> Result<(File, bool)> {
        let (place, stat) = match self.stat_place(ino) {
            Err(VolumeError::Stale) => return Ok((self.open_nameless(ino)?, true)),
            found => found?,
        };
        if attr_of(&stat).kind != FileKind::Regular {
            return Err(VolumeError::Invalid("not a regular file"));
        }
        let open = |flags| {
            open_below(
                place.dir.as_fd(),
                &place.host,
                flags | OFlags::NONBLOCK,
                Mode::empty(),
            )
        };
        match open(OFlags::RDWR) {
            Ok(file) => Ok((file.into(), true)),
            Err(_) if !write => open(OFlags::RDONLY)
                .map(|file| (file.into(), false))
                .map_err(|error| VolumeError::host("open the .f", error)),
            Err(error) => Err(VolumeError::host("open the .f for writing", error)),
        }
    }

    /// One handle fewer. The last one writes back what a failed `flush` or a memory map left behind.
    pub(super) fn give_back(&self, file: &Arc<OpenFile>, write: bool) {
        let unwritten = {
            let state = file.state.lock();
            state.handles == 1 && state.changed && !state.unlinked
        };
        if unwritten && let Err(error) = self.write_back(file) {
            tracing::error!(file = %self.nodes.shown_path(file.ino), %error, "what was written cannot be stored yet; it stays in memory and is tried again");
        }
        let mut shard = self.handles.shard(file.ino).lock();
        let mut state = file.state.lock();
        state.handles = state.handles.saturating_sub(1);
        state.writers = state.writers.saturating_sub(usize::from(write));
        self.drop_if_idle(&mut shard, file, &state);
    }

    /// Takes a file out of the table that nobody has open and that is all in its `.f`.
    pub(super) fn drop_if_idle(
        &self,
        shard: &mut HashMap<u64, Arc<OpenFile>>,
        file: &Arc<OpenFile>,
        state: &State,
    ) {
        let here = shard.get(&file.ino).is_some_and(|here| Arc::ptr_eq(here, file));
        if state.handles == 0 && here && (!state.changed || state.unlinked) {
            shard.remove(&file.ino);
            self.leave_aside(file, state);
            self.budget.changed(state.pieces.in_memory(), 0);
        }
    }

    /// Brings memory back under the budget: by sealing what this file has, then by waiting for others. A file that has nearly nothing in
    /// memory does not wait: what is there may belong to files whose sealing waits for the network.
    pub(super) fn make_room(&self, file: &Arc<OpenFile>) -> Result<()> {
        self.spill(file, Spill::All)?;
        if !self.budget.is_over() || file.state.lock().pieces.in_memory() <= CHUNK_MAX as u64 {
            return Ok(());
        }
        let _waiting = activity::wait(Waits::Budget)?;
        if self.budget.wait(Instant::now() + self.timeout) {
            return Ok(());
        }
        let reason = file.state.lock().failed.clone();
        Err(VolumeError::NoSpace(reason.unwrap_or_else(|| {
            "written data cannot be stored fast enough".into()
        })))
    }
}
