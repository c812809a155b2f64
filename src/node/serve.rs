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

use crate::base::{BlockId, DeviceId};
use crate::keys::certificate::Membership;
use crate::store::CheckedBlock;

use super::admission::Admission;
use super::frame::Frame;
use super::gate::Opened;
use super::handshake::{self, Peer};
use super::link::{Ended, Outbox, READ_BUFFER, log_refusal};
use super::local::{Command, Local, device_of};
use super::news::{self, Pace, Watch};
use super::partner::Answer;
use super::server::{Loaded, REQUESTS_MAX, Server, Work};
use super::wire::read_frame;

/// Finished store operations that wait for the stream's task; never more than requests are open.
const FINISHED: usize = 4 * REQUESTS_MAX as usize;

/// How long an answer to a message may take: the disk, not the network.
const HEAR: Duration = Duration::from_secs(55);

/// A store operation that ended.
enum Finished {
    Load(Vec<(u32, Loaded)>),
    Look(u32, Vec<bool>),
    Store(u32, Result<(), String>),
    Hear(u32, Result<Vec<u8>, String>),
    News(Result<Option<Frame>, String>),
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
    let member = match handshake::accept(&mut stream, &local, &peer).await {
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
    if let Ended::Violation(why) = converse(stream, member, &local, &admission).await {
        tracing::warn!(device = %device.short(), address = %remote, "closing the connection: {why}");
    }
    drop(slot);
    let _ = local.actor.send(Command::Close(connection)).await;
}

async fn converse(stream: libp2p::Stream, peer: Peer, local: &Arc<Local>, admission: &Admission) -> Ended {
    let (read, mut write) = stream.split();
    let mut read = BufReader::with_capacity(READ_BUFFER, read);
    let server = Mutex::new(Server::new(peer.member.role, peer.window));
    let outbox = Outbox::default();
    let (finish, mut finished) = mpsc::channel(FINISHED);
    let worker = Worker {
        local: Arc::clone(local),
        shown: Arc::new(peer.certificate.membership().clone()),
        since: Instant::now(),
        finish,
    };
    let ends = Watch::new(local, &peer).ended();
    let mut pace = Pace::new(Instant::now());
    let reader = async {
        loop {
            let frame = match read_frame(&mut read).await {
                Ok(frame) => frame,
                Err(e) if e.is_violation() => return Ended::Violation(e.to_string()),
                Err(_) => return Ended::Lost,
            };
            if let Frame::Put { block, .. } = &frame {
                admission.count(block.len() as u64, 0);
            }
            let work = server.lock().receive(frame);
            match work {
                Ok(work) => {
                    let told = work.iter().any(|work| matches!(work, Work::News(_)));
                    if told && !pace.allows(Instant::now()) {
                        return Ended::Violation(
                            "it tells of the group faster than anything can change".into(),
                        );
                    }
                    worker.carry_out(work, &outbox);
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
                Finished::Store(request, result) => server.lock().stored(request, result),
                Finished::Hear(request, result) => server.lock().said(request, result),
                Finished::News(Ok(answer)) => answer.into_iter().map(Work::Send).collect(),
                Finished::News(Err(why)) => return Ended::Violation(why),
            };
            worker.carry_out(work, &outbox);
        }
        Ended::Lost
    };
    let written = |frame: &Frame| {
        if matches!(frame, Frame::Data { .. }) {
            let work = server.lock().written();
            worker.carry_out(work, &outbox);
        }
    };
    tokio::select! {
        ended = reader => ended,
        ended = finisher => ended,
        why = ends => Ended::Violation(why),
        ended = outbox.write_to(&mut write, admission, written) => ended,
    }
}

/// Starts store operations.
struct Worker {
    local: Arc<Local>,
    /// What the peer's certificate states.
    shown: Arc<Membership>,
    /// When it was accepted.
    since: Instant,
    finish: mpsc::Sender<Finished>,
}

impl Worker {
    fn carry_out(&self, work: Vec<Work>, outbox: &Outbox) {
        for one in work {
            match one {
                Work::Send(frame) => outbox.put([frame]),
                Work::Load(loads) => self.start(move |local| {
                    let loaded = loads.into_iter().map(|(request, id)| (request, load(local, &id)));
                    Finished::Load(loaded.collect())
                }),
                Work::Look(request, ids) => self.start(move |local| {
                    let held = ids.iter().map(|id| local.store.contains(id).unwrap_or(false));
                    Finished::Look(request, held.collect())
                }),
                Work::Store(request, id, block) => {
                    let from = device_of(&self.shown.device);
                    self.start(move |local| Finished::Store(request, keep(local, from, id, block)))
                }
                Work::Hear(request, body) => self.hear(request, body),
                Work::News(frame) => {
                    let (shown, since) = (Arc::clone(&self.shown), self.since);
                    self.start(move |local| Finished::News(news::answer(local, &shown, since, frame)))
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

    fn start(&self, operation: impl FnOnce(&Local) -> Finished + Send + 'static) {
        let (local, finish) = (Arc::clone(&self.local), self.finish.clone());
        tokio::spawn(async move {
            let Ok(slot) = Arc::clone(&local.store_slots).acquire_owned().await else {
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
fn keep(local: &Local, from: DeviceId, id: BlockId, block: Bytes) -> Result<(), String> {
    let block = CheckedBlock::new(id, block).ok_or("the bytes are not the block they are put as")?;
    match local.partner.get() {
        Some(partner) => partner.keep(from, block),
        None => Err("this device keeps nothing for others".into()),
    }
}
