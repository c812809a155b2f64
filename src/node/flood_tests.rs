//! What members that flood take from the others: measured, on a quiet computer.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::AsyncWriteExt;

use super::Node;
use super::abuse::Attacker;
use super::attacks::frames;
use super::frame::Frame;
use super::tests::{Member, connected, eventually, fetch, group};
use crate::base::BlockId;
use crate::keys::{GroupKey, Role};

const PATIENCE: Duration = Duration::from_secs(20);
const MEASURED: Duration = Duration::from_secs(5);

/// Blocks that `readers` threads fetch in a while, each block by a node that has no store to keep it in.
fn fetched(node: &Node, ids: &[BlockId]) -> usize {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let reader = |n: usize| {
            let mut done = 0;
            while begun.elapsed() < MEASURED {
                fetch(node, ids[(n + done * 8) % ids.len()], None, PATIENCE).unwrap();
                done += 1;
            }
            done
        };
        let readers: Vec<_> = (0..8).map(|n| scope.spawn(move || reader(n))).collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    })
}

/// Connects, abuses the connection in one way until it is closed, and comes again, until told to stop.
fn attack(key: &GroupKey, node: &Node, seed: u8, ids: &[BlockId], stop: &AtomicBool) -> usize {
    let mut times = 0;
    while !stop.load(Ordering::SeqCst) {
        let Some(mut attacker) = Attacker::try_new(key, seed, Role::Reader, node) else {
            // What it does to itself is no business of ours: it has this computer too.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        let gets: Vec<Frame> = (1..4000)
            .map(|request| Frame::Get {
                request,
                id: ids[request as usize % ids.len()],
            })
            .collect();
        let bytes = match seed % 3 {
            // More than was granted, and never read.
            0 => frames(&gets),
            // Longer than any frame.
            1 => vec![0xff; 1 << 20],
            _ => Vec::new(),
        };
        let mut held = Vec::new();
        while !attacker.is_closed() && !stop.load(Ordering::SeqCst) {
            let Some(mut stream) = attacker.stream() else {
                break;
            };
            attacker.runtime.block_on(async {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.flush().await;
            });
            held.push(stream);
        }
        times += 1;
    }
    times
}

#[test]
#[ignore = "a measurement, and a figure of a busy computer says nothing: only with --long"]
fn members_that_flood_come_in_a_few_times_a_second_and_leave_the_others_their_throughput() {
    let key = group(71);
    let a = Member::new(&key, Role::Admin);
    let ids: Vec<BlockId> = (0..64).map(|n| a.keep(n)).collect();
    let node = a.start();
    let reader = Member::new(&key, Role::Reader).knowing(&node).start();
    assert!(eventually(|| connected(&reader) == 1));
    fetched(&reader, &ids);
    let (begun, mut connections) = (Instant::now(), 0);
    for round in 0..3 {
        let alone = fetched(&reader, &ids);
        let stop = AtomicBool::new(false);
        let (beside, times) = std::thread::scope(|scope| {
            let (key, node, ids, stop) = (&key, &node, &ids[..], &stop);
            let attackers: Vec<_> = (0..3)
                .map(|n| scope.spawn(move || attack(key, node, 100 + round * 3 + n, ids, stop)))
                .collect();
            let beside = fetched(&reader, ids);
            stop.store(true, Ordering::SeqCst);
            let times: Vec<usize> = attackers.into_iter().map(|a| a.join().unwrap()).collect();
            (beside, times)
        });
        println!(
            "alone {alone} blocks, beside floods {beside}; connections made by each attacker: {times:?}"
        );
        connections += times.iter().sum::<usize>();
    }
    // 64 at once and four a second: the throughput is for whoever reads it, on a quiet computer.
    let most = 64 + 4 * (begun.elapsed().as_secs() as usize + 1);
    assert!(connections <= most, "{connections} connections, at most {most}");
}
