//! Files that programs on B hold open for writing while A changes them: they keep nothing from being taken in, and what is written to them is kept.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::conflicts::{apart, two};
use super::trees::{PATIENCE, come_together, fall_silent, names};
use crate::harness::command::Cmd;
use crate::harness::tree::Tree;
use crate::harness::volume::TestVolume;
use crate::harness::{SOON, noise, wait_for};

fn open(volume: &TestVolume, name: &str) -> File {
    let opened = OpenOptions::new().read(true).write(true).open(volume.at(name));
    opened.unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn content(file: &mut File) -> Vec<u8> {
    let mut found = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut found).unwrap();
    found
}

fn put(file: &mut File, text: &[u8]) {
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(text).unwrap();
    file.sync_all().unwrap();
}

#[track_caller]
fn wait_for_content(path: &Path, expected: &[u8]) {
    wait_for(&format!("{} is there", path.display()), PATIENCE, || {
        fs::read(path).is_ok_and(|found| found == expected)
    });
}

/// Every file whose name begins like this, with what is in it.
fn like(volume: &TestVolume, tree: &Tree, begin: &str) -> BTreeMap<String, Vec<u8>> {
    let all = names(tree).into_iter().filter(|name| name.starts_with(begin));
    all.map(|name| (name.to_owned(), fs::read(volume.at(name)).unwrap()))
        .collect()
}

/// The one beside `name` that is a conflict copy of it.
#[track_caller]
fn copy_of(volume: &TestVolume, tree: &Tree, name: &str) -> Vec<u8> {
    let copies = like(volume, tree, &format!("{name}.conflict-"));
    assert_eq!(copies.len(), 1, "{:?}", names(tree));
    copies.into_values().next().unwrap()
}

#[test]
fn a_file_held_open_for_writing_keeps_nothing_from_being_taken_in() {
    let files = [
        "closed",
        "written",
        "cut",
        "appended",
        "deleted",
        "gone/inside",
        "moved",
        "dressed",
    ];
    let old = |name: &str| [name.as_bytes(), b" as it was ", &noise(7, 200_000)].concat();
    let (_cable, a, b) = two(|a| {
        fs::create_dir(a.at("gone")).unwrap();
        for name in files {
            fs::write(a.at(name), old(name)).unwrap();
        }
    });
    let mut held: BTreeMap<&str, File> = files.iter().map(|name| (*name, open(&b, name))).collect();
    let append = OpenOptions::new().append(true).open(b.at("appended")).unwrap();
    held.insert("appended", append);

    for name in ["closed", "written", "cut", "appended"] {
        fs::write(a.at(name), format!("{name} by A")).unwrap();
    }
    fs::remove_file(a.at("deleted")).unwrap();
    fs::remove_dir_all(a.at("gone")).unwrap();
    fs::rename(a.at("moved"), a.at("elsewhere")).unwrap();
    fs::set_permissions(
        a.at("dressed"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    fs::write(a.at("last"), "after all that").unwrap();
    wait_for_content(&b.at("last"), b"after all that");
    // Every file is still open: the whole of what A did has arrived all the same.
    come_together(&[&a, &b]);
    let tree = fall_silent(&[&a, &b]);
    let mut expected = [
        "appended",
        "closed",
        "cut",
        "dressed",
        "elsewhere",
        "last",
        "written",
    ];
    expected.sort_unstable();
    assert_eq!(names(&tree), expected);
    for name in ["closed", "written", "cut", "appended"] {
        assert_eq!(fs::read(b.at(name)).unwrap(), format!("{name} by A").into_bytes());
    }
    for name in ["closed", "written", "cut", "deleted", "gone/inside", "moved"] {
        assert!(content(held.get_mut(name).unwrap()) == old(name), "{name}");
    }

    // Whoever opens one for writing now gets A's.
    let mut again = open(&b, "closed");
    assert_eq!(content(&mut again), b"closed by A");
    drop(again);

    // Closed without having written: nothing is left of it.
    held.remove("closed");
    // Written to: both sides changed it.
    for name in ["written", "deleted", "gone/inside", "moved", "dressed"] {
        put(held.get_mut(name).unwrap(), b"B ");
    }
    held["cut"].set_len(5).unwrap();
    held["cut"].sync_all().unwrap();
    held.get_mut("appended").unwrap().write_all(b" and more").unwrap();
    held["appended"].sync_all().unwrap();
    wait_for_content(&a.at("elsewhere"), &overwritten(&old("moved")));
    wait_for("all is on A", PATIENCE, || {
        let tree = come_together(&[&a, &b]);
        names(&tree).len() == 13
    });
    let tree = fall_silent(&[&a, &b]);
    for volume in [&a, &b] {
        assert!(copy_of(volume, &tree, "written") == overwritten(&old("written")));
        assert!(copy_of(volume, &tree, "cut") == b"cut a");
        assert!(copy_of(volume, &tree, "appended") == [&old("appended")[..], b" and more"].concat());
        assert!(copy_of(volume, &tree, "deleted") == overwritten(&old("deleted")));
        assert!(copy_of(volume, &tree, "gone/inside") == overwritten(&old("gone/inside")));
        assert!(fs::read(volume.at("dressed")).unwrap() == overwritten(&old("dressed")));
        for name in ["closed", "written", "cut", "appended"] {
            assert_eq!(
                fs::read(volume.at(name)).unwrap(),
                format!("{name} by A").into_bytes()
            );
        }
    }

    // They go on where their versions went, also when both sides go on.
    fs::write(a.at("written"), "A once more").unwrap();
    put(held.get_mut("written").unwrap(), b"C ");
    drop(held);
    wait_for_content(&b.at("written"), b"A once more");
    let mut last = overwritten(&old("written"));
    last[..2].copy_from_slice(b"C ");
    wait_for("both went on", PATIENCE, || {
        copy_of(&a, &come_together(&[&a, &b]), "written") == last
    });
    let tree = fall_silent(&[&a, &b]);
    assert_eq!(names(&tree).len(), 13, "{:?}", names(&tree));
}

fn overwritten(old: &[u8]) -> Vec<u8> {
    [b"B ", &old[2..]].concat()
}

#[test]
fn a_handle_goes_on_in_the_version_that_it_wrote() {
    let all: Vec<String> = (0..8).map(|n| format!("log-{n}.txt")).collect();
    let (cable, a, b) = two(|a| {
        for name in &all {
            fs::write(a.at(name), "both begin with this").unwrap();
        }
    });
    let mut held: Vec<File> = all.iter().map(|name| open(&b, name)).collect();
    let by_a = |name: &str| format!("A changed all of {name}");
    let on_a = || {
        all.iter()
            .for_each(|name| fs::write(a.at(name), by_a(name)).unwrap())
    };
    let on_b = || held.iter_mut().for_each(|file| put(file, b"B     "));
    let tree = apart(&cable, (&a, on_a), (&b, on_b));
    assert_eq!(names(&tree).len(), 16, "{:?}", names(&tree));
    let mut won = 0;
    for (name, file) in all.iter().zip(&mut held) {
        // Which of the two has the name follows from the contents.
        won += usize::from(fs::read(b.at(name)).unwrap() == by_a(name).into_bytes());
        assert_eq!(content(file), b"B     egin with this");
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(b", and B goes on").unwrap();
        file.sync_all().unwrap();
    }
    assert!((1..8).contains(&won), "A's has the name {won} times of 8");
    let goes_on = b"B     egin with this, and B goes on".to_vec();
    wait_for("A has what B went on with", PATIENCE, || {
        let tree = come_together(&[&a, &b]);
        all.iter().all(|name| {
            let versions = like(&a, &tree, name.strip_suffix(".txt").unwrap());
            versions.into_values().any(|found| found == goes_on)
        })
    });
    drop(held);
    let tree = fall_silent(&[&a, &b]);
    for name in &all {
        let versions = like(&a, &tree, name.strip_suffix(".txt").unwrap());
        let versions: Vec<Vec<u8>> = versions.into_values().collect();
        assert_eq!(versions.len(), 2, "{name}");
        assert!(
            versions.contains(&goes_on) && versions.contains(&by_a(name).into_bytes()),
            "{name}"
        );
    }
}

/// Holds a mapped file and a database open; writes to both when told to.
const HOLDER: &str = r#"
import mmap, os, sqlite3, sys, time
place = sys.argv[1]
mapped = open(place + "/mapped", "r+b")
memory = mmap.mmap(mapped.fileno(), 0)
db = sqlite3.connect(place + "/db", isolation_level=None)
wal = sqlite3.connect(place + "/logged", isolation_level=None)
wal.execute("PRAGMA locking_mode=EXCLUSIVE")
wal.execute("UPDATE t SET b = 'of B' WHERE a = 1")
rows = db.execute("SELECT count(*) FROM t").fetchone()[0]
db.execute("UPDATE t SET b = 'of B' WHERE a = 1")
print("holds", rows, flush=True)
while not os.path.exists("go"):
    time.sleep(0.05)
memory[0:6] = b"mapped"
memory.flush()
try:
    db.execute("INSERT INTO t(b) SELECT 'late' FROM t LIMIT 100")
    print("written", flush=True)
except sqlite3.Error as error:
    print("refused", error, flush=True)
wal.execute("INSERT INTO t(b) VALUES('late')")
db.close()
wal.close()
memory.close()
"#;

#[test]
fn a_database_and_a_mapping_held_open_mix_with_nothing() {
    let sqlite =
        |volume: &TestVolume, name: &str, text: &str| Cmd::new("sqlite3").arg(volume.at(name)).arg(text).ok();
    let (_cable, a, b) = two(|a| {
        fs::write(a.at("mapped"), "shared through memory later").unwrap();
        let table = "CREATE TABLE t(a INTEGER PRIMARY KEY, b); \
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) INSERT INTO t SELECT i, 'old' FROM n;";
        sqlite(a, "db", table);
        sqlite(a, "logged", &format!("PRAGMA journal_mode = wal; {table}"));
    });
    let holder = Cmd::new("python3").args(["-c", HOLDER]).arg(b.mountpoint());
    let mut holder = holder.dir(b.place()).start();
    wait_for("the program holds its files", SOON, || {
        holder.said().contains("holds 20000")
    });
    // What it wrote is everybody's before A goes on.
    wait_for("A has what B wrote", PATIENCE, || {
        sqlite(&a, "db", "SELECT b FROM t WHERE a = 1") == "of B\n"
    });
    come_together(&[&a, &b]);
    fall_silent(&[&a, &b]);

    fs::write(a.at("mapped"), "A wrote it anew").unwrap();
    let change = "UPDATE t SET b = 'of A' WHERE a % 2 = 0; INSERT INTO t(b) VALUES('of A');";
    for name in ["db", "logged"] {
        assert_eq!(
            sqlite(&a, name, "SELECT b FROM t WHERE a = 1"),
            "of B\n",
            "{name}"
        );
        sqlite(&a, name, change);
    }
    let logged = fs::read(a.at("logged")).unwrap();
    wait_for_content(&b.at("logged"), &logged);
    wait_for("the log is gone on B", PATIENCE, || !b.at("logged-wal").exists());
    wait_for_content(&b.at("mapped"), b"A wrote it anew");
    let questions = "PRAGMA integrity_check; SELECT count(*), sum(b = 'of A'), sum(b = 'late') FROM t";
    wait_for("B has A's database", PATIENCE, || {
        sqlite(&b, "db", questions) == "ok\n20001|10001|0\n"
    });
    come_together(&[&a, &b]);
    fs::write(b.place().join("go"), "").unwrap();
    holder.wait();
    let said = holder.said();
    wait_for("what was written through memory is on A", PATIENCE, || {
        let tree = come_together(&[&a, &b]);
        like(&a, &tree, "mapped").len() == 2
    });
    let tree = fall_silent(&[&a, &b]);
    assert_eq!(copy_of(&a, &tree, "mapped"), b"mapped through memory later");
    for volume in [&a, &b] {
        assert_eq!(fs::read(volume.at("mapped")).unwrap(), b"A wrote it anew");
        assert_eq!(sqlite(volume, "db", questions), "ok\n20001|10001|0\n");
        // The log that B went on writing is not taken for that of A's database.
        assert!(fs::read(volume.at("logged")).unwrap() == logged);
        let logs: Vec<_> = like(volume, &tree, "logged-").into_keys().collect();
        assert!(
            logs.len() == 1 && logs[0].starts_with("logged-wal.conflict-"),
            "{logs:?}"
        );
        for name in like(volume, &tree, "db.conflict-").keys() {
            assert_eq!(sqlite(volume, name, questions), "ok\n20100|0|100\n", "{name}");
        }
    }
    let is_copied = !like(&a, &tree, "db.conflict-").is_empty();
    assert_eq!(is_copied, said.contains("written"), "{said}");
}

#[test]
fn who_watches_a_file_is_told_that_another_version_took_its_place() {
    let all = ["changed", "deleted", "left"];
    let (_cable, a, b) = two(|a| all.iter().for_each(|name| fs::write(a.at(name), name).unwrap()));
    let mut watches = inotify::Inotify::init().unwrap();
    let mut names_of = Vec::new();
    for name in all {
        let mask = inotify::WatchMask::DELETE_SELF;
        names_of.push((watches.watches().add(b.at(name), mask).unwrap(), name));
    }
    fs::write(a.at("changed"), "changed by A").unwrap();
    fs::remove_file(a.at("deleted")).unwrap();
    let (mut told, mut buffer) = (Vec::new(), [0; 4096]);
    wait_for("both watchers are told", PATIENCE, || {
        let events = watches.read_events(&mut buffer);
        for event in events.into_iter().flatten() {
            if event.mask.contains(inotify::EventMask::DELETE_SELF) {
                told.extend(
                    names_of
                        .iter()
                        .find(|(watch, _)| *watch == event.wd)
                        .map(|(_, name)| *name),
                );
            }
        }
        told.len() >= 2
    });
    told.sort_unstable();
    assert_eq!(told, ["changed", "deleted"]);
    assert_eq!(fs::read(b.at("changed")).unwrap(), b"changed by A");
    fall_silent(&[&a, &b]);
}
