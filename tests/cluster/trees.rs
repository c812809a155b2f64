//! The same tree on two computers: what is made, changed, moved and removed on one shows on the other, content when it is read.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use super::{first, join, second, ticket, try_join};
use crate::harness::command::Cmd;
use crate::harness::namespaces::Switch;
use crate::harness::tree::{self, Tree};
use crate::harness::volume::{ON_CABLE, TestVolume};
use crate::harness::{SOON, noise, wait_for};

/// Connecting anew included, which is tried every 20 s.
pub(super) const PATIENCE: Duration = Duration::from_secs(90);

/// A computer that nothing has changed on for so long has nothing to tell.
const SILENCE: Duration = Duration::from_secs(3);

/// Settings of one on a switch, which keeps nothing for others: what it stores it has read.
const KEEPS_NOTHING: &str = "\n[replication]\nquota = 0\n";

/// Computers on a switch with one volume, all mounted: the first is its admin, the others write.
pub(super) fn writers(switch: &Switch, count: usize) -> Vec<TestVolume> {
    let computer = |n| TestVolume::empty().on(switch.path(n));
    together((0..count).map(computer).collect())
}

/// As [`writers`], of computers that have nothing yet.
pub(super) fn together(mut all: Vec<TestVolume>) -> Vec<TestVolume> {
    let (a, others) = all.split_first_mut().unwrap();
    a.init();
    a.configure(&format!("{ON_CABLE}{KEEPS_NOTHING}"));
    a.mount();
    for next in others {
        enter(next, a, "writer");
        next.mount();
    }
    all
}

/// Joins `volume` to that of `a`, as one that keeps nothing for others. Not mounted yet.
#[track_caller]
pub(super) fn enter(volume: &TestVolume, a: &TestVolume, role: &str) {
    let ran = try_join(volume, &ticket(a, ["--role", role]));
    assert!(ran.succeeded(), "{ran}");
    let joined = fs::read_to_string(volume.state().join("dfs.toml")).unwrap();
    let joined = joined.replace("[replication]\n", "[replication]\nquota = 0\n");
    volume.configure(&joined.replace(
        "[network]\n",
        "[network]\nlisten = [\"0.0.0.0:8080\"]\nmdns = false\nupnp = false\ntimeout = 5\n",
    ));
}

/// What is compared of a tree: labels that a program or a person gave, not what the host keeps beside them; files belong to whoever mounts.
pub(super) fn compared(mut tree: Tree) -> Tree {
    for entry in tree.values_mut() {
        entry.owner = (0, 0);
        entry.xattrs.retain(|name, _| name.starts_with(b"user."));
    }
    tree
}

/// Waits until all mounts show the same, and returns it.
#[track_caller]
pub(super) fn come_together(all: &[&TestVolume]) -> Tree {
    let start = Instant::now();
    loop {
        let trees = all.iter().map(|volume| tree::try_snapshot(volume.mountpoint()));
        let trees: Result<Vec<Tree>, _> = trees.map(|found| found.map(compared)).collect();
        match trees {
            Ok(mut trees) if trees.iter().all(|tree| *tree == trees[0]) => return trees.swap_remove(0),
            Ok(trees) if start.elapsed() > PATIENCE => {
                for tree in &trees[1..] {
                    tree::assert_same(&trees[0], tree);
                }
            }
            Err(error) => assert!(start.elapsed() < PATIENCE, "a tree cannot be read: {error}"),
            Ok(_) => {}
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Waits until nobody makes snapshots any more, and checks that all show the same then.
#[track_caller]
pub(super) fn fall_silent(all: &[&TestVolume]) -> Tree {
    let state = || -> Vec<_> {
        let list = |volume: &&TestVolume| fs::read(volume.state().join("snapshots")).unwrap_or_default();
        all.iter().map(list).collect()
    };
    let (mut last, mut since) = (state(), Instant::now());
    wait_for("no more snapshots are made", SOON, || {
        let now = state();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() >= SILENCE
    });
    let mut trees = all
        .iter()
        .map(|volume| compared(tree::snapshot(volume.mountpoint())));
    let tree = trees.next().unwrap();
    trees.for_each(|other| tree::assert_same(&tree, &other));
    tree
}

/// Changes on both, one just after the other: each in turn hears of the other's snapshot before it tells of its own, and so is the only one that
/// needs its own. Each writes one file, named `A` and `B`.
pub(super) fn write_just_before_hearing(a: &TestVolume, b: &TestVolume) {
    for (round, delay) in [120, 120, 180, 180].into_iter().enumerate() {
        let mut order = [(a, "A"), (b, "B")];
        order.rotate_left(round % 2);
        for (volume, name) in order {
            fs::write(volume.at(name), format!("{round}")).unwrap();
            std::thread::sleep(Duration::from_millis(delay));
        }
        come_together(&[a, b]);
        fall_silent(&[a, b]);
    }
}

/// Names below a tree's root, directories among them.
pub(super) fn names(tree: &Tree) -> Vec<&str> {
    let mut names: Vec<_> = tree.keys().map(|path| path.to_str().unwrap_or("?")).collect();
    names.sort_unstable();
    names
}

#[track_caller]
pub(super) fn wait_for_content(path: &Path, expected: &[u8]) {
    wait_for(&format!("{} has new content", path.display()), PATIENCE, || {
        fs::read(path).is_ok_and(|found| found == expected)
    });
}

#[track_caller]
pub(super) fn wait_until_gone(path: &Path) {
    wait_for(&format!("{} is gone", path.display()), PATIENCE, || {
        fs::symlink_metadata(path).is_err()
    });
}

fn move_all(volume: &TestVolume, moves: &[(&str, &str)]) {
    for (from, to) in moves {
        fs::rename(volume.at(from), volume.at(to)).unwrap_or_else(|e| panic!("{from} to {to}: {e}"));
    }
}

#[test]
fn everything_that_a_tree_can_hold_shows_on_the_other_computer() {
    let switch = Switch::new(2);
    let both = writers(&switch, 2);
    let [a, b] = [&both[0], &both[1]];
    // Names, metadata and what is small come at once; content when it is read.
    fs::write(a.at("large"), noise(1, 3_000_000)).unwrap();
    wait_for("the name shows", PATIENCE, || {
        fs::metadata(b.at("large")).is_ok_and(|meta| meta.len() == 3_000_000)
    });
    assert!(b.stored() < 500_000, "{}", b.stored());
    assert!(fs::read(b.at("large")).unwrap() == noise(1, 3_000_000));
    assert!(b.stored() >= 3_000_000, "{}", b.stored());

    tree::odd_tree(&a.at("odd"));
    let here = a.place().join("odd");
    tree::odd_tree(&here);
    come_together(&[a, b]);
    let (expected, found) = (tree::snapshot(&here), tree::snapshot(&b.at("odd")));
    // The time of copying is not that of making; only some times were set.
    let timeless = |tree: Tree| -> Tree {
        let mut tree = compared(tree);
        tree.values_mut().for_each(|entry| entry.mtime = None);
        tree
    };
    tree::assert_same(&timeless(expected), &timeless(found));
    let link = fs::symlink_metadata(b.at("odd/link")).unwrap();
    assert_eq!((link.mtime(), link.mtime_nsec()), (981_173_106, 789_123_456));
    let old = fs::metadata(b.at("odd/size-4095")).unwrap();
    assert_eq!((old.mtime(), old.mtime_nsec()), (-2, 250_000_000));

    // And the other way round.
    tree::odd_tree(&b.at("back"));
    fs::write(b.at("large"), noise(2, 2_000_000)).unwrap();
    fall_together(a, b);
    assert!(fs::read(a.at("large")).unwrap() == noise(2, 2_000_000));
    tree::assert_only_manifests(a.folder());
    tree::assert_only_manifests(b.folder());
    tree::assert_absent(tree::CANARY, a.state());
}

#[track_caller]
fn fall_together(a: &TestVolume, b: &TestVolume) {
    come_together(&[a, b]);
    fall_silent(&[a, b]);
}

#[test]
fn changes_of_one_computer_are_made_on_the_other() {
    let (cable, a) = first();
    let mut b = second(&cable);
    join(&mut b, &ticket(&a, ["--role", "writer"]));
    fs::create_dir_all(a.at("photos/2024")).unwrap();
    for n in 0..20 {
        fs::write(a.at(&format!("photos/2024/{n}.jpg")), noise(n, 40_000)).unwrap();
    }
    for name in ["edited", "cut", "moved", "gone", "dressed", "linked", "replaced"] {
        fs::write(a.at(name), noise(50, 700_000)).unwrap();
    }
    symlink("edited", a.at("symlink")).unwrap();
    fs::create_dir_all(a.at("empty/empty")).unwrap();
    come_together(&[&a, &b]);

    // Edits: in the midst, cut, longer, replaced by a rename as editors do.
    let file = fs::OpenOptions::new().write(true).open(b.at("edited")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"written by B", 300_000).unwrap();
    file.sync_all().unwrap();
    drop(file);
    fs::OpenOptions::new()
        .write(true)
        .open(b.at("cut"))
        .unwrap()
        .set_len(5)
        .unwrap();
    fs::write(b.at(".replaced.tmp"), b"by a rename").unwrap();
    move_all(
        &b,
        &[(".replaced.tmp", "replaced"), ("moved", "photos/2024/moved.jpg")],
    );
    fs::remove_file(b.at("gone")).unwrap();
    fs::remove_file(b.at("symlink")).unwrap();
    symlink("cut", b.at("symlink")).unwrap();
    fs::remove_dir(b.at("empty/empty")).unwrap();
    fs::hard_link(b.at("linked"), b.at("photos/linked")).unwrap();
    fs::set_permissions(b.at("dressed"), fs::Permissions::from_mode(0o4710)).unwrap();
    fs::set_permissions(b.at("photos"), fs::Permissions::from_mode(0o750)).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(b.at("dressed"), "user.note", b"of B", flags).unwrap();
    let touch = Cmd::new("touch").args(["-d", "2001-02-03 04:05:06.789123456 UTC"]);
    touch.arg(b.at("dressed")).ok();
    let expected = tree::snapshot(b.mountpoint());
    let found = come_together(&[&a, &b]);
    tree::assert_same(&compared(expected), &found);
    let mut edited = noise(50, 700_000);
    edited[300_000..300_012].copy_from_slice(b"written by B");
    assert!(fs::read(a.at("edited")).unwrap() == edited);
    assert_eq!(fs::read(a.at("cut")).unwrap(), noise(50, 5));
    assert_eq!(fs::read(a.at("replaced")).unwrap(), b"by a rename");
    assert_eq!(fs::metadata(a.at("dressed")).unwrap().mtime_nsec(), 789_123_456);
    assert_eq!(fs::metadata(a.at("linked")).unwrap().nlink(), 2);

    // A directory moves with all that is in it: no content does.
    let inode = fs::metadata(b.at("photos/2024/3.jpg")).unwrap().ino();
    move_all(&a, &[("photos/2024", "empty/pictures"), ("empty", "full")]);
    wait_until_gone(&b.at("photos/2024"));
    let found = come_together(&[&a, &b]);
    assert!(
        names(&found).contains(&"full/pictures/19.jpg"),
        "{:?}",
        names(&found)
    );
    assert_eq!(
        fs::metadata(b.at("full/pictures/3.jpg")).unwrap().ino(),
        inode,
        "the file itself moved"
    );

    // Names change places, and a tree goes.
    move_all(&a, &[("cut", "x"), ("edited", "cut"), ("x", "edited")]);
    fs::remove_dir_all(a.at("full")).unwrap();
    let expected = tree::snapshot(a.mountpoint());
    wait_until_gone(&b.at("full"));
    let found = come_together(&[&a, &b]);
    tree::assert_same(&compared(expected), &found);
    assert!(fs::read(b.at("cut")).unwrap() == edited);
    fall_silent(&[&a, &b]);
}

#[test]
fn whoever_has_a_file_open_goes_on_with_what_he_opened() {
    let (cable, a) = first();
    let mut b = second(&cable);
    join(&mut b, &ticket(&a, ["--role", "writer"]));
    let old = noise(1, 3_000_000);
    for name in ["replaced", "rewritten", "removed"] {
        fs::write(a.at(name), &old).unwrap();
    }
    fs::write(a.at("short"), b"short and old").unwrap();
    fs::write(a.at("both"), noise(2, 300_000)).unwrap();
    come_together(&[&a, &b]);
    b.remount();
    let open = |name: &str| {
        let mut file = fs::File::open(b.at(name)).unwrap();
        file.read_exact(&mut [0; 10]).unwrap();
        file
    };
    let held = ["replaced", "rewritten", "removed", "short"].map(open);
    let mut written = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(b.at("both"))
        .unwrap();
    std::io::Write::write_all(&mut written, b"B has begun").unwrap();

    let new = noise(3, 2_500_000);
    fs::write(a.at("new"), &new).unwrap();
    move_all(&a, &[("new", "replaced")]);
    fs::write(a.at("rewritten"), &new).unwrap();
    fs::remove_file(a.at("removed")).unwrap();
    fs::write(a.at("short"), b"new").unwrap();
    fs::write(a.at("both"), b"A wrote it anew").unwrap();
    wait_for_content(&b.at("short"), b"new");
    wait_for_content(&b.at("replaced"), &new);
    wait_for_content(&b.at("rewritten"), &new);
    wait_until_gone(&b.at("removed"));
    for (mut file, expected) in held.into_iter().zip([&old[..], &old, &old, b"short and old"]) {
        let mut found = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut found).unwrap();
        assert!(
            found == expected,
            "{} bytes, not those that were opened",
            found.len()
        );
    }
    // Both changed it, and one still does: what he writes on is in his version.
    std::io::Write::write_all(&mut written, b", B goes on").unwrap();
    drop(written);
    let mut expected = noise(2, 300_000);
    expected[..22].copy_from_slice(b"B has begun, B goes on");
    wait_for("both versions are there", PATIENCE, || {
        let all = fs::read_dir(a.mountpoint()).unwrap();
        all.filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .as_encoded_bytes()
                .starts_with(b"both")
        })
        .count()
            == 2
    });
    let found = come_together(&[&a, &b]);
    let versions: Vec<_> = names(&found)
        .into_iter()
        .filter(|name| name.starts_with("both"))
        .map(|name| fs::read(a.at(name)).unwrap())
        .collect();
    assert!(versions.contains(&b"A wrote it anew".to_vec()) && versions.contains(&expected));
    fall_silent(&[&a, &b]);
}

#[test]
fn what_was_is_read_from_the_other_computer() {
    let switch = Switch::new(2);
    let mut a = TestVolume::empty().on(switch.path(0));
    a.init();
    a.configure(&format!(
        "[network]\nlisten = [\"0.0.0.0:8080\"]\nmdns = false\nupnp = false\ntimeout = 5\n{KEEPS_NOTHING}"
    ));
    a.mount();
    let mut b = TestVolume::empty().on(switch.path(1));
    enter(&b, &a, "writer");
    b.mount();
    let (first, second) = (noise(81, 3 << 20), noise(82, 1 << 20));
    let arrives = |size: usize| {
        wait_for("the file is on the other computer", PATIENCE, || {
            fs::metadata(b.at("file")).is_ok_and(|meta| meta.len() == size as u64)
        });
    };
    fs::write(a.at("file"), &first).unwrap();
    arrives(first.len());
    // What B has of the snapshot is its tree alone.
    let listed = || {
        let all = fs::read_dir(b.at(".dfs/snapshots")).unwrap();
        let mut all: Vec<_> = all.map(|entry| entry.unwrap().path()).collect();
        all.sort();
        all
    };
    let is_in =
        |path: &Path| fs::metadata(path.join("file")).is_ok_and(|meta| meta.len() == first.len() as u64);
    wait_for("B keeps the snapshot", SOON, || {
        listed().iter().any(|path| is_in(path))
    });
    let then = listed().into_iter().find(|path| is_in(path)).unwrap();
    fs::write(a.at("file"), &second).unwrap();
    arrives(second.len());
    let before = b.stored();
    assert!(before < 3 << 20, "{before} bytes are on B already");
    assert!(fs::read(then.join("file")).unwrap() == first);
    assert!(b.stored() >= before + (3 << 20) - 1000);
    assert!(fs::read(b.at("file")).unwrap() == second);
    // Without A it is still there; what was never read is an error in time.
    fs::write(a.at("unread"), &first[..2 << 20]).unwrap();
    wait_for("the other file is there", PATIENCE, || b.at("unread").exists());
    a.unmount();
    assert!(fs::read(then.join("file")).unwrap() == first);
    b.remount();
    assert!(fs::read(then.join("file")).unwrap() == first);
}
