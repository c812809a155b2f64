//! What reading costs, in frames and bytes between real nodes on the loopback address.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::tests::{Member, block, connected, eventually, fetch, group};
use crate::base::{BlockId, RootId};
use crate::keys::Role;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_file_that_several_hold_is_read_from_all_of_them_at_hardly_more_than_one_frame_a_block() {
    let group = group(60);
    let first = Member::new(&group, Role::Writer);
    let ids: Vec<BlockId> = (0..200).map(|n| first.keep(n)).collect();
    let node_first = first.start();
    let second = Member::new(&group, Role::Writer).knowing(&node_first);
    for n in 0..200 {
        second.keep(n);
    }
    let node_second = second.start();
    let mut reader = Member::new(&group, Role::Reader).knowing(&node_first);
    reader.config.known_peers.extend(node_second.addresses().unwrap());
    let node = reader.start();
    assert!(eventually(|| connected(&node) == 2));
    // The streams are opened a moment later, and all may be over by then.
    std::thread::sleep(Duration::from_millis(300));
    let root = Some(RootId([1; 32]));
    std::thread::scope(|scope| {
        for part in 0..20 {
            let (node, ids) = (&node, &ids);
            scope.spawn(move || {
                for (n, id) in (0..).zip(ids).skip(part * 10).take(10) {
                    assert_eq!(fetch(node, *id, root, PATIENCE).unwrap(), block(n));
                }
            });
        }
    });
    let work = node.work();
    // One in twenty may be asked for twice, and four at once.
    assert!((200..=214).contains(&work.gets), "{work:?}");
    assert!(
        work.haves <= 20,
        "only before anybody is known to hold it: {work:?}"
    );
    assert!(work.cancels <= work.gets - 200, "{work:?}");
    assert!(work.wasted_bytes <= work.cancels * 100_200, "{work:?}");
    let peers = node.peers().unwrap();
    assert!(peers.iter().all(|peer| peer.bytes_in > 1_000_000), "{peers:?}");
}
