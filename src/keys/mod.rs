//! Storey 1, pure: who may read (volume keys), who one is (device key), who belongs (group key), and how secrets are kept in files.
//!
//! Everything that a volume needs is derived from one root secret, which the recovery phrase spells; `docs/security.md` has the tree.
//! Secrets are wiped when dropped and never printed. Called by `object`, `folder`, `volume`, `node`, `daemon`.

pub mod certificate;
pub mod head;
mod identity;
pub mod invitation;
pub mod key_file;
pub mod presence;
mod root;
pub mod roster;
pub mod statement;
mod volume;

pub use certificate::{Certificate, CertificateError, Membership, Role};
pub use head::Head;
pub use identity::{DeviceKey, GroupKey, device_id, group_id, verify};
pub use invitation::{AdminAddress, Invitation, InvitationError, InvitationId, Ticket, TicketError};
pub use presence::Presence;
pub use root::{PhraseError, RootSecret};
pub use roster::{Roster, Standing};
pub use statement::{Draft, Matter, Statement};
pub use volume::{EPOCH_MAX, FIRST_EPOCH, KeyError, VolumeKeys};

/// The operating system gave no random bytes, without which no key can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no random bytes; no key was made")]
pub struct NoRandomness;

/// Bytes from the operating system's generator.
fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}
