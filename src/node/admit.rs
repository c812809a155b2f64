//! The admin's side of joining: checks invitation and secret, keeps the ledger, and hands out certificate and keys.
//!
//! Invariant: a device hears that it is admitted only after the ledger that says so is on disk, and every refusal is logged with its
//! reason. What members get comes from the daemon through [`Admit`]; this room never sees the keys themselves.

use std::sync::Arc;

use futures::AsyncWriteExt;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::base::clock::UnixSecs;
use crate::keys::invitation::InvitationId;
use crate::keys::{Certificate, DeviceKey, Draft, Invitation, Role, Statement};

use super::client::Ask;
use super::exchange::ToExchange;
use super::gate::Opened;
use super::join_message::Message;
use super::ledger::Ledger;
use super::local::{Command, Local, device_of, public_of};
use super::members::Members;
use super::state::{NodeState, StateFile};
use super::wire::WireError;

/// What an admin's device gives to those it admits. The daemon implements it with the root secret at hand.
pub trait Admit: Send + Sync + 'static {
    /// A certificate for the device with this public key, signed by the group key.
    fn certificate(
        &self,
        device: &[u8; 32],
        role: Role,
        zone: Option<&str>,
        now: UnixSecs,
    ) -> Result<Certificate, String>;

    /// Signs what this device, whose key is given, states of the group.
    fn sign(&self, draft: Draft, device: &DeviceKey) -> Statement;

    /// What to state of the secret of an epoch; `None` where there is no such epoch.
    fn commitment(&self, epoch: u32) -> Option<[u8; 32]>;

    /// What a new member of this role needs, at most 64 KiB: keys for readers and writers, the root secret for admins, nothing for
    /// hosts.
    fn payload(&self, role: Role) -> Result<Zeroizing<Vec<u8>>, String>;
}

/// Where devices are admitted.
pub(super) struct Desk {
    admit: Arc<dyn Admit>,
    members: Arc<Members>,
    state: Arc<dyn NodeState>,
    ledger: Mutex<Ledger>,
}

impl Desk {
    /// A desk with the ledger that was kept. An unreadable ledger is an error: used tickets would count as new.
    pub(super) fn new(
        admit: Arc<dyn Admit>,
        members: Arc<Members>,
        state: Arc<dyn NodeState>,
    ) -> Result<Self, String> {
        let ledger = match state.load(StateFile::Invitations) {
            Ok(None) => Ledger::default(),
            Ok(Some(bytes)) => Ledger::decode(&bytes)
                .map_err(|e| format!("the ledger of invitations cannot be read: {e}"))?,
            Err(e) => return Err(format!("the ledger of invitations cannot be read: {e}")),
        };
        Ok(Self {
            admit,
            members,
            state,
            ledger: Mutex::new(ledger),
        })
    }

    /// Another admin reports a use.
    pub(super) fn note_spent(&self, invitation: InvitationId, expires: UnixSecs, device: [u8; 32]) {
        let mut ledger = self.ledger.lock();
        // An entry that has expired here goes at the next note; the clock does not matter for adding one.
        if ledger.note(invitation, expires, device, 0) == Ok(true)
            && let Err(e) = self.state.save(StateFile::Invitations, &ledger.encode())
        {
            tracing::error!("the ledger of invitations cannot be written: {e}");
        }
    }

    /// Every use, for an admin that has just connected.
    pub(super) fn spent(&self) -> Vec<Ask> {
        self.ledger
            .lock()
            .uses()
            .take(super::link::ASKS / 2)
            .map(|(invitation, expires, device)| Ask::Spent {
                invitation,
                expires,
                device,
            })
            .collect()
    }

    /// Decides about a device that showed the secret of a verified invitation. True in the result: this use is new.
    fn admit(
        &self,
        invitation: &Invitation,
        device: &[u8; 32],
        now: UnixSecs,
    ) -> Result<(Certificate, Zeroizing<Vec<u8>>, bool), String> {
        let certificate = self.admit.certificate(device, invitation.role, None, now)?;
        let payload = self.admit.payload(invitation.role)?;
        let mut ledger = self.ledger.lock();
        let mut noted = ledger.clone();
        let new = noted.admit(invitation, *device, now).map_err(|e| e.to_string())?;
        if new {
            self.state
                .save(StateFile::Invitations, &noted.encode())
                .map_err(|e| format!("the ledger of invitations cannot be written: {e}"))?;
            *ledger = noted;
        }
        drop(ledger);
        self.members.certify(&certificate)?;
        Ok((certificate, payload, new))
    }
}

/// Runs a join stream to its end.
pub(super) async fn run(opened: Box<Opened>, local: Arc<Local>) {
    let Opened {
        peer,
        connection,
        mut stream,
        remote,
        slot,
        ..
    } = *opened;
    let (Some(desk), Some(device)) = (local.desk.clone(), public_of(&peer)) else {
        return;
    };
    let name = device_of(&device);
    let talk = converse(&mut stream, &local, &desk, device);
    match tokio::time::timeout(local.hello_timeout, talk).await {
        Ok(Ok(role)) => {
            tracing::info!(device = %name.short(), address = %remote, "admitted a new {role}");
        }
        Ok(Err(Refused::Because(why))) => {
            tracing::warn!(device = %name.short(), address = %remote, "refused a device that wants to join: {why}");
            let refused = async {
                let _ = Message::Refused(why).write(&mut stream).await;
            };
            let _ = tokio::time::timeout(local.hello_timeout, refused).await;
        }
        Ok(Err(Refused::Wire(e))) => {
            tracing::warn!(device = %name.short(), address = %remote, "a device that wants to join broke off: {e}");
        }
        Err(_) => {
            tracing::warn!(device = %name.short(), address = %remote, "a device that wants to join took too long");
        }
    }
    let _ = tokio::time::timeout(local.hello_timeout, stream.close()).await;
    drop(slot);
    // The joiner leaves by itself; this is for one that does not.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let _ = local.actor.send(Command::Close(connection)).await;
}

enum Refused {
    Because(String),
    Wire(WireError),
}

impl From<WireError> for Refused {
    fn from(e: WireError) -> Self {
        Self::Wire(e)
    }
}

async fn converse(
    stream: &mut libp2p::Stream,
    local: &Local,
    desk: &Arc<Desk>,
    device: [u8; 32],
) -> Result<Role, Refused> {
    let because = |e: &dyn std::fmt::Display| Refused::Because(e.to_string());
    let Message::Ask { invitation } = Message::read(stream).await? else {
        return Err(Refused::Because("it showed no invitation".into()));
    };
    let invitation = Invitation::decode(&invitation).map_err(|e| because(&e))?;
    let now = local.clock.now();
    invitation
        .verify(&local.identity.group_public, now)
        .map_err(|e| because(&e))?;
    let hello = Message::Admin {
        certificate: local.members.certificate().encode(),
    };
    hello.write(stream).await?;
    let Message::Secret(secret) = Message::read(stream).await? else {
        return Err(Refused::Because("it showed no secret".into()));
    };
    invitation.check_secret(&secret).map_err(|e| because(&e))?;
    let role = invitation.role;
    let desk = Arc::clone(desk);
    let (id, expires) = (invitation.id, invitation.expires);
    let decided = tokio::task::spawn_blocking(move || desk.admit(&invitation, &device, now)).await;
    let (certificate, payload, new) = decided
        .map_err(|_| Refused::Because("the admin's device failed".into()))?
        .map_err(Refused::Because)?;
    if new {
        let spent = ToExchange::Spent {
            invitation: id,
            expires,
            device,
        };
        let _ = local.exchange.send(spent).await;
    }
    let welcome = Message::Admitted {
        certificate: certificate.encode(),
        payload,
    };
    welcome.write(stream).await?;
    Ok(role)
}
