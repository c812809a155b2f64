//! What the two sides of a connection tell each other of the group, beside blocks: rosters, presences, keys, heads.
//!
//! Digests first, then what the other one lacks: each side shows its digest on the stream that it opened, gets the names of the statements
//! that the other has, and pushes those beyond; with heads likewise, and new ones at once. Invariant: a connection whose peer the roster no longer allows, or allows something else
//! than when it began, ends here, on both of its streams, as soon as the roster says so. Used by `link` and `serve`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};

use crate::base::DeviceId;
use crate::keys::certificate::Membership;
use crate::keys::head::HEAD_LEN;
use crate::keys::{Certificate, Role};

use super::client::{Ask, Reply};
use super::frame::{Frame, Gift, STATEMENTS_AT_ONCE};
use super::handshake::Peer;
use super::head_news::{HEADS_AT_ONCE, HeadNews};
use super::local::Local;

/// How often it is seen whether keys are missing.
const TICK: Duration = Duration::from_secs(15);
/// How many ticks until the presence is shown again, and a member that no statement speaks of is entered into the roster.
const SHOWN_AGAIN: u32 = 4;
/// Changes of the roster are collected for this long before its digest is shown.
const SETTLE: Duration = Duration::from_millis(100);
/// Heads that come this soon one after the other are told together.
const HEADS_SETTLE: Duration = Duration::from_millis(50);
/// Frames of this kind that a peer may send at once, and per second on average.
const BURST: f64 = 128.0;
const RATE: f64 = 40.0;

/// The asking side's part.
pub(super) struct Teller {
    local: Arc<Local>,
    watch: Watch,
    device: DeviceId,
    certificate: Certificate,
    heads: watch::Receiver<u64>,
    /// Up to which version of the heads the peer was told, and before when it is told no more.
    heads_told: u64,
    heads_next: tokio::time::Instant,
    /// Whether this device showed that it may write when the connection began. If that came later, the connection is about to end, and until
    /// then the peer would take a head of this device for a forgery.
    writes: bool,
    tick: Interval,
    ticks: u32,
}

impl Teller {
    /// For a connection to this peer.
    pub(super) fn new(local: &Arc<Local>, peer: &Peer) -> Self {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            local: Arc::clone(local),
            watch: Watch::new(local, peer),
            device: peer.device,
            certificate: peer.certificate.clone(),
            heads: local.heads.subscribe(),
            heads_told: local.heads.version(),
            heads_next: tokio::time::Instant::now(),
            writes: local.members.role() >= Role::Writer,
            tick,
            ticks: 0,
        }
    }

    /// Whether this device's own head is told.
    pub(super) fn tells_own_head(&self) -> bool {
        self.writes
    }

    /// Waits for the next thing to tell; an error is why the connection has to end.
    pub(super) async fn next(&mut self) -> Result<Vec<Ask>, String> {
        let members = &self.local.members;
        let mut asks = Vec::new();
        let heads = async {
            tokio::time::sleep_until(self.heads_next).await;
            if self.heads.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            changed = self.watch.changed() => {
                changed?;
                tokio::time::sleep(SETTLE).await;
                asks.push(Ask::Roster(members.digest()));
            }
            _ = self.tick.tick() => {
                // The first tick comes at once.
                if self.ticks.is_multiple_of(SHOWN_AGAIN) {
                    asks.push(Ask::Presence(members.presence()));
                    asks.push(Ask::Roster(members.digest()));
                    asks.push(Ask::Heads(HeadNews::Digest(self.local.heads.digest())));
                }
                if self.ticks == SHOWN_AGAIN {
                    let (local, certificate) = (Arc::clone(&self.local), self.certificate.clone());
                    tokio::task::spawn_blocking(move || local.members.adopt(&certificate));
                }
                self.ticks = self.ticks.wrapping_add(1);
            }
            () = heads => {
                let (new, told) = self.local.heads.since(self.heads_told, &self.device, self.writes);
                self.heads_told = told;
                self.heads_next = tokio::time::Instant::now() + HEADS_SETTLE;
                asks.extend(newer(&new));
            }
        }
        if let Some((newest, root)) = members.keys_wanted(self.watch.member.role) {
            asks.push(Ask::Keys(newest, root));
        }
        Ok(asks)
    }

    /// What follows from an answer of this kind: more to tell (`own`: this device's own head as well), or why the peer is at fault. Other
    /// replies come back.
    pub(super) async fn take(
        local: &Arc<Local>,
        reply: Reply,
        own: bool,
    ) -> Result<Vec<Ask>, Result<Reply, String>> {
        match reply {
            Reply::Known(ids) => {
                let beyond = local.members.beyond(ids);
                let batches = beyond.chunks(STATEMENTS_AT_ONCE);
                Ok(batches.map(|batch| Ask::Statements(batch.to_vec())).collect())
            }
            Reply::Seen(presence) => blocking(local, move |local| local.members.note_own(&presence))
                .await
                .map(|()| Vec::new())
                .map_err(|e| Err(e.to_string())),
            Reply::Keys(gift) => {
                let taken = blocking(local, move |local| local.members.take_keys(&gift.0)).await;
                if let Err(e) = taken {
                    tracing::warn!("keys that a member gave are not used: {e}");
                }
                Ok(Vec::new())
            }
            Reply::Heads(known) => Ok(newer(&local.heads.beyond(known, own))),
            other => Err(Ok(other)),
        }
    }
}

/// Heads in as many messages as it takes.
fn newer(heads: &[[u8; HEAD_LEN]]) -> Vec<Ask> {
    let batches = heads.chunks(HEADS_AT_ONCE);
    batches
        .map(|batch| Ask::Heads(HeadNews::Newer(batch.to_vec())))
        .collect()
}

async fn blocking<E: Send + 'static>(
    local: &Arc<Local>,
    work: impl FnOnce(&Local) -> Result<(), E> + Send + 'static,
) -> Result<(), E> {
    let local = Arc::clone(local);
    let done = tokio::task::spawn_blocking(move || work(&local)).await;
    // Ended with the runtime: nothing is lost that would not be told again.
    done.unwrap_or(Ok(()))
}

/// Whether the peer of a connection is still who it was when the connection began.
pub(super) struct Watch {
    local: Arc<Local>,
    shown: Membership,
    member: Membership,
    changed: watch::Receiver<u64>,
}

impl Watch {
    /// For a connection to this peer.
    pub(super) fn new(local: &Arc<Local>, peer: &Peer) -> Self {
        Self {
            local: Arc::clone(local),
            shown: peer.certificate.membership().clone(),
            member: peer.member.clone(),
            changed: {
                let mut changed = local.members.subscribe();
                // What came between the handshake and now is looked at, too.
                changed.mark_changed();
                changed
            },
        }
    }

    /// Waits for a change of the roster; an error is why the connection has to end.
    pub(super) async fn changed(&mut self) -> Result<(), String> {
        if self.changed.changed().await.is_err() {
            return std::future::pending().await;
        }
        let now = self.local.members.judge(&self.shown)?;
        if now.role != self.member.role {
            return Err(format!(
                "it is a {} now, no {} any more",
                now.role, self.member.role
            ));
        }
        Ok(())
    }

    /// Waits until the connection has to end; why.
    pub(super) async fn ended(mut self) -> String {
        loop {
            if let Err(why) = self.changed().await {
                return why;
            }
        }
    }
}

/// Bounds what a peer may tell.
pub(super) struct Pace {
    burst: f64,
    rate: f64,
    left: f64,
    at: Instant,
}

impl Pace {
    /// The allowance for telling of the group.
    pub(super) fn of_news(now: Instant) -> Self {
        Self::new(BURST, RATE, now)
    }

    /// A full allowance: so many at once, and per second on average.
    pub(super) fn new(burst: f64, rate: f64, now: Instant) -> Self {
        Self {
            burst,
            rate,
            left: burst,
            at: now,
        }
    }

    /// Whether one more frame is within bounds.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.rate).min(self.burst);
        self.at = now;
        let allowed = self.left >= 1.0;
        self.left -= f64::from(u8::from(allowed));
        allowed
    }
}

/// Answers a frame of this kind; an error is the peer's fault. Blocks on the disk.
pub(super) fn answer(
    local: &Local,
    shown: &Membership,
    since: Instant,
    frame: Frame,
) -> Result<Option<Frame>, String> {
    let members = &local.members;
    Ok(match frame {
        Frame::Roster { digest } => members.known(&digest).map(|ids| Frame::Known { ids }),
        Frame::Statements { statements } => {
            members.hear(&statements).map_err(|e| e.to_string())?;
            None
        }
        Frame::Presence { presence } => {
            let device = crate::keys::device_id(&shown.device);
            let before = members.note_presence(&presence, &device, since);
            before
                .map_err(|e| e.to_string())?
                .map(|presence| Frame::Seen { presence })
        }
        Frame::KeysWanted { newest, root } => members
            .give(shown, newest, root)
            .map(|gift| Frame::Keys { gift: Gift(gift) }),
        Frame::Heads(news) => local.heads.answer(news, shown)?.map(Frame::Heads),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_out_of_bounds_and_an_honest_rate_never_is() {
        let start = Instant::now();
        let mut pace = Pace::of_news(start);
        assert!((0..BURST as u32).all(|_| pace.allows(start)));
        assert!(!pace.allows(start));
        let mut pace = Pace::of_news(start);
        // One digest for each settled change, for an hour.
        assert!((0..36_000).all(|n| pace.allows(start + SETTLE * n)));
    }
}
