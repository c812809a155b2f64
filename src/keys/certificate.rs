//! Membership certificates: the group key's word that a device belongs to the group, in a role, until a date.
//!
//! Invariant: a [`Certificate`] is only trusted after [`Certificate::verify`] with the group's public key, and only for the device
//! whose key the transport authenticated. `node` exchanges them before anything else; `daemon` issues them through its admin side.
//! The binary form is described byte by byte in `docs/protocol.md`.

use crate::base::clock::UnixSecs;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::{DeviceId, GroupId};

use super::{GroupKey, verify};

/// Clocks of members may differ by this much before a certificate counts as not yet valid or expired, in seconds.
pub const CLOCK_SKEW_SECS: u64 = 5 * 60;

/// Longest failure zone name, in bytes.
pub const ZONE_MAX: usize = 64;

/// Longest encoded certificate, in bytes.
pub const CERTIFICATE_MAX: usize = 4 + 1 + 32 + 32 + 1 + 4 + 8 + 8 + 2 + ZONE_MAX + 64;

const MAGIC: &[u8; 4] = b"dfsC";
const VERSION: u8 = 1;
const CONTEXT: &[u8] = b"dfs certificate v1\0";

/// What a device may do in the group. Each role may do what the ones before it may, but that a guest's files are its own volume's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Stores blocks and serves them; cannot read them.
    Host,
    /// Of an open group: as a host, and has blocks of a volume of its own kept, within limits. Cannot read the group's volume.
    Guest,
    /// Reads.
    Reader,
    /// Reads and writes, and places blocks on others.
    Writer,
    /// Also invites and removes.
    Admin,
}

impl Role {
    /// The byte that stands for the role in formats and messages.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Host => 0,
            Self::Reader => 1,
            Self::Writer => 2,
            Self::Admin => 3,
            Self::Guest => 4,
        }
    }

    /// The role that a byte stands for.
    pub fn from_byte(byte: u8) -> Result<Self, DecodeError> {
        match byte {
            0 => Ok(Self::Host),
            1 => Ok(Self::Reader),
            2 => Ok(Self::Writer),
            3 => Ok(Self::Admin),
            4 => Ok(Self::Guest),
            _ => Err(DecodeError::Invalid("unknown role")),
        }
    }

    /// Whether it has the keys of the group's volume.
    pub fn reads(self) -> bool {
        self >= Self::Reader
    }

    /// Whether it has blocks kept by others.
    pub fn places_blocks(self) -> bool {
        matches!(self, Self::Guest | Self::Writer | Self::Admin)
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Reader => "reader",
            Self::Writer => "writer",
            Self::Admin => "admin",
            Self::Guest => "guest",
        })
    }
}

impl std::str::FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "host" => Ok(Self::Host),
            "reader" => Ok(Self::Reader),
            "writer" => Ok(Self::Writer),
            "admin" => Ok(Self::Admin),
            "guest" => Ok(Self::Guest),
            _ => Err(format!(
                "{text:?} is no role: host, guest, reader, writer or admin"
            )),
        }
    }
}

/// Why a certificate is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The bytes are no certificate.
    #[error("the certificate cannot be read: {0}")]
    Malformed(#[from] DecodeError),
    /// It belongs to another group.
    #[error("the certificate is of another group ({})", .0.short())]
    OtherGroup(GroupId),
    /// The group key did not sign it.
    #[error("the certificate is not signed by the group key")]
    Forged,
    /// It is no longer valid.
    #[error("the certificate expired at {expired} (Unix time), it is {now} here")]
    Expired {
        /// Its expiry date.
        expired: UnixSecs,
        /// The clock here.
        now: UnixSecs,
    },
    /// It is dated in the future, beyond [`CLOCK_SKEW_SECS`].
    #[error("the certificate is dated {issued} (Unix time), it is {now} here: compare the clocks")]
    NotYetValid {
        /// Its date of issue.
        issued: UnixSecs,
        /// The clock here.
        now: UnixSecs,
    },
    /// It was issued to another device than the one that shows it.
    #[error("the certificate belongs to device {}, not to the one that shows it", .0.short())]
    WrongDevice(DeviceId),
}

/// What a certificate states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The group.
    pub group: GroupId,
    /// The device's Ed25519 public key.
    pub device: [u8; 32],
    /// What it may do.
    pub role: Role,
    /// Key epoch in which it was issued.
    pub epoch: u32,
    /// Date of issue.
    pub issued: UnixSecs,
    /// Last second of validity.
    pub expires: UnixSecs,
    /// Failure zone, for placing replicas; at most [`ZONE_MAX`] bytes.
    pub zone: Option<String>,
}

/// A membership with the group key's signature, not necessarily verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    membership: Membership,
    signature: [u8; 64],
}

impl Certificate {
    /// Signs a membership. The zone is cut to [`ZONE_MAX`] bytes at a character boundary, the group is that of the key.
    pub fn issue(key: &GroupKey, mut membership: Membership) -> Self {
        membership.group = key.id();
        membership.zone = membership.zone.map(cut_zone).filter(|zone| !zone.is_empty());
        let signature = key.sign(&signed_bytes(&membership));
        Self {
            membership,
            signature,
        }
    }

    /// What it states; to be believed only after [`Certificate::verify`].
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Id of the device it was issued to.
    pub fn device_id(&self) -> DeviceId {
        DeviceId(*blake3::hash(&self.membership.device).as_bytes())
    }

    /// Binary form, at most [`CERTIFICATE_MAX`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = body(&self.membership);
        bytes.extend_from_slice(&self.signature);
        bytes
    }

    /// Reads the binary form. Nothing is verified.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        if r.array::<4>()? != *MAGIC {
            return Err(DecodeError::Invalid("not a certificate"));
        }
        if r.u8()? != VERSION {
            return Err(DecodeError::Invalid("a certificate of an unknown version"));
        }
        let membership = Membership {
            group: GroupId(r.array()?),
            device: r.array()?,
            role: Role::from_byte(r.u8()?)?,
            epoch: r.u32()?,
            issued: r.u64()?,
            expires: r.u64()?,
            zone: Some(r.str16(ZONE_MAX)?)
                .filter(|zone| !zone.is_empty())
                .map(str::to_owned),
        };
        let signature = r.array()?;
        r.finish()?;
        Ok(Self {
            membership,
            signature,
        })
    }

    /// Checks group, signature and dates against `now`, allowing [`CLOCK_SKEW_SECS`]. Does not check who shows it:
    /// see [`Certificate::verify_for`].
    pub fn verify(&self, group_public: &[u8; 32], now: UnixSecs) -> Result<&Membership, CertificateError> {
        let m = &self.membership;
        if m.group.as_bytes() != blake3::hash(group_public).as_bytes() {
            return Err(CertificateError::OtherGroup(m.group));
        }
        if !verify(group_public, &signed_bytes(m), &self.signature) {
            return Err(CertificateError::Forged);
        }
        if now > m.expires.saturating_add(CLOCK_SKEW_SECS) {
            return Err(CertificateError::Expired {
                expired: m.expires,
                now,
            });
        }
        if m.issued > now.saturating_add(CLOCK_SKEW_SECS) {
            return Err(CertificateError::NotYetValid {
                issued: m.issued,
                now,
            });
        }
        Ok(m)
    }

    /// [`Certificate::verify`], and that it was issued to the device with this public key.
    pub fn verify_for(
        &self,
        device_public: &[u8; 32],
        group_public: &[u8; 32],
        now: UnixSecs,
    ) -> Result<&Membership, CertificateError> {
        if self.membership.device != *device_public {
            return Err(CertificateError::WrongDevice(self.device_id()));
        }
        self.verify(group_public, now)
    }
}

fn cut_zone(mut zone: String) -> String {
    let mut end = zone.len().min(ZONE_MAX);
    while !zone.is_char_boundary(end) {
        end -= 1;
    }
    zone.truncate(end);
    zone
}

fn body(m: &Membership) -> Vec<u8> {
    let mut w = Writer::with_capacity(CERTIFICATE_MAX);
    w.raw(MAGIC)
        .u8(VERSION)
        .raw(m.group.as_bytes())
        .raw(&m.device)
        .u8(m.role.to_byte())
        .u32(m.epoch)
        .u64(m.issued)
        .u64(m.expires)
        .bytes16(m.zone.as_deref().unwrap_or("").as_bytes());
    w.into_vec()
}

fn signed_bytes(m: &Membership) -> Vec<u8> {
    let mut bytes = CONTEXT.to_vec();
    bytes.extend_from_slice(&body(m));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{DeviceKey, RootSecret};
    use proptest::prelude::*;

    fn group() -> GroupKey {
        GroupKey::from_root(&RootSecret::from_bytes([7; 32]))
    }

    fn member(zone: Option<&str>) -> Membership {
        Membership {
            group: group().id(),
            device: DeviceKey::from_bytes(&[9; 32]).public(),
            role: Role::Writer,
            epoch: 3,
            issued: 1_000_000,
            expires: 2_000_000,
            zone: zone.map(str::to_owned),
        }
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let bytes = Certificate::issue(&group(), member(Some("attic"))).encode();
        assert_eq!(
            blake3::hash(&bytes).to_hex().as_str(),
            "abc3afdcb968f8aab411b12b1bb1b79339a5140443cca562effd9e98045da5a8",
            "the certificate format changed: raise its version"
        );
        assert_eq!(&bytes[..5], b"dfsC\x01");
        assert_eq!(bytes.len(), 4 + 1 + 32 + 32 + 1 + 4 + 8 + 8 + 2 + 5 + 64);
    }

    #[test]
    fn dates_allow_the_stated_skew_and_no_more() {
        let certificate = Certificate::issue(&group(), member(None));
        let public = group().public();
        let at = |now| certificate.verify(&public, now).map(|_| ());
        assert_eq!(at(1_500_000), Ok(()));
        assert_eq!(at(2_000_000 + CLOCK_SKEW_SECS), Ok(()));
        assert!(matches!(
            at(2_000_001 + CLOCK_SKEW_SECS),
            Err(CertificateError::Expired { .. })
        ));
        assert_eq!(at(1_000_000 - CLOCK_SKEW_SECS), Ok(()));
        assert!(matches!(
            at(999_999 - CLOCK_SKEW_SECS),
            Err(CertificateError::NotYetValid { .. })
        ));
    }

    #[test]
    fn another_group_another_device_and_a_forgery_are_told_apart() {
        let certificate = Certificate::issue(&group(), member(None));
        let other = GroupKey::from_root(&RootSecret::from_bytes([8; 32]));
        assert!(matches!(
            certificate.verify(&other.public(), 1_500_000),
            Err(CertificateError::OtherGroup(_))
        ));
        assert!(matches!(
            certificate.verify_for(&[1; 32], &group().public(), 1_500_000),
            Err(CertificateError::WrongDevice(_))
        ));
        let mut raised = certificate.clone();
        raised.membership.role = Role::Admin;
        assert_eq!(
            raised.verify(&group().public(), 1_500_000).map(|_| ()),
            Err(CertificateError::Forged)
        );
    }

    proptest! {
        #[test]
        fn any_membership_round_trips(role in 0u8..5, epoch: u32, issued: u64, expires: u64, zone in ".{0,40}") {
            let mut m = member(Some(&zone));
            (m.role, m.epoch, m.issued, m.expires) = (Role::from_byte(role).unwrap(), epoch, issued, expires);
            let certificate = Certificate::issue(&group(), m);
            let bytes = certificate.encode();
            prop_assert!(bytes.len() <= CERTIFICATE_MAX);
            prop_assert_eq!(Certificate::decode(&bytes).unwrap(), certificate);
        }

        #[test]
        fn one_flipped_bit_is_never_accepted(at in 0usize..1280) {
            let mut bytes = Certificate::issue(&group(), member(Some("attic"))).encode();
            let bit = at % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let accepted = Certificate::decode(&bytes)
                .is_ok_and(|c| c.verify(&group().public(), 1_500_000).is_ok());
            prop_assert!(!accepted);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Certificate::decode(&bytes);
        }
    }
}
