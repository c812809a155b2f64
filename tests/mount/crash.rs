//! The daemon dies: what was closed stays, what was not is whole or absent, and mounting again repairs nothing by hand.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::harness::command::Cmd;
use crate::harness::tree;
use crate::harness::volume::TestVolume;
use crate::harness::{noise, wait_for};

#[test]
fn a_kill_right_after_the_last_close_loses_nothing() {
    let mut volume = TestVolume::mounted();
    let source = volume.place().join("source");
    tree::real_tree(&source, 2_000);
    fs::create_dir(source.join("odd")).unwrap();
    tree::odd_tree(&source.join("odd"));
    fs::write(source.join("large"), noise(3, 48 << 20)).unwrap();
    Cmd::new("cp").arg("-a").arg(&source).arg(volume.at("tree")).ok();
    volume.kill();
    volume.mount();
    tree::assert_same(&tree::snapshot(&source), &tree::snapshot(&volume.at("tree")));
}

#[test]
fn a_dead_mount_is_replaced() {
    let mut volume = TestVolume::mounted();
    fs::write(volume.at("a"), b"before").unwrap();
    volume.kill();
    let dead = fs::read_dir(volume.mountpoint()).unwrap_err();
    // The second while the kernel is still giving up the connection.
    let known = [rustix::io::Errno::NOTCONN, rustix::io::Errno::CONNABORTED];
    assert!(
        known
            .iter()
            .any(|errno| dead.raw_os_error() == Some(errno.raw_os_error())),
        "{dead}"
    );
    volume.mount();
    assert_eq!(fs::read(volume.at("a")).unwrap(), b"before");
    volume.unmount();
    assert!(!volume.is_mounted(), "no dead mount is left beneath");
}

#[test]
fn a_file_killed_while_being_rewritten_is_one_of_its_versions() {
    let mut volume = TestVolume::mounted();
    for round in 0..6_u64 {
        let path = volume.at("file");
        let writer = std::thread::spawn(move || rewrite_until_it_fails(&path));
        std::thread::sleep(Duration::from_millis(150 + 97 * round));
        volume.kill();
        let closed = writer.join().unwrap();
        volume.mount();
        let found = version_of(&volume.at("file"));
        let versions = [Some(closed), Some(closed + 1)];
        assert!(
            versions.contains(&found),
            "round {round}: {found:?} after {closed} closed versions"
        );
    }
}

#[test]
fn a_file_synced_but_not_closed_survives_a_kill() {
    let mut volume = TestVolume::mounted();
    let content = noise(9, 5 << 20);
    let mut file = fs::File::create(volume.at("open")).unwrap();
    file.write_all(&content).unwrap();
    file.sync_all().unwrap();
    volume.kill();
    drop(file);
    volume.mount();
    assert!(fs::read(volume.at("open")).unwrap() == content);
}

#[test]
fn programs_that_wait_for_a_dead_daemon_get_an_error() {
    let mut volume = TestVolume::mounted();
    let path = volume.at("file");
    let writer = std::thread::spawn(move || rewrite_until_it_fails(&path));
    std::thread::sleep(Duration::from_millis(200));
    volume.kill();
    wait_for("the writer is told", Duration::from_secs(10), || {
        writer.is_finished()
    });
}

/// Writes version after version, each whole, until the mount is dead. Returns the last one that was closed.
fn rewrite_until_it_fails(path: &Path) -> u64 {
    let first = version_of(path).map_or(1, |version| version + 1);
    for version in first.. {
        // A version is replaced as editors do it: what has the name is always whole.
        let temporary = path.with_extension("new");
        let len = 1 + (version as usize * 7919) % (600 << 10);
        let mut content = version.to_le_bytes().to_vec();
        content.extend_from_slice(&noise(version, len));
        let written = fs::write(&temporary, &content).and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            return version - 1;
        }
    }
    0
}

/// Which version a file holds; `None` when there is none. Panics when it holds no whole one.
fn version_of(path: &Path) -> Option<u64> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
        Err(e) => panic!("{}: {e}", path.display()),
    };
    let version = u64::from_le_bytes(content[..8].try_into().unwrap());
    let len = 1 + (version as usize * 7919) % (600 << 10);
    assert!(
        content[8..] == noise(version, len),
        "{} is not whole",
        path.display()
    );
    Some(version)
}

#[test]
fn files_made_while_others_are_removed_keep_their_content() {
    let mut volume = TestVolume::mounted();
    // The host gives the number of a removed inode to the next new file, also to one of another thread in another directory.
    let (makers, files) = (4, 1_000);
    let dir = |kind: &str, worker: u64| volume.at(&format!("{kind}{worker}"));
    let made = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for worker in 0..makers {
            let (kept, gone) = (dir("kept", worker), dir("gone", worker));
            fs::create_dir(&kept).unwrap();
            fs::create_dir(&gone).unwrap();
            let made = &made;
            scope.spawn(move || {
                for number in 0..files {
                    fs::write(kept.join(number.to_string()), noise(number, 660)).unwrap();
                }
                made.fetch_add(1, Ordering::SeqCst);
            });
            scope.spawn(move || {
                while made.load(Ordering::SeqCst) < makers {
                    fs::File::create(gone.join("file")).unwrap();
                    fs::remove_file(gone.join("file")).unwrap();
                }
            });
        }
    });
    let kept: Vec<PathBuf> = (0..makers).map(|worker| dir("kept", worker)).collect();
    volume.kill();
    Cmd::new("umount").arg("-l").arg(volume.mountpoint()).ok();
    volume.mount();
    for dir in kept {
        for number in 0..files {
            let path = dir.join(number.to_string());
            assert!(
                fs::read(&path).unwrap() == noise(number, 660),
                "{}",
                path.display()
            );
        }
    }
}
