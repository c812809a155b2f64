//! The ledger of invitations: which devices each has admitted. Pure; the clock is passed in.
//!
//! Invariant: an invitation admits at most as many devices as it has uses, each device any number of times (its first answer may have
//! been lost). `admit` writes the ledger to disk before a joiner hears that it is admitted.

use std::collections::BTreeMap;

use crate::base::clock::UnixSecs;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::keys::Invitation;
use crate::keys::certificate::CLOCK_SKEW_SECS;
use crate::keys::invitation::{InvitationId, USES_MAX};

/// Most invitations remembered; each for as long as it is valid.
const INVITATIONS_MAX: usize = 4096;
const MAGIC: &[u8; 4] = b"dfsL";
const VERSION: u8 = 1;

/// Why an invitation admits nobody any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum LedgerError {
    /// All its uses are spent.
    #[error("the invitation has been used already")]
    Spent,
    /// The ledger is full of invitations that are still valid.
    #[error("too many invitations are open")]
    Full,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    expires: UnixSecs,
    devices: Vec<[u8; 32]>,
}

/// The ledger.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Ledger(BTreeMap<InvitationId, Entry>);

impl Ledger {
    /// Notes that the invitation, which was verified, admits the device. True when that is new.
    pub(super) fn admit(
        &mut self,
        invitation: &Invitation,
        device: [u8; 32],
        now: UnixSecs,
    ) -> Result<bool, LedgerError> {
        let used = self.0.get(&invitation.id).map_or(&[][..], |e| &e.devices);
        if used.contains(&device) {
            return Ok(false);
        }
        if used.len() >= usize::from(invitation.uses) {
            return Err(LedgerError::Spent);
        }
        self.note(invitation.id, invitation.expires, device, now)
    }

    /// Notes a use that another admin reports. True when that is new.
    pub(super) fn note(
        &mut self,
        id: InvitationId,
        expires: UnixSecs,
        device: [u8; 32],
        now: UnixSecs,
    ) -> Result<bool, LedgerError> {
        self.0
            .retain(|_, e| e.expires.saturating_add(2 * CLOCK_SKEW_SECS) >= now);
        if self.0.len() >= INVITATIONS_MAX && !self.0.contains_key(&id) {
            return Err(LedgerError::Full);
        }
        let entry = self.0.entry(id).or_insert(Entry {
            expires,
            devices: Vec::new(),
        });
        if entry.devices.contains(&device) || entry.devices.len() >= usize::from(USES_MAX) {
            return Ok(false);
        }
        entry.devices.push(device);
        Ok(true)
    }

    /// Every use: invitation, its expiry date, device.
    pub(super) fn uses(&self) -> impl Iterator<Item = (InvitationId, UnixSecs, [u8; 32])> + '_ {
        self.0
            .iter()
            .flat_map(|(id, e)| e.devices.iter().map(|d| (*id, e.expires, *d)))
    }

    /// Binary form.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(16 + 64 * self.0.len());
        w.raw(MAGIC).u8(VERSION).u16(self.0.len() as u16);
        for (id, entry) in &self.0 {
            w.raw(&id.0).u64(entry.expires).u16(entry.devices.len() as u16);
            for device in &entry.devices {
                w.raw(device);
            }
        }
        w.into_vec()
    }

    /// Reads the binary form.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        if r.array::<4>()? != *MAGIC || r.u8()? != VERSION {
            return Err(DecodeError::Invalid("not a ledger of a known version"));
        }
        let count = usize::from(r.u16()?);
        if count > INVITATIONS_MAX {
            return Err(DecodeError::Invalid("too many invitations"));
        }
        let mut ledger = BTreeMap::new();
        for _ in 0..count {
            let id = InvitationId(r.array()?);
            let expires = r.u64()?;
            let uses = r.u16()?;
            if uses > USES_MAX {
                return Err(DecodeError::Invalid("too many uses of an invitation"));
            }
            let mut devices = Vec::new();
            for _ in 0..uses {
                devices.push(r.array()?);
            }
            ledger.insert(id, Entry { expires, devices });
        }
        r.finish()?;
        Ok(Self(ledger))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: InvitationId = InvitationId([1; 16]);

    #[test]
    fn reports_of_other_admins_count_and_survive_the_disk() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.note(ID, 100, [1; 32], 50), Ok(true));
        assert_eq!(ledger.note(ID, 100, [1; 32], 50), Ok(false));
        assert_eq!(ledger.note(ID, 100, [2; 32], 50), Ok(true));
        let read = Ledger::decode(&ledger.encode()).unwrap();
        assert_eq!(read, ledger);
        assert_eq!(read.uses().count(), 2);
    }

    #[test]
    fn expired_invitations_make_room_and_valid_ones_do_not() {
        let mut ledger = Ledger::default();
        for n in 0..INVITATIONS_MAX as u128 {
            ledger
                .note(InvitationId(n.to_le_bytes()), 10_000, [1; 32], 0)
                .unwrap();
        }
        let next = InvitationId([0xff; 16]);
        assert_eq!(ledger.note(next, 10_000, [1; 32], 0), Err(LedgerError::Full));
        let later = 10_001 + 2 * CLOCK_SKEW_SECS;
        assert_eq!(ledger.note(next, later, [1; 32], later), Ok(true));
        assert_eq!(ledger.uses().count(), 1);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Ledger::decode(&bytes);
            bytes.splice(0..0, [b'd', b'f', b's', b'L', 1]);
            let _ = Ledger::decode(&bytes);
        }
    }
}
