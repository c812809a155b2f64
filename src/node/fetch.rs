//! Which peer is asked for which block, as a state machine without I/O: `handle(event, now)` returns actions.
//!
//! Invariant: every waiter gets exactly one [`Action::Done`], by its deadline at the latest, as long as [`Engine::wakeup`] is heeded.
//! Peers known to hold the file are asked first, the least loaded of them; otherwise the best guess gets GET and some others HAVE.
//! A wrong answer bans the peer for a while, a late one lets another peer be asked as well. Carried out by `exchange`.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::base::{BlockId, DeviceId, RootId};
use crate::store::{CheckedBlock, FetchError, Want};

use super::client::{Ask, Reply};

/// Names one block stream to a peer.
pub(super) type LinkId = u64;

/// A peer that has sent nothing for this long is late, and another one is asked as well.
const LATE: Duration = Duration::from_secs(2);
/// A peer that sent wrong bytes is not asked for this long.
const BAN: Duration = Duration::from_secs(600);
/// A file is looked up in the DHT at most this often.
const LOOKUP_AGAIN: Duration = Duration::from_secs(30);
/// Peers that get HAVE while the best guess gets GET.
const HAVE_FANOUT: usize = 3;
/// Files whose holders are remembered.
const ROOTS_MAX: usize = 1024;
/// Blocks that may be wanted at once.
const WANTS_MAX: usize = 4096;

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    /// Someone wants a block.
    Want {
        /// Names who wants it.
        waiter: u64,
        /// The block.
        want: Want,
        /// When the waiter has to hear.
        deadline: Instant,
    },
    /// A stream to a member is ready.
    LinkUp {
        /// The stream.
        link: LinkId,
        /// The member.
        device: DeviceId,
        /// Requests that may be open on it.
        capacity: usize,
    },
    /// A stream ended.
    LinkDown(LinkId),
    /// A peer answered.
    Reply(LinkId, Reply),
    /// The DHT was asked for providers of a file; those found are counted in the prospects.
    LookedUp(RootId),
    /// How many members are known or being dialled, but not connected.
    Prospects(usize),
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Debug)]
pub(super) enum Action {
    /// Pass on to the stream.
    Send(LinkId, Ask),
    /// Tell the waiter.
    Done(u64, Result<CheckedBlock, FetchError>),
    /// Ask the DHT for providers of the file, then report `LookedUp`.
    Lookup(RootId),
    /// For the log: this peer sent wrong bytes.
    Banned(DeviceId, BlockId),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Asked,
    Late,
    Holds,
    No,
    Wrong,
    Failed(String),
    Gone,
}

impl Said {
    /// Whether the peer need not be asked (again) for this block.
    fn is_final(&self) -> bool {
        !matches!(self, Self::Holds | Self::Gone)
    }
}

#[derive(Debug)]
struct Attempt {
    link: LinkId,
    since: Instant,
    late: bool,
}

#[derive(Debug)]
struct Wanted {
    root: Option<RootId>,
    waiters: Vec<(u64, Instant)>,
    said: BTreeMap<DeviceId, Said>,
    attempts: Vec<Attempt>,
}

#[derive(Debug)]
struct Link {
    device: DeviceId,
    capacity: usize,
    open: BTreeSet<BlockId>,
    last_answer: Instant,
    busy_until: Option<Instant>,
}

/// The state: wants, links and what is known about them.
#[derive(Debug, Default)]
pub(super) struct Engine {
    wants: HashMap<BlockId, Wanted>,
    /// Wants that nobody is working on, oldest first.
    queue: VecDeque<BlockId>,
    links: BTreeMap<LinkId, Link>,
    banned: HashMap<DeviceId, Instant>,
    holders: HashMap<RootId, BTreeSet<DeviceId>>,
    /// Files looked up: `None` while the DHT is being asked, else when it answered.
    lookups: HashMap<RootId, Option<Instant>>,
    prospects: usize,
}

impl Engine {
    /// Takes one event and returns what to do, in order.
    pub(super) fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Want {
                waiter,
                want,
                deadline,
            } => self.want(waiter, want, deadline, &mut actions),
            Event::LinkUp {
                link,
                device,
                capacity,
            } => {
                self.links.insert(
                    link,
                    Link {
                        device,
                        capacity: capacity.max(1),
                        open: BTreeSet::new(),
                        last_answer: now,
                        busy_until: None,
                    },
                );
            }
            Event::LinkDown(link) => self.link_down(link),
            Event::Reply(link, reply) => self.reply(link, reply, now, &mut actions),
            Event::LookedUp(root) => {
                self.lookups.insert(root, Some(now));
            }
            Event::Prospects(count) => self.prospects = count,
            Event::Tick => {}
        }
        self.expire(now, &mut actions);
        self.find_late(now);
        self.pump(now, &mut actions);
        actions
    }

    /// When `handle(Tick)` has to be called at the latest.
    pub(super) fn wakeup(&self) -> Option<Instant> {
        let wants = self.wants.values().flat_map(|w| {
            let late = w
                .attempts
                .iter()
                .filter(|a| !a.late)
                .map(|a| self.silent_since(a) + LATE);
            w.waiters.iter().map(|(_, deadline)| *deadline).chain(late)
        });
        let busy = self.links.values().filter_map(|l| l.busy_until);
        wants.chain(busy).min()
    }

    fn silent_since(&self, attempt: &Attempt) -> Instant {
        self.links
            .get(&attempt.link)
            .map_or(attempt.since, |l| l.last_answer.max(attempt.since))
    }

    fn want(&mut self, waiter: u64, want: Want, deadline: Instant, actions: &mut Vec<Action>) {
        if let Some(wanted) = self.wants.get_mut(&want.id) {
            wanted.waiters.push((waiter, deadline));
            wanted.root = wanted.root.or(want.root);
            return;
        }
        if self.wants.len() >= WANTS_MAX {
            let asked = format!("nobody: {WANTS_MAX} blocks are already being fetched");
            actions.push(Action::Done(
                waiter,
                Err(FetchError::Unavailable { id: want.id, asked }),
            ));
            return;
        }
        self.queue.push_back(want.id);
        self.wants.insert(
            want.id,
            Wanted {
                root: want.root,
                waiters: vec![(waiter, deadline)],
                said: BTreeMap::new(),
                attempts: Vec::new(),
            },
        );
    }

    fn link_down(&mut self, link: LinkId) {
        let Some(gone) = self.links.remove(&link) else {
            return;
        };
        for id in gone.open {
            self.attempt_ended(link, id, gone.device, Said::Gone);
        }
    }

    fn reply(&mut self, link: LinkId, reply: Reply, now: Instant, actions: &mut Vec<Action>) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        state.last_answer = now;
        let device = state.device;
        match reply {
            Reply::Block(block) => {
                state.open.remove(block.id());
                self.deliver(&block, link, device, actions);
            }
            Reply::Wrong(id) => {
                state.open.remove(&id);
                self.banned.insert(device, now + BAN);
                actions.push(Action::Banned(device, id));
                self.attempt_ended(link, id, device, Said::Wrong);
            }
            Reply::Missing(id) => {
                state.open.remove(&id);
                self.attempt_ended(link, id, device, Said::No);
            }
            Reply::Busy(id, retry_ms) => {
                state.open.remove(&id);
                state.busy_until = Some(now + Duration::from_millis(u64::from(retry_ms.clamp(10, 10_000))));
                self.attempt_ended(link, id, device, Said::Holds);
                // Busy says nothing about having it: it may be asked again, but is not preferred.
                if let Some(wanted) = self.wants.get_mut(&id) {
                    wanted.said.remove(&device);
                }
            }
            Reply::Failed(id, why) => {
                state.open.remove(&id);
                self.attempt_ended(link, id, device, Said::Failed(why));
            }
            Reply::Held(answers) => {
                for (id, held) in answers {
                    if let Some(wanted) = self.wants.get_mut(&id) {
                        // A GET under way says more than this.
                        let said = if held { Said::Holds } else { Said::No };
                        wanted.said.entry(device).or_insert(said);
                    }
                }
            }
            // Not about blocks that are wanted.
            Reply::Done(..) | Reply::NotDone(..) | Reply::Known(_) | Reply::Seen(_) | Reply::Keys(_) => {}
        }
    }

    fn deliver(&mut self, block: &CheckedBlock, link: LinkId, device: DeviceId, actions: &mut Vec<Action>) {
        let id = *block.id();
        let Some(wanted) = self.wants.remove(&id) else {
            return;
        };
        self.queue.retain(|queued| *queued != id);
        for attempt in wanted.attempts.iter().filter(|a| a.link != link) {
            if let Some(other) = self.links.get_mut(&attempt.link)
                && other.open.remove(&id)
            {
                actions.push(Action::Send(attempt.link, Ask::Cancel(id)));
            }
        }
        if let Some(root) = wanted.root {
            if self.holders.len() >= ROOTS_MAX && !self.holders.contains_key(&root) {
                self.holders.clear();
            }
            self.holders.entry(root).or_default().insert(device);
        }
        for (waiter, _) in wanted.waiters {
            actions.push(Action::Done(waiter, Ok(block.clone())));
        }
    }

    fn attempt_ended(&mut self, link: LinkId, id: BlockId, device: DeviceId, said: Said) {
        let Some(wanted) = self.wants.get_mut(&id) else {
            return;
        };
        wanted.attempts.retain(|a| a.link != link);
        wanted.said.insert(device, said);
        let idle = wanted.attempts.iter().all(|a| a.late);
        if idle && !self.queue.contains(&id) {
            // It has waited longest: to the front.
            self.queue.push_front(id);
        }
    }

    /// Answers the waiters whose time is up.
    fn expire(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let mut ended = Vec::new();
        for (id, wanted) in &mut self.wants {
            if wanted.waiters.iter().all(|(_, deadline)| *deadline > now) {
                continue;
            }
            let error = failure(*id, &wanted.said, "no answer in time");
            wanted.waiters.retain(|(waiter, deadline)| {
                let waits = *deadline > now;
                if !waits {
                    actions.push(Action::Done(*waiter, Err(error.clone())));
                }
                waits
            });
            if wanted.waiters.is_empty() {
                ended.push(*id);
            }
        }
        for id in ended {
            self.give_up(id, actions);
        }
    }

    fn give_up(&mut self, id: BlockId, actions: &mut Vec<Action>) {
        self.queue.retain(|queued| *queued != id);
        let Some(wanted) = self.wants.remove(&id) else {
            return;
        };
        for attempt in wanted.attempts {
            if let Some(link) = self.links.get_mut(&attempt.link)
                && link.open.remove(&id)
            {
                actions.push(Action::Send(attempt.link, Ask::Cancel(id)));
            }
        }
    }

    /// Puts wants whose every peer is late back into the queue, so that others are asked as well.
    fn find_late(&mut self, now: Instant) {
        for (id, wanted) in &mut self.wants {
            let mut found = false;
            for attempt in wanted.attempts.iter_mut().filter(|a| !a.late) {
                let Some(link) = self.links.get(&attempt.link) else {
                    continue;
                };
                if now >= link.last_answer.max(attempt.since) + LATE {
                    attempt.late = true;
                    found = true;
                    wanted.said.insert(link.device, Said::Late);
                }
            }
            if found && wanted.attempts.iter().all(|a| a.late) && !self.queue.contains(id) {
                self.queue.push_back(*id);
            }
        }
    }

    /// Gives the wants that nobody is working on to peers.
    fn pump(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.banned.retain(|_, until| *until > now);
        self.lookups
            .retain(|_, done| done.is_none_or(|at| at + LOOKUP_AGAIN > now));
        for link in self.links.values_mut() {
            link.busy_until = link.busy_until.filter(|until| *until > now);
        }
        let mut haves: BTreeMap<LinkId, Vec<BlockId>> = BTreeMap::new();
        let mut left = VecDeque::new();
        while let Some(id) = self.queue.pop_front() {
            match self.assign(id, now, &mut haves, actions) {
                Assigned::Yes => {}
                Assigned::Later => left.push_back(id),
                Assigned::Never => {
                    if let Some(wanted) = self.wants.get_mut(&id) {
                        let error = failure(id, &wanted.said, "no answer");
                        for (waiter, _) in std::mem::take(&mut wanted.waiters) {
                            actions.push(Action::Done(waiter, Err(error.clone())));
                        }
                    }
                    self.give_up(id, actions);
                }
            }
        }
        self.queue = left;
        for (link, ids) in haves {
            for some in ids.chunks(super::frame::HAVE_MAX) {
                actions.push(Action::Send(link, Ask::Have(some.to_vec())));
            }
        }
    }

    fn assign(
        &mut self,
        id: BlockId,
        now: Instant,
        haves: &mut BTreeMap<LinkId, Vec<BlockId>>,
        actions: &mut Vec<Action>,
    ) -> Assigned {
        let Some(wanted) = self.wants.get_mut(&id) else {
            return Assigned::Yes;
        };
        let known = wanted.root.and_then(|root| self.holders.get(&root));
        // Best first: known holders, then the least loaded.
        let mut candidates: Vec<(bool, usize, LinkId, DeviceId)> = Vec::new();
        let mut waiting_for_room = false;
        for (link, state) in &self.links {
            let said = wanted.said.get(&state.device);
            if self.banned.contains_key(&state.device) || said.is_some_and(Said::is_final) {
                continue;
            }
            if state.busy_until.is_some() || state.open.len() >= state.capacity {
                waiting_for_room = true;
                continue;
            }
            let unlikely = said != Some(&Said::Holds) && !known.is_some_and(|k| k.contains(&state.device));
            candidates.push((unlikely, state.open.len(), *link, state.device));
        }
        candidates.sort_unstable();
        let Some(&(unlikely, _, link, device)) = candidates.first() else {
            return if waiting_for_room || !wanted.attempts.is_empty() {
                Assigned::Later
            } else {
                self.exhausted(id, actions)
            };
        };
        if let Some(state) = self.links.get_mut(&link) {
            state.open.insert(id);
        }
        wanted.attempts.push(Attempt {
            link,
            since: now,
            late: false,
        });
        wanted.said.insert(device, Said::Asked);
        actions.push(Action::Send(link, Ask::Get(id)));
        if unlikely {
            let mut told = BTreeSet::from([device]);
            for (_, _, link, other) in candidates.into_iter().skip(1) {
                if told.len() <= HAVE_FANOUT && !wanted.said.contains_key(&other) && told.insert(other) {
                    haves.entry(link).or_default().push(id);
                }
            }
        }
        Assigned::Yes
    }

    /// Nobody who is connected can be asked any more.
    fn exhausted(&mut self, id: BlockId, actions: &mut Vec<Action>) -> Assigned {
        let root = self.wants.get(&id).and_then(|w| w.root);
        if let Some(root) = root.filter(|_| !self.links.is_empty()) {
            match self.lookups.get(&root) {
                None => {
                    self.lookups.insert(root, None);
                    actions.push(Action::Lookup(root));
                    return Assigned::Later;
                }
                Some(None) => return Assigned::Later,
                Some(Some(_)) => {}
            }
        }
        if self.prospects > 0 {
            Assigned::Later
        } else {
            Assigned::Never
        }
    }
}

enum Assigned {
    Yes,
    Later,
    Never,
}

fn failure(id: BlockId, said: &BTreeMap<DeviceId, Said>, silent: &str) -> FetchError {
    if said.is_empty() {
        return FetchError::Alone { id };
    }
    let asked: Vec<String> = said
        .iter()
        .map(|(device, said)| {
            let what = match said {
                Said::Asked | Said::Late => silent,
                Said::Holds => "has it, but was not asked in time",
                Said::No => "does not have it",
                Said::Wrong => "sent wrong bytes",
                Said::Failed(why) => why,
                Said::Gone => "the connection was lost",
            };
            format!("{} ({what})", device.short())
        })
        .collect();
    FetchError::Unavailable {
        id,
        asked: asked.join(", "),
    }
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
