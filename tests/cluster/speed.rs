//! Cold sequential reading through the mount beside a bare libp2p stream between the same two namespaces, in the same run.
//!
//! Prints figures and judges only the bytes: a noisy day is no fault. `tests/run --long -E 'test(beside_a_bare_stream)' --no-capture`.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use dfs::node::raw;

use super::{carry, first, join, second, ticket};
use crate::harness::command::Cmd;
use crate::harness::namespaces::{Cable, End};
use crate::harness::{SOON, noise, wait_for};

const LEN: usize = 256 << 20;
const PIECE: usize = 1 << 20;
const ROUNDS: u64 = 3;
const PORT: u16 = 9470;

/// One end of the bare stream: this test binary again, in the namespace of that end.
#[test]
#[ignore = "an end of the stream that the measurement starts; does nothing by itself"]
fn bare_end() {
    match std::env::var("DFS_TEST_BARE_END").as_deref() {
        Ok("send") => {
            let (listening, _kept) = channel();
            raw::send(SocketAddr::from(([10, 77, 0, 1], PORT)), LEN as u64, &listening).unwrap();
        }
        Ok("receive") => {
            let took = raw::receive(&format!("/ip4/10.77.0.1/tcp/{PORT}"), LEN as u64).unwrap();
            println!("took {}", took.as_micros());
        }
        _ => {}
    }
}

fn bare_end_at(cable: &Cable, end: End, role: &str) -> Cmd {
    let own: PathBuf = std::env::current_exe().unwrap();
    Cmd::within_namespace(own, &cable.path(end))
        .args(["--exact", "cluster::speed::bare_end", "--ignored", "--nocapture"])
        .env("DFS_TEST_BARE_END", role)
}

fn bare(cable: &Cable) -> Duration {
    let _sender = bare_end_at(cable, End::A, "send").start();
    let mut took = None;
    wait_for("the bare stream", SOON, || {
        let said = bare_end_at(cable, End::B, "receive").run().out;
        took = said
            .split_once("took ")
            .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
        took.is_some()
    });
    Duration::from_micros(took.unwrap())
}

/// Goes through page cache, because some virtual machines give free memory back to their host, and the next use of a page then costs
/// more than anything that is measured here.
fn prime(place: &Path) {
    let path = place.join("prime");
    let mut file = fs::File::create(&path).unwrap();
    let piece = vec![0; PIECE];
    for _ in 0..4 * LEN / PIECE {
        file.write_all(&piece).unwrap();
    }
    // Cut before anything of it is written back.
    file.set_len(0).unwrap();
    fs::remove_file(path).unwrap();
    // What was written to make the test is not to be written while it is measured.
    rustix::fs::sync();
}

/// Reads the file piece by piece, as a program would that passes it on, and compares; the comparison counts too.
fn read(path: &Path, expected: &[u8]) -> Duration {
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    let start = Instant::now();
    let mut file = fs::File::open(path).unwrap();
    loop {
        let len = file.read(&mut piece).unwrap();
        if len == 0 {
            break;
        }
        assert!(piece[..len] == expected[at..at + len], "wrong bytes at {at}");
        at += len;
    }
    assert_eq!(at, expected.len());
    start.elapsed()
}

#[test]
#[ignore = "a measurement of some seconds that judges no speed: only with --long"]
fn cold_reading_beside_a_bare_stream() {
    let (cable, a) = first();
    let names: Vec<String> = (0..ROUNDS).map(|round| format!("cold-{round}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (round, name) in (0..).zip(&names) {
        fs::write(a.at(name), noise(90 + round, LEN)).unwrap();
    }
    let mut b = second(&cable);
    join(&mut b, &ticket(&a, ["--role", "reader"]));
    carry(&a, &b, &names);
    let speed = |took: Duration| LEN as f64 / 1e6 / took.as_secs_f64();
    for (round, name) in (0..).zip(&names) {
        let expected = noise(90 + round, LEN);
        prime(a.place());
        let stream = speed(bare(&cable));
        prime(a.place());
        let mount = speed(read(&b.at(name), &expected));
        println!(
            "bare stream {stream:.0} MB/s, cold read {mount:.0} MB/s, ratio {:.2}",
            mount / stream
        );
    }
}
