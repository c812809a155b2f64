//! A member's addresses as they are kept in the DHT: signed by the device, with the certificate that makes it a member. Pure.
//!
//! Invariant: whoever stores or finds a record believes it only after [`AddressRecord::verify`]; the key names the device, so that nobody
//! can put one member's record in another's place.

use crate::base::GroupId;
use crate::base::clock::UnixSecs;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::keys::certificate::{CERTIFICATE_MAX, CLOCK_SKEW_SECS};
use crate::keys::{Certificate, DeviceKey, verify};

use super::peers::{ADDRESS_MAX, ADDRESSES_MAX};

/// Longest record, in bytes.
pub const RECORD_MAX: usize =
    4 + 1 + 2 + CERTIFICATE_MAX + 8 + 8 + 1 + ADDRESSES_MAX * (2 + ADDRESS_MAX) + 64;
/// How long a record is valid, in seconds: two days, so that one missed daily renewal does no harm.
pub const VALID_SECS: u64 = 2 * 24 * 3600;

const MAGIC: &[u8; 4] = b"dfsA";
const VERSION: u8 = 1;
const CONTEXT: &[u8] = b"dfs address record v1\0";
const KEY_CONTEXT: &str = "dfs 2026 DHT key of an address record";

/// Where a member may be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressRecord {
    /// The member's certificate.
    pub certificate: Certificate,
    /// When the record was made; a newer one replaces an older one.
    pub issued: UnixSecs,
    /// Last second of validity.
    pub expires: UnixSecs,
    /// Addresses in multiaddr form.
    pub addresses: Vec<String>,
    signature: [u8; 64],
}

impl AddressRecord {
    /// A record signed by the device. Addresses that are too long or too many are left out.
    pub fn issue(
        device: &DeviceKey,
        certificate: Certificate,
        mut addresses: Vec<String>,
        now: UnixSecs,
    ) -> Self {
        addresses.retain(|a| a.len() <= ADDRESS_MAX);
        addresses.truncate(ADDRESSES_MAX);
        let mut record = Self {
            certificate,
            issued: now,
            expires: now + VALID_SECS,
            addresses,
            signature: [0; 64],
        };
        record.signature = device.sign(&record.signed_bytes());
        record
    }

    /// The DHT key of the record of the device with this public key.
    pub fn key(group: &GroupId, device: &[u8; 32]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(KEY_CONTEXT);
        hasher.update(group.as_bytes()).update(device);
        *hasher.finalize().as_bytes()
    }

    /// Checks certificate, signature, dates and that it lies under its own key.
    pub fn verify(&self, key: &[u8], group_public: &[u8; 32], now: UnixSecs) -> Result<(), &'static str> {
        let member = self
            .certificate
            .verify(group_public, now)
            .map_err(|_| "its certificate is not valid")?;
        if key != Self::key(&member.group, &member.device) {
            return Err("it lies under the key of another device");
        }
        if !verify(&member.device, &self.signed_bytes(), &self.signature) {
            return Err("its signature is wrong");
        }
        if self.issued > now + CLOCK_SKEW_SECS {
            return Err("it is dated in the future");
        }
        if now > self.expires.min(self.issued.saturating_add(VALID_SECS)) + CLOCK_SKEW_SECS {
            return Err("it has expired");
        }
        Ok(())
    }

    /// Binary form, at most [`RECORD_MAX`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.body();
        bytes.extend_from_slice(&self.signature);
        bytes
    }

    /// Reads the binary form. Nothing is verified.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        if r.array::<4>()? != *MAGIC || r.u8()? != VERSION {
            return Err(DecodeError::Invalid("not an address record of a known version"));
        }
        let certificate = Certificate::decode(r.bytes16(CERTIFICATE_MAX)?)?;
        let (issued, expires) = (r.u64()?, r.u64()?);
        let count = usize::from(r.u8()?);
        if count > ADDRESSES_MAX {
            return Err(DecodeError::Invalid("too many addresses"));
        }
        let mut addresses = Vec::with_capacity(count);
        for _ in 0..count {
            addresses.push(r.str16(ADDRESS_MAX)?.to_owned());
        }
        let signature = r.array()?;
        r.finish()?;
        Ok(Self {
            certificate,
            issued,
            expires,
            addresses,
            signature,
        })
    }

    fn body(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(512);
        w.raw(MAGIC)
            .u8(VERSION)
            .bytes16(&self.certificate.encode())
            .u64(self.issued)
            .u64(self.expires)
            .u8(self.addresses.len() as u8);
        for address in &self.addresses {
            w.bytes16(address.as_bytes());
        }
        w.into_vec()
    }

    fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = CONTEXT.to_vec();
        bytes.extend_from_slice(&self.body());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{GroupKey, Membership, Role, RootSecret};
    use proptest::prelude::*;

    const NOW: UnixSecs = 1_000_000;

    fn record() -> (AddressRecord, [u8; 32], [u8; 32]) {
        let group = GroupKey::from_root(&RootSecret::from_bytes([1; 32]));
        let device = DeviceKey::from_bytes(&[2; 32]);
        let member = Membership {
            group: group.id(),
            device: device.public(),
            role: Role::Host,
            epoch: 1,
            issued: 0,
            expires: 2 * NOW,
            zone: None,
        };
        let certificate = Certificate::issue(&group, member);
        let addresses = vec!["/ip4/192.0.2.1/tcp/8080".to_owned()];
        let record = AddressRecord::issue(&device, certificate, addresses, NOW);
        let key = AddressRecord::key(&group.id(), &device.public());
        (record, key, group.public())
    }

    #[test]
    fn only_the_member_itself_under_its_own_key_is_believed() {
        let (record, key, group) = record();
        assert_eq!(record.verify(&key, &group, NOW), Ok(()));
        assert!(record.verify(&[0; 32], &group, NOW).is_err());
        assert!(record.verify(&key, &[0; 32], NOW).is_err());
        assert!(
            record
                .verify(&key, &group, NOW + VALID_SECS + CLOCK_SKEW_SECS + 1)
                .is_err()
        );
        assert!(record.verify(&key, &group, NOW - CLOCK_SKEW_SECS - 1).is_err());
        let mut moved = record.clone();
        moved.addresses = vec!["/ip4/192.0.2.2/tcp/8080".into()];
        assert_eq!(moved.verify(&key, &group, NOW), Err("its signature is wrong"));
    }

    proptest! {
        #[test]
        fn one_flipped_bit_is_never_believed(at: usize) {
            let (record, key, group) = record();
            let mut bytes = record.encode();
            prop_assert!(bytes.len() <= RECORD_MAX);
            prop_assert_eq!(&AddressRecord::decode(&bytes).unwrap(), &record);
            let bit = at % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!AddressRecord::decode(&bytes).is_ok_and(|r| r.verify(&key, &group, NOW).is_ok()));
        }

        #[test]
        fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = AddressRecord::decode(&bytes);
            bytes.splice(0..0, [b'd', b'f', b's', b'A', 1]);
            let _ = AddressRecord::decode(&bytes);
        }
    }
}
