//! The lock on a state directory: one daemon at a time, and whoever comes second learns which process is first.
//!
//! The kernel drops the lock with the process that holds it, so a crash leaves nothing to clean up. Taken by `daemon`, asked by `cli`.

use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::{StateError, files};

/// How often a waiting process tries again.
const RETRY: Duration = Duration::from_millis(50);

/// Longest content of the lock file, in bytes.
const HOLDER_MAX: usize = 16 << 10;

/// What the holder of a lock says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its control socket, once it listens.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// Its mount, once there is one.
    #[serde(default)]
    pub mountpoint: Option<PathBuf>,
    /// Whether it is writing everything back and about to end.
    #[serde(default)]
    pub ending: bool,
}

/// The lock, held until it is dropped.
#[derive(Debug)]
pub struct StateLock {
    file: File,
    path: PathBuf,
}

impl StateLock {
    /// Takes the lock file at `path`, waiting at most `wait` for another process to give it up.
    pub(super) fn take(path: &Path, wait: Duration) -> Result<Self, StateError> {
        let error = |e| StateError::io("lock", path, e);
        let file = open(path).map_err(error)?;
        let deadline = Instant::now() + wait;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(e) if e == rustix::io::Errno::WOULDBLOCK => {
                    if Instant::now() >= deadline {
                        return Err(StateError::Busy {
                            path: path.parent().unwrap_or(path).to_owned(),
                            holder: read_holder(path),
                        });
                    }
                    std::thread::sleep(RETRY);
                }
                Err(e) if e == rustix::io::Errno::INTR => {}
                Err(e) => return Err(error(e.into())),
            }
        }
        let mut lock = Self {
            file,
            path: path.to_owned(),
        };
        lock.describe(&Holder {
            pid: std::process::id(),
            ..Holder::default()
        })?;
        Ok(lock)
    }

    /// Says who holds the lock, for those who come second.
    pub fn describe(&mut self, holder: &Holder) -> Result<(), StateError> {
        let error = |e| StateError::io("write", &self.path, e);
        let text = serde_json::to_vec(holder).map_err(|e| error(e.into()))?;
        self.file.set_len(0).map_err(error)?;
        self.file.rewind().map_err(error)?;
        self.file.write_all(&text).map_err(error)
    }
}

/// Who holds the lock file at `path`; `None` when nobody does.
pub(super) fn holder(path: &Path) -> Result<Option<Holder>, StateError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StateError::io("read", path, e)),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(e) if e == rustix::io::Errno::WOULDBLOCK => Ok(Some(read_holder(path))),
        Err(e) => Err(StateError::io("lock", path, e.into())),
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(files::FILE_MODE)
        .open(path)
}

/// What the lock file says; a holder that had no time to write is process zero.
fn read_holder(path: &Path) -> Holder {
    files::read(path, HOLDER_MAX)
        .ok()
        .flatten()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_learns_who_is_first_and_gets_the_lock_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert_eq!(holder(&path).unwrap(), None);
        let mut first = StateLock::take(&path, Duration::ZERO).unwrap();
        let me = Holder {
            pid: std::process::id(),
            socket: Some("/run/x.sock".into()),
            ..Holder::default()
        };
        first.describe(&me).unwrap();
        assert_eq!(holder(&path).unwrap(), Some(me.clone()));
        let Err(StateError::Busy { holder: found, .. }) = StateLock::take(&path, Duration::ZERO) else {
            unreachable!("the lock was given twice");
        };
        assert_eq!(found, me);
        drop(first);
        assert_eq!(holder(&path).unwrap(), None);
        StateLock::take(&path, Duration::ZERO).unwrap();
    }

    #[test]
    fn waiting_ends_when_the_holder_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = StateLock::take(&path, Duration::ZERO).unwrap();
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || StateLock::take(&path, Duration::from_secs(60)).is_ok()
        });
        drop(first);
        assert!(waiter.join().unwrap());
    }
}
