//! The codes of ERROR frames: why a request was not carried out, or a connection ends. Used by `frame`.

use crate::base::codec::DecodeError;

/// Why a request was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The peer is not accepted as a member; the connection ends.
    NotAMember,
    /// The peer's role does not allow it.
    NotAllowed,
    /// The store failed or is full.
    StoreFailed,
    /// The peer broke the protocol; the connection ends.
    Violation,
}

impl Code {
    pub(super) fn to_u16(self) -> u16 {
        match self {
            Self::NotAMember => 1,
            Self::NotAllowed => 2,
            Self::StoreFailed => 3,
            Self::Violation => 4,
        }
    }

    pub(super) fn from_u16(value: u16) -> Result<Self, DecodeError> {
        match value {
            1 => Ok(Self::NotAMember),
            2 => Ok(Self::NotAllowed),
            3 => Ok(Self::StoreFailed),
            4 => Ok(Self::Violation),
            _ => Err(DecodeError::Invalid("unknown error code")),
        }
    }
}
