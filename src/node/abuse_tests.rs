//! Peers that open streams without end, never read, put wrong bytes, or ask faster than anybody can use: what it costs them, and what not.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, Stream};

use super::address_record::AddressRecord;
use super::attacks::{frames, hello};
use super::behaviour::swarm;
use super::find::Find;
use super::frame::Frame;
use super::gate::Protocol;
use super::local::keypair;
use super::tests::{Log, Member, TestPartner, block, certificate, connected, eventually, fetch, group};
use super::wire::{read_frame, write_frame};
use super::{Node, NodeConfig};
use crate::base::clock::{Clock, SystemClock};
use crate::base::{BlockId, PlainHash, StoreId};
use crate::keys::{DeviceKey, GroupKey, Role};
use crate::store::{BlockStore, CommitSeq, MemoryStore, Put, PutKind, StoreError, StoreStats};

const PATIENCE: Duration = Duration::from_secs(20);
const BIG: usize = 1 << 20;

/// A member of the group that speaks raw frames on any number of streams.
pub(super) struct Attacker {
    pub(super) runtime: tokio::runtime::Runtime,
    control: libp2p_stream::Control,
    protocol: libp2p::StreamProtocol,
    node: PeerId,
    device: DeviceKey,
    hello: Frame,
    closed: Arc<AtomicUsize>,
}

impl Attacker {
    pub(super) fn new(group: &GroupKey, seed: u8, role: Role, node: &Node) -> Self {
        Self::try_new(group, seed, role, node).unwrap()
    }

    /// None when it is not let in.
    pub(super) fn try_new(group: &GroupKey, seed: u8, role: Role, node: &Node) -> Option<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let device = DeviceKey::from_bytes(&[seed; 32]);
        let address: Multiaddr = node.addresses().unwrap()[0].parse().unwrap();
        let certificate = certificate(group, &device.public(), role, u64::MAX);
        let closed = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&closed);
        let key = keypair(&device).unwrap();
        let protocol = Protocol::Block.name(&group.id());
        let accepted = protocol.clone();
        let (control, node) = runtime.block_on(async {
            let mut swarm = swarm(key, PATIENCE, |_, _| Ok(libp2p_stream::Behaviour::new())).unwrap();
            let mut control = swarm.behaviour().new_control();
            let mut incoming = control.accept(accepted).unwrap();
            // The node's own stream is held and never answered.
            tokio::spawn(async move {
                let mut held = Vec::new();
                while let Some(stream) = incoming.next().await {
                    held.push(stream);
                }
            });
            swarm.dial(address).unwrap();
            let node = loop {
                match swarm.select_next_some().await {
                    SwarmEvent::ConnectionEstablished { peer_id, .. } => break peer_id,
                    SwarmEvent::OutgoingConnectionError { .. } => return None,
                    _ => {}
                }
            };
            tokio::spawn(async move {
                loop {
                    if let SwarmEvent::ConnectionClosed { .. } = swarm.select_next_some().await {
                        counted.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
            Some((control, node))
        })?;
        Some(Self {
            runtime,
            control,
            protocol,
            node,
            device,
            hello: hello(certificate.encode()),
            closed,
        })
    }

    /// Opens a stream; shows the certificate on it and takes the node's.
    pub(super) fn greet(&mut self) -> Stream {
        self.runtime.block_on(async {
            let mut stream = self
                .control
                .open_stream(self.node, self.protocol.clone())
                .await
                .unwrap();
            write_frame(&mut stream, &self.hello).await.unwrap();
            stream.flush().await.unwrap();
            let answer = read_frame(&mut stream).await.unwrap();
            assert!(matches!(answer, Frame::Hello { .. }), "{answer:?}");
            stream
        })
    }

    /// Opens a stream and shows the certificate on it, if the connection is still there.
    pub(super) fn stream(&mut self) -> Option<Stream> {
        self.runtime.block_on(async {
            let opened = self.control.open_stream(self.node, self.protocol.clone()).await;
            let mut stream = opened.ok()?;
            write_frame(&mut stream, &self.hello).await.ok()?;
            stream.flush().await.ok()?;
            Some(stream)
        })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst) > 0
    }
}

#[test]
fn thousands_of_streams_cost_the_connection_and_a_while() {
    let key = group(61);
    let a = Member::new(&key, Role::Admin);
    let id = a.keep(1);
    let node = a.start();
    let mut attacker = Attacker::new(&key, 1, Role::Reader, &node);
    let _stream = attacker.greet();
    let mut held = Vec::new();
    let end = Instant::now() + PATIENCE;
    while !attacker.is_closed() {
        assert!(Instant::now() < end, "{} streams", held.len());
        let (control, node, protocol) = (&mut attacker.control, attacker.node, attacker.protocol.clone());
        let more = attacker.runtime.block_on(control.open_stream(node, protocol));
        held.extend(more.ok());
    }
    assert!(held.len() < 5000, "{}", held.len());
    let device = attacker.device.id();
    Log::get().wait_for(&[
        "WARN",
        &device.short(),
        "opens more streams than it may",
        "shut out",
    ]);
    // It comes back at once.
    let mut again = Attacker::new(&key, 1, Role::Reader, &node);
    let answer = again.runtime.block_on(async {
        let mut stream = again
            .control
            .open_stream(again.node, again.protocol.clone())
            .await
            .unwrap();
        write_frame(&mut stream, &again.hello).await.unwrap();
        stream.flush().await.unwrap();
        read_frame(&mut stream).await.unwrap()
    });
    assert!(
        matches!(&answer, Frame::Error { text, .. } if text.contains("shut out for")),
        "{answer:?}"
    );
    let reader = Member::new(&key, Role::Reader).knowing(&node);
    assert_eq!(fetch(&reader.start(), id, None, PATIENCE).unwrap(), block(1));
}

/// A store that knows how many bytes of what it gave are in memory.
struct Gauge {
    inner: MemoryStore,
    live: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

struct Counted(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0.len(), Ordering::SeqCst);
    }
}

impl BlockStore for Gauge {
    fn get(&self, id: &BlockId) -> Result<Option<Bytes>, StoreError> {
        let Some(block) = self.inner.get(id)? else {
            return Ok(None);
        };
        let live = self.live.fetch_add(block.len(), Ordering::SeqCst) + block.len();
        self.most.fetch_max(live, Ordering::SeqCst);
        Ok(Some(Bytes::from_owner(Counted(
            block.to_vec(),
            Arc::clone(&self.live),
        ))))
    }
    fn contains(&self, id: &BlockId) -> Result<bool, StoreError> {
        self.inner.contains(id)
    }
    fn put(&self, batch: Vec<Put>) -> Result<CommitSeq, StoreError> {
        self.inner.put(batch)
    }
    fn find_plain(&self, hash: &PlainHash) -> Result<Option<BlockId>, StoreError> {
        self.inner.find_plain(hash)
    }
    fn sync(&self) -> Result<CommitSeq, StoreError> {
        self.inner.sync()
    }
    fn remove(&self, ids: &[BlockId]) -> Result<(), StoreError> {
        self.inner.remove(ids)
    }
    fn set_dirty(&self, ids: &[BlockId], dirty: bool) -> Result<(), StoreError> {
        self.inner.set_dirty(ids, dirty)
    }
    fn list(&self, after: Option<BlockId>, limit: usize) -> Result<Vec<(BlockId, CommitSeq)>, StoreError> {
        self.inner.list(after, limit)
    }
    fn id(&self) -> StoreId {
        self.inner.id()
    }
    fn last_seq(&self) -> CommitSeq {
        self.inner.last_seq()
    }
    fn may_be_lost(&self, store: &StoreId, seq: CommitSeq) -> bool {
        self.inner.may_be_lost(store, seq)
    }
    fn stats(&self) -> Result<StoreStats, StoreError> {
        self.inner.stats()
    }
}

#[test]
fn who_never_reads_loses_the_connection_and_holds_little_memory() {
    const ATTACKERS: usize = 4;
    let key = group(62);
    let (live, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut a = Member::new(&key, Role::Admin);
    a.config = NodeConfig {
        stall_timeout: Duration::from_secs(1),
        ..a.config
    };
    a.store = Arc::new(Gauge {
        inner: MemoryStore::new(StoreId([1; 16])),
        live: Arc::clone(&live),
        most: Arc::clone(&most),
    });
    let ids: Vec<BlockId> = (0..100u8)
        .map(|n| {
            let bytes = Bytes::from(vec![n; BIG]);
            let id = BlockId::of(&bytes);
            let put = Put {
                id,
                bytes,
                kind: PutKind::Dirty,
                plain: None,
            };
            a.store.put(vec![put]).unwrap();
            id
        })
        .collect();
    let node = a.start();
    let mut attackers: Vec<_> = (1..=ATTACKERS as u8)
        .map(|seed| {
            let mut attacker = Attacker::new(&key, seed, Role::Reader, &node);
            // All that it may be sent, and more.
            if let Frame::Hello { window, .. } = &mut attacker.hello {
                *window = u32::MAX;
            }
            let mut stream = attacker.greet();
            let gets: Vec<Frame> = (1..)
                .zip(&ids)
                .map(|(request, id)| Frame::Get { request, id: *id })
                .collect();
            attacker.runtime.block_on(async {
                stream.write_all(&frames(&gets)).await.unwrap();
                stream.flush().await.unwrap();
            });
            (attacker, stream)
        })
        .collect();
    assert!(eventually(|| attackers
        .iter()
        .all(|(attacker, _)| attacker.is_closed())));
    let most = most.load(Ordering::SeqCst);
    // Eight blocks each are in memory, and one that is being written; 400 were asked for.
    assert!(most <= ATTACKERS * 10 * BIG, "{} MiB", most >> 20);
    assert!(eventually(|| live.load(Ordering::SeqCst) == 0));
    // Others are served meanwhile and afterwards.
    let reader = Member::new(&key, Role::Reader).knowing(&node);
    let got = fetch(&reader.start(), ids[7], None, PATIENCE).unwrap();
    assert_eq!(got, vec![7; BIG]);
    attackers.clear();
}

#[test]
fn who_puts_other_bytes_than_it_says_is_shut_out() {
    let key = group(63);
    let a = Member::new(&key, Role::Admin);
    let node = a.start();
    let (tell, _told) = std::sync::mpsc::channel();
    node.set_partner(Arc::new(TestPartner(Arc::clone(&a.store), tell)));
    let mut attacker = Attacker::new(&key, 1, Role::Writer, &node);
    let mut stream = attacker.greet();
    let put = Frame::Put {
        request: 1,
        id: BlockId([5; 32]),
        block: Bytes::from_static(b"something else"),
    };
    attacker.runtime.block_on(async {
        write_frame(&mut stream, &put).await.unwrap();
        stream.flush().await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    let device = attacker.device.id();
    Log::get().wait_for(&[
        "WARN",
        &device.short(),
        "not the block they are put as",
        "shut out",
    ]);
    assert!(!a.store.contains(&BlockId([5; 32])).unwrap());
}

#[test]
fn limits_hold_between_nodes_in_both_directions() {
    for (n, upload, download) in [(64, Some(2_000_000), None), (65, None, Some(2_000_000))] {
        let key = group(n);
        let mut a = Member::new(&key, Role::Writer);
        (a.config.upload, a.config.limit_lan) = (upload, true);
        let ids: Vec<BlockId> = (0..100).map(|n| a.keep(n)).collect();
        let node_a = a.start();
        let mut b = Member::new(&key, Role::Reader).knowing(&node_a);
        (b.config.download, b.config.limit_lan) = (download, true);
        let node = b.start();
        assert!(eventually(|| connected(&node) == 1));
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for id in &ids {
                let node = &node;
                scope.spawn(move || fetch(node, *id, None, PATIENCE).unwrap());
            }
        });
        // Ten megabytes at two a second; what may be in flight or saved up at first are two blocks of the longest kind, and half a second.
        let least = Duration::from_millis(3000);
        assert!(
            begun.elapsed() >= least,
            "{:?} {upload:?} {download:?}",
            begun.elapsed()
        );
    }
}

#[test]
fn who_has_what_is_searched_for_connects_to_who_wants_it_and_searches_are_few() {
    let key = group(66);
    let holder = Member::new(&key, Role::Host);
    let id = holder.keep(1);
    let node_holder = holder.start();
    let wants = Member::new(&key, Role::Reader);
    let node_wants = wants.start();
    let record = AddressRecord::issue(
        &wants.key(),
        wants.certificate.clone(),
        node_wants.addresses().unwrap(),
        SystemClock.now(),
    );
    let find = |search: u8, record: &AddressRecord, id: BlockId| {
        Frame::Find(Box::new(Find {
            search: [search; 16],
            hops: 1,
            record: record.encode(),
            ids: vec![id],
        }))
    };
    // A third member passes the search on; first some that lead nowhere.
    let mut passes = Attacker::new(&key, 1, Role::Reader, &node_holder);
    let mut stream = passes.greet();
    let mut forged = record.clone();
    forged.addresses = vec!["/ip4/127.0.0.1/tcp/1".into()];
    let searches = [
        find(1, &forged, id),
        find(2, &record, BlockId([9; 32])),
        find(3, &record, id),
    ];
    passes.runtime.block_on(async {
        stream.write_all(&frames(&searches)).await.unwrap();
        stream.flush().await.unwrap();
    });
    assert!(eventually(|| connected(&node_wants) == 1));
    assert_eq!(node_wants.peers().unwrap()[0].device, node_holder.device());
    assert_eq!(fetch(&node_wants, id, None, PATIENCE).unwrap(), block(1));
    // A flood of them is dropped, and costs nobody anything.
    let flood: Vec<Frame> = (10..200).map(|n| find(n, &record, BlockId([n; 32]))).collect();
    passes.runtime.block_on(async {
        stream.write_all(&frames(&flood)).await.unwrap();
        stream.flush().await.unwrap();
    });
    assert_eq!(fetch(&node_wants, id, None, PATIENCE).unwrap(), block(1));
    assert!(!passes.is_closed());
}
