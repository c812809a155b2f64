//! What is there after the daemon died at once: names and attributes, synchronous writes, maps.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, symlink};

use super::{noflags, python};
use crate::harness::command::Cmd;
use crate::harness::volume::TestVolume;
use crate::harness::{noise, tree};

#[test]
fn names_and_attributes_outlive_the_daemon_at_once() {
    let mut volume = TestVolume::mounted();
    for step in 0..3 {
        let at = |name: &str| volume.at(&format!("{step}/{name}"));
        fs::create_dir(volume.at(&step.to_string())).unwrap();
        for name in ["renamed", "removed", "linked", "changed", "replaced", "replacing"] {
            fs::write(at(name), name).unwrap();
        }
        fs::create_dir_all(at("made/in")).unwrap();
        File::create(at("created")).unwrap();
        fs::rename(at("renamed"), at("made/in/new name")).unwrap();
        fs::rename(at("replacing"), at("replaced")).unwrap();
        fs::remove_file(at("removed")).unwrap();
        fs::hard_link(at("linked"), at("second")).unwrap();
        symlink("linked", at("symbolic")).unwrap();
        Cmd::bash("chmod 4755 changed; chown 1234:4321 created; setfacl -m u:nobody:r created; touch -d '2001-02-03 04:05:06.789 UTC' changed")
            .dir(volume.at(&step.to_string()))
            .ok();
        rustix::fs::setxattr(at("changed"), "user.a", b"b", noflags()).unwrap();
        let before = tree::snapshot(volume.mountpoint());
        volume.kill();
        volume.mount();
        tree::assert_same(&before, &tree::snapshot(volume.mountpoint()));
    }
}

/// Starts of files that are never closed before the daemon dies.
fn open_files(volume: &TestVolume, flags: i32) -> Vec<File> {
    let files = [10, 5_000, 700_000].map(|len| {
        let path = volume.at(&format!("{flags}-{len}"));
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(flags)
            .open(path)
            .unwrap();
        file.write_all(&noise(len, len as usize)).unwrap();
        file
    });
    files.into()
}

#[track_caller]
fn assert_there(volume: &TestVolume, flags: i32) {
    for len in [10, 5_000, 700_000] {
        let found = fs::read(volume.at(&format!("{flags}-{len}"))).unwrap();
        assert!(
            found == noise(len, len as usize),
            "{} of {len} bytes are there",
            found.len()
        );
    }
}

#[test]
fn synchronous_writes_are_kept_without_a_close() {
    let mut volume = TestVolume::mounted();
    for flags in [libc::O_SYNC, libc::O_DSYNC] {
        let open = open_files(&volume, flags);
        volume.kill();
        drop(open);
        volume.mount();
        assert_there(&volume, flags);
    }
}

#[test]
fn a_mount_with_sync_keeps_every_write() {
    let mut volume = TestVolume::new();
    volume.mount_with(["-o", "sync"]);
    let open = open_files(&volume, 0);
    volume.kill();
    drop(open);
    volume.mount();
    assert_there(&volume, 0);
}

#[test]
fn a_mount_with_dirsync_syncs_every_directory_it_changes() {
    let mut volume = TestVolume::new();
    volume.mount_with(["-o", "dirsync"]);
    let trace = volume.place().join("trace");
    let pid = volume.pid().unwrap().to_string();
    let tracer = Cmd::new("strace")
        .args(["-f", "-qq", "-e", "trace=fsync,fdatasync", "-p", &pid, "-o"])
        .arg(&trace)
        .start();
    let syncs = || {
        fs::read_to_string(&trace)
            .unwrap_or_default()
            .lines()
            .filter(|line| line.contains("sync("))
            .count()
    };
    // The tracer is there once it sees something.
    crate::harness::wait_for("the tracer", crate::harness::SOON, || {
        File::open(volume.mountpoint()).unwrap().sync_all().unwrap();
        syncs() > 0
    });
    let steps: [(&str, &str); 7] = [
        ("mkdir", "mkdir d"),
        ("create", ": > d/a"),
        ("link", "ln d/a d/b"),
        ("symlink", "ln -s a d/c"),
        ("rename", "mv d/a e"),
        ("unlink", "rm d/b d/c"),
        ("rmdir", "rmdir d"),
    ];
    for (what, script) in steps {
        let before = syncs();
        Cmd::bash(script).dir(volume.mountpoint()).ok();
        crate::harness::wait_for(what, crate::harness::SOON, || syncs() > before);
    }
    drop(tracer);
}

#[test]
fn a_map_is_kept_by_msync_and_by_the_last_close_after_it() {
    let mut volume = TestVolume::mounted();
    let program = r#"
for name in ("synced", "closed", "unmapped-last"):
    fd = os.open(name, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 1 << 20)
    mapped = mmap.mmap(fd, 1 << 20)
    mapped[500_000:500_005] = b"bytes"
    if name == "synced":
        mapped.flush()
        keep = (fd, mapped)
    elif name == "closed":
        mapped.close()
        os.close(fd)
    else:
        os.close(fd)
        mapped[600_000:600_005] = b"later"
        mapped.close()
print("ready", flush=True)
time.sleep(60)
"#;
    let mut running = python(volume.mountpoint(), program).start();
    crate::harness::wait_for("the maps are written", crate::harness::SOON, || {
        running.said().contains("ready")
    });
    volume.kill();
    running.kill();
    volume.mount();
    for name in ["synced", "closed", "unmapped-last"] {
        let found = fs::read(volume.at(name)).unwrap();
        assert_eq!(found.len(), 1 << 20, "{name}");
        assert_eq!(&found[500_000..500_005], b"bytes", "{name}");
    }
    assert_eq!(
        &fs::read(volume.at("unmapped-last")).unwrap()[600_000..600_005],
        b"later"
    );
}
