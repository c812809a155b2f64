//! `dfs events`: what happens on one computer, told as it happens.

use std::fs;

use serde_json::Value;

use crate::harness::command::Running;
use crate::harness::volume::TestVolume;
use crate::harness::{SOON, wait_for};

fn mounted() -> TestVolume {
    let mut volume = TestVolume::new();
    volume.configure("[network]\nenabled = false\n");
    volume.mount();
    volume
}

/// Listens, and returns once the first event is there.
fn listen(volume: &TestVolume) -> Running {
    let listener = volume.dfs(["events", "--json"]).arg(volume.mountpoint()).start();
    wait_for("the state is told", SOON, || !events(&listener).is_empty());
    listener
}

/// The whole lines so far.
fn events(listener: &Running) -> Vec<Value> {
    let said = listener.said();
    let whole = said.rfind('\n').map_or("", |end| &said[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

fn named<'e>(events: &'e [Value], name: &str) -> Vec<&'e Value> {
    events.iter().filter(|event| event["event"] == name).collect()
}

#[test]
fn changes_are_told_until_the_mount_ends() {
    let mut volume = mounted();
    let mut listener = listen(&volume);
    let mut second = listen(&volume);
    let first = &events(&listener)[0];
    assert_eq!(
        (&first["event"], &first["connected"], &first["mountpoint"]),
        (
            &"state".into(),
            &Value::Array(Vec::new()),
            &volume.mountpoint().to_str().unwrap().into()
        )
    );
    assert_eq!(first["device"], volume.status()["device"]);

    fs::create_dir(volume.at("dir")).unwrap();
    fs::write(volume.at("dir/file"), "content").unwrap();
    wait_for("the commit is told", SOON, || {
        let all = events(&listener);
        let paths = named(&all, "committed").into_iter().flat_map(|one| {
            assert!(one["time"].as_u64().unwrap() > 1_600_000_000, "{one}");
            assert!(one["changes"].as_u64().unwrap() > 0, "{one}");
            one["paths"].as_array().unwrap()
        });
        paths.filter(|path| *path == "dir/file").count() == 1
    });
    wait_for("in sync again", SOON, || {
        let last = named(&events(&listener), "tree")
            .last()
            .map(|event| event["state"].clone());
        last.is_none_or(|state| state == "in_sync")
    });

    let copy = "dir/file.conflict-01234567-89abcdef";
    fs::write(volume.at(copy), "copy").unwrap();
    wait_for("the conflict copy is told", SOON, || {
        named(&events(&listener), "conflict")
            .iter()
            .any(|one| one["path"] == copy)
    });
    wait_for("it is counted", SOON, || {
        volume.status()["tree"]["conflicts"] == 1
    });
    let said = volume.dfs(["status"]).arg(volume.mountpoint()).ok();
    assert!(said.contains("1 conflict copies: `dfs conflicts`"), "{said}");
    let third = listen(&volume);
    assert_eq!(events(&third)[0]["conflicts"], 1);

    // A change just before the end is told, too.
    fs::write(volume.at("last"), "change").unwrap();
    volume.unmount();
    for listener in [&mut listener, &mut second] {
        listener.wait();
        let all = events(listener);
        assert_eq!(all.last().unwrap()["event"], "end");
        let last = named(&all, "committed").pop().unwrap();
        assert!(
            last["paths"].as_array().unwrap().contains(&"last".into()),
            "{last}"
        );
        assert!(named(&all, "lost").is_empty());
    }

    // What was counted before is counted again.
    volume.mount();
    wait_for("it is counted after a start", SOON, || {
        volume.status()["tree"]["conflicts"] == 1
    });
    fs::remove_file(volume.at(copy)).unwrap();
    wait_for("it is gone", SOON, || volume.status()["tree"]["conflicts"] == 0);
}

#[test]
fn people_are_told_in_sentences() {
    let mut volume = mounted();
    let mut listener = volume.dfs(["events"]).arg(volume.mountpoint()).start();
    wait_for("the state is told", SOON, || {
        listener.said().contains("0 devices connected")
    });
    fs::write(volume.at("a"), "b").unwrap();
    wait_for("the commit is told", SOON, || {
        listener.said().contains(", 1 changes: a\n")
    });
    volume.unmount();
    listener.wait();
    assert!(
        listener.said().ends_with("the daemon ends\n"),
        "{}",
        listener.said()
    );
}

#[test]
fn who_listens_takes_no_place_of_others() {
    let volume = mounted();
    let mut all: Vec<Running> = (0..8).map(|_| listen(&volume)).collect();
    let refused = volume.dfs(["events", "--json"]).arg(volume.mountpoint()).fails();
    assert!(refused.said().contains("enough others listen"), "{refused}");
    assert_eq!(volume.status()["running"], true);
    // A place is free again when a listener dies, though nothing happens.
    all.pop().unwrap().kill();
    wait_for("a place is free", SOON, || {
        let mut next = volume.dfs(["events", "--json"]).arg(volume.mountpoint()).start();
        wait_for("it is told something", SOON, || !next.said().is_empty());
        next.kill().starts_with('{')
    });
}
