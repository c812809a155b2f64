//! Which presences were shown by whom: how a copied state directory, or one that was put back to an earlier time, gives itself away.
//!
//! Pure; the clock is passed in. Every start of a device has a higher number than the one before, and a random instance. So a lower number
//! than was shown before, or the same with another instance, comes from a second copy or from an old one. Owned by `members`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::{DeviceId, GroupId};
use crate::keys::Presence;
use crate::keys::presence::PRESENCE_MAX;

use super::peers::PEERS_MAX;

/// What a process sent before it died may be read this long after what the next one sends.
const LATE: Duration = Duration::from_secs(30);
const MAGIC: &[u8; 4] = b"dfsQ";
const VERSION: u8 = 1;

struct Seen {
    presence: Presence,
    /// When, if since this node started.
    noted: Option<Instant>,
}

/// The presences of one device and of those it has met; at most [`PEERS_MAX`].
pub(super) struct Presences {
    group: GroupId,
    own: Presence,
    seen: BTreeMap<DeviceId, Seen>,
    changed: bool,
}

impl Presences {
    /// Nobody met yet.
    pub(super) fn new(own: Presence, group: GroupId) -> Self {
        Self {
            group,
            own,
            seen: BTreeMap::new(),
            changed: false,
        }
    }

    /// This device's own, encoded.
    pub(super) fn own(&self) -> Vec<u8> {
        self.own.encode(&self.group)
    }

    /// Number of this start.
    pub(super) fn sequence(&self) -> u64 {
        self.own.sequence
    }

    /// Number of the last start that the device has shown.
    #[cfg(test)]
    pub(super) fn seen(&self, device: &DeviceId) -> Option<u64> {
        self.seen.get(device).map(|seen| seen.presence.sequence)
    }

    /// What a device is called, if it said so.
    pub(super) fn name(&self, device: &DeviceId) -> Option<&str> {
        let presence = match *device == self.own.device() {
            true => &self.own,
            false => &self.seen.get(device)?.presence,
        };
        Some(presence.name.as_str()).filter(|name| !name.is_empty())
    }

    /// Notes what `device` shows on a connection that began at `since`; what it showed before, encoded, if the two do not go together.
    pub(super) fn note(
        &mut self,
        bytes: &[u8],
        device: &DeviceId,
        since: Instant,
        now: Instant,
    ) -> Result<Option<Vec<u8>>, DecodeError> {
        let presence = Presence::decode(bytes, &self.group)?;
        if presence.device() != *device {
            return Err(DecodeError::Invalid("the presence of another device"));
        }
        let known = self.seen.get(device);
        if known.is_none_or(|known| presence.sequence > known.presence.sequence) {
            if known.is_some() || self.seen.len() < PEERS_MAX {
                let noted = Some(now);
                self.seen.insert(*device, Seen { presence, noted });
                self.changed = true;
            }
            return Ok(None);
        }
        let Some(known) = known else { return Ok(None) };
        let same = presence.sequence == known.presence.sequence;
        if same && presence.instance == known.presence.instance {
            return Ok(None);
        }
        let late = known.noted.is_some_and(|at| since < at && now < at + LATE);
        if late && !same {
            return Ok(None);
        }
        Ok(Some(known.presence.encode(&self.group)))
    }

    /// Somebody shows what this device has shown it before: the number, if that was not this start nor one before it.
    pub(super) fn note_own(&self, bytes: &[u8]) -> Result<Option<u64>, DecodeError> {
        let seen = Presence::decode(bytes, &self.group)?;
        if seen.device() != self.own.device() {
            return Err(DecodeError::Invalid("the presence of another device"));
        }
        let (ours, theirs) = (self.own.sequence, seen.sequence);
        let other = theirs > ours || (theirs == ours && seen.instance != self.own.instance);
        Ok(other.then_some(theirs))
    }

    /// All that were shown, in binary form, if they changed since the last call.
    pub(super) fn take_changed(&mut self) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut w = Writer::with_capacity(7 + 200 * self.seen.len());
        w.raw(MAGIC).u8(VERSION).u16(self.seen.len() as u16);
        for seen in self.seen.values() {
            w.bytes16(&seen.presence.encode(&self.group));
        }
        Some(w.into_vec())
    }

    /// Reads the binary form.
    pub(super) fn load(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        let mut r = Reader::new(bytes);
        if r.array::<4>()? != *MAGIC || r.u8()? != VERSION {
            return Err(DecodeError::Invalid("not a list of presences of a known version"));
        }
        let count = usize::from(r.u16()?);
        if count > PEERS_MAX {
            return Err(DecodeError::Invalid("too many presences"));
        }
        for _ in 0..count {
            let presence = Presence::decode(r.bytes16(PRESENCE_MAX)?, &self.group)?;
            let noted = None;
            self.seen.insert(presence.device(), Seen { presence, noted });
        }
        r.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::DeviceKey;

    const GROUP: GroupId = GroupId([4; 32]);

    fn device() -> DeviceKey {
        DeviceKey::from_bytes(&[2; 32])
    }

    fn start(sequence: u64, instance: u8) -> Vec<u8> {
        Presence::issue(&device(), &GROUP, sequence, [instance; 16], "attic").encode(&GROUP)
    }

    fn observer() -> Presences {
        let own = Presence::issue(&DeviceKey::from_bytes(&[1; 32]), &GROUP, 1, [0; 16], "");
        Presences::new(own, GROUP)
    }

    #[test]
    fn starts_count_up_and_what_does_not_is_answered_with_what_was_seen() {
        let mut observer = observer();
        let (id, t) = (device().id(), Instant::now());
        let mut note = |bytes: &[u8], since, now| observer.note(bytes, &id, since, now).unwrap();
        assert_eq!(note(&start(5, 1), t, t), None);
        assert_eq!(note(&start(5, 1), t, t), None, "shown again");
        assert_eq!(note(&start(6, 2), t, t + LATE), None, "restarted");
        // A second copy of one state, and a state from before.
        assert_eq!(note(&start(6, 3), t, t + LATE), Some(start(6, 2)));
        let later = t + 3 * LATE;
        assert_eq!(note(&start(5, 1), later, later), Some(start(6, 2)));
        // The dead process's last words on its old connection are no copy; that it goes on talking is.
        assert_eq!(note(&start(5, 1), t, t + LATE + LATE / 2), None);
        assert_eq!(note(&start(5, 1), t, later), Some(start(6, 2)));
        assert_eq!(observer.name(&id), Some("attic"));
    }

    #[test]
    fn it_is_remembered_over_a_restart() {
        let mut before = observer();
        let (id, now) = (device().id(), Instant::now());
        before.note(&start(5, 1), &id, now, now).unwrap();
        let bytes = before.take_changed().unwrap();
        assert_eq!(before.take_changed(), None);
        let mut after = observer();
        after.load(&bytes).unwrap();
        assert_eq!(
            after.note(&start(4, 9), &id, now, now).unwrap(),
            Some(start(5, 1))
        );
        assert!(observer().load(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn a_device_knows_its_own_copy_and_is_not_fooled_by_others() {
        let own = Presence::issue(&device(), &GROUP, 5, [1; 16], "");
        let presences = Presences::new(own, GROUP);
        assert_eq!(
            presences.note_own(&start(4, 7)),
            Ok(None),
            "a start before this one"
        );
        assert_eq!(presences.note_own(&start(5, 1)), Ok(None));
        assert_eq!(presences.note_own(&start(5, 2)), Ok(Some(5)));
        assert_eq!(presences.note_own(&start(9, 2)), Ok(Some(9)));
        assert!(presences.note_own(&observer().own()).is_err());
        assert!(
            observer()
                .note(&start(5, 1), &DeviceId([0; 32]), Instant::now(), Instant::now())
                .is_err()
        );
    }
}
