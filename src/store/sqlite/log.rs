//! SQLite's write-ahead log as a file: made durable without a commit, and kept long enough that a sync need not change its length.
//!
//! A commit that a sync would have to make costs more than the sync itself, and a file that grows costs a transaction of the file system
//! at every sync. Both are spared by what SQLite documents of its log (<https://sqlite.org/walformat.html>): it is the file `-wal`, it holds
//! every commit since the last checkpoint, whatever lies behind its last valid frame is ignored, and no lock is ever taken on it (so that
//! opening and closing it here drops none). Invariant: nothing here writes where SQLite writes: the writer's turn is held.

use std::fs::{File, OpenOptions};
use std::io::Result;
use std::os::unix::fs::FileExt;
use std::path::Path;

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
    /// It is at least so long, in bytes.
    len: u64,
}

impl Log {
    /// The log of the database `path`, which has one connection at least.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().write(true).open(beside(path, "-wal"))?;
        Ok(Self { file, len: 0 })
    }

    /// Makes it durable.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_data()
    }

    /// Makes it longer than the `used` bytes that it holds, if it is not. Zeros are what SQLite takes for no frame.
    pub(super) fn reserve(&mut self, used: u64) -> Result<()> {
        if self.len >= used + LEFT {
            return Ok(());
        }
        self.len = self.file.metadata()?.len();
        let end = match self.len >= used + LEFT {
            true => self.len,
            false => used.max(self.len) + GROW,
        };
        while self.len < end {
            let step = ZEROS.len().min((end - self.len) as usize);
            self.file.write_all_at(&ZEROS[..step], self.len)?;
            self.len += step as u64;
        }
        Ok(())
    }
}
