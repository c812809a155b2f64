//! Editors: how they replace a document so that a crash leaves the old one or the new one.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::harness::command::Cmd;
use crate::harness::tree;
use crate::harness::volume::TestVolume;

/// A document as people have them: its own mode, a label, a list of who may read it.
fn document(path: &Path) {
    fs::write(path, "one\ntwo\nthree\n").unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path, "user.label", b"important", flags).unwrap();
    Cmd::bash("chmod 640 \"$0\"; setfacl -m u:nobody:r,g:daemon:rw \"$0\"; touch -d '2020-01-01 UTC' \"$0\"")
        .arg(path)
        .ok();
}

/// What the editor did on the host's filesystem, it must have done in the mount: names, content, modes, labels, lists.
fn without_times(folder: &Path) -> std::collections::BTreeMap<std::path::PathBuf, tree::Entry> {
    let mut found = tree::snapshot(folder);
    found.values_mut().for_each(|entry| entry.mtime = None);
    found
}

#[test]
fn vim_saves_in_each_of_its_ways() {
    let mut volume = TestVolume::mounted();
    let (plain, ours) = (volume.place().join("plain"), volume.at("ours"));
    for folder in [&plain, &ours] {
        fs::create_dir(folder).unwrap();
        for (name, settings) in [
            ("renamed", "backupcopy=no nobackup writebackup fsync"),
            ("copied", "backupcopy=yes backup fsync"),
            ("auto", "backupcopy=auto backup backupext=.bak fsync"),
            ("bare", "nobackup nowritebackup nofsync"),
        ] {
            let path = folder.join(name);
            document(&path);
            let set = format!("set nocompatible swapfile backupdir=. backupskip= {settings}");
            Cmd::new("vim.tiny")
                .args(["-u", "NONE", "-es", "-c", &set, "-c", "%s/two/TWO/", "-c", "wq"])
                .arg(&path)
                .env("TERM", "dumb")
                .dir(volume.place())
                .ok();
            assert_eq!(
                fs::read_to_string(&path).unwrap(),
                "one\nTWO\nthree\n",
                "{settings}"
            );
        }
        assert_eq!(
            fs::read_to_string(folder.join("copied~")).unwrap(),
            "one\ntwo\nthree\n"
        );
        assert_eq!(
            fs::read_to_string(folder.join("auto.bak")).unwrap(),
            "one\ntwo\nthree\n"
        );
    }
    tree::assert_same(&without_times(&plain), &without_times(&ours));
    let before = tree::snapshot(&ours);
    volume.kill();
    volume.mount();
    tree::assert_same(&before, &tree::snapshot(&ours));
}

/// The sequence of calls with which office programs save: a lock file, the old version to a backup name, the new one from a synced
/// temporary with the old one's mode, labels and list, the folder synced.
fn save_like_an_office(path: &Path, content: &[u8]) {
    let folder = path.parent().unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let lock = folder.join(format!(".~lock.{name}#"));
    let mut locked = fs::File::options()
        .create_new(true)
        .write(true)
        .open(&lock)
        .unwrap();
    locked
        .write_all(b",user,host,22.11.2026 12:00,file:///home/user;")
        .unwrap();
    drop(locked);
    let original = fs::File::options().read(true).write(true).open(path).unwrap();
    rustix::fs::fcntl_lock(&original, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();

    let temporary = folder.join(format!("lu{}.tmp", std::process::id()));
    let mut new = fs::File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)
        .unwrap();
    for piece in content.chunks(30_000) {
        new.write_all(piece).unwrap();
    }
    let meta = original.metadata().unwrap();
    rustix::fs::fchmod(&new, rustix::fs::Mode::from_raw_mode(meta.mode() & 0o7777)).unwrap();
    for name in ["user.label", "system.posix_acl_access"] {
        let mut value = [0; 4096];
        let len = rustix::fs::fgetxattr(&original, name, &mut value[..]).unwrap();
        rustix::fs::fsetxattr(&new, name, &value[..len], rustix::fs::XattrFlags::empty()).unwrap();
    }
    new.sync_all().unwrap();
    drop(new);
    drop(original);
    let backup = folder.join(format!("{name}.bak"));
    fs::remove_file(&backup).ok();
    fs::hard_link(path, &backup).unwrap();
    fs::rename(&temporary, path).unwrap();
    fs::File::open(folder).unwrap().sync_all().unwrap();
    fs::remove_file(&lock).unwrap();
}

#[test]
fn an_office_save_keeps_the_document_whoever_dies() {
    let mut volume = TestVolume::mounted();
    let (plain, ours) = (volume.place().join("plain"), volume.at("ours"));
    let old = crate::harness::noise(1, 700_000);
    let new = crate::harness::noise(2, 900_001);
    for folder in [&plain, &ours] {
        fs::create_dir(folder).unwrap();
        let path = folder.join("letter.odt");
        document(&path);
        save_like_an_office(&path, &old);
        save_like_an_office(&path, &new);
    }
    volume.kill();
    volume.mount();
    tree::assert_same(&without_times(&plain), &without_times(&ours));
    assert!(fs::read(ours.join("letter.odt")).unwrap() == new);
    assert!(fs::read(ours.join("letter.odt.bak")).unwrap() == old);
}
