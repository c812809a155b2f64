//! Times, owners and modes, extended attributes, the numbers of the whole filesystem, and what is believed for how long.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;

use super::noflags;
use crate::harness::command::Cmd;
use crate::harness::volume::TestVolume;
use crate::harness::{SOON, noise, wait_for};

/// In nanoseconds: last access, last change of content, last change of anything.
fn times(path: &Path) -> (i128, i128, i128) {
    let meta = fs::symlink_metadata(path).unwrap();
    let nanos = |secs: i64, nanos: i64| i128::from(secs) * 1_000_000_000 + i128::from(nanos);
    (
        nanos(meta.atime(), meta.atime_nsec()),
        nanos(meta.mtime(), meta.mtime_nsec()),
        nanos(meta.ctime(), meta.ctime_nsec()),
    )
}

fn set(path: &Path, atime: (i64, i64), mtime: (i64, i64)) {
    let spec = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: spec(atime),
        last_modification: spec(mtime),
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn now() -> i128 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_nanos() as i128
}

/// Longer than the clock that filesystems take their times from stands still.
fn tick() {
    std::thread::sleep(Duration::from_millis(15));
}

#[test]
fn times_are_kept_to_the_nanosecond_and_change_when_they_should() {
    let mut volume = TestVolume::mounted();
    let path = volume.at("file");
    fs::write(&path, b"content").unwrap();
    fs::create_dir(volume.at("folder")).unwrap();
    symlink("file", volume.at("link")).unwrap();
    let odd = [
        (-5, 999_999_999),
        (0, 1),
        (1_234_567_890, 123_456_789),
        (4_102_444_800, 7),
    ];
    for (number, time) in odd.into_iter().enumerate() {
        for name in ["file", "folder", "link"] {
            set(&volume.at(name), time, odd[(number + 1) % odd.len()]);
        }
        if number % 2 == 0 {
            volume.remount();
        }
        for name in ["file", "folder", "link"] {
            let nanos = |(secs, nanos): (i64, i64)| i128::from(secs) * 1_000_000_000 + i128::from(nanos);
            let (atime, mtime, _) = times(&volume.at(name));
            let expected = (nanos(time), nanos(odd[(number + 1) % odd.len()]));
            // A daemon that starts looks at directories and links.
            let listed = name != "file" && number % 2 == 0;
            assert_eq!(
                (if listed { expected.0 } else { atime }, mtime),
                expected,
                "{name}"
            );
        }
    }
    // One of them alone, or the time that it is.
    set(&path, (7, 8), (9, 10));
    set(&path, (0, UTIME_OMIT), (11, 12));
    assert_eq!(times(&path).0, 7_000_000_008);
    let before = now() - 1_000_000_000;
    set(&path, (0, UTIME_NOW), (0, UTIME_OMIT));
    let (atime, mtime, ctime) = times(&path);
    assert!(atime > before && ctime > before && mtime == 11_000_000_012);

    // What each kind of change does to mtime and ctime.
    type Change<'a> = (&'a str, bool, &'a dyn Fn());
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let changes: [Change<'_>; 9] = [
        ("write", true, &|| file.write_all_at(b"x", 3).unwrap()),
        ("ftruncate", true, &|| file.set_len(5).unwrap()),
        ("truncate", true, &|| {
            rustix::fs::ftruncate(File::options().write(true).open(&path).unwrap(), 6).unwrap()
        }),
        ("fallocate", true, &|| {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 4_096).unwrap()
        }),
        ("chmod", false, &|| {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap()
        }),
        ("chown", false, &|| {
            std::os::unix::fs::chown(&path, Some(1), None).unwrap()
        }),
        ("link", false, &|| {
            fs::hard_link(&path, volume.at("second")).unwrap()
        }),
        ("setxattr", false, &|| {
            rustix::fs::setxattr(&path, "user.a", b"b", noflags()).unwrap()
        }),
        ("rename", false, &|| {
            fs::rename(volume.at("second"), volume.at("third")).unwrap()
        }),
    ];
    for (what, is_content, change) in changes {
        let (_, mtime, ctime) = times(&path);
        tick();
        change();
        // What a write does to them is shown at once, and what is shown then stays.
        let (_, new_mtime, new_ctime) = times(&path);
        assert!(new_ctime > ctime, "{what} leaves ctime");
        assert_eq!(new_mtime > mtime, is_content, "{what} and mtime");
    }
    drop(file);
    tick();
    let shown = times(&path);
    tick();
    volume.remount();
    let (_, mtime, _) = times(&path);
    assert_eq!(mtime, shown.1, "a write-back is no change of its own");

    // A directory changes with its entries.
    let steps: [(&str, &dyn Fn()); 3] = [
        ("create", &|| drop(File::create(volume.at("folder/a")).unwrap())),
        ("rename", &|| {
            fs::rename(volume.at("folder/a"), volume.at("folder/b")).unwrap()
        }),
        ("unlink", &|| fs::remove_file(volume.at("folder/b")).unwrap()),
    ];
    for (what, change) in steps {
        let (_, mtime, ctime) = times(&volume.at("folder"));
        tick();
        change();
        let (_, new_mtime, new_ctime) = times(&volume.at("folder"));
        assert!(new_mtime > mtime && new_ctime > ctime, "{what}");
    }
}

#[test]
fn the_last_access_is_noted_as_the_mount_says() {
    let mut volume = TestVolume::mounted();
    fs::write(volume.at("inline"), b"content").unwrap();
    fs::write(volume.at("blocks"), noise(1, 300_000)).unwrap();
    fs::create_dir(volume.at("folder")).unwrap();
    fs::write(volume.at("folder/a"), b"a").unwrap();
    let names = ["inline", "blocks", "folder"];
    let read = |path: &Path| {
        if path.is_dir() {
            assert_eq!(fs::read_dir(path).unwrap().count(), 1);
        } else {
            fs::read(path).unwrap();
        }
    };
    for options in ["noatime", "relatime"] {
        volume.unmount();
        volume.mount_with(["-o", options]);
        // The second time, the file is known to the daemon and its pages to the kernel.
        for (round, name) in [0, 1]
            .into_iter()
            .flat_map(|round| names.map(|name| (round, name)))
        {
            let path = volume.at(name);
            set(&path, (1_000, 7), (2_000, 8));
            let (_, _, ctime) = times(&path);
            assert_eq!(times(&path).0, 1_000_000_000_007, "looking at it is no access");
            tick();
            read(&path);
            if options == "noatime" {
                // Longer than what the kernel remembers of a file is believed.
                std::thread::sleep(Duration::from_millis(1_100));
                assert_eq!(
                    times(&path),
                    (1_000_000_000_007, 2_000_000_000_008, ctime),
                    "{name}, round {round}"
                );
                continue;
            }
            wait_for("the access is noted", SOON, || {
                times(&path).0 != 1_000_000_000_007
            });
            let (noted, mtime, new_ctime) = times(&path);
            assert_eq!(
                (mtime, new_ctime),
                (2_000_000_000_008, ctime),
                "an access changes nothing else"
            );
            tick();
            read(&path);
            std::thread::sleep(Duration::from_millis(1_100));
            assert_eq!(
                times(&path).0,
                noted,
                "an access later than every change is not noted again"
            );
        }
        // Who asks not to be noted, is not.
        set(&volume.at("inline"), (1_000, 7), (2_000, 8));
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOATIME;
        let unseen = rustix::fs::open(volume.at("inline"), flags, Mode::empty()).unwrap();
        assert_eq!(rustix::io::read(&unseen, &mut [0; 7]), Ok(7));
        assert_eq!(times(&volume.at("inline")).0, 1_000_000_000_007);
    }
}

#[test]
fn extended_attributes_in_every_namespace() {
    let mut volume = TestVolume::new();
    volume.mount_with(["-o", "allow_other"]);
    let path = volume.at("file");
    fs::write(&path, b"x").unwrap();
    fs::create_dir(volume.at("folder")).unwrap();
    symlink("file", volume.at("link")).unwrap();
    rustix::fs::mknodat(
        CWD,
        volume.at("pipe"),
        FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let get = |path: &Path, name: &str| {
        let mut value = vec![0; 70_000];
        rustix::fs::lgetxattr(path, name, &mut value[..]).map(|len| value[..len].to_vec())
    };
    for name in ["user.note", "trusted.note", "security.note"] {
        for path in [volume.at("file"), volume.at("folder")] {
            assert_eq!(get(&path, name), Err(Errno::NODATA));
            assert_eq!(
                rustix::fs::setxattr(&path, name, b"v", XattrFlags::REPLACE),
                Err(Errno::NODATA)
            );
            rustix::fs::setxattr(&path, name, b"one\0two", XattrFlags::CREATE).unwrap();
            assert_eq!(
                rustix::fs::setxattr(&path, name, b"v", XattrFlags::CREATE),
                Err(Errno::EXIST)
            );
            rustix::fs::setxattr(&path, name, b"", XattrFlags::REPLACE).unwrap();
            assert_eq!(get(&path, name), Ok(Vec::new()));
            rustix::fs::setxattr(&path, name, &noise(1, 1_500), noflags()).unwrap();
            assert_eq!(rustix::fs::getxattr(&path, name, &mut [0; 10]), Err(Errno::RANGE));
            if name != "user.note" {
                rustix::fs::removexattr(&path, name).unwrap();
            }
        }
    }
    // Links and pipes have none of a user's.
    for name in ["link", "pipe"] {
        assert_eq!(
            rustix::fs::lsetxattr(volume.at(name), "user.note", b"v", noflags()),
            Err(Errno::PERM)
        );
        rustix::fs::lsetxattr(volume.at(name), "trusted.note", b"of the link", noflags()).unwrap();
    }
    assert_eq!(
        rustix::fs::setxattr(&path, "unknown.note", b"v", noflags()),
        Err(Errno::OPNOTSUPP)
    );
    assert_eq!(
        rustix::fs::setxattr(&path, "user.big", &[1; 65_537], noflags()),
        Err(Errno::TOOBIG)
    );
    let long = format!("user.{}", "n".repeat(250));
    rustix::fs::setxattr(&path, &long, b"v", noflags()).unwrap();
    assert_eq!(
        rustix::fs::setxattr(&path, format!("{long}n"), b"v", noflags()),
        Err(Errno::RANGE)
    );
    // Only root sees the trusted ones; what a program may do is taken from it when it is changed.
    let script = r#"
setfattr -n trusted.secret -v 1 file
getfattr --absolute-names -d -m - file | grep -c trusted
chmod 666 file
setpriv --reuid=65534 --regid=65534 --clear-groups getfattr -d -m - file | grep -c trusted || true
setpriv --reuid=65534 --regid=65534 --clear-groups setfattr -n trusted.mine -v 1 file 2>/dev/null && exit 9
setcap cap_net_raw=ep file 2>/dev/null || setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 file
getfattr -n security.capability file >/dev/null
setpriv --reuid=65534 --regid=65534 --clear-groups bash -c 'echo more >> file'
getfattr -n security.capability file 2>/dev/null && exit 9
setfacl -m u:nobody:rw,g:daemon:r,m::rw file
setfacl -d -m u:nobody:rwx folder
: > folder/inherits
getfacl -cpE folder/inherits | tr '\n' ' '
"#;
    let said = Cmd::bash(script).dir(volume.mountpoint()).ok();
    assert_eq!(
        said,
        "1\n0\nuser::rw- user:nobody:rwx group::r-x mask::rw- other::r--  "
    );
    let all = |path: &Path| {
        let mut names = vec![0; 4_096];
        let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
        let mut found: Vec<_> = names[..len]
            .split(|byte| *byte == 0)
            .map(<[u8]>::to_vec)
            .filter(|name| !name.is_empty())
            .collect();
        found.sort();
        found
    };
    let before = ["file", "folder", "link", "pipe"].map(|name| all(&volume.at(name)));
    volume.kill();
    volume.mount();
    assert_eq!(
        ["file", "folder", "link", "pipe"].map(|name| all(&volume.at(name))),
        before
    );
    assert_eq!(get(&volume.at("file"), "user.note"), Ok(noise(1, 1_500)));
    assert_eq!(
        get(&volume.at("link"), "trusted.note"),
        Ok(b"of the link".to_vec())
    );
}

#[test]
fn statfs_tells_what_the_disk_under_the_folder_has() {
    let volume = TestVolume::mounted();
    let mount = rustix::fs::statfs(volume.mountpoint()).unwrap();
    let host = rustix::fs::statfs(volume.folder()).unwrap();
    assert_eq!(
        (mount.f_bsize, mount.f_blocks, mount.f_files),
        (host.f_bsize, host.f_blocks, host.f_files)
    );
    assert!(mount.f_bavail > 0 && mount.f_bavail <= mount.f_bfree && mount.f_bfree <= mount.f_blocks);
    // Others write at the same time.
    let near = |a: u64, b: u64| a.abs_diff(b) < host.f_blocks / 20;
    assert!(near(mount.f_bavail, host.f_bavail) && near(mount.f_bfree, host.f_bfree));
    assert_eq!((mount.f_namelen, mount.f_type), (253, 0x6573_5546));
    let df = Cmd::new("df")
        .args(["--output=source,fstype"])
        .arg(volume.mountpoint())
        .ok();
    assert!(
        df.contains(volume.folder().to_str().unwrap()) && df.contains("fuse.dfs"),
        "{df}"
    );
}

#[test]
fn owners_can_be_shown_as_somebody() {
    let mut volume = TestVolume::new();
    volume.mount_with(["-o", "uid=1234,gid=4321"]);
    fs::write(volume.at("file"), b"x").unwrap();
    fs::create_dir(volume.at("folder")).unwrap();
    for name in ["file", "folder", ""] {
        let meta = fs::metadata(volume.at(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1234, 4321), "{name}");
    }
    let give = |uid, gid| std::os::unix::fs::chown(volume.at("file"), uid, gid).map_err(|e| e.raw_os_error());
    assert_eq!(give(Some(1), None), Err(Some(libc::EPERM)));
    assert_eq!(give(None, Some(1)), Err(Some(libc::EPERM)));
    assert_eq!(give(Some(1234), Some(4321)), Ok(()));
    // Everybody may enter, and is who the files say.
    let script = "setpriv --reuid=1234 --regid=4321 --clear-groups bash -euc 'echo mine > file; mkdir folder/mine; cat file'";
    assert_eq!(Cmd::bash(script).dir(volume.mountpoint()).ok(), "mine\n");
    let other = "setpriv --reuid=77 --regid=77 --clear-groups bash -c 'cat file; echo x > file' 2>&1";
    let ran = Cmd::bash(other).dir(volume.mountpoint()).fails();
    assert!(
        ran.out.starts_with("mine") && ran.out.contains("Permission denied"),
        "{ran}"
    );
    volume.unmount();
    volume.mount();
    assert_eq!(
        fs::metadata(volume.at("file")).unwrap().uid(),
        0,
        "the host's owner is who mounted"
    );
    // Without the options nobody but who mounted may enter.
    let script = "setpriv --reuid=1234 --regid=4321 --clear-groups ls \"$0\" 2>&1";
    let ran = Cmd::bash(script).arg(volume.mountpoint()).fails();
    assert!(ran.out.contains("Permission denied"), "{ran}");
}

#[test]
fn changes_behind_the_mount_are_seen_soon() {
    let volume = TestVolume::mounted();
    for (name, content) in [("a", noise(1, 400_000)), ("b", noise(2, 400_000))] {
        fs::write(volume.at(name), content).unwrap();
        File::open(volume.at(name)).unwrap().sync_all().unwrap();
    }
    symlink("a", volume.at("link")).unwrap();
    assert!(fs::read(volume.at("a")).unwrap() == noise(1, 400_000));
    assert_eq!(fs::read_link(volume.at("link")).unwrap().to_str(), Some("a"));
    let inotify = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::NONBLOCK).unwrap();
    rustix::fs::inotify::add_watch(
        &inotify,
        volume.mountpoint(),
        rustix::fs::inotify::WatchFlags::ALL_EVENTS,
    )
    .unwrap();
    // In the folder: a mode, a name that goes, one that comes with another file's content, another link.
    fs::set_permissions(volume.host("b"), fs::Permissions::from_mode(0o600)).unwrap();
    wait_for("the mode", SOON, || {
        fs::metadata(volume.at("b")).unwrap().mode() & 0o777 == 0o600
    });
    fs::copy(volume.host("b"), volume.folder().join("c.f")).unwrap();
    wait_for("the new name", SOON, || fs::metadata(volume.at("c")).is_ok());
    assert!(fs::read(volume.at("c")).unwrap() == noise(2, 400_000));
    fs::rename(volume.folder().join("c.f"), volume.host("a")).unwrap();
    wait_for("the new content", SOON, || {
        fs::read(volume.at("a")).unwrap() == noise(2, 400_000)
    });
    // A new inode: one that the host gives the same number is not told apart.
    symlink("b", volume.host("new-link")).unwrap();
    fs::rename(volume.host("new-link"), volume.host("link")).unwrap();
    wait_for("the new target", SOON, || {
        fs::read_link(volume.at("link")).is_ok_and(|target| target.to_str() == Some("b"))
    });
    fs::remove_file(volume.host("b")).unwrap();
    wait_for("the name is gone", SOON, || fs::metadata(volume.at("b")).is_err());
    // Nobody who watches is told of a change that comes from outside; of one made in the mount, yes.
    let told = || {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4_096];
        let mut names = Vec::new();
        let mut reader = rustix::fs::inotify::Reader::new(&inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            names.extend(event.file_name().map(|name| name.to_str().unwrap().to_owned()));
        }
        names
    };
    told();
    fs::set_permissions(volume.host("a"), fs::Permissions::from_mode(0o600)).unwrap();
    File::create(volume.at("here")).unwrap();
    assert!(told().iter().all(|name| name == "here"));
}

#[test]
fn names_and_attributes_are_believed_as_long_as_asked_for() {
    let mut volume = TestVolume::new();
    volume.mount_with(["-o", "attr_timeout=60"]);
    fs::write(volume.at("file"), b"x").unwrap();
    let mode = || fs::metadata(volume.at("file")).unwrap().mode() & 0o777;
    let before = mode();
    fs::set_permissions(volume.host("file"), fs::Permissions::from_mode(0o600)).unwrap();
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(mode(), before, "still believed");
}

#[test]
fn a_mount_that_lets_the_kernel_collect_writes_keeps_them_as_well() {
    let mut volume = TestVolume::new();
    volume.mount_with(["-o", "writeback"]);
    let path = volume.at("file");
    let file = File::options().create_new(true).write(true).open(&path).unwrap();
    let mut expected = vec![0; 600_000];
    for step in 0..400_u64 {
        let (offset, len) = ((step * 7_919) % 590_000, 1 + (step * 31 % 3_000) as usize);
        file.write_all_at(&noise(step, len), offset).unwrap();
        expected[offset as usize..offset as usize + len].copy_from_slice(&noise(step, len));
    }
    file.set_len(600_000).unwrap();
    file.sync_all().unwrap();
    volume.kill();
    drop(file);
    volume.mount_with(["-o", "writeback"]);
    assert!(fs::read(&path).unwrap() == expected);
    fs::write(volume.at("closed"), noise(7, 50_000)).unwrap();
    volume.kill();
    volume.mount();
    assert!(fs::read(volume.at("closed")).unwrap() == noise(7, 50_000));
}
