//! Ed25519 keys: a device's own, and the group's, which signs who belongs. Called by `node` and `daemon`.

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use super::{NoRandomness, RootSecret, random};
use crate::base::{DeviceId, GroupId};

const GROUP_CONTEXT: &str = "dfs 2026 v1 group signing key";

/// Whether `signature` is `public`'s over `message`. Weak keys and malleable signatures are refused (`verify_strict`).
pub fn verify(public: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(public)
        .and_then(|key| key.verify_strict(message, &Signature::from_bytes(signature)))
        .is_ok()
}

/// The key that a device is known by, and that its transport authenticates with.
pub struct DeviceKey(SigningKey);

impl DeviceKey {
    /// A new key from the operating system's generator.
    pub fn generate() -> Result<Self, NoRandomness> {
        Ok(Self::from_bytes(&random()?))
    }

    /// The key with this seed.
    pub fn from_bytes(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The seed: secret, for the key file and the transport.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public key.
    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// BLAKE3 of the public key.
    pub fn id(&self) -> DeviceId {
        device_id(&self.public())
    }

    /// Signs `message`, which must begin with a context of its own kind so that no signature serves two purposes.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceKey({})", self.id().short())
    }
}

/// The id of the device with this public key.
pub fn device_id(public: &[u8; 32]) -> DeviceId {
    DeviceId(*blake3::hash(public).as_bytes())
}

/// The id of the group with this public key.
pub fn group_id(public: &[u8; 32]) -> GroupId {
    GroupId(*blake3::hash(public).as_bytes())
}

/// The key that signs certificates and invitations of a group: every admin derives it from the root secret.
pub struct GroupKey(SigningKey);

impl GroupKey {
    /// The key of the group that shares this root secret.
    pub fn from_root(root: &RootSecret) -> Self {
        let seed = Zeroizing::new(blake3::derive_key(GROUP_CONTEXT, root.as_bytes()));
        Self(SigningKey::from_bytes(&seed))
    }

    /// The public key.
    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// BLAKE3 of the public key.
    pub fn id(&self) -> GroupId {
        group_id(&self.public())
    }

    /// Signs `message`, which must begin with a context of its own kind.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupKey({})", self.id().short())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn test_vector_of_rfc_8032() {
        // Section 7.1, test 1: the empty message.
        let seed = data_encoding::HEXLOWER
            .decode(b"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
            .unwrap();
        let key = DeviceKey::from_bytes(seed.as_slice().try_into().unwrap());
        let public = data_encoding::HEXLOWER.encode(&key.public());
        assert_eq!(
            public,
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
        let signature = data_encoding::HEXLOWER.encode(&key.sign(b""));
        assert!(signature.starts_with("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"));
    }

    #[test]
    fn a_weak_public_key_verifies_nothing() {
        // The identity point: with it, a signature could be made that fits many messages.
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        assert!(!verify(&identity, b"anything", &signature));
    }

    #[test]
    fn debug_shows_the_id_only() {
        let key = DeviceKey::from_bytes(&[3; 32]);
        assert_eq!(format!("{key:?}"), format!("DeviceKey({})", key.id().short()));
    }

    #[test]
    fn the_group_key_depends_on_the_root_secret_only() {
        let root = RootSecret::from_bytes([5; 32]);
        assert_eq!(GroupKey::from_root(&root).id(), GroupKey::from_root(&root).id());
        let other = RootSecret::from_bytes([6; 32]);
        assert_ne!(GroupKey::from_root(&root).id(), GroupKey::from_root(&other).id());
    }

    proptest! {
        #[test]
        fn signatures_fit_their_message_and_key_only(
            seed: [u8; 32],
            message in proptest::collection::vec(any::<u8>(), 1..100),
            at in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let key = DeviceKey::from_bytes(&seed);
            let signature = key.sign(&message);
            prop_assert!(verify(&key.public(), &message, &signature));
            let mut wrong = message.clone();
            wrong[at.index(message.len())] ^= 1 << bit;
            prop_assert!(!verify(&key.public(), &wrong, &signature));
            let mut wrong = signature;
            wrong[at.index(64)] ^= 1 << bit;
            prop_assert!(!verify(&key.public(), &message, &wrong));
            let mut wrong = key.public();
            wrong[at.index(32)] ^= 1 << bit;
            prop_assert!(!verify(&wrong, &message, &signature));
        }
    }
}
