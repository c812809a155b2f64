//! What an admin's device gives to a new member: a certificate, and the keys that its role needs; and how the member reads them.
//!
//! Byte layout of the gift: version (1), volume id (16), volume keys (u32 length, bytes), root secret (u32 length, bytes); a host and a guest
//! get both empty, a reader and a writer the first, an admin both.

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::base::VolumeId;
use crate::base::clock::UnixSecs;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::folder::state::Keyring;
use crate::keys::certificate::Membership;
use crate::keys::{Certificate, DeviceKey, Draft, GroupKey, Role, RootSecret, Statement, VolumeKeys};
use crate::node::Admit;

/// How long the certificate of a new member is good, in seconds.
const CERTIFICATE_SECS: u64 = 5 * 365 * 86_400;
/// Version of the gift.
const VERSION: u8 = 1;
/// Longest encoded volume keys, in bytes: those of 4,096 epochs.
const VOLUME_KEYS_MAX: usize = 256 << 10;

/// The side of the admin.
pub(super) struct Admission {
    group: GroupKey,
    root: RootSecret,
    /// Those in use, which learn new epochs.
    volume: Arc<VolumeKeys>,
}

impl Admission {
    /// What an admin's keys allow; `None` for everybody else.
    pub(super) fn of(keys: &Keyring) -> Option<Self> {
        let (root, volume) = (keys.root.as_ref()?, keys.volume.as_ref()?);
        Some(Self {
            group: GroupKey::from_root(root),
            root: root.clone(),
            volume: Arc::clone(volume),
        })
    }
}

impl Admit for Admission {
    fn certificate(
        &self,
        device: &[u8; 32],
        role: Role,
        zone: Option<&str>,
        now: UnixSecs,
    ) -> Result<Certificate, String> {
        let membership = Membership {
            group: self.group.id(),
            device: *device,
            role,
            epoch: self.volume.newest_epoch(),
            issued: now,
            expires: now.saturating_add(CERTIFICATE_SECS),
            zone: zone.map(str::to_owned),
        };
        Ok(Certificate::issue(&self.group, membership))
    }

    fn payload(&self, role: Role) -> Result<Zeroizing<Vec<u8>>, String> {
        let keys = role.reads().then_some(&*self.volume);
        let root = (role == Role::Admin).then_some(&self.root);
        Ok(write(self.volume.volume(), keys, root))
    }

    fn sign(&self, draft: Draft, device: &DeviceKey) -> Statement {
        Statement::sign(draft, &self.group, device)
    }

    fn commitment(&self, epoch: u32) -> Option<[u8; 32]> {
        VolumeKeys::from_root(&self.root, epoch).ok()?.commitment(epoch)
    }
}

/// A gift.
pub(super) fn write(
    volume: VolumeId,
    keys: Option<&VolumeKeys>,
    root: Option<&RootSecret>,
) -> Zeroizing<Vec<u8>> {
    let keys = keys.map(VolumeKeys::encode).unwrap_or_default();
    let root: &[u8] = root.map_or(&[], |root| root.as_bytes());
    // One allocation, so that growing leaves no copy of a secret behind.
    let mut writer = Writer::with_capacity(1 + VolumeId::LEN + 8 + keys.len() + root.len());
    writer.u8(VERSION).raw(volume.as_bytes());
    writer.bytes32(&keys).bytes32(root);
    Zeroizing::new(writer.into_vec())
}

/// What a new member got.
pub(super) struct Gift {
    pub(super) volume: VolumeId,
    pub(super) keys: Option<VolumeKeys>,
    pub(super) root: Option<RootSecret>,
}

/// Reads a gift, and checks that it is what the role gets.
pub(super) fn read(bytes: &[u8], role: Role) -> Result<Gift, DecodeError> {
    let gift = open(bytes)?;
    let fits = match role {
        Role::Host | Role::Guest => gift.keys.is_none() && gift.root.is_none(),
        Role::Reader | Role::Writer => gift.keys.is_some() && gift.root.is_none(),
        Role::Admin => gift.keys.is_some() && gift.root.is_some(),
    };
    if !fits {
        return Err(DecodeError::Invalid("the keys do not fit the role"));
    }
    Ok(gift)
}

/// Reads a gift, whatever is in it.
pub(super) fn open(bytes: &[u8]) -> Result<Gift, DecodeError> {
    let mut reader = Reader::new(bytes);
    if reader.u8()? != VERSION {
        return Err(DecodeError::Invalid(
            "the admin has a newer version of dfs: update this one",
        ));
    }
    let volume = VolumeId(reader.array()?);
    let keys = reader.bytes32(VOLUME_KEYS_MAX)?;
    let root = reader.bytes32(32)?;
    reader.finish()?;
    let keys = (!keys.is_empty())
        .then(|| VolumeKeys::decode(keys).map_err(|_| DecodeError::Invalid("the volume keys are malformed")))
        .transpose()?;
    let root = (!root.is_empty())
        .then(|| <[u8; 32]>::try_from(root).map(RootSecret::from_bytes))
        .transpose()
        .map_err(|_| DecodeError::Invalid("the root secret is malformed"))?;
    if keys.as_ref().is_some_and(|keys| keys.volume() != volume) {
        return Err(DecodeError::Invalid("the keys are those of another volume"));
    }
    Ok(Gift { volume, keys, root })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::FIRST_EPOCH;
    use proptest::prelude::*;

    fn admission() -> Admission {
        let root = RootSecret::from_bytes([3; 32]);
        let volume = VolumeKeys::from_root(&root, FIRST_EPOCH).unwrap();
        Admission {
            group: GroupKey::from_root(&root),
            volume: Arc::new(volume),
            root,
        }
    }

    #[test]
    fn every_role_gets_what_it_needs_and_no_more() {
        let admission = admission();
        for (role, has_keys, has_root) in [
            (Role::Host, false, false),
            (Role::Guest, false, false),
            (Role::Reader, true, false),
            (Role::Writer, true, false),
            (Role::Admin, true, true),
        ] {
            let bytes = admission.payload(role).unwrap();
            let gift = read(&bytes, role).unwrap();
            assert_eq!(gift.volume, admission.volume.volume());
            assert_eq!((gift.keys.is_some(), gift.root.is_some()), (has_keys, has_root));
            let secret = admission.root.as_bytes();
            assert_eq!(bytes.windows(32).any(|window| window == secret), has_root);
        }
        let for_reader = admission.payload(Role::Reader).unwrap();
        assert!(read(&for_reader, Role::Host).is_err() && read(&for_reader, Role::Admin).is_err());
    }

    #[test]
    fn a_certificate_is_for_one_device_and_role() {
        let certificate = admission()
            .certificate(&[9; 32], Role::Writer, None, 1000)
            .unwrap();
        let group = admission().group.public();
        let member = certificate.verify_for(&[9; 32], &group, 1001).unwrap();
        assert_eq!(member.role, Role::Writer);
        assert!(certificate.verify_for(&[8; 32], &group, 1001).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_a_gift(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, Role::Admin);
        }
    }
}
