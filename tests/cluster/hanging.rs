//! A peer that hangs in the middle of a fetch: those who want its blocks wait, and nobody else.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{carry, first, join, second, ticket};
use crate::harness::command::Cmd;
use crate::harness::volume::TestVolume;
use crate::harness::{SOON, noise, wait_for};

/// Readers that hang: more than the threads that may be at work at once (64).
const HANGING: usize = 100;

/// So many of them wait on threads that read from the kernel (`LENT_MAX` in `fuse::pool`).
const LENT: usize = 2;

/// How long they may; what is local must not take as long.
const TIMEOUT_SECS: u64 = 180;

/// A process that does not run, until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(volume: &TestVolume) -> Self {
        let pid = Pid::from_raw(volume.pid().unwrap()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).ok();
    }
}

#[test]
fn a_peer_that_hangs_keeps_nobody_from_local_files() {
    let (cable, a) = first();
    let names: Vec<String> = (0..=HANGING).map(|n| format!("away-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (n, name) in (0..).zip(&names) {
        fs::write(a.at(name), noise(n, 200_000)).unwrap();
    }
    let mut b = second(&cable);
    join(&mut b, &ticket(&a, ["--role", "writer"]));
    let local = noise(7_000, 24 << 20);
    fs::write(b.at("local"), &local).unwrap();
    b.unmount();
    let settings = fs::read_to_string(b.state().join("dfs.toml")).unwrap();
    b.configure(&settings.replace("timeout = 5\n", &format!("timeout = {TIMEOUT_SECS}\n")));
    carry(&a, &b, &names);
    b.mount();
    wait_for("a file comes from A", SOON, || {
        fs::read(b.at(names[HANGING])).is_ok_and(|found| found == noise(HANGING as u64, 200_000))
    });

    let stopped = Stopped::new(&a);
    let readers: Vec<_> = (0..HANGING)
        .map(|n| {
            Cmd::bash("cmp \"$0\" - && echo same")
                .arg(b.at(names[n]))
                .stdin(noise(n as u64, 200_000))
                .start()
        })
        .collect();
    // One changes a file that is elsewhere, and closes it.
    let _writer = Cmd::bash("printf x | dd of=\"$0\" bs=1 seek=5000 conv=notrunc status=none")
        .arg(b.at(names[0]))
        .start();
    wait_for("all readers hang", SOON, || waiting(&b) >= HANGING - LENT);

    // Nothing of this is in the kernel's cache.
    let bound = Duration::from_secs(TIMEOUT_SECS / 2);
    let same = Cmd::bash("cmp \"$0\" -")
        .arg(b.at("local"))
        .stdin(local)
        .within(bound);
    same.ok();
    let script = r#"
        cd "$0"
        ls -l > /dev/null
        stat away-1 > /dev/null
        mkdir new
        for n in 1 2 3 4 5 6 7 8; do
            head -c 20M /dev/urandom > new/$n
            dd if=new/$n of=new/copy bs=1M conv=fsync status=none
            cmp new/$n new/copy
            mv new/copy new/moved
            truncate -s 5000000 new/$n
            chmod 600 new/$n
        done
        mv away-2 away-2-moved
        mv away-2-moved away-2
        sync new/1
        rm -r new
        cat .dfs/status > /dev/null
    "#;
    Cmd::bash(script).arg(b.mountpoint()).within(bound).ok();
    assert!(waiting(&b) >= HANGING - LENT, "they still hang");

    drop(stopped);
    for (n, reader) in readers.into_iter().enumerate().skip(1) {
        wait_for("the readers go on", Duration::from_secs(TIMEOUT_SECS), || {
            reader.said().contains("same")
        });
        assert!(!reader.said().contains("differ"), "away-{n}: {}", reader.said());
    }
}

/// Threads of the daemon that wait for something.
fn waiting(volume: &TestVolume) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", volume.pid().unwrap())).unwrap();
    let name = |task: std::io::Result<fs::DirEntry>| fs::read_to_string(task.unwrap().path().join("comm"));
    tasks
        .filter_map(|task| name(task).ok())
        .filter(|name| name.trim() == "fuse-wait")
        .count()
}
