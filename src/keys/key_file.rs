//! How a secret is kept in a file: in clear, or sealed under a passphrase with Argon2id (RFC 9106).
//!
//! Invariant: a flipped bit anywhere is an error that says so (a checksum over everything), and a wrong passphrase is an error of its own.
//! `docs/format.md` has the offsets. Called by `folder::state`, which reads and writes the files.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use zeroize::Zeroizing;

use super::{NoRandomness, random};
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::seal::{PAYLOAD_OVERHEAD, PayloadError, open_with_key, seal_with_key};

const MAGIC: [u8; 4] = *b"dfsk";
const VERSION: u8 = 1;
const PLAIN: u8 = 0;
const ARGON2ID: u8 = 1;
const HEADER_LEN: usize = 40;
const CHECKSUM_LEN: usize = 32;

/// Longest secret that a key file holds, in bytes: the keys of a volume with `EPOCH_MAX` epochs, and room.
pub const SECRET_MAX: usize = 256 << 10;

/// What a key file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// A volume's root secret: 32 bytes.
    Root,
    /// Encoded [`super::VolumeKeys`].
    Volume,
    /// The seed of a [`super::DeviceKey`]: 32 bytes.
    Device,
}

impl KeyKind {
    fn code(self) -> u8 {
        match self {
            Self::Root => 1,
            Self::Volume => 2,
            Self::Device => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Root, Self::Volume, Self::Device]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// A passphrase, wiped when dropped.
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// The passphrase with exactly this text; `None` when it is empty.
    pub fn new(text: Zeroizing<String>) -> Option<Self> {
        (!text.is_empty()).then_some(Self(text))
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(secret)")
    }
}

/// What a guess at the passphrase costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KdfCost {
    /// Memory, in KiB: 8 for each lane at least.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl KdfCost {
    /// The second recommendation of RFC 9106: 64 MiB, three passes, four lanes.
    pub const DEFAULT: Self = Self {
        memory_kib: 64 << 10,
        passes: 3,
        lanes: 4,
    };

    /// The highest cost that a file may demand of who opens it: 1 GiB, 16 passes, 16 lanes.
    pub const MAX: Self = Self {
        memory_kib: 1 << 20,
        passes: 16,
        lanes: 16,
    };

    fn allowed(&self) -> bool {
        let lanes = 1..=Self::MAX.lanes;
        lanes.contains(&self.lanes)
            && (1..=Self::MAX.passes).contains(&self.passes)
            && (8 * self.lanes..=Self::MAX.memory_kib).contains(&self.memory_kib)
    }
}

/// Why a key file could not be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// No random bytes for salt and nonce.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The secret is empty or longer than `SECRET_MAX`.
    #[error("a secret of {0} bytes cannot be kept in a key file")]
    SecretLength(usize),
    /// The cost is outside the bounds.
    #[error("passphrase cost is out of bounds")]
    Cost,
    /// Not a key file.
    #[error("not a dfs key file")]
    NotAKeyFile,
    /// Written by a newer dfs.
    #[error("key file format {0} is not known to this version of dfs: update it")]
    Version(u8),
    /// The checksum does not fit.
    #[error("the key file is damaged; restore it from a backup, or use the recovery phrase")]
    Damaged,
    /// The checksum fits, but the content is not of the format.
    #[error("malformed key file: {0}")]
    Malformed(#[from] DecodeError),
    /// It is sealed and no passphrase was given.
    #[error("the key file is sealed under a passphrase")]
    PassphraseNeeded,
    /// The passphrase is not the one it was sealed under.
    #[error("wrong passphrase")]
    WrongPassphrase,
    /// Argon2id could not run.
    #[error("not enough memory to check the passphrase")]
    Memory,
}

/// A key file that holds `secret`, sealed at the default cost where a passphrase is given.
pub fn encode(
    kind: KeyKind,
    secret: &[u8],
    passphrase: Option<&Passphrase>,
) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    encode_with_cost(
        kind,
        secret,
        passphrase.map(|passphrase| (passphrase, KdfCost::DEFAULT)),
    )
}

/// As [`encode`], at a cost of the caller's choice.
pub fn encode_with_cost(
    kind: KeyKind,
    secret: &[u8],
    passphrase: Option<(&Passphrase, KdfCost)>,
) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    if secret.is_empty() || secret.len() > SECRET_MAX {
        return Err(KeyFileError::SecretLength(secret.len()));
    }
    let file = match passphrase {
        None => {
            let header = header(kind, None, secret.len());
            assemble(&header, secret)
        }
        Some((passphrase, cost)) => {
            if !cost.allowed() {
                return Err(KeyFileError::Cost);
            }
            let salt = random()?;
            let header = header(kind, Some((cost, salt)), secret.len() + PAYLOAD_OVERHEAD);
            let key = derive(passphrase, &salt, cost)?;
            let sealed = seal_with_key(&key, &header, secret).map_err(|_| NoRandomness)?;
            assemble(&header, &sealed)
        }
    };
    Ok(file)
}

fn header(kind: KeyKind, kdf: Option<(KdfCost, [u8; 16])>, payload_len: usize) -> Vec<u8> {
    let none = KdfCost {
        memory_kib: 0,
        passes: 0,
        lanes: 0,
    };
    let (method, (cost, salt)) = kdf.map_or((PLAIN, (none, [0; 16])), |kdf| (ARGON2ID, kdf));
    let mut writer = Writer::with_capacity(HEADER_LEN);
    writer.raw(&MAGIC).u8(VERSION).u8(kind.code()).u8(method).u8(0);
    writer
        .u32(cost.memory_kib)
        .u32(cost.passes)
        .u32(cost.lanes)
        .raw(&salt);
    writer.u32(payload_len as u32);
    writer.into_vec()
}

fn assemble(header: &[u8], payload: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut file = Zeroizing::new(Vec::with_capacity(header.len() + payload.len() + CHECKSUM_LEN));
    file.extend_from_slice(header);
    file.extend_from_slice(payload);
    let checksum = blake3::hash(&file);
    file.extend_from_slice(checksum.as_bytes());
    file
}

struct Parsed<'a> {
    kind: KeyKind,
    kdf: Option<(KdfCost, [u8; 16])>,
    header: &'a [u8],
    payload: &'a [u8],
}

fn parse(file: &[u8]) -> Result<Parsed<'_>, KeyFileError> {
    if file.len() < 5 || file[..4] != MAGIC {
        return Err(KeyFileError::NotAKeyFile);
    }
    let body_len = file.len().saturating_sub(CHECKSUM_LEN);
    let (body, checksum) = file.split_at(body_len);
    let intact = blake3::hash(body).as_bytes() == checksum;
    if file[4] != VERSION {
        // A newer format may keep its checksum elsewhere, so this may also be damage.
        return Err(KeyFileError::Version(file[4]));
    }
    if !intact {
        return Err(KeyFileError::Damaged);
    }
    let mut reader = Reader::new(body);
    reader.take(5)?;
    let kind = KeyKind::from_code(reader.u8()?).ok_or(DecodeError::Invalid("unknown kind of key"))?;
    let (method, reserved) = (reader.u8()?, reader.u8()?);
    let cost = KdfCost {
        memory_kib: reader.u32()?,
        passes: reader.u32()?,
        lanes: reader.u32()?,
    };
    let salt = reader.array()?;
    let payload = reader.bytes32(SECRET_MAX + PAYLOAD_OVERHEAD)?;
    reader.finish()?;
    let kdf = match method {
        PLAIN => None,
        ARGON2ID if !cost.allowed() => return Err(KeyFileError::Cost),
        ARGON2ID => Some((cost, salt)),
        _ => return Err(DecodeError::Invalid("unknown method of sealing").into()),
    };
    let header = &body[..HEADER_LEN];
    if reserved != 0 || header != self::header(kind, kdf, payload.len()) {
        return Err(DecodeError::Invalid("reserved bytes are not zero").into());
    }
    Ok(Parsed {
        kind,
        kdf,
        header,
        payload,
    })
}

/// Whether opening the file takes a passphrase.
pub fn is_sealed(file: &[u8]) -> Result<bool, KeyFileError> {
    parse(file).map(|parsed| parsed.kdf.is_some())
}

/// What the file holds. A passphrase is ignored where the file is not sealed.
pub fn decode(
    file: &[u8],
    passphrase: Option<&Passphrase>,
) -> Result<(KeyKind, Zeroizing<Vec<u8>>), KeyFileError> {
    let parsed = parse(file)?;
    let secret = match parsed.kdf {
        None => Zeroizing::new(parsed.payload.to_vec()),
        Some((cost, salt)) => {
            let key = derive(passphrase.ok_or(KeyFileError::PassphraseNeeded)?, &salt, cost)?;
            let opened = open_with_key(&key, parsed.header, parsed.payload);
            Zeroizing::new(opened.map_err(|error| match error {
                PayloadError::NotAuthentic => KeyFileError::WrongPassphrase,
                _ => KeyFileError::Damaged,
            })?)
        }
    };
    if secret.is_empty() || secret.len() > SECRET_MAX {
        return Err(KeyFileError::SecretLength(secret.len()));
    }
    Ok((parsed.kind, secret))
}

fn derive(
    passphrase: &Passphrase,
    salt: &[u8; 16],
    cost: KdfCost,
) -> Result<Zeroizing<[u8; 32]>, KeyFileError> {
    let params =
        Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).map_err(|_| KeyFileError::Cost)?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.0.as_bytes(), salt, &mut *key)
        .map_err(|_| KeyFileError::Memory)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As cheap as Argon2id allows: tests guess often.
    const CHEAP: KdfCost = KdfCost {
        memory_kib: 8,
        passes: 1,
        lanes: 1,
    };

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(Zeroizing::new(text.to_owned())).unwrap()
    }

    fn sealed(secret: &[u8]) -> Zeroizing<Vec<u8>> {
        encode_with_cost(KeyKind::Root, secret, Some((&passphrase("open sesame"), CHEAP))).unwrap()
    }

    #[test]
    fn the_default_cost_is_within_bounds_and_works() {
        assert!(KdfCost::DEFAULT.allowed() && KdfCost::MAX.allowed());
        let words = passphrase("correct horse");
        let file = encode(KeyKind::Device, &[5; 32], Some(&words)).unwrap();
        assert_eq!(
            decode(&file, Some(&words)).unwrap(),
            (KeyKind::Device, Zeroizing::new(vec![5; 32]))
        );
    }

    #[test]
    fn each_thing_that_can_be_wrong_has_its_own_error() {
        let file = sealed(b"secret");
        assert!(is_sealed(&file).unwrap());
        assert_eq!(decode(&file, None), Err(KeyFileError::PassphraseNeeded));
        let wrong = passphrase("open barley");
        assert_eq!(decode(&file, Some(&wrong)), Err(KeyFileError::WrongPassphrase));
        assert_eq!(decode(b"hello", None), Err(KeyFileError::NotAKeyFile));
        assert_eq!(decode(b"dfsk\x02", None), Err(KeyFileError::Version(2)));
        assert_eq!(decode(&file[..file.len() - 1], None), Err(KeyFileError::Damaged));
        assert_eq!(
            encode(KeyKind::Root, b"", None),
            Err(KeyFileError::SecretLength(0))
        );
        assert!(Passphrase::new(Zeroizing::new(String::new())).is_none());
    }

    #[test]
    fn a_file_that_demands_too_much_is_refused_before_it_gets_it() {
        let dear = KdfCost {
            memory_kib: KdfCost::MAX.memory_kib + 1,
            ..KdfCost::MAX
        };
        let words = passphrase("x");
        let refused = encode_with_cost(KeyKind::Root, b"s", Some((&words, dear)));
        assert_eq!(refused, Err(KeyFileError::Cost));
        let file = assemble(&header(KeyKind::Root, Some((dear, [0; 16])), 60), &[0; 60]);
        assert_eq!(decode(&file, Some(&words)), Err(KeyFileError::Cost));
    }

    #[test]
    fn no_field_has_two_spellings() {
        // With a right checksum: reserved byte, cost, salt of a plain file, length.
        let plain = encode(KeyKind::Root, &[5; 32], None).unwrap();
        for at in [5, 6, 7, 8, 12, 16, 20, 36] {
            let mut body = plain[..plain.len() - CHECKSUM_LEN].to_vec();
            body[at] ^= 0x80;
            let file = assemble(&body, &[]);
            assert!(decode(&file, None).is_err(), "byte {at}");
        }
    }

    #[test]
    fn the_secret_is_not_in_a_sealed_file() {
        let file = sealed(b"a very long and quotable secret");
        assert!(!file.windows(8).any(|window| window == b"quotable"));
        assert_ne!(file, sealed(b"a very long and quotable secret"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn round_trips_and_any_flipped_bit_is_an_error(
            secret in proptest::collection::vec(any::<u8>(), 1..100),
            with_passphrase: bool,
            at in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let words = passphrase("words");
            let cost = with_passphrase.then_some((&words, CHEAP));
            let mut file = encode_with_cost(KeyKind::Volume, &secret, cost).unwrap();
            let expected = (KeyKind::Volume, Zeroizing::new(secret));
            prop_assert_eq!(decode(&file, Some(&words)).unwrap(), expected);
            prop_assert_eq!(is_sealed(&file).unwrap(), with_passphrase);
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
            prop_assert!(decode(&file, Some(&words)).is_err());
            prop_assert!(decode(&file[..at], Some(&words)).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), checked: bool) {
            let mut file = [b"dfsk\x01", &bytes[..]].concat();
            if checked {
                file = assemble(&file, &[]).to_vec();
            }
            if let Ok((kind, secret)) = decode(&file, None) {
                prop_assert_eq!(&*encode(kind, &secret, None).unwrap(), &file);
            }
        }
    }
}
