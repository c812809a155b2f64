//! Two computers that do not hear each other change the same tree: nothing is lost, and both end at the same one.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::trees::{PATIENCE, come_together, fall_silent, names};
use super::{first, join, second, ticket};
use crate::harness::namespaces::Cable;
use crate::harness::tree::{self, Tree};
use crate::harness::volume::TestVolume;
use crate::harness::{noise, wait_for};

/// Two that write, with what `make` made on the first.
pub(super) fn two(make: impl FnOnce(&TestVolume)) -> (Cable, TestVolume, TestVolume) {
    let (cable, a) = first();
    let mut b = second(&cable);
    join(&mut b, &ticket(&a, ["--role", "writer"]));
    make(&a);
    come_together(&[&a, &b]);
    fall_silent(&[&a, &b]);
    (cable, a, b)
}

/// Does something on both while they do not hear each other, lets them commit it, and waits until they have the same tree and are silent.
pub(super) fn apart(
    cable: &Cable,
    (a, on_a): (&TestVolume, impl FnOnce()),
    (b, on_b): (&TestVolume, impl FnOnce()),
) -> Tree {
    let list = |volume: &TestVolume| fs::read(volume.state().join("snapshots")).unwrap();
    let before = (list(a), list(b));
    cable.plug(false);
    on_a();
    on_b();
    wait_for("both commit", PATIENCE, || {
        list(a) != before.0 && list(b) != before.1
    });
    cable.plug(true);
    come_together(&[a, b]);
    fall_silent(&[a, b])
}

fn device(volume: &TestVolume) -> String {
    volume.status()["device"].as_str().unwrap()[..8].to_owned()
}

/// All names of `NAME.EXT`, its conflict copies included, with what they hold; the copies carry the name of a device that wrote them.
fn versions(
    volume: &TestVolume,
    tree: &Tree,
    stem: &str,
    extension: &str,
    devices: &[String],
) -> BTreeSet<Vec<u8>> {
    let mut found = BTreeSet::new();
    for name in names(tree) {
        let Some(rest) = name
            .strip_prefix(stem)
            .and_then(|rest| rest.strip_suffix(extension))
        else {
            continue;
        };
        if !rest.is_empty() {
            let parts: Vec<&str> = rest.splitn(3, '-').collect();
            let [".conflict", device, hash] = parts[..] else {
                continue;
            };
            assert!(
                devices.iter().any(|known| known == device),
                "{name}: of {devices:?}"
            );
            assert!(
                hash.len() == 8 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()),
                "{name}"
            );
        }
        let content = fs::read(volume.at(name)).unwrap();
        assert!(found.insert(content), "{name} has what another one has, too");
    }
    found
}

fn set<const N: usize>(all: [&str; N]) -> BTreeSet<Vec<u8>> {
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[test]
fn what_both_changed_is_there_twice_and_everything_else_once() {
    let (cable, a, b) = two(|a| {
        for name in [
            "edited.txt",
            "notes",
            "removed-by-a",
            "removed-by-b",
            "renamed",
            "dressed",
        ] {
            fs::write(a.at(name), name).unwrap();
        }
        for folder in ["moved", "deleted", "deleted/deep", "made"] {
            fs::create_dir(a.at(folder)).unwrap();
        }
        for name in ["moved/old", "moved/edited", "deleted/deep/x", "deleted/y"] {
            fs::write(a.at(name), name).unwrap();
        }
        fs::write(a.at("large"), noise(1, 3_000_000)).unwrap();
    });
    let devices = [device(&a), device(&b)];
    let write = |volume: &TestVolume, name: &str, text: &str| fs::write(volume.at(name), text).unwrap();
    let on_a = || {
        write(&a, "edited.txt", "A");
        write(&a, "notes", "A on notes");
        write(&a, "new", "A's new one");
        write(&a, "same", "the same");
        fs::remove_file(a.at("removed-by-a")).unwrap();
        write(&a, "removed-by-b", "A still wants it");
        fs::rename(a.at("renamed"), a.at("renamed-by-a")).unwrap();
        fs::rename(a.at("moved"), a.at("made/elsewhere")).unwrap();
        fs::remove_dir_all(a.at("deleted")).unwrap();
        fs::create_dir(a.at("folder")).unwrap();
        write(&a, "folder/of-a", "a");
        fs::set_permissions(a.at("dressed"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(a.at("large"), noise(2, 3_100_000)).unwrap();
    };
    let on_b = || {
        write(&b, "edited.txt", "B");
        write(&b, "notes", "B on notes");
        write(&b, "new", "B's new one");
        write(&b, "same", "the same");
        write(&b, "removed-by-a", "B still wants it");
        fs::remove_file(b.at("removed-by-b")).unwrap();
        fs::rename(b.at("renamed"), b.at("renamed-by-b")).unwrap();
        write(&b, "moved/new", "made in what A moved");
        write(&b, "moved/edited", "edited in what A moved");
        write(&b, "deleted/deep/new", "made in what A deleted");
        fs::create_dir(b.at("folder")).unwrap();
        write(&b, "folder/of-b", "b");
        write(&b, "dressed", "and edited");
        fs::write(b.at("large"), noise(3, 2_900_000)).unwrap();
    };
    let tree = apart(&cable, (&a, on_a), (&b, on_b));
    let of = |stem, extension| versions(&b, &tree, stem, extension, &devices);
    assert_eq!(of("edited", ".txt"), set(["A", "B"]));
    assert_eq!(of("notes", ""), set(["A on notes", "B on notes"]));
    assert_eq!(of("new", ""), set(["A's new one", "B's new one"]));
    assert_eq!(of("same", ""), set(["the same"]));
    assert_eq!(of("removed-by-a", ""), set(["B still wants it"]));
    assert_eq!(of("removed-by-b", ""), set(["A still wants it"]));
    assert_eq!(of("made/elsewhere/new", ""), set(["made in what A moved"]));
    assert_eq!(of("made/elsewhere/edited", ""), set(["edited in what A moved"]));
    assert_eq!(of("made/elsewhere/old", ""), set(["moved/old"]));
    assert_eq!(of("deleted/deep/new", ""), set(["made in what A deleted"]));
    assert_eq!(of("folder/of-a", ""), set(["a"]));
    assert_eq!(of("folder/of-b", ""), set(["b"]));
    assert_eq!(of("dressed", ""), set(["and edited"]));
    let large = of("large", "");
    assert!(large == BTreeSet::from([noise(2, 3_100_000), noise(3, 2_900_000)]));
    // One of both new names, or both.
    let renamed: Vec<_> = ["renamed-by-a", "renamed-by-b"]
        .into_iter()
        .filter_map(|name| fs::read(a.at(name)).ok())
        .collect();
    assert!(!renamed.is_empty() && renamed.iter().all(|text| text == b"renamed"));
    let mode = fs::metadata(b.at("dressed")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "A's mode on B's content");
    for gone in ["renamed", "moved", "deleted/y", "deleted/deep/x"] {
        assert!(
            !names(&tree).contains(&gone),
            "{gone} is back: {:?}",
            names(&tree)
        );
    }
    let conflicts = names(&tree)
        .iter()
        .filter(|name| name.contains(".conflict-"))
        .count();
    assert_eq!(conflicts, 4, "{:?}", names(&tree));

    // Both list the same; of one the copy is taken, of the others what has the name stays.
    let listed = |volume: &TestVolume| -> Vec<serde_json::Value> {
        let said = volume.dfs(["conflicts", "--json"]).arg(volume.mountpoint()).ok();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        said["conflicts"].as_array().unwrap().clone()
    };
    let copies = listed(&a);
    assert_eq!((copies.len(), &copies), (4, &listed(&b)));
    let mut kept = Vec::new();
    for copy in &copies {
        let (path, of) = (copy["path"].as_str().unwrap(), copy["of"].as_str().unwrap());
        assert!(devices.iter().any(|device| copy["device"] == **device), "{copy}");
        assert!(
            names(&tree).contains(&path) && names(&tree).contains(&of),
            "{copy}"
        );
        let which = if of == "large" { "copy" } else { "current" };
        let content = fs::read(a.at(if of == "large" { path } else { of })).unwrap();
        a.dfs(["conflicts", "--keep", which]).arg(a.at(path)).ok();
        kept.push((of, content));
    }
    let left = tree.len() - conflicts;
    wait_for("B has no conflict copies any more", PATIENCE, || {
        tree::try_snapshot(b.mountpoint()).is_ok_and(|tree| tree.len() == left)
    });
    for (name, content) in kept {
        super::trees::wait_for_content(&b.at(name), &content);
    }
    assert!(listed(&b).is_empty());
    fall_silent(&[&a, &b]);
}

#[test]
fn trees_that_cannot_both_be_are_made_one() {
    let (cable, a, b) = two(|a| {
        for folder in ["x", "y", "swap"] {
            fs::create_dir(a.at(folder)).unwrap();
            fs::write(a.at(folder).join("in"), folder).unwrap();
        }
        for name in ["swap/one", "swap/two", "linked", "replaced"] {
            fs::write(a.at(name), name).unwrap();
        }
    });
    let on_a = || {
        // Each moves a directory into the one that the other moves: both would hang on nothing.
        fs::rename(a.at("x"), a.at("y/x")).unwrap();
        // A file here, a directory there.
        fs::write(a.at("kind"), "a file").unwrap();
        // Names that only differ in case, or in how they are written down.
        fs::write(a.at("Name"), "upper").unwrap();
        fs::write(a.at("\u{e9}"), "one code point").unwrap();
        for (from, to) in [
            ("swap/one", "swap/x"),
            ("swap/two", "swap/one"),
            ("swap/x", "swap/two"),
        ] {
            fs::rename(a.at(from), a.at(to)).unwrap();
        }
        fs::hard_link(a.at("linked"), a.at("second-name")).unwrap();
        fs::remove_file(a.at("replaced")).unwrap();
        fs::create_dir(a.at("replaced")).unwrap();
    };
    let on_b = || {
        fs::rename(b.at("y"), b.at("x/y")).unwrap();
        fs::create_dir(b.at("kind")).unwrap();
        fs::write(b.at("kind/inside"), "in the directory").unwrap();
        fs::write(b.at("name"), "lower").unwrap();
        fs::write(b.at("e\u{301}"), "two code points").unwrap();
        fs::write(b.at("swap/one"), "one, edited by B").unwrap();
        fs::write(b.at("linked"), "edited by B").unwrap();
        fs::write(b.at("replaced"), "edited by B, too").unwrap();
    };
    let tree = apart(&cable, (&a, on_a), (&b, on_b));
    let names = names(&tree);
    let holds = |text: &str| {
        let files = tree
            .iter()
            .filter(|(_, entry)| entry.kind.contains("is_file: true"));
        let mut found =
            files.filter(|(path, _)| fs::read(b.mountpoint().join(path)).unwrap() == text.as_bytes());
        found.next().map(|(path, _)| path.to_str().unwrap().to_owned())
    };
    for text in ["x", "y", "swap", "a file", "in the directory", "edited by B, too"] {
        assert!(holds(text).is_some(), "{text} is nowhere in {names:?}");
    }
    for (name, text) in [
        ("Name", "upper"),
        ("name", "lower"),
        ("\u{e9}", "one code point"),
        ("e\u{301}", "two code points"),
        ("swap/two", "one, edited by B"),
        ("swap/one", "swap/two"),
        ("linked", "edited by B"),
        ("second-name", "edited by B"),
    ] {
        assert_eq!(
            fs::read_to_string(b.at(name)).unwrap(),
            text,
            "{name} of {names:?}"
        );
    }
    assert!(!names.contains(&"swap/x"), "{names:?}");
    assert!(fs::metadata(b.at("replaced")).is_ok());
}
