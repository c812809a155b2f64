//! Input and output of a `.f`: two slots of one page each, written in place. What they mean is `object::slot`'s business.
//!
//! Invariant: one write never touches both slots.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::base::limits::SLOT_LEN;

/// One of the two places for a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Offset 0.
    A,
    /// Offset [`SLOT_LEN`].
    B,
}

impl Slot {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }

    /// Offset in the `.f`, in bytes.
    pub fn offset(self) -> u64 {
        match self {
            Slot::A => 0,
            Slot::B => SLOT_LEN as u64,
        }
    }
}

/// The bytes of both slots, as far as the host file has them.
#[derive(Debug, Default)]
pub struct SlotBytes {
    bytes: Vec<u8>,
}

impl SlotBytes {
    /// Reads both slots with one call where the host gives all at once.
    pub fn read(file: &File) -> io::Result<Self> {
        let mut bytes = vec![0; 2 * SLOT_LEN];
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(Self { bytes })
    }

    /// The slots of a `.f` that is already in memory.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// The bytes of one slot; empty when the host file ends before it.
    pub fn slot(&self, slot: Slot) -> &[u8] {
        let from = (slot.offset() as usize).min(self.bytes.len());
        let to = (from + SLOT_LEN).min(self.bytes.len());
        &self.bytes[from..to]
    }

    /// Whether the host file is empty: the `.f` of an empty file.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Writes one slot. `encoded` is at most [`SLOT_LEN`] bytes.
pub fn write(file: &File, slot: Slot, encoded: &[u8]) -> io::Result<()> {
    if encoded.len() > SLOT_LEN {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a slot is at most one page",
        ));
    }
    file.write_all_at(encoded, slot.offset())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_do_not_touch_each_other() {
        let file = tempfile::tempfile().unwrap();
        assert!(SlotBytes::read(&file).unwrap().is_empty());
        write(&file, Slot::B, &[2; 10]).unwrap();
        write(&file, Slot::A, &[1; SLOT_LEN]).unwrap();
        let both = SlotBytes::read(&file).unwrap();
        assert_eq!(both.slot(Slot::A), [1; SLOT_LEN]);
        assert_eq!(both.slot(Slot::B), [2; 10]);
        assert!(write(&file, Slot::A, &[0; SLOT_LEN + 1]).is_err());
    }
}
