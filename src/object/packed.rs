//! The content of a small file, compressed so that it fits into its slot. Pure; called by `slot`.
//!
//! Invariant: unpacking never makes more bytes than were asked for, whatever the frame says of itself.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

/// Longest file that is packed, in bytes: source text of this length just fits about every second time.
pub(super) const PACKED_MAX: usize = 16 << 10;

/// zstd level: at these lengths 3 costs little more than 1 and fits one file in ten more.
const LEVEL: i32 = 3;

thread_local! {
    /// A compressor's tables are larger than what it packs here.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// A zstd frame of at most `room` bytes that holds `bytes`; `None` when there is none so short.
pub(super) fn pack(bytes: &[u8], room: usize) -> Option<Vec<u8>> {
    if bytes.len() > PACKED_MAX {
        return None;
    }
    COMPRESSOR.with_borrow_mut(|compressor| {
        if compressor.is_none() {
            *compressor = Some(Compressor::new(LEVEL).ok()?);
        }
        let mut frame = vec![0; room];
        let len = compressor
            .as_mut()?
            .compress_to_buffer(bytes, &mut frame[..])
            .ok()?;
        frame.truncate(len);
        Some(frame)
    })
}

/// What a frame holds, if that is exactly `len` bytes.
pub(super) fn unpack(frame: &[u8], len: usize) -> Option<Vec<u8>> {
    if len > PACKED_MAX {
        return None;
    }
    DECOMPRESSOR.with_borrow_mut(|decompressor| {
        if decompressor.is_none() {
            *decompressor = Some(Decompressor::new().ok()?);
        }
        let bytes = decompressor.as_mut()?.decompress(frame, len).ok()?;
        (bytes.len() == len).then_some(bytes)
    })
}
