//! The machine: everything that a device decides about replication, `handle(event, now) → actions`. No clock, no network, no bytes.
//!
//! Invariant: whatever an action tells another device is durable here before the action is returned, as far as losing it could harm
//! (`docs/replication.md` has the argument). A store that fails leaves the machine in an unknown state: it is to be started anew.
//! The parts: `holding` (others' blocks here), `keeping` (our blocks elsewhere), `answers`, `freeing`, `auditing`, `collecting`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::base::{BlockId, DeviceId};
use crate::store::{MemberState, Number, ReplicaChange, ReplicaStore, StoreError};

use super::freeing::Drop;
use super::group_freeing::GroupDrop;
use super::grouping::Gathering;
use super::judge::Court;
use super::message::{Action, Checked, Event, Member, Report, Request, Slice};
use super::peers::Peer;
use super::placement::{Host, Zone, possible};
use super::rules::Rules;

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// It.
    pub device: DeviceId,
    /// Its failure zone.
    pub zone: Zone,
    /// Bytes that it holds for others; zero: none.
    pub quota: u64,
    /// Bytes of the quota that guests may have altogether; zero: none.
    pub public: u64,
    /// Bytes that each of them may have beyond what it keeps for this device.
    pub allowance: u64,
    /// Bytes of the disk that others may not have.
    pub reserve: u64,
    /// Whether it has a volume, whose collection removes blocks that nobody needs; a host's blocks are all others'.
    pub has_volume: bool,
    /// Replicas that are wanted of each block that is in no group.
    pub wanted: u8,
    /// Data and parity shards of a group; `None`: no groups are formed.
    pub groups: Option<(u8, u8)>,
    /// The rules of its group.
    pub rules: Rules,
}

/// What a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Purpose {
    Put,
    /// A lease on what the holder may have already.
    Claim,
    Renewal,
    /// Before a drop.
    Confirmation,
    Release,
    Audit(Vec<Slice>),
}

/// A request that was not answered yet.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) to: DeviceId,
    pub(super) at_ms: u64,
    /// This device's clock then.
    pub(super) at_secs: u64,
    pub(super) blocks: Vec<BlockId>,
    /// For each block the group whose record went along; empty: none did.
    pub(super) records: Vec<u64>,
    pub(super) purpose: Purpose,
}

/// The state machine of one device.
pub struct Machine {
    pub(super) store: Arc<dyn ReplicaStore>,
    pub(super) setup: Setup,
    pub(super) rules: Rules,
    pub(super) now_ms: u64,
    started_ms: u64,
    /// This device's clock at the start.
    base_secs: u64,
    /// The wall's clock at the start.
    base_wall: u64,
    next_seq: u64,
    pub(super) random: u64,
    pub(super) peers: BTreeMap<DeviceId, Peer>,
    pub(super) hosts: Vec<Host>,
    pub(super) asked: BTreeMap<u64, Asked>,
    /// Block and holder of every open request but audits: there is never more than one for a pair.
    pub(super) pairs: HashSet<(BlockId, DeviceId)>,
    /// Who said that it does not have what.
    pub(super) absent: HashSet<(BlockId, DeviceId)>,
    /// Blocks that could not be had to be sent, or were refused: until when they are left alone, and how long that was, in milliseconds.
    pub(super) unavailable: HashMap<BlockId, (u64, u64)>,
    pub(super) mark: u64,
    pub(super) marking: bool,
    pub(super) sweep: Option<(u64, Option<BlockId>)>,
    /// How far the look at everything has come that follows a change of the hosts, and whether another must follow.
    pub(super) review: Option<Option<BlockId>>,
    pub(super) review_again: bool,
    pub(super) pass: Option<(u8, BlockId)>,
    /// When the next pass over what is to be done begins; `None`: nothing is to be done.
    pub(super) next_pass_ms: Option<u64>,
    /// Passes in a row that found nothing that could be done.
    pub(super) vain_passes: u32,
    pub(super) drops: HashMap<BlockId, Drop>,
    /// Drops of grouped blocks, by group, and the shards that they are about.
    pub(super) group_drops: BTreeMap<u64, GroupDrop>,
    pub(super) shard_drops: HashMap<BlockId, u64>,
    /// A wish to free waits for the drop of its group.
    pub(super) free_deferred: bool,
    pub(super) gathering: Gathering,
    pub(super) drop_cursor: Option<BlockId>,
    pub(super) next_drops_ms: Option<u64>,
    /// When wishes to free are looked at next.
    pub(super) next_free_ms: Option<u64>,
    pub(super) disk_free: u64,
    pub(super) stray_cursor: Option<Option<BlockId>>,
    /// What checks of everything that holders have, asked for by the user, have found so far.
    pub(super) checked: Checked,
    next_upkeep_ms: u64,
    told_zones: Option<u8>,
    pub(super) out: Vec<Action>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("device", &self.setup.device)
            .finish_non_exhaustive()
    }
}

/// Blocks that are looked at before other events get their turn.
pub(super) const STEP: usize = 256;

/// Most pairs of which it is remembered that a holder lacks a block: else it is asked once more before it is sent.
const ABSENT_MAX: usize = 1 << 16;

/// Longest time for which a block that could not be had is left alone, in milliseconds.
const UNAVAILABLE_MAX_MS: u64 = 3_600_000;

impl Machine {
    /// Starts the machine on what the store remembers. `wall` is the time of day, Unix seconds, and only says about how long it did not
    /// run; `now_ms` is a clock that never jumps, and `seed` any number not used before.
    pub fn start(
        store: Arc<dyn ReplicaStore>,
        setup: Setup,
        wall: u64,
        now_ms: u64,
        seed: u64,
    ) -> Result<Self, StoreError> {
        let rules = setup.rules;
        let starts = store.number(Number::Starts)? + 1;
        // What holders count while we do not run, as far as the wall can be believed.
        let gap = match store.number(Number::Wall)? {
            0 => 0,
            then => wall.saturating_sub(then) / rules.absent_share.max(1),
        };
        let base_secs = store.number(Number::Clock)? + gap.min(rules.term_secs / 2);
        store.apply(
            &[
                ReplicaChange::Number(Number::Starts, starts),
                ReplicaChange::Number(Number::Clock, base_secs),
                ReplicaChange::Number(Number::Wall, wall),
            ],
            true,
        )?;
        let peers = store.members()?;
        let sweep = store.number(Number::Sweep)?;
        Ok(Self {
            mark: store.number(Number::Mark)?,
            rules,
            now_ms,
            started_ms: now_ms,
            base_secs,
            base_wall: wall,
            next_seq: starts << 32,
            random: seed | 1,
            peers: peers
                .iter()
                .map(|peer| (peer.device, Peer::new(now_ms, peer.clock, peer.condemned)))
                .collect(),
            hosts: Vec::new(),
            asked: BTreeMap::new(),
            pairs: HashSet::new(),
            absent: HashSet::new(),
            unavailable: HashMap::new(),
            marking: false,
            sweep: (sweep > 0).then_some((sweep, None)),
            review: None,
            review_again: false,
            pass: None,
            next_pass_ms: None,
            vain_passes: 0,
            drops: HashMap::new(),
            group_drops: BTreeMap::new(),
            free_deferred: false,
            shard_drops: HashMap::new(),
            gathering: Gathering::new(store.number(Number::Group)?, setup.groups.map(|_| now_ms)),
            drop_cursor: None,
            next_drops_ms: None,
            next_free_ms: Some(now_ms),
            disk_free: u64::MAX,
            stray_cursor: (!setup.has_volume).then_some(None),
            checked: Checked::default(),
            next_upkeep_ms: now_ms,
            told_zones: None,
            out: Vec::new(),
            store,
            setup,
        })
    }

    /// Takes an event at `now_ms`, and says what to do. After an error the machine is to be started anew.
    pub fn handle(&mut self, event: Event, now_ms: u64) -> Result<Vec<Action>, StoreError> {
        self.now_ms = self.now_ms.max(now_ms);
        match event {
            Event::Tick => {}
            Event::Roster(members) => self.roster(members)?,
            Event::Connected(device) => self.connected(device, true),
            Event::Disconnected(device) => self.connected(device, false),
            Event::Request(from, request) => self.request(from, request)?,
            Event::Answer(from, answer) => self.answer(from, answer)?,
            Event::Unsent(to, seq) => self.unsent(to, seq),
            Event::Unanswered(to, seq) => self.unanswered(to, seq),
            Event::Retain(blocks) => self.retain(&blocks, false)?,
            Event::Named(blocks) => self.retain(&blocks, true)?,
            Event::BeginMark => self.begin_mark()?,
            Event::EndMark => self.end_mark()?,
            Event::Verify => self.verify(),
            Event::Free(blocks) => self.free(&blocks)?,
            Event::Encoded(group) => self.encoded(&group)?,
            Event::Unencoded(blocks) => self.unencoded(&blocks)?,
            Event::Disk(free) => self.disk_free = free,
        }
        self.upkeep()?;
        self.give_up_waiting()?;
        self.review_step()?;
        self.sweep_step()?;
        self.pay()?;
        self.gather_step()?;
        self.work()?;
        self.drop_step()?;
        self.renew()?;
        self.audit()?;
        let wake = self.next_wake();
        self.out.push(Action::Wake(wake));
        Ok(std::mem::take(&mut self.out))
    }

    /// This device's clock, in seconds: how long it was seen running, and a share of how long it was not.
    pub(super) fn secs(&self) -> u64 {
        self.base_secs + (self.now_ms - self.started_ms) / 1000
    }

    pub(super) fn next_seq(&mut self) -> u64 {
        self.next_seq += 1;
        self.next_seq
    }

    /// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    pub(super) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn court(&self) -> Court<'_> {
        Court {
            hosts: &self.hosts,
            peers: &self.peers,
            own_zone: &self.setup.zone,
            rules: &self.rules,
            now_ms: self.now_ms,
            secs: self.secs(),
        }
    }

    pub(super) fn report(&mut self, report: Report) {
        self.out.push(Action::Report(report));
    }

    /// Sends a request and remembers it.
    pub(super) fn ask(
        &mut self,
        to: DeviceId,
        seq: u64,
        request: Request,
        blocks: Vec<BlockId>,
        purpose: Purpose,
    ) {
        if let Some(peer) = self.peers.get_mut(&to) {
            *open_count(peer, &purpose) += 1;
        }
        if !matches!(purpose, Purpose::Audit(_)) {
            self.pairs.extend(blocks.iter().map(|block| (*block, to)));
        }
        let asked = Asked {
            to,
            at_ms: self.now_ms,
            at_secs: self.secs(),
            blocks,
            records: Vec::new(),
            purpose,
        };
        self.asked.insert(seq, asked);
        self.out.push(Action::Ask(to, request));
    }

    /// Takes a request off the list of those that wait for an answer.
    pub(super) fn close(&mut self, from: &DeviceId, seq: u64) -> Option<Asked> {
        if self.asked.get(&seq)?.to != *from {
            return None;
        }
        let asked = self.asked.remove(&seq)?;
        for block in &asked.blocks {
            if !matches!(asked.purpose, Purpose::Audit(_)) {
                self.pairs.remove(&(*block, asked.to));
            }
        }
        if let Some(peer) = self.peers.get_mut(from) {
            let open = open_count(peer, &asked.purpose);
            *open = open.saturating_sub(1);
        }
        Some(asked)
    }

    pub(super) fn note_absent(&mut self, block: BlockId, holder: DeviceId) {
        if self.absent.len() >= ABSENT_MAX {
            self.absent.clear();
        }
        self.absent.insert((block, holder));
    }

    /// Something is to be done, or can be done now.
    pub(super) fn hurry(&mut self) {
        self.next_pass_ms = Some(self.now_ms);
        self.vain_passes = 0;
    }

    /// The hosts, or what is known of them, have changed: every block is to be looked at.
    pub(super) fn look_at_all(&mut self) {
        if self.review.is_some() {
            self.review_again = true;
        } else {
            self.review = Some(None);
        }
        if self.setup.groups.is_some() {
            self.gather_soon();
        }
    }

    pub(super) fn remember_member(&self, device: &DeviceId) -> Option<ReplicaChange> {
        let peer = self.peers.get(device)?;
        Some(ReplicaChange::Member(MemberState {
            device: *device,
            clock: peer.clock_secs(self.now_ms, &self.rules),
            condemned: peer.condemned,
        }))
    }

    fn roster(&mut self, members: Vec<Member>) -> Result<(), StoreError> {
        let (now, rules) = (self.now_ms, self.rules);
        let mut hosts = Vec::with_capacity(members.len());
        let listed: HashSet<DeviceId> = members.iter().map(|member| member.device).collect();
        for member in members {
            if member.device == self.setup.device {
                continue;
            }
            let peer = self
                .peers
                .entry(member.device)
                .or_insert_with(|| Peer::new(now, 0, 0));
            if !peer.member {
                peer.set_member(true, now, &rules);
                peer.next_audit_ms = now;
            }
            if member.quota > peer.quota {
                (peer.full_until_ms, peer.full_wait_ms) = (0, 0);
            }
            (peer.zone, peer.quota, peer.guest) = (member.zone.clone(), member.quota, member.guest);
            // A device of our own that shares our zone is no place for a replica, but counts as what it is.
            hosts.push(Host {
                device: member.device,
                zone: member.zone,
                weight: member.quota,
            });
        }
        for (device, peer) in &mut self.peers {
            if peer.member && !listed.contains(device) {
                peer.set_member(false, now, &rules);
            }
        }
        if hosts != self.hosts {
            self.hosts = hosts;
            self.look_at_all();
        }
        let possible = possible(&self.hosts, &self.setup.zone).min(255) as u8;
        let shards = self.setup.groups.map_or(0, |(data, parity)| data + parity);
        if possible < shards && self.told_zones != Some(possible) {
            self.report(Report::TooFewForGroups { shards, possible });
        } else if possible < self.setup.wanted && self.told_zones != Some(possible) {
            self.report(Report::TooFewZones {
                wanted: self.setup.wanted,
                possible,
            });
        }
        self.told_zones = Some(possible);
        Ok(())
    }

    fn connected(&mut self, device: DeviceId, connected: bool) {
        let (now, rules) = (self.now_ms, self.rules);
        let peer = self.peers.entry(device).or_insert_with(|| Peer::new(now, 0, 0));
        let was_lost = peer.lost;
        peer.lost &= !connected;
        peer.set_connected(connected, now, &rules);
        if connected {
            peer.next_renewal_ms = now;
            self.hurry();
            if was_lost {
                self.look_at_all();
            }
        } else {
            let open: Vec<u64> = self
                .asked
                .iter()
                .filter(|(_, asked)| asked.to == device)
                .map(|(seq, _)| *seq)
                .collect();
            for seq in open {
                self.close(&device, seq);
            }
        }
    }

    fn unanswered(&mut self, to: DeviceId, seq: u64) {
        if self.close(&to, seq).is_some() {
            self.leave_alone(&to);
            self.hurry();
        }
    }

    /// A member that did not answer is asked again after a while, longer each time.
    pub(super) fn leave_alone(&mut self, device: &DeviceId) {
        let (now, rules) = (self.now_ms, self.rules);
        if let Some(peer) = self.peers.get_mut(device) {
            peer.silent = peer.silent.saturating_add(1);
            peer.busy_until_ms = now + (rules.retry_ms << peer.silent.min(6)).min(rules.sleep_ms);
        }
    }

    fn unsent(&mut self, to: DeviceId, seq: u64) {
        if let Some(asked) = self.close(&to, seq) {
            self.note_unavailable(&asked.blocks);
            self.hurry();
        }
    }

    /// Blocks that neither are here nor could be fetched: they are tried again later, and do not keep others from being sent.
    pub(super) fn note_unavailable(&mut self, blocks: &[BlockId]) {
        for block in blocks {
            if self.unavailable.len() >= ABSENT_MAX {
                self.unavailable.clear();
            }
            let (until, wait) = self.unavailable.entry(*block).or_default();
            *wait = (*wait * 2).clamp(self.rules.retry_ms, UNAVAILABLE_MAX_MS);
            *until = self.now_ms + *wait;
        }
    }

    /// What is done now and then: holders that are lost, those that have room again, leases that end, clocks that are written down.
    fn upkeep(&mut self) -> Result<(), StoreError> {
        if self.now_ms < self.next_upkeep_ms {
            return Ok(());
        }
        self.next_upkeep_ms = self.now_ms + self.rules.sleep_ms;
        let (now, lost_ms) = (self.now_ms, self.rules.lost_secs * 1000);
        let secs = self.secs();
        let mut lost = Vec::new();
        let mut changed = false;
        for (device, peer) in &mut self.peers {
            if peer.member && !peer.connected && !peer.lost && now - peer.since_ms >= lost_ms {
                peer.lost = true;
                lost.push(*device);
            }
            if peer.full_until_ms > 0 && now >= peer.full_until_ms {
                peer.full_until_ms = 0;
                changed = true;
            }
            if peer.is_condemned && peer.condemned <= secs {
                (peer.is_condemned, peer.strikes) = (false, 0);
                changed = true;
            }
        }
        if (1..=secs).contains(&self.gathering.rest_until) {
            self.gathering.rest_until = 0;
            changed = true;
        }
        if changed || !lost.is_empty() {
            self.look_at_all();
        }
        for device in lost {
            self.report(Report::Lost(device));
        }
        self.end_leases()?;
        self.forgive()?;
        let mut changes: Vec<ReplicaChange> = vec![
            ReplicaChange::Number(Number::Clock, secs),
            ReplicaChange::Number(Number::Wall, self.base_wall + (now - self.started_ms) / 1000),
        ];
        let members: Vec<DeviceId> = self.peers.keys().copied().collect();
        changes.extend(members.iter().filter_map(|device| self.remember_member(device)));
        self.store.apply(&changes, false)?;
        Ok(())
    }

    fn next_wake(&self) -> u64 {
        let soon = self.now_ms + 1;
        if self.sweep.is_some() || (self.review.is_some() && self.knows_hosts()) {
            return soon;
        }
        let mut wake = self.next_upkeep_ms;
        let mut at = |ms: u64| wake = wake.min(ms.max(soon));
        if let Some(asked) = self.asked.values().map(|asked| asked.at_ms).min() {
            at(asked + self.rules.answer_ms);
        }
        if !self.knows_hosts() {
            return wake;
        }
        if let Some(pass) = self.next_pass_ms {
            at(pass);
        }
        for time in [self.next_drops_ms, self.next_free_ms, self.gathering.next_ms]
            .into_iter()
            .flatten()
        {
            at(time);
        }
        for peer in self.peers.values().filter(|peer| peer.member && peer.connected) {
            if peer.open.renewals == 0 {
                at(peer.next_renewal_ms.max(peer.busy_until_ms));
            }
            if peer.open.audits == 0 {
                at(peer.next_audit_ms.max(peer.busy_until_ms));
            }
        }
        wake
    }
}

fn open_count<'a>(peer: &'a mut Peer, purpose: &Purpose) -> &'a mut usize {
    match purpose {
        Purpose::Put => &mut peer.open.puts,
        Purpose::Claim => &mut peer.open.claims,
        Purpose::Renewal => &mut peer.open.renewals,
        Purpose::Confirmation => &mut peer.open.confirmations,
        Purpose::Release => &mut peer.open.releases,
        Purpose::Audit(_) => &mut peer.open.audits,
    }
}
