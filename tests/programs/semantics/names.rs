//! Names: how long, how they change, how they are listed, and files of other kinds behind them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, RenameFlags, SeekFrom};
use rustix::io::Errno;

use super::python;
use crate::harness::command::Cmd;
use crate::harness::long;
use crate::harness::volume::TestVolume;

#[test]
fn paths_are_as_long_as_linux_has_them_and_trees_deeper_still() {
    let mut volume = TestVolume::mounted();
    let dir = || OFlags::RDONLY | OFlags::DIRECTORY;
    let mut here = rustix::fs::open(volume.mountpoint(), dir(), Mode::empty()).unwrap();
    let name = "d".repeat(200);
    for _ in 0..60 {
        rustix::fs::mkdirat(&here, &name, Mode::from_raw_mode(0o755)).unwrap();
        here = rustix::fs::openat(&here, &name, dir(), Mode::empty()).unwrap();
    }
    let file = rustix::fs::openat(
        &here,
        "bottom",
        OFlags::CREATE | OFlags::RDWR,
        Mode::from_raw_mode(0o644),
    )
    .unwrap();
    File::from(file).write_all(b"twelve thousand bytes down").unwrap();
    drop(here);
    // A path of 4,095 bytes is the longest that Linux takes.
    let mut path = volume.mountpoint().to_str().unwrap().to_owned();
    while path.len() + 201 <= 4_090 {
        path = format!("{path}/{name}");
    }
    let longest = format!("{path}/{}", "f".repeat(4_095 - path.len() - 1));
    fs::write(&longest, b"x").unwrap();
    assert_eq!(
        fs::write(format!("{longest}f"), b"x").unwrap_err().raw_os_error(),
        Some(libc::ENAMETOOLONG)
    );
    volume.remount();
    assert_eq!(fs::read(&longest).unwrap(), b"x");
    let mut here = rustix::fs::open(volume.mountpoint(), dir(), Mode::empty()).unwrap();
    for _ in 0..60 {
        here = rustix::fs::openat(&here, &name, dir(), Mode::empty()).unwrap();
    }
    let file = rustix::fs::openat(&here, "bottom", OFlags::RDONLY, Mode::empty()).unwrap();
    assert_eq!(
        std::io::read_to_string(File::from(file)).unwrap(),
        "twelve thousand bytes down"
    );
    drop(here);
    Cmd::new("rm").arg("-rf").arg(volume.at(&name)).ok();
    // Targets of links as long as Linux takes them, names of any bytes.
    symlink("t".repeat(4_095), volume.at("link")).unwrap();
    assert_eq!(fs::read_link(volume.at("link")).unwrap().as_os_str().len(), 4_095);
    for byte in (1..=255_u8).filter(|byte| *byte != b'/' && *byte != b'.') {
        fs::write(volume.mountpoint().join(OsString::from_vec(vec![byte])), [byte]).unwrap();
    }
    assert_eq!(fs::read_dir(volume.mountpoint()).unwrap().count(), 254);
}

/// Positions and names of a directory, as the kernel lists it.
fn entries(dir: impl AsFd) -> Vec<(u64, OsString)> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4_096];
    let (mut list, mut found) = (RawDir::new(dir, &mut buffer), Vec::new());
    while let Some(entry) = list.next() {
        let entry = entry.unwrap();
        found.push((
            entry.next_entry_cookie(),
            OsString::from_vec(entry.file_name().to_bytes().to_vec()),
        ));
    }
    found
}

#[test]
fn a_listing_neither_loses_nor_repeats_while_the_directory_changes() {
    let mut volume = TestVolume::mounted();
    let folder = volume.at("folder");
    fs::create_dir(&folder).unwrap();
    let stable = if long() { 50_000 } else { 10_000 };
    // Four kinds, so that it does not depend on how one of them is listed.
    fs::write(volume.at("one"), b"1").unwrap();
    for number in 0..stable {
        let path = folder.join(format!("stable-{number}"));
        match number % 4 {
            0 => fs::write(path, b"").unwrap(),
            1 => symlink("nowhere", path).unwrap(),
            2 => fs::create_dir(path).unwrap(),
            _ => rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap(),
        }
    }
    let list_often = |rounds: usize| {
        for _ in 0..rounds {
            let mut seen: BTreeMap<OsString, usize> = BTreeMap::new();
            for entry in fs::read_dir(&folder).unwrap() {
                *seen.entry(entry.unwrap().file_name()).or_default() += 1;
            }
            let repeated: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).take(5).collect();
            let kept = seen
                .keys()
                .filter(|name| name.to_str().unwrap().starts_with("stable-"))
                .count();
            assert_eq!(kept, stable, "lost entries");
            assert!(repeated.is_empty(), "listed more than once: {repeated:?}");
        }
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for changer in 0..2 {
            let (stop, folder) = (&stop, &folder);
            scope.spawn(move || {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // Created, renamed, removed; a thousand stay for a while, so that the directory grows and shrinks.
                    let at = |number: usize| folder.join(format!("passing-{changer}-{number}"));
                    File::create(at(number)).unwrap();
                    if number >= 1_000 {
                        fs::rename(at(number - 1_000), folder.join(format!("moved-{changer}"))).unwrap();
                        fs::remove_file(folder.join(format!("moved-{changer}"))).unwrap();
                    }
                }
            });
        }
        list_often(if long() { 20 } else { 4 });
        stop.store(true, Ordering::Relaxed);
    });
    volume.remount();
    list_often(1);
}

#[test]
fn a_position_in_a_directory_is_found_again() {
    let volume = TestVolume::mounted();
    for number in 0..3_000 {
        symlink("x", volume.at(&format!("entry-{number}"))).unwrap();
    }
    let dir = rustix::fs::open(
        volume.mountpoint(),
        OFlags::RDONLY | OFlags::DIRECTORY,
        Mode::empty(),
    )
    .unwrap();
    let all = entries(&dir);
    assert_eq!(all.len(), 3_002);
    for at in [0, 1, 2, 17, 500, 1_499, 2_998, 3_000] {
        let (cookie, _) = all[at];
        rustix::fs::seek(&dir, SeekFrom::Start(cookie)).unwrap();
        let rest = entries(&dir);
        assert!(
            rest.iter()
                .map(|(_, name)| name)
                .eq(all[at + 1..].iter().map(|(_, name)| name)),
            "after entry {at}"
        );
    }
    // Also when what stands there is gone.
    let (cookie, _) = all[1_499];
    let gone: Vec<_> = all[1_400..1_600].iter().map(|(_, name)| name.clone()).collect();
    for name in &gone {
        fs::remove_file(volume.mountpoint().join(name)).unwrap();
    }
    rustix::fs::seek(&dir, SeekFrom::Start(cookie)).unwrap();
    let rest = entries(&dir);
    assert!(
        rest.iter()
            .map(|(_, name)| name)
            .eq(all[1_600..].iter().map(|(_, name)| name))
    );
    // From the start again, it is as it is now.
    rustix::fs::seek(&dir, SeekFrom::Start(0)).unwrap();
    assert_eq!(entries(&dir).len(), 3_002 - 200);
}

#[test]
fn inode_numbers_outlive_remounts_and_deaths() {
    let mut volume = TestVolume::mounted();
    let make = |name: &str| volume.at(name);
    fs::write(make("file"), b"x").unwrap();
    fs::create_dir(make("folder")).unwrap();
    symlink("file", make("link")).unwrap();
    rustix::fs::mknodat(CWD, make("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let numbers = |volume: &TestVolume| {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(volume.mountpoint()).unwrap() {
            let entry = entry.unwrap();
            let meta = fs::symlink_metadata(entry.path()).unwrap();
            assert_eq!(std::os::unix::fs::DirEntryExt::ino(&entry), meta.ino());
            found.insert(entry.file_name(), meta.ino());
        }
        found
    };
    let before = numbers(&volume);
    volume.remount();
    assert_eq!(numbers(&volume), before);
    // Rewriting, renaming and cutting keep a file what it is.
    fs::write(volume.at("file"), vec![1; 3 << 20]).unwrap();
    fs::rename(volume.at("file"), volume.at("folder/moved")).unwrap();
    volume.kill();
    volume.mount();
    assert_eq!(
        fs::metadata(volume.at("folder/moved")).unwrap().ino(),
        before[&OsString::from("file")]
    );
    assert_eq!(fs::metadata(volume.mountpoint()).unwrap().ino(), 1);
}

#[test]
fn rename_has_its_flags() {
    let volume = TestVolume::mounted();
    let at = |name: &str| volume.at(name);
    let rename = |from: &str, to: &str, flags| rustix::fs::renameat_with(CWD, at(from), CWD, at(to), flags);
    fs::write(at("a"), b"a").unwrap();
    fs::write(at("b"), b"b").unwrap();
    fs::create_dir_all(at("d/in")).unwrap();
    let (a, d) = (
        fs::metadata(at("a")).unwrap().ino(),
        fs::metadata(at("d")).unwrap().ino(),
    );
    assert_eq!(rename("a", "b", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    assert_eq!(rename("a", "c", RenameFlags::NOREPLACE), Ok(()));
    assert_eq!(rename("c", "b", RenameFlags::EXCHANGE), Ok(()));
    assert_eq!(fs::metadata(at("b")).unwrap().ino(), a);
    assert_eq!(
        (fs::read(at("b")).unwrap(), fs::read(at("c")).unwrap()),
        (b"a".into(), b"b".into())
    );
    fs::create_dir(at("e")).unwrap();
    assert_eq!(rename("e", "d", RenameFlags::EXCHANGE), Ok(()));
    assert_eq!(fs::metadata(at("e")).unwrap().ino(), d);
    assert!(at("e/in").is_dir() && !at("d/in").exists());
    assert_eq!(rename("b", "e", RenameFlags::EXCHANGE), Err(Errno::INVAL));
    fs::remove_file(at("c")).unwrap();
    fs::remove_dir(at("d")).unwrap();
    fs::rename(at("e"), at("c")).unwrap();
    fs::write(at("d"), b"d").unwrap();
    assert_eq!(rename("d", "missing", RenameFlags::EXCHANGE), Err(Errno::NOENT));
    assert_eq!(rename("c", "c/in", RenameFlags::EXCHANGE), Err(Errno::INVAL));
    assert_eq!(
        rename("d", "b", RenameFlags::EXCHANGE | RenameFlags::NOREPLACE),
        Err(Errno::INVAL)
    );
    assert_eq!(rename("d", "b", RenameFlags::WHITEOUT), Err(Errno::INVAL));
    assert_eq!(
        rename("c", "c/in/deeper", RenameFlags::empty()),
        Err(Errno::INVAL)
    );
    assert_eq!(rename("c", "b", RenameFlags::empty()), Err(Errno::NOTDIR));
    assert_eq!(rename("b", "c", RenameFlags::empty()), Err(Errno::ISDIR));
    fs::create_dir(at("e")).unwrap();
    assert_eq!(rename("e", "c", RenameFlags::empty()), Err(Errno::NOTEMPTY));
    assert_eq!(rename("c", "e", RenameFlags::empty()), Ok(()));
    assert_eq!(rename("b", "d", RenameFlags::empty()), Ok(()));
    assert_eq!(fs::read(at("d")).unwrap(), b"a");
    // Whoever looks sees the old or the new one, never none.
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..300 {
                fs::write(at("new"), number.to_string()).unwrap();
                fs::rename(at("new"), at("d")).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            assert!(!fs::read(at("d")).unwrap().is_empty());
        }
    });
}

#[test]
fn what_was_removed_goes_on_for_those_who_hold_it() {
    let volume = TestVolume::mounted();
    let program = r#"
os.mkdir("folder"); os.mkdir("other"); os.mkdir("moved"); os.mkfifo("pipe"); open("file", "w").write("content")
folder, other = os.open("folder", os.O_RDONLY), os.open("other", os.O_PATH)
pipe, held = os.open("pipe", os.O_RDWR), os.open("file", os.O_PATH)
numbers = [os.fstat(fd).st_ino for fd in (folder, other, pipe, held)]
os.rmdir("folder"); os.rename("moved", "other"); os.unlink("pipe"); os.unlink("file")
time.sleep(1.2)  # longer than attributes are believed
for fd, number in zip((folder, other, pipe, held), numbers):
    stat = os.fstat(fd)
    assert (stat.st_ino, stat.st_size if fd == held else 7) == (number, 7), stat
    assert fd in (folder, other) or stat.st_nlink == 0
assert os.listdir(folder) == [] and os.listdir("other") == []
os.write(pipe, b"still"); assert os.read(pipe, 5) == b"still"
try: os.mkdir("new", dir_fd=folder)
except FileNotFoundError: pass
else: raise AssertionError("made in a removed directory")
again = os.open("/proc/self/fd/%d" % held, os.O_RDWR)
assert os.read(again, 10) == b"content"
os.write(again, b" more"); assert os.pread(again, 20, 0) == b"content more"
for n in range(1000):
    open("many", "w").close(); fd = os.open("many", os.O_PATH); os.unlink("many"); os.close(fd)
"#;
    python(volume.mountpoint(), program).ok();
    assert_eq!(
        fs::read_dir(volume.folder()).unwrap().count(),
        2,
        "`other` and the marker"
    );
}

#[test]
fn pipes_sockets_and_devices_work_through_their_names() {
    let mut volume = TestVolume::mounted();
    let at = |name: &str| volume.at(name);
    rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let reader = std::thread::spawn({
        let path = at("pipe");
        move || fs::read(path).unwrap()
    });
    fs::write(at("pipe"), b"through the pipe").unwrap();
    assert_eq!(reader.join().unwrap(), b"through the pipe");

    // Two names: one stays when its maker is gone.
    let listener = UnixListener::bind(at("socket")).unwrap();
    let server = std::thread::spawn(move || {
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        text
    });
    UnixStream::connect(at("socket"))
        .unwrap()
        .write_all(b"through the socket")
        .unwrap();
    assert_eq!(server.join().unwrap(), "through the socket");
    assert_eq!(
        UnixStream::connect(at("socket")).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );

    // The device `full`: without effect, unless the mount says otherwise.
    let full = rustix::fs::makedev(1, 7);
    rustix::fs::mknodat(
        CWD,
        at("full"),
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        full,
    )
    .unwrap();
    assert_eq!(
        File::open(at("full")).unwrap_err().kind(),
        std::io::ErrorKind::PermissionDenied
    );
    volume.unmount();
    volume.mount_with(["-o", "dev,suid"]);
    assert_eq!(fs::metadata(volume.at("full")).unwrap().rdev(), full);
    assert_eq!(
        fs::write(volume.at("full"), b"x").unwrap_err().kind(),
        std::io::ErrorKind::StorageFull
    );
    assert!(fs::metadata(volume.at("socket")).unwrap().file_type().is_socket());
}

#[test]
fn set_id_programs_need_the_option_suid() {
    let mut volume = TestVolume::mounted();
    let program = volume.at("id");
    fs::copy("/usr/bin/id", &program).unwrap();
    std::os::unix::fs::chown(&program, Some(65_534), None).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    assert_eq!(Cmd::new(&program).arg("-u").ok(), "0\n");
    volume.unmount();
    volume.mount_with(["-o", "suid"]);
    assert_eq!(Cmd::new(&program).arg("-u").ok(), "65534\n");
}

#[test]
fn a_file_has_as_many_names_as_the_host_allows() {
    let mut volume = TestVolume::mounted();
    fs::write(volume.at("file"), b"shared").unwrap();
    fs::create_dir(volume.at("names")).unwrap();
    for number in 0..2_000 {
        fs::hard_link(volume.at("file"), volume.at(&format!("names/{number}"))).unwrap();
    }
    assert_eq!(fs::metadata(volume.at("names/7")).unwrap().nlink(), 2_001);
    fs::write(volume.at("names/1999"), b"changed through one of them").unwrap();
    fs::remove_file(volume.at("file")).unwrap();
    volume.remount();
    assert_eq!(
        fs::read(volume.at("names/0")).unwrap(),
        b"changed through one of them"
    );
    assert_eq!(fs::metadata(volume.at("names/7")).unwrap().nlink(), 2_000);
    assert_eq!(
        fs::hard_link(volume.at("names"), volume.at("second"))
            .unwrap_err()
            .raw_os_error(),
        Some(libc::EPERM)
    );
}

#[test]
fn what_cannot_be_had_says_so() {
    let mut volume = TestVolume::mounted();
    let open = |path: &Path, flags| rustix::fs::open(path, flags, Mode::from_raw_mode(0o600));
    assert_eq!(
        open(volume.mountpoint(), OFlags::TMPFILE | OFlags::RDWR).unwrap_err(),
        Errno::OPNOTSUPP
    );
    fs::write(volume.at("file"), crate::harness::noise(1, 1 << 20)).unwrap();
    fs::create_dir(volume.at("folder")).unwrap();
    fs::write(volume.at("folder/below"), b"x").unwrap();
    let swap =
        "chmod 600 file; mkswap -q file; if swapon file 2> said; then swapoff file; exit 9; fi; cat said";
    let said = Cmd::bash(swap).dir(volume.mountpoint()).ok();
    assert!(said.contains("swapon failed: Invalid argument"), "{said}");
    // No ioctl is known; handles are given, but hold only as long as the kernel knows the inode: not over a remount.
    let program = r#"
fd = os.open("file", os.O_RDONLY)
for number in (0x80086601, 0x5401, 0xC020660B):
    try: fcntl.ioctl(fd, number, bytearray(64))
    except OSError as e: assert e.errno in (errno.ENOTTY, errno.EOPNOTSUPP), e
    else: raise AssertionError(hex(number))
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]
handle, mount = Handle(bytes=128), ctypes.c_int()
fd = os.open("folder/below", os.O_RDONLY)
assert libc.name_to_handle_at(-100, b"folder/below", ctypes.byref(handle), ctypes.byref(mount), 0) == 0, ctypes.get_errno()
root = os.open(".", os.O_RDONLY)
again = libc.open_by_handle_at(root, ctypes.byref(handle), os.O_RDONLY)
assert again >= 0 and os.fstat(again).st_ino == os.fstat(fd).st_ino
print(bytes(handle.data[:handle.bytes]).hex(), handle.type)
"#;
    let handle = python(volume.mountpoint(), program).ok();
    volume.remount();
    let again = format!(
        r#"
data, kind = "{}".split()
data = bytes.fromhex(data)
handle = ctypes.create_string_buffer(struct.pack("Ii", len(data), int(kind)) + data)
root = os.open(".", os.O_RDONLY)
assert libc.open_by_handle_at(root, handle, os.O_RDONLY) == -1 and ctypes.get_errno() == errno.ESTALE
"#,
        handle.trim()
    );
    python(volume.mountpoint(), &again).ok();
    assert_eq!(
        rustix::fs::statat(CWD, volume.at("file"), AtFlags::empty())
            .unwrap()
            .st_size,
        1 << 20
    );
}
