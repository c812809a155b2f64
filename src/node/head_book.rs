//! Which head of each device is its newest, and who has to be told: the rules by which heads are kept. Pure.
//!
//! Invariants: of one device one head is kept, and of any set of its heads all members keep the same, in whatever order they hear of them: the
//! highest number, of two with one number the lower hash. Nothing of a device that may not write is kept or told. At most [`HEADS_MAX`].
//! Every change gets a version, so that whoever tells others knows what is new since it last did. Owned by `heads`.

use std::collections::BTreeMap;

use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::{DeviceId, GroupId};
use crate::keys::Head;
use crate::keys::head::HEAD_LEN;
use crate::keys::roster::STATEMENTS_MAX;

use super::head_news::Place;

/// Most heads: there are no more members.
pub(super) const HEADS_MAX: usize = STATEMENTS_MAX;
/// Most heads of devices that the roster does not know yet.
const WAITING_MAX: usize = 64;

const MAGIC: &[u8; 4] = b"dfsW";
const VERSION: u8 = 1;
const KEY_CONTEXT: &str = "dfs 2026 DHT key of a head";

/// The DHT key of the head of the device with this public key.
pub(super) fn key(group: &GroupId, public: &[u8; 32]) -> [u8; 32] {
    blake3::derive_key(KEY_CONTEXT, &[&group.as_bytes()[..], public].concat())
}

/// What came of hearing a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// It is the newest, and kept.
    Newer,
    /// The device went two ways from one state; this is one of them, and not known before. `first`: nobody has heard so of this device.
    Fork {
        /// Whether no fork of this device was seen before.
        first: bool,
    },
    /// It is known, or was replaced.
    Known,
    /// The roster does not know the device yet: it may be kept later.
    Waits,
    /// Its device may not write.
    Refused,
}

struct Kept {
    head: Head,
    /// Who told.
    from: Option<DeviceId>,
    version: u64,
    forked: bool,
    /// The last one that was not kept although it had the same number.
    other: Option<[u8; 32]>,
}

/// See the head of this file.
pub(super) struct HeadBook {
    group: GroupId,
    kept: BTreeMap<DeviceId, Kept>,
    /// Which device has changed at each version.
    order: BTreeMap<u64, DeviceId>,
    /// Whose head is under each key of the DHT.
    keys: BTreeMap<[u8; 32], DeviceId>,
    version: u64,
    waiting: BTreeMap<DeviceId, (Head, Option<DeviceId>)>,
    changed: bool,
}

impl HeadBook {
    /// An empty one.
    pub(super) fn new(group: GroupId) -> Self {
        Self {
            group,
            kept: BTreeMap::new(),
            order: BTreeMap::new(),
            keys: BTreeMap::new(),
            version: 0,
            waiting: BTreeMap::new(),
            changed: false,
        }
    }

    /// The newest head of a device.
    pub(super) fn get(&self, device: &DeviceId) -> Option<&Head> {
        self.kept.get(device).map(|kept| &kept.head)
    }

    /// The head under this key of the DHT.
    pub(super) fn under(&self, key: &[u8]) -> Option<&Head> {
        let key: &[u8; 32] = key.try_into().ok()?;
        self.get(self.keys.get(key)?)
    }

    /// All heads, in the order of their devices' ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Head> {
        self.kept.values().map(|kept| &kept.head)
    }

    /// Counts the changes.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Whether a head of this place would be news: else its signature need not be looked at.
    pub(super) fn wants(&self, device: &DeviceId, (seq, hash): (u64, [u8; 32])) -> bool {
        self.kept.get(device).is_none_or(|kept| {
            seq > kept.head.seq
                || (seq == kept.head.seq && hash != kept.head.hash() && Some(hash) != kept.other)
        })
    }

    /// Hears of a head from a member, or from this device or the DHT. `writes`: whether its device may write, none if nobody knows.
    pub(super) fn hear(&mut self, head: Head, from: Option<DeviceId>, writes: Option<bool>) -> Heard {
        let device = head.device_id();
        match writes {
            Some(false) => return Heard::Refused,
            None => return self.wait(device, head, from),
            Some(true) => {}
        }
        let Some(known) = self.kept.get_mut(&device) else {
            if self.kept.len() >= HEADS_MAX {
                return Heard::Refused;
            }
            self.keep(device, head, from, false, None);
            return Heard::Newer;
        };
        let (seq, hash) = (known.head.seq, known.head.hash());
        if head.seq < seq || head.hash() == hash || known.other == Some(head.hash()) {
            return Heard::Known;
        }
        let first = !known.forked;
        let twin = head.seq == seq;
        if twin && !head.supersedes(&known.head) {
            known.forked = true;
            known.other = Some(head.hash());
            return Heard::Fork { first };
        }
        let astray = seq.checked_add(1) == Some(head.seq) && head.previous != hash;
        let forked = twin || astray;
        let (before, other) = (known.forked, twin.then_some(hash));
        self.keep(device, head, from, before || forked, other);
        match forked {
            true => Heard::Fork { first },
            false => Heard::Newer,
        }
    }

    fn keep(
        &mut self,
        device: DeviceId,
        head: Head,
        from: Option<DeviceId>,
        forked: bool,
        other: Option<[u8; 32]>,
    ) {
        self.version += 1;
        self.keys.insert(key(&self.group, &head.device), device);
        let version = self.version;
        let kept = Kept {
            head,
            from,
            version,
            forked,
            other,
        };
        if let Some(before) = self.kept.insert(device, kept) {
            self.order.remove(&before.version);
        }
        self.order.insert(version, device);
        self.changed = true;
    }

    fn wait(&mut self, device: DeviceId, head: Head, from: Option<DeviceId>) -> Heard {
        let room = self.waiting.len() < WAITING_MAX;
        match self.waiting.get(&device) {
            Some((known, _)) if !head.supersedes(known) => return Heard::Known,
            None if !room => return Heard::Refused,
            _ => {}
        }
        self.waiting.insert(device, (head, from));
        Heard::Waits
    }

    /// The roster has changed: drops the heads of those who may not write any more; returns those that waited for it, and from whom they came.
    pub(super) fn settle(
        &mut self,
        writes: impl Fn(&DeviceId) -> Option<bool>,
    ) -> Vec<(Head, Option<DeviceId>)> {
        let before = self.kept.len();
        self.kept.retain(|device, _| writes(device) != Some(false));
        if self.kept.len() != before {
            self.order.retain(|_, device| self.kept.contains_key(device));
            self.keys.retain(|_, device| self.kept.contains_key(device));
            self.changed = true;
        }
        let decided = self.waiting.extract_if(.., |device, _| writes(device).is_some());
        decided.map(|(_, waited)| waited).collect()
    }

    /// What is new since this version, for a member: not what came from it.
    pub(super) fn since(&self, version: u64, to: &DeviceId) -> impl Iterator<Item = &Head> {
        let newer = self.order.range(version.saturating_add(1)..);
        newer
            .filter_map(|(_, device)| self.kept.get(device))
            .filter(move |kept| kept.from != Some(*to))
            .map(|kept| &kept.head)
    }

    /// All heads in binary form, for the disk, if they have changed since the last call.
    pub(super) fn take_changed(&mut self) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut w = Writer::with_capacity(7 + HEAD_LEN * self.kept.len());
        w.raw(MAGIC).u8(VERSION).u16(self.kept.len() as u16);
        for head in self.iter() {
            w.raw(&head.encode(&self.group));
        }
        Some(w.into_vec())
    }

    /// Reads the binary form into an empty book, but for the heads of those who may not write any more.
    pub(super) fn load(
        &mut self,
        bytes: &[u8],
        writes: impl Fn(&DeviceId) -> Option<bool>,
    ) -> Result<(), DecodeError> {
        let mut r = Reader::new(bytes);
        if r.array::<4>()? != *MAGIC || r.u8()? != VERSION {
            return Err(DecodeError::Invalid("not a list of heads of a known version"));
        }
        let count = usize::from(r.u16()?);
        if count > HEADS_MAX {
            return Err(DecodeError::Invalid("too many heads"));
        }
        for _ in 0..count {
            let head = Head::decode(r.take(HEAD_LEN)?, &self.group)?;
            // What a certificate allowed that the roster had not heard of was kept, and is.
            let may = writes(&head.device_id()) != Some(false);
            self.hear(head, None, Some(may));
        }
        self.changed = false;
        r.finish()
    }
}

/// The place of a head among those of its device.
pub(super) fn place(head: &Head) -> Place {
    Place {
        device: head.device_id(),
        seq: head.seq,
        hash: head.hash(),
    }
}

#[cfg(test)]
#[path = "head_book_tests.rs"]
mod tests;
