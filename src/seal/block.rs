//! The block format: one chunk compressed, padded, encrypted and named.
//!
//! Invariants: a block opens to one plaintext only, of 1 to `CHUNK_MAX` bytes; every bit of it is authenticated; and no nonce is used for
//! two different messages, because it is a keyed hash of the message, header included. Called by `volume` and `object`.

use bytes::Bytes;
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut, KeyInit, XChaCha20Poly1305, XNonce};
use zstd::bulk::{Compressor, Decompressor};

use super::buffers::Buffers;
use super::{EpochKey, padme};
use crate::base::limits::{BLOCK_MAX, CHUNK_MAX};
use crate::base::{BlockId, PlainHash};

const MAGIC: [u8; 4] = *b"dfsb";
const VERSION: u8 = 1;
const RAW: u8 = 0;
const ZSTD: u8 = 1;

/// Magic, version, compression, two reserved bytes, epoch.
const HEADER_LEN: usize = 12;
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;
/// Lengths of plaintext and stored content, at the start of the encrypted body.
const LENGTHS_LEN: usize = 8;
const BODY_AT: usize = HEADER_LEN + NONCE_LEN;

/// Bytes of a block besides its stored content and padding.
pub const BLOCK_OVERHEAD: usize = BODY_AT + LENGTHS_LEN + TAG_LEN;

/// Why a chunk could not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A chunk has 1 to `CHUNK_MAX` bytes.
    #[error("a chunk of {0} bytes cannot be sealed: it must have 1 to {CHUNK_MAX}")]
    Length(usize),
    /// The compressor could not be set up: out of memory, or a level it does not know.
    #[error("zstd could not be set up: {0}")]
    Compressor(std::io::Error),
    /// The threads that seal could not be started.
    #[error("sealing threads could not be started: {0}")]
    Threads(String),
}

/// Why a block could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Shorter or longer than any block.
    #[error("{0} bytes cannot be a block")]
    Length(usize),
    /// Does not begin as a block does.
    #[error("not a block")]
    NotABlock,
    /// Written by a newer dfs.
    #[error("block format {0} is not known to this version of dfs: update it")]
    Version(u8),
    /// Damaged, or sealed under another volume's or epoch's key.
    #[error("block does not authenticate: it is damaged or was sealed under another key")]
    NotAuthentic,
    /// Authentic, but not as dfs writes it.
    #[error("block is authentic but malformed: {0}")]
    Malformed(&'static str),
}

/// The keyed hash under which the local index remembers what was sealed already. It never leaves the device.
pub fn plain_hash(index_key: &[u8; 32], plaintext: &[u8]) -> PlainHash {
    PlainHash(*blake3::keyed_hash(index_key, plaintext).as_bytes())
}

/// The epoch whose key a block was sealed under, from its clear header (which is authenticated only when the block is opened).
pub fn epoch_of(block: &[u8]) -> Result<u32, OpenError> {
    parse_header(block).map(|header| header.epoch)
}

struct Header {
    compression: u8,
    epoch: u32,
}

fn header(compression: u8, epoch: u32) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..4].copy_from_slice(&MAGIC);
    header[4] = VERSION;
    header[5] = compression;
    header[8..].copy_from_slice(&epoch.to_le_bytes());
    header
}

fn parse_header(block: &[u8]) -> Result<Header, OpenError> {
    if block.len() <= BLOCK_OVERHEAD || block.len() > BLOCK_MAX {
        return Err(OpenError::Length(block.len()));
    }
    if block[..4] != MAGIC {
        return Err(OpenError::NotABlock);
    }
    if block[4] != VERSION {
        return Err(OpenError::Version(block[4]));
    }
    if block[5] > ZSTD || block[6..8] != [0, 0] {
        return Err(OpenError::NotABlock);
    }
    Ok(Header {
        compression: block[5],
        epoch: le32(&block[8..12]),
    })
}

fn le32(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| (value << 8) | u32::from(*byte))
}

/// Seals chunks, one after another. Keeps its compressor and buffers: make one per thread and keep it.
pub struct Sealer {
    zstd: Compressor<'static>,
    compressed: Vec<u8>,
    blocks: Buffers,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

impl Sealer {
    /// The zstd level that dfs uses unless told otherwise.
    pub const DEFAULT_LEVEL: i32 = 1;

    /// A sealer that compresses at zstd `level`.
    pub fn new(level: i32) -> Result<Self, SealError> {
        Self::with_buffers(level, Buffers::default())
    }

    /// A sealer that shares the memory of its blocks with others.
    pub(super) fn with_buffers(level: i32, blocks: Buffers) -> Result<Self, SealError> {
        Ok(Self {
            zstd: Compressor::new(level).map_err(SealError::Compressor)?,
            compressed: vec![0; CHUNK_MAX],
            blocks,
        })
    }

    /// Seals 1 to `CHUNK_MAX` bytes of plaintext into a block and names it.
    pub fn seal(
        &mut self,
        epoch: u32,
        key: &EpochKey,
        plaintext: &[u8],
    ) -> Result<(BlockId, Bytes), SealError> {
        if plaintext.is_empty() || plaintext.len() > CHUNK_MAX {
            return Err(SealError::Length(plaintext.len()));
        }
        // With room for less than the plaintext only, the compressor gives up on what does not shrink.
        let room = &mut self.compressed[..plaintext.len() - 1];
        let (header, content) = match self.zstd.compress_to_buffer(plaintext, room) {
            Ok(len) => (header(ZSTD, epoch), &self.compressed[..len]),
            Err(_) => (header(RAW, epoch), plaintext),
        };
        let block = self.blocks.take(block_len(content.len()));
        let block = encrypt(block, &header, key, plaintext.len(), content)?;
        Ok((BlockId::of(&block), self.blocks.share(block)))
    }
}

/// Length of a block with so much content, in bytes.
fn block_len(content_len: usize) -> usize {
    BODY_AT + padme(LENGTHS_LEN + content_len) + TAG_LEN
}

/// Lays out header, nonce, body and tag in an empty buffer with room for them.
fn encrypt(
    mut block: Vec<u8>,
    header: &[u8; HEADER_LEN],
    key: &EpochKey,
    plain_len: usize,
    content: &[u8],
) -> Result<Vec<u8>, SealError> {
    block.extend_from_slice(header);
    block.extend_from_slice(&[0; NONCE_LEN]);
    block.extend_from_slice(&(plain_len as u32).to_le_bytes());
    block.extend_from_slice(&(content.len() as u32).to_le_bytes());
    block.extend_from_slice(content);
    block.resize(block_len(content.len()) - TAG_LEN, 0);

    let mut hasher = blake3::Hasher::new_keyed(key.nonce());
    let hash = hasher.update(header).update(&block[BODY_AT..]).finalize();
    let mut nonce = XNonce::default();
    nonce.copy_from_slice(&hash.as_bytes()[..NONCE_LEN]);
    block[HEADER_LEN..BODY_AT].copy_from_slice(&nonce);

    let body = InOutBuf::from(&mut block[BODY_AT..]);
    let tag = XChaCha20Poly1305::new(key.block().into())
        .encrypt_inout_detached(&nonce, header, body)
        .map_err(|_| SealError::Length(plain_len))?;
    block.extend_from_slice(&tag);
    Ok(block)
}

/// Opens blocks, one after another. Keeps its decompressor and buffer: make one per thread and keep it.
pub struct Opener {
    zstd: Option<Decompressor<'static>>,
    body: Vec<u8>,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opener")
    }
}

impl Default for Opener {
    fn default() -> Self {
        Self::new()
    }
}

impl Opener {
    /// An opener.
    pub fn new() -> Self {
        Self {
            zstd: None,
            body: Vec::new(),
        }
    }

    /// Replaces the content of `out` by the plaintext of a block: 1 to `CHUNK_MAX` bytes. On an error `out` is left empty.
    /// Does not compare the block with its id: the store does so whenever it reads one.
    pub fn open(&mut self, key: &EpochKey, block: &[u8], out: &mut Vec<u8>) -> Result<(), OpenError> {
        out.clear();
        let header = parse_header(block)?;
        let body_len = self.decrypt(key, block)?;
        let result = self.unpack(&header, body_len, out);
        if result.is_err() {
            out.clear();
        }
        result
    }

    /// Decrypts the body into the buffer, once the tag was found right.
    fn decrypt(&mut self, key: &EpochKey, block: &[u8]) -> Result<usize, OpenError> {
        let (sealed, tag) = block.split_at(block.len() - TAG_LEN);
        let body_len = sealed.len() - BODY_AT;
        if self.body.len() < body_len {
            self.body.resize(body_len, 0);
        }
        let malformed = |_| OpenError::Length(block.len());
        let nonce = XNonce::try_from(&sealed[HEADER_LEN..BODY_AT]).map_err(malformed)?;
        let tag = chacha20poly1305::Tag::try_from(tag).map_err(malformed)?;
        let body = InOutBuf::new(&sealed[BODY_AT..], &mut self.body[..body_len])
            .map_err(|_| OpenError::Length(block.len()))?;
        XChaCha20Poly1305::new(key.block().into())
            .decrypt_inout_detached(&nonce, &sealed[..HEADER_LEN], body, &tag)
            .map_err(|_| OpenError::NotAuthentic)?;
        Ok(body_len)
    }

    /// Checks lengths and padding of the decrypted body and decompresses it into `out`.
    fn unpack(&mut self, header: &Header, body_len: usize, out: &mut Vec<u8>) -> Result<(), OpenError> {
        let body = &self.body[..body_len];
        if body_len < LENGTHS_LEN {
            return Err(OpenError::Malformed("no lengths"));
        }
        let plain_len = le32(&body[..4]) as usize;
        let content_len = le32(&body[4..LENGTHS_LEN]) as usize;
        if plain_len == 0 || plain_len > CHUNK_MAX {
            return Err(OpenError::Malformed("plaintext length out of bounds"));
        }
        if content_len > plain_len || body_len != padme(LENGTHS_LEN + content_len) {
            return Err(OpenError::Malformed("content length does not fit the block"));
        }
        let (content, padding) = body[LENGTHS_LEN..].split_at(content_len);
        if padding.iter().any(|byte| *byte != 0) {
            return Err(OpenError::Malformed("padding is not zero"));
        }
        if (header.compression == RAW) != (content_len == plain_len) {
            return Err(OpenError::Malformed("content is not stored in its shorter form"));
        }
        if header.compression == RAW {
            out.extend_from_slice(content);
            return Ok(());
        }
        let zstd = match &mut self.zstd {
            Some(zstd) => zstd,
            none => none
                .insert(Decompressor::new().map_err(|_| OpenError::Malformed("no memory to decompress it"))?),
        };
        out.reserve_exact(plain_len);
        match zstd.decompress_to_buffer(content, out) {
            Ok(len) if len == plain_len && out.len() == plain_len => Ok(()),
            _ => Err(OpenError::Malformed("content does not decompress to its length")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> EpochKey {
        EpochKey::derive(&[1; 32])
    }

    fn seal(epoch: u32, key: &EpochKey, plaintext: &[u8]) -> (BlockId, Bytes) {
        Sealer::new(Sealer::DEFAULT_LEVEL)
            .unwrap()
            .seal(epoch, key, plaintext)
            .unwrap()
    }

    fn open(key: &EpochKey, block: &[u8]) -> Result<Vec<u8>, OpenError> {
        let mut out = vec![1; 3];
        Opener::new().open(key, block, &mut out).map(|()| out)
    }

    /// Bytes that do not compress.
    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    /// A block that only someone with the key could have made: the body, authentic.
    fn forge(compression: u8, body: &[u8]) -> Vec<u8> {
        let header = header(compression, 1);
        let nonce = XNonce::default();
        let mut block = [&header[..], &nonce, body].concat();
        let tag = XChaCha20Poly1305::new(key().block().into())
            .encrypt_inout_detached(&nonce, &header, InOutBuf::from(&mut block[BODY_AT..]))
            .unwrap();
        block.extend_from_slice(&tag);
        block
    }

    fn body(plain_len: usize, content: &[u8], body_len: usize) -> Vec<u8> {
        let mut body = (plain_len as u32).to_le_bytes().to_vec();
        body.extend_from_slice(&(content.len() as u32).to_le_bytes());
        body.extend_from_slice(content);
        body.resize(body_len, 0);
        body
    }

    #[test]
    fn equal_chunks_become_equal_blocks_under_one_key_only() {
        let text = b"to be or not to be, to be or not to be".repeat(100);
        assert_eq!(seal(1, &key(), &text), seal(1, &key(), &text));
        assert_ne!(seal(1, &key(), &text).0, seal(2, &key(), &text).0);
        let other = EpochKey::derive(&[2; 32]);
        assert_ne!(seal(1, &key(), &text).0, seal(1, &other, &text).0);
        assert!(seal(1, &key(), &text).1.len() < text.len() / 4);
    }

    #[test]
    fn what_is_encrypted_differently_has_another_nonce() {
        // Two compressors make two bodies of one plaintext: the nonce must differ with them.
        let text = noise(4000).repeat(2);
        let fast = Sealer::new(1).unwrap().seal(1, &key(), &text).unwrap().1;
        let raw = encrypt(vec![], &header(RAW, 1), &key(), text.len(), &text).unwrap();
        assert_ne!(fast[HEADER_LEN..BODY_AT], raw[HEADER_LEN..BODY_AT]);
        // And equal bodies under different headers as well.
        let other = encrypt(vec![], &header(RAW, 2), &key(), text.len(), &text).unwrap();
        assert_ne!(other[HEADER_LEN..BODY_AT], raw[HEADER_LEN..BODY_AT]);
    }

    #[test]
    fn lengths_from_one_byte_to_the_largest_chunk() {
        for len in [1, 2, 63, 64, 1000, CHUNK_MAX - 1, CHUNK_MAX] {
            for plaintext in [noise(len), vec![7; len]] {
                let (id, block) = seal(3, &key(), &plaintext);
                assert!(block.len() <= BLOCK_MAX && id.matches(&block));
                assert_eq!(epoch_of(&block), Ok(3));
                assert!(open(&key(), &block).unwrap() == plaintext, "length {len}");
            }
        }
        for len in [0, CHUNK_MAX + 1] {
            let sealed = Sealer::new(1).unwrap().seal(1, &key(), &vec![0; len]);
            assert!(matches!(sealed, Err(SealError::Length(l)) if l == len));
        }
    }

    #[test]
    fn block_lengths_are_padme_lengths() {
        for len in [1000, 1001, 1005, 100_000, 100_001] {
            let body_len = seal(1, &key(), &noise(len)).1.len() - BODY_AT - TAG_LEN;
            assert_eq!(body_len, padme(LENGTHS_LEN + len));
        }
    }

    #[test]
    fn an_authentic_block_of_another_form_is_refused() {
        let good = forge(RAW, &body(9, b"123456789", 18));
        assert_eq!(open(&key(), &good).unwrap(), b"123456789");
        let bomb = zstd::bulk::compress(&vec![0; CHUNK_MAX + 1], 1).unwrap();
        let short = zstd::bulk::compress(&[5; 1000], 1).unwrap();
        let mut padded = body(9, b"123456789", 18);
        padded[17] = 1;
        let cases = [
            ("no lengths", forge(RAW, &[0; 7])),
            ("empty", forge(RAW, &body(0, b"", 8))),
            ("padding missing", forge(RAW, &body(9, b"123456789", 17))),
            ("padding too long", forge(RAW, &body(9, b"123456789", 20))),
            ("padding not zero", forge(RAW, &padded)),
            (
                "longer than its plaintext",
                forge(RAW, &body(8, b"123456789", 18)),
            ),
            ("raw, yet shorter", forge(RAW, &body(10, b"123456789", 18))),
            (
                "compressed, yet not shorter",
                forge(ZSTD, &body(9, b"123456789", 18)),
            ),
            (
                "beyond the largest chunk",
                forge(ZSTD, &body(CHUNK_MAX + 1, &bomb, padme(8 + bomb.len()))),
            ),
            (
                "a bomb that lies",
                forge(ZSTD, &body(CHUNK_MAX, &bomb, padme(8 + bomb.len()))),
            ),
            (
                "shorter than it says",
                forge(ZSTD, &body(1001, &short, padme(8 + short.len()))),
            ),
            (
                "longer than it says",
                forge(ZSTD, &body(999, &short, padme(8 + short.len()))),
            ),
            ("no zstd frame", forge(ZSTD, &body(100, &noise(30), padme(38)))),
        ];
        for (what, block) in cases {
            let opened = open(&key(), &block);
            let expected = matches!(opened, Err(OpenError::Malformed(_) | OpenError::Length(_)));
            assert!(expected, "{what}: {opened:?}");
        }
    }

    #[test]
    fn headers_say_what_is_wrong() {
        let block = seal(1, &key(), b"text").1.to_vec();
        let with = |at: usize, value: u8| {
            let mut block = block.clone();
            block[at] = value;
            open(&key(), &block).unwrap_err()
        };
        assert_eq!(with(0, b'x'), OpenError::NotABlock);
        assert_eq!(with(4, 2), OpenError::Version(2));
        assert_eq!(with(5, 9), OpenError::NotABlock);
        assert_eq!(with(5, 1), OpenError::NotAuthentic);
        assert_eq!(with(6, 1), OpenError::NotABlock);
        assert_eq!(with(8, 2), OpenError::NotAuthentic);
        assert_eq!(open(&key(), &[]), Err(OpenError::Length(0)));
        let long = vec![0; BLOCK_MAX + 1];
        assert_eq!(epoch_of(&long), Err(OpenError::Length(BLOCK_MAX + 1)));
        let other = EpochKey::derive(&[2; 32]);
        assert_eq!(open(&other, &block), Err(OpenError::NotAuthentic));
    }

    #[test]
    fn an_opener_that_met_errors_goes_on_and_shows_nothing_of_them() {
        let (mut opener, mut out) = (Opener::new(), Vec::new());
        let blocks = [seal(1, &key(), &noise(5000)).1, seal(1, &key(), &[9; 3000]).1];
        for _ in 0..2 {
            opener.open(&key(), &blocks[0], &mut out).unwrap();
            assert_eq!(out, noise(5000));
            let mut bad = blocks[1].to_vec();
            *bad.last_mut().unwrap() ^= 1;
            assert!(opener.open(&key(), &bad, &mut out).is_err());
            assert!(out.is_empty());
            opener.open(&key(), &blocks[1], &mut out).unwrap();
            assert_eq!(out, [9; 3000]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn round_trips_and_no_flipped_bit_goes_unseen(
            pattern in proptest::collection::vec(any::<u8>(), 1..300),
            times in 1_usize..20,
            epoch: u32,
            at in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let plaintext = pattern.repeat(times);
            let (_, block) = seal(epoch, &key(), &plaintext);
            prop_assert_eq!(open(&key(), &block).unwrap(), plaintext);
            prop_assert_eq!(epoch_of(&block), Ok(epoch));
            let mut bad = block.to_vec();
            bad[at.index(block.len())] ^= 1 << bit;
            prop_assert!(open(&key(), &bad).is_err());
            prop_assert!(open(&key(), &block[..at.index(block.len())]).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_open(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), as_block: bool) {
            if as_block && bytes.len() >= HEADER_LEN {
                bytes[..HEADER_LEN].copy_from_slice(&header(ZSTD, 1));
            }
            prop_assert!(open(&key(), &bytes).is_err());
        }

        #[test]
        fn an_authentic_body_of_any_bytes_never_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            plain_len in 0_u32..200,
            content_len in 0_u32..100,
            compression in 0_u8..2,
        ) {
            let mut body = [plain_len.to_le_bytes(), content_len.to_le_bytes()].concat();
            body.extend_from_slice(&bytes);
            if let Ok(out) = open(&key(), &forge(compression, &body)) {
                prop_assert_eq!(out.len(), plain_len as usize);
            }
        }
    }
}
