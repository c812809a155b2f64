//! Turns what SQLite reports into [`StoreError`]: which file, and whether it is full, broken or only unlucky.
//!
//! Invariant: every error of this database that leaves the room passes through [`Failure::of`].

use std::io::Write;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use crate::store::StoreError;

/// Size of the file that is written to find out whether the disk is full, in bytes.
const PROBE_LEN: usize = 64 << 10;

/// Extended result codes of writes that may have met a full disk (<https://sqlite.org/rescode.html>).
const WRITE_FAILED: [i32; 3] = [
    rusqlite::ffi::SQLITE_IOERR_WRITE,
    rusqlite::ffi::SQLITE_IOERR_SHMSIZE,
    rusqlite::ffi::SQLITE_IOERR_SHMMAP,
];

/// Extended result codes after which the kernel may have dropped what it was to write: nothing later can be trusted to be durable.
const SYNC_FAILED: [i32; 2] = [
    rusqlite::ffi::SQLITE_IOERR_FSYNC,
    rusqlite::ffi::SQLITE_IOERR_DIR_FSYNC,
];

/// Names the database file in errors.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    path: PathBuf,
}

impl Failure {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.into() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The store's word for an error of SQLite.
    pub(super) fn of(&self, error: &rusqlite::Error) -> StoreError {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::NoSpace(self.shown()),
            Some(
                ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::SchemaChanged
                | ErrorCode::TypeMismatch,
            ) => self.unusable(error),
            Some(_) if WRITE_FAILED.contains(&extended(error)) && self.disk_is_full() => {
                StoreError::NoSpace(self.shown())
            }
            Some(ErrorCode::Unknown) | None => self.unusable(error),
            Some(_) => StoreError::Io(format!("{}: {error}", self.shown())),
        }
    }

    /// The database cannot be used, for a reason.
    pub(super) fn unusable(&self, reason: impl std::fmt::Display) -> StoreError {
        StoreError::Unusable {
            path: self.shown(),
            reason: reason.to_string(),
        }
    }

    /// A failed system call on the database's behalf.
    pub(super) fn io(&self, what: &str, error: &std::io::Error) -> StoreError {
        if is_full(error) {
            StoreError::NoSpace(self.shown())
        } else {
            StoreError::Io(format!("{}: cannot {what}: {error}", self.shown()))
        }
    }

    fn shown(&self) -> String {
        self.path.display().to_string()
    }

    /// SQLite reports a full quota, and a full disk under its shared memory file, as plain write errors: ask the disk itself.
    fn disk_is_full(&self) -> bool {
        let probe = self.path.with_extension("probe");
        let written = std::fs::File::create(&probe).and_then(|mut file| file.write_all(&[0; PROBE_LEN]));
        let _ = std::fs::remove_file(&probe);
        written.is_err_and(|error| is_full(&error))
    }
}

/// Whether an error means that a page of the database makes no sense.
pub(super) fn is_corrupt(error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => true,
        Some(_) => false,
        // A column of another type than the schema says.
        None => !matches!(error, rusqlite::Error::QueryReturnedNoRows),
    }
}

/// Whether a sync failed, so that nothing written before can be trusted to reach the disk.
pub(super) fn is_failed_sync(error: &rusqlite::Error) -> bool {
    SYNC_FAILED.contains(&extended(error))
}

fn extended(error: &rusqlite::Error) -> i32 {
    error.sqlite_error().map_or(0, |e| e.extended_code)
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    )
}
