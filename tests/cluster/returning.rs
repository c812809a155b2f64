//! A computer comes back: from an old backup, from a time in which its folder was changed by other programs, from a `kill -9` in the midst of
//! making what others made.

use std::fs;
use std::path::Path;

use super::trees::{
    come_together, fall_silent, names, wait_for_content, wait_until_gone, write_just_before_hearing, writers,
};
use crate::harness::command::{Cmd, Running};
use crate::harness::namespaces::Switch;
use crate::harness::tree;
use crate::harness::volume::TestVolume;
use crate::harness::{SOON, noise, wait_for};

fn copy_all(from: &Path, to: &Path) {
    fs::remove_dir_all(to).ok();
    Cmd::new("cp").arg("-a").arg(from).arg(to).ok();
}

#[test]
fn one_that_was_put_back_to_a_backup_rolls_nobody_back() {
    let switch = Switch::new(3);
    let mut all = writers(&switch, 3);
    for n in 0..5 {
        fs::write(all[0].at(&format!("file-{n}")), format!("old {n}")).unwrap();
    }
    fs::create_dir(all[0].at("dir")).unwrap();
    fs::write(all[0].at("large"), noise(1, 300_000)).unwrap();
    come_together(&all.iter().collect::<Vec<_>>());
    all[1].unmount();
    let (state, folder) = (
        all[1].place().join("old-state"),
        all[1].place().join("old-folder"),
    );
    copy_all(all[1].state(), &state);
    copy_all(all[1].folder(), &folder);
    all[1].mount();

    // All of this is after the backup.
    let [a, b] = [&all[0], &all[1]];
    write_just_before_hearing(a, b);
    fs::remove_file(a.at("file-2")).unwrap();
    fs::rename(b.at("dir"), b.at("moved")).unwrap();
    fs::write(b.at("only-b"), b"of B").unwrap();
    fs::write(a.at("large"), noise(2, 300_001)).unwrap();
    wait_until_gone(&b.at("file-2"));
    wait_for_content(&a.at("only-b"), b"of B");
    let expected = come_together(&all.iter().collect::<Vec<_>>());

    for with_folder in [true, false] {
        all[1].unmount();
        copy_all(&state, all[1].state());
        if with_folder {
            copy_all(&folder, all[1].folder());
        }
        all[1].mount();
        let everybody: Vec<_> = all.iter().collect();
        come_together(&everybody);
        tree::assert_same(&expected, &fall_silent(&everybody));
        // And it takes part again.
        let name = format!("again-{with_folder}");
        fs::write(all[1].at(&name), b"x").unwrap();
        wait_for_content(&all[0].at(&name), b"x");
        fs::remove_file(all[0].at(&name)).unwrap();
        wait_until_gone(&all[1].at(&name));
        come_together(&everybody);
    }
}

#[test]
fn what_other_programs_did_in_the_folder_meanwhile_is_a_change_like_any() {
    let switch = Switch::new(2);
    let mut all = writers(&switch, 2);
    fs::create_dir(all[0].at("dir")).unwrap();
    for n in 0..30 {
        fs::write(all[0].at(&format!("dir/{n}")), format!("{n}")).unwrap();
    }
    fs::write(all[0].at("large"), noise(1, 1_000_000)).unwrap();
    come_together(&[&all[0], &all[1]]);
    all[0].unmount();
    let folder = all[0].folder();
    fs::rename(folder.join("dir"), folder.join("renamed")).unwrap();
    fs::rename(folder.join("renamed/1.f"), folder.join("moved.f")).unwrap();
    fs::remove_file(folder.join("renamed/2.f")).unwrap();
    Cmd::new("cp")
        .arg(folder.join("large.f"))
        .arg(folder.join("copy.f"))
        .ok();
    fs::write(folder.join("plain"), b"made here").unwrap();
    fs::write(all[1].at("dir/3"), b"B edited it").unwrap();
    all[0].mount();
    let b = &all[1];
    wait_for_content(&b.at("plain"), b"made here");
    let tree = come_together(&[&all[0], b]);
    let found = names(&tree);
    assert_eq!(found.len(), 33, "{found:?}");
    assert_eq!(fs::read(b.at("moved")).unwrap(), b"1");
    assert_eq!(fs::read(all[0].at("renamed/3")).unwrap(), b"B edited it");
    assert!(
        !found.contains(&"renamed/2") && !found.contains(&"dir"),
        "{found:?}"
    );
    // The copy is a file of its own from now on.
    fs::write(b.at("copy"), b"another").unwrap();
    wait_for_content(&all[0].at("copy"), b"another");
    assert!(fs::read(all[0].at("large")).unwrap() == noise(1, 1_000_000));
    fall_silent(&[&all[0], b]);
}

#[test]
fn kills_in_the_midst_of_making_what_others_made() {
    let switch = Switch::new(2);
    let mut all = writers(&switch, 2);
    for round in 0..3 {
        let dir = all[0].at(&format!("dir-{round}"));
        fs::create_dir(&dir).unwrap();
        for n in 0..1_000 {
            fs::write(dir.join(n.to_string()), format!("{round} {n}")).unwrap();
        }
        if round > 0 {
            fs::rename(all[0].at(&format!("dir-{}", round - 1)), dir.join("inside")).unwrap();
        }
        let there = all[1].folder().to_owned();
        let some = |number: usize| {
            let dir = there.join(format!("dir-{round}"));
            fs::read_dir(dir).is_ok_and(|entries| entries.count() > number)
        };
        for number in [0, 500] {
            wait_for("it has begun", SOON, || some(number));
            all[1].kill();
            all[1].mount();
        }
        let tree = come_together(&[&all[0], &all[1]]);
        let expected = 1_001 * (round + 1);
        assert_eq!(tree.len(), expected, "after round {round}");
    }
    fall_silent(&[&all[0], &all[1]]);
}

#[test]
fn a_directory_in_use_is_no_obstacle() {
    let switch = Switch::new(2);
    let all = writers(&switch, 2);
    let [a, b] = [&all[0], &all[1]];
    fs::create_dir_all(a.at("used/deep")).unwrap();
    fs::create_dir(a.at("renamed")).unwrap();
    for name in ["used/deep/file", "renamed/log"] {
        fs::write(a.at(name), b"begun\n").unwrap();
    }
    come_together(&[a, b]);
    // A shell stands in the one, and a program writes a log in the other.
    let _shell: Running = Cmd::new("sleep").arg("600").dir(b.at("used/deep")).start();
    let mut log = fs::OpenOptions::new()
        .append(true)
        .open(b.at("renamed/log"))
        .unwrap();
    std::io::Write::write_all(&mut log, b"one\n").unwrap();
    fs::remove_dir_all(a.at("used")).unwrap();
    fs::rename(a.at("renamed"), a.at("elsewhere")).unwrap();
    wait_until_gone(&b.at("used"));
    wait_for_names(b, &["elsewhere", "elsewhere/log"]);
    std::io::Write::write_all(&mut log, b"two\n").unwrap();
    drop(log);
    wait_for_content(&a.at("elsewhere/log"), b"begun\none\ntwo\n");
    come_together(&[a, b]);
    let tree = fall_silent(&[a, b]);
    assert_eq!(names(&tree), ["elsewhere", "elsewhere/log"]);
}

#[track_caller]
fn wait_for_names(volume: &TestVolume, expected: &[&str]) {
    wait_for("the names are those", SOON, || {
        tree::try_snapshot(volume.mountpoint()).is_ok_and(|tree| names(&tree) == expected)
    });
}
