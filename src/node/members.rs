//! What a node knows of its group: the roster, the presences it was shown, and its own; kept on disk, asked by every other part.
//!
//! Invariants: nothing of the roster is acted upon or told to anybody before it is on the disk; an admin's device never lets an epoch that
//! is due wait, and never states anything once it is an admin no more. Calls that may write block on the disk: async code makes them on a
//! thread for that. `news` carries it over connections, `daemon` opens it without a network for commands while no daemon runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::base::DeviceId;
use crate::base::clock::{Clock, UnixSecs};
use crate::base::codec::{DecodeError, Reader};
use crate::keys::certificate::Membership;
use crate::keys::roster;
use crate::keys::statement::{StatementError, StatementId};
use crate::keys::{
    Certificate, DeviceKey, Draft, EPOCH_MAX, Presence, Role, Roster, Standing, Statement, group_id,
};

use super::admit::Admit;
use super::config::NodeError;
use super::local::Identity;
use super::peers::PeerInfo;
use super::presences::Presences;
use super::state::{NodeState, StateFile};
use super::warnings::{Warning, date, report, warn};

/// Longest record of the roster in the DHT, in bytes: Kademlia's packets hold 16 KiB.
pub(super) const RECORD_MAX: usize = 12 << 10;
/// An open group has room for this many statements about its guests and others; the rest of the roster is for removals and new epochs.
const STATEMENTS_FOR_GUESTS: usize = roster::STATEMENTS_MAX / 4 * 3;
/// Refusals that are remembered for the status.
const REFUSALS_MAX: usize = 4;
const RECORD_CONTEXT: &str = "dfs 2026 DHT key of a roster";

/// The keys of this device, as far as they concern others. The daemon implements it.
pub trait Keys: Send + Sync + 'static {
    /// The newest epoch whose secret is here; 0: this device reads nothing.
    fn newest_epoch(&self) -> u32;

    /// Whether the root secret is here.
    fn has_root(&self) -> bool;

    /// What a member of this role is given, in the form in which a new member gets it.
    fn give(&self, role: Role) -> Option<Zeroizing<Vec<u8>>>;

    /// Takes what another member gave: every secret in it is checked against what admins committed to, and on disk before it is used.
    fn take(&self, gift: &[u8], roster: &Roster) -> Result<(), String>;

    /// The roster has changed: there may be a newer epoch, which an admin's device derives, or a new certificate of this device.
    fn heard(&self, roster: &Roster) -> Result<(), String>;
}

/// A device of the group, or one that was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The device.
    pub device: DeviceId,
    /// What its computer is called, where that is known.
    pub name: Option<String>,
    /// Its role; none once it is removed, or as long as it has shown no certificate.
    pub role: Option<Role>,
    /// Its failure zone.
    pub zone: Option<String>,
    /// When it was admitted.
    pub since: Option<UnixSecs>,
    /// When it was last connected to this device.
    pub last_seen: Option<UnixSecs>,
    /// Whether it is connected now.
    pub connected: bool,
    /// When it was removed.
    pub removed: Option<UnixSecs>,
    /// Whether it is this device.
    pub own: bool,
}

struct Inner {
    roster: Roster,
    presences: Presences,
    warnings: BTreeSet<Warning>,
}

/// See the head of this file.
pub struct Members {
    own: DeviceId,
    certificate: Certificate,
    signer: DeviceKey,
    group_public: [u8; 32],
    inner: Mutex<Inner>,
    /// Statements that came through the DHT and nobody has looked at yet; see `mail`.
    pub(super) mail: Mutex<Vec<Vec<Vec<u8>>>>,
    /// Held while the roster changes: what one change builds on is on the disk.
    changing: Mutex<()>,
    changed: watch::Sender<u64>,
    state: Arc<dyn NodeState>,
    clock: Arc<dyn Clock>,
    admit: Option<Arc<dyn Admit>>,
    keys: Option<Arc<dyn Keys>>,
}

impl Members {
    /// Reads what was kept. `starting`: this is a start of the device, which counts; else only a look.
    pub fn open(
        identity: &Identity,
        name: &str,
        state: Arc<dyn NodeState>,
        clock: Arc<dyn Clock>,
        admit: Option<Arc<dyn Admit>>,
        keys: Option<Arc<dyn Keys>>,
        starting: bool,
    ) -> Result<Self, NodeError> {
        let group_public = identity.group_public;
        let group = group_id(&group_public);
        let failed = |what: StateFile, e: &dyn std::fmt::Display| {
            NodeError::State(format!("the file {} cannot be read: {e}", what.name()))
        };
        let load = |what: StateFile| state.load(what).map_err(|e| failed(what, &e));
        let roster = match load(StateFile::Roster)? {
            // Without it, removed devices would be let in.
            Some(bytes) => Roster::decode(&bytes, group_public).map_err(|e| failed(StateFile::Roster, &e))?,
            None => Roster::new(group_public),
        };
        let mut sequence = match load(StateFile::Sequence)? {
            Some(bytes) => Reader::new(&bytes)
                .u64()
                .map_err(|e| failed(StateFile::Sequence, &e))?,
            None => 0,
        };
        let mut instance = [0; 16];
        if starting {
            sequence = sequence.saturating_add(1);
            getrandom::fill(&mut instance)
                .map_err(|_| NodeError::State("no random numbers could be had".into()))?;
            state
                .save(StateFile::Sequence, &sequence.to_le_bytes())
                .map_err(|e| NodeError::State(format!("the number of this start cannot be written: {e}")))?;
        }
        let mut presences = Presences::new(
            Presence::issue(&identity.device, &group, sequence, instance, name),
            group,
        );
        if let Some(bytes) = load(StateFile::Presences)?
            && let Err(e) = presences.load(&bytes)
        {
            tracing::warn!("the presences of other members cannot be read and are noted anew: {e}");
        }
        let members = Self {
            own: identity.device.id(),
            certificate: identity.certificate.clone(),
            signer: DeviceKey::from_bytes(&identity.device.seed()),
            group_public,
            inner: Mutex::new(Inner {
                roster,
                presences,
                warnings: BTreeSet::new(),
            }),
            mail: Mutex::default(),
            changing: Mutex::new(()),
            changed: watch::Sender::new(0),
            state,
            clock,
            admit,
            keys,
        };
        members.tend();
        Ok(members)
    }

    /// Tells of every change.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// The certificate to show: what the roster has, else the one that this device came with.
    pub(super) fn certificate(&self) -> Certificate {
        match self.inner.lock().roster.standing(&self.own) {
            Standing::Member(certificate) => certificate.clone(),
            _ => self.certificate.clone(),
        }
    }

    /// This device's role.
    pub fn role(&self) -> Role {
        self.certificate().membership().role
    }

    /// As which member a device counts that showed a valid certificate, or why not.
    pub(super) fn judge(&self, shown: &Membership) -> Result<Membership, String> {
        let device = crate::keys::device_id(&shown.device);
        let now = self.clock.now();
        match self.inner.lock().roster.standing(&device) {
            Standing::Unknown => Ok(shown.clone()),
            Standing::Member(certificate) => certificate
                .verify(&self.group_public, now)
                .cloned()
                .map_err(|e| e.to_string()),
            Standing::Removed(at) => Err(format!(
                "device {} was removed from the group on {}",
                device.short(),
                date(at)
            )),
            Standing::Unvouched => Err(format!(
                "device {} was admitted by one who was an admin no more",
                device.short()
            )),
        }
    }

    /// Public keys of all who belong, as far as the roster has them.
    pub(super) fn publics(&self) -> Vec<[u8; 32]> {
        let inner = self.inner.lock();
        let members = inner.roster.members();
        members
            .map(|(_, entry)| entry.certificate.membership().device)
            .collect()
    }

    /// Whether the device was removed.
    pub(super) fn is_removed(&self, device: &DeviceId) -> bool {
        matches!(self.inner.lock().roster.standing(device), Standing::Removed(_))
    }

    /// Whether a device may write; none if the roster does not know it.
    pub(super) fn writes(&self, device: &DeviceId) -> Option<bool> {
        let may = |certificate: &Certificate| certificate.membership().role >= Role::Writer;
        match self.inner.lock().roster.standing(device) {
            Standing::Member(certificate) => Some(may(certificate)),
            Standing::Removed(_) | Standing::Unvouched => Some(false),
            Standing::Unknown => (*device == self.own).then(|| may(&self.certificate)),
        }
    }

    /// A hash of the roster.
    pub(super) fn digest(&self) -> [u8; 32] {
        self.inner.lock().roster.digest()
    }

    /// The names of all statements, for somebody whose digest is another; none if it is the same.
    pub(super) fn known(&self, digest: &[u8; 32]) -> Option<Vec<StatementId>> {
        let inner = self.inner.lock();
        (inner.roster.digest() != *digest).then(|| inner.roster.ids().collect())
    }

    /// The statements that somebody who has these lacks, encoded.
    pub(super) fn beyond(&self, known: Vec<StatementId>) -> Vec<Vec<u8>> {
        self.inner.lock().roster.beyond(&known.into_iter().collect())
    }

    /// Takes encoded statements from anywhere; an error is the sender's fault.
    pub(super) fn hear(&self, statements: &[Vec<u8>]) -> Result<(), StatementError> {
        let mut new = Vec::new();
        for bytes in statements {
            let mut id = [0; 16];
            id.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
            if !self.inner.lock().roster.contains(&StatementId(id)) {
                new.push(Statement::decode(bytes, &self.group_public)?);
            }
        }
        if !new.is_empty() {
            if let Err(e) = self.add(|_| new) {
                tracing::error!("what admins stated of the group could not be kept: {e}");
            }
            self.tend();
        }
        Ok(())
    }

    /// Adds to the roster what `make` makes of it, durably, and tells everybody.
    fn add(&self, make: impl FnOnce(&Roster) -> Vec<Statement>) -> Result<(), String> {
        let changing = self.changing.lock();
        let before = self.inner.lock().roster.clone();
        let mut after = before.clone();
        if !after.add(make(&before)) {
            return Ok(());
        }
        self.state
            .save(StateFile::Roster, &after.encode())
            .map_err(|e| format!("the roster cannot be written: {e}"))?;
        report(&before, &after);
        let mut inner = self.inner.lock();
        for device in after.doubles() {
            let warning = match device == self.own {
                true => Warning::OwnCopy(inner.presences.sequence()),
                false => Warning::Copy(device),
            };
            warn(&mut inner.warnings, warning);
        }
        inner.roster = after;
        drop(inner);
        drop(changing);
        self.tell();
        Ok(())
    }

    /// Does what is due: an admin's device begins epochs; keys follow the roster.
    fn tend(&self) {
        // A new member has heard nothing yet, and so has nothing to say.
        let begun = !self.inner.lock().roster.is_empty();
        if let Some(admit) = self.admit.as_ref().filter(|_| begun && self.may_state()) {
            loop {
                let (next, due) = {
                    let inner = self.inner.lock();
                    (inner.roster.epoch_uncommitted(), inner.roster.epoch_due())
                };
                let Some(commitment) = (next <= due.min(EPOCH_MAX))
                    .then(|| admit.commitment(next))
                    .flatten()
                else {
                    break;
                };
                let epoch = |roster: &Roster| {
                    // Somebody else may have begun it meanwhile.
                    (roster.epoch_uncommitted() <= next)
                        .then(|| roster.draft_epoch(self.signer.public(), next, commitment))
                };
                if let Err(e) = self.state_it(epoch) {
                    tracing::error!("a new key epoch could not be begun: {e}");
                    break;
                }
            }
        }
        if let Some(keys) = &self.keys {
            let roster = self.inner.lock().roster.clone();
            if let Err(e) = keys.heard(&roster) {
                tracing::error!("the keys could not follow the roster: {e}");
            }
        }
    }

    fn may_state(&self) -> bool {
        let role = match self.inner.lock().roster.standing(&self.own) {
            Standing::Unknown => self.certificate.membership().role,
            Standing::Member(certificate) => certificate.membership().role,
            Standing::Removed(_) | Standing::Unvouched => return false,
        };
        self.admit.is_some() && role == Role::Admin
    }

    fn state_it(&self, draft: impl FnOnce(&Roster) -> Option<Draft>) -> Result<(), String> {
        let admit = self.admit.as_ref().filter(|_| self.may_state());
        let admit = admit.ok_or("this device is no admin of the group")?;
        self.add(|roster| {
            draft(roster)
                .map(|draft| admit.sign(draft, &self.signer))
                .into_iter()
                .collect()
        })
    }

    /// Whether a device may be admitted here, and if so enters its certificate; its role as it then is.
    pub(super) fn certify(&self, certificate: &Certificate) -> Result<(), String> {
        let device = certificate.device_id();
        let guest = certificate.membership().role == Role::Guest;
        match self.inner.lock().roster.standing(&device) {
            Standing::Removed(_) => {
                return Err("the device was removed from the group: it can only join as a new device".into());
            }
            // Asked again: its first answer may have been lost.
            Standing::Member(known) if known.membership().role == certificate.membership().role => {
                return Ok(());
            }
            Standing::Member(known) if guest || known.membership().role == Role::Guest => {
                return Err(
                    "a guest has a volume of its own, with keys that nobody else has: join anew, with an invitation to the other role"
                        .into(),
                );
            }
            _ => {}
        }
        if guest && self.inner.lock().roster.len() >= STATEMENTS_FOR_GUESTS {
            return Err("the group has as many guests as it can have".into());
        }
        self.state_it(|roster| Some(roster.draft_member(self.signer.public(), certificate.clone())))
    }

    /// A device has been connected for a while with a good certificate that no statement speaks of: an admin's device enters it.
    pub(super) fn adopt(&self, certificate: &Certificate) {
        let device = certificate.device_id();
        let unknown = self.inner.lock().roster.standing(&device) == Standing::Unknown;
        if unknown && self.may_state() && self.certify(certificate).is_ok() {
            tracing::info!(device = %device.short(), "entered a member into the roster that was not in it");
        }
    }

    /// Removes a device from the group. Final.
    pub fn remove(&self, device: &DeviceId) -> Result<(), String> {
        if self.is_removed(device) {
            return Err("it was removed already".into());
        }
        let now = self.clock.now();
        self.state_it(|roster| Some(roster.draft_removal(self.signer.public(), *device, now)))?;
        self.tend();
        Ok(())
    }

    /// Gives a device another role; what it was before.
    pub fn set_role(&self, device: &DeviceId, role: Role) -> Result<Role, String> {
        let before = match self.inner.lock().roster.standing(device) {
            Standing::Member(certificate) => certificate.membership().clone(),
            Standing::Removed(_) => return Err("it was removed from the group".into()),
            Standing::Unknown | Standing::Unvouched => {
                return Err(
                    "no admin has stated yet that it belongs: let it be connected for a minute".into(),
                );
            }
        };
        if before.role == role {
            return Err(format!("it is a {role} already"));
        }
        let admit = self
            .admit
            .as_ref()
            .ok_or("this device is no admin of the group")?;
        let zone = before.zone.as_deref();
        let certificate = admit.certificate(&before.device, role, zone, self.clock.now())?;
        self.certify(&certificate)?;
        self.tend();
        Ok(before.role)
    }

    /// What is to be asked of a member with this role: keys beyond the newest here, and the root secret or not.
    pub(super) fn keys_wanted(&self, peer: Role) -> Option<(u32, bool)> {
        let keys = self.keys.as_ref()?;
        let (own, newest) = (self.role(), keys.newest_epoch());
        let root = own == Role::Admin && peer == Role::Admin && !keys.has_root();
        let behind = own.reads() && peer.reads() && newest < self.epoch();
        (root || behind).then_some((newest, root))
    }

    /// What a member of this role is given that has keys up to `newest`; nothing to hosts, nothing that it has.
    pub(super) fn give(&self, peer: &Membership, newest: u32, root: bool) -> Option<Zeroizing<Vec<u8>>> {
        let keys = self.keys.as_ref()?;
        let role = self.judge(peer).ok()?.role;
        let more = keys.newest_epoch() > newest || (root && role == Role::Admin && keys.has_root());
        (role.reads() && more).then(|| keys.give(role)).flatten()
    }

    /// Takes keys that a member gave.
    pub(super) fn take_keys(&self, gift: &[u8]) -> Result<(), String> {
        let Some(keys) = &self.keys else { return Ok(()) };
        let roster = self.inner.lock().roster.clone();
        keys.take(gift, &roster)?;
        self.tell();
        Ok(())
    }

    /// This device's presence, encoded.
    pub(super) fn presence(&self) -> Vec<u8> {
        self.inner.lock().presences.own()
    }

    /// Notes a presence that `device` showed on a connection that began at `since`; what it showed before, if that does not go with it.
    pub(super) fn note_presence(
        &self,
        bytes: &[u8],
        device: &DeviceId,
        since: Instant,
    ) -> Result<Option<Vec<u8>>, DecodeError> {
        let mut inner = self.inner.lock();
        let before = inner.presences.note(bytes, device, since, Instant::now())?;
        if before.is_some() {
            warn(&mut inner.warnings, Warning::Copy(*device));
        }
        Ok(before)
    }

    /// A peer says that this device has shown it another presence before.
    pub(super) fn note_own(&self, bytes: &[u8]) -> Result<(), DecodeError> {
        let mut inner = self.inner.lock();
        let Some(theirs) = inner.presences.note_own(bytes)? else {
            return Ok(());
        };
        warn(&mut inner.warnings, Warning::OwnCopy(theirs));
        drop(inner);
        // The next start gets a number that nobody has seen.
        if let Err(e) = self.state.save(StateFile::Sequence, &theirs.to_le_bytes()) {
            tracing::warn!("the number of this start cannot be written: {e}");
        }
        Ok(())
    }

    /// A peer refused this device.
    pub(super) fn refused(&self, why: &str) {
        let warnings = &mut self.inner.lock().warnings;
        let refusals = warnings.iter().filter(|w| matches!(w, Warning::Refused(_)));
        // It is the peer that chooses the words.
        if refusals.count() < REFUSALS_MAX {
            warnings.insert(Warning::Refused(why.to_owned()));
        }
    }

    /// Number of the last start that the device has shown.
    #[cfg(test)]
    pub(super) fn seen(&self, device: &DeviceId) -> Option<u64> {
        self.inner.lock().presences.seen(device)
    }

    /// The presences that were shown, encoded, if they have changed since the last call.
    pub(super) fn take_unsaved(&self) -> Option<Vec<u8>> {
        self.inner.lock().presences.take_changed()
    }

    /// What a person should know, a sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let reads = self.role().reads();
        let inner = self.inner.lock();
        let mut told: Vec<String> = inner.warnings.iter().map(Warning::to_string).collect();
        if let Some(keys) = self.keys.as_ref().filter(|keys| reads && keys.newest_epoch() > 0) {
            let (have, need) = (keys.newest_epoch(), inner.roster.epoch_due());
            if have < need {
                told.push(format!(
                    "a device was removed, but the keys of epoch {need} are not here yet: new data is sealed under epoch {have} until \
                     a member that has them is met"
                ));
            }
        }
        told
    }

    /// The newest epoch that an admin has begun.
    pub fn epoch(&self) -> u32 {
        self.inner.lock().roster.epoch()
    }

    /// Everybody who belongs, who did, and who was met without being in the roster.
    pub fn list(&self, peers: &[PeerInfo]) -> Vec<Member> {
        let inner = self.inner.lock();
        let mut all: BTreeMap<DeviceId, Member> = BTreeMap::new();
        let blank = |device: DeviceId| Member {
            device,
            name: None,
            role: None,
            zone: None,
            since: None,
            last_seen: None,
            connected: false,
            removed: None,
            own: device == self.own,
        };
        for (device, entry) in inner.roster.members() {
            let member = all.entry(*device).or_insert_with(|| blank(*device));
            member.role = Some(entry.certificate.membership().role);
            member.zone.clone_from(&entry.certificate.membership().zone);
            member.since = Some(entry.since);
        }
        for (device, at) in inner.roster.removed() {
            all.entry(*device).or_insert_with(|| blank(*device)).removed = Some(at);
        }
        for peer in peers.iter().filter(|peer| peer.role.is_some()) {
            let member = all.entry(peer.device).or_insert_with(|| blank(peer.device));
            member.role = match member.removed {
                Some(_) => None,
                None => member.role.or(peer.role),
            };
            member.zone = member.zone.take().or_else(|| peer.zone.clone());
            member.last_seen = (peer.last_seen > 0).then_some(peer.last_seen);
            member.connected = peer.connected;
        }
        let own = all.entry(self.own).or_insert_with(|| blank(self.own));
        if own.removed.is_none() {
            own.role = own.role.or(Some(self.certificate.membership().role));
        }
        for (device, member) in &mut all {
            member.name = inner.presences.name(device).map(str::to_owned);
        }
        all.into_values().collect()
    }

    /// The DHT key of the group's roster.
    pub(super) fn record_key(&self) -> [u8; 32] {
        let group = group_id(&self.group_public);
        blake3::derive_key(RECORD_CONTEXT, group.as_bytes())
    }

    /// The record of the roster for the DHT, at most [`RECORD_MAX`] bytes.
    pub(super) fn record(&self) -> Vec<u8> {
        self.inner.lock().roster.extract(RECORD_MAX)
    }
}
