//! Files that are open for writing here while another device's version takes their name, or takes it away.
//!
//! Such a file is not waited for. It is put aside: it loses its name and goes on under one that nobody sees, so that its handles go on with the
//! version that they opened. If it is closed as it was, it is gone; it is in the snapshots. When something was written, both sides really changed,
//! and it gets a name that everybody sees: that of the copy which the merge made of this very version, if there is one and nobody touched it; else
//! a conflict name, also where its own is free: what the others left beside that may not go with it.
//!
//! Invariant: what a `close` or `fsync` said is kept is under a name that is seen. What is under a hidden one is as the last commit had it, so that a crash,
//! after which hidden names are removed, takes nothing. Called by `apply`, `handles` and `write_back`.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::changes::Note;
use super::error::{Result, VolumeError};
use super::look::DirAt;
use super::nameless::hold;
use super::open_file::{OpenFile, State, new_file_id};
use super::{ROOT_INO, Volume};
use crate::base::names::{self, TEMP_PREFIX};
use crate::base::types::{FileKind, OpenMode};
use crate::base::{DeviceId, FileId};
use crate::folder::host::{attr_of, open_below, stat_at};
use crate::merge::{Content as Kind, Version, conflict_name};
use crate::object::Content;

/// A name in a directory of the volume.
#[derive(Debug, Clone)]
pub struct Spot {
    /// The directory.
    pub dir: DirAt,
    /// Its path in the volume.
    pub path: PathBuf,
    /// The name.
    pub name: OsString,
}

/// The copy that a merge made of a version.
#[derive(Debug, Clone)]
pub struct CopyAt {
    /// Where it is.
    pub spot: Spot,
    /// Its id.
    pub id: FileId,
    /// What is in it.
    pub content: Content,
}

/// How a file that is open for writing gives way.
#[derive(Debug, Clone)]
pub struct GiveWay {
    /// This device, for the conflict name.
    pub author: DeviceId,
    /// The path in the volume of the directory that it is in.
    pub path: PathBuf,
    /// The copy of the version that is here.
    pub copy: Option<CopyAt>,
}

/// Where a file that gave way is, and where it is to be once it is written to.
#[derive(Debug)]
pub struct Aside {
    /// The directory and the name that nobody sees.
    dir: Arc<OwnedFd>,
    temp: OsString,
    was: Spot,
    give_way: GiveWay,
}

/// What becomes of a name that is to be taken.
pub(super) enum Way {
    /// It can be taken.
    Free,
    /// What was done here has to be committed first.
    Busy,
    /// Its file was put aside.
    Aside(Arc<OpenFile>),
    /// Its file was written to since the last commit, and is under another name that is seen.
    Beside(Arc<OpenFile>),
}

/// A name that a file is to get.
struct Landing {
    fd: Arc<OwnedFd>,
    ino: u64,
    name: OsString,
    host: OsString,
    id: FileId,
    /// What is there, to be replaced.
    there: Option<Stat>,
}

impl Volume {
    /// Whether a name is of a file that is open for writing, or that was written to and is not in its `.f` yet.
    pub fn is_held(&self, dir: &DirAt, name: &OsStr) -> Result<bool> {
        let _still = self.renames.read();
        match self.find(&dir.fd, dir.ino, name) {
            Ok((_, stat)) => Ok(self.is_written(&stat)),
            Err(VolumeError::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether somebody writes, or may, or has written what is not in the `.f` yet.
    pub(super) fn is_written(&self, stat: &Stat) -> bool {
        let open = self.handles.open_file(self.shown_ino(stat.st_ino));
        open.is_some_and(|file| {
            let state = file.state.lock();
            state.writers > 0 || state.changed
        })
    }

    /// Has what is at a name make way for another version, or for none. `renames` is held alone.
    pub(super) fn make_way(
        &self,
        at: (&DirAt, &OsStr),
        stat: &Stat,
        give_way: Option<GiveWay>,
    ) -> Result<Way> {
        let (dir, name) = at;
        let Some(file) = self.handles.open_file(self.shown_ino(stat.st_ino)) else {
            return Ok(match self.noted(dir.ino, name) {
                None => Way::Free,
                Some(_) => Way::Busy,
            });
        };
        let mut state = file.state.lock();
        // Under the lock: a slot that is written notes it before it lets go.
        let noted = self.noted(dir.ino, name);
        let is_used = state.writers > 0 || state.changed;
        let give_way = match (noted, is_used, give_way) {
            (Some(Note::Any), ..) | (Some(_), false, _) | (_, true, None) => return Ok(Way::Busy),
            (None, false, _) => return Ok(Way::Free),
            (_, true, Some(give_way)) => give_way,
        };
        if noted.is_none() && state.aside.is_some() {
            return Ok(Way::Free);
        }
        if noted.is_some() && give_way.copy.is_none() {
            return Ok(Way::Busy);
        }
        let aside = Aside {
            dir: Arc::clone(self.folder.root()),
            temp: OsString::from(format!("{TEMP_PREFIX}{}", new_file_id()?)),
            was: Spot {
                dir: dir.clone(),
                path: give_way.path.clone(),
                name: name.to_owned(),
            },
            give_way,
        };
        let host = names::file_to_host(name);
        match rustix::fs::linkat(&dir.fd, &host, &aside.dir, &aside.temp, AtFlags::empty()) {
            Ok(()) => {}
            // On another filesystem, or it has as many names as it may.
            Err(Errno::XDEV | Errno::MLINK | Errno::PERM) => return Ok(Way::Busy),
            Err(error) => return Err(VolumeError::host("put a file aside", error)),
        }
        if noted.is_none() {
            state.aside = Some(Box::new(aside));
            state.replaced = true;
            drop(state);
            return Ok(Way::Aside(file));
        }
        drop(state);
        match self.land(&file, &aside) {
            Ok(()) => Ok(Way::Beside(file)),
            Err(error) => {
                self.remove_hidden(&aside);
                Err(error)
            }
        }
    }

    /// The name stays after all.
    pub(super) fn way_not_taken(&self, way: Way) {
        let Way::Aside(file) = way else { return };
        let aside = {
            let mut state = file.state.lock();
            state.replaced = false;
            state.aside.take()
        };
        if let Some(aside) = aside {
            self.remove_hidden(&aside);
        }
    }

    /// The name is gone, which was of this inode. Returns the file that made way.
    pub(super) fn way_taken(
        &self,
        way: Way,
        (stat, held): (&Stat, Option<OwnedFd>),
        parent: u64,
        name: &OsStr,
    ) -> Option<Arc<OpenFile>> {
        let ino = self.shown_ino(stat.st_ino);
        match way {
            Way::Aside(file) | Way::Beside(file) => {
                self.nodes.unlinked(ino, parent, name);
                self.moved.store(true, Ordering::SeqCst);
                let held = held.filter(|_| self.nodes.kind(ino).is_some());
                if let Some(held) = held.filter(|_| self.nodes.names(ino).is_empty()) {
                    self.nameless.keep_open(ino, held);
                }
                Some(file)
            }
            Way::Free | Way::Busy => {
                self.name_gone(stat, held, parent, name);
                self.was_replaced(ino);
                None
            }
        }
    }

    /// What opening a file does to it: it is emptied, if that is asked for, and not written to if its name is another version's by now.
    pub(super) fn begin(&self, file: &OpenFile, mode: OpenMode) -> Result<()> {
        if mode.write || mode.truncate {
            file.may_change()?;
        }
        match mode.truncate {
            true => self.resize(file, 0),
            false => Ok(()),
        }
    }

    /// What was written to a file that made way gets its name. What cannot be stored now is tried again.
    pub(super) fn keep_written(&self, file: Option<Arc<OpenFile>>) {
        if let Some(file) = file
            && file.state.lock().changed
            && let Err(error) = self.write_back(&file)
        {
            tracing::warn!(file = %self.nodes.shown_path(file.ino), %error, "what is written to a file that was changed elsewhere cannot be stored yet");
        }
    }

    /// Another device's version took the last name of what nobody here wrote to: who comes by the old number to write is sent to look again.
    fn was_replaced(&self, ino: u64) {
        self.nameless.replaced(ino);
        if let Some(file) = self.handles.open_file(ino) {
            let mut state = file.state.lock();
            state.replaced |= state.unlinked;
        }
    }

    /// What was written to a file that is aside is to be kept: it gets a name that is seen. Its slot says its new id once it is written, and only then
    /// it is noted.
    pub(super) fn surface(&self, file: &OpenFile) -> Result<()> {
        let _alone = self.renames.write();
        let Some(aside) = file.state.lock().aside.take() else {
            return Ok(());
        };
        let landed = self.land(file, &aside);
        if landed.is_err() {
            file.state.lock().aside = Some(aside);
        }
        landed
    }

    /// Nobody has a file open any more that was put aside, and nobody wrote to it; or it has its name again.
    pub(super) fn leave_aside(&self, file: &OpenFile, state: &State) {
        for ino in &state.ways {
            self.forget(*ino, 1);
        }
        let Some(aside) = &state.aside else { return };
        self.remove_hidden(aside);
        self.freed(state.pieces.stored());
        self.durability.forget(file.ino);
        self.sizes.lock().forget(file.ino);
    }

    fn remove_hidden(&self, aside: &Aside) {
        if let Err(error) = rustix::fs::unlinkat(&aside.dir, &aside.temp, AtFlags::empty()) {
            tracing::debug!(%error, "a hidden file is left behind");
        }
    }

    /// Moves a file from its hidden name to one that is seen. `renames` is held alone.
    fn land(&self, file: &OpenFile, aside: &Aside) -> Result<()> {
        let mut ways = Vec::new();
        let landing = match self.copy_landing(aside, &mut ways)? {
            Some(landing) => landing,
            None => self.free_landing(aside, &mut ways)?,
        };
        let failed = |error| VolumeError::host("give a file a name", error);
        let held = match &landing.there {
            Some(stat) => {
                let held = hold(&landing.fd, &landing.host, stat);
                rustix::fs::renameat(&aside.dir, &aside.temp, &landing.fd, &landing.host).map_err(failed)?;
                held
            }
            None => {
                let flags = RenameFlags::NOREPLACE;
                rustix::fs::renameat_with(&aside.dir, &aside.temp, &landing.fd, &landing.host, flags)
                    .map_err(failed)?;
                None
            }
        };
        self.moved.store(true, Ordering::SeqCst);
        if let Some(stat) = landing.there {
            self.name_gone(&stat, held, landing.ino, &landing.name);
            self.was_replaced(self.shown_ino(stat.st_ino));
        }
        {
            let mut state = file.state.lock();
            // Another file has its old one.
            state.id = landing.id;
            state.changed = true;
            state.replaced = false;
            state.ways.extend(ways);
        }
        self.nodes
            .renamed(file.ino, (0, OsStr::new("")), (landing.ino, &landing.name));
        self.nameless.forget(file.ino);
        self.forget_entry(landing.ino, &landing.name);
        let name = landing.name.to_string_lossy();
        tracing::info!(%name, "a file that is open here was changed here and elsewhere: what is written here is kept beside");
        rustix::fs::fsync(&landing.fd).map_err(failed)
    }

    /// The place of the copy that the merge made, if it is still what it was.
    fn copy_landing(&self, aside: &Aside, ways: &mut Vec<u64>) -> Result<Option<Landing>> {
        let Some(copy) = &aside.give_way.copy else {
            return Ok(None);
        };
        let Ok((fd, ino)) = self.reach(&copy.spot, false, ways) else {
            return Ok(None);
        };
        let name = &copy.spot.name;
        let (host, stat) = match self.find(&fd, ino, name) {
            Ok(found) => found,
            Err(VolumeError::NotFound) => return Ok(None),
            Err(error) => return Err(error),
        };
        if attr_of(&stat).kind != FileKind::Regular
            || self.noted(ino, name).is_some()
            || self.is_written(&stat)
        {
            return Ok(None);
        }
        let dir = self.dir_at(Arc::clone(&fd))?;
        let is_same = match self.content_at(&dir, &host) {
            Ok((id, content, _)) => id == Some(copy.id) && content == copy.content,
            Err(_) => false,
        };
        Ok(is_same.then(|| Landing {
            fd,
            ino,
            name: name.clone(),
            host,
            id: copy.id,
            there: Some(stat),
        }))
    }

    /// A conflict name in the directory that it was in. That one comes back if it is gone.
    fn free_landing(&self, aside: &Aside, ways: &mut Vec<u64>) -> Result<Landing> {
        let (fd, ino) = match self.reach(&aside.was, true, ways) {
            Ok(reached) => reached,
            // A file is where the directory was.
            Err(error) => {
                tracing::warn!(directory = %aside.was.path.display(), %error, "a file gets its name at the top, since its directory is gone");
                (Arc::clone(self.folder.root()), ROOT_INO)
            }
        };
        let id = new_file_id()?;
        let mut hash = [0; 32];
        hash[..FileId::LEN].copy_from_slice(&id.0);
        let content = Kind::File(Version {
            hash,
            author: aside.give_way.author,
        });
        let was = aside.was.name.as_encoded_bytes();
        let conflict = |digits| {
            use std::os::unix::ffi::OsStringExt;
            OsString::from_vec(conflict_name(was, &content, &id.0, digits).into())
        };
        for name in [conflict(8), conflict(32)] {
            match self.find(&fd, ino, &name) {
                Err(VolumeError::NotFound) => {
                    let host = names::file_to_host(&name);
                    let there = None;
                    return Ok(Landing {
                        fd,
                        ino,
                        name,
                        host,
                        id,
                        there,
                    });
                }
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        Err(VolumeError::Exists)
    }

    /// A directory that the table of nodes knows afterwards: as the one it was, or by its path. `make`: what is gone of that is made again.
    fn reach(&self, spot: &Spot, make: bool, ways: &mut Vec<u64>) -> Result<(Arc<OwnedFd>, u64)> {
        let is_it = |fd: &Arc<OwnedFd>| {
            let stat = rustix::fs::fstat(fd);
            stat.is_ok_and(|stat| stat.st_nlink > 0 && self.shown_ino(stat.st_ino) == spot.dir.ino)
        };
        if let Ok(fd) = self.nodes.dir(&self.folder, spot.dir.ino)
            && is_it(&fd)
        {
            return Ok((fd, spot.dir.ino));
        }
        let (mut fd, mut ino) = (Arc::clone(self.folder.root()), ROOT_INO);
        for part in parts(&spot.path) {
            (fd, ino) = self.enter(&fd, ino, part, make)?;
            ways.push(ino);
        }
        Ok((fd, ino))
    }

    fn enter(&self, fd: &Arc<OwnedFd>, ino: u64, name: &OsStr, make: bool) -> Result<(Arc<OwnedFd>, u64)> {
        let (host, stat) = match self.find(fd, ino, name) {
            Ok((_, stat)) if !FileType::from_raw_mode(stat.st_mode).is_dir() => {
                return Err(VolumeError::NotDirectory);
            }
            Ok(found) => found,
            Err(VolumeError::NotFound) if make => {
                let host = names::dir_to_host(name);
                self.note(ino, name);
                rustix::fs::mkdirat(fd, &host, Mode::from_raw_mode(0o755))
                    .map_err(|error| VolumeError::host("create a directory", error))?;
                self.forget_entry(ino, name);
                let stat = stat_at(fd.as_fd(), &host)
                    .map_err(|error| VolumeError::host("look at what was created", error))?;
                (host, stat)
            }
            Err(error) => return Err(error),
        };
        let below = self.shown_ino(stat.st_ino);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = open_below(fd.as_fd(), &host, flags, Mode::empty())
            .map_err(|error| VolumeError::host("open a directory", error))?;
        self.nodes.found(below, FileKind::Directory, ino, name);
        Ok((Arc::new(fd), below))
    }
}

fn parts(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    })
}
