//! Who has a file open for writing: what `/proc` says of every process that this one may look at.
//!
//! A file that did not change for a while may still be being written, by a download that stalls or a program that is being debugged. A
//! lease would tell too, but asks for calls that need `unsafe`. Called by the import of plain files.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::Stat;

/// The files that were open for writing at one moment, as far as this process may know: all of them for root, its owner's otherwise.
#[derive(Debug, Default)]
pub struct Writers {
    /// Descriptors by number of the inode.
    by_ino: HashMap<u64, Vec<PathBuf>>,
}

impl Writers {
    /// Looks now. Reads no file that is open anywhere, so that nothing can hang.
    pub fn now() -> Self {
        let mut found = Self::default();
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        for process in processes {
            let is_process = process
                .file_name()
                .to_str()
                .is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()));
            if is_process {
                found.look_at(&process.path());
            }
        }
        found
    }

    fn look_at(&mut self, process: &Path) {
        // Ended since, or somebody else's.
        let Ok(descriptors) = std::fs::read_dir(process.join("fdinfo")) else {
            return;
        };
        for descriptor in descriptors.flatten() {
            let Ok(info) = std::fs::read_to_string(descriptor.path()) else {
                continue;
            };
            if let Some(ino) = written_inode(&info) {
                let link = process.join("fd").join(descriptor.file_name());
                self.by_ino.entry(ino).or_default().push(link);
            }
        }
    }

    /// Whether the file was open for writing.
    pub fn has(&self, file: &Stat) -> bool {
        let is_it = |link: &PathBuf| {
            // The number is another file's on another file system.
            std::fs::metadata(link).is_ok_and(|meta| (meta.dev(), meta.ino()) == (file.st_dev, file.st_ino))
        };
        self.by_ino
            .get(&file.st_ino)
            .is_some_and(|links| links.iter().any(is_it))
    }
}

/// The inode that a descriptor writes to, from its `fdinfo` (<https://docs.kernel.org/filesystems/proc.html>; `ino` is there since Linux 5.14).
fn written_inode(info: &str) -> Option<u64> {
    let field = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let flags = u32::from_str_radix(field("flags:")?, 8).ok()?;
    if flags & libc::O_ACCMODE.cast_unsigned() == 0 || flags & libc::O_PATH.cast_unsigned() != 0 {
        return None;
    }
    field("ino:")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_descriptors_that_can_write_count() {
        let line = |flags: &str| format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t24\nino:\t37\n");
        assert_eq!(written_inode(&line("0100001")), Some(37));
        assert_eq!(written_inode(&line("0100002")), Some(37));
        assert_eq!(written_inode(&line("0100000")), None);
        assert_eq!(written_inode(&line("012000001")), None, "a path, not a file");
        for cut in 0..line("0100002").len() {
            let _ = written_inode(&line("0100002")[..cut]);
        }
    }

    #[test]
    fn a_file_counts_as_long_as_somebody_has_it_open_for_writing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = std::fs::File::create(&path).unwrap();
        let stat = rustix::fs::stat(&path).unwrap();
        assert!(Writers::now().has(&stat));
        drop(file);
        let _reader = std::fs::File::open(&path).unwrap();
        assert!(!Writers::now().has(&stat));
    }
}
