//! A device's own signed word of being there: under which number of its starts, and what it is called.
//!
//! The number grows with every start and is on the disk before anybody hears it, so a lower one than before comes from a state directory
//! that was put back to an earlier time, and one number with two random instances from two copies of one state directory. Both are told
//! apart in `node::members`, by peers and, when they show it what they have seen, by the device itself. Form: `docs/protocol.md`.

use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::{DeviceId, GroupId};

use super::{DeviceKey, device_id, verify};

/// Longest name of a device, in bytes.
pub const NAME_MAX: usize = 64;
/// Longest encoded presence, in bytes.
pub const PRESENCE_MAX: usize = 4 + 1 + 32 + 32 + 8 + 16 + 2 + NAME_MAX + 64;

const MAGIC: &[u8; 4] = b"dfsN";
const VERSION: u8 = 1;
const CONTEXT: &[u8] = b"dfs presence v1\0";

/// One start of a device. Its signature was checked when it came from bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    device: [u8; 32],
    /// Counts the starts of the device from 1.
    pub sequence: u64,
    /// Random for each start.
    pub instance: [u8; 16],
    /// What its computer is called, at most [`NAME_MAX`] bytes; may be empty.
    pub name: String,
    signature: [u8; 64],
}

impl Presence {
    /// The presence of `device` in a group. The name is cut to [`NAME_MAX`] bytes at a character boundary, without control characters.
    pub fn issue(device: &DeviceKey, group: &GroupId, sequence: u64, instance: [u8; 16], name: &str) -> Self {
        let mut name: String = name.chars().filter(|c| !c.is_control()).collect();
        let mut end = name.len().min(NAME_MAX);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
        let mut presence = Self {
            device: device.public(),
            sequence,
            instance,
            name,
            signature: [0; 64],
        };
        presence.signature = device.sign(&presence.signed_bytes(group));
        presence
    }

    /// The device.
    pub fn device(&self) -> DeviceId {
        device_id(&self.device)
    }

    /// Binary form, at most [`PRESENCE_MAX`] bytes.
    pub fn encode(&self, group: &GroupId) -> Vec<u8> {
        let mut bytes = self.body(group);
        bytes.extend_from_slice(&self.signature);
        bytes
    }

    /// Reads the binary form; group and signature are checked.
    pub fn decode(bytes: &[u8], group: &GroupId) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        if r.array::<4>()? != *MAGIC || r.u8()? != VERSION {
            return Err(DecodeError::Invalid("not a presence of a known version"));
        }
        if GroupId(r.array()?) != *group {
            return Err(DecodeError::Invalid("a presence in another group"));
        }
        let presence = Self {
            device: r.array()?,
            sequence: r.u64()?,
            instance: r.array()?,
            name: r.str16(NAME_MAX)?.to_owned(),
            signature: r.array()?,
        };
        r.finish()?;
        if presence.name.chars().any(char::is_control) {
            return Err(DecodeError::Invalid("a name with control characters"));
        }
        if !verify(
            &presence.device,
            &presence.signed_bytes(group),
            &presence.signature,
        ) {
            return Err(DecodeError::Invalid("a presence that its device did not sign"));
        }
        Ok(presence)
    }

    fn body(&self, group: &GroupId) -> Vec<u8> {
        let mut w = Writer::with_capacity(PRESENCE_MAX);
        w.raw(MAGIC)
            .u8(VERSION)
            .raw(group.as_bytes())
            .raw(&self.device)
            .u64(self.sequence)
            .raw(&self.instance)
            .bytes16(self.name.as_bytes());
        w.into_vec()
    }

    fn signed_bytes(&self, group: &GroupId) -> Vec<u8> {
        [CONTEXT, &self.body(group)].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GROUP: GroupId = GroupId([4; 32]);

    fn key() -> DeviceKey {
        DeviceKey::from_bytes(&[9; 32])
    }

    proptest! {
        #[test]
        fn any_presence_round_trips_and_no_altered_one_is_believed(
            sequence: u64, instance: [u8; 16], name in ".{0,80}", at in any::<prop::sample::Index>(), bit in 0_u8..8,
        ) {
            let presence = Presence::issue(&key(), &GROUP, sequence, instance, &name);
            let bytes = presence.encode(&GROUP);
            prop_assert!(bytes.len() <= PRESENCE_MAX);
            prop_assert_eq!(Presence::decode(&bytes, &GROUP), Ok(presence));
            prop_assert!(Presence::decode(&bytes, &GroupId([5; 32])).is_err());
            let mut wrong = bytes.clone();
            wrong[at.index(bytes.len())] ^= 1 << bit;
            prop_assert!(Presence::decode(&wrong, &GROUP).is_err());
        }

        #[test]
        fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Presence::decode(&bytes, &GROUP).is_err());
        }
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let bytes = Presence::issue(&key(), &GROUP, 3, [7; 16], "attic").encode(&GROUP);
        assert_eq!(&bytes[..5], b"dfsN\x01");
        assert_eq!(bytes.len(), 4 + 1 + 32 + 32 + 8 + 16 + 2 + 5 + 64);
        assert_eq!(
            blake3::hash(&bytes).to_hex().as_str(),
            "86c26487757e74338f952c798d213115e33bbf15112e710da92af8f5d2f3a260",
            "the form of a presence changed: raise its version"
        );
    }
}
