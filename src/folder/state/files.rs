//! Small files of the state directory: read with a bound, replaced whole or not at all, seen by their owner alone.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::StateError;
use crate::base::names::TEMP_PREFIX;

/// Mode of every directory that dfs makes for itself.
pub(super) const DIR_MODE: u32 = 0o700;
/// Mode of every file in them.
pub(super) const FILE_MODE: u32 = 0o600;

/// Reads a file of at most `max` bytes; `None` when there is none.
pub(super) fn read(path: &Path, max: usize) -> Result<Option<Vec<u8>>, StateError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StateError::io("read", path, e)),
    };
    let mut bytes = Vec::new();
    file.take(max as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| StateError::io("read", path, e))?;
    if bytes.len() > max {
        return Err(StateError::TooLong {
            path: path.to_owned(),
            max,
        });
    }
    Ok(Some(bytes))
}

/// Replaces the file at `path`, for its owner alone: after a crash at any moment it holds either what it held before or all of `bytes`, durably.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    replace_with_mode(path, bytes, FILE_MODE).map_err(|e| StateError::io("write", path, e))
}

/// As [`replace`], with these permission bits. The temporary name is one that the mount never shows.
pub(in crate::folder) fn replace_with_mode(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    let mut temp = std::ffi::OsString::from(format!("{TEMP_PREFIX}{}-", std::process::id()));
    temp.push(name);
    let temp = dir.join(temp);
    let _ = std::fs::remove_file(&temp);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temp)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temp, path)?;
        File::open(dir)?.sync_all()
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temp);
    }
    written
}

/// Makes a directory that only its owner may enter, and the missing ones above it.
pub(super) fn make_dir(path: &Path) -> Result<(), StateError> {
    let error = |e| StateError::io("create", path, e);
    if let Some(parent) = path.parent()
        && !parent.exists()
    {
        make_dir(parent)?;
    }
    match std::fs::DirBuilder::new().create(path) {
        Ok(()) => {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(DIR_MODE)).map_err(error)?;
            match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => {
                    File::open(parent).and_then(|dir| dir.sync_all()).map_err(error)
                }
                _ => Ok(()),
            }
        }
        Err(e) if e.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(error(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_whole_and_private_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/file");
        make_dir(path.parent().unwrap()).unwrap();
        assert_eq!(read(&path, 10).unwrap(), None);
        replace(&path, b"one").unwrap();
        replace(&path, b"three").unwrap();
        assert_eq!(read(&path, 5).unwrap().unwrap(), b"three");
        assert!(matches!(read(&path, 4), Err(StateError::TooLong { max: 4, .. })));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = replace(&dir.path().join("none/file"), b"x").unwrap_err();
        assert!(error.to_string().contains("none/file"), "{error}");
    }
}
