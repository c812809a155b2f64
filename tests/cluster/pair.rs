//! A has the files; B joins, receives manifests, and reads through the cable.

use std::fs;
use std::time::{Duration, Instant};

use super::{carry, first, join, second, ticket};
use crate::harness::namespaces::End;
use crate::harness::tree;
use crate::harness::volume::TestVolume;
use crate::harness::{SOON, noise, wait_for};

/// More than the timeout in `ON_CABLE` (5 s), with room for a busy machine.
const IN_TIME: Duration = Duration::from_secs(20);

#[test]
fn b_reads_the_files_of_a_and_again_without_traffic_and_without_a() {
    let (cable, mut a) = first();
    let large = noise(21, 48 << 20);
    let medium = noise(22, 700_000);
    fs::write(a.at("large"), &large).unwrap();
    fs::write(a.at("medium"), &medium).unwrap();
    fs::write(a.at("small"), b"in the manifest itself").unwrap();
    fs::write(a.at("never-read"), noise(23, 2 << 20)).unwrap();
    let mut b = second(&cable);
    join(&mut b, &ticket(&a, ["--role", "reader"]));
    carry(&a, &b, &["large", "medium", "small", "never-read"]);

    assert_eq!(fs::read(b.at("small")).unwrap(), b"in the manifest itself");
    let before = cable.received(End::B);
    assert!(fs::read(b.at("large")).unwrap() == large);
    assert!(fs::read(b.at("medium")).unwrap() == medium);
    let moved = cable.received(End::B) - before;
    assert!(
        moved > 48 << 20,
        "only {moved} bytes came: read from somewhere else?"
    );
    assert!(moved < 60 << 20, "{moved} bytes came for 49 MiB");

    // Past the kernel's page cache, from B's own store.
    b.remount();
    let before = cable.received(End::B);
    assert!(fs::read(b.at("large")).unwrap() == large);
    let moved = cable.received(End::B) - before;
    assert!(moved < 200_000, "{moved} bytes came for a second reading");

    a.unmount();
    b.remount();
    assert!(fs::read(b.at("medium")).unwrap() == medium);
    let start = Instant::now();
    let error = fs::read(b.at("never-read")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert!(start.elapsed() < IN_TIME, "the error took {:?}", start.elapsed());
    assert!(
        b.log().contains("never-read"),
        "the log names the file: {}",
        b.log()
    );

    a.mount();
    assert!(
        fs::read(b.at("never-read")).unwrap() == noise(23, 2 << 20),
        "A is back"
    );
}

#[test]
fn a_pulled_cable_is_an_error_in_time_and_heals() {
    let (cable, a) = first();
    fs::write(a.at("file"), noise(24, 24 << 20)).unwrap();
    let mut b = second(&cable);
    join(&mut b, &ticket(&a, ["--role", "reader"]));
    carry(&a, &b, &["file"]);
    let head = read_at(&b.at("file"), 0, 100_000).unwrap();
    assert!(head == noise(24, 24 << 20)[..100_000]);
    cable.plug(false);
    let start = Instant::now();
    let error = read_at(&b.at("file"), 20 << 20, 4096).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert!(start.elapsed() < IN_TIME, "the error took {:?}", start.elapsed());
    cable.plug(true);
    let deadline = Instant::now() + Duration::from_secs(90);
    while read_at(&b.at("file"), 20 << 20, 4096).is_err() {
        assert!(Instant::now() < deadline, "not connected again");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(fs::read(b.at("file")).unwrap() == noise(24, 24 << 20));
}

#[test]
fn a_whole_tree_is_read_by_the_other_computer() {
    let (cable, a) = first();
    let source = a.place().join("source");
    tree::real_tree(&source, 1_000);
    crate::harness::command::Cmd::new("cp")
        .arg("-a")
        .arg(&source)
        .arg(a.at("tree"))
        .ok();
    let mut b = second(&cable);
    join(&mut b, &ticket(&a, ["--role", "reader"]));
    let manifests = a.folder().join("tree");
    crate::harness::command::Cmd::new("cp")
        .arg("-a")
        .arg(manifests)
        .arg(b.folder())
        .ok();
    tree::assert_same(&tree::snapshot(&source), &tree::snapshot(&b.at("tree")));
    tree::assert_absent(tree::CANARY, b.state());
}

#[test]
fn a_writer_writes_and_a_reader_does_not() {
    let (cable, a) = first();
    let mut writer = second(&cable);
    join(&mut writer, &ticket(&a, ["--role", "writer"]));
    let content = noise(25, 2 << 20);
    fs::write(writer.at("from-b"), &content).unwrap();
    carry(&writer, &a, &["from-b"]);
    wait_until_seen(&a, &writer);
    assert!(
        fs::read(a.at("from-b")).unwrap() == content,
        "A reads what B wrote"
    );
    writer.unmount();

    let mut reader = second(&cable);
    join(&mut reader, &ticket(&a, ["--role", "reader"]));
    let refused = fs::write(reader.at("mine"), b"x").unwrap_err();
    let denied = [
        std::io::ErrorKind::ReadOnlyFilesystem,
        std::io::ErrorKind::PermissionDenied,
    ];
    assert!(denied.contains(&refused.kind()), "{refused}");
}

#[test]
fn a_node_without_a_mount_serves_too() {
    let (cable, mut a) = first();
    let content = noise(26, 2 << 20);
    fs::write(a.at("file"), &content).unwrap();
    let mut b = second(&cable);
    join(&mut b, &ticket(&a, ["--role", "reader"]));
    carry(&a, &b, &["file"]);
    a.unmount();
    let server = a.dfs(["serve", "--foreground"]).arg(a.folder()).start();
    crate::harness::wait_for("the node without a mount is up", crate::harness::SOON, || {
        a.dfs(["status"]).arg(a.folder()).run().succeeded()
    });
    let deadline = Instant::now() + Duration::from_secs(60);
    let found = loop {
        match fs::read(b.at("file")) {
            Ok(found) => break found,
            Err(e) => assert!(Instant::now() < deadline, "{e}; the node said {}", server.said()),
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(found == content);
}

#[test]
fn peers_and_status_show_the_other() {
    let (cable, a) = first();
    let mut b = second(&cable);
    join(&mut b, &ticket(&a, ["--role", "reader"]));
    wait_until_seen(&a, &b);
    wait_until_seen(&b, &a);
}

/// Waits until `from` is connected to `other`.
fn wait_until_seen(from: &TestVolume, other: &TestVolume) {
    let id = other.status()["device"].as_str().unwrap().to_owned();
    wait_for("one sees the other", SOON, || {
        let json = from.dfs(["peers", "--json"]).arg(from.folder()).ok();
        let peers: serde_json::Value = serde_json::from_str(&json).unwrap();
        let list = peers.as_array().or_else(|| peers["peers"].as_array());
        let list = list.unwrap_or_else(|| panic!("no list of peers: {json}"));
        list.iter()
            .any(|peer| peer["device"] == id && peer["connected"] == true)
    });
}

fn read_at(path: &std::path::Path, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let mut out = vec![0; len];
    fs::File::open(path)?.read_exact_at(&mut out, offset)?;
    Ok(out)
}
