//! One worker: which operations it chooses, how it carries them out, and what it writes into the ledger.

use std::fs::{self, File};
use std::io::{Error, Result};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use rustix::fs::{FallocateFlags, RenameFlags};

use super::ledger::{Crash, Entry, LoggedFile, NameLog, Names};
use super::{Dice, noise};

/// Longest single write: the kernel hands it over in one piece, so that the content before and after it are the only versions; but when it
/// begins within a page that is not in the cache, the kernel hands over what lies in that page first (`fuse_fill_write_pages`).
const WRITE_MAX: usize = 192 << 10;
const PAGE: usize = 4096;

/// Files that a worker has at once, about.
const FILES: usize = 14;

/// Files that a worker keeps open from one operation to the next, at most.
const HELD: usize = 3;

pub struct Worker {
    mount: PathBuf,
    number: usize,
    dice: Dice,
    pub names: NameLog,
    held: Vec<(File, LoggedFile)>,
    fsyncs: SyncSender<(File, LoggedFile)>,
    crash: CrashFlag,
    serial: u64,
}

/// Set before a crash begins: from then on operations may fail, and no fsync counts any more, because a disk that is being taken away
/// may say anything (XFS syncs a directory without a look at its own state).
#[derive(Debug, Clone, Default)]
pub struct CrashFlag(Arc<AtomicBool>);

impl CrashFlag {
    pub fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Makes a call whose success counts only if it came before the crash.
    pub fn before(&self, call: impl FnOnce() -> Result<()>) -> Result<()> {
        call()?;
        if self.is_raised() {
            return Err(Error::other("the crash has begun"));
        }
        Ok(())
    }
}

impl Worker {
    /// Worker `number` of the mount, with names of its own. What it sends through `fsyncs` is to be synced beside its work.
    pub fn new(
        mount: &Path,
        number: usize,
        seed: u64,
        names: NameLog,
        fsyncs: SyncSender<(File, LoggedFile)>,
        crash: CrashFlag,
    ) -> Self {
        Self {
            mount: mount.to_owned(),
            number,
            dice: Dice::new(seed.wrapping_mul(1_000_003).wrapping_add(number as u64)),
            names,
            held: Vec::new(),
            fsyncs,
            crash,
            serial: 0,
        }
    }

    /// Works until the crash. Panics when an operation fails before.
    pub fn run(&mut self) {
        while !self.crash.is_raised() {
            if let Err(error) = self.act() {
                // It was set before the crash began.
                assert!(self.crash.is_raised(), "worker {}: {error}", self.number);
                return;
            }
        }
    }

    /// Does so many operations, or fewer when one fails, and closes what it has open.
    pub fn work(&mut self, operations: usize) -> Result<()> {
        let mut done = (0..operations).try_for_each(|_| self.act());
        for (file, log) in std::mem::take(&mut self.held) {
            done = done.and(close(file, &log));
        }
        done
    }

    fn act(&mut self) -> Result<()> {
        if self.files().len() < FILES / 2 {
            return self.create();
        }
        match self.dice.below(28) {
            0..=4 if self.files().len() < FILES => self.create(),
            0..=8 => self.patch(),
            9..=11 => self.append(),
            12..=13 => self.truncate(),
            14..=15 => self.rewrite(),
            16..=18 => self.replace(),
            19 => self.copy(),
            20..=21 => self.unlink(),
            22 => self.rename(),
            23 => self.link(),
            24 => self.exchange(),
            25 => self.rename_dir(),
            26 => self.hold(),
            _ => self.fsync_dir(),
        }
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.mount.join(path)
    }

    fn files(&self) -> Vec<(PathBuf, LoggedFile)> {
        let names = self.names.now().iter();
        names
            .filter_map(|(path, entry)| match entry {
                Entry::File(file) => Some((path.clone(), file.clone())),
                Entry::Directory => None,
            })
            .collect()
    }

    fn any_file(&mut self) -> (PathBuf, LoggedFile) {
        let mut files = self.files();
        files.swap_remove(self.dice.below(files.len() as u64) as usize)
    }

    fn any_dir(&mut self) -> PathBuf {
        let mut dirs: Vec<PathBuf> = vec!["shared".into()];
        let entries = self.names.now().iter();
        dirs.extend(
            entries
                .filter(|(_, entry)| matches!(entry, Entry::Directory))
                .map(|(path, _)| path.clone()),
        );
        dirs.swap_remove(self.dice.below(dirs.len() as u64) as usize)
    }

    fn free_name(&mut self, dir: &Path) -> PathBuf {
        // More than can be taken in one directory.
        let names = 64.max(2 * self.names.now().len() as u64);
        loop {
            self.serial += 1;
            // The one in `shared` tells whose it is; a name comes again after a while.
            let path = dir.join(format!("w{}-{}", self.number, self.serial % names));
            if !self.names.now().contains_key(&path) {
                return path;
            }
        }
    }

    fn len(&mut self) -> usize {
        let bound = [200, 3_983, 9_000, 60_000, 400_000, 5_000_000][self.dice.below(6) as usize];
        self.dice.below(bound) as usize
    }

    fn data(&mut self, len: usize) -> Vec<u8> {
        let seed = self.dice.below(u64::MAX);
        match self.dice.below(8) {
            // Compressible; the same blocks in several files; a hole.
            0 => noise(seed, 64).into_iter().cycle().take(len).collect(),
            1 => noise(seed % 3, len),
            2 => vec![0; len],
            _ => noise(seed, len),
        }
    }

    fn write(&mut self, file: &File, log: &LoggedFile, mut offset: u64, len: usize) -> Result<()> {
        let data = self.data(len);
        for part in data.chunks(WRITE_MAX) {
            let put = |part: &[u8]| {
                let part = part.to_vec();
                move |content: &mut Vec<u8>| {
                    let (from, end) = (offset as usize, offset as usize + part.len());
                    content.resize(content.len().max(end), 0);
                    content[from..end].copy_from_slice(&part);
                }
            };
            let to_boundary = PAGE - offset as usize % PAGE;
            if to_boundary < PAGE && to_boundary < part.len() {
                log.pass_through(
                    format!("the first {to_boundary} of a write of {} at {offset}", part.len()),
                    put(&part[..to_boundary]),
                );
            }
            log.change(
                format!("a write of {} at {offset}", part.len()),
                put(part),
                || match file.write_at(part, offset)? {
                    written if written == part.len() => Ok(()),
                    written => Err(Error::other(format!("{written} of {} bytes written", part.len()))),
                },
            )?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Sometimes an fsync, by this thread or beside it, then the close.
    fn finish(&mut self, file: File, log: &LoggedFile) -> Result<()> {
        match self.dice.below(6) {
            0 => self.fsync(&file, log)?,
            1 => log.acknowledge(Crash::PowerCut, || self.crash.before(|| file.sync_data()))?,
            2 => drop(self.fsyncs.try_send((file.try_clone()?, log.clone()))),
            3 if self.held.len() < HELD => {
                self.held.push((file, log.clone()));
                return Ok(());
            }
            _ => {}
        }
        close(file, log)
    }

    fn create_at(&mut self, path: &Path) -> Result<(File, LoggedFile)> {
        let log = LoggedFile::new(Vec::new());
        let mut file = None;
        let at = self.at(path);
        self.names.change(
            format!("create {}", path.display()),
            &[path.parent().unwrap()],
            &[&log],
            |names| drop(names.insert(path.to_owned(), Entry::File(log.clone()))),
            || {
                let options = File::options().read(true).write(true).create_new(true).open(at);
                options.map(|opened| file = Some(opened))
            },
        )?;
        Ok((file.unwrap(), log))
    }

    fn create(&mut self) -> Result<()> {
        let dir = self.any_dir();
        let path = self.free_name(&dir);
        let (file, log) = self.create_at(&path)?;
        let len = self.len();
        self.write(&file, &log, 0, len)?;
        self.finish(file, &log)?;
        if self.dice.below(4) == 0 {
            self.fsync_one(&dir)
        } else {
            Ok(())
        }
    }

    fn open(&mut self) -> Result<(File, LoggedFile)> {
        let (path, log) = self.any_file();
        let file = File::options().read(true).write(true).open(self.at(&path))?;
        Ok((file, log))
    }

    fn patch(&mut self) -> Result<()> {
        let (file, log) = self.open()?;
        for _ in 0..=self.dice.below(3) {
            let offset = self.dice.below(log.lock().content.len() as u64 + 10_000);
            let len = self.len().min(300_000);
            match self.dice.below(8) {
                0 => {
                    let (from, to) = (offset as usize, offset as usize + len + 1);
                    log.change(
                        format!("a hole of {} at {offset}", len + 1),
                        |content| {
                            let end = content.len();
                            content[from.min(end)..to.min(end)].fill(0);
                        },
                        || {
                            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                            Ok(rustix::fs::fallocate(&file, flags, offset, len as u64 + 1)?)
                        },
                    )?;
                }
                1 => self.fsync(&file, &log)?,
                _ => self.write(&file, &log, offset, len)?,
            }
        }
        self.finish(file, &log)
    }

    fn append(&mut self) -> Result<()> {
        let (path, log) = self.any_file();
        let file = File::options().append(true).open(self.at(&path))?;
        for _ in 0..=self.dice.below(4) {
            let end = log.lock().content.len() as u64;
            let len = self.len().min(200_000);
            self.write(&file, &log, end, len)?;
        }
        self.finish(file, &log)
    }

    fn truncate(&mut self) -> Result<()> {
        let (path, log) = self.any_file();
        let len = self.dice.below(log.lock().content.len() as u64 * 5 / 4 + 2);
        let edit = |content: &mut Vec<u8>| content.resize(len as usize, 0);
        let what = format!("a truncation to {len}");
        if self.dice.below(2) == 0 {
            let at = self.at(&path);
            log.change(what, edit, || Ok(nix::unistd::truncate(&at, len as i64)?))
        } else {
            let (file, log) = self.open_path(&path, log)?;
            log.change(what, edit, || file.set_len(len))?;
            self.finish(file, &log)
        }
    }

    fn open_path(&self, path: &Path, log: LoggedFile) -> Result<(File, LoggedFile)> {
        Ok((File::options().read(true).write(true).open(self.at(path))?, log))
    }

    /// As a shell's `>` does it.
    fn rewrite(&mut self) -> Result<()> {
        let (path, log) = self.any_file();
        let at = self.at(&path);
        let mut file = None;
        log.change("O_TRUNC".into(), Vec::clear, || {
            let opened = File::options().write(true).truncate(true).open(at);
            opened.map(|opened| file = Some(opened))
        })?;
        let file = file.unwrap();
        let len = self.len();
        self.write(&file, &log, 0, len)?;
        self.finish(file, &log)
    }

    /// As editors do it: with fsync or without.
    fn replace(&mut self) -> Result<()> {
        let (target, _) = self.any_file();
        let dir = target.parent().unwrap().to_owned();
        let temporary = self.free_name(&dir);
        let (file, log) = self.create_at(&temporary)?;
        let len = self.len() + 1;
        self.write(&file, &log, 0, len)?;
        let flushed = self.dice.below(8) > 0;
        if self.dice.below(3) == 0 {
            self.fsync(&file, &log)?;
        }
        let file = if flushed {
            close(file, &log).map(|()| None)?
        } else {
            Some(file)
        };
        self.rename_over(&temporary, &target, &log, true)?;
        file.map_or(Ok(()), |file| close(file, &log))?;
        if self.dice.below(3) == 0 {
            self.fsync_one(&dir)
        } else {
            Ok(())
        }
    }

    fn rename_over(&mut self, from: &Path, to: &Path, log: &LoggedFile, replaces: bool) -> Result<()> {
        let (old, new) = (self.at(from), self.at(to));
        let named_twice = {
            let same = |entry: &&Entry| matches!(entry, Entry::File(other) if other.is(log));
            self.names.now().get(to).is_some_and(|entry| same(&entry))
        };
        if named_twice {
            // Two names of one file: rename(2) does nothing.
            return fs::rename(old, new);
        }
        let what = format!("rename {} {}", from.display(), to.display());
        let dirs = [from.parent().unwrap(), to.parent().unwrap()];
        let whole: &[&LoggedFile] = if replaces { &[log] } else { &[] };
        self.names.change_whole(
            what,
            &dirs,
            &[log],
            whole,
            |names| {
                let entry = names.remove(from).unwrap();
                names.insert(to.to_owned(), entry);
            },
            || fs::rename(old, new),
        )
    }

    fn rename(&mut self) -> Result<()> {
        let (from, log) = self.any_file();
        let dir = self.any_dir();
        let to = self.free_name(&dir);
        self.rename_over(&from, &to, &log, false)
    }

    fn copy(&mut self) -> Result<()> {
        let (source, from) = self.open()?;
        let dir = self.any_dir();
        let path = self.free_name(&dir);
        let (file, log) = self.create_at(&path)?;
        let content = from.lock().content.clone();
        let mut at = 0;
        while at < content.len() {
            let len = self.dice.below(3_000_000) as usize + 1;
            let end = content.len().min(at + len);
            let mut copied = None;
            // What is here is copied at once; the test's own reading and writing would be several versions.
            log.change(
                format!("a copy of {at} to {end}"),
                |to| to.extend_from_slice(&content[at..end]),
                || {
                    let (mut offset_in, mut offset_out) = (at as u64, at as u64);
                    let len = end - at;
                    let done = rustix::fs::copy_file_range(
                        &source,
                        Some(&mut offset_in),
                        &file,
                        Some(&mut offset_out),
                        len,
                    )?;
                    copied = Some(done);
                    if done == len {
                        Ok(())
                    } else {
                        Err(Error::other(format!("{done} of {len} copied")))
                    }
                },
            )?;
            at = end;
        }
        drop(source);
        self.finish(file, &log)
    }

    fn unlink(&mut self) -> Result<()> {
        let (path, log) = self.any_file();
        let at = self.at(&path);
        self.names.change(
            format!("unlink {}", path.display()),
            &[path.parent().unwrap()],
            &[&log],
            |names| drop(names.remove(&path)),
            || fs::remove_file(at),
        )
    }

    fn link(&mut self) -> Result<()> {
        let (from, log) = self.any_file();
        let dir = self.any_dir();
        let to = self.free_name(&dir);
        let (old, new) = (self.at(&from), self.at(&to));
        self.names.change(
            format!("link {} {}", from.display(), to.display()),
            &[to.parent().unwrap()],
            &[&log],
            |names| drop(names.insert(to.clone(), Entry::File(log.clone()))),
            || fs::hard_link(old, new),
        )
    }

    fn exchange(&mut self) -> Result<()> {
        let ((one, log), (other, other_log)) = (self.any_file(), self.any_file());
        let (from, to) = (self.at(&one), self.at(&other));
        if log.is(&other_log) {
            return Ok(());
        }
        self.names.change_whole(
            format!("exchange {} {}", one.display(), other.display()),
            &[one.parent().unwrap(), other.parent().unwrap()],
            &[&log, &other_log],
            &[&log, &other_log],
            |names| {
                names.insert(one.clone(), Entry::File(other_log.clone()));
                names.insert(other.clone(), Entry::File(log.clone()));
            },
            || {
                let cwd = rustix::fs::CWD;
                Ok(rustix::fs::renameat_with(
                    cwd,
                    &from,
                    cwd,
                    &to,
                    RenameFlags::EXCHANGE,
                )?)
            },
        )
    }

    /// Moves a directory with all that is in it.
    fn rename_dir(&mut self) -> Result<()> {
        let top = PathBuf::from(format!("w{}", self.number));
        let (one, other) = [("a", "c"), ("b", "d")][self.dice.below(2) as usize];
        let (mut from, mut to) = (top.join(one), top.join(other));
        if self.names.now().contains_key(&to) {
            std::mem::swap(&mut from, &mut to);
        }
        let (old, new) = (self.at(&from), self.at(&to));
        self.names.change(
            format!("rename directory {} {}", from.display(), to.display()),
            &[&top],
            &[],
            |names| {
                *names = std::mem::take(names)
                    .into_iter()
                    .map(|(path, entry)| match path.strip_prefix(&from) {
                        Ok(rest) if rest.as_os_str().is_empty() => (to.clone(), entry),
                        Ok(rest) => (to.join(rest), entry),
                        Err(_) => (path, entry),
                    })
                    .collect::<Names>();
            },
            || fs::rename(old, new),
        )
    }

    fn hold(&mut self) -> Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let which = self.dice.below(self.held.len() as u64) as usize;
        let (file, log) = self.held.swap_remove(which);
        self.finish(file, &log)
    }

    fn fsync(&self, file: &File, log: &LoggedFile) -> Result<()> {
        log.acknowledge(Crash::PowerCut, || self.crash.before(|| file.sync_all()))
    }

    fn fsync_dir(&mut self) -> Result<()> {
        let dir = self.any_dir();
        self.fsync_one(&dir)
    }

    fn fsync_one(&mut self, dir: &Path) -> Result<()> {
        self.crash.before(|| File::open(self.at(dir))?.sync_all())?;
        self.names.synced(dir);
        Ok(())
    }
}

/// Unlike dropping it, says whether it was flushed.
fn close(file: File, log: &LoggedFile) -> Result<()> {
    log.acknowledge(Crash::Kill, || Ok(nix::unistd::close(file)?))
}
