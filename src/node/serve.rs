//! The task of a block stream that a peer opened: checks its certificate, then answers it, with `server` as its brain.
//!
//! Invariant: the store is only touched on blocking threads, a bounded number of them for all peers together. What others want kept goes to
//! the [`Partner`](super::partner::Partner), where there is one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::AsyncReadExt;
use futures::io::BufReader;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::base::BlockId;
use crate::base::limits::BLOCK_MAX;
use crate::keys::certificate::Membership;
use crate::store::CheckedBlock;

use super::admission::Admission;
use super::exchange::ToExchange;
use super::find;
use super::frame::Frame;
use super::gate::Opened;
use super::handshake::{self, Peer};
use super::link::{READ_BUFFER, log_refusal};
use super::local::{Command, Local, device_of, peer_of};
use super::news::{self, Pace, Watch};
use super::outbox::{Ended, Outbox};
use super::partner::Answer;
use super::server::{Loaded, PUT_WINDOW, REQUESTS_MAX, Server, Work};
use super::slots::Share;
use super::throttle::Bucket;
use super::wire::read_frame;

/// Finished store operations that wait for the stream's task; never more than requests are open.
const FINISHED: usize = 4 * REQUESTS_MAX as usize;

/// Requests beyond what was granted that a peer may send at once, and per second on average: a burst of small blocks may be so many.
const BUSY_BURST: f64 = 1024.0;
const BUSY_RATE: f64 = 128.0;

/// Frames of one stream that are taken per second, and at once: beyond that, the peer waits. Blocks of 256 KiB asked for at this rate are
/// more than any network carries.
const FRAMES_RATE: u64 = 10_000;
const FRAMES_BURST: u64 = 10_000;

/// How long an answer to a message may take: the disk, not the network.
const HEAR: Duration = Duration::from_secs(55);

/// A store operation that ended.
enum Finished {
    Load(Vec<(u32, Loaded)>),
    Look(u32, Vec<bool>),
    Store(u32, Result<(), Unkept>),
    Hear(u32, Result<Vec<u8>, String>),
    News(Result<Option<Frame>, String>),
}

/// Why a block that a peer placed here was not kept.
enum Unkept {
    /// The bytes are not what they are said to be.
    Wrong,
    Refused(String),
}

/// Runs the stream to its end.
pub(super) async fn run(opened: Box<Opened>, local: Arc<Local>) {
    let Opened {
        peer,
        connection,
        mut stream,
        admission,
        remote,
        slot,
        ..
    } = *opened;
    let limited = local.limits.apply_to(&remote);
    let window = local.limits.window(PUT_WINDOW, limited, BLOCK_MAX);
    let member = match handshake::accept(&mut stream, &local, &peer, window).await {
        Ok(member) => member,
        Err(refusal) => {
            log_refusal(&refusal, &peer, &remote);
            let _ = local.actor.send(Command::Close(connection)).await;
            return;
        }
    };
    admission.trust();
    let trusted = Command::Trusted {
        peer,
        connection,
        member: Box::new(member.member.clone()),
    };
    if local.actor.send(trusted).await.is_err() {
        return;
    }
    let device = member.device;
    let server = Server::new(member.member.role, member.window, window);
    let outbox = Outbox::new(limited, local.stall_timeout);
    let ended = converse(stream, member, server, &outbox, &local, &admission).await;
    ended.note(&local, device, &remote);
    drop(slot);
    let _ = local.actor.send(Command::Close(connection)).await;
}

async fn converse(
    stream: libp2p::Stream,
    peer: Peer,
    server: Server,
    outbox: &Outbox,
    local: &Arc<Local>,
    admission: &Admission,
) -> Ended {
    let (read, mut write) = stream.split();
    let mut read = BufReader::with_capacity(READ_BUFFER, read);
    let server = Mutex::new(server);
    let (finish, mut finished) = mpsc::channel(FINISHED);
    let worker = Worker {
        local: Arc::clone(local),
        share: local.slots.share(peer.device),
        shown: Arc::new(peer.certificate.membership().clone()),
        since: Instant::now(),
        finish,
    };
    let ends = Watch::new(local, &peer).ended();
    let mut pace = Pace::of_news(Instant::now());
    let mut taken = Bucket::with_burst(FRAMES_RATE, FRAMES_BURST, Instant::now());
    let mut searches = Pace::new(find::BURST, find::RATE, Instant::now());
    let mut busy = Pace::new(BUSY_BURST, BUSY_RATE, Instant::now());
    let reader = async {
        loop {
            let frame = match read_frame(&mut read).await {
                Ok(frame) => frame,
                Err(e) if e.is_violation() => return Ended::Violation(e.to_string()),
                Err(_) => return Ended::Lost,
            };
            let wait = taken.take(1, Instant::now());
            if wait > Duration::from_millis(1) {
                tokio::time::sleep(wait).await;
            }
            if let Frame::Put { block, .. } = &frame {
                admission.count(block.len() as u64, 0);
            }
            let work = server.lock().receive(frame);
            match work {
                Ok(work) => {
                    let told = work
                        .iter()
                        .any(|work| matches!(work, Work::News(_) | Work::Provided(_)));
                    if told && !pace.allows(Instant::now()) {
                        return Ended::Violation(
                            "it tells of the group faster than anything can change".into(),
                        );
                    }
                    let refused = work
                        .iter()
                        .any(|work| matches!(work, Work::Send(Frame::Busy { .. })));
                    if refused && !busy.allows(Instant::now()) {
                        return Ended::Violation(
                            "it asks for more than it was granted, again and again".into(),
                        );
                    }
                    let search = work
                        .iter()
                        .any(|work| matches!(work, Work::Find(_) | Work::Found(..)));
                    if search && !searches.allows(Instant::now()) {
                        tracing::debug!("a search is dropped: the peer sends too many");
                        continue;
                    }
                    worker.carry_out(work, outbox, admission);
                    if outbox.is_full() {
                        return Ended::Violation("it asks and does not read the answers".into());
                    }
                }
                Err(violation) => return Ended::Violation(violation.to_string()),
            }
        }
    };
    let finisher = async {
        while let Some(done) = finished.recv().await {
            let work = match done {
                Finished::Load(loads) => {
                    let mut server = server.lock();
                    let loaded = |(request, loaded)| server.loaded(request, loaded);
                    loads.into_iter().flat_map(loaded).collect()
                }
                Finished::Look(request, held) => server.lock().looked(request, held),
                Finished::Store(_, Err(Unkept::Wrong)) => {
                    return Ended::Violation("it puts bytes that are not the block they are put as".into());
                }
                Finished::Store(request, Err(Unkept::Refused(why))) => {
                    server.lock().stored(request, Err(why))
                }
                Finished::Store(request, Ok(())) => server.lock().stored(request, Ok(())),
                Finished::Hear(request, result) => server.lock().said(request, result),
                Finished::News(Ok(answer)) => answer.into_iter().map(Work::Send).collect(),
                Finished::News(Err(why)) => return Ended::Violation(why),
            };
            worker.carry_out(work, outbox, admission);
        }
        Ended::Lost
    };
    let written = |frame: &Frame| {
        if matches!(frame, Frame::Data { .. }) {
            let work = server.lock().written();
            worker.carry_out(work, outbox, admission);
        }
    };
    tokio::select! {
        ended = reader => ended,
        ended = finisher => ended,
        why = ends => Ended::Dismissed(why),
        ended = outbox.grant(&local.limits) => ended,
        ended = outbox.write_to(&mut write, admission, &local.limits, written) => ended,
    }
}

/// Starts store operations.
struct Worker {
    local: Arc<Local>,
    /// The peer's part of the store's time.
    share: Share,
    /// What the peer's certificate states.
    shown: Arc<Membership>,
    /// When it was accepted.
    since: Instant,
    finish: mpsc::Sender<Finished>,
}

impl Worker {
    fn carry_out(&self, work: Vec<Work>, outbox: &Outbox, admission: &Admission) {
        for one in work {
            match one {
                Work::Send(frame) => outbox.put([frame], admission),
                Work::Load(loads) => self.start(false, move |local| {
                    let loaded = loads.into_iter().map(|(request, id)| (request, load(local, &id)));
                    Finished::Load(loaded.collect())
                }),
                Work::Look(request, ids) => self.start(false, move |local| {
                    let held = ids.iter().map(|id| local.store.contains(id).unwrap_or(false));
                    Finished::Look(request, held.collect())
                }),
                Work::Store(request, id, block) => {
                    let from = self.shown.clone();
                    self.start(true, move |local| {
                        Finished::Store(request, keep(local, &from, id, block))
                    })
                }
                Work::Hear(request, body) => self.hear(request, body),
                Work::Find(find) => {
                    let from = self.shown.device;
                    self.start(false, move |local| {
                        find::take(local, from, *find);
                        Finished::News(Ok(None))
                    });
                }
                Work::Found(search, ids) => {
                    if self.local.searches.lock().is_own(&search) {
                        let device = device_of(&self.shown.device);
                        let _ = self.local.exchange.try_send(ToExchange::Told(device, ids));
                    }
                }
                Work::Provided(roots) => {
                    if let Some(peer) = peer_of(&self.shown.device) {
                        // A busy actor: they are told again.
                        let _ = self.local.actor.try_send(Command::Provided(peer, roots));
                    }
                }
                Work::News(frame) => {
                    let (shown, since) = (Arc::clone(&self.shown), self.since);
                    self.start(false, move |local| {
                        Finished::News(news::answer(local, &shown, since, frame))
                    })
                }
                Work::Spent {
                    invitation,
                    expires,
                    device,
                } => {
                    if let Some(desk) = self.local.desk.clone() {
                        tokio::task::spawn_blocking(move || desk.note_spent(invitation, expires, device));
                    }
                }
            }
        }
    }

    /// Hands a message on. Its answer may take its time, and holds no thread.
    fn hear(&self, request: u32, body: Bytes) {
        let (local, shown, finish) = (
            Arc::clone(&self.local),
            Arc::clone(&self.shown),
            self.finish.clone(),
        );
        tokio::spawn(async move {
            let (tell, told) = tokio::sync::oneshot::channel();
            if let Some(partner) = local.partner.get() {
                let answer: Answer = Box::new(move |body| drop(tell.send(body)));
                partner.hear(&shown, body, answer);
            } else {
                drop(tell);
            }
            let answer = tokio::time::timeout(HEAR, told).await;
            let body = answer
                .ok()
                .and_then(Result::ok)
                .ok_or_else(|| "no answer".to_owned());
            let _ = finish.send(Finished::Hear(request, body)).await;
        });
    }

    /// Runs an operation when it is the peer's turn; `bulk`: one that places a block here.
    fn start(&self, bulk: bool, operation: impl FnOnce(&Local) -> Finished + Send + 'static) {
        let (local, share, finish) = (Arc::clone(&self.local), self.share.clone(), self.finish.clone());
        tokio::spawn(async move {
            let Some(slot) = local.slots.enter(&share, bulk).await else {
                return;
            };
            let done = tokio::task::spawn_blocking(move || {
                let done = operation(&local);
                drop(slot);
                done
            });
            if let Ok(done) = done.await {
                let _ = finish.send(done).await;
            }
        });
    }
}

fn load(local: &Local, id: &BlockId) -> Loaded {
    match local.store.get(id) {
        Ok(Some(block)) => Loaded::Block(block),
        Ok(None) => Loaded::Missing,
        Err(e) => {
            tracing::warn!("a block that a peer asked for could not be read: {e}");
            match e {
                crate::store::StoreError::Damaged(_) => Loaded::Missing,
                _ => Loaded::Failed("the store failed".into()),
            }
        }
    }
}

/// Has a block stored that a peer placed here.
fn keep(local: &Local, from: &Membership, id: BlockId, block: Bytes) -> Result<(), Unkept> {
    let block = CheckedBlock::new(id, block).ok_or(Unkept::Wrong)?;
    match local.partner.get() {
        Some(partner) => partner.keep(from, block).map_err(Unkept::Refused),
        None => Err(Unkept::Refused("this device keeps nothing for others".into())),
    }
}
