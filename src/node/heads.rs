//! The heads that a node knows, of all members that write: heard from members and the DHT, published by this device, told to others.
//!
//! Invariants: a head is kept, told and passed on only if its device signed it and the roster lets it write; nothing here waits for the network,
//! and the listener hears of heads in the order in which they were kept. `head_book` has the rules, `news` carries heads over connections,
//! `head_records` through the DHT. What the daemon sees of it: [`HeadListener`], `Node::publish_head`, `Node::heads`.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::base::codec::DecodeError;
use crate::base::{DeviceId, GroupId, VolumeId};
use crate::keys::certificate::Membership;
use crate::keys::head::{HEAD_LEN, Unverified};
use crate::keys::{Head, Role, device_id};

use super::head_book::{self, HeadBook, Heard, place};
use super::head_news::{HeadNews, Place};
use super::members::Members;
use super::state::{NodeState, StateFile};

/// Heads from the DHT that wait to be looked at.
const MAIL_MAX: usize = 256;

/// Hears of heads. The daemon implements it.
pub trait HeadListener: Send + Sync + 'static {
    /// A device that may write has a newer head: another device, or this one, when it was put back to an earlier time or somebody has a
    /// copy of its state. `fork`: it does not follow the device's head that was known before; then this may be the one of the two that is
    /// not among `Node::heads`. Must not wait; called from the node's threads, in order.
    fn head(&self, head: &Head, fork: bool);
}

/// Why a head was not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// It is another device's, or of another group.
    #[error("the head is not this device's")]
    NotOwn,
    /// This device may not write.
    #[error("this device may not write: it is a {0}")]
    NotWriter(Role),
    /// A head of this device is known that this one does not follow: its state was put back to an earlier time, or copied. Go on from that one.
    #[error("head {} of this device is known already, and this one does not follow it", .0.seq)]
    Behind(Box<Head>),
    /// It cannot be kept here: told of and forgotten it would look like another one's.
    #[error("it cannot be saved: {0}")]
    Unsaved(String),
    /// The node has ended.
    #[error("the node has ended")]
    Gone,
}

/// See the head of this file.
pub(super) struct Heads {
    group: GroupId,
    own: [u8; 32],
    members: Arc<Members>,
    state: Arc<dyn NodeState>,
    book: Mutex<HeadBook>,
    /// Records of heads that came through the DHT and nobody has looked at yet.
    mail: Mutex<Vec<Unverified>>,
    /// Held while the listener is told, so that it hears everything in order.
    telling: Mutex<()>,
    listener: OnceLock<Arc<dyn HeadListener>>,
    changed: watch::Sender<u64>,
    /// Members are told nothing over connections, so that the DHT alone is left.
    #[cfg(test)]
    pub(super) mute: std::sync::atomic::AtomicBool,
}

impl Heads {
    /// Reads what was kept.
    pub(super) fn open(
        group: GroupId,
        own: [u8; 32],
        members: Arc<Members>,
        state: &Arc<dyn NodeState>,
    ) -> Self {
        let mut book = HeadBook::new(group);
        let loaded = state.load(StateFile::Heads).map_err(|e| e.to_string());
        let loaded = loaded.and_then(|bytes| match bytes {
            Some(bytes) => book
                .load(&bytes, |device| members.writes(device))
                .map_err(|e| e.to_string()),
            None => Ok(()),
        });
        if let Err(e) = loaded {
            tracing::warn!("the heads of other members cannot be read and are asked for anew: {e}");
        }
        match state.load(StateFile::Head) {
            Ok(Some(bytes)) => match Head::decode(&bytes, &group) {
                Ok(head) if head.device == own => drop(book.hear(head, None, Some(true))),
                _ => tracing::warn!("the newest head of this device cannot be understood, and is asked for"),
            },
            Ok(None) => {}
            Err(e) => tracing::warn!("the newest head of this device cannot be read, and is asked for: {e}"),
        }
        Self {
            group,
            own,
            members,
            state: Arc::clone(state),
            book: Mutex::new(book),
            mail: Mutex::default(),
            telling: Mutex::default(),
            listener: OnceLock::new(),
            changed: watch::Sender::new(0),
            #[cfg(test)]
            mute: std::sync::atomic::AtomicBool::new(false),
        }
    }

    /// Says who is told. Once.
    pub(super) fn set_listener(&self, listener: Arc<dyn HeadListener>) {
        let _ = self.listener.set(listener);
    }

    /// Tells of every change.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Counts the changes.
    pub(super) fn version(&self) -> u64 {
        self.book.lock().version()
    }

    fn allows(&self, head: &Head) -> bool {
        self.members.writes(&head.device_id()) != Some(false)
    }

    /// The newest head of each device that may write.
    pub(super) fn of(&self, volume: &VolumeId) -> Vec<Head> {
        let book = self.book.lock();
        let of_volume = book.iter().filter(|head| head.volume == *volume);
        of_volume.filter(|head| self.allows(head)).cloned().collect()
    }

    /// This device's newest head, if it may write.
    pub(super) fn own(&self) -> Option<Head> {
        let book = self.book.lock();
        book.get(&device_id(&self.own))
            .filter(|head| self.allows(head))
            .cloned()
    }

    /// Keeps a new head of this device, for others to be told.
    pub(super) fn publish(&self, head: &Head) -> Result<(), PublishError> {
        let is_own = head.device == self.own && Head::decode(&head.encode(&self.group), &self.group).is_ok();
        if !is_own {
            return Err(PublishError::NotOwn);
        }
        let own = head.device_id();
        if self.members.writes(&own) != Some(true) {
            return Err(PublishError::NotWriter(self.members.role()));
        }
        let mut book = self.book.lock();
        if let Some(known) = book.get(&own) {
            if head.hash() == known.hash() {
                return Ok(());
            }
            let follows = head.seq > known.seq
                && (known.seq.checked_add(1) != Some(head.seq) || head.previous == known.hash());
            if !follows {
                return Err(PublishError::Behind(Box::new(known.clone())));
            }
        }
        // Before anybody hears of it: a crash in between must not look as if somebody had put this device back.
        let saved = self.state.save(StateFile::Head, &head.encode(&self.group));
        saved.map_err(|e| PublishError::Unsaved(e.to_string()))?;
        book.hear(head.clone(), None, Some(true));
        self.changed.send_replace(book.version());
        Ok(())
    }

    /// Takes encoded heads from the member whose certificate states `shown`; an error is its fault.
    pub(super) fn hear(&self, heads: &[[u8; HEAD_LEN]], shown: &Membership) -> Result<(), String> {
        for bytes in heads {
            let head = Unverified::decode(bytes, &self.group).map_err(|e| e.to_string())?;
            self.check(head, Some(shown))?;
        }
        Ok(())
    }

    /// Looks at a head that is news; an error is the fault of whoever gave it.
    fn check(&self, head: Unverified, shown: Option<&Membership>) -> Result<(), String> {
        let device = device_id(head.device());
        if !self.book.lock().wants(&device, head.place()) {
            return Ok(());
        }
        let head = head.verify(&self.group).map_err(|e| e.to_string())?;
        let speaker = shown.filter(|shown| shown.device == head.device);
        // Others may not have heard yet that a device does not write any more, but whoever shows so itself knows.
        if speaker.is_some_and(|speaker| speaker.role < Role::Writer) {
            return Err("it has a head of its own, and is none that writes".into());
        }
        let known = self.members.writes(&device);
        let writes = known.or(speaker.map(|speaker| speaker.role >= Role::Writer));
        self.take(head, shown.map(|shown| device_id(&shown.device)), writes);
        Ok(())
    }

    fn take(&self, head: Head, from: Option<DeviceId>, writes: Option<bool>) {
        let telling = self.telling.lock();
        let (heard, version) = {
            let mut book = self.book.lock();
            (book.hear(head.clone(), from, writes), book.version())
        };
        let device = head.device_id();
        let fork = match heard {
            Heard::Newer => false,
            Heard::Fork { first } => {
                if first {
                    tracing::warn!(
                        device = %device.short(),
                        "has gone two ways from one state (head {}): its state directory was copied, or put back to an earlier time. \
                         Both are merged",
                        head.seq
                    );
                }
                true
            }
            Heard::Refused => {
                tracing::debug!(device = %device.short(), "a head is refused: the device may not write");
                return;
            }
            Heard::Known | Heard::Waits => return,
        };
        self.changed.send_replace(version);
        if let Some(listener) = self.listener.get() {
            listener.head(&head, fork);
        }
        drop(telling);
    }

    /// The roster has changed, or something came through the DHT.
    pub(super) fn settle(&self) {
        let waited = self.book.lock().settle(|device| self.members.writes(device));
        for (head, from) in waited {
            let writes = self.members.writes(&head.device_id());
            self.take(head, from, writes);
        }
    }

    /// A hash of all heads.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for head in self.book.lock().iter().filter(|head| self.allows(head)) {
            hasher.update(head.device_id().as_bytes()).update(&head.hash());
        }
        *hasher.finalize().as_bytes()
    }

    /// What is known, for somebody whose digest is another; none if it is the same.
    pub(super) fn known(&self, digest: &[u8; 32]) -> Option<Vec<Place>> {
        if self.digest() == *digest {
            return None;
        }
        let book = self.book.lock();
        Some(book.iter().filter(|head| self.allows(head)).map(place).collect())
    }

    /// The heads that somebody who knows these lacks, encoded. `own`: this device's among them.
    pub(super) fn beyond(&self, known: Vec<Place>, own: bool) -> Vec<[u8; HEAD_LEN]> {
        let known: std::collections::BTreeMap<DeviceId, Place> =
            known.into_iter().map(|place| (place.device, place)).collect();
        let book = self.book.lock();
        let lacking = book.iter().filter(|head| {
            known.get(&head.device_id()).is_none_or(|theirs| {
                head.seq > theirs.seq || (head.seq == theirs.seq && head.hash() < theirs.hash)
            })
        });
        self.encoded(lacking, own)
    }

    /// What is new since a version, for a member: not what came from it. And the version as it is now. `own`: this device's among it.
    pub(super) fn since(&self, version: u64, to: &DeviceId, own: bool) -> (Vec<[u8; HEAD_LEN]>, u64) {
        let book = self.book.lock();
        (self.encoded(book.since(version, to), own), book.version())
    }

    fn encoded<'a>(&self, heads: impl Iterator<Item = &'a Head>, own: bool) -> Vec<[u8; HEAD_LEN]> {
        #[cfg(test)]
        if self.mute.load(std::sync::atomic::Ordering::Relaxed) {
            return Vec::new();
        }
        let allowed = heads.filter(|head| self.allows(head) && (own || head.device != self.own));
        allowed
            .filter_map(|head| head.encode(&self.group).try_into().ok())
            .collect()
    }

    /// Answers a message; an error is the sender's fault.
    pub(super) fn answer(&self, news: HeadNews, shown: &Membership) -> Result<Option<HeadNews>, String> {
        match news {
            HeadNews::Digest(digest) => Ok(self.known(&digest).map(HeadNews::Known)),
            HeadNews::Newer(heads) => self.hear(&heads, shown).map(|()| None),
            HeadNews::Known(_) => Err("it answers what was not asked".into()),
        }
    }

    /// The DHT key of the head of the device with this public key.
    pub(super) fn key(&self, public: &[u8; 32]) -> [u8; 32] {
        head_book::key(&self.group, public)
    }

    /// The record for the DHT under this key, if it is one of a head that is known.
    pub(super) fn record(&self, key: &[u8]) -> Option<Vec<u8>> {
        let book = self.book.lock();
        let head = book.under(key).filter(|head| self.allows(head))?;
        Some(head.encode(&self.group))
    }

    /// A record came through the DHT that may be one of a head; if so, it is looked at later, by [`Heads::open_mail`].
    pub(super) fn mail(&self, key: &[u8], record: &[u8]) -> Result<(), DecodeError> {
        let head = Unverified::decode(record, &self.group)?;
        if *key != self.key(head.device()) {
            return Err(DecodeError::Invalid("a head under the key of another device"));
        }
        let wanted = self.book.lock().wants(&device_id(head.device()), head.place());
        let mut mail = self.mail.lock();
        if wanted && mail.len() < MAIL_MAX {
            mail.push(head);
        }
        Ok(())
    }

    /// Whether something came through the DHT.
    pub(super) fn has_mail(&self) -> bool {
        !self.mail.lock().is_empty()
    }

    /// Looks at what came through the DHT.
    pub(super) fn open_mail(&self) {
        let mail = std::mem::take(&mut *self.mail.lock());
        let wrong = mail.into_iter().filter_map(|head| self.check(head, None).err());
        if let Some(e) = wrong.last() {
            tracing::warn!("the DHT gave a record of a head that is not valid: {e}");
        }
    }

    /// All heads, encoded, if they have changed since the last call.
    pub(super) fn take_unsaved(&self) -> Option<Vec<u8>> {
        self.book.lock().take_changed()
    }
}
