//! Little-endian, bounds-checked encoding that all formats and messages are written in.
//!
//! `Reader` never reads past its slice and never allocates more than the slice holds: a length that lies is an error.

/// The bytes are not a value of the expected form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ended before the value did.
    #[error("truncated: {needed} more bytes expected at offset {at}")]
    Truncated {
        /// Offset of the field, in bytes.
        at: usize,
        /// Bytes missing.
        needed: usize,
    },
    /// Bytes were left after the value.
    #[error("{0} bytes left over")]
    TrailingBytes(usize),
    /// A field holds what its format does not allow.
    #[error("{0}")]
    Invalid(&'static str),
}

/// Reads fields one after another from a slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        if len > self.remaining() {
            return Err(DecodeError::Truncated {
                at: self.at,
                needed: len - self.remaining(),
            });
        }
        let taken = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A byte string with a two-byte length, at most `max` bytes long.
    pub fn bytes16(&mut self, max: usize) -> Result<&'a [u8], DecodeError> {
        let len = usize::from(self.u16()?);
        self.bounded(len, max)
    }

    /// A byte string with a four-byte length, at most `max` bytes long.
    pub fn bytes32(&mut self, max: usize) -> Result<&'a [u8], DecodeError> {
        let len = self.u32()? as usize;
        self.bounded(len, max)
    }

    /// A UTF-8 string with a two-byte length, at most `max` bytes long.
    pub fn str16(&mut self, max: usize) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes16(max)?).map_err(|_| DecodeError::Invalid("text is not UTF-8"))
    }

    /// Succeeds when nothing is left.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(DecodeError::TrailingBytes(left)),
        }
    }

    fn bounded(&mut self, len: usize, max: usize) -> Result<&'a [u8], DecodeError> {
        if len > max {
            return Err(DecodeError::Invalid("a length is beyond its limit"));
        }
        self.take(len)
    }
}

/// Appends fields to a vector.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// An empty writer with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Raw bytes, without a length.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// A byte string with a two-byte length. Longer input is a programming error and is cut in release builds.
    pub fn bytes16(&mut self, bytes: &[u8]) -> &mut Self {
        debug_assert!(bytes.len() <= usize::from(u16::MAX));
        let len = bytes.len().min(usize::from(u16::MAX));
        self.u16(len as u16).raw(&bytes[..len])
    }

    /// A byte string with a four-byte length.
    pub fn bytes32(&mut self, bytes: &[u8]) -> &mut Self {
        debug_assert!(u32::try_from(bytes.len()).is_ok());
        self.u32(bytes.len() as u32).raw(bytes)
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was written.
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_round_trip() {
        let mut w = Writer::default();
        w.u8(1).u16(2).u32(3).u64(4).bytes16(b"ab").bytes32(b"cde");
        let bytes = w.into_vec();
        let mut r = Reader::new(&bytes);
        assert_eq!((r.u8(), r.u16(), r.u32(), r.u64()), (Ok(1), Ok(2), Ok(3), Ok(4)));
        assert_eq!(r.bytes16(2), Ok(&b"ab"[..]));
        assert_eq!(r.bytes32(3), Ok(&b"cde"[..]));
        assert_eq!(r.finish(), Ok(()));
    }

    #[test]
    fn a_lying_length_is_an_error_not_an_allocation() {
        let mut r = Reader::new(&[0xff, 0xff, 0xff, 0xff, 1]);
        assert_eq!(
            r.clone().bytes32(usize::MAX),
            Err(DecodeError::Truncated {
                at: 4,
                needed: 0xffff_fffe
            })
        );
        assert_eq!(
            r.bytes32(10),
            Err(DecodeError::Invalid("a length is beyond its limit"))
        );
        assert_eq!(Reader::new(&[0]).finish(), Err(DecodeError::TrailingBytes(1)));
    }
}
