//! Conflict copies on one computer: `dfs conflicts` finds what has the name of one, and settles it.

use std::fs;

use serde_json::Value;

use crate::harness::volume::TestVolume;

const COPY: &str = "dir/report.conflict-0123abcd-89abcdef.txt";

/// A mounted volume with a file and what looks like a conflict copy of it.
fn mounted() -> TestVolume {
    let mut volume = TestVolume::new();
    volume.configure("[network]\nenabled = false\n");
    volume.mount();
    fs::create_dir(volume.at("dir")).unwrap();
    fs::write(volume.at("dir/report.txt"), "current").unwrap();
    fs::write(volume.at(COPY), "the copy").unwrap();
    volume
}

fn listed(volume: &TestVolume) -> Vec<Value> {
    let said = volume.dfs(["conflicts", "--json"]).arg(volume.mountpoint()).ok();
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["left_out"], &said["committed"]), (&0.into(), &true.into()));
    said["conflicts"].as_array().unwrap().clone()
}

#[test]
fn a_conflict_copy_is_shown_and_settled() {
    let volume = mounted();
    let all = listed(&volume);
    assert_eq!(all.len(), 1);
    assert_eq!(
        (&all[0]["path"], &all[0]["of"]),
        (&COPY.into(), &"dir/report.txt".into())
    );
    assert_eq!(
        (&all[0]["size"], &all[0]["of_size"], &all[0]["device"]),
        (&8.into(), &7.into(), &"0123abcd".into())
    );
    let said = volume.dfs(["conflicts"]).arg(volume.at("dir")).ok();
    assert!(
        said.contains("0123abcd  dir/report.conflict-") && said.contains("beside dir/report.txt"),
        "{said}"
    );
    assert_eq!(
        volume.dfs(["conflicts"]).arg(volume.at("dir/report.txt")).ok(),
        ""
    );

    // The copy takes the place, and what was there is in the past.
    let said = volume
        .dfs(["conflicts", "--keep", "copy"])
        .arg(volume.at(COPY))
        .ok();
    assert!(said.starts_with("replaced dir/report.txt by"), "{said}");
    assert_eq!(fs::read(volume.at("dir/report.txt")).unwrap(), b"the copy");
    assert!(fs::symlink_metadata(volume.at(COPY)).is_err());
    assert!(listed(&volume).is_empty());
    let log = volume
        .dfs(["log", "--json"])
        .arg(volume.at("dir/report.txt"))
        .ok();
    let log: Value = serde_json::from_str(&log).unwrap();
    assert_eq!(
        log["versions"].as_array().unwrap().last().unwrap()["size"],
        7,
        "{log}"
    );

    // The file stays, and the copy goes: it is named by its `.f`.
    fs::write(volume.at(COPY), "another copy").unwrap();
    let said = volume
        .dfs(["conflicts", "--keep", "current"])
        .arg(volume.host(COPY))
        .ok();
    assert!(said.starts_with("removed"), "{said}");
    assert_eq!(fs::read(volume.at("dir/report.txt")).unwrap(), b"the copy");
    assert!(listed(&volume).is_empty());
    volume.dfs(["restore"]).arg(volume.at(COPY)).ok();
    assert_eq!(fs::read(volume.at(COPY)).unwrap(), b"another copy");

    // Both stay.
    let exists = volume
        .dfs(["conflicts", "--as", "report.txt"])
        .arg(volume.at(COPY))
        .fails();
    assert!(exists.said().contains("report.txt exists"), "{exists}");
    volume
        .dfs(["conflicts", "--as", "report of B.txt"])
        .arg(volume.at(COPY))
        .ok();
    assert_eq!(
        fs::read(volume.at("dir/report of B.txt")).unwrap(),
        b"another copy"
    );
    assert!(listed(&volume).is_empty());
}

#[test]
fn nothing_else_is_removed() {
    let volume = mounted();
    let refused = |args: [&str; 3], path: &str, why: &str| {
        let ran = volume.dfs(args).arg(volume.at(path)).fails();
        assert!(ran.said().contains(why), "{ran}");
    };
    let current = ["conflicts", "--keep", "current"];
    fs::create_dir(volume.at("dir/x.conflict-0123abcd-89abcdef")).unwrap();
    for path in [
        "dir/report.txt",
        "dir",
        "dir/x.conflict-0123abcd-89abcdef",
        "dir/not-there.conflict-0123abcd-89abcdef",
    ] {
        refused(current, path, "it is no conflict copy");
        refused(["conflicts", "--keep", "copy"], path, "it is no conflict copy");
    }
    for name in ["", "..", "a/b", "y.conflict-0123abcd-89abcdef"] {
        refused(["conflicts", "--as", name], COPY, "cannot settle");
    }
    // Without the file the copy is the last one.
    fs::remove_file(volume.at("dir/report.txt")).unwrap();
    refused(current, COPY, "is not there any more");
    assert_eq!(listed(&volume)[0]["of"], Value::Null);
    assert_eq!(fs::read(volume.at(COPY)).unwrap(), b"the copy");
    let twice = volume
        .dfs(["conflicts", "--as", "z", "--keep", "copy"])
        .arg(volume.at(COPY));
    assert_eq!(twice.fails().code(), 2);
}
