//! Records of the roster that came through the DHT: put aside as they come, looked at later, by somebody who may wait for the disk.

use crate::base::codec::DecodeError;
use crate::keys::roster;

use super::members::{Members, RECORD_MAX};

/// Records that wait to be looked at.
const MAIL_MAX: usize = 32;

impl Members {
    /// A record of the roster came through the DHT; it is looked at later, by [`Members::open_mail`].
    pub(super) fn mail(&self, record: &[u8]) -> Result<(), DecodeError> {
        if record.len() > RECORD_MAX {
            return Err(DecodeError::Invalid("a record of the roster that is too long"));
        }
        let statements: Vec<Vec<u8>> = roster::split(record)?.into_iter().map(<[u8]>::to_vec).collect();
        let mut mail = self.mail.lock();
        mail.truncate(MAIL_MAX - 1);
        mail.push(statements);
        Ok(())
    }

    /// Looks at what came through the DHT. Blocks on the disk.
    pub(super) fn open_mail(&self) {
        for statements in std::mem::take(&mut *self.mail.lock()) {
            if let Err(e) = self.hear(&statements) {
                tracing::warn!("the DHT gave a record of the roster that is not valid: {e}");
            }
        }
    }

    /// Whether something came through the DHT.
    pub(super) fn has_mail(&self) -> bool {
        !self.mail.lock().is_empty()
    }
}
