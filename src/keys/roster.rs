//! The roster: everything that admins have stated about the group, and what follows from it: who belongs, in which role, who was removed,
//! which key epochs there are.
//!
//! A set that only grows, merged by union: the order in which statements come, and through whom, changes nothing, and any two devices that
//! have heard the same agree. What *counts* is computed from the whole set. Invariants:
//!
//! - A removal is final for the device it names: no certificate brings it back, whatever its date, role or epoch.
//! - What an admin states after it was removed or demoted does not count: each removal and demotion says how far the author had heard the
//!   admin out. Of two admins who remove each other at once one stays, by one rule for everybody: the one whose removal knew the lower epoch,
//!   then the one who is nearer to the recovery phrase, then the one with the lower id.
//! - Whoever loses the right to read costs one epoch: there is always one more than there are counting removals and demotions to host.
//!
//! Pure. Kept, exchanged and asked by `node::members`; the form is in `docs/protocol.md`, the reasons in `docs/decisions/membership.md`.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::clock::UnixSecs;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::{DeviceId, GroupId};

use super::statement::{Draft, Matter, STATEMENT_MAX, Statement, StatementError, StatementId};
use super::{Certificate, FIRST_EPOCH, Role, device_id, group_id};

/// Most statements in a roster: a few for every device that was ever in the group.
pub const STATEMENTS_MAX: usize = 4096;
/// Longest encoded roster, in bytes.
pub const ROSTER_MAX: usize = HEAD_LEN + STATEMENTS_MAX * (2 + STATEMENT_MAX);

const HEAD_LEN: usize = 4 + 1 + 2;
const MAGIC: &[u8; 4] = b"dfsM";
const VERSION: u8 = 1;

/// Why bytes are no roster of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// They have another form.
    #[error("the roster cannot be read: {0}")]
    Malformed(#[from] DecodeError),
    /// A statement in it is not good.
    #[error(transparent)]
    Statement(#[from] StatementError),
}

/// How a device stands to the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing<'a> {
    /// Nothing was stated about it: its certificate alone decides.
    Unknown,
    /// It belongs, with this certificate.
    Member(&'a Certificate),
    /// It was removed then.
    Removed(UnixSecs),
    /// What was stated for it does not count: the admin who did so was none any more.
    Unvouched,
}

/// A device that belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its newest certificate.
    pub certificate: Certificate,
    /// Counts its certificates.
    pub version: u32,
    /// When its first one was issued.
    pub since: UnixSecs,
}

/// What follows from the statements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct View {
    members: BTreeMap<DeviceId, Entry>,
    removed: BTreeMap<DeviceId, UnixSecs>,
    /// Devices that only statements without effect speak for.
    unvouched: BTreeSet<DeviceId>,
    epochs: BTreeMap<u32, BTreeSet<[u8; 32]>>,
    due: u32,
}

/// The roster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roster {
    group_public: [u8; 32],
    statements: BTreeMap<StatementId, Statement>,
    view: View,
}

impl Roster {
    /// An empty roster of the group with this public key.
    pub fn new(group_public: [u8; 32]) -> Self {
        Self {
            group_public,
            statements: BTreeMap::new(),
            view: View {
                due: FIRST_EPOCH,
                ..View::default()
            },
        }
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        group_id(&self.group_public)
    }

    /// How many statements there are.
    pub fn len(&self) -> usize {
        self.statements.len()
    }

    /// Whether nothing was stated.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// Adds statements; those beyond [`STATEMENTS_MAX`] are left out. Whether any was new.
    pub fn add(&mut self, statements: impl IntoIterator<Item = Statement>) -> bool {
        let before = self.statements.len();
        for statement in statements {
            if self.statements.len() < STATEMENTS_MAX {
                self.statements.entry(statement.id()).or_insert(statement);
            }
        }
        let grown = self.statements.len() > before;
        if grown {
            self.view = View::of(&self.statements);
        }
        grown
    }

    /// Adds what another roster of the same group has. Whether any of it was new.
    pub fn merge(&mut self, other: &Self) -> bool {
        self.group_public == other.group_public && self.add(other.statements.values().cloned())
    }

    /// The names of all statements, in order.
    pub fn ids(&self) -> impl Iterator<Item = StatementId> + '_ {
        self.statements.keys().copied()
    }

    /// Whether the statement is in.
    pub fn contains(&self, id: &StatementId) -> bool {
        self.statements.contains_key(id)
    }

    /// The statements that somebody who has those of these names lacks, encoded: what ends authority first.
    pub fn beyond(&self, known: &BTreeSet<StatementId>) -> Vec<Vec<u8>> {
        let group = self.group();
        let mut missing: Vec<&Statement> = self
            .statements
            .values()
            .filter(|s| !known.contains(&s.id()))
            .collect();
        missing.sort_by_key(|s| !matches!(s.matter(), Matter::Removed { .. }));
        missing.into_iter().map(|s| s.encode(&group)).collect()
    }

    /// As many statements as fit `max` bytes, in the form of [`Roster::encode`]: the newest removals first, then what else ends authority or
    /// begins an epoch, then the newest members. What does not fit is heard from members directly.
    pub fn extract(&self, max: usize) -> Vec<u8> {
        let group = self.group();
        let mut order: Vec<&Statement> = self.statements.values().collect();
        order.sort_by_key(|statement| {
            let (rank, newest) = match statement.matter() {
                Matter::Removed { at, .. } => (0, *at),
                Matter::Epoch { epoch, .. } => (1, u64::from(*epoch)),
                Matter::Member { certificate, .. } => (2, certificate.membership().issued),
            };
            (rank, std::cmp::Reverse(newest), statement.id())
        });
        let mut chosen = BTreeMap::new();
        let mut left = max.saturating_sub(HEAD_LEN);
        for statement in order {
            let bytes = statement.encode(&group);
            let Some(rest) = left.checked_sub(2 + bytes.len()) else {
                break;
            };
            left = rest;
            chosen.insert(statement.id(), bytes);
        }
        join(chosen.into_values())
    }

    /// A hash of everything in it: equal digests, equal rosters.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for id in self.statements.keys() {
            hasher.update(&id.0);
        }
        *hasher.finalize().as_bytes()
    }

    /// How a device stands.
    pub fn standing(&self, device: &DeviceId) -> Standing<'_> {
        if let Some(at) = self.view.removed.get(device) {
            Standing::Removed(*at)
        } else if let Some(entry) = self.view.members.get(device) {
            Standing::Member(&entry.certificate)
        } else if self.view.unvouched.contains(device) {
            Standing::Unvouched
        } else {
            Standing::Unknown
        }
    }

    /// The devices that belong.
    pub fn members(&self) -> impl Iterator<Item = (&DeviceId, &Entry)> {
        self.view.members.iter()
    }

    /// The devices that were removed, and when.
    pub fn removed(&self) -> impl Iterator<Item = (&DeviceId, UnixSecs)> {
        self.view.removed.iter().map(|(device, at)| (device, *at))
    }

    /// The newest epoch whose secret is committed to; the first one without any.
    pub fn epoch(&self) -> u32 {
        let newest = self.view.epochs.last_key_value();
        newest.map_or(FIRST_EPOCH, |(epoch, _)| *epoch)
    }

    /// The first epoch whose secret is not committed to.
    pub fn epoch_uncommitted(&self) -> u32 {
        let mut epochs = FIRST_EPOCH..;
        let free = epochs.find(|epoch| !self.view.epochs.contains_key(epoch));
        free.unwrap_or(u32::MAX)
    }

    /// The epoch that there has to be: one more than the times somebody lost the right to read.
    pub fn epoch_due(&self) -> u32 {
        self.view.due
    }

    /// Whether an admin has committed to this as the secret of the epoch.
    pub fn is_committed(&self, epoch: u32, commitment: &[u8; 32]) -> bool {
        let commitments = self.view.epochs.get(&epoch);
        commitments.is_some_and(|commitments| commitments.contains(commitment))
    }

    /// Devices that have given one number to two statements: two copies of one device are at work, or it fell back to an old state.
    pub fn doubles(&self) -> BTreeSet<DeviceId> {
        let mut numbers = BTreeSet::new();
        let used = self.statements.values().map(|s| (s.author(), s.number()));
        used.filter(|used| !numbers.insert(*used))
            .map(|(author, _)| author)
            .collect()
    }

    /// A draft that the device of this certificate belongs. It goes over every certificate of the device so far.
    pub fn draft_member(&self, author: [u8; 32], certificate: Certificate) -> Draft {
        let device = certificate.device_id();
        let role = certificate.membership().role;
        let before = self.view.members.get(&device);
        let could_read = before.is_some_and(|e| e.certificate.membership().role.reads());
        let versions = self.statements.values().filter_map(|s| match s.matter() {
            Matter::Member {
                certificate, version, ..
            } if certificate.device_id() == device => Some(*version),
            _ => None,
        });
        let matter = Matter::Member {
            version: versions.max().unwrap_or(0).saturating_add(1),
            heard: self.heard(&author, &device),
            shuts_out: could_read && !role.reads(),
            certificate,
        };
        self.draft(author, matter)
    }

    /// A draft that the device was removed at this date.
    pub fn draft_removal(&self, author: [u8; 32], device: DeviceId, at: UnixSecs) -> Draft {
        let heard = self.heard(&author, &device);
        self.draft(author, Matter::Removed { device, at, heard })
    }

    /// A draft that the secret of an epoch is the one that `commitment` commits to.
    pub fn draft_epoch(&self, author: [u8; 32], epoch: u32, commitment: [u8; 32]) -> Draft {
        self.draft(author, Matter::Epoch { epoch, commitment })
    }

    fn draft(&self, author: [u8; 32], matter: Matter) -> Draft {
        Draft {
            number: self.last_number(&device_id(&author)).saturating_add(1),
            epoch: self.epoch(),
            author,
            matter,
        }
    }

    /// How far the author has heard the device out. One who ends its own authority has said all, this statement included.
    fn heard(&self, author: &[u8; 32], device: &DeviceId) -> u64 {
        let last = self.last_number(device);
        last.saturating_add(u64::from(device_id(author) == *device))
    }

    fn last_number(&self, device: &DeviceId) -> u64 {
        let own = self.statements.values().filter(|s| s.author() == *device);
        own.map(Statement::number).max().unwrap_or(0)
    }

    /// Binary form, at most [`ROSTER_MAX`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let group = self.group();
        join(self.statements.values().map(|statement| statement.encode(&group)))
    }

    /// Reads the binary form and checks every signature in it.
    pub fn decode(bytes: &[u8], group_public: [u8; 32]) -> Result<Self, RosterError> {
        let mut statements = BTreeMap::new();
        for bytes in split(bytes)? {
            let statement = Statement::decode(bytes, &group_public)?;
            let last: Option<&StatementId> = statements.last_key_value().map(|(id, _)| id);
            if last.is_some_and(|last| *last >= statement.id()) {
                return Err(DecodeError::Invalid("statements out of order").into());
            }
            statements.insert(statement.id(), statement);
        }
        Ok(Self {
            group_public,
            view: View::of(&statements),
            statements,
        })
    }
}

fn join(statements: impl ExactSizeIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut w = Writer::with_capacity(HEAD_LEN + 400 * statements.len());
    w.raw(MAGIC).u8(VERSION).u16(statements.len() as u16);
    for statement in statements {
        w.bytes16(&statement);
    }
    w.into_vec()
}

/// The statements in an encoded roster, encoded, none of them verified.
pub fn split(bytes: &[u8]) -> Result<Vec<&[u8]>, DecodeError> {
    let mut r = Reader::new(bytes);
    if r.array::<4>()? != *MAGIC || r.u8()? != VERSION {
        return Err(DecodeError::Invalid("not a roster of a known version"));
    }
    let count = usize::from(r.u16()?);
    if count > STATEMENTS_MAX {
        return Err(DecodeError::Invalid("too many statements"));
    }
    let mut statements = Vec::new();
    for _ in 0..count {
        statements.push(r.bytes16(STATEMENT_MAX)?);
    }
    r.finish()?;
    Ok(statements)
}

impl View {
    fn of(statements: &BTreeMap<StatementId, Statement>) -> Self {
        let counting = counting(statements);
        let mut view = Self::default();
        let mut shut_out = 0_u32;
        let mut named = BTreeSet::new();
        // Whoever was never anything but a guest never could read.
        let (guests, others): (BTreeSet<_>, BTreeSet<_>) = statements
            .values()
            .filter_map(made_member)
            .partition(|(_, role)| *role == Role::Guest);
        let only_guest = |device: &DeviceId| {
            let mut others = others.range((*device, Role::Host)..=(*device, Role::Admin));
            guests.contains(&(*device, Role::Guest)) && others.next().is_none()
        };
        for (statement, counts) in statements.values().zip(counting) {
            named.extend(match statement.matter() {
                Matter::Member { certificate, .. } => Some(certificate.device_id()),
                _ => None,
            });
            if !counts {
                continue;
            }
            match statement.matter() {
                Matter::Member {
                    certificate,
                    version,
                    shuts_out,
                    ..
                } => {
                    shut_out += u32::from(*shuts_out);
                    view.take_certificate(certificate, *version);
                }
                Matter::Removed { device, at, .. } => {
                    shut_out += u32::from(!only_guest(device));
                    let date = view.removed.entry(*device).or_insert(*at);
                    *date = (*date).min(*at);
                }
                Matter::Epoch { epoch, commitment } => {
                    view.epochs.entry(*epoch).or_default().insert(*commitment);
                }
            }
        }
        view.members
            .retain(|device, _| !view.removed.contains_key(device));
        named.retain(|device| !view.members.contains_key(device) && !view.removed.contains_key(device));
        view.unvouched = named;
        view.due = FIRST_EPOCH.saturating_add(shut_out);
        view
    }

    fn take_certificate(&mut self, certificate: &Certificate, version: u32) {
        let issued = certificate.membership().issued;
        let entry = self
            .members
            .entry(certificate.device_id())
            .or_insert_with(|| Entry {
                certificate: certificate.clone(),
                version,
                since: issued,
            });
        // Of two admins who gave roles at once, the one who gave the lower counts; then any rule will do, if it is the same everywhere.
        let rank = |certificate: &Certificate, version: u32| {
            let lower = std::cmp::Reverse(certificate.membership().role);
            (version, lower, certificate.encode())
        };
        if rank(certificate, version) > rank(&entry.certificate, entry.version) {
            (entry.certificate, entry.version) = (certificate.clone(), version);
        }
        entry.since = entry.since.min(issued);
    }
}

/// For each statement, in order, whether it counts.
///
/// A statement is attacked by every removal or demotion of its author that had not heard of it, and needs one that counts to have made its
/// author an admin, unless none is known at all or its author made itself one with the recovery phrase. It counts when that is so and all
/// its attackers do not count. Where that goes round in a circle, the first of those left over counts, by the epoch that it knew, how far its
/// author is from one who had the phrase, its author and its number: removals and demotions before the rest. (After the grounded extension of an argumentation framework: Dung, Artificial
/// Intelligence 77, 1995.)
fn counting(statements: &BTreeMap<StatementId, Statement>) -> Vec<bool> {
    let relations = Relations::of(statements);
    let all = &relations.all;
    let mut counts: Vec<Option<bool>> = vec![None; all.len()];
    loop {
        let mut moved = false;
        for at in 0..all.len() {
            if counts[at].is_none() {
                counts[at] = relations.decide(at, &counts);
                moved |= counts[at].is_some();
            }
        }
        if moved {
            continue;
        }
        let left = (0..all.len()).filter(|at| counts[*at].is_none());
        let first = left.min_by_key(|at| {
            let statement = all[*at];
            let ends_nothing = statement.cut().is_none();
            let author = statement.author();
            let depth = relations.depths.get(&author).copied().unwrap_or(0);
            (
                ends_nothing,
                statement.epoch(),
                depth,
                author,
                statement.number(),
                statement.id(),
            )
        });
        match first {
            Some(first) => counts[first] = Some(true),
            None => break,
        }
    }
    counts.into_iter().map(|counts| counts == Some(true)).collect()
}

/// What speaks for and against each statement.
struct Relations<'a> {
    all: Vec<&'a Statement>,
    attackers: Vec<Vec<usize>>,
    /// Empty: it needs none.
    supporters: Vec<Vec<usize>>,
    /// How many admins lie between an admin and one who made itself one; those that are not in have nobody before them.
    depths: BTreeMap<DeviceId, usize>,
}

impl<'a> Relations<'a> {
    fn of(statements: &'a BTreeMap<StatementId, Statement>) -> Self {
        let all: Vec<&Statement> = statements.values().collect();
        // By device: who cut it, beyond which number, and from which version of its certificate on this is made good.
        let mut cuts: BTreeMap<DeviceId, Vec<(usize, u64, Option<u32>)>> = BTreeMap::new();
        let mut raised: BTreeMap<DeviceId, u32> = BTreeMap::new();
        let mut makers: BTreeMap<DeviceId, Vec<usize>> = BTreeMap::new();
        for (at, statement) in all.iter().enumerate() {
            let Some(device) = statement.matter().device() else {
                continue;
            };
            let version = match statement.matter() {
                Matter::Member { version, .. } => Some(*version),
                _ => None,
            };
            if let Some(heard) = statement.cut() {
                cuts.entry(device).or_default().push((at, heard, version));
                continue;
            }
            makers.entry(device).or_default().push(at);
            if statement.author() != device {
                let highest = raised.entry(device).or_default();
                *highest = version.unwrap_or(0).max(*highest);
            }
        }
        let against = |statement: &Statement| {
            let author = statement.author();
            let raised = raised.get(&author).copied().unwrap_or(0);
            let cuts = cuts.get(&author).into_iter().flatten();
            let unheard = cuts.filter(|(_, heard, version)| {
                statement.number() > *heard && version.is_none_or(|version| version > raised)
            });
            unheard.map(|(at, ..)| *at).collect()
        };
        let for_it = |statement: &Statement| {
            let author = statement.author();
            // Only who has the phrase makes itself an admin.
            let itself = statement.cut().is_none() && statement.matter().device() == Some(author);
            let makers = makers.get(&author).filter(|_| !itself);
            makers.cloned().unwrap_or_default()
        };
        Self {
            attackers: all.iter().map(|statement| against(statement)).collect(),
            supporters: all.iter().map(|statement| for_it(statement)).collect(),
            depths: depths(&all, &makers),
            all,
        }
    }

    /// Whether a statement counts, as far as that follows from what is decided.
    fn decide(&self, at: usize, counts: &[Option<bool>]) -> Option<bool> {
        let (attackers, supporters) = (&self.attackers[at], &self.supporters[at]);
        let all_out = |which: &[usize]| which.iter().all(|by| counts[*by] == Some(false));
        let one_in = |which: &[usize]| which.iter().any(|by| counts[*by] == Some(true));
        if one_in(attackers) || (!supporters.is_empty() && all_out(supporters)) {
            Some(false)
        } else if all_out(attackers) && (supporters.is_empty() || one_in(supporters)) {
            Some(true)
        } else {
            None
        }
    }
}

/// See [`Relations::depths`]; `makers` are the statements that make a device an admin.
fn depths(all: &[&Statement], makers: &BTreeMap<DeviceId, Vec<usize>>) -> BTreeMap<DeviceId, usize> {
    let mut depths = BTreeMap::new();
    let mut found: Vec<DeviceId> = all.iter().map(|statement| statement.author()).collect();
    found.retain(|author| {
        let by = makers.get(author);
        by.is_none_or(|by| by.iter().any(|at| all[*at].author() == *author))
    });
    let mut depth = 0;
    while !found.is_empty() {
        for device in found.drain(..) {
            depths.entry(device).or_insert(depth);
        }
        depth += 1;
        let next = makers.iter().filter(|(device, by)| {
            let made = by.iter().any(|at| depths.contains_key(&all[*at].author()));
            made && !depths.contains_key(device)
        });
        found.extend(next.map(|(device, _)| *device));
    }
    depths
}

/// The device that a statement makes a member, and its role.
fn made_member(statement: &Statement) -> Option<(DeviceId, Role)> {
    match statement.matter() {
        Matter::Member { certificate, .. } => Some((certificate.device_id(), certificate.membership().role)),
        _ => None,
    }
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
