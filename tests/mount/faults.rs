//! Faults at each of the daemon's calls on folder and state: it is killed there, or the call fails or does less than it was asked to.
//!
//! Each point has a volume of its own and the same few operations before it. `tests/run` takes some points, other ones every time;
//! `--long` takes all. `DFS_TEST_SEED` repeats the choice.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::io::Errno;

use crate::harness::command::{Cmd, own_path};
use crate::harness::ledger::Crash;
use crate::harness::tracer::{Call, Fault, Tracer};
use crate::harness::volume::{ALONE, TestVolume};
use crate::harness::workers::{Ended, Workers};
use crate::harness::{Dice, SOON, noise, seed, wait_for};

/// Operations before which the fault comes.
const OPERATIONS: usize = 24;

/// A volume with one worker, whose operations are the same each time.
struct Bench {
    volume: TestVolume,
    workers: Workers,
    tracer: Tracer,
}

impl Bench {
    fn new() -> Self {
        let mut volume = TestVolume::new();
        volume.configure(&format!("{ALONE}[volume]\nsync_interval = 1\n"));
        volume.mount();
        let workers = Workers::prepare(&volume, 1);
        let tracer = Tracer::attach(volume.pid().unwrap(), &[volume.folder(), volume.state()]);
        Self {
            volume,
            workers,
            tracer,
        }
    }

    /// Lets the fault come while the worker works, and while the volume is unmounted when it did not come before.
    fn work(&mut self) -> (Ended, std::io::Result<()>) {
        self.workers.work(OPERATIONS_SEED, OPERATIONS)
    }

    fn dead_mount_away(&self) {
        Cmd::new("umount")
            .args(["-q", "-l"])
            .arg(self.volume.mountpoint())
            .run();
    }
}

/// Seed of the operations: always the same, so that the calls are (nearly) the same.
const OPERATIONS_SEED: u64 = 6;

/// Makes a collection worth its while: more bytes than its threshold, of few blocks, then deleted.
fn leave_garbage(volume: &TestVolume) -> std::io::Result<()> {
    let path = volume.at("shared/garbage");
    let (part, other) = (noise(1, 1 << 20), noise(2, 1 << 20));
    let file = File::create(&path)?;
    for offset in 0..66 {
        file.write_all_at(&part, offset << 20)?;
    }
    file.write_all_at(&other, 66 << 20)?;
    file.sync_all()?;
    drop(file);
    fs::remove_file(&path)
}

fn changes_something(call: &Call) -> bool {
    !matches!(call.name, "pread64" | "getdents64" | "newfstatat" | "openat")
}

fn any(_: &Call) -> bool {
    true
}

/// Which of `all` points to take: all, or `count` of them that differ from run to run.
fn points(all: u64, count: Option<u64>, dice: &mut Dice) -> Vec<u64> {
    let step = count.map_or(1, |count| (all / count).max(1));
    (dice.below(step)..all).step_by(step as usize).collect()
}

/// How many points there are when nothing goes wrong.
fn count(may_be_hit: fn(&Call) -> bool, run: impl FnOnce(&mut Bench)) -> u64 {
    let mut bench = Bench::new();
    bench.tracer.arm(None, may_be_hit);
    run(&mut bench);
    let seen = bench.tracer.seen();
    eprintln!("{seen} points");
    assert!(
        seen > 20,
        "only {seen} calls were seen: {:?}",
        bench.tracer.calls()
    );
    seen
}

#[test]
fn a_kill_at_a_call_loses_nothing_that_was_closed() {
    kill_at(Some(12));
}

#[test]
#[ignore = "takes half an hour: only with --long"]
fn a_kill_at_every_call_loses_nothing_that_was_closed() {
    kill_at(None);
}

fn kill_at(some: Option<u64>) {
    let mut dice = Dice::new(seed());
    let all = count(changes_something, |bench| {
        let (ended, done) = bench.work();
        done.unwrap();
        bench.workers.judge(ended, Crash::None);
        bench.volume.unmount();
    });
    for point in points(all, some, &mut dice) {
        let both = [Fault::KillBefore, Fault::KillAfter];
        let chosen = both[dice.below(2) as usize];
        for fault in both
            .into_iter()
            .filter(|fault| some.is_none() || *fault == chosen)
        {
            eprintln!("{fault:?} at call {point} of {all}");
            let mut bench = Bench::new();
            bench.tracer.arm(Some((point, fault)), changes_something);
            let (ended, done) = bench.work();
            if done.is_ok() {
                // The rest of the calls are made when it ends.
                bench
                    .volume
                    .own("umount-dfs")
                    .arg(bench.volume.mountpoint())
                    .run();
            }
            bench.volume.wait_for_death();
            eprintln!("  {:?}, {done:?}", bench.tracer.hit());
            bench.dead_mount_away();
            bench.volume.mount();
            bench.workers.judge(ended, Crash::Kill);
            let (ended, done) = bench.workers.work(1, 5);
            done.unwrap();
            bench.workers.judge(ended, Crash::None);
        }
    }
}

#[test]
fn a_kill_during_a_collection_loses_nothing() {
    kill_while_collecting(Some(4));
}

#[test]
#[ignore = "takes ten minutes: only with --long"]
fn a_kill_at_every_call_of_a_collection_loses_nothing() {
    kill_while_collecting(None);
}

fn kill_while_collecting(some: Option<u64>) {
    let mut dice = Dice::new(seed());
    let prepare = |bench: &mut Bench| {
        let (ended, done) = bench.work();
        done.unwrap();
        bench.workers.judge(ended, Crash::None);
    };
    let all = count(changes_something, |bench| {
        prepare(bench);
        leave_garbage(&bench.volume).unwrap();
        bench.tracer.arm(None, changes_something);
        let before = bench.volume.stored();
        wait_for("the garbage is collected", SOON, || {
            bench.volume.stored() < before
        });
        // Its space is given back in quiet times.
        std::thread::sleep(Duration::from_millis(1500));
        let calls = bench.tracer.calls();
        assert!(calls.iter().any(|call| call.name == "fallocate"), "{calls:?}");
    });
    for point in points(all, some, &mut dice) {
        let mut bench = Bench::new();
        prepare(&mut bench);
        leave_garbage(&bench.volume).unwrap();
        let fault = [Fault::KillBefore, Fault::KillAfter][dice.below(2) as usize];
        bench.tracer.arm(Some((point, fault)), changes_something);
        let started = std::time::Instant::now();
        while bench.tracer.hit().is_none() && started.elapsed() < Duration::from_secs(4) {
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{fault:?} at call {point} of {all}: {:?}", bench.tracer.hit());
        let ended = bench.workers.idle();
        if bench.tracer.hit().is_some() {
            bench.volume.wait_for_death();
        } else {
            bench.volume.kill();
        }
        bench.dead_mount_away();
        bench.volume.mount();
        bench.workers.judge(ended, Crash::Kill);
    }
}

#[test]
fn a_kill_during_the_recovery_loses_nothing() {
    kill_while_recovering(Some(6));
}

#[test]
#[ignore = "takes ten minutes: only with --long"]
fn a_kill_at_every_call_of_the_recovery_loses_nothing() {
    kill_while_recovering(None);
}

fn kill_while_recovering(some: Option<u64>) {
    let mut dice = Dice::new(seed());
    let Bench {
        mut volume,
        mut workers,
        ..
    } = Bench::new();
    let mut point = 0;
    loop {
        let (ended, done) = workers.work(dice.below(1 << 40), 6);
        done.unwrap();
        volume.kill();
        let fault = [Fault::KillBefore, Fault::KillAfter][dice.below(2) as usize];
        let (hit, seen) = mount_traced(&volume, (point, fault));
        eprintln!("{fault:?} at call {point}: {hit:?}");
        Cmd::new("umount")
            .args(["-q", "-l"])
            .arg(volume.mountpoint())
            .run();
        if hit.is_none() {
            // It had no more calls than this, and lives.
            assert!(seen > 10, "only {seen} calls");
            // Or has ended by itself, now that it is unmounted.
            if let Some(pid) = volume.status()["pid"].as_i64() {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGKILL);
                wait_for("the daemon ends", SOON, || {
                    !Path::new(&format!("/proc/{pid}")).exists()
                });
            }
        }
        volume.mount();
        workers.judge(ended, Crash::Kill);
        if hit.is_none() {
            return;
        }
        point += some.map_or(1, |count| 1 + dice.below(60 / count));
    }
}

/// Mounts with a fault at one of the calls from the first on. Returns the call that was hit, and how many there were.
fn mount_traced(volume: &TestVolume, fault: (u64, Fault)) -> (Option<Call>, u64) {
    // Stopped until it is observed. A shell is its parent, because whoever observes a child of its own takes its end from who waits for it.
    let script = "sh -c 'kill -STOP $$; exec \"$@\"' sh \"$@\" & echo $!; wait $!";
    let command = Cmd::new("sh")
        .args(["-c", script, "sh"])
        .arg(own_path("mount-dfs"));
    let mut mount = command.arg(volume.folder()).arg(volume.mountpoint()).start();
    let mut pid = None;
    wait_for("it stops", SOON, || {
        pid = mount.said().trim().parse::<i32>().ok();
        let stat = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
        stat.is_some_and(|stat| stat.contains(") T "))
    });
    let pid = pid.unwrap();
    let tracer = Tracer::attach(pid, &[volume.folder(), volume.state()]);
    tracer.arm(Some(fault), changes_something);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    mount.wait();
    (tracer.hit(), tracer.seen())
}

#[test]
fn a_call_that_fails_is_reported_and_nothing_is_lost() {
    fail_at(Some(12));
}

#[test]
#[ignore = "takes an hour: only with --long"]
fn a_failure_of_every_call_is_reported_and_nothing_is_lost() {
    fail_at(None);
}

fn fail_at(some: Option<u64>) {
    let mut dice = Dice::new(seed());
    let errors = [Errno::IO, Errno::NOSPC].map(|errno| Fault::Error(errno.raw_os_error()));
    let all = count(any, |bench| bench.work().1.unwrap());
    for point in points(all, some, &mut dice) {
        let chosen = errors[dice.below(2) as usize];
        for fault in errors
            .into_iter()
            .filter(|fault| some.is_none() || *fault == chosen)
        {
            fail_one(point, fault, any);
        }
    }
    let all = count(is_write, |bench| bench.work().1.unwrap());
    for point in points(all, some.map(|some| some / 3), &mut dice) {
        fail_one(point, Fault::Short, is_write);
    }
}

fn is_write(call: &Call) -> bool {
    matches!(
        call.name,
        "write" | "pwrite64" | "writev" | "pwritev" | "pwritev2"
    )
}

fn fail_one(point: u64, fault: Fault, may_be_hit: fn(&Call) -> bool) {
    let mut bench = Bench::new();
    bench.tracer.arm(Some((point, fault)), may_be_hit);
    let (ended, done) = bench.work();
    // There may have been fewer calls this time: a fault that did not come must not come later.
    let hit = bench.tracer.disarm();
    eprintln!("{fault:?} at call {point}: {hit:?}, {done:?}");
    if let Err(error) = &done {
        let known = [Errno::IO, Errno::NOSPC].map(|errno| Some(errno.raw_os_error()));
        assert!(known.contains(&error.raw_os_error()), "{error}");
    }
    let log = bench.volume.log();
    assert!(!log.contains("panicked"), "{log}");
    let of_state = |call: &Call| call.path.starts_with(bench.volume.state());
    // The directory of the segments is opened for nothing but to sync it.
    let is_sync = |call: &Call| {
        matches!(call.name, "fsync" | "fdatasync" | "syncfs") || call.path.ends_with("store.sqlite-blocks")
    };
    if hit.as_ref().is_some_and(|call| of_state(call) && is_sync(call)) {
        // The store writes no more, and says so, until it is opened again.
        bench.volume.kill();
    } else {
        // All goes on as if nothing had been.
        close_all(bench.volume.mountpoint());
        bench.workers.judge(ended, Crash::None);
        let (ended, done) = bench.workers.work(2, 8);
        done.unwrap();
        bench.volume.kill();
        bench.dead_mount_away();
        bench.volume.mount();
        bench.workers.judge(ended, Crash::Kill);
        return;
    }
    bench.dead_mount_away();
    bench.volume.mount();
    bench.workers.judge(ended, Crash::Kill);
}

/// Opens and closes every file, so that what an operation left in memory is written back.
fn close_all(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            close_all(&path);
            continue;
        }
        let file = File::options().write(true).open(&path).unwrap();
        nix::unistd::close(file).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

/// The data that a failed sync was to bring to the disk is written again before a later one is believed, and every descriptor that was
/// open is told once.
#[test]
fn a_failed_fsync_is_told_once_to_each_descriptor_and_makes_the_next_one_write_again() {
    for of_folder in [false, true] {
        let mut volume = TestVolume::new();
        let interval = if of_folder { 1 } else { 3600 };
        // The background sync alone: a snapshot's would come first.
        let alone = format!("{ALONE}[sync]\nenabled = false\n");
        volume.configure(&format!("{alone}[volume]\nsync_interval = {interval}\n"));
        volume.mount();
        let path = volume.at("file");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"first").unwrap();
        file.sync_all().unwrap();
        let other = File::open(&path).unwrap();
        let tracer = Tracer::attach(volume.pid().unwrap(), &[volume.folder()]);
        let is_fsync: fn(&Call) -> bool = |call| call.name == "fsync";
        let is_syncfs: fn(&Call) -> bool = |call| call.name == "syncfs";
        let error = Fault::Error(Errno::IO.raw_os_error());
        tracer.arm(Some((0, error)), if of_folder { is_syncfs } else { is_fsync });
        file.write_all(b" second").unwrap();
        if of_folder {
            // By the background sync, of which nobody is told who closes in time: it is written again all the same.
            fs::write(volume.at("closed"), b"of the past").unwrap();
            wait_for("the sync fails", SOON, || tracer.hit().is_some());
            wait_for("the next one does not", SOON, || {
                let calls = tracer.calls();
                let syncs = calls.iter().filter(|call| call.name == "syncfs").count();
                let closed = volume.host("closed");
                let writes = calls
                    .iter()
                    .filter(|call| call.name == "pwrite64" && call.path == closed);
                syncs >= 2 && writes.count() == 2
            });
        }
        assert_eq!(
            file.sync_all().unwrap_err().raw_os_error(),
            Some(Errno::IO.raw_os_error())
        );
        file.sync_all().unwrap();
        assert_eq!(
            other.sync_all().unwrap_err().raw_os_error(),
            Some(Errno::IO.raw_os_error())
        );
        other.sync_all().unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        let calls = tracer.calls();
        let host = volume.host("file");
        let writes = calls
            .iter()
            .filter(|call| call.name == "pwrite64" && call.path == host)
            .count();
        assert_eq!(
            writes, 2,
            "the slot is written again after the failure: {calls:?}"
        );
        volume.kill();
        drop((file, other));
        Cmd::new("umount")
            .args(["-q", "-l"])
            .arg(volume.mountpoint())
            .run();
        volume.mount();
        assert_eq!(fs::read(&path).unwrap(), b"first second");
    }
}

/// A sync that fails takes what applications wrote, whoever asked for it.
#[test]
fn what_the_failed_sync_of_a_snapshot_took_is_written_again() {
    let mut volume = TestVolume::new();
    volume.configure(&format!("{ALONE}[volume]\nsync_interval = 2\n"));
    volume.mount();
    wait_for("the first snapshot", SOON, || {
        volume.status()["tree"]["changed"] == false
    });
    let path = volume.at("file");
    let mut file = File::create(&path).unwrap();
    let tracer = Tracer::attach(volume.pid().unwrap(), &[volume.folder()]);
    let is_syncfs: fn(&Call) -> bool = |call| call.name == "syncfs";
    tracer.arm(Some((0, Fault::Error(Errno::IO.raw_os_error()))), is_syncfs);
    file.write_all(b"kept").unwrap();
    // The close of any of its descriptors has it written, and committed a moment later.
    drop(file.try_clone().unwrap());
    wait_for("the sync fails", SOON, || tracer.hit().is_some());
    let host = volume.host("file");
    wait_for("it is written again", SOON, || {
        let calls = tracer.calls();
        let writes = calls
            .iter()
            .filter(|call| call.name == "pwrite64" && call.path == host);
        writes.count() == 2
    });
    let error = file.sync_all().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
    file.sync_all().unwrap();
}
