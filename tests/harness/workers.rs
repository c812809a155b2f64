//! Threads that do random work in a mount, each on names of its own, and keep a ledger of what was acknowledged to them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Result;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};

use super::ledger::{Crash, Entry, Found, LoggedFile, NameLog};
use super::volume::TestVolume;
use super::worker::{CrashFlag, Worker};

/// Where the second slot of a `.f` begins, in bytes.
const SLOT_LEN: u64 = 4096;

/// The workers of one volume, across all its crashes.
pub struct Workers {
    mount: PathBuf,
    folder: PathBuf,
    logs: Vec<NameLog>,
}

/// What the workers wrote down in one round.
pub struct Round {
    threads: Vec<std::thread::JoinHandle<NameLog>>,
    crash: CrashFlag,
    fsyncs: std::thread::JoinHandle<()>,
}

impl Workers {
    /// Makes the directories of `count` workers in the mount. They must be durable before the first crash: unmount once.
    pub fn prepare(volume: &TestVolume, count: usize) -> Self {
        let mount = volume.mountpoint();
        fs::create_dir(mount.join("shared")).unwrap();
        let logs = (0..count).map(|worker| {
            let top = PathBuf::from(format!("w{worker}"));
            let dirs = [top.clone(), top.join("a"), top.join("b")];
            for dir in &dirs {
                fs::create_dir(mount.join(dir)).unwrap();
            }
            NameLog::new(dirs.into_iter().map(|dir| (dir, Entry::Directory)).collect())
        });
        Self {
            logs: logs.collect(),
            mount: mount.to_owned(),
            folder: volume.folder().to_owned(),
        }
    }

    /// Sets all to work until [`Round::end`].
    pub fn start(&mut self, seed: u64) -> Round {
        let crash = CrashFlag::default();
        let (sender, receiver) = sync_channel(8);
        let threads = self.logs.drain(..).enumerate().map(|(number, names)| {
            let mut worker = Worker::new(&self.mount, number, seed, names, sender.clone(), crash.clone());
            std::thread::spawn(move || {
                worker.run();
                worker.names
            })
        });
        let threads = threads.collect();
        let also = crash.clone();
        Round {
            threads,
            fsyncs: std::thread::spawn(move || fsync_others(&receiver, &also)),
            crash,
        }
    }

    /// Lets the first worker do so many operations in this thread, or fewer when one fails. The same operations for the same seed.
    pub fn work(&mut self, seed: u64, operations: usize) -> (Ended, Result<()>) {
        let mut logs: Vec<NameLog> = self.logs.drain(..).collect();
        let first = logs.remove(0);
        // Nobody receives: all is synced by the worker itself.
        let (sender, _) = sync_channel(1);
        let mut worker = Worker::new(&self.mount, 0, seed, first, sender, CrashFlag::default());
        let done = worker.work(operations);
        logs.insert(0, worker.names);
        (Ended { logs }, done)
    }

    /// As after a round without an operation.
    pub fn idle(&mut self) -> Ended {
        Ended {
            logs: self.logs.drain(..).collect(),
        }
    }

    /// After the crash, and with the volume mounted again: the round's ledgers against what is there. Panics with all that is wrong.
    #[track_caller]
    pub fn judge(&mut self, round: Ended, crash: Crash) {
        self.logs = round.logs;
        let mut found: Vec<BTreeMap<PathBuf, Found>> = self.logs.iter().map(|_| BTreeMap::new()).collect();
        look(&self.mount, Path::new(""), &mut |path, entry| {
            let owner = owner_of(&path).unwrap_or_else(|| panic!("{} is nobody's", path.display()));
            found[owner].insert(path, entry);
        });
        let mut wrong = Vec::new();
        for (number, (log, found)) in self.logs.iter_mut().zip(&found).enumerate() {
            if let Err(breach) = log.judge(found, crash) {
                wrong.push(format!("worker {number}: {}", breach.said));
                let paths = breach.paths.iter();
                wrong.extend(paths.map(|path| evidence(&self.mount, &self.folder, path)));
            }
        }
        assert!(
            wrong.is_empty(),
            "a promise is broken\n{}\n{}",
            wrong.join("\n"),
            processes_of(&self.folder)
        );
    }
}

/// A round whose workers have stopped.
pub struct Ended {
    logs: Vec<NameLog>,
}

impl Round {
    /// From now on operations may fail: the crash is about to come.
    pub fn crash_comes(&self) {
        self.crash.raise();
    }

    /// Waits for the workers, which the crash has stopped.
    #[track_caller]
    pub fn end(self) -> Ended {
        self.crash_comes();
        let logs = self
            .threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        self.fsyncs.join().unwrap();
        Ended { logs }
    }
}

/// Which worker a path belongs to: `w3/…` and `shared/w3-…`.
fn owner_of(path: &Path) -> Option<usize> {
    let path = path.strip_prefix("shared").unwrap_or(path).to_str()?;
    let number: String = path
        .strip_prefix('w')?
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    number.parse().ok()
}

fn look(mount: &Path, dir: &Path, found: &mut impl FnMut(PathBuf, Found)) {
    for entry in fs::read_dir(mount.join(dir)).unwrap() {
        let path = dir.join(entry.unwrap().file_name());
        let whole = mount.join(&path);
        let meta = fs::symlink_metadata(&whole).unwrap();
        if meta.is_dir() {
            if path != Path::new("shared") {
                found(path.clone(), Found::Directory);
            }
            look(mount, &path, found);
            continue;
        }
        let entry = match fs::read(&whole) {
            Err(e) => Found::Unreadable(e.to_string()),
            Ok(content) if content.len() as u64 != meta.len() => Found::Unreadable(format!(
                "{} bytes long, but {} are read",
                meta.len(),
                content.len()
            )),
            Ok(content) => Found::File {
                ino: meta.ino(),
                content,
            },
        };
        found(path, entry);
    }
}

/// What there is to know of a name that is wrong: its `.f` on the host with the beginning of both slots, and the file in the mount as it
/// is a second later.
fn evidence(mount: &Path, folder: &Path, path: &Path) -> String {
    let mut host = folder.join(path).into_os_string();
    host.push(".f");
    let slots = File::open(&host).map(|file| {
        let start_of = |offset| {
            let mut bytes = [0; 64];
            let len = file.read_at(&mut bytes, offset).unwrap_or(0);
            data_encoding::HEXLOWER.encode(&bytes[..len])
        };
        [0, SLOT_LEN].map(start_of)
    });
    let (on_host, at) = (fs::symlink_metadata(&host), mount.join(path));
    std::thread::sleep(std::time::Duration::from_secs(1));
    let (meta, read) = (
        fs::symlink_metadata(&at),
        fs::read(&at).map(|content| content.len()),
    );
    format!(
        "evidence for {}:\n  host: {on_host:?}\n  slots: {slots:?}\n  mount: {meta:?}\n  bytes read: {read:?}",
        path.display()
    )
}

/// The processes that serve a folder: more than one would be a fault.
fn processes_of(folder: &Path) -> String {
    let mut said = String::from("processes:");
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(folder.to_str().unwrap()) {
            let pid = process.file_name();
            write!(said, "\n  {}: {line}", pid.to_string_lossy()).unwrap();
        }
    }
    said
}

/// Syncs what workers have open, beside their own work on it.
fn fsync_others(files: &Receiver<(File, LoggedFile)>, crash: &CrashFlag) {
    for (file, log) in files {
        let synced = log.acknowledge(Crash::PowerCut, || crash.before(|| file.sync_all()));
        assert!(synced.is_ok() || crash.is_raised(), "fsync: {synced:?}");
    }
}
