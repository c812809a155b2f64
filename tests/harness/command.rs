//! Programs run with a bound on their time, their output kept for the failure message.
//!
//! Output goes to files, not pipes: a daemon that the program leaves behind must not keep the test waiting.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longest run of a program unless the test says otherwise.
const WITHIN: Duration = Duration::from_secs(120);

/// A program about to be run.
pub struct Cmd {
    command: Command,
    line: String,
    stdin: Option<Vec<u8>>,
    within: Duration,
}

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Ran {
    pub line: String,
    pub status: Option<ExitStatus>,
    pub out: String,
    pub err: String,
}

impl Cmd {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            line: program.as_ref().to_string_lossy().into_owned(),
            command: Command::new(program),
            stdin: None,
            within: WITHIN,
        }
    }

    /// A program of this crate: `dfs`, `mount-dfs`, `umount-dfs` or `fsck-dfs`.
    pub fn own(name: &str) -> Self {
        Self::new(own_path(name))
    }

    /// A line of bash that stops at the first failure.
    pub fn bash(script: &str) -> Self {
        Self::new("bash").args(["-euo", "pipefail", "-c", script])
    }

    /// The same program in the network namespace at `path`; its mounts stay visible to all.
    pub fn within_namespace(program: impl AsRef<OsStr>, path: &Path) -> Self {
        let mut net = OsString::from("--net=");
        net.push(path);
        Self::new("nsenter").arg(net).arg(program)
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.line = format!("{} {}", self.line, arg.as_ref().to_string_lossy());
        self.command.arg(arg);
        self
    }

    pub fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    pub fn within(mut self, bound: Duration) -> Self {
        self.within = bound;
        self
    }

    /// Runs it to its end. Panics only when it cannot be started or does not end in time.
    #[track_caller]
    pub fn run(mut self) -> Ran {
        let (out, err, mut child) = self.spawn();
        let start = Instant::now();
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if start.elapsed() > self.within => {
                    child.kill().ok();
                    break None;
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let ran = Ran {
            line: self.line,
            status,
            out: contents(&out),
            err: contents(&err),
        };
        assert!(
            ran.status.is_some(),
            "did not end within {:?}: {ran}",
            self.within
        );
        ran
    }

    /// Runs it, panics with all it said unless it succeeds, and returns what it printed.
    #[track_caller]
    pub fn ok(self) -> String {
        let ran = self.run();
        assert!(ran.succeeded(), "failed: {ran}");
        ran.out
    }

    /// Runs it, panics unless it fails by itself (not by a signal), and returns what it said.
    #[track_caller]
    pub fn fails(self) -> Ran {
        let ran = self.run();
        assert!(ran.code() > 0, "should have failed by itself: {ran}");
        ran
    }

    /// Starts it and leaves it running; it is ended when the value is dropped.
    #[track_caller]
    pub fn start(mut self) -> Running {
        let (out, err, child) = self.spawn();
        Running { child, out, err }
    }

    #[track_caller]
    fn spawn(&mut self) -> (File, File, Child) {
        let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let stdin = match self.stdin.take() {
            None => Stdio::null(),
            Some(bytes) => {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&bytes).unwrap();
                file.rewind().unwrap();
                file.into()
            }
        };
        self.command
            .stdin(stdin)
            .stdout(out.try_clone().unwrap())
            .stderr(err.try_clone().unwrap());
        let child = self.command.spawn();
        let child = child.unwrap_or_else(|e| panic!("cannot run {}: {e}", self.line));
        (out, err, child)
    }
}

impl Ran {
    pub fn succeeded(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// The exit code; -1 when a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.and_then(|status| status.code()).unwrap_or(-1)
    }

    /// Both outputs together.
    pub fn said(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            line,
            status,
            out,
            err,
        } = self;
        write!(f, "{line}\n  {status:?}\n  stdout: {out}\n  stderr: {err}")
    }
}

/// A program that runs beside the test.
pub struct Running {
    child: Child,
    out: File,
    err: File,
}

impl Running {
    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) {
        super::wait_for("the program ends", WITHIN, || {
            self.child.try_wait().unwrap().is_some()
        });
    }

    /// All it said so far.
    pub fn said(&self) -> String {
        contents(&self.out) + &contents(&self.err)
    }

    /// Kills it and returns all it said.
    pub fn kill(&mut self) -> String {
        self.child.kill().ok();
        self.child.wait().unwrap();
        self.said()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Where a program of this crate is: in the folder `DFS_TEST_PROGRAMS` (another build, such as a release one), else where cargo put it.
pub fn own_path(name: &str) -> PathBuf {
    let built = match name {
        "dfs" => env!("CARGO_BIN_EXE_dfs"),
        "mount-dfs" => env!("CARGO_BIN_EXE_mount-dfs"),
        "umount-dfs" => env!("CARGO_BIN_EXE_umount-dfs"),
        "fsck-dfs" => env!("CARGO_BIN_EXE_fsck-dfs"),
        other => panic!("{other} is no program of this crate"),
    };
    std::env::var_os("DFS_TEST_PROGRAMS").map_or_else(|| built.into(), |dir| PathBuf::from(dir).join(name))
}

/// All of a file, read without moving the place at which the program that shares it writes on.
fn contents(file: &File) -> String {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], read as u64).unwrap() {
            0 => break,
            more => read += more,
        }
    }
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}
