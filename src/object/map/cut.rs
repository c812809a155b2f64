//! Where a node ends: after an entry that its key, its length and the length of the node so far choose.
//!
//! Nothing else counts, so two sequences that are equal from somewhere on are cut alike soon after. The chance to be cut grows with the length
//! of the node (a Weibull distribution of shape 2, as Dolt uses one of shape 4): lengths gather around the mean, and little more than that is
//! rewritten for a change.

/// No node ends before so many bytes of entries, but for the last of its level.
pub(super) const SIZE_MIN: usize = 4 << 10;

/// Every node ends once it has so many bytes of entries. One in 10^8 gets here with short values.
pub(super) const SIZE_MAX: usize = 64 << 10;

/// Square of the scale of the distribution, in bytes²: nodes of many short entries have 16.3 KiB on average.
const SCALE_SQUARED: u64 = 3 << 25;

/// Whether a node ends after an entry of `len` bytes that makes it `size` bytes long (its header not counted).
pub(super) fn ends(level: u8, key: &[u8], len: usize, size: usize) -> bool {
    if size >= SIZE_MAX {
        return true;
    }
    let Some(grown) = size.checked_sub(SIZE_MIN) else {
        return false;
    };
    // Each level has a number of its own, or all keys that end a node would end one on every level.
    let hash = blake3::hash(key);
    let at = usize::from(level % 8) * 4;
    let mut number = [0; 4];
    number.copy_from_slice(&hash.as_bytes()[at..at + 4]);
    // number / 2^32 < len × grown / scale²
    u64::from(u32::from_le_bytes(number)) * (SCALE_SQUARED >> 25) < ((len as u64 * grown as u64) << (32 - 25))
}
