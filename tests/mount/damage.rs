//! One flipped bit, anywhere: the previous version or an error that names file and cause, never wrong bytes, never a crash.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::harness::command::Cmd;
use crate::harness::noise;
use crate::harness::tree;
use crate::harness::volume::TestVolume;

/// A volume with `victim` and `other`, unmounted.
fn two_files() -> (TestVolume, Vec<u8>, Vec<u8>) {
    let mut volume = TestVolume::mounted();
    let (victim, other) = (noise(11, 3 << 20), noise(12, 3 << 20));
    fs::write(volume.at("victim"), &victim).unwrap();
    fs::write(volume.at("other"), &other).unwrap();
    volume.unmount();
    (volume, victim, other)
}

fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn a_bit_of_a_manifest() {
    let (mut volume, victim, other) = two_files();
    let host = volume.host("victim");
    let whole = fs::read(&host).unwrap();
    let stride = (whole.len() / 24).max(1);
    for at in (0..whole.len()).step_by(stride) {
        fs::write(&host, &whole).unwrap();
        flip(&host, at as u64);
        volume.mount();
        match fs::read(volume.at("victim")) {
            // Padding beyond a slot, or the slot that does not count.
            Ok(found) => assert!(
                found == victim || found.is_empty(),
                "wrong bytes after a flip at {at}"
            ),
            Err(e) => assert_eq!(e.raw_os_error(), Some(5), "{e} after a flip at {at}"),
        }
        assert!(fs::read(volume.at("other")).unwrap() == other);
        volume.unmount();
    }
}

#[test]
fn a_damaged_newer_slot_gives_the_previous_version() {
    let mut volume = TestVolume::mounted();
    let first = b"the first version".to_vec();
    fs::write(volume.at("file"), &first).unwrap();
    volume.remount();
    let before = fs::read(volume.host("file")).unwrap();
    fs::write(volume.at("file"), b"the second version").unwrap();
    volume.unmount();
    let after = fs::read(volume.host("file")).unwrap();
    let changed: Vec<usize> = (0..after.len())
        .filter(|&at| before.get(at) != Some(&after[at]))
        .collect();
    // The tail of what changed lies in the sealed part of the newer slot.
    let last = changed[changed.len() - 8];
    flip(&volume.host("file"), last as u64);
    volume.mount();
    match fs::read(volume.at("file")) {
        Ok(found) => assert_eq!(String::from_utf8_lossy(&found), "the first version"),
        Err(e) => assert_eq!(e.raw_os_error(), Some(5), "{e}"),
    }
}

#[test]
fn bits_of_stored_blocks() {
    let (mut volume, victim, other) = two_files();
    let store = volume.state().join("store.sqlite");
    // Every block is damaged, the small ones inside their blobs, so that the database itself stays sound.
    let script =
        "UPDATE data SET bytes = CAST(substr(bytes, 1, 100) || x'00ff00' || substr(bytes, 104) AS BLOB)";
    Cmd::new("sqlite3").arg(&store).arg(script).ok();
    let segment = volume.state().join("store.sqlite-blocks/00000000");
    for at in (50..fs::metadata(&segment).unwrap().len()).step_by(4096) {
        flip(&segment, at);
    }
    volume.mount();
    for (name, content) in [("victim", &victim), ("other", &other)] {
        match fs::read(volume.at(name)) {
            Ok(found) => assert!(&found == content, "wrong bytes in {name}"),
            Err(e) => assert_eq!(e.raw_os_error(), Some(5), "{name}: {e}"),
        }
    }
    let error = fs::read(volume.at("victim")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5));
    let log = volume.log();
    assert!(log.contains("victim"), "the log names the file: {log}");
    fs::write(volume.at("new"), b"still writable").unwrap();
    volume.remount();
    assert_eq!(fs::read(volume.at("new")).unwrap(), b"still writable");
    volume.unmount();
    let found = volume.own("fsck-dfs").arg("-n").arg(volume.folder()).fails();
    assert!(found.said().contains("victim"), "{found}");
}

#[test]
fn a_bit_in_the_middle_of_the_database() {
    let (mut volume, victim, other) = two_files();
    let store = volume.state().join("store.sqlite");
    let len = fs::metadata(&store).unwrap().len();
    for at in [100, 20_000, len / 4, len / 2, len - 9_000] {
        let whole = fs::read(&store).unwrap();
        flip(&store, at);
        let ran = volume.try_mount([]);
        if ran.succeeded() {
            for (name, content) in [("victim", &victim), ("other", &other)] {
                match fs::read(volume.at(name)) {
                    Ok(found) => assert!(&found == content, "wrong bytes in {name} after a flip at {at}"),
                    Err(e) => assert_eq!(e.raw_os_error(), Some(5), "{name}: {e} after a flip at {at}"),
                }
            }
            volume.unmount();
        } else {
            assert!(ran.err.contains("store.sqlite"), "{ran}");
        }
        for suffix in ["-wal", "-shm"] {
            fs::remove_file(volume.state().join(format!("store.sqlite{suffix}"))).ok();
        }
        fs::write(&store, whole).unwrap();
    }
    volume.mount();
    assert!(fs::read(volume.at("victim")).unwrap() == victim);
}

#[test]
fn a_bit_of_the_database_header() {
    let (mut volume, ..) = two_files();
    let store = volume.state().join("store.sqlite");
    for at in [0, 16, 18, 44] {
        let whole = fs::read(&store).unwrap();
        flip(&store, at);
        let ran = volume.try_mount([]);
        if ran.succeeded() {
            volume.unmount();
        } else {
            assert!(
                ran.code() > 0 && ran.err.contains("store.sqlite"),
                "flip at {at}: {ran}"
            );
        }
        fs::write(&store, whole).unwrap();
    }
    volume.mount();
}

#[test]
fn a_bit_of_each_key_file() {
    let (mut volume, ..) = two_files();
    let mut keys = Vec::new();
    tree::visit(&volume.state().join("keys"), &mut |path, meta| {
        if meta.is_file() {
            keys.push((
                path.file_name().unwrap().to_string_lossy().into_owned(),
                path.to_owned(),
            ));
        }
    });
    for name in ["device.key", "root.key"] {
        assert!(
            keys.iter().any(|(found, _)| found == name),
            "no {name} among {keys:?}"
        );
    }
    for (name, path) in &keys {
        let whole = fs::read(path).unwrap();
        for at in (0..whole.len()).step_by((whole.len() / 5).max(1)) {
            flip(path, at as u64);
            let ran = volume.try_mount([]);
            assert!(ran.code() > 0, "{name} with a flip at {at} was accepted: {ran}");
            assert!(ran.err.contains(name.as_str()), "should name {name}: {ran}");
            fs::write(path, &whole).unwrap();
        }
    }
    volume.mount();
}

#[test]
fn a_cut_manifest_and_a_foreign_file() {
    let (mut volume, _, other) = two_files();
    let file = fs::File::options()
        .write(true)
        .open(volume.host("victim"))
        .unwrap();
    file.set_len(100).unwrap();
    fs::write(volume.host("foreign"), b"hello, I am text").unwrap();
    volume.mount();
    for name in ["victim", "foreign"] {
        let error = fs::read(volume.at(name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{name}: {error}");
    }
    assert!(fs::read(volume.at("other")).unwrap() == other);
    fs::remove_file(volume.at("foreign")).unwrap();
    assert_eq!(
        fs::read(volume.at("foreign")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
}
