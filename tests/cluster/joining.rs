//! A computer comes to a tree that is there already: with an empty folder, with files of its own, or only to read.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::replicas::{in_zone, lacking, member};
use super::trees::{
    PATIENCE, come_together, compared, enter, fall_silent, names, wait_for_content,
    write_just_before_hearing, writers,
};
use super::{first, join, second, ticket};
use crate::harness::command::Cmd;
use crate::harness::namespaces::Switch;
use crate::harness::tree::{self, Tree};
use crate::harness::volume::{ON_CABLE, TestVolume};
use crate::harness::{SOON, noise, wait_for};

/// Plain files are left alone while they may still be being written.
fn wait_until_at_rest(path: &Path) {
    wait_for("the file has rested", SOON, || {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        now.as_secs().cast_signed() > fs::symlink_metadata(path).unwrap().ctime() + 2
    });
}

fn copy_with_times(from: &Path, to: &Path) {
    Cmd::new("cp").args(["-a", "-T"]).arg(from).arg(to).ok();
}

/// Names of all that was kept beside another file.
fn beside(tree: &Tree) -> Vec<&str> {
    let names = names(tree).into_iter();
    names
        .filter(|name| name.contains(".conflict-") || name.contains(".imported-"))
        .collect()
}

#[test]
fn one_that_comes_later_sees_everything_and_keeps_its_own_files() {
    let switch = Switch::new(4);
    // Plain files on a computer that will join: some as they are in the volume, some not.
    let mut c = TestVolume::empty().on(switch.path(2));
    let own = |name: &str| c.folder().join(name);
    fs::create_dir_all(own("dir")).unwrap();
    fs::create_dir(own("only-here")).unwrap();
    for (name, content) in [
        ("empty", Vec::new()),
        ("small", b"the same on both".to_vec()),
        ("dir/large", noise(1, 3_000_000)),
        ("dir/medium", noise(2, 200_000)),
        ("different.txt", b"as C has it".to_vec()),
        ("dir/longer", noise(3, 900_000)),
        ("only-here/file", b"only C has it".to_vec()),
    ] {
        fs::write(own(name), content).unwrap();
    }
    symlink("small", own("link")).unwrap();

    let mut all = writers(&switch, 2);
    let a = &all[0];
    fs::create_dir(a.at("dir")).unwrap();
    for name in ["empty", "small", "dir/large", "dir/medium", "link"] {
        copy_with_times(&own(name), &a.at(name));
    }
    fs::write(a.at("different.txt"), b"as A has it").unwrap();
    fs::write(a.at("dir/longer"), noise(4, 800_000)).unwrap();
    fs::write(a.at("only-there"), noise(5, 500_000)).unwrap();
    come_together(&[a, &all[1]]);
    wait_until_at_rest(&own("link"));

    // With an empty folder: the names first, content when it is read.
    let mut d = TestVolume::empty().on(switch.path(3));
    enter(&d, a, "writer");
    d.mount();
    wait_for("the tree is there", PATIENCE, || {
        fs::metadata(d.at("dir/large")).is_ok_and(|meta| meta.len() == 3_000_000)
    });
    assert!(d.stored() < 500_000, "{}", d.stored());
    assert!(fs::read(d.at("dir/large")).unwrap() == noise(1, 3_000_000));
    let before = come_together(&[a, &all[1], &d]);
    assert_eq!(beside(&before), Vec::<&str>::new());

    // With files of its own.
    enter(&c, a, "writer");
    c.mount();
    all.push(c);
    wait_for_content(&d.at("only-here/file"), b"only C has it");
    let [a, b, c] = [&all[0], &all[1], &all[2]];
    come_together(&[a, b, c, &d]);
    let tree = fall_silent(&[a, b, c, &d]);
    let kept = beside(&tree);
    assert_eq!(kept.len(), 2, "{kept:?}");
    for (stem, versions) in [
        ("different", [b"as A has it".to_vec(), b"as C has it".to_vec()]),
        ("dir/longer", [noise(3, 900_000), noise(4, 800_000)]),
    ] {
        let mut found: Vec<_> = names(&tree)
            .into_iter()
            .filter(|name| name.starts_with(stem))
            .map(|name| fs::read(b.at(name)).unwrap())
            .collect();
        found.sort();
        let mut expected = versions.to_vec();
        expected.sort();
        assert!(found == expected, "{stem}: {:?}", names(&tree));
    }
    tree::assert_only_manifests(c.folder());

    // And dropped into the folder later, of a tree that is there already.
    let own = |name: &str| c.folder().join(name);
    fs::write(own("small"), b"the same on both").unwrap();
    fs::write(own("empty"), b"").unwrap();
    fs::write(own("only-there"), b"something else").unwrap();
    fs::write(own("last"), b"last").unwrap();
    wait_for_content(&d.at("last"), b"last");
    come_together(&[a, b, c, &d]);
    let tree = fall_silent(&[a, b, c, &d]);
    let more: Vec<_> = beside(&tree)
        .into_iter()
        .filter(|name| !kept.contains(name))
        .collect();
    assert_eq!(more.len(), 1, "{more:?}");
    assert!(more[0].starts_with("only-there"), "{more:?}");
    assert_eq!(fs::read(d.at(more[0])).unwrap(), b"something else");
    assert!(fs::read(d.at("only-there")).unwrap() == noise(5, 500_000));
}

#[test]
fn a_reader_sees_everything_and_changes_nothing() {
    let (cable, a) = first();
    fs::create_dir(a.at("dir")).unwrap();
    fs::write(a.at("dir/file"), b"one").unwrap();
    fs::write(a.at("large"), noise(1, 1_000_000)).unwrap();
    let mut reader = second(&cable);
    join(&mut reader, &ticket(&a, ["--role", "reader"]));
    let tree = come_together(&[&a, &reader]);
    assert_eq!(names(&tree), ["dir", "dir/file", "large"]);

    let at = |name: &str| reader.at(name);
    let flags = rustix::fs::XattrFlags::empty();
    let refused: Vec<(&str, std::io::Result<()>)> = vec![
        ("create", fs::write(at("new"), b"x")),
        (
            "write",
            fs::OpenOptions::new().append(true).open(at("dir/file")).map(drop),
        ),
        (
            "truncate",
            fs::OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(at("large"))
                .map(drop),
        ),
        ("mkdir", fs::create_dir(at("made"))),
        ("unlink", fs::remove_file(at("large"))),
        ("rmdir", fs::remove_dir_all(at("dir"))),
        ("rename", fs::rename(at("large"), at("other"))),
        ("link", fs::hard_link(at("large"), at("other"))),
        ("symlink", symlink("large", at("other"))),
        (
            "chmod",
            fs::set_permissions(at("large"), fs::Permissions::from_mode(0o600)),
        ),
        (
            "setxattr",
            rustix::fs::setxattr(at("large"), "user.x", b"y", flags).map_err(Into::into),
        ),
    ];
    for (deed, outcome) in refused {
        let kind = outcome.map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::ReadOnlyFilesystem), "{deed}");
    }
    let status = reader.status();
    assert_eq!(
        (&status["role"], &status["read_only"]),
        (&"reader".into(), &true.into())
    );
    let said = reader.dfs(["status"]).arg(reader.folder()).ok();
    assert!(
        said.contains("(read-only)") && said.contains("(reader)"),
        "{said}"
    );
    let import = reader.dfs(["import", "/etc/hostname"]).arg(at("dir")).fails();
    assert!(import.said().contains("reader"), "it says why: {import}");

    // What the others do goes on to show, also what was removed; nothing of its own goes to them.
    fs::write(a.at("dir/file"), b"two").unwrap();
    fs::rename(a.at("large"), a.at("dir/large")).unwrap();
    wait_for_content(&at("dir/file"), b"two");
    let tree = come_together(&[&a, &reader]);
    assert_eq!(names(&tree), ["dir", "dir/file", "dir/large"]);
    fs::write(reader.folder().join("dropped"), b"plain").unwrap();
    reader.remount();
    fs::write(a.at("dir/file"), b"three").unwrap();
    wait_for_content(&reader.at("dir/file"), b"three");
    fall_silent(&[&a]);
    assert!(!a.at("dropped").exists());
    assert_eq!(fs::read(reader.folder().join("dropped")).unwrap(), b"plain");
}

#[test]
fn the_tree_outlives_the_computer_that_made_it() {
    let switch = Switch::new(3);
    let mut a = TestVolume::empty().on(switch.path(0));
    a.init();
    a.configure(&format!("{}replicas = 1\n", in_zone(ON_CABLE, "a")));
    a.mount();
    let mut b = TestVolume::empty().on(switch.path(1));
    member(&mut b, &a, "b", 8080);
    let id = b.status()["device"].as_str().unwrap().to_owned();
    a.dfs(["role", &id[..12], "admin"]).arg(a.folder()).ok();
    wait_for("B becomes an admin", SOON, || b.log().contains("is an admin now"));
    b.remount();

    write_just_before_hearing(&a, &b);
    tree::odd_tree(&a.at("odd"));
    fs::write(a.at("large"), noise(1, 8 << 20)).unwrap();
    fs::write(a.at("edited"), noise(2, 700_000)).unwrap();
    wait_for("B has the names", PATIENCE, || {
        b.at("edited").exists() && b.at("odd/pipe").exists()
    });
    fs::write(a.at("edited"), noise(3, 900_000)).unwrap();
    fs::rename(a.at("large"), a.at("odd/large")).unwrap();
    wait_for("B follows", PATIENCE, || {
        fs::metadata(b.at("edited")).is_ok_and(|meta| meta.len() == 900_000) && b.at("odd/large").exists()
    });
    wait_for("B keeps all content", PATIENCE, || {
        lacking(&a) == (0, lacking(&a).1) && lacking(&a).1 > 9 << 20
    });
    let expected = tree::snapshot(a.mountpoint());
    // It is gone with its disk.
    a.kill();
    let (folder, state) = (a.folder().to_owned(), a.state().to_owned());
    drop(a);
    assert!(!folder.exists() && !state.exists());

    let expected = compared(expected);
    tree::assert_same(&expected, &compared(tree::snapshot(b.mountpoint())));
    let mut c = TestVolume::empty().on(switch.path(2));
    enter(&c, &b, "writer");
    c.mount();
    let found = come_together(&[&b, &c]);
    tree::assert_same(&expected, &found);
    for (n, [from, to]) in [[&c, &b], [&b, &c], [&c, &b]].into_iter().enumerate() {
        let text = format!("life goes on {n}");
        fs::write(from.at("edited"), &text).unwrap();
        wait_for_content(&to.at("edited"), text.as_bytes());
    }
}
