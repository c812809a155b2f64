//! Mounts and unmounts by itself: as root with mount(2), so that the type is `fuse.dfs`; for ordinary users through `fusermount3`.
//! (fuser 0.18 does neither as it should: it can unmount what another process mounted at the path since, and cannot set the type.)
//! Invariant: unmounts only a mount that it made, or a dfs mount whose daemon is dead. Called by `session` and by `cli`'s mount helpers.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags as Flags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::mountinfo::{self, MountEntry};
use super::{Access, Atime, MountError, MountFlags, MountRequest};

/// Largest read request, in bytes: the kernel's 256 pages.
const MAX_READ: u32 = 1 << 20;
/// How long a mounted filesystem may take to answer one `stat`.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long `fusermount3` may take.
const HELPER_WITHIN: Duration = Duration::from_secs(20);
/// How long a mount may be in use before that is an error, and when it is looked again.
const BUSY_FOR: Duration = Duration::from_secs(1);
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// Dead mounts that may lie over each other.
const STALE_MAX: usize = 16;

/// A fresh mount and the kernel's end of it.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) device: OwnedFd,
    pub(super) entry: MountEntry,
}

/// The absolute path without links of a directory to mount on. A dfs mount there whose daemon died ("transport endpoint is not
/// connected") is removed first; one that works is an error, and one that does not answer too.
pub fn resolve_mountpoint(path: &Path) -> Result<PathBuf, MountError> {
    let unusable = |source| MountError::Mountpoint {
        path: path.to_owned(),
        source,
    };
    let absolute = std::path::absolute(path).map_err(unusable)?;
    for _ in 0..STALE_MAX {
        let resolved = canonical(&absolute).map_err(unusable)?;
        match mountinfo::at(&resolved).map_err(unusable)? {
            Some(entry) if entry.is_dfs() => match probe(&resolved) {
                Some(Err(error)) if is_dead(&error) => {
                    tracing::warn!(path = %resolved.display(), "removing the mount of a daemon that died");
                    detach(&entry, true)?;
                }
                Some(_) => {
                    return Err(MountError::AlreadyMounted {
                        path: resolved,
                        folder: entry.source,
                    });
                }
                None => return Err(MountError::Unresponsive { path: resolved }),
            },
            _ => {
                let metadata = std::fs::metadata(&resolved).map_err(unusable)?;
                return if metadata.is_dir() {
                    Ok(resolved)
                } else {
                    Err(unusable(Errno::NOTDIR.into()))
                };
            }
        }
    }
    Err(MountError::Unresponsive { path: absolute })
}

/// As `canonicalize`, also when the last component is a dead mount, which cannot be looked at.
fn canonical(path: &Path) -> io::Result<PathBuf> {
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Err(error), Some(parent), Some(name)) if is_dead(&error) => Ok(parent.canonicalize()?.join(name)),
        (result, ..) => result,
    }
}

fn is_dead(error: &io::Error) -> bool {
    [Errno::NOTCONN, Errno::CONNABORTED]
        .iter()
        .any(|dead| error.raw_os_error() == Some(dead.raw_os_error()))
}

/// One `stat`, waited for on a thread of its own: a filesystem may never answer. `None`: it did not. What the kernel has cached does not
/// count: it answers for a daemon that died a moment ago.
pub(super) fn probe(path: &Path) -> Option<io::Result<()>> {
    let (answer, answered) = mpsc::sync_channel(1);
    let path = path.to_owned();
    let asking = std::thread::Builder::new()
        .name("fuse-probe".into())
        .spawn(move || {
            // Nobody may be left to hear it.
            let asked = rustix::fs::statx(CWD, &path, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS);
            let _ = answer.send(asked.map(drop).map_err(io::Error::from));
        });
    asking.ok()?;
    answered.recv_timeout(ANSWER_WITHIN).ok()
}

/// Mounts. The kernel has sent its first request when this returns.
pub(super) fn attach(request: &MountRequest) -> Result<Attached, MountError> {
    let device = if rustix::process::geteuid().is_root() {
        mount_directly(request)?
    } else {
        mount_by_helper(request)?
    };
    let refused = |source| MountError::Refused {
        path: request.mountpoint.clone(),
        source,
    };
    match mountinfo::at(&request.mountpoint).map_err(refused)? {
        Some(entry) if entry.is_dfs() => Ok(Attached { device, entry }),
        _ => Err(refused(io::Error::other("the mount is gone again"))),
    }
}

fn mount_directly(request: &MountRequest) -> Result<OwnedFd, MountError> {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(MountError::Device)?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,max_read={MAX_READ}",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    if request.access != Access::Owner {
        data.push_str(",allow_other");
    }
    let refused = |source: io::Error| MountError::Refused {
        path: request.mountpoint.clone(),
        source,
    };
    let data = CString::new(data).map_err(|error| refused(error.into()))?;
    let flags = kernel_flags(&request.flags);
    rustix::mount::mount(
        &*request.source,
        &*request.mountpoint,
        mountinfo::FS_TYPE,
        flags,
        data.as_c_str(),
    )
    .map_err(|error| refused(error.into()))?;
    Ok(device.into())
}

fn kernel_flags(flags: &MountFlags) -> Flags {
    let atime = match flags.atime {
        Atime::Relative => Flags::RELATIME,
        Atime::Strict => Flags::STRICTATIME,
        Atime::Never => Flags::NOATIME,
    };
    [
        (flags.read_only, Flags::RDONLY),
        (!flags.suid, Flags::NOSUID),
        (!flags.dev, Flags::NODEV),
        (flags.noexec, Flags::NOEXEC),
        (flags.sync, Flags::SYNCHRONOUS),
        (flags.dirsync, Flags::DIRSYNC),
    ]
    .into_iter()
    .fold(atime, |all, (set, flag)| if set { all | flag } else { all })
}

/// `fusermount3` mounts and sends the descriptor of `/dev/fuse` back over a socket, here its standard input.
fn mount_by_helper(request: &MountRequest) -> Result<OwnedFd, MountError> {
    let failed = |reason: String| MountError::Helper {
        path: request.mountpoint.clone(),
        reason,
    };
    let (ours, theirs) = UnixStream::pair().map_err(|error| failed(error.to_string()))?;
    ours.set_read_timeout(Some(HELPER_WITHIN))
        .map_err(|error| failed(error.to_string()))?;
    let child = helper(&[
        OsStr::new("-o"),
        &helper_options(request),
        OsStr::new("--"),
        request.mountpoint.as_os_str(),
    ])
    .env("_FUSE_COMMFD", "0")
    .stdin(Stdio::from(OwnedFd::from(theirs)))
    .spawn()
    .map_err(|error| failed(not_started(&error)))?;
    let received = receive_descriptor(&ours);
    let said = finish(child).map_err(|said| failed(with_hint(said)))?;
    match received {
        Ok(device) => Ok(device),
        Err(error) if said.is_empty() => Err(failed(format!("fusermount3 sent no device: {error}"))),
        Err(_) => Err(failed(said)),
    }
}

fn helper(arguments: &[&OsStr]) -> Command {
    let mut command = Command::new("fusermount3");
    command
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn not_started(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "fusermount3 is needed to mount as an ordinary user; install the package fuse3".into()
        }
        _ => format!("fusermount3 cannot be run: {error}"),
    }
}

/// What `fusermount3` leaves unsaid.
fn with_hint(said: String) -> String {
    if said.contains("/dev/fuse: Permission denied") {
        format!("{said}; ordinary users need to read and write it: udev makes its mode 0666")
    } else {
        said
    }
}

/// In the form of `fusermount3`: commas and backslashes in the source are escaped.
fn helper_options(request: &MountRequest) -> OsString {
    let flags = &request.flags;
    let mut options = b"fsname=".to_vec();
    for byte in request.source.as_os_str().as_bytes() {
        if matches!(byte, b',' | b'\\') {
            options.push(b'\\');
        }
        options.push(*byte);
    }
    options.extend_from_slice(format!(",subtype=dfs,default_permissions,max_read={MAX_READ}").as_bytes());
    let words = [
        (request.access != Access::Owner, "allow_other"),
        (flags.read_only, "ro"),
        (flags.noexec, "noexec"),
        (flags.atime == Atime::Never, "noatime"),
        (flags.sync, "sync"),
        (flags.dirsync, "dirsync"),
    ];
    for (_, word) in words.iter().filter(|(wanted, _)| *wanted) {
        options.push(b',');
        options.extend_from_slice(word.as_bytes());
    }
    OsString::from_vec(options)
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8];
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptor.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Waits, bounded, and returns what the helper wrote; an error when it failed.
fn finish(mut child: Child) -> Result<String, String> {
    let deadline = Instant::now() + HELPER_WITHIN;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                // It may sit in the kernel beyond our reach; it is not waited for then.
                let _ = child.kill();
                return Err("fusermount3 did not end in time".into());
            }
            Err(error) => return Err(format!("fusermount3: {error}")),
        }
    };
    let mut said = String::new();
    if let Some(stderr) = child.stderr.as_mut() {
        // What can be read is enough for a message.
        let _ = stderr.take(4096).read_to_string(&mut said);
    }
    let said = said.trim().to_owned();
    if status.success() {
        Ok(said)
    } else {
        Err(if said.is_empty() {
            format!("fusermount3: {status}")
        } else {
            said
        })
    }
}

/// Changes the flags of a dfs mount (`-o remount`).
pub fn remount(mountpoint: &Path, flags: &MountFlags) -> Result<(), MountError> {
    let refused = |source: io::Error| MountError::Refused {
        path: mountpoint.to_owned(),
        source,
    };
    match mountinfo::at(mountpoint).map_err(refused)? {
        Some(entry) if entry.is_dfs() => {}
        _ => return Err(refused(io::Error::other("no dfs mount is here to be changed"))),
    }
    rustix::mount::mount_remount(mountpoint, kernel_flags(flags), c"").map_err(|error| refused(error.into()))
}

/// Unmounts the dfs mount at a path, whoever made it; false when there is none.
pub fn unmount_path(mountpoint: &Path, lazy: bool) -> Result<bool, MountError> {
    let unusable = |source| MountError::Mountpoint {
        path: mountpoint.to_owned(),
        source,
    };
    match mountinfo::at(mountpoint).map_err(unusable)? {
        Some(entry) if entry.is_dfs() => detach(&entry, lazy).map(|()| true),
        _ => Ok(false),
    }
}

/// Unmounts exactly this mount; gone already is well. `lazy`: takes it out of sight now, and ends it when nobody uses it any more.
pub(super) fn detach(entry: &MountEntry, lazy: bool) -> Result<(), MountError> {
    let path = &entry.mountpoint;
    let refused = |source: io::Error| MountError::Refused {
        path: path.clone(),
        source,
    };
    let flags = UnmountFlags::NOFOLLOW
        | if lazy {
            UnmountFlags::DETACH
        } else {
            UnmountFlags::empty()
        };
    let until = Instant::now() + BUSY_FOR;
    loop {
        match mountinfo::at(path).map_err(refused)? {
            Some(top) if top.is_same(entry) => {}
            Some(top) if is_listed(entry).map_err(refused)? => {
                return Err(MountError::Covered {
                    path: path.clone(),
                    fs_type: top.fs_type,
                });
            }
            _ => return Ok(()),
        }
        match rustix::mount::unmount(&**path, flags) {
            Ok(()) => return Ok(()),
            // `df`, or a file manager that asks every mount how full it is, is in it for a moment.
            Err(Errno::BUSY) if Instant::now() < until => std::thread::sleep(BUSY_PAUSE),
            Err(Errno::BUSY) => return Err(MountError::Busy { path: path.clone() }),
            Err(Errno::PERM) => return detach_by_helper(path, lazy),
            Err(error) => return Err(refused(error.into())),
        }
    }
}

/// Whether the mount is there, though perhaps under another.
fn is_listed(entry: &MountEntry) -> io::Result<bool> {
    let unlisted = MountEntry {
        unique_id: None,
        ..entry.clone()
    };
    Ok(mountinfo::read()?.iter().any(|other| other.is_same(&unlisted)))
}

fn detach_by_helper(path: &Path, lazy: bool) -> Result<(), MountError> {
    let failed = |reason: String| MountError::Helper {
        path: path.to_owned(),
        reason,
    };
    let mut arguments = vec![OsStr::new("-u")];
    if lazy {
        arguments.push(OsStr::new("-z"));
    }
    arguments.extend([OsStr::new("--"), path.as_os_str()]);
    let child = helper(&arguments)
        .stdin(Stdio::null())
        .spawn()
        .map_err(|error| failed(not_started(&error)))?;
    match finish(child) {
        Ok(_) => Ok(()),
        Err(reason) if reason.to_lowercase().contains("busy") => Err(MountError::Busy {
            path: path.to_owned(),
        }),
        Err(reason) => Err(failed(reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_safe_unless_asked_for() {
        let flags = kernel_flags(&MountFlags::default());
        assert_eq!(flags, Flags::NOSUID | Flags::NODEV | Flags::RELATIME);
        let all = MountFlags {
            read_only: true,
            suid: true,
            dev: true,
            noexec: true,
            atime: Atime::Never,
            sync: true,
            dirsync: true,
        };
        let expected = Flags::RDONLY | Flags::NOEXEC | Flags::NOATIME | Flags::SYNCHRONOUS | Flags::DIRSYNC;
        assert_eq!(kernel_flags(&all), expected);
    }

    #[test]
    fn the_helper_gets_commas_escaped() {
        let mut request = MountRequest::new("/home/me/a,b\\c", "/mnt");
        request.access = Access::OwnerAndRoot;
        request.flags.read_only = true;
        assert_eq!(
            helper_options(&request),
            "fsname=/home/me/a\\,b\\\\c,subtype=dfs,default_permissions,max_read=1048576,allow_other,ro"
        );
    }

    #[test]
    fn an_ordinary_directory_resolves() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, directory.path().join("link")).unwrap();
        assert_eq!(resolve_mountpoint(&directory.path().join("link")).unwrap(), real);
    }

    #[test]
    fn a_missing_mount_point_and_a_file_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let missing = resolve_mountpoint(&directory.path().join("missing"));
        assert!(
            matches!(missing, Err(MountError::Mountpoint { .. })),
            "{missing:?}"
        );
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(
            resolve_mountpoint(&file),
            Err(MountError::Mountpoint { .. })
        ));
    }

    #[test]
    fn what_is_not_ours_is_not_unmounted() {
        assert!(!unmount_path(Path::new("/proc"), false).unwrap());
        // As if /proc had been mounted over a mount of ours: it stays.
        let mut entry = mountinfo::at(Path::new("/proc")).unwrap().unwrap();
        entry.mount_id += 1_000_000_000;
        detach(&entry, true).unwrap();
        assert!(mountinfo::at(Path::new("/proc")).unwrap().is_some());
    }
}
