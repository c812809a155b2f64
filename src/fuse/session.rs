//! A mounted volume while it lasts: the dispatch threads, the end of the session, and unmounting from our side.
//! Invariant: `wait` reports the end only when no request is under way any more. Called by `fuse::mount`; the handle is `daemon`'s.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{Config, Filesystem, Notifier, SessionACL};
use parking_lot::{Condvar, Mutex};

use super::mountinfo::MountEntry;
use super::notify::Invalidator;
use super::pool::{LENT_MAX, Pool};
use super::{Access, MountError, MountRequest, attach};

/// Threads that read requests from the kernel and do not wait: more than two bring nothing on the machines measured, fewer let one long
/// listing hold up everything.
const DISPATCH_MIN: usize = 2;
const DISPATCH_MAX: usize = 4;
/// How long operations that still wait may take to end after the kernel has gone. They are bounded themselves.
const JOBS_END_WITHIN: Duration = Duration::from_secs(60);
/// Read-ahead of sequential reading, in KiB: four requests of the largest size.
const READ_AHEAD_KB: &str = "4096";

/// A mounted volume.
#[derive(Debug)]
pub struct MountHandle {
    entry: MountEntry,
    ended: Arc<Ended>,
    invalidator: Invalidator,
    notifier: Notifier,
}

#[derive(Debug, Default)]
struct Ended {
    result: Mutex<Option<Result<(), String>>>,
    changed: Condvar,
}

impl MountHandle {
    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.entry.mountpoint
    }

    /// The kernel's record of the mount.
    pub fn entry(&self) -> &MountEntry {
        &self.entry
    }

    /// Asks the kernel to unmount, if the mount at the path is still this one. `lazy`: takes it out of sight at once; the session ends
    /// when nobody uses it any more. The end itself is told by [`MountHandle::wait`].
    pub fn unmount(&self, lazy: bool) -> Result<(), MountError> {
        if self.has_ended() {
            return Ok(());
        }
        attach::detach(&self.entry, lazy)
    }

    /// Whether the session is over, by whomever.
    pub fn has_ended(&self) -> bool {
        self.ended.result.lock().is_some()
    }

    /// Waits for the end of the session, at most so long if a limit is given: `None` when it goes on. An error says that the connection
    /// to the kernel broke.
    pub fn wait(&self, at_most: Option<Duration>) -> Option<Result<(), MountError>> {
        let deadline = at_most.map(|at_most| Instant::now() + at_most);
        let mut result = self.ended.result.lock();
        while result.is_none() {
            match deadline {
                None => self.ended.changed.wait(&mut result),
                Some(deadline) => {
                    if self.ended.changed.wait_until(&mut result, deadline).timed_out() {
                        break;
                    }
                }
            }
        }
        let broken = |reason: &String| self.broken(io::Error::other(reason.clone()));
        result
            .as_ref()
            .map(|result| result.as_ref().map_err(broken).copied())
    }

    /// Sends cache invalidations to the kernel.
    pub fn invalidator(&self) -> Invalidator {
        self.invalidator.clone()
    }

    /// To send the kernel what it did not ask for.
    pub(super) fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    fn broken(&self, source: io::Error) -> MountError {
        MountError::Session {
            path: self.entry.mountpoint.clone(),
            source,
        }
    }
}

/// Mounts, serves on threads of its own, and returns once the mount answers.
pub(super) fn start<F: Filesystem>(
    filesystem: F,
    pool: Pool,
    request: &MountRequest,
) -> Result<MountHandle, MountError> {
    let attach::Attached { device, entry } = attach::attach(request)?;
    let broken = |source| MountError::Session {
        path: request.mountpoint.clone(),
        source,
    };
    let served = serve(filesystem, pool, device, request).map_err(broken);
    let (ended, notifier) = served.inspect_err(|_| undo(&entry))?;
    raise_read_ahead(&entry);
    let invalidator = Invalidator::start(notifier.clone())
        .map_err(broken)
        .inspect_err(|_| undo(&entry))?;
    let handle = MountHandle {
        entry,
        ended,
        invalidator,
        notifier,
    };
    match attach::probe(&request.mountpoint) {
        Some(Ok(())) => Ok(handle),
        answer => {
            undo(&handle.entry);
            let silent = || io::Error::other("the mount does not answer");
            Err(broken(answer.and_then(Result::err).unwrap_or_else(silent)))
        }
    }
}

fn serve<F: Filesystem>(
    filesystem: F,
    pool: Pool,
    device: std::os::fd::OwnedFd,
    request: &MountRequest,
) -> io::Result<(Arc<Ended>, Notifier)> {
    let cores = std::thread::available_parallelism().map_or(DISPATCH_MIN, usize::from);
    let mut config = Config::default();
    // An ordinary user got the device from fusermount3 and may not be able to open it again: one descriptor for all threads then.
    config.clone_fd = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .is_ok();
    config.n_threads = Some(cores.clamp(DISPATCH_MIN, DISPATCH_MAX) + LENT_MAX);
    // Who may enter is the kernel's to check, but for allow_root, which it does not know.
    let acl = match request.access {
        Access::Owner | Access::Everyone => SessionACL::All,
        Access::OwnerAndRoot => SessionACL::RootAndOwner,
    };
    let session = fuser::Session::from_fd(filesystem, device, acl, config)?;
    let notifier = session.notifier();
    let ended = Arc::new(Ended::default());
    let signal = Arc::clone(&ended);
    std::thread::Builder::new()
        .name("fuse-session".into())
        .spawn(move || {
            let result = match session.run() {
                // What a thread is told that was given a request at the very moment of the end (`fuse_dev_do_read` of the kernel).
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
                result => result.map_err(|error| error.to_string()),
            };
            if !pool.close(JOBS_END_WITHIN) {
                tracing::warn!(
                    "operations of the unmounted filesystem are still waiting; going on without them"
                );
            }
            *signal.result.lock() = Some(result);
            signal.changed.notify_all();
        })?;
    Ok((ended, notifier))
}

fn undo(entry: &MountEntry) {
    if let Err(error) = attach::detach(entry, true) {
        tracing::warn!("the mount that failed could not be removed: {error}");
    }
}

/// The kernel's default is 128 KiB. Root may raise it; for others the default stays, and the volume's own prefetching does more anyway.
fn raise_read_ahead(entry: &MountEntry) {
    let path = format!("/sys/class/bdi/{}/read_ahead_kb", entry.device_name());
    if let Err(error) = std::fs::write(&path, READ_AHEAD_KB) {
        tracing::debug!("{path}: {error}; read-ahead stays as it is");
    }
}
