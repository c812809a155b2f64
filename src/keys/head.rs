//! A device's signed word which snapshot of a volume's tree is its newest: its *head*.
//!
//! Heads of one device form a chain: each has a higher number than the one before and names its hash, so that whoever keeps the newest
//! notices a device that was put back to an earlier time, and two that go on from one state. Dates are for people: clocks never decide.
//! Invariant: a [`Head`] exists in memory only after its signature was checked; whether its device may write is for the roster to say.
//! Made in `daemon`, carried by `node`. Form: `docs/format.md`.

use crate::base::clock::UnixSecs;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::{BlockId, DeviceId, GroupId, VolumeId};

use super::{DeviceKey, EPOCH_MAX, FIRST_EPOCH, device_id, verify};

/// Length of an encoded head, in bytes.
pub const HEAD_LEN: usize = BODY_LEN + 64;

const BODY_LEN: usize = 4 + 1 + 32 + 16 + 32 + 8 + 32 + 4 + 8 + 32;
const MAGIC: &[u8; 4] = b"dfsH";
const VERSION: u8 = 1;
const CONTEXT: &[u8] = b"dfs head v1\0";
const NONE_BEFORE: [u8; 32] = [0; 32];

/// The newest snapshot of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The volume.
    pub volume: VolumeId,
    /// Public key of the device.
    pub device: [u8; 32],
    /// Counts the heads of the device, from 1.
    pub seq: u64,
    /// The block in which the snapshot is.
    pub snapshot: BlockId,
    /// The newest epoch that the device knew.
    pub epoch: u32,
    /// When, by the device's clock; decides nothing.
    pub time: UnixSecs,
    /// Hash of the device's head before this one; zeros in the first.
    pub previous: [u8; 32],
    hash: [u8; 32],
    signature: [u8; 64],
}

impl Head {
    /// The head of `device` after `before`, its newest so far; without one, its first.
    pub fn issue(
        device: &DeviceKey,
        group: &GroupId,
        volume: VolumeId,
        before: Option<&Self>,
        snapshot: BlockId,
        epoch: u32,
        time: UnixSecs,
    ) -> Self {
        let mut head = Self {
            volume,
            device: device.public(),
            seq: Self::seq_after(before),
            snapshot,
            epoch,
            time,
            previous: before.map_or(NONE_BEFORE, Self::hash),
            hash: [0; 32],
            signature: [0; 64],
        };
        let body = head.body(group);
        head.hash = *blake3::hash(&body).as_bytes();
        head.signature = device.sign(&with_context(&body));
        head
    }

    /// The number of the head after `before`.
    pub fn seq_after(before: Option<&Self>) -> u64 {
        before.map_or(1, |before| before.seq.saturating_add(1))
    }

    /// The device.
    pub fn device_id(&self) -> DeviceId {
        device_id(&self.device)
    }

    /// BLAKE3 of what is signed: the next head names it.
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// Whether this one counts where `other` of the same device would: the higher number does, of two with one number the lower hash,
    /// so that all members choose the same.
    pub fn supersedes(&self, other: &Self) -> bool {
        (self.seq, std::cmp::Reverse(self.hash)) > (other.seq, std::cmp::Reverse(other.hash))
    }

    /// Binary form, [`HEAD_LEN`] bytes.
    pub fn encode(&self, group: &GroupId) -> Vec<u8> {
        let mut bytes = self.body(group);
        bytes.extend_from_slice(&self.signature);
        bytes
    }

    /// Reads the binary form; group and signature are checked.
    pub fn decode(bytes: &[u8], group: &GroupId) -> Result<Self, DecodeError> {
        Unverified::decode(bytes, group)?.verify(group)
    }

    fn body(&self, group: &GroupId) -> Vec<u8> {
        let mut w = Writer::with_capacity(HEAD_LEN);
        w.raw(MAGIC)
            .u8(VERSION)
            .raw(group.as_bytes())
            .raw(self.volume.as_bytes())
            .raw(&self.device)
            .u64(self.seq)
            .raw(self.snapshot.as_bytes())
            .u32(self.epoch)
            .u64(self.time)
            .raw(&self.previous);
        w.into_vec()
    }
}

/// A head whose signature nobody has looked at: enough to see that it is known already, which is cheaper.
#[derive(Debug, Clone)]
pub struct Unverified(Head);

impl Unverified {
    /// Reads the binary form; the group is checked.
    pub fn decode(bytes: &[u8], group: &GroupId) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        if r.array::<4>()? != *MAGIC || r.u8()? != VERSION {
            return Err(DecodeError::Invalid("not a head of a known version"));
        }
        if GroupId(r.array()?) != *group {
            return Err(DecodeError::Invalid("a head in another group"));
        }
        let head = Head {
            volume: VolumeId(r.array()?),
            device: r.array()?,
            seq: r.u64()?,
            snapshot: BlockId(r.array()?),
            epoch: r.u32()?,
            time: r.u64()?,
            previous: r.array()?,
            hash: *blake3::hash(bytes.get(..BODY_LEN).unwrap_or_default()).as_bytes(),
            signature: r.array()?,
        };
        r.finish()?;
        if head.seq == 0 || (head.seq == 1) != (head.previous == NONE_BEFORE) {
            return Err(DecodeError::Invalid("a head out of its order"));
        }
        if !(FIRST_EPOCH..=EPOCH_MAX).contains(&head.epoch) {
            return Err(DecodeError::Invalid("an epoch out of bounds"));
        }
        Ok(Self(head))
    }

    /// The device that it names.
    pub fn device(&self) -> &[u8; 32] {
        &self.0.device
    }

    /// Its number, and its hash.
    pub fn place(&self) -> (u64, [u8; 32]) {
        (self.0.seq, self.0.hash)
    }

    /// Checks the signature.
    pub fn verify(self, group: &GroupId) -> Result<Head, DecodeError> {
        let head = self.0;
        match verify(&head.device, &with_context(&head.body(group)), &head.signature) {
            true => Ok(head),
            false => Err(DecodeError::Invalid("a head that its device did not sign")),
        }
    }
}

fn with_context(body: &[u8]) -> Vec<u8> {
    [CONTEXT, body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GROUP: GroupId = GroupId([4; 32]);
    const VOLUME: VolumeId = VolumeId([5; 16]);

    fn key() -> DeviceKey {
        DeviceKey::from_bytes(&[9; 32])
    }

    fn issue(before: Option<&Head>, snapshot: u8) -> Head {
        Head::issue(
            &key(),
            &GROUP,
            VOLUME,
            before,
            BlockId([snapshot; 32]),
            1,
            1_700_000_000,
        )
    }

    proptest! {
        #[test]
        fn any_head_round_trips_and_no_altered_one_is_believed(
            snapshot: [u8; 32], time: u64, epoch in FIRST_EPOCH..=EPOCH_MAX, second: bool, at in 0..HEAD_LEN, bit in 0_u8..8,
        ) {
            let first = issue(None, 1);
            let before = second.then_some(&first);
            let head = Head::issue(&key(), &GROUP, VOLUME, before, BlockId(snapshot), epoch, time);
            let bytes = head.encode(&GROUP);
            prop_assert_eq!(bytes.len(), HEAD_LEN);
            prop_assert_eq!(Head::decode(&bytes, &GROUP), Ok(head));
            prop_assert!(Head::decode(&bytes, &GroupId([5; 32])).is_err());
            prop_assert!(Head::decode(&bytes[..at], &GROUP).is_err());
            let mut wrong = bytes.clone();
            wrong[at] ^= 1 << bit;
            prop_assert!(Head::decode(&wrong, &GROUP).is_err());
            wrong.clone_from(&bytes);
            wrong.push(0);
            prop_assert!(Head::decode(&wrong, &GROUP).is_err());
        }

        #[test]
        fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Head::decode(&bytes, &GROUP).is_err());
        }
    }

    #[test]
    fn heads_of_a_device_form_a_chain() {
        let first = issue(None, 1);
        let second = issue(Some(&first), 2);
        assert_eq!((first.seq, first.previous), (1, [0; 32]));
        assert_eq!((second.seq, second.previous), (2, first.hash()));
        assert!(second.supersedes(&first) && !first.supersedes(&second));
        let other = issue(Some(&first), 3);
        assert_ne!(
            second.supersedes(&other),
            other.supersedes(&second),
            "one of the two"
        );
        assert!(!first.supersedes(&first));
    }

    #[test]
    fn what_is_out_of_its_order_is_refused() {
        let signed = |change: &dyn Fn(&mut Head)| {
            let mut head = issue(Some(&issue(None, 1)), 2);
            change(&mut head);
            head.signature = key().sign(&with_context(&head.body(&GROUP)));
            Head::decode(&head.encode(&GROUP), &GROUP)
        };
        assert!(signed(&|_| ()).is_ok());
        assert!(signed(&|head| head.seq = 0).is_err());
        assert!(signed(&|head| head.seq = 1).is_err());
        assert!(signed(&|head| head.seq = 7).is_ok());
        assert!(signed(&|head| head.previous = [0; 32]).is_err());
        assert!(signed(&|head| head.epoch = 0).is_err());
        assert!(signed(&|head| head.epoch = EPOCH_MAX + 1).is_err());
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let bytes = issue(None, 7).encode(&GROUP);
        assert_eq!(&bytes[..5], b"dfsH\x01");
        assert_eq!(bytes.len(), 233);
        assert_eq!(
            blake3::hash(&bytes).to_hex().as_str(),
            "9591b11a49641d07e4555d7242c64e38f9346ad3adef1a8dfc009697a61c4036",
            "the form of a head changed: raise its version"
        );
    }
}
