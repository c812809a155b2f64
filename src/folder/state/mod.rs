//! The state directory of one volume on one device: keys, configuration, lock, store and logs, for its owner alone (0700, files 0600).
//!
//! The library never asks the environment where it is: `cli` does and passes paths. Files are replaced whole or not at all.
//! Opened by `daemon`; `cli` asks it who holds the lock.

pub(super) mod files;
mod keys;
mod lock;

use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use keys::{Keyring, KeysError};
pub use lock::{Holder, StateLock};

use super::config::{self, Config, ConfigError};
use crate::base::VolumeId;

/// Longest list of remembered peers or of invitations, in bytes.
const LIST_MAX: usize = 4 << 20;
/// The file of admins' addresses, one a line.
const ADMINS: &str = "admins";
/// Most of them that are tried.
const ADMINS_MAX: usize = 64;
/// The file of known sizes.
const SIZES: &str = "sizes";

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is none.
    #[error(
        "there is no state directory {0}; create the volume with `dfs init`, join it with `dfs join`, or name the directory with --state"
    )]
    Missing(PathBuf),
    /// There is one already.
    #[error("{0} already holds the state of a volume; choose another directory with --state")]
    Exists(PathBuf),
    /// Others could read the keys.
    #[error(
        "the state directory {path} is open to others (mode {mode:o}, owner {owner}); run `chmod 700` on it, as its owner"
    )]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// User id of its owner.
        owner: u32,
    },
    /// Another process has it.
    #[error("{path} is in use by process {}{}; unmount that first", holder.pid, mounted_at(holder))]
    Busy {
        /// The directory.
        path: PathBuf,
        /// The process.
        holder: Holder,
    },
    /// A file is longer than it can be.
    #[error("{path} is longer than {max} bytes; it is damaged or no file of dfs")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its longest length.
        max: usize,
    },
    /// `dfs.toml` is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The host filesystem refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The answer.
        source: std::io::Error,
    },
}

impl StateError {
    fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

fn mounted_at(holder: &Holder) -> String {
    holder
        .mountpoint
        .as_ref()
        .map(|at| format!(", which has it mounted at {}", at.display()))
        .unwrap_or_default()
}

/// The state directory of `volume` where none was named: `home` is `/var/lib/dfs` for root, `$XDG_DATA_HOME/dfs` otherwise.
pub fn default_path(home: &Path, volume: &VolumeId) -> PathBuf {
    home.join(volume.to_string())
}

/// An existing state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Makes a state directory at `path` (absolute), which must not exist or be empty, with a commented `dfs.toml`.
    pub fn create(path: &Path) -> Result<Self, StateError> {
        files::make_dir(path)?;
        let mut entries = std::fs::read_dir(path).map_err(|e| StateError::io("read", path, e))?;
        if entries.next().is_some() {
            return Err(StateError::Exists(path.to_owned()));
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(files::DIR_MODE))
            .map_err(|e| StateError::io("protect", path, e))?;
        let state = Self::open(path)?;
        files::replace(&state.config_path(), config::TEMPLATE.as_bytes())?;
        Ok(state)
    }

    /// Writes a `dfs.toml` that lets guests in, over the one of [`StateDir::create`].
    pub fn set_public(&self) -> Result<(), StateError> {
        let text = config::TEMPLATE.replace(config::PUBLIC.0, config::PUBLIC.1);
        files::replace(&self.config_path(), text.as_bytes())
    }

    /// Opens the state directory at `path` (absolute), or makes one there.
    pub fn open_or_create(path: &Path) -> Result<Self, StateError> {
        match Self::open(path) {
            Err(StateError::Missing(_)) => Self::create(path),
            other => other,
        }
    }

    /// Opens the state directory at `path` (absolute), which must be closed to everybody else.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let meta = match std::fs::metadata(path) {
            Ok(meta) if meta.is_dir() => meta,
            Ok(_) => return Err(StateError::Missing(path.to_owned())),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(StateError::Missing(path.to_owned()));
            }
            Err(e) => return Err(StateError::io("open", path, e)),
        };
        let me = rustix::process::geteuid();
        if meta.mode() & 0o077 != 0 || (meta.uid() != me.as_raw() && !me.is_root()) {
            return Err(StateError::Open {
                path: path.to_owned(),
                mode: meta.mode() & 0o7777,
                owner: meta.uid(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Locks it against other processes, waiting at most `wait` while a previous daemon drains.
    pub fn lock(&self, wait: Duration) -> Result<StateLock, StateError> {
        StateLock::take(&self.lock_path(), wait)
    }

    /// The process that has it locked, if any.
    pub fn holder(&self) -> Result<Option<Holder>, StateError> {
        lock::holder(&self.lock_path())
    }

    /// What `dfs.toml` says; defaults when there is none.
    pub fn config(&self) -> Result<Config, StateError> {
        let path = self.config_path();
        match files::read(&path, config::CONFIG_MAX)? {
            Some(bytes) => Ok(Config::parse(&path, &bytes)?),
            None => Ok(Config::default()),
        }
    }

    /// The list named `name` (of peers, of invitations) as the node wrote it; `None` before it wrote one.
    pub fn read_list(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        files::read(&self.path.join(name), LIST_MAX)
    }

    /// Replaces the list named `name`, durably.
    pub fn write_list(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        files::replace(&self.path.join(name), bytes)
    }

    /// Remembers where the admins of a ticket are: the first members to be tried, always.
    pub fn remember_admins(&self, addresses: &[String]) -> Result<(), StateError> {
        self.write_list(ADMINS, addresses.join("\n").as_bytes())
    }

    /// The addresses of [`StateDir::remember_admins`]; none on the device that made the volume.
    pub fn admins(&self) -> Result<Vec<String>, StateError> {
        let bytes = self.read_list(ADMINS)?.unwrap_or_default();
        let lines = String::from_utf8_lossy(&bytes).into_owned();
        Ok(lines.lines().take(ADMINS_MAX).map(str::to_owned).collect())
    }

    /// The sizes of files that the last session left, at most `max` bytes; `None` when there are none.
    pub fn read_sizes(&self, max: usize) -> Result<Option<Vec<u8>>, StateError> {
        files::read(&self.path.join(SIZES), max)
    }

    /// Leaves the sizes of files to the next session.
    pub fn write_sizes(&self, bytes: &[u8]) -> Result<(), StateError> {
        files::replace(&self.path.join(SIZES), bytes)
    }

    /// Removes the sizes of files, if there are any.
    pub fn remove_sizes(&self) -> Result<(), StateError> {
        let path = self.path.join(SIZES);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(StateError::io("remove", &path, e)),
            _ => Ok(()),
        }
    }

    /// The block database.
    pub fn store_path(&self) -> PathBuf {
        self.path.join("store.sqlite")
    }

    /// The log file, when there is neither a terminal nor a journal.
    pub fn log_path(&self) -> PathBuf {
        self.path.join("dfs.log")
    }

    /// `dfs.toml`.
    pub fn config_path(&self) -> PathBuf {
        self.path.join("dfs.toml")
    }

    /// Makes a state directory beside `path`, to be filled and then moved there whole: a crash before that leaves nothing at `path`.
    pub fn stage(path: &Path) -> Result<Self, StateError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let staged = path.with_file_name(format!(".{name}.{}.new", std::process::id()));
        let _ = std::fs::remove_dir_all(&staged);
        Self::create(&staged)
    }

    /// Removes the directory with everything in it: nothing refers to it yet.
    pub fn discard(self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }

    /// Takes the directory to another place on the same filesystem, where nothing or an empty directory is.
    pub fn move_to(self, path: &Path) -> Result<Self, StateError> {
        if let Some(parent) = path.parent() {
            files::make_dir(parent)?;
        }
        // rename(2) replaces an empty directory and nothing else.
        match std::fs::rename(&self.path, path) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotADirectory) => {
                return Err(StateError::Exists(path.to_owned()));
            }
            Err(e) => return Err(StateError::io("move the new state directory to", path, e)),
        }
        if let Some(parent) = path.parent() {
            std::fs::File::open(parent)
                .and_then(|dir| dir.sync_all())
                .map_err(|e| StateError::io("sync", parent, e))?;
        }
        Self::open(path)
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_state_directory_is_private_and_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = default_path(&dir.path().join("home"), &VolumeId([1; 16]));
        assert!(path.ends_with("home/01010101010101010101010101010101"));
        assert!(matches!(StateDir::open(&path), Err(StateError::Missing(_))));
        let state = StateDir::create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(state.config().unwrap(), Config::default());
        assert!(matches!(StateDir::create(&path), Err(StateError::Exists(_))));
        let elsewhere = dir.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        let moved = state.move_to(&elsewhere).unwrap();
        assert_eq!(StateDir::open(&elsewhere).unwrap(), moved);
        let staged = StateDir::stage(&elsewhere).unwrap();
        let staged_at = staged.path().to_owned();
        assert!(matches!(
            staged.clone().move_to(&elsewhere),
            Err(StateError::Exists(_))
        ));
        staged.discard();
        assert!(!staged_at.exists());
    }

    #[test]
    fn a_directory_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        StateDir::create(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).unwrap();
        let error = StateDir::open(&path).unwrap_err();
        assert!(matches!(error, StateError::Open { mode: 0o750, .. }));
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }

    #[test]
    fn a_wrong_setting_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::create(&dir.path().join("s")).unwrap();
        std::fs::write(state.config_path(), "[store]\nsize = 1").unwrap();
        let error = state.config().unwrap_err().to_string();
        assert!(error.contains("s/dfs.toml: line 2: size: "), "{error}");
    }

    #[test]
    fn the_admins_of_a_ticket_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open_or_create(&dir.path().join("s")).unwrap();
        assert!(state.admins().unwrap().is_empty());
        let admins = ["/ip4/192.0.2.1/tcp/8080".to_owned(), "h.example:1".to_owned()];
        state.remember_admins(&admins).unwrap();
        let again = StateDir::open_or_create(&dir.path().join("s")).unwrap();
        assert_eq!(again.admins().unwrap(), admins);
    }

    #[test]
    fn lists_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::create(&dir.path().join("s")).unwrap();
        assert_eq!(state.read_list("peers.json").unwrap(), None);
        state.write_list("peers.json", b"[]").unwrap();
        assert_eq!(state.read_list("peers.json").unwrap().unwrap(), b"[]");
    }
}
