//! What an admin states about the group: that a device belongs to it, that one was removed, that a new key epoch began.
//!
//! Invariant: a [`Statement`] exists in memory only after its signatures were checked against the group's public key: the group key's, which
//! shows that an admin made it, and its author's, which shows which one. Whether it *counts* is for [`super::roster`] to say, which knows
//! the others. Made in `daemon`, carried by `node`. The binary form is described byte by byte in `docs/protocol.md`.

use crate::base::clock::UnixSecs;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::{DeviceId, GroupId};

use super::certificate::CERTIFICATE_MAX;
use super::{
    Certificate, CertificateError, DeviceKey, EPOCH_MAX, FIRST_EPOCH, GroupKey, Role, device_id, group_id,
    verify,
};

/// Longest encoded statement, in bytes.
pub const STATEMENT_MAX: usize = HEAD_LEN + 2 + CERTIFICATE_MAX + 4 + 8 + 1 + 2 * 64;

const HEAD_LEN: usize = 4 + 1 + 32 + 32 + 8 + 4 + 1;
const MAGIC: &[u8; 4] = b"dfsS";
const VERSION: u8 = 1;
const AUTHOR_CONTEXT: &[u8] = b"dfs statement v1\0";
const GROUP_CONTEXT: &[u8] = b"dfs statement v1 of the group\0";

const MEMBER: u8 = 1;
const REMOVED: u8 = 2;
const EPOCH: u8 = 3;

/// Names a statement: the first half of the BLAKE3 hash of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatementId(pub [u8; 16]);

/// Why bytes are no statement of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// They have another form.
    #[error("the statement cannot be read: {0}")]
    Malformed(#[from] DecodeError),
    /// They are about another group.
    #[error("the statement is of another group ({})", .0.short())]
    OtherGroup(GroupId),
    /// A signature is wrong.
    #[error("the statement is not signed by {0}")]
    Forged(&'static str),
    /// The certificate in it is wrong.
    #[error("the statement holds a certificate that is not the group's: {0}")]
    Certificate(CertificateError),
}

/// What is stated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Matter {
    /// The device of the certificate belongs to the group, in its role, from now on.
    Member {
        /// Its certificate.
        certificate: Certificate,
        /// Counts the certificates of one device from 1: a higher one replaces a lower one.
        version: u32,
        /// The device's statements up to this number were known. Later ones do not count, unless this makes it an admin.
        heard: u64,
        /// Whether it takes the right to read: a new epoch is due.
        shuts_out: bool,
    },
    /// The device belongs no more, and never will again. A new epoch is due.
    Removed {
        /// The device.
        device: DeviceId,
        /// When, by the author's clock.
        at: UnixSecs,
        /// As in [`Matter::Member`].
        heard: u64,
    },
    /// The secret of this epoch is the one that this commits to: whoever is handed a secret can tell whether it is the right one.
    Epoch {
        /// Number of the epoch.
        epoch: u32,
        /// See [`super::VolumeKeys::commitment`].
        commitment: [u8; 32],
    },
}

impl Matter {
    /// The device that it is about.
    pub fn device(&self) -> Option<DeviceId> {
        match self {
            Self::Member { certificate, .. } => Some(certificate.device_id()),
            Self::Removed { device, .. } => Some(*device),
            Self::Epoch { .. } => None,
        }
    }
}

/// What is to be stated, before it is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Public key of the admin's device that states it.
    pub author: [u8; 32],
    /// Counts the author's statements from 1.
    pub number: u64,
    /// The newest epoch that the author knew.
    pub epoch: u32,
    /// What is stated.
    pub matter: Matter,
}

/// A statement with two good signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    draft: Draft,
    author_signature: [u8; 64],
    group_signature: [u8; 64],
    id: StatementId,
}

impl Statement {
    /// Signs a draft; `device` must be its author's key.
    pub fn sign(draft: Draft, group: &GroupKey, device: &DeviceKey) -> Self {
        let mut draft = draft;
        draft.author = device.public();
        let mut bytes = body(&draft, &group.id());
        let author_signature = device.sign(&with_context(AUTHOR_CONTEXT, &bytes));
        bytes.extend_from_slice(&author_signature);
        let group_signature = group.sign(&with_context(GROUP_CONTEXT, &bytes));
        bytes.extend_from_slice(&group_signature);
        Self {
            draft,
            author_signature,
            group_signature,
            id: id_of(&bytes),
        }
    }

    /// Reads the binary form, and checks every signature in it. Dates are not looked at.
    pub fn decode(bytes: &[u8], group_public: &[u8; 32]) -> Result<Self, StatementError> {
        let mut r = Reader::new(bytes);
        if r.array::<4>()? != *MAGIC {
            return Err(DecodeError::Invalid("not a statement").into());
        }
        if r.u8()? != VERSION {
            return Err(DecodeError::Invalid("a statement of an unknown version").into());
        }
        let group = GroupId(r.array()?);
        if group != group_id(group_public) {
            return Err(StatementError::OtherGroup(group));
        }
        let (author, number, epoch) = (r.array()?, r.u64()?, r.u32()?);
        let matter = read_matter(&mut r)?;
        let unsigned = bytes.len() - r.remaining();
        let author_signature = r.array()?;
        let group_signature = r.array()?;
        r.finish()?;
        let with_author = &bytes[..unsigned + 64];
        if !verify(
            group_public,
            &with_context(GROUP_CONTEXT, with_author),
            &group_signature,
        ) {
            return Err(StatementError::Forged("the group key"));
        }
        let message = with_context(AUTHOR_CONTEXT, &bytes[..unsigned]);
        if !verify(&author, &message, &author_signature) {
            return Err(StatementError::Forged("the device that it names as its author"));
        }
        if let Matter::Member { certificate, .. } = &matter {
            let issued = certificate.membership().issued;
            certificate
                .verify(group_public, issued)
                .map_err(StatementError::Certificate)?;
        }
        Ok(Self {
            draft: Draft {
                author,
                number,
                epoch,
                matter,
            },
            author_signature,
            group_signature,
            id: id_of(bytes),
        })
    }

    /// Binary form, at most [`STATEMENT_MAX`] bytes.
    pub fn encode(&self, group: &GroupId) -> Vec<u8> {
        let mut bytes = body(&self.draft, group);
        bytes.extend_from_slice(&self.author_signature);
        bytes.extend_from_slice(&self.group_signature);
        bytes
    }

    /// Its name.
    pub fn id(&self) -> StatementId {
        self.id
    }

    /// What is stated.
    pub fn matter(&self) -> &Matter {
        &self.draft.matter
    }

    /// The device that states it.
    pub fn author(&self) -> DeviceId {
        device_id(&self.draft.author)
    }

    /// Its number among its author's.
    pub fn number(&self) -> u64 {
        self.draft.number
    }

    /// The newest epoch that its author knew.
    pub fn epoch(&self) -> u32 {
        self.draft.epoch
    }

    /// Up to which of its statements the device that this is about is still believed, if this ends its authority.
    pub(super) fn cut(&self) -> Option<u64> {
        match &self.draft.matter {
            Matter::Removed { heard, .. } => Some(*heard),
            Matter::Member {
                certificate, heard, ..
            } => (certificate.membership().role < Role::Admin).then_some(*heard),
            Matter::Epoch { .. } => None,
        }
    }
}

fn read_matter(r: &mut Reader<'_>) -> Result<Matter, DecodeError> {
    Ok(match r.u8()? {
        MEMBER => Matter::Member {
            certificate: Certificate::decode(r.bytes16(CERTIFICATE_MAX)?)?,
            version: r.u32()?,
            heard: r.u64()?,
            shuts_out: match r.u8()? {
                0 => false,
                1 => true,
                _ => return Err(DecodeError::Invalid("a flag that is neither 0 nor 1")),
            },
        },
        REMOVED => Matter::Removed {
            device: DeviceId(r.array()?),
            at: r.u64()?,
            heard: r.u64()?,
        },
        EPOCH => Matter::Epoch {
            epoch: match r.u32()? {
                epoch @ FIRST_EPOCH..=EPOCH_MAX => epoch,
                _ => return Err(DecodeError::Invalid("an epoch out of bounds")),
            },
            commitment: r.array()?,
        },
        _ => return Err(DecodeError::Invalid("a statement of an unknown kind")),
    })
}

fn body(draft: &Draft, group: &GroupId) -> Vec<u8> {
    let mut w = Writer::with_capacity(STATEMENT_MAX);
    w.raw(MAGIC)
        .u8(VERSION)
        .raw(group.as_bytes())
        .raw(&draft.author)
        .u64(draft.number)
        .u32(draft.epoch);
    match &draft.matter {
        Matter::Member {
            certificate,
            version,
            heard,
            shuts_out,
        } => w
            .u8(MEMBER)
            .bytes16(&certificate.encode())
            .u32(*version)
            .u64(*heard)
            .u8(u8::from(*shuts_out)),
        Matter::Removed { device, at, heard } => w.u8(REMOVED).raw(device.as_bytes()).u64(*at).u64(*heard),
        Matter::Epoch { epoch, commitment } => w.u8(EPOCH).u32(*epoch).raw(commitment),
    };
    w.into_vec()
}

fn with_context(context: &[u8], bytes: &[u8]) -> Vec<u8> {
    [context, bytes].concat()
}

fn id_of(bytes: &[u8]) -> StatementId {
    let mut id = [0; 16];
    id.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    StatementId(id)
}
