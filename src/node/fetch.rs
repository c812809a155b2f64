//! Which peer is asked for which block, as a state machine without I/O: `handle(event, now)` returns actions.
//!
//! Invariant: every waiter gets exactly one [`Action::Done`], by its deadline at the latest, as long as [`Engine::wakeup`] is heeded.
//! Peers known to hold the block or its file are asked first, whoever is expected to answer soonest of them; otherwise the best guess gets
//! GET and some others HAVE. A wrong answer bans the peer for a while; when one is slow, another is asked as well (`tempo`). Carried out
//! by `exchange`.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::base::{BlockId, DeviceId, RootId};
use crate::store::{CheckedBlock, FetchError, Want};

use super::bans::{Bans, Terms};
use super::client::{Ask, Reply};
use super::fetch_events::{Action, Event, LinkId};
use super::find::IDS_MAX;
use super::owed::Link;
use super::said::{Said, failure};
use super::tempo::Budget;

/// A peer that has sent nothing for this long is late, and another one is asked as well, whatever the budget of hedging says.
const LATE: Duration = Duration::from_secs(2);
/// A peer that sent wrong bytes is not asked for this long.
const WRONG: Terms = Terms {
    first: Duration::from_secs(600),
    longest: Duration::from_secs(24 * 3600),
    forgive: Duration::from_secs(24 * 3600),
};
/// A file is looked up in the DHT at most this often.
const LOOKUP_AGAIN: Duration = Duration::from_secs(30);
/// How long an answer to a search is waited for: it comes over a new connection.
const SEARCH: Duration = Duration::from_secs(4);
/// Time between two searches, each for several blocks.
const SEARCH_PAUSE: Duration = Duration::from_millis(300);
/// Peers that get HAVE while the best guess gets GET.
const HAVE_FANOUT: usize = 3;
/// Files whose holders are remembered.
const ROOTS_MAX: usize = 1024;
/// Blocks that may be wanted at once.
const WANTS_MAX: usize = 4096;

#[derive(Debug)]
struct Attempt {
    link: LinkId,
    since: Instant,
    /// When it is slow for this peer; `None` when that was seen to.
    slow: Option<Instant>,
    /// Another peer is asked as well.
    late: bool,
}

#[derive(Debug)]
struct Wanted {
    root: Option<RootId>,
    waiters: Vec<(u64, Instant)>,
    holders: BTreeSet<DeviceId>,
    said: BTreeMap<DeviceId, Said>,
    attempts: Vec<Attempt>,
    search: Search,
}

/// Whether a block was searched for from member to member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Search {
    No,
    /// Until when an answer is waited for.
    Until(Instant),
    InVain,
}

/// The state: wants, links and what is known about them.
#[derive(Debug)]
pub(super) struct Engine {
    wants: HashMap<BlockId, Wanted>,
    /// Wants that nobody is working on, oldest first.
    queue: VecDeque<BlockId>,
    /// Those of them that nobody waits for.
    ahead: VecDeque<BlockId>,
    links: BTreeMap<LinkId, Link>,
    bans: Bans,
    holders: HashMap<RootId, BTreeSet<DeviceId>>,
    /// Files looked up: `None` while the DHT is being asked, else when it answered.
    lookups: HashMap<RootId, Option<Instant>>,
    prospects: usize,
    /// Members that are not connected: while there are some, what nobody has is searched for.
    absent: usize,
    /// When the next search may begin; whether a want waits for that.
    next_search: Option<Instant>,
    waits_for_search: bool,
    budget: Budget,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            wants: HashMap::new(),
            queue: VecDeque::new(),
            ahead: VecDeque::new(),
            links: BTreeMap::new(),
            bans: Bans::new(WRONG),
            holders: HashMap::new(),
            lookups: HashMap::new(),
            prospects: 0,
            absent: 0,
            next_search: None,
            waits_for_search: false,
            budget: Budget::default(),
        }
    }
}

impl Engine {
    /// Takes one event and returns what to do, in order.
    #[cfg(test)]
    pub(super) fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        self.handle_all([event], now)
    }

    /// Takes events that came together, and returns what to do, in order: what is asked of a peer about several blocks is asked at once.
    pub(super) fn handle_all(
        &mut self,
        events: impl IntoIterator<Item = Event>,
        now: Instant,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        for event in events {
            self.take(event, now, &mut actions);
        }
        self.expire(now, &mut actions);
        self.find_slow(now);
        self.pump(now, &mut actions);
        actions
    }

    fn take(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Want {
                waiter,
                want,
                holders,
                deadline,
            } => self.want(waiter, want, holders, deadline, actions),
            Event::Hurry(id) => self.hurry(id),
            Event::LinkUp {
                link,
                device,
                capacity,
            } => {
                self.links.insert(link, Link::new(device, capacity, now));
            }
            Event::LinkDown(link) => self.link_down(link),
            Event::Reply(link, reply) => self.reply(link, reply, now, actions),
            Event::LookedUp(root) => {
                self.lookups.insert(root, Some(now));
            }
            Event::Prospects(count) => self.prospects = count,
            Event::Absent(count) => self.absent = count,
            Event::Found(device, ids) => {
                for id in ids {
                    if let Some(wanted) = self.wants.get_mut(&id) {
                        wanted.holders.insert(device);
                    }
                }
            }
            #[cfg(test)]
            Event::Tick => {}
        }
    }

    /// When `handle(Tick)` has to be called at the latest.
    pub(super) fn wakeup(&self) -> Option<Instant> {
        let wants = self.wants.values().flat_map(|w| {
            let alone = w.attempts.iter().filter(|a| !a.late);
            let late = alone.clone().map(|a| self.silent_since(a) + LATE);
            let slow = alone.filter_map(|a| a.slow.filter(|_| self.budget.is_left()));
            let search = match w.search {
                Search::Until(at) => Some(at),
                _ => None,
            };
            let deadlines = w.waiters.iter().map(|(_, deadline)| *deadline);
            deadlines.chain(late).chain(slow).chain(search)
        });
        let next_search = self.next_search.filter(|_| self.waits_for_search);
        let busy = self.links.values().filter_map(|l| l.busy_until);
        wants.chain(busy).chain(next_search).min()
    }

    fn silent_since(&self, attempt: &Attempt) -> Instant {
        self.links
            .get(&attempt.link)
            .map_or(attempt.since, |l| l.last_answer.max(attempt.since))
    }

    fn want(
        &mut self,
        waiter: u64,
        want: Want,
        holders: Vec<DeviceId>,
        deadline: Instant,
        actions: &mut Vec<Action>,
    ) {
        if let Some(wanted) = self.wants.get_mut(&want.id) {
            wanted.waiters.push((waiter, deadline));
            wanted.holders.extend(holders);
            wanted.root = wanted.root.or(want.root);
            if !want.ahead {
                self.hurry(want.id);
            }
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
        match want.ahead {
            true => self.ahead.push_back(want.id),
            false => self.queue.push_back(want.id),
        }
        self.wants.insert(
            want.id,
            Wanted {
                root: want.root,
                waiters: vec![(waiter, deadline)],
                holders: holders.into_iter().collect(),
                said: BTreeMap::new(),
                attempts: Vec::new(),
                search: Search::No,
            },
        );
    }

    /// Somebody waits for the block: if it was not asked for yet, it is next.
    fn hurry(&mut self, id: BlockId) {
        if let Some(at) = self.ahead.iter().position(|ahead| *ahead == id) {
            self.ahead.remove(at);
            self.queue.push_back(id);
        }
    }

    fn link_down(&mut self, link: LinkId) {
        let Some(gone) = self.links.remove(&link) else {
            return;
        };
        for id in gone.open.into_keys() {
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
                state.answered(block.id(), now);
                self.deliver(&block, link, device, now, actions);
            }
            Reply::Wrong(id) => {
                state.open.remove(&id);
                self.bans.strike(device, now);
                actions.push(Action::Banned(device, id));
                self.attempt_ended(link, id, device, Said::Wrong);
            }
            Reply::Missing(id) => {
                state.answered(&id, now);
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
                        if let Some(root) = wanted.root.filter(|_| held) {
                            note_holder(&mut self.holders, root, device);
                        }
                    }
                }
            }
            // Not about blocks that are wanted.
            _ => {}
        }
    }

    fn deliver(
        &mut self,
        block: &CheckedBlock,
        link: LinkId,
        device: DeviceId,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let id = *block.id();
        let Some(wanted) = self.wants.remove(&id) else {
            return;
        };
        self.forget_queued(&id);
        for attempt in wanted.attempts.iter().filter(|a| a.link != link) {
            if let Some(other) = self.links.get_mut(&attempt.link)
                && other.answered(&id, now)
            {
                actions.push(Action::Send(attempt.link, Ask::Cancel(id)));
            }
        }
        if let Some(root) = wanted.root {
            note_holder(&mut self.holders, root, device);
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
            let error = failure(*id, &wanted.said, &wanted.holders, "no answer in time");
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
        self.forget_queued(&id);
        let Some(wanted) = self.wants.remove(&id) else {
            return;
        };
        for attempt in wanted.attempts {
            if let Some(link) = self.links.get_mut(&attempt.link)
                && link.open.remove(&id).is_some()
            {
                actions.push(Action::Send(attempt.link, Ask::Cancel(id)));
            }
        }
    }

    fn forget_queued(&mut self, id: &BlockId) {
        self.queue.retain(|queued| queued != id);
        self.ahead.retain(|queued| queued != id);
    }

    /// Puts wants whose every peer is late or slow back into the queue, so that others are asked as well.
    fn find_slow(&mut self, now: Instant) {
        for (id, wanted) in &mut self.wants {
            let mut found = false;
            let others = |said: &BTreeMap<DeviceId, Said>, device: &DeviceId| {
                self.links.values().any(|l| {
                    l.device != *device
                        && l.has_room()
                        && !self.bans.is_banned(&l.device, now)
                        && !said.get(&l.device).is_some_and(Said::is_final)
                })
            };
            for attempt in wanted.attempts.iter_mut().filter(|a| !a.late) {
                let Some(link) = self.links.get(&attempt.link) else {
                    continue;
                };
                let late = now >= link.last_answer.max(attempt.since) + LATE;
                let slow = attempt.slow.is_some_and(|at| at <= now) && self.budget.is_left();
                if slow && !late {
                    attempt.slow = None;
                    // Asked of nobody, it would cost the budget and bring nothing.
                    if !others(&wanted.said, &link.device) || !self.budget.spend() {
                        continue;
                    }
                }
                if late || slow {
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
        self.lookups
            .retain(|_, done| done.is_none_or(|at| at + LOOKUP_AGAIN > now));
        for link in self.links.values_mut() {
            link.busy_until = link.busy_until.filter(|until| *until > now);
        }
        self.waits_for_search = false;
        let mut haves: BTreeMap<LinkId, Vec<BlockId>> = BTreeMap::new();
        let mut searched = Vec::new();
        // What nobody waits for comes last, and only as long as that delays nobody who comes later.
        for ahead in [false, true] {
            let mut left = VecDeque::new();
            let queued = std::mem::take(if ahead { &mut self.ahead } else { &mut self.queue });
            for id in queued {
                match self.assign(id, ahead, now, &mut haves, &mut searched, actions) {
                    Assigned::Yes => {}
                    Assigned::Later => left.push_back(id),
                    Assigned::Never => {
                        if let Some(wanted) = self.wants.get_mut(&id) {
                            let error = failure(id, &wanted.said, &wanted.holders, "no answer");
                            for (waiter, _) in std::mem::take(&mut wanted.waiters) {
                                actions.push(Action::Done(waiter, Err(error.clone())));
                            }
                        }
                        self.give_up(id, actions);
                    }
                }
            }
            *(if ahead { &mut self.ahead } else { &mut self.queue }) = left;
        }
        if !searched.is_empty() {
            self.next_search = Some(now + SEARCH_PAUSE);
            actions.push(Action::Find(searched));
        }
        for (link, ids) in haves {
            for some in ids.chunks(super::frame::HAVE_MAX) {
                actions.push(Action::Send(link, Ask::Have(some.to_vec())));
            }
        }
    }

    fn assign(
        &mut self,
        id: BlockId,
        ahead: bool,
        now: Instant,
        haves: &mut BTreeMap<LinkId, Vec<BlockId>>,
        searched: &mut Vec<BlockId>,
        actions: &mut Vec<Action>,
    ) -> Assigned {
        let Some(wanted) = self.wants.get_mut(&id) else {
            return Assigned::Yes;
        };
        let known = wanted.root.and_then(|root| self.holders.get(&root));
        // Best first: known holders, then whoever is expected to answer soonest.
        let mut candidates: Vec<(bool, Duration, LinkId, DeviceId)> = Vec::new();
        let mut waiting_for_room = false;
        for (link, state) in &self.links {
            let said = wanted.said.get(&state.device);
            if self.bans.is_banned(&state.device, now) || said.is_some_and(Said::is_final) {
                continue;
            }
            if !state.has_room() || (ahead && !state.has_room_ahead()) {
                waiting_for_room = true;
                continue;
            }
            let likely = said == Some(&Said::Holds)
                || wanted.holders.contains(&state.device)
                || known.is_some_and(|k| k.contains(&state.device));
            let expected = state.expected(now);
            candidates.push((!likely, expected, *link, state.device));
        }
        candidates.sort_unstable();
        let Some(&(unlikely, _, link, device)) = candidates.first() else {
            return if waiting_for_room || !wanted.attempts.is_empty() {
                Assigned::Later
            } else {
                self.exhausted(id, now, searched, actions)
            };
        };
        let mut slow = None;
        if let Some(state) = self.links.get_mut(&link) {
            slow = now.checked_add(state.tempo.patience(state.open.len()));
            state.open.insert(id, now);
        }
        if wanted.attempts.is_empty() {
            self.budget.earn();
        }
        wanted.attempts.push(Attempt {
            link,
            since: now,
            slow,
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
    fn exhausted(
        &mut self,
        id: BlockId,
        now: Instant,
        searched: &mut Vec<BlockId>,
        actions: &mut Vec<Action>,
    ) -> Assigned {
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
        if self.absent > 0
            && !self.links.is_empty()
            && let Some(wanted) = self.wants.get_mut(&id)
        {
            match wanted.search {
                Search::No if searched.len() < IDS_MAX && self.next_search.is_none_or(|at| at <= now) => {
                    searched.push(id);
                    wanted.search = Search::Until(now + SEARCH);
                    return Assigned::Later;
                }
                Search::No => {
                    self.waits_for_search = true;
                    return Assigned::Later;
                }
                Search::Until(at) if at > now => return Assigned::Later,
                Search::Until(_) => wanted.search = Search::InVain,
                Search::InVain => {}
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

fn note_holder(holders: &mut HashMap<RootId, BTreeSet<DeviceId>>, root: RootId, device: DeviceId) {
    if holders.len() >= ROOTS_MAX && !holders.contains_key(&root) {
        holders.clear();
    }
    holders.entry(root).or_default().insert(device);
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
