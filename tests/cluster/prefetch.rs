//! Content that one computer writes comes to another one before it is read there, where `prefetch` or a pin says so.

use std::fs;
use std::time::Duration;

use super::care::state;
use super::trees::{PATIENCE, enter, writers};
use crate::harness::namespaces::Switch;
use crate::harness::volume::TestVolume;
use crate::harness::{noise, wait_for};

/// What has not come by then does not come.
const REST: Duration = Duration::from_secs(5);

/// Two that write; the second keeps nothing for others and has these lines in its `dfs.toml`, each below the header of a section.
fn two(switch: &Switch, settings: &[(&str, &str)]) -> (TestVolume, TestVolume) {
    let a = writers(switch, 1).remove(0);
    let mut b = TestVolume::empty().on(switch.path(1));
    enter(&b, &a, "writer");
    let mut text = fs::read_to_string(b.state().join("dfs.toml")).unwrap();
    for (header, line) in settings {
        assert!(text.contains(&format!("{header}\n")), "{text}");
        text = text.replace(&format!("{header}\n"), &format!("{header}\n{line}\n"));
    }
    b.configure(&text);
    b.mount();
    (a, b)
}

fn wait_until_local(volume: &TestVolume, file: &str) {
    wait_for(&format!("{file} is here before it is read"), PATIENCE, || {
        volume.at(file).exists() && state(volume, file).starts_with("local")
    });
}

#[test]
fn what_a_pattern_means_is_here_before_it_is_read() {
    let switch = Switch::new(2);
    let (a, mut b) = two(&switch, &[("[sync]", "prefetch = [\"Photos\", \"!*.tmp\"]")]);
    fs::create_dir_all(a.at("Photos/2026")).unwrap();
    fs::write(a.at("Photos/one"), noise(1, 3_000_000)).unwrap();
    fs::write(a.at("Photos/2026/two"), noise(2, 300_000)).unwrap();
    fs::write(a.at("Photos/not.tmp"), noise(3, 500_000)).unwrap();
    fs::write(a.at("other"), noise(4, 500_000)).unwrap();
    for file in ["Photos/one", "Photos/2026/two"] {
        wait_until_local(&b, file);
    }
    wait_for("the rest is listed", PATIENCE, || {
        b.at("Photos/not.tmp").exists() && b.at("other").exists()
    });
    std::thread::sleep(REST);
    for file in ["Photos/not.tmp", "other"] {
        assert_eq!(state(&b, file).split(',').next(), Some("remote"), "{file}");
    }
    assert!(b.stored() < 3_600_000, "{}", b.stored());
    // A new version, and what comes to be meant by being moved.
    fs::write(a.at("Photos/one"), noise(5, 2_000_000)).unwrap();
    fs::rename(a.at("other"), a.at("Photos/other")).unwrap();
    wait_for("the new version is here", PATIENCE, || {
        fs::metadata(b.at("Photos/one")).is_ok_and(|meta| meta.len() == 2_000_000)
    });
    for file in ["Photos/one", "Photos/other"] {
        wait_until_local(&b, file);
    }

    // What was written while it was away, and what it was bringing when it died.
    b.unmount();
    fs::write(a.at("Photos/meanwhile"), noise(6, 1_000_000)).unwrap();
    b.mount();
    wait_until_local(&b, "Photos/meanwhile");
    let large = noise(7, 60_000_000);
    let before = b.stored();
    fs::write(a.at("Photos/large"), &large).unwrap();
    wait_for("some of it is here", PATIENCE, || b.stored() > before + 1_000_000);
    b.kill();
    b.mount();
    wait_until_local(&b, "Photos/large");
    // It is all there: nobody else has to be.
    switch.plug(0, false);
    assert!(fs::read(b.at("Photos/large")).unwrap() == large);
    assert!(fs::read(b.at("Photos/meanwhile")).unwrap() == noise(6, 1_000_000));
    assert!(fs::read(b.at("Photos/one")).unwrap() == noise(5, 2_000_000));
}

#[test]
fn nothing_is_evicted_for_what_nobody_read() {
    let switch = Switch::new(2);
    let all = ("[sync]", "prefetch = \"all\"");
    let (a, b) = two(&switch, &[all, ("[store]", "cache_size = \"16MiB\"")]);
    fs::write(a.at("dear"), noise(1, 3_000_000)).unwrap();
    wait_until_local(&b, "dear");
    assert!(fs::read(b.at("dear")).unwrap() == noise(1, 3_000_000));
    let others: Vec<String> = (0..10).map(|n| format!("other-{n}")).collect();
    for (n, name) in others.iter().enumerate() {
        fs::write(a.at(name), noise(10 + n as u64, 4_000_000)).unwrap();
    }
    // As much as there is room for, and never more.
    let mut most = 0;
    wait_for("some of it is here", PATIENCE, || {
        most = most.max(b.stored());
        most > 11_000_000 && b.at("other-9").exists()
    });
    for _ in 0..20 {
        std::thread::sleep(REST / 10);
        most = most.max(b.stored());
    }
    assert!(most <= 16 << 20, "{most}");
    let here = |name: &String| state(&b, name).starts_with("local");
    let count = others.iter().filter(|name| here(name)).count();
    assert!((1..4).contains(&count), "{count} of them");
    assert!(state(&b, "dear").starts_with("local"), "{}", state(&b, "dear"));
    for (n, name) in others.iter().enumerate() {
        assert!(
            fs::read(b.at(name)).unwrap() == noise(10 + n as u64, 4_000_000),
            "{name}"
        );
    }
}

#[test]
fn what_comes_into_a_pinned_directory_is_brought() {
    let switch = Switch::new(2);
    let (a, b) = two(&switch, &[]);
    fs::create_dir(a.at("dear")).unwrap();
    fs::write(a.at("dear/first"), noise(1, 700_000)).unwrap();
    wait_for("it is listed", PATIENCE, || b.at("dear/first").exists());
    b.dfs(["pin"]).arg(b.at("dear")).ok();
    assert!(state(&b, "dear/first").starts_with("local"));
    fs::write(a.at("dear/second"), noise(2, 700_000)).unwrap();
    fs::write(a.at("other"), noise(3, 700_000)).unwrap();
    wait_until_local(&b, "dear/second");
    wait_for("the other one is listed", PATIENCE, || b.at("other").exists());
    std::thread::sleep(REST);
    assert!(state(&b, "other").starts_with("remote"));
}
