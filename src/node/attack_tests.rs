//! What a node does to peers that lie, stall, flood, or are no members: they lose the connection, nobody else notices.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, identify};

use super::admission::Admissions;
use super::behaviour::swarm;
use super::frame::{Frame, VERSION};
use super::gate::{Gate, GateConfig, GateEvent, Protocol};
use super::local::keypair;
use super::tests::{Log, Member, block, certificate, connected, eventually, fetch, group};
use super::wire::{read_frame, write_frame};
use super::{Node, NodeConfig};
use crate::base::{BlockId, GroupId, PlainHash, StoreId};
use crate::keys::{DeviceKey, Role};
use crate::store::{BlockStore, CommitSeq, MemoryStore, Put, StoreError, StoreStats};

const PATIENCE: Duration = Duration::from_secs(20);

/// What a bad store does when a block is read.
enum Fault {
    Lies,
    Stalls,
}

/// A store that does not give what it was given.
struct Bad(MemoryStore, Fault);

impl BlockStore for Bad {
    fn get(&self, id: &BlockId) -> Result<Option<Bytes>, StoreError> {
        let Some(block) = self.0.get(id)? else {
            return Ok(None);
        };
        Ok(Some(match self.1 {
            Fault::Lies => block.iter().map(|b| b ^ 1).collect(),
            Fault::Stalls => {
                std::thread::sleep(Duration::from_secs(6));
                block
            }
        }))
    }
    fn contains(&self, id: &BlockId) -> Result<bool, StoreError> {
        self.0.contains(id)
    }
    fn put(&self, batch: Vec<Put>) -> Result<CommitSeq, StoreError> {
        self.0.put(batch)
    }
    fn find_plain(&self, hash: &PlainHash) -> Result<Option<BlockId>, StoreError> {
        self.0.find_plain(hash)
    }
    fn sync(&self) -> Result<CommitSeq, StoreError> {
        self.0.sync()
    }
    fn remove(&self, ids: &[BlockId]) -> Result<(), StoreError> {
        self.0.remove(ids)
    }
    fn set_dirty(&self, ids: &[BlockId], dirty: bool) -> Result<(), StoreError> {
        self.0.set_dirty(ids, dirty)
    }
    fn list(&self, after: Option<BlockId>, limit: usize) -> Result<Vec<(BlockId, CommitSeq)>, StoreError> {
        self.0.list(after, limit)
    }
    fn id(&self) -> StoreId {
        self.0.id()
    }
    fn last_seq(&self) -> CommitSeq {
        self.0.last_seq()
    }
    fn may_be_lost(&self, store: &StoreId, seq: CommitSeq) -> bool {
        self.0.may_be_lost(store, seq)
    }
    fn stats(&self) -> Result<StoreStats, StoreError> {
        self.0.stats()
    }
}

/// Fetches a block that a bad and an honest member have, until the bad one was asked first.
fn fetch_past(n: u8, fault: Fault) -> (Node, Node, Duration) {
    let group = group(n);
    let mut bad = Member::new(&group, Role::Writer);
    bad.store = Arc::new(Bad(MemoryStore::new(StoreId([2; 16])), fault));
    let id = bad.keep(1);
    let node_bad = bad.start();
    let node = Member::new(&group, Role::Reader).knowing(&node_bad).start();
    assert!(eventually(|| connected(&node) == 1));
    let honest = Member::new(&group, Role::Writer).knowing(&node);
    honest.keep(1);
    let started = Instant::now();
    let node_honest = std::thread::scope(|scope| {
        // The bad one is the only one there is when the want begins.
        let wanted = scope.spawn(|| fetch(&node, id, None, PATIENCE));
        std::thread::sleep(Duration::from_millis(50));
        let mut waiting = honest;
        waiting.config.known_peers = node.addresses().unwrap();
        // Known from the start, so that the want does not end when the bad one has answered.
        node.dial("127.0.0.1:1").unwrap();
        let node_honest = waiting.start();
        assert_eq!(wanted.join().unwrap().unwrap(), block(1));
        node_honest
    });
    let _ = node_bad;
    (node, node_honest, started.elapsed())
}

#[test]
fn a_late_peer_is_not_waited_for() {
    let (_node, _honest, took) = fetch_past(30, Fault::Stalls);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_lying_peer_is_banned_and_named_in_the_log() {
    let group = group(31);
    let mut liar = Member::new(&group, Role::Writer);
    liar.store = Arc::new(Bad(MemoryStore::new(StoreId([2; 16])), Fault::Lies));
    let id = liar.keep(1);
    let node_liar = liar.start();
    let node = Member::new(&group, Role::Reader).knowing(&node_liar).start();
    assert!(eventually(|| connected(&node) == 1));
    let wrong = fetch(&node, id, None, Duration::from_secs(5))
        .unwrap_err()
        .to_string();
    assert!(wrong.contains("sent wrong bytes"), "{wrong}");
    Log::get().wait_for(&["WARN", &node_liar.device().short(), "wrong bytes"]);
    // An honest member helps.
    let mut honest = Member::new(&group, Role::Writer);
    honest.keep(1);
    honest.config.known_peers = node.addresses().unwrap();
    let _honest = honest.start();
    assert!(eventually(|| connected(&node) == 2));
    assert!(eventually(
        || fetch(&node, id, None, PATIENCE).is_ok_and(|b| b == block(1))
    ));
}

/// Connects to a node and speaks raw frames: what to send first, whether that is answered by HELLO, and the rest.
fn attack(
    device: DeviceKey,
    of: GroupId,
    address: &str,
    first: Frame,
    then: Vec<u8>,
) -> Result<Frame, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let address: Multiaddr = address.parse().unwrap();
    runtime.block_on(async move {
        let gate = GateConfig {
            group: of,
            open: Protocol::Block,
            accept: vec![Protocol::Block],
            patience: PATIENCE,
            strangers_max: 4,
        };
        let made = swarm(keypair(&device).unwrap(), PATIENCE, |_, _| {
            Ok(Gate::new(gate.clone(), Admissions::default()))
        });
        let mut swarm = made.unwrap();
        swarm.dial(address).unwrap();
        let mut stream = loop {
            match swarm.select_next_some().await {
                SwarmEvent::Behaviour(GateEvent::Stream(opened)) if !opened.inbound => break opened.stream,
                SwarmEvent::Behaviour(GateEvent::Refused { why, .. }) => return Err(why),
                SwarmEvent::ConnectionClosed { .. } => return Err("closed".into()),
                _ => {}
            }
        };
        let run = tokio::spawn(async move {
            // The node's own stream stays open and is never answered.
            let mut held = Vec::new();
            loop {
                held.push(swarm.select_next_some().await);
            }
        });
        write_frame(&mut stream, &first).await.unwrap();
        let _ = stream.flush().await;
        let answer = tokio::time::timeout(PATIENCE, read_frame(&mut stream))
            .await
            .unwrap();
        let answer = answer.map_err(|e| e.to_string())?;
        if !then.is_empty() {
            let _ = stream.write_all(&then).await;
            let _ = stream.flush().await;
            // Until the node closes the connection.
            let mut rest = Vec::new();
            let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
            assert!(ended.is_ok(), "the node keeps the connection");
        }
        run.abort();
        Ok(answer)
    })
}

pub(super) fn hello(certificate: Vec<u8>) -> Frame {
    Frame::Hello {
        version: VERSION,
        window: 1 << 20,
        requests: 8,
        certificate,
    }
}

pub(super) fn frames(frames: &[Frame]) -> Vec<u8> {
    frames.iter().flat_map(|f| f.encode().0).collect()
}

#[test]
fn strangers_and_thieves_of_certificates_get_nothing() {
    let key = group(32);
    let a = Member::new(&key, Role::Admin);
    let id = a.keep(1);
    let node = a.start();
    let address = node.addresses().unwrap()[0].clone();
    let of = key.id();
    let device = || DeviceKey::from_bytes(&[77; 32]);
    // Asks for a block before anything else.
    let answer = attack(device(), of, &address, Frame::Get { request: 1, id }, vec![]).unwrap();
    assert!(matches!(answer, Frame::Error { request: 0, .. }), "{answer:?}");
    Log::get().wait_for(&["WARN", "refused a device: showed no certificate"]);
    // Shows a certificate that it has seen somewhere.
    let answer = attack(device(), of, &address, hello(a.certificate.encode()), vec![]).unwrap();
    assert!(
        matches!(&answer, Frame::Error { text, .. } if text.contains("belongs to device")),
        "{answer:?}"
    );
    // Makes one itself.
    let forged = certificate(&group(33), &device().public(), Role::Admin, u64::MAX);
    let answer = attack(device(), of, &address, hello(forged.encode()), vec![]).unwrap();
    assert!(
        matches!(&answer, Frame::Error { text, .. } if text.contains("another group")),
        "{answer:?}"
    );
    // Does not even know the group.
    assert!(attack(device(), GroupId([9; 32]), &address, hello(vec![]), vec![]).is_err());
    assert_eq!(connected(&node), 0);
}

#[test]
fn giants_floods_and_nonsense_cost_the_connection_and_nothing_else() {
    let key = group(34);
    let a = Member::new(&key, Role::Admin);
    let id = a.keep(1);
    let node = a.start();
    let address = node.addresses().unwrap()[0].clone();
    let attackers: [(u8, Vec<u8>, &str); 4] = [
        (1, vec![0xff; 64], "a malformed frame"),
        (
            2,
            frames(&vec![
                Frame::Get {
                    request: 5,
                    id: BlockId([0; 32])
                };
                2000
            ]),
            "",
        ),
        (
            3,
            frames(
                &(1..200_000)
                    .map(|request| Frame::Get { request, id })
                    .collect::<Vec<_>>(),
            ),
            "asks for more than it was granted",
        ),
        (
            4,
            frames(&[Frame::Missing { request: 1 }]),
            "an answer on the asking side",
        ),
    ];
    for (seed, bytes, logged) in attackers {
        let device = DeviceKey::from_bytes(&[seed; 32]);
        let id = device.id();
        let member = certificate(&key, &device.public(), Role::Reader, u64::MAX);
        let answer = attack(device, key.id(), &address, hello(member.encode()), bytes).unwrap();
        assert!(matches!(answer, Frame::Hello { .. }), "{answer:?}");
        Log::get().wait_for(&["WARN", &id.short(), "closing the connection", logged]);
    }
    let reader = Member::new(&key, Role::Reader).knowing(&node);
    assert_eq!(fetch(&reader.start(), id, None, PATIENCE).unwrap(), block(1));
}

#[test]
fn a_silent_stranger_is_dropped_and_learns_no_names() {
    let key = group(35);
    let mut a = Member::new(&key, Role::Admin);
    a.config = NodeConfig {
        hello_timeout: Duration::from_millis(500),
        ..a.config
    };
    let node = a.start();
    let address: Multiaddr = node.addresses().unwrap()[0].parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let made = swarm(
            keypair(&DeviceKey::from_bytes(&[78; 32])).unwrap(),
            PATIENCE,
            |key, _| {
                Ok(identify::Behaviour::new(identify::Config::new(
                    "/x".into(),
                    key.public(),
                )))
            },
        );
        let mut swarm = made.unwrap();
        swarm.dial(address).unwrap();
        let dropped = async {
            loop {
                match swarm.select_next_some().await {
                    SwarmEvent::ConnectionClosed { .. } => return,
                    SwarmEvent::Behaviour(identify::Event::Received { info, .. }) => panic!("{info:?}"),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, dropped).await.unwrap();
    });
    Log::get().wait_for(&["WARN", "refused a device: showed no certificate in time"]);
}
