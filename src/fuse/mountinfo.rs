//! Reads `/proc/self/mountinfo`: which filesystem is mounted where, by the kernel's own record, without asking the filesystem itself,
//! which may be dead. Called by `attach` and by `session`, so that dfs never unmounts what is not its own.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

/// Type of our mounts, as `findmnt` shows it.
pub const FS_TYPE: &str = "fuse.dfs";

/// One mount, as proc_pid_mountinfo(5) describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Identifies the mount while it lasts.
    pub mount_id: u64,
    /// Major and minor number of the filesystem.
    pub device: (u32, u32),
    /// Where it is seen.
    pub mountpoint: PathBuf,
    /// Type with subtype.
    pub fs_type: String,
    /// What was given as the source: for dfs the folder.
    pub source: PathBuf,
    /// Whether the mount or its filesystem is read-only.
    pub read_only: bool,
    /// Number that the kernel gives to one mount only, where it is known: from [`at`], and since Linux 6.8. (`mount_id` and `device` are
    /// given again at once when a mount is gone.)
    pub unique_id: Option<u64>,
}

impl MountEntry {
    /// Whether the two are the same mount, as far as the kernel can tell.
    pub fn is_same(&self, other: &Self) -> bool {
        let ids = |entry: &Self| (entry.mount_id, entry.device, entry.unique_id);
        ids(self) == ids(other) && self.fs_type == other.fs_type && self.source == other.source
    }

    /// Whether it is a mount of dfs.
    pub fn is_dfs(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    /// The name of its directory under `/sys/class/bdi`.
    pub fn device_name(&self) -> String {
        format!("{}:{}", self.device.0, self.device.1)
    }
}

/// All mounts of this process's namespace, in the order in which they were made.
pub fn read() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mount that a path leads into when the path is the root of a mount; `None` when it is an ordinary directory.
/// Asks the kernel only: `O_PATH` sends no request to a filesystem that may be dead.
pub fn at(path: &Path) -> io::Result<Option<MountEntry>> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let id = info
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
    let id = id.ok_or_else(|| io::Error::other("the kernel names no mount id in /proc/self/fdinfo"))?;
    let unique_id = unique_id(&fd);
    let found = read()?
        .into_iter()
        .find(|entry| entry.mount_id == id && entry.mountpoint == path);
    Ok(found.map(|entry| MountEntry { unique_id, ..entry }))
}

/// `STATX_MNT_ID_UNIQUE` of statx(2), since Linux 6.8. What is cached will do, so that the filesystem is not asked.
fn unique_id(fd: &OwnedFd) -> Option<u64> {
    const MNT_ID_UNIQUE: u32 = 0x4000;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(fd, c"", flags, StatxFlags::from_bits_retain(MNT_ID_UNIQUE)).ok()?;
    (found.stx_mask & MNT_ID_UNIQUE != 0).then_some(found.stx_mnt_id)
}

/// Lines that do not look like the documented form are passed over: the kernel may add fields.
fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mount_id = number(fields.next()?)?;
    let _parent = fields.next()?;
    let (major, minor) = split_once(fields.next()?, b':')?;
    let _root = fields.next()?;
    let mountpoint = path(fields.next()?);
    let options = fields.next()?;
    // Optional fields, ended by a single hyphen.
    fields.by_ref().find(|field| *field == b"-")?;
    let fs_type = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    let source = path(fields.next()?);
    let super_options = fields.next().unwrap_or_default();
    Some(MountEntry {
        mount_id,
        device: (number(major)?, number(minor)?),
        mountpoint,
        fs_type,
        source,
        read_only: has_option(options, b"ro") || has_option(super_options, b"ro"),
        unique_id: None,
    })
}

fn has_option(options: &[u8], name: &[u8]) -> bool {
    options.split(|byte| *byte == b',').any(|option| option == name)
}

fn number<N: std::str::FromStr>(field: &[u8]) -> Option<N> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn split_once(field: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let middle = field.iter().position(|byte| *byte == at)?;
    Some((&field[..middle], &field[middle + 1..]))
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

/// The kernel writes space, tab, newline, backslash and `#` as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        match (first, octal(tail)) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

fn octal(digits: &[u8]) -> Option<u8> {
    let digits = digits.get(..3)?;
    digits.iter().try_fold(0u8, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(digit - b'0'),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_line_with_optional_fields_and_escapes() {
        let line = b"36 35 98:0 /mnt1 /mnt/a\\040b\\134c rw,noatime shared:1 master:2 - fuse.dfs /home/me/My\\040Drive ro,user_id=0\n";
        let entries = parse(line);
        assert_eq!(
            entries,
            [MountEntry {
                mount_id: 36,
                device: (98, 0),
                mountpoint: PathBuf::from("/mnt/a b\\c"),
                fs_type: "fuse.dfs".into(),
                source: PathBuf::from("/home/me/My Drive"),
                read_only: true,
                unique_id: None,
            }]
        );
        assert!(entries[0].is_dfs());
        assert_eq!(entries[0].device_name(), "98:0");
    }

    #[test]
    fn a_line_without_optional_fields() {
        let entries = parse(b"24 1 0:22 / /proc rw,nosuid - proc proc rw");
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].mountpoint, Path::new("/proc"));
        assert!(!entries[0].read_only);
        assert!(!entries[0].is_dfs());
    }

    #[test]
    fn names_that_are_not_unicode_keep_their_bytes() {
        let entries = parse(b"1 1 0:1 / /m\xff\\012x rw - fuse.dfs s rw");
        assert_eq!(entries[0].mountpoint.as_os_str().as_bytes(), b"/m\xff\nx");
    }

    #[test]
    fn lines_of_another_form_are_passed_over() {
        for line in [
            &b""[..],
            b"1 1",
            b"x 1 0:1 / /m rw - t s o",
            b"1 1 0:1 / /m rw no hyphen",
            b"1 1 01 / /m rw - t s",
        ] {
            assert!(parse(line).is_empty(), "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn incomplete_escapes_stand_for_themselves() {
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"a\\089"), b"a\\089");
        assert_eq!(unescape(b"\\777"), b"\\777");
        assert_eq!(unescape(b"\\\\040"), b"\\ ");
    }

    #[test]
    fn the_kernels_own_record_can_be_read() {
        let proc = at(Path::new("/proc")).unwrap().expect("/proc is a mount");
        assert_eq!(proc.fs_type, "proc");
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(at(directory.path()).unwrap(), None);
    }
}
