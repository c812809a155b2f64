//! Identifiers: fixed-size byte strings, each a type of its own so that one is never taken for another.
//!
//! All print as lower-case hexadecimal; `FromStr` accepts exactly that. `short()` gives the first eight digits, for logs and names.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER_PERMISSIVE;

/// The text was not the hexadecimal form of an identifier of the right length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind}: expected {digits} hexadecimal digits")]
pub struct BadId {
    kind: &'static str,
    digits: usize,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length of the identifier, in bytes.
            pub const LEN: usize = $len;

            /// The bytes.
            pub fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// The identifier in a slice of exactly the right length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The first eight hexadecimal digits.
            pub fn short(&self) -> String {
                let mut text = self.to_string();
                text.truncate(8);
                text
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                let bad = BadId { kind: $kind, digits: $len * 2 };
                let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| bad.clone())?;
                Self::from_slice(&bytes).ok_or(bad)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// BLAKE3 of a block's bytes (header, nonce and ciphertext).
    BlockId, 32, "block id"
);
id!(
    /// Keyed BLAKE3 of a chunk's plaintext: never leaves the device.
    PlainHash, 32, "plaintext hash"
);
id!(
    /// BLAKE3 of the references in a manifest: the key of a file's provider records.
    RootId, 32, "file root"
);
id!(
    /// Random, given to a file when it is created; follows it through renames.
    FileId, 16, "file id"
);
id!(
    /// Random, given to a store when it is created.
    StoreId, 16, "store id"
);
id!(
    /// Derived from the volume's root secret; names the state directory.
    VolumeId, 16, "volume id"
);
id!(
    /// BLAKE3 of a device's Ed25519 public key.
    DeviceId, 32, "device id"
);
id!(
    /// BLAKE3 of a group's Ed25519 public key.
    GroupId, 32, "group id"
);

impl BlockId {
    /// The id of these bytes.
    pub fn of(block: &[u8]) -> Self {
        Self(*blake3::hash(block).as_bytes())
    }

    /// Whether these bytes are the block of this id.
    pub fn matches(&self, block: &[u8]) -> bool {
        blake3::hash(block) == blake3::Hash::from_bytes(self.0)
    }
}

/// How an id begins that was not drawn but follows from something.
const DERIVED: [u8; 4] = *b"copy";

impl FileId {
    /// The id that follows from a hash.
    pub fn derived(hash: &[u8; 32]) -> Self {
        let mut id = [0; Self::LEN];
        id[..DERIVED.len()].copy_from_slice(&DERIVED);
        id[DERIVED.len()..].copy_from_slice(&hash[..Self::LEN - DERIVED.len()]);
        Self(id)
    }

    /// Whether the id may follow from a hash, so that somebody may look for it who never met the file. True of one drawn in 2^32 as well.
    pub fn is_derived(&self) -> bool {
        self.0.starts_with(&DERIVED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_rejects_wrong_lengths() {
        let id = FileId([0xab; 16]);
        assert_eq!(id.to_string().parse::<FileId>().unwrap(), id);
        assert_eq!(id.short(), "abababab");
        assert!("ab".parse::<FileId>().is_err());
        assert!("zz".repeat(16).parse::<FileId>().is_err());
        assert!("ab".repeat(17).parse::<FileId>().is_err());
    }

    #[test]
    fn block_id_is_blake3() {
        let id = BlockId::of(b"");
        assert!(id.to_string().starts_with("af1349b9f5f9a1a6a0404dea36dcc949"));
        assert!(id.matches(b"") && !id.matches(b"x"));
    }
}
