//! The calls that a running daemon makes to the host, counted by strace(1): what an operation costs, whatever else the machine is doing.
//!
//! The daemon is the real one, without a seam for tests. What it has mapped into memory (SQLite's index of its log) is not seen.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::command::{Cmd, Running};
use super::volume::TestVolume;
use super::{SOON, wait_for};

/// Nothing more to come: longer than the daemon puts off what it does later (half a second the store, `sync_interval` the rest).
const QUIET: Duration = Duration::from_millis(1700);
/// Longest wait for that.
const SETTLED: Duration = Duration::from_secs(60);

/// Calls that depend on how threads are scheduled and on the allocator, not on what is done.
const OF_THREADS: &[&str] = &[
    "futex",
    "sched_yield",
    "madvise",
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "brk",
    "restart_syscall",
    "clock_nanosleep",
    "epoll_wait",
    "epoll_pwait",
    "epoll_ctl",
    "poll",
    "ppoll",
    "clone",
    "clone3",
    "set_robust_list",
    "rseq",
    "prctl",
    "sigaltstack",
    "rt_sigprocmask",
    "rt_sigaction",
    "rt_sigreturn",
    "sched_getaffinity",
    "gettid",
    "getpid",
    "exit",
];

/// Calls by which it is asked how it is: whoever looks for one daemon asks all of them.
const OF_QUESTIONS: &[&str] = &[
    "accept4",
    "recvfrom",
    "sendto",
    "getsockopt",
    "setsockopt",
    "ioctl",
];

/// What a call was on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum On {
    /// The kernel's side of the mount.
    Device,
    /// A `.f`.
    Manifest,
    /// SQLite's write-ahead log.
    Log,
    /// The database itself, and the index of its log, which carries its locks.
    Database,
    /// The files beside it that hold larger blocks.
    Segments,
    /// What the host tells of changes in the folder.
    Notices,
    /// Anything else with a descriptor, or none.
    Other,
}

impl On {
    fn of(path: &str) -> Self {
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        if path.starts_with("/dev/fuse") {
            Self::Device
        } else if path.starts_with("anon_inode:inotify") {
            Self::Notices
        } else if path.ends_with(".sqlite-wal") {
            Self::Log
        } else if path.ends_with(".sqlite") || path.ends_with(".sqlite-shm") {
            Self::Database
        } else if path.contains(".sqlite-blocks") {
            Self::Segments
        } else if path.ends_with(".f") {
            Self::Manifest
        } else {
            Self::Other
        }
    }
}

/// The calls of a while: how many of each kind, and the sum of what they returned.
#[derive(Debug, Default, Clone)]
pub struct Calls(BTreeMap<(String, On), (u64, u64)>);

impl Calls {
    /// How many calls of these names, on what `which` accepts.
    pub fn count(&self, names: &[&str], which: impl Fn(On) -> bool) -> u64 {
        self.sum(names, which).0
    }

    /// Bytes written to what `which` accepts.
    pub fn written(&self, which: impl Fn(On) -> bool) -> u64 {
        self.sum(&["write", "writev", "pwrite64", "pwritev", "pwritev2"], |on| {
            on != On::Device && which(on)
        })
        .1
    }

    /// Every kind of call that was made because of what was asked, not of how threads were scheduled: those on the device apart.
    pub fn kinds(&self) -> BTreeMap<String, u64> {
        let mut kinds = BTreeMap::new();
        for ((name, on), (count, _)) in &self.0 {
            let name = match (name.as_str(), on) {
                ("read", On::Device) => "requests",
                ("write" | "writev", On::Device) => "answers",
                // Those by which threads wake each other, and of which one may tell of several changes.
                ("read" | "write", On::Other | On::Notices) => continue,
                (name, _) if OF_THREADS.contains(&name) || OF_QUESTIONS.contains(&name) => continue,
                ("fcntl", On::Database) => "locks",
                (name, _) => name,
            };
            *kinds.entry(name.to_owned()).or_default() += count;
        }
        kinds
    }

    fn sum(&self, names: &[&str], which: impl Fn(On) -> bool) -> (u64, u64) {
        let chosen = self
            .0
            .iter()
            .filter(|((name, on), _)| names.contains(&name.as_str()) && which(*on));
        chosen.fold((0, 0), |(count, sum), (_, (c, s))| (count + c, sum + s))
    }

    /// Grows as long as the daemon works on what it was asked, whoever asks it how it is meanwhile.
    fn work(&self) -> u64 {
        let chosen = self.0.iter().filter(|((_, on), _)| *on != On::Other);
        chosen.map(|(_, (count, _))| count).sum()
    }
}

/// A daemon whose calls are counted, until the value is dropped.
pub struct Counter {
    trace: PathBuf,
    at: u64,
    /// Calls of each thread that have begun and not ended.
    begun: HashMap<String, (String, On)>,
    _strace: Running,
}

impl Counter {
    /// Counts the calls of the daemon that serves `volume`.
    #[track_caller]
    pub fn attach(volume: &TestVolume) -> Self {
        let pid = volume.pid().expect("a daemon runs").to_string();
        let trace = volume.place().join(format!("calls-{pid}"));
        let strace = Cmd::new("strace")
            .args([
                "-f",
                "-qq",
                "-y",
                "-s",
                "0",
                "-e",
                "signal=none",
                "-p",
                &pid,
                "-o",
            ])
            .arg(&trace)
            .start();
        wait_for("strace sees the daemon", SOON, || {
            fs::symlink_metadata(volume.at(".dfs")).unwrap();
            fs::metadata(&trace).is_ok_and(|trace| trace.len() > 0)
        });
        let mut counter = Self {
            trace,
            at: 0,
            begun: HashMap::new(),
            _strace: strace,
        };
        counter.settle();
        counter
    }

    /// The calls since the last settling, until the daemon has nothing more to do for what it was asked.
    #[track_caller]
    pub fn settle(&mut self) -> Calls {
        let (mut calls, start) = (Calls::default(), Instant::now());
        let (mut known, mut quiet_since) = (0, Instant::now());
        while quiet_since.elapsed() < QUIET {
            assert!(
                start.elapsed() < SETTLED,
                "the daemon does not come to rest: {calls:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
            self.take(&mut calls);
            let work = calls.work();
            if work != known {
                (known, quiet_since) = (work, Instant::now());
            }
        }
        calls
    }

    /// The calls during `pause`, without waiting for what comes later.
    pub fn idle(&mut self, pause: Duration) -> Calls {
        std::thread::sleep(pause);
        let mut calls = Calls::default();
        self.take(&mut calls);
        calls
    }

    /// Adds what the trace says since the last time.
    fn take(&mut self, calls: &mut Calls) {
        let mut file = File::open(&self.trace).unwrap();
        file.seek(SeekFrom::Start(self.at)).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        // The last line may be on its way.
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        self.at += whole as u64;
        for line in String::from_utf8_lossy(&bytes[..whole]).lines() {
            self.line(line, calls);
        }
    }

    /// `THREAD name(5</path>, …) = 4096`, or the two halves `THREAD name(5</path>, … <unfinished ...>` and `THREAD <... name resumed>…) = 4096`.
    fn line(&mut self, line: &str, calls: &mut Calls) {
        // A check of the standard library, in programs that are built for tests.
        if line.contains("F_GETFD") || (line.contains("<... fcntl") && line.contains("FD_CLOEXEC")) {
            return;
        }
        let Some((thread, rest)) = line.split_once(' ') else {
            return;
        };
        let rest = rest.trim_start();
        let call = if rest.starts_with("<... ") {
            self.begun.remove(thread)
        } else {
            rest.split_once('(').map(|(name, arguments)| {
                let of_descriptor = arguments.starts_with(|first: char| first.is_ascii_digit());
                let path = arguments
                    .split_once('<')
                    .and_then(|(_, path)| path.split_once('>'))
                    .filter(|_| of_descriptor);
                (name.to_owned(), path.map_or(On::Other, |(path, _)| On::of(path)))
            })
        };
        let Some(call) = call else { return };
        if rest.ends_with("<unfinished ...>") {
            self.begun.insert(thread.to_owned(), call);
            return;
        }
        let returned = rest.rsplit_once(" = ").map_or("", |(_, returned)| returned);
        let digits = returned.split(|c: char| !c.is_ascii_digit()).next().unwrap_or("");
        let entry = calls.0.entry(call).or_default();
        entry.0 += 1;
        entry.1 += digits.parse::<u64>().unwrap_or(0);
    }
}
