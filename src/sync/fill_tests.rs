//! A folder that is at no tree yet comes to one.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::sync::Arc;

use super::devices_tests::{CALLER, Device, Net, RW};
use crate::base::names::TEMP_PREFIX;
use crate::base::types::{FileKind, RenameMode, SetAttr};
use crate::volume::{ROOT_INO, Wait};

/// A tree of everything that there is.
fn made(device: &Device) {
    let volume = device.volume();
    let write = |dir, name: &str, content: &[u8]| {
        let (attr, opened) = volume.create(dir, OsStr::new(name), 0o640, RW, &CALLER).unwrap();
        volume.write(opened.fh, 0, content, Wait::Bounded).unwrap();
        volume.flush(opened.fh).unwrap();
        volume.release(opened.fh);
        attr.ino
    };
    let mut dir = ROOT_INO;
    for level in 0..5 {
        for n in 0..30 {
            write(dir, &format!("small{n}"), format!("{level} {n}").as_bytes());
        }
        let big = write(dir, "big", &vec![level; 300_000]);
        volume.setxattr(big, OsStr::new("user.a"), b"b", 0).unwrap();
        write(dir, "empty", b"");
        volume
            .symlink(dir, OsStr::new("link"), OsStr::new("some/where"), &CALLER)
            .unwrap();
        volume
            .mknod(dir, OsStr::new("pipe"), FileKind::Fifo, 0o600, 0, &CALLER)
            .unwrap();
        volume
            .mknod(
                dir,
                OsStr::new("null"),
                FileKind::CharDevice,
                0o600,
                0x103,
                &CALLER,
            )
            .unwrap();
        let below = volume
            .mkdir(dir, OsStr::new("below"), 0o750, &CALLER)
            .unwrap()
            .ino;
        volume.link(big, below, OsStr::new("other name")).unwrap();
        volume
            .link(big, ROOT_INO, OsStr::new(&format!("top{level}")))
            .unwrap();
        dir = below;
    }
    let closed = volume
        .mkdir(ROOT_INO, OsStr::new("closed"), 0o700, &CALLER)
        .unwrap()
        .ino;
    let within = volume
        .mkdir(closed, OsStr::new("within"), 0o700, &CALLER)
        .unwrap()
        .ino;
    write(within, "file", b"in it");
    for ino in [within, closed] {
        let set = SetAttr {
            mode: Some(0o500),
            ..SetAttr::default()
        };
        volume.setattr(ino, None, &set, &CALLER).unwrap();
    }
    device.engine().round(true, true).unwrap();
}

fn leftovers(device: &Device) -> usize {
    let listed = std::fs::read_dir(device.folder()).unwrap();
    let names = listed.map(|entry| entry.unwrap().file_name());
    names
        .filter(|name| name.as_encoded_bytes().starts_with(TEMP_PREFIX.as_bytes()))
        .count()
}

#[test]
fn everything_arrives_on_writers_and_readers() {
    let net = Net::new(3);
    let first = Device::new(0, &net);
    made(&first);
    let tree = first.tree();
    for other in [Device::new(1, &net), Device::reader(2, &net)] {
        let round = other.engine().round(true, true).unwrap();
        assert!(round.applied && !round.waiting, "{round:?}");
        assert_eq!(other.tree(), tree);
        assert_eq!(other.engine().journal().head, first.engine().journal().head);
        assert_eq!(leftovers(&other), 0);
        assert!(
            !other.engine().round(true, true).unwrap().committed,
            "nothing changed here"
        );
    }
}

#[test]
fn goes_on_where_it_was_stopped() {
    let net = Net::new(3);
    let first = Device::new(0, &net);
    made(&first);
    let tree = first.tree();
    for mut other in [Device::new(1, &net), Device::reader(2, &net)] {
        other.engine().round(true, true).unwrap();
        // As when it was stopped before it came to its end: some of it is there, and nobody remembers.
        other.life = None;
        other.forget_journal();
        for gone in ["below/below/small3.f", "link.f", "empty.f", "null.f"] {
            std::fs::remove_file(other.folder().join(gone)).unwrap();
        }
        let gone = other.folder().join("closed");
        std::fs::remove_dir_all(gone).unwrap();
        other.start();
        for _ in 0..2 {
            let round = other.engine().round(true, true).unwrap();
            assert!(!round.waiting, "{round:?}");
            first.engine().round(true, true).unwrap();
        }
        assert_eq!(other.tree(), tree);
        assert_eq!(first.tree(), tree);
        assert_eq!(other.engine().journal().head, first.engine().journal().head);
        assert_eq!(leftovers(&other), 0);
    }
}

#[test]
fn what_is_in_the_way_stays() {
    let net = Net::new(2);
    let first = Device::new(0, &net);
    made(&first);
    let other = Device::reader(1, &net);
    let way = |path: &str| other.folder().join(path);
    std::fs::create_dir(way("below")).unwrap();
    std::fs::write(way("below/mine"), "mine").unwrap();
    std::fs::write(way("small7.f"), "").unwrap();
    let round = other.engine().round(true, true).unwrap();
    assert!(round.waiting && !round.applied, "{round:?}");
    assert_eq!(other.engine().journal().head, None);
    let names: BTreeSet<_> = other.listed().into_iter().map(|(path, ..)| path).collect();
    assert_eq!(std::fs::read(way("small7.f")).unwrap(), b"");
    assert_eq!(std::fs::read(way("below/mine")).unwrap(), b"mine");
    assert!(
        names.contains(&vec!["small8".into()])
            && names.contains(&vec!["closed".into(), "within".into(), "file".into()])
    );
    // Until it goes.
    std::fs::remove_file(way("small7.f")).unwrap();
    std::fs::remove_dir_all(way("below")).unwrap();
    let round = other.engine().round(true, true).unwrap();
    assert!(round.applied && !round.waiting, "{round:?}");
    assert_eq!(other.tree(), first.tree());
}

#[test]
fn many_files_in_many_directories() {
    let (dirs, files) = (100, 30);
    let net = Net::new(2);
    let first = Device::new(0, &net);
    let volume = Arc::clone(first.volume());
    for n in 0..dirs {
        let name = format!("d{n}");
        let dir = volume.mkdir(ROOT_INO, OsStr::new(&name), 0o755, &CALLER);
        let dir = dir.unwrap().ino;
        for m in 0..files {
            let name = format!("f{m}");
            let made = volume.create(dir, OsStr::new(&name), 0o644, RW, &CALLER);
            let (_, opened) = made.unwrap();
            volume
                .write(opened.fh, 0, name.as_bytes(), Wait::Bounded)
                .unwrap();
            volume.flush(opened.fh).unwrap();
            volume.release(opened.fh);
        }
    }
    first.engine().round(true, true).unwrap();
    let other = Device::new(1, &net);
    let round = other.engine().round(true, true).unwrap();
    assert!(round.applied && !round.waiting, "{round:?}");
    assert_eq!(other.listed().len(), dirs * (files + 1));
    assert_eq!(other.tree(), first.tree());
    assert_eq!(leftovers(&other), 0);
}

/// Runs something as one who may not make device nodes.
fn without_device_nodes<T: Send>(what: impl FnOnce() -> T + Send) -> T {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let run = || {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::MKNOD);
        set_capabilities(None, sets).unwrap();
        what()
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

#[test]
fn what_cannot_be_made_here_stays_in_the_tree() {
    let net = Net::new(2);
    let first = Device::new(0, &net);
    made(&first);
    let is_node = |path: &str| {
        let met = std::fs::symlink_metadata(first.folder().join(path));
        met.is_ok_and(|met| std::os::unix::fs::FileTypeExt::is_char_device(&met.file_type()))
    };
    assert!(is_node("null.f"));
    let mut other = Device::new(1, &net);
    let round = |device: &Device| {
        let round = device.engine().round(true, true).unwrap();
        assert!(!round.waiting && round.failed.is_none(), "{round:?}");
    };
    let same = |other: &Device| {
        let mut tree = first.tree();
        tree.retain(|path, _| !path.last().is_some_and(|name| name == "null" || name == "moved"));
        assert_eq!(other.tree(), tree);
        assert_eq!(other.engine().journal().head, first.engine().journal().head);
    };
    without_device_nodes(|| {
        round(&other);
        same(&other);
        // Also when everything is looked at.
        other.life = None;
        other.start();
        other
            .volume()
            .mkdir(ROOT_INO, OsStr::new("new"), 0o755, &CALLER)
            .unwrap();
        round(&other);
    });
    round(&first);
    same(&other);
    assert!(is_node("null.f") && is_node("below/null.f"));
    let volume = first.volume();
    let below = volume.lookup(ROOT_INO, OsStr::new("below")).unwrap().ino;
    let rename = |dir, from: &str, to_dir, to: &str| {
        let (from, to) = (OsStr::new(from), OsStr::new(to));
        volume
            .rename(dir, from, to_dir, to, RenameMode::Replace, Wait::Bounded)
            .unwrap();
    };
    rename(ROOT_INO, "null", below, "moved");
    volume.unlink(below, OsStr::new("null")).unwrap();
    round(&first);
    without_device_nodes(|| {
        round(&other);
        same(&other);
        // What it is in goes.
        let at = other.volume().lookup(ROOT_INO, OsStr::new("below")).unwrap().ino;
        let mut dirs = vec![(ROOT_INO, "below", at)];
        while let Some((above, name, dir)) = dirs.last().copied() {
            let entry = other.listed_in(dir).into_iter().next();
            match entry {
                Some((_, FileKind::Directory)) => {
                    let below = other.volume().lookup(dir, OsStr::new("below")).unwrap().ino;
                    dirs.push((dir, "below", below));
                }
                Some((name, _)) => other.volume().unlink(dir, &name).unwrap(),
                None => {
                    other.volume().rmdir(above, OsStr::new(name)).unwrap();
                    dirs.pop();
                }
            }
        }
        round(&other);
    });
    round(&first);
    same(&other);
    assert!(!first.folder().join("below").exists());
}
