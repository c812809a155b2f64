//! Every bound that more than one room relies on, with its reason.

/// Smallest chunk the chunker cuts, except at the end of a file, in bytes.
pub const CHUNK_MIN: usize = 64 << 10;
/// Average chunk the chunker aims at, in bytes.
pub const CHUNK_AVG: usize = 256 << 10;
/// Largest chunk, in bytes.
pub const CHUNK_MAX: usize = 1 << 20;

/// Largest block: a chunk that does not compress, Padmé padding (at most 12 %), header, nonce and tag.
pub const BLOCK_MAX: usize = CHUNK_MAX + CHUNK_MAX / 8 + 1024;

/// Length of one of the two slots of a `.f`: one page, so that a write of it is not torn by the death of the process.
pub const SLOT_LEN: usize = 4096;

/// Largest file, in bytes: what `off_t` can express, less one chunk so that no arithmetic on offsets overflows.
pub const FILE_MAX: u64 = i64::MAX as u64 - CHUNK_MAX as u64;

/// Longest name in the mount, in bytes. Host file systems allow 255; the `.f` takes two.
pub const NAME_MAX: usize = 253;

/// Longest symbolic link target, in bytes (Linux `PATH_MAX` with its NUL).
pub const SYMLINK_MAX: usize = 4095;

/// Deepest tree of index blocks a manifest may name: with at least two entries a block this is beyond any file.
pub const INDEX_DEPTH_MAX: u8 = 6;

/// Default wait for a block that only others have, in seconds (promise 1).
pub const FETCH_TIMEOUT_SECS: u64 = 30;

/// Most replicas of a block that can be wished for.
pub const REPLICAS_MAX: u8 = 16;

/// Longest key of a map, in bytes: a directory's id and a name, and room for what may come.
pub const MAP_KEY_MAX: usize = 512;

/// Longest value of a map, in bytes: a small file's content, several extended attributes of the 64 KiB that Linux allows, or the places of a
/// file with thousands of names. With it and all that comes before it a node stays well below `CHUNK_MAX`.
pub const MAP_VALUE_MAX: usize = 256 << 10;

/// Deepest map: a node above the leaves has at least seven entries, so this is beyond any volume.
pub const MAP_DEPTH_MAX: u8 = 16;

/// Most snapshots that one was made from. Two, as things are.
pub const SNAPSHOT_PARENTS_MAX: usize = 8;
