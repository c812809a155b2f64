//! Storey 1, pure: plaintext to blocks and back.
//!
//! chunk (keyed FastCDC) → compress (zstd) → pad (Padmé) → encrypt (XChaCha20-Poly1305, synthetic nonce) → name (BLAKE3).
//! Equal chunks of one volume and epoch become equal blocks; without the volume's keys nothing can be confirmed from outside.
//! Byte layouts are in `docs/format.md`, the reasons in `docs/security.md`. Called by `keys`, `object`, `volume`.

mod block;
mod buffers;
mod chunker;
mod epoch_key;
mod padme;
mod payload;
mod pool;

pub use block::{BLOCK_OVERHEAD, OpenError, Opener, SealError, Sealer, epoch_of, plain_hash};
pub use chunker::{Chunker, Piece};
pub use epoch_key::EpochKey;
pub use padme::padme;
pub use payload::{PAYLOAD_OVERHEAD, PayloadError, open_payload, seal_payload, seal_payload_with_nonce};
pub(crate) use payload::{open_with_key, seal_with_key};
pub use pool::{SealPool, Sealed};
