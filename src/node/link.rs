//! The task of a block stream that we opened: shows and checks certificates, then carries our requests out, with `client` as its brain.
//!
//! Invariant: whatever ends the stream, the exchange hears of it, and a peer that broke the protocol loses the connection, with a line
//! in the log. Blocks are checked here, beside the swarm actor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::AsyncReadExt;
use futures::io::BufReader;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::base::limits::BLOCK_MAX;

use super::admission::Admission;
use super::client::{Ask, Client, Reply, WINDOW};
use super::exchange::ToExchange;
use super::frame::Frame;
use super::gate::Opened;
use super::handshake::{self, Refusal};
use super::local::{Command, Local};
use super::news::Teller;
use super::outbox::{Ended, Outbox};
use super::wire::read_frame;

/// Requests that wait to be written to one stream.
pub(super) const ASKS: usize = 512;
/// Most requests the engine opens on one stream.
const CAPACITY: usize = 64;
/// Small frames are read through a buffer of this many bytes; blocks go past it.
pub(super) const READ_BUFFER: usize = 8 << 10;

static NEXT_LINK: AtomicU64 = AtomicU64::new(1);

/// Runs the stream to its end.
pub(super) async fn run(opened: Box<Opened>, local: Arc<Local>) {
    let Opened {
        peer,
        connection,
        mut stream,
        admission,
        remote,
        ..
    } = *opened;
    let limited = local.limits.apply_to(&remote);
    let window = local.limits.window(WINDOW, limited, BLOCK_MAX);
    let member = match handshake::open(&mut stream, &local, &peer, window).await {
        Ok(member) => member,
        Err(refusal) => {
            log_refusal(&refusal, &peer, &remote);
            if let Refusal::Ours(why) = &refusal {
                local.members.refused(why);
            }
            let _ = local.actor.send(Command::Close(connection)).await;
            return;
        }
    };
    admission.trust();
    admission.make_ready();
    let device = member.device;
    let link = NEXT_LINK.fetch_add(1, Ordering::Relaxed);
    let (asks, asked) = mpsc::channel(ASKS);
    let up = ToExchange::LinkUp {
        link,
        device,
        role: member.member.role,
        capacity: usize::from(member.requests).min(CAPACITY),
        asks,
    };
    if local.exchange.send(up).await.is_err() {
        return;
    }
    // After the stream, so that a want never sees a moment without prospects and without the stream.
    let told = [
        Command::Trusted {
            peer,
            connection,
            member: Box::new(member.member.clone()),
        },
        Command::Ready { peer, connection },
    ];
    for command in told {
        if local.actor.send(command).await.is_err() {
            return;
        }
    }
    let client = Client::new(member.window, member.requests, window);
    let outbox = Outbox::new(limited, local.stall_timeout);
    let teller = Teller::new(&local, &member);
    let ended = converse(stream, client, &outbox, link, asked, teller, &local, &admission).await;
    ended.note(&local, device, &remote);
    let unlinked = Command::Unlinked {
        link,
        peer,
        connection,
    };
    let _ = local.actor.send(unlinked).await;
}

/// Says in the log who was refused, from where and why.
pub(super) fn log_refusal(refusal: &Refusal, peer: &libp2p::PeerId, remote: &libp2p::Multiaddr) {
    match refusal {
        Refusal::Wire(e) if !e.is_violation() => {
            tracing::debug!(%peer, address = %remote, "the handshake did not finish: {e}");
        }
        Refusal::Ours(_) => tracing::warn!(%peer, address = %remote, "{refusal}"),
        _ => tracing::warn!(%peer, address = %remote, "refused a device: {refusal}"),
    }
}

#[allow(
    clippy::too_many_arguments,
    reason = "the parts of one task, which live no longer than it"
)]
async fn converse(
    stream: libp2p::Stream,
    client: Client,
    outbox: &Outbox,
    link: u64,
    mut asked: mpsc::Receiver<Ask>,
    mut teller: Teller,
    local: &Arc<Local>,
    admission: &Admission,
) -> Ended {
    let (read, mut write) = stream.split();
    let mut read = BufReader::with_capacity(READ_BUFFER, read);
    let client = Mutex::new(client);
    let own_head = teller.tells_own_head();
    let reader = async {
        loop {
            let frame = match read_frame(&mut read).await {
                Ok(frame) => frame,
                Err(e) if e.is_violation() => return Ended::Violation(e.to_string()),
                Err(_) => return Ended::Lost,
            };
            let mut data = 0;
            if let Frame::Data { block, .. } = &frame {
                data = block.len() as u64;
                admission.count(data, 0);
            }
            let received = client.lock().receive(frame);
            match received {
                Ok((reply, send)) => {
                    outbox.put(send, admission);
                    let Some(reply) = reply else {
                        // A block that was not wanted any more.
                        local.work.waste(data);
                        continue;
                    };
                    match Teller::take(local, reply, own_head).await {
                        Ok(asks) => {
                            let mut client = client.lock();
                            outbox.put(asks.into_iter().flat_map(|ask| client.ask(ask)), admission);
                        }
                        Err(Ok(reply)) => {
                            if !report(link, reply, local).await {
                                return Ended::Lost;
                            }
                        }
                        Err(Err(why)) => return Ended::Violation(why),
                    }
                }
                Err(violation) => return Ended::Violation(violation.to_string()),
            }
        }
    };
    let asker = async {
        while let Some(ask) = asked.recv().await {
            let frames = client.lock().ask(ask);
            outbox.put(frames, admission);
        }
        Ended::Lost
    };
    let tells = async {
        loop {
            match teller.next().await {
                Ok(asks) => {
                    let mut client = client.lock();
                    outbox.put(asks.into_iter().flat_map(|ask| client.ask(ask)), admission);
                }
                Err(why) => return Ended::Dismissed(why),
            }
        }
    };
    tokio::select! {
        ended = reader => ended,
        ended = asker => ended,
        ended = tells => ended,
        ended = outbox.grant(&local.limits) => ended,
        ended = outbox.write_to(&mut write, admission, &local.limits, |_| ()) => ended,
    }
}

async fn report(link: u64, reply: Reply, local: &Local) -> bool {
    local.exchange.send(ToExchange::Reply(link, reply)).await.is_ok()
}
