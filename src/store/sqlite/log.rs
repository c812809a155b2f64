//! SQLite's write-ahead log as a file: made durable without a commit, and kept long enough that a sync need not change its length.
//!
//! A commit that a sync would have to make costs more than the sync itself, and a file that grows costs a transaction of the file system
//! at every sync. Both are spared by what SQLite documents of its log (<https://sqlite.org/walformat.html>): it is the file `-wal`, it holds
//! every commit since the last checkpoint, whatever lies behind its last valid frame is ignored, and no lock is ever taken on it (so that
//! opening and closing it here drops none). Invariant: nothing here writes where SQLite writes: the writer's turn is held.

use std::fs::{File, OpenOptions};
use std::io::Result;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::schema::beside;

/// What the log grows by at once, in bytes.
const GROW: u64 = 4 << 20;

/// It grows when less than this is left of it, in bytes.
const LEFT: u64 = 256 << 10;

static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// The log of the open database.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// The log of the database `path`, which has one connection at least.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let path = beside(path, "-wal");
        let file = OpenOptions::new().write(true).open(&path)?;
        Ok(Self { file, path })
    }

    /// Whether it is still the file that SQLite writes to.
    pub(super) fn is_current(&self) -> bool {
        let identity = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        match (self.file.metadata(), std::fs::metadata(&self.path)) {
            (Ok(ours), Ok(named)) => identity(ours) == identity(named),
            _ => false,
        }
    }

    /// Makes it durable.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_data()
    }

    /// Makes it longer than the `used` bytes that it holds, if it is not. Zeros are what SQLite takes for no frame.
    pub(super) fn reserve(&self, used: u64) -> Result<()> {
        let len = self.file.metadata()?.len();
        if len >= used + LEFT {
            return Ok(());
        }
        let end = used.max(len) + GROW;
        let mut at = len;
        while at < end {
            let step = ZEROS.len().min((end - at) as usize);
            self.file.write_all_at(&ZEROS[..step], at)?;
            at += step as u64;
        }
        Ok(())
    }
}
