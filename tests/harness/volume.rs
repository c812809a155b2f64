//! A volume of the test's own: folder, state directory and mount point in one temporary directory, served by the real programs.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

use super::command::{Cmd, Ran};
use super::{SOON, wait_for};

/// Settings of a volume that talks to nobody, and keeps nothing of what was: space is given back as soon as it can be.
pub const ALONE: &str = "[history]\nkeep = \"none\"\n[network]\nenabled = false\n";

/// Settings of a computer at the end of a cable: no search, short patience, nothing kept of what was.
pub const ON_CABLE: &str = "[history]\nkeep = \"none\"\n[network]\nlisten = [\"0.0.0.0:8080\"]\nmdns = false\nupnp = false\ntimeout = 5\n";

/// A volume on one (played) computer.
pub struct TestVolume {
    place: TempDir,
    folder: PathBuf,
    state: PathBuf,
    mountpoint: PathBuf,
    namespace: Option<PathBuf>,
    pid: Option<Pid>,
    /// What `dfs init` printed.
    pub printed: String,
}

impl TestVolume {
    /// A place for a volume: nothing is created in the folder or the state yet.
    pub fn empty() -> Self {
        let place = tempfile::Builder::new().prefix("dfs-test-").tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let at = |name: &str| place.path().join(name);
        let (folder, state, mountpoint) = (at("folder"), at("state"), at("mountpoint"));
        fs::create_dir(&folder).unwrap();
        fs::create_dir(&mountpoint).unwrap();
        Self {
            place,
            folder,
            state,
            mountpoint,
            namespace: None,
            pid: None,
            printed: String::new(),
        }
    }

    /// A new volume that talks to nobody, not mounted.
    #[track_caller]
    pub fn new() -> Self {
        let mut volume = Self::empty();
        volume.init();
        volume.configure(ALONE);
        volume
    }

    /// A new volume that talks to nobody, mounted beside its folder.
    #[track_caller]
    pub fn mounted() -> Self {
        let mut volume = Self::new();
        volume.mount();
        volume
    }

    /// Makes its programs run in a network namespace.
    pub fn on(mut self, namespace: PathBuf) -> Self {
        self.namespace = Some(namespace);
        self
    }

    /// Puts folder or state elsewhere, on another disk for example.
    pub fn moved(mut self, folder: Option<&Path>, state: Option<&Path>) -> Self {
        if let Some(path) = folder {
            self.folder = path.to_owned();
        }
        if let Some(path) = state {
            self.state = path.to_owned();
        }
        self
    }

    /// `dfs init`.
    #[track_caller]
    pub fn init(&mut self) {
        let command = self
            .dfs(["init"])
            .arg(&self.folder)
            .arg("--state")
            .arg(&self.state);
        self.printed = command.ok();
    }

    /// Writes `dfs.toml`, durably.
    pub fn configure(&self, text: &str) {
        let mut file = fs::File::create(self.state.join("dfs.toml")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.sync_all().unwrap();
        fs::File::open(&self.state).unwrap().sync_all().unwrap();
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The temporary directory itself, for files beside the volume.
    pub fn place(&self) -> &Path {
        self.place.path()
    }

    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// A path in the mount.
    pub fn at(&self, name: &str) -> PathBuf {
        self.mountpoint.join(name)
    }

    /// The host's file for a regular file of the mount.
    pub fn host(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.f"))
    }

    /// A program of this crate, on this computer.
    pub fn own(&self, name: &str) -> Cmd {
        match &self.namespace {
            None => Cmd::own(name),
            Some(path) => Cmd::within_namespace(super::command::own_path(name), path),
        }
    }

    /// `dfs` with arguments, on this computer.
    pub fn dfs<const N: usize>(&self, args: [&str; N]) -> Cmd {
        self.own("dfs").args(args)
    }

    /// `mount.dfs FOLDER MOUNTPOINT` with more arguments, not judged.
    #[track_caller]
    pub fn try_mount<const N: usize>(&mut self, more: [&str; N]) -> Ran {
        let command = self.own("mount-dfs").arg(&self.folder).arg(&self.mountpoint);
        let ran = command.args(more).run();
        if ran.succeeded() && !more.contains(&"-f") {
            self.pid = self.daemon();
        }
        ran
    }

    /// Mounts, and checks that the mount answers once `mount.dfs` has returned.
    #[track_caller]
    pub fn mount(&mut self) {
        self.mount_with([]);
    }

    /// As [`Self::mount`], with more arguments.
    #[track_caller]
    pub fn mount_with<const N: usize>(&mut self, more: [&str; N]) {
        let ran = self.try_mount(more);
        assert!(ran.succeeded(), "{ran}\nlog: {}", self.log());
        assert!(self.is_mounted(), "mount.dfs returned without a mount: {ran}");
        fs::read_dir(&self.mountpoint).unwrap();
    }

    /// `umount`, and waits until the daemon is gone.
    #[track_caller]
    pub fn unmount(&mut self) {
        self.own("umount-dfs").arg(&self.mountpoint).ok();
        assert!(!self.is_mounted(), "still mounted");
        let pid = self.pid.take();
        wait_for("the daemon ends after umount", SOON, || !is_alive(pid));
    }

    #[track_caller]
    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// What `dfs status --json` says.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        let text = self.dfs(["status", "--json"]).arg(&self.folder).ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("status is not JSON: {e}: {text}"))
    }

    /// `kill -9` to the daemon; returns once it is dead.
    #[track_caller]
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
    }

    /// Sends a signal to the daemon and waits for its end.
    #[track_caller]
    pub fn signal(&mut self, signal: Signal) {
        let pid = self.pid.take();
        kill_process(pid.expect("a daemon runs"), signal).unwrap();
        wait_for("the daemon ends after the signal", SOON, || !is_alive(pid));
    }

    /// As [`Self::kill`], if there is a daemon.
    pub fn kill_if_running(&mut self) {
        if self.pid.is_some_and(|pid| is_alive(Some(pid))) {
            self.kill();
        }
        self.pid = None;
    }

    /// Waits for the end of a daemon that something else has killed.
    #[track_caller]
    pub fn wait_for_death(&mut self) {
        let pid = self.pid.take();
        wait_for("the daemon ends", SOON, || !is_alive(pid));
    }

    /// The daemon's process id.
    pub fn pid(&self) -> Option<i32> {
        self.pid.map(|pid| pid.as_raw_nonzero().get())
    }

    /// The most memory that the daemon ever had resident, in bytes.
    #[track_caller]
    pub fn peak_memory(&self) -> u64 {
        self.memory_line("VmHWM:")
    }

    /// The memory that the daemon has resident, in bytes.
    #[track_caller]
    pub fn memory(&self) -> u64 {
        self.memory_line("VmRSS:")
    }

    #[track_caller]
    fn memory_line(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.pid().expect("a daemon runs"));
        let status = fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Bytes of blocks in the store.
    #[track_caller]
    pub fn stored(&self) -> u64 {
        let status = self.status();
        status["store"]["bytes"]
            .as_u64()
            .unwrap_or_else(|| panic!("no store.bytes in {status}"))
    }

    /// Everything the daemon logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.state.join("dfs.log")).unwrap_or_default()
    }

    pub fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let path = self.mountpoint.to_str().unwrap();
        mounts.lines().any(|line| line.split(' ').nth(4) == Some(path))
    }

    fn daemon(&self) -> Option<Pid> {
        let pid = self.status()["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok());
        pid.and_then(Pid::from_raw)
    }
}

impl Drop for TestVolume {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of {}\n{}", self.state.display(), self.log());
        }
        if let Some(pid) = self.pid.take() {
            kill_process(pid, Signal::KILL).ok();
        }
        for path in [&self.mountpoint, &self.folder] {
            Cmd::new("umount").args(["--quiet", "--lazy"]).arg(path).run();
        }
    }
}

/// Whether a process exists that is more than a corpse.
fn is_alive(pid: Option<Pid>) -> bool {
    let Some(pid) = pid else { return false };
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    let is_corpse = stat
        .rsplit(')')
        .next()
        .is_some_and(|rest| rest.trim_start().starts_with('Z'));
    test_kill_process(pid).is_ok() && !is_corpse
}
