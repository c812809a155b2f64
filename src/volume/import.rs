//! Plain files found in the folder become files of the volume, in their place.
//!
//! Invariant: a plain file is removed only after its content was sealed, made durable and read back identical, and only if it is still
//! the inode, the size and the times that were read, and nobody has it open for writing. A crash in between leaves the plain file, or both, never neither. Called by `daemon`.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};

use super::attributes::now;
use super::error::{Result, VolumeError};
use super::open_file::{Chosen, OpenFile, State, choose, new_file_id};
use super::{Volume, Wait};
use crate::base::names::{self, HostName, MARKER, TEMP_PREFIX};
use crate::folder::host::{open_below, stat_at};
use crate::folder::slots::SlotBytes;
use crate::folder::writers::Writers;
use crate::object::Content;

/// Bytes read from a plain file at once.
const STEP: usize = 1 << 20;

/// Files sealed before one sync makes them all durable.
const BATCH_FILES: usize = 512;

/// Plaintext sealed before one sync makes it all durable, in bytes.
const BATCH_BYTES: u64 = 256 << 20;

/// A file changed less than this long ago may still be being written: it has its turn later.
const QUIET_SECS: i64 = 2;

/// Other names tried when `NAME` is taken by a file with other content.
const OTHER_NAMES: u32 = 1000;

/// What an import did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Imported {
    /// Files of the volume made of plain files, links and special files included.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files left for later, since they had just been changed or are being written.
    pub waiting: u64,
    /// What could not be imported, and why.
    pub failures: Vec<String>,
}

/// A plain file that was sealed and waits for the sync.
struct Sealed {
    dir: Arc<OwnedFd>,
    shown: PathBuf,
    host: OsString,
    temp: OsString,
    stat: Stat,
    file: Arc<OpenFile>,
}

struct Run<'a> {
    volume: &'a Volume,
    done: Imported,
    batch: Vec<Sealed>,
    batch_bytes: u64,
    /// First name of plain files that have several, by inode: the others become links to it.
    links: HashMap<u64, (Arc<OwnedFd>, OsString)>,
    /// Who was writing when the run began: to spare the sealing of what would not stay. The last word is had when a file is replaced.
    writers: Option<Writers>,
    each: &'a mut dyn FnMut(&Imported),
}

impl Volume {
    /// Imports every plain file in the folder. `each` is told of the progress after every batch.
    pub fn import_plain_files(&self, each: &mut dyn FnMut(&Imported)) -> Result<Imported> {
        self.import_below(Path::new(""), each)
    }

    /// Imports the plain files in and below one directory of the folder, given by its host path.
    pub fn import_below(&self, host: &Path, each: &mut dyn FnMut(&Imported)) -> Result<Imported> {
        self.check_writable()?;
        let _one = self.importing.lock();
        let _no_collection = self.committing();
        let mut run = Run {
            volume: self,
            done: Imported::default(),
            batch: Vec::new(),
            batch_bytes: 0,
            links: HashMap::new(),
            writers: None,
            each,
        };
        let mut todo = vec![host.to_owned()];
        while let Some(directory) = todo.pop() {
            let dir = match self.folder.dir(&directory) {
                Ok(dir) => dir,
                // Removed since it was seen.
                Err(error)
                    if error.kind() == std::io::ErrorKind::NotFound && !directory.as_os_str().is_empty() =>
                {
                    continue;
                }
                Err(error) if !directory.as_os_str().is_empty() => {
                    run.failed(&directory, &error);
                    continue;
                }
                Err(error) => return Err(VolumeError::host("open the folder", error)),
            };
            for (name, kind) in plain_entries(&dir)? {
                let path = directory.join(&name);
                if kind == FileType::Directory {
                    todo.push(path);
                } else if let Err(error) = run.take(&dir, &path, &name) {
                    run.failed(&path, &error);
                }
            }
        }
        run.finish()?;
        Ok(run.done)
    }

    /// Removes what an import that was cut short has left behind. Called before anything is imported or mounted.
    pub fn remove_leftovers(&self) -> Result<()> {
        let mut todo = vec![PathBuf::new()];
        while let Some(directory) = todo.pop() {
            let Ok(dir) = self.folder.dir(&directory) else {
                continue;
            };
            for (name, kind) in entries(&dir)? {
                if kind == FileType::Directory {
                    todo.push(directory.join(&name));
                } else if name.as_bytes().starts_with(TEMP_PREFIX.as_bytes()) {
                    rustix::fs::unlinkat(&dir, &name, AtFlags::empty())
                        .map_err(|error| VolumeError::host("remove a leftover of an import", error))?;
                }
            }
        }
        Ok(())
    }
}

impl Run<'_> {
    /// What was at a path is a file of the volume now, with this host name. Directories on the way may be new to it too.
    fn note(&self, path: &Path, target: &OsStr) {
        let mut below = path.parent().unwrap_or(Path::new(""));
        self.volume.note_path(below, target);
        while let (Some(above), Some(name)) = (below.parent(), below.file_name()) {
            self.volume.note_path(above, name);
            below = above;
        }
    }

    fn failed(&mut self, path: &Path, error: &dyn std::fmt::Display) {
        tracing::warn!(file = %path.display(), %error, "a plain file is not imported");
        self.done.failures.push(format!("{}: {error}", path.display()));
    }

    fn take(&mut self, dir: &Arc<OwnedFd>, path: &Path, name: &OsStr) -> Result<()> {
        let stat =
            stat_at(dir.as_fd(), name).map_err(|error| VolumeError::host("look at the file", error))?;
        names::check(name).map_err(|_| VolumeError::NameTooLong)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            // Nothing to seal: the inode is what it will be, only its name changes.
            let target = self.free_name(dir, name)?;
            rustix::fs::renameat_with(dir, name, dir, &target, RenameFlags::NOREPLACE)
                .map_err(|error| VolumeError::host("rename", error))?;
            self.note(path, &target);
            self.done.files += 1;
            return Ok(());
        }
        if let Some((first_dir, first)) = self.links.get(&stat.st_ino) {
            let target = self.free_name(dir, name)?;
            rustix::fs::linkat(first_dir, first, dir, &target, AtFlags::empty())
                .and_then(|()| rustix::fs::unlinkat(dir, name, AtFlags::empty()))
                .map_err(|error| VolumeError::host("link", error))?;
            self.note(path, &target);
            self.done.files += 1;
            return Ok(());
        }
        if now().secs.saturating_sub(stat.st_ctime) < QUIET_SECS && now().secs >= stat.st_ctime {
            self.done.waiting += 1;
            return Ok(());
        }
        if self.writers.get_or_insert_with(Writers::now).has(&stat) {
            self.done.waiting += 1;
            return Ok(());
        }
        let sealed = self.seal(dir, path, name, &stat)?;
        self.batch_bytes += stat.st_size.max(0).cast_unsigned();
        self.batch.push(sealed);
        // A file with several names is put in place at once, so that the next name finds it.
        if self.batch.len() >= BATCH_FILES || self.batch_bytes >= BATCH_BYTES || stat.st_nlink > 1 {
            self.finish()?;
        }
        Ok(())
    }

    fn seal(&self, dir: &Arc<OwnedFd>, path: &Path, name: &OsStr, stat: &Stat) -> Result<Sealed> {
        let volume = self.volume;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let plain = open_below(dir.as_fd(), name, flags, Mode::empty())
            .map_err(|error| VolumeError::host("open the plain file", error))?;
        let plain = File::from(plain);
        let temp = OsString::from(format!("{TEMP_PREFIX}{}", new_file_id()?));
        let host = open_below(
            dir.as_fd(),
            &temp,
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
            Mode::RUSR | Mode::WUSR,
        )
        .map_err(|error| VolumeError::host("create a temporary file", error))?;
        let sealed = (|| {
            let host = File::from(host);
            let ino = rustix::fs::fstat(&host)
                .map_err(|error| VolumeError::host("look at the file", error))?
                .st_ino;
            let file = OpenFile::new(ino, host, true, State::empty(new_file_id()?));
            let outcome = self
                .copy_in(&plain, &file)
                .and_then(|()| compare(volume, &plain, &file));
            let memory = file.state.lock().pieces.in_memory();
            volume.budget.changed(memory, 0);
            outcome?;
            copy_attributes(&plain, &file.host, stat)?;
            Ok(file)
        })();
        match sealed {
            Ok(file) => {
                let (dir, stat) = (Arc::clone(dir), *stat);
                Ok(Sealed {
                    dir,
                    shown: path.to_owned(),
                    host: name.to_owned(),
                    temp,
                    stat,
                    file,
                })
            }
            Err(error) => {
                remove_temp(dir, &temp);
                Err(error)
            }
        }
    }

    fn copy_in(&self, mut plain: &File, file: &Arc<OpenFile>) -> Result<()> {
        let mut buffer = vec![0; STEP];
        let mut offset = 0;
        loop {
            let read = plain
                .read(&mut buffer)
                .map_err(|error| VolumeError::host("read the plain file", error))?;
            if read == 0 {
                return self.volume.write_back(file);
            }
            if self.volume.budget.is_over() {
                self.volume.make_room(file)?;
            }
            self.volume
                .put(file, Some(offset), &buffer[..read], Wait::Bounded)?;
            offset += read as u64;
        }
    }

    /// Makes the batch durable and puts every file of it in the place of its plain one.
    fn finish(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.volume
            .blocks
            .tiered()
            .store()
            .sync()
            .map_err(VolumeError::store)?;
        self.volume.sync_folder()?;
        self.batch_bytes = 0;
        let writers = Writers::now();
        for sealed in std::mem::take(&mut self.batch) {
            self.volume.durability.forget(sealed.file.ino);
            match self.replace(&sealed, &writers) {
                Ok(true) => {
                    self.done.files += 1;
                    self.done.bytes += sealed.stat.st_size.max(0).cast_unsigned();
                }
                Ok(false) => {
                    remove_temp(&sealed.dir, &sealed.temp);
                    self.done.waiting += 1;
                }
                Err(error) => {
                    remove_temp(&sealed.dir, &sealed.temp);
                    self.failed(&sealed.shown, &error);
                }
            }
        }
        (self.each)(&self.done);
        Ok(())
    }

    /// False when the file is still being written.
    fn replace(&mut self, sealed: &Sealed, writers: &Writers) -> Result<bool> {
        let still = stat_at(sealed.dir.as_fd(), &sealed.host)
            .map_err(|error| VolumeError::host("look again", error))?;
        let identity = |stat: &Stat| {
            (
                stat.st_ino,
                stat.st_size,
                stat.st_mtime,
                stat.st_mtime_nsec,
                stat.st_ctime,
                stat.st_ctime_nsec,
            )
        };
        if writers.has(&still) || identity(&still) != identity(&sealed.stat) {
            return Ok(false);
        }
        let target = if self.is_same_already(sealed)? {
            // An import that was cut short had come this far.
            rustix::fs::unlinkat(&sealed.dir, &sealed.temp, AtFlags::empty())
                .map_err(|error| VolumeError::host("remove the temporary file", error))?;
            names::file_to_host(&sealed.host)
        } else {
            let target = self.free_name(&sealed.dir, &sealed.host)?;
            rustix::fs::renameat_with(
                &sealed.dir,
                &sealed.temp,
                &sealed.dir,
                &target,
                RenameFlags::NOREPLACE,
            )
            .map_err(|error| VolumeError::host("put the new file in place", error))?;
            target
        };
        self.note(&sealed.shown, &target);
        rustix::fs::unlinkat(&sealed.dir, &sealed.host, AtFlags::empty())
            .map_err(|error| VolumeError::host("remove the plain file", error))?;
        if sealed.stat.st_nlink > 1 {
            self.links
                .insert(sealed.stat.st_ino, (Arc::clone(&sealed.dir), target));
        }
        Ok(true)
    }

    /// Whether the file that has the name already holds the very same content.
    fn is_same_already(&self, sealed: &Sealed) -> Result<bool> {
        let target = names::file_to_host(&sealed.host);
        let Ok(there) = open_below(
            sealed.dir.as_fd(),
            &target,
            OFlags::RDONLY | OFlags::NONBLOCK,
            Mode::empty(),
        ) else {
            return Ok(false);
        };
        let bytes =
            SlotBytes::read(&File::from(there)).map_err(|error| VolumeError::host("read the .f", error))?;
        let store = self.volume.blocks.tiered().store();
        let Ok(chosen) = choose(&bytes, self.volume.blocks.keys(), store.as_ref()) else {
            return Ok(false);
        };
        let ours =
            SlotBytes::read(&sealed.file.host).map_err(|error| VolumeError::host("read the .f", error))?;
        let Ok(ours) = choose(&ours, self.volume.blocks.keys(), store.as_ref()) else {
            return Ok(false);
        };
        // The `.f` of an empty file holds nothing, or a manifest that says so.
        let content = |chosen: Chosen| {
            let manifest = chosen.manifest;
            manifest.map_or(Content::Inline(Vec::new()), |manifest| manifest.content)
        };
        Ok(content(chosen) == content(ours))
    }

    /// The host name for a plain file, or another when a file of the volume has it.
    fn free_name(&self, dir: &Arc<OwnedFd>, name: &OsStr) -> Result<OsString> {
        for attempt in 0..OTHER_NAMES {
            let mut candidate = name.as_bytes().to_vec();
            if attempt > 0 {
                candidate.extend_from_slice(format!(".imported-{attempt}").as_bytes());
            }
            let host = names::file_to_host(&OsString::from_vec(candidate));
            match stat_at(dir.as_fd(), &host) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(host),
                Err(error) => return Err(VolumeError::host("look for a free name", error)),
                Ok(_) => {}
            }
        }
        Err(VolumeError::Exists)
    }
}

/// What is not removed now is removed by the next start.
fn remove_temp(dir: &Arc<OwnedFd>, temp: &OsStr) {
    if let Err(error) = rustix::fs::unlinkat(dir, temp, AtFlags::empty()) {
        tracing::warn!(file = %temp.to_string_lossy(), %error, "a temporary file of an import is left behind");
    }
}

/// Reads the sealed content back and compares it with the plain file.
fn compare(volume: &Volume, plain: &File, file: &OpenFile) -> Result<()> {
    let (mut theirs, mut ours) = (vec![0; STEP], Vec::with_capacity(STEP));
    let mut offset = 0;
    loop {
        ours.clear();
        let range = offset..offset + STEP as u64;
        volume.read_file(file, range, &mut ours, Wait::Bounded, None, &mut || {})?;
        let plain_part = &mut theirs[..ours.len()];
        let same = plain.read_exact_at(plain_part, offset).is_ok() && plain_part == ours.as_slice();
        if !same {
            return Err(VolumeError::Invalid(
                "it did not read back identical; the plain file is kept",
            ));
        }
        offset += ours.len() as u64;
        if ours.is_empty() {
            let end = plain
                .metadata()
                .map_err(|error| VolumeError::host("look at the plain file", error))?
                .len();
            return if end == offset {
                Ok(())
            } else {
                Err(VolumeError::Invalid("it grew while it was being imported"))
            };
        }
    }
}

fn copy_attributes(plain: &File, host: &File, stat: &Stat) -> Result<()> {
    let context = "copy the attributes";
    let fail = |error: rustix::io::Errno| VolumeError::host(context, error);
    let mut list = vec![0u8; 64 << 10];
    let mut value = vec![0u8; 64 << 10];
    let len = rustix::fs::flistxattr(plain, &mut list[..]).unwrap_or(0);
    if rustix::process::geteuid().is_root() {
        rustix::fs::fchown(
            host,
            Some(Uid::from_raw(stat.st_uid)),
            Some(Gid::from_raw(stat.st_gid)),
        )
        .map_err(fail)?;
    }
    for name in list[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let name = OsStr::from_bytes(name);
        if let Ok(len) = rustix::fs::fgetxattr(plain, name, &mut value[..]) {
            rustix::fs::fsetxattr(host, name, &value[..len], XattrFlags::empty()).map_err(fail)?;
        }
    }
    rustix::fs::fchmod(host, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(fail)?;
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec as i64,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as i64,
        },
    };
    rustix::fs::futimens(host, &times).map_err(fail)
}

/// What in a directory is not of the volume yet, and the directories to look into.
fn plain_entries(dir: &Arc<OwnedFd>) -> Result<Vec<(OsString, FileType)>> {
    let mut found = entries(dir)?;
    found.retain(|(name, kind)| {
        let ours = matches!(names::from_host(name), Some(HostName::File(_)) | None);
        let kept = name == MARKER || name.as_bytes().starts_with(TEMP_PREFIX.as_bytes());
        *kind == FileType::Directory || !(ours || kept)
    });
    Ok(found)
}

/// The entries of a directory of the folder, by host name.
pub(super) fn entries(dir: &Arc<OwnedFd>) -> Result<Vec<(OsString, FileType)>> {
    let context = "list the folder";
    let own = open_below(
        dir.as_fd(),
        OsStr::new("."),
        OFlags::RDONLY | OFlags::DIRECTORY,
        Mode::empty(),
    )
    .map_err(|error| VolumeError::host(context, error))?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 32 << 10];
    let mut listing = RawDir::new(&own, &mut buffer);
    let mut found = Vec::new();
    while let Some(entry) = listing.next() {
        let entry = entry.map_err(|error| VolumeError::host(context, error))?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let Ok(stat) = stat_at(own.as_fd(), name) else {
                    continue;
                };
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        found.push((name.to_owned(), kind));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::tests::Bench;
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn plain_files_become_files_of_the_volume_with_all_they_carry() {
        let bench = Bench::new();
        let at = |name: &str| bench.path().join(name);
        std::fs::create_dir(at("d")).unwrap();
        std::fs::write(at("d/photo"), vec![7; 3_000_000]).unwrap();
        std::fs::hard_link(at("d/photo"), at("d/second")).unwrap();
        std::fs::write(at("empty"), b"").unwrap();
        std::fs::write(at("taken"), b"plain").unwrap();
        std::os::unix::fs::symlink("target", at("link")).unwrap();
        std::fs::set_permissions(at("d/photo"), PermissionsExt::from_mode(0o640)).unwrap();
        let volume = bench.start();
        bench.write(&volume, "taken", b"of the volume");
        let old = rustix::fs::Timespec {
            tv_sec: 1_000_000_000,
            tv_nsec: 5,
        };
        let times = Timestamps {
            last_access: old,
            last_modification: old,
        };
        rustix::fs::utimensat(rustix::fs::CWD, at("d/photo"), &times, AtFlags::empty()).unwrap();
        let mut rounds = 0;
        // What was changed in the last two seconds waits for its turn.
        while volume.import_plain_files(&mut |_| ()).unwrap().waiting > 0 {
            rounds += 1;
            assert!(rounds < 100);
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        assert_eq!(bench.read(&volume, "d/photo"), vec![7; 3_000_000]);
        assert_eq!(bench.read(&volume, "taken"), b"of the volume");
        assert_eq!(bench.read(&volume, "taken.imported-1"), b"plain");
        assert_eq!(bench.read(&volume, "empty"), b"");
        let photo = std::fs::metadata(at("d/photo.f")).unwrap();
        assert_eq!(
            (photo.mode() & 0o7777, photo.mtime(), photo.nlink()),
            (0o640, 1_000_000_000, 2)
        );
        assert!(std::fs::symlink_metadata(at("link.f")).unwrap().is_symlink());
        let mut left: Vec<_> = entries(&volume.folder.dir(Path::new("")).unwrap()).unwrap();
        left.retain(|(name, kind)| *kind != FileType::Directory && !name.as_bytes().ends_with(b".f"));
        assert_eq!(left, vec![], "nothing plain is left");
    }

    #[test]
    fn a_file_that_somebody_still_writes_waits_however_long_it_stalls() {
        let bench = Bench::new();
        let path = bench.path().join("download");
        let mut writer = File::create(&path).unwrap();
        writer.write_all(b"the first half, ").unwrap();
        std::thread::sleep(std::time::Duration::from_secs(QUIET_SECS as u64 + 1));
        let volume = bench.start();
        let done = volume.import_plain_files(&mut |_| ()).unwrap();
        assert_eq!((done.files, done.waiting, done.failures.len()), (0, 1, 0));
        writer.write_all(b"and the second").unwrap();
        drop(writer);
        while volume.import_plain_files(&mut |_| ()).unwrap().files == 0 {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        assert_eq!(bench.read(&volume, "download"), b"the first half, and the second");
        assert!(!path.exists());
    }

    #[test]
    fn leftovers_of_an_import_that_was_cut_short_are_removed() {
        let bench = Bench::new();
        std::fs::write(bench.path().join(".dfs-tmp-1"), b"half").unwrap();
        bench.start().remove_leftovers().unwrap();
        assert_eq!(std::fs::read_dir(bench.path()).unwrap().count(), 0);
    }
}
