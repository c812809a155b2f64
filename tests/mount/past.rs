//! What was is looked at in `.dfs/snapshots`: whole trees, read only, for as long as they are kept.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::harness::command::Cmd;
use crate::harness::tree;
use crate::harness::volume::TestVolume;
use crate::harness::{SOON, noise, wait_for};

const READ_ONLY: i32 = 30;
const STALE: i32 = 116;
const IO: i32 = 5;

/// A mounted volume that keeps what was as `dfs.toml` begins.
fn mounted() -> TestVolume {
    let mut volume = TestVolume::new();
    volume.configure("[network]\nenabled = false\n");
    volume.mount();
    volume
}

/// Has what changed committed, and gives the directory of the snapshot that has it.
#[track_caller]
fn now(volume: &TestVolume) -> PathBuf {
    let said = volume.dfs(["log", "--json"]).arg(volume.mountpoint()).ok();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let id = said["versions"][0]["snapshot"].as_str().unwrap()[..8].to_owned();
    let all = volume.at(".dfs/snapshots");
    let names = names(volume);
    // The second alone may be the name of another one that came in it; with the id behind it, it means this one.
    let second = |name: &String| name[..20].to_owned();
    let mut seconds = names.iter().map(second);
    let second = seconds.find(|second| all.join(format!("{second}-{id}")).is_dir());
    let second = second.unwrap_or_else(|| panic!("{id} is not listed: {names:?}"));
    let named = format!("{second}-{id}");
    all.join(if names.contains(&named) { named } else { second })
}

fn names(volume: &TestVolume) -> Vec<String> {
    let listed = fs::read_dir(volume.at(".dfs/snapshots")).unwrap();
    let mut names: Vec<String> = listed
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A tree with a bit of everything.
fn fill(volume: &TestVolume) {
    let source = volume.place().join("source");
    tree::real_tree(&source, 300);
    volume.dfs(["import"]).arg(&source).arg(volume.mountpoint()).ok();
    fs::create_dir_all(volume.at("odd/empty")).unwrap();
    fs::write(volume.at("odd/large"), noise(71, 5 << 20)).unwrap();
    fs::write(volume.at("odd/small"), b"small").unwrap();
    fs::hard_link(volume.at("odd/small"), volume.at("twin")).unwrap();
    symlink("../twin", volume.at("odd/link")).unwrap();
    let holes = fs::File::create(volume.at("odd/holes")).unwrap();
    holes.set_len(3 << 20).unwrap();
    holes.write_all_at(b"in the middle", 1 << 20).unwrap();
    drop(holes);
    fs::set_permissions(volume.at("odd"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::set_permissions(volume.at("odd/small"), fs::Permissions::from_mode(0o604)).unwrap();
    rustix::fs::setxattr(
        volume.at("odd/small"),
        "user.said",
        b"before",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    Cmd::new("mkfifo").arg(volume.at("odd/pipe")).ok();
    Cmd::new("touch")
        .args(["-d", "2001-02-03T04:05:06.789"])
        .arg(volume.at("odd/small"))
        .ok();
}

#[test]
fn what_was_is_read_whole_through_the_mount() {
    let mut volume = mounted();
    fill(&volume);
    let before = tree::snapshot(volume.mountpoint());
    let then = now(&volume);
    tree::assert_same(&before, &tree::snapshot(&then));

    fs::write(volume.at("odd/large"), noise(72, 1 << 20)).unwrap();
    fs::write(volume.at("odd/small"), b"other").unwrap();
    fs::remove_file(volume.at("twin")).unwrap();
    fs::rename(volume.at("odd"), volume.at("moved")).unwrap();
    fs::remove_dir_all(volume.at("source")).unwrap();
    fs::write(volume.at("new"), b"later").unwrap();
    let after = tree::snapshot(volume.mountpoint());
    let later = now(&volume);
    assert_ne!(then, later);
    tree::assert_same(&before, &tree::snapshot(&then));
    tree::assert_same(&after, &tree::snapshot(&later));
    let ino = |name: &str| fs::metadata(then.join(name)).unwrap().ino();
    assert_eq!(ino("twin"), ino("odd/small"));
    assert_ne!(
        ino("odd/large"),
        fs::metadata(later.join("moved/large")).unwrap().ino()
    );

    // Past every cache.
    let number = ino("odd/large");
    volume.remount();
    tree::assert_same(&before, &tree::snapshot(&then));
    tree::assert_same(&after, &tree::snapshot(&later));
    assert_eq!(ino("odd/large"), number, "the same number at every mount");

    // The programs that people use for it.
    let copy = volume.place().join("copy");
    Cmd::new("cp").arg("-a").arg(&then).arg(&copy).ok();
    tree::assert_same(&before, &tree::snapshot(&copy));
    Cmd::new("diff")
        .arg("-r")
        .arg("--no-dereference")
        .arg(then.join("source"))
        .arg(copy.join("source"))
        .ok();
    let found = Cmd::new("find").arg(&then).ok();
    assert_eq!(found.lines().count(), before.len() + 1);
    let back = volume.at("back");
    Cmd::new("cp").arg("-a").arg(then.join("odd")).arg(&back).ok();
    assert!(fs::read(back.join("large")).unwrap() == noise(71, 5 << 20));
    // Nothing that goes over the mount goes into what was.
    let found = Cmd::new("find").arg(volume.mountpoint()).ok();
    assert!(!found.contains(".dfs"), "{found}");

    // The names are those that `dfs restore` takes.
    let name = then.file_name().unwrap().to_str().unwrap();
    volume.dfs(["restore", "--at", name]).arg(volume.at("odd")).ok();
    assert!(fs::read(volume.at("odd/large")).unwrap() == noise(71, 5 << 20));
    for name in names(&volume) {
        let same = volume.at(".dfs/snapshots").join(&name).join("odd");
        volume
            .dfs(["restore", "--at", &name])
            .arg(volume.mountpoint())
            .ok();
        assert_eq!(same.exists(), volume.at("odd").exists(), "{name}");
    }
}

#[test]
fn nothing_of_what_was_can_be_changed() {
    let volume = mounted();
    fill(&volume);
    let before = tree::snapshot(volume.mountpoint());
    let then = now(&volume);
    let (file, outside) = (then.join("twin"), volume.at("outside"));
    let refused = |what: &str, outcome: io::Result<()>| {
        let error = outcome.expect_err(what);
        assert_eq!(error.raw_os_error(), Some(READ_ONLY), "{what}: {error}");
    };
    let open = |path: &Path, options: &mut fs::OpenOptions| options.open(path).map(drop);
    refused("write", open(&file, fs::OpenOptions::new().write(true)));
    refused("append", open(&file, fs::OpenOptions::new().append(true)));
    refused(
        "truncate",
        open(&file, fs::OpenOptions::new().write(true).truncate(true)),
    );
    refused("create", fs::write(then.join("new"), b"x"));
    refused("mkdir", fs::create_dir(then.join("odd/new")));
    refused("symlink", symlink("a", then.join("new")));
    refused("link", fs::hard_link(&file, then.join("new")));
    refused("link out", fs::hard_link(&file, &outside));
    refused("unlink", fs::remove_file(&file));
    refused("rmdir", fs::remove_dir(then.join("odd/empty")));
    refused("rename", fs::rename(&file, then.join("new")));
    refused("rename out", fs::rename(&file, &outside));
    fs::write(&outside, b"x").unwrap();
    refused("rename in", fs::rename(&outside, then.join("new")));
    refused(
        "chmod",
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)),
    );
    refused("chown", std::os::unix::fs::lchown(&file, Some(1), None));
    let flags = rustix::fs::XattrFlags::empty();
    refused(
        "setxattr",
        rustix::fs::setxattr(&file, "user.x", b"x", flags).map_err(io::Error::from),
    );
    refused(
        "removexattr",
        rustix::fs::removexattr(&file, "user.said").map_err(io::Error::from),
    );
    refused("a snapshot", fs::create_dir(volume.at(".dfs/snapshots/new")));
    refused("the list", fs::remove_dir(&then));
    refused("the status", fs::write(volume.at(".dfs/status"), b"x"));
    tree::assert_same(&before, &tree::snapshot(&then));
}

#[test]
fn a_large_directory_is_listed_whole() {
    let mut volume = mounted();
    fs::create_dir(volume.at("many")).unwrap();
    for n in 0..5000 {
        fs::write(volume.at(&format!("many/{n}")), format!("{n}")).unwrap();
    }
    for n in 0..100 {
        fs::create_dir(volume.at(&format!("many/d{n}"))).unwrap();
    }
    let then = now(&volume);
    fs::remove_dir_all(volume.at("many")).unwrap();
    volume.remount();
    // Without attributes, with them, and several at once.
    let plain = Cmd::new("ls").arg("-U").arg(then.join("many")).ok();
    assert_eq!(plain.lines().count(), 5100);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let found = tree::snapshot(&then.join("many"));
                assert_eq!(found.len(), 5100);
            });
        }
    });
    for n in [0, 77, 4999] {
        let file = then.join(format!("many/{n}"));
        assert_eq!(fs::read_to_string(file).unwrap(), format!("{n}"));
    }
}

#[test]
fn what_is_not_kept_any_more_is_gone_or_right_never_wrong() {
    // Keeps the newest snapshot alone.
    let volume = TestVolume::mounted();
    // Letting go of so much makes a collection worth its while.
    let (first, second) = (noise(73, 80 << 20), noise(74, 1 << 20));
    fs::create_dir(volume.at("d")).unwrap();
    fs::write(volume.at("d/file"), &first).unwrap();
    fs::write(volume.at("d/other"), &first[..3 << 20]).unwrap();
    let then = now(&volume);
    let file = fs::File::open(then.join("d/file")).unwrap();
    let dir = fs::File::open(then.join("d")).unwrap();
    let mut head = vec![0; 1000];
    file.read_exact_at(&mut head, 0).unwrap();
    assert!(head == first[..1000]);

    for name in ["d/file", "d/other"] {
        fs::remove_file(volume.at(name)).unwrap();
    }
    fs::write(volume.at("d/file"), &second).unwrap();
    let later = now(&volume);
    wait_for("what nobody needs is collected", SOON, || {
        volume.stored() < 20 << 20
    });
    assert_eq!(names(&volume), [later.file_name().unwrap().to_str().unwrap()]);
    wait_for("the name is gone", SOON, || !then.exists());
    assert!(fs::read(later.join("d/file")).unwrap() == second);
    let open = rustix::fs::openat(
        &dir,
        "other",
        rustix::fs::OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    );
    let error = io::Error::from(open.expect_err("opened what is not kept"));
    assert!(
        error.raw_os_error() == Some(STALE) || error.kind() == io::ErrorKind::NotFound,
        "{error}"
    );
    let mut part = vec![0; 100_000];
    for at in (0..first.len()).step_by(part.len()) {
        let len = part.len().min(first.len() - at);
        match file.read_exact_at(&mut part[..len], at as u64) {
            Ok(()) => assert!(part[..len] == first[at..at + len], "wrong bytes at {at}"),
            Err(error) => assert!(
                [Some(STALE), Some(IO)].contains(&error.raw_os_error()),
                "{error} at {at}"
            ),
        }
    }
    assert!(fs::read(volume.at("d/file")).unwrap() == second);
}
