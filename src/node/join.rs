//! The joiner's side of joining: takes a ticket to one of its admins and comes back with a certificate and the keys.
//!
//! Invariant: the secret goes to nobody but a device that has shown a certificate of an admin of the ticket's group, over a connection
//! that authenticated that very device. `daemon` and `cli` call [`join`] from ordinary threads.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::{AsyncRead, AsyncWrite, StreamExt};
use libp2p::PeerId;
use libp2p::swarm::SwarmEvent;
use libp2p::swarm::dial_opts::DialOpts;
use zeroize::Zeroizing;

use crate::base::clock::UnixSecs;
use crate::keys::{AdminAddress, Certificate, DeviceKey, Role, Ticket};

use super::admission::Admissions;
use super::behaviour::swarm;
use super::config::{NodeError, multiaddr};
use super::gate::{Gate, GateConfig, GateEvent, Protocol};
use super::join_message::Message;
use super::local::{device_of, keypair, peer_of, public_of};
use super::wire::WireError;

/// Why a device did not get in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The admin said no.
    #[error("the admin refused: {0}")]
    Refused(String),
    /// The device that answered is no admin of the group; the secret was not shown to it.
    #[error(
        "{device} is no admin of the group that the ticket names ({why}); it was not shown the ticket's secret"
    )]
    NotAnAdmin {
        /// The device, in short.
        device: String,
        /// What was wrong.
        why: String,
    },
    /// The admin's answer makes no sense.
    #[error("the admin's answer cannot be used: {0}")]
    BadAnswer(String),
    /// No admin of the ticket answered in time.
    #[error("no admin of the ticket could be reached: {0}")]
    Unreachable(String),
    /// The network could not be used.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// What a new member takes home.
pub struct Joined {
    /// This device's certificate, verified.
    pub certificate: Certificate,
    /// The group's public key.
    pub group_public: [u8; 32],
    /// Where admins were reachable, the one that answered first.
    pub admins: Vec<AdminAddress>,
    /// What the admin's daemon gave for the role: keys, the root secret or nothing.
    pub payload: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Joined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joined")
            .field("certificate", &self.certificate)
            .field("admins", &self.admins)
            .finish_non_exhaustive()
    }
}

/// Joins the group of the ticket. Blocks for at most `timeout`; may be repeated with the same device key when the answer got lost.
pub fn join(
    ticket: &Ticket,
    device: &DeviceKey,
    now: UnixSecs,
    timeout: Duration,
) -> Result<Joined, JoinError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| NodeError::Transport(e.to_string()))?;
    let deadline = Instant::now() + timeout;
    let joined = runtime.block_on(try_admins(ticket, device, now, deadline));
    runtime.shutdown_timeout(Duration::from_secs(1));
    joined
}

async fn try_admins(
    ticket: &Ticket,
    device: &DeviceKey,
    now: UnixSecs,
    deadline: Instant,
) -> Result<Joined, JoinError> {
    let mut admins: BTreeMap<[u8; 32], Vec<&AdminAddress>> = BTreeMap::new();
    for admin in &ticket.invitation().admins {
        admins.entry(admin.device).or_default().push(admin);
    }
    let mut failures = Vec::new();
    let mut left = admins.len() as u32;
    for (public, addresses) in admins {
        // Each admin gets an equal share of the time that is left.
        let share = deadline.saturating_duration_since(Instant::now()) / left.max(1);
        left = left.saturating_sub(1);
        let name = device_of(&public).short();
        match tokio::time::timeout(share, try_admin(ticket, device, &public, &addresses, now)).await {
            Ok(Ok((certificate, payload))) => {
                let mut order: Vec<AdminAddress> = ticket.invitation().admins.clone();
                order.sort_by_key(|a| a.device != public);
                return Ok(Joined {
                    certificate,
                    group_public: ticket.invitation().group_public,
                    admins: order,
                    payload,
                });
            }
            // Another admin would say the same.
            Ok(Err(e @ JoinError::Refused(_))) => {
                tracing::warn!(device = %name, "not admitted: {e}");
                return Err(e);
            }
            Ok(Err(e)) => failures.push(format!("{name}: {e}")),
            Err(_) => failures.push(format!("{name}: no answer in time")),
        }
    }
    if failures.is_empty() {
        failures.push("the ticket names none".into());
    }
    Err(JoinError::Unreachable(failures.join("; ")))
}

async fn try_admin(
    ticket: &Ticket,
    device: &DeviceKey,
    public: &[u8; 32],
    addresses: &[&AdminAddress],
    now: UnixSecs,
) -> Result<(Certificate, Zeroizing<Vec<u8>>), JoinError> {
    let admin =
        peer_of(public).ok_or_else(|| JoinError::Unreachable("the ticket names no valid key".into()))?;
    let gate = GateConfig {
        group: ticket.invitation().group(),
        open: Protocol::Join,
        accept: Vec::new(),
        patience: Duration::from_secs(60),
        strangers_max: 4,
    };
    let mut swarm = swarm(keypair(device)?, Duration::from_secs(60), |_, _| {
        Ok(Gate::new(gate.clone(), Admissions::default()))
    })?;
    let at = addresses
        .iter()
        .filter_map(|a| multiaddr(&a.address).ok())
        .collect();
    swarm
        .dial(DialOpts::peer_id(admin).addresses(at).build())
        .map_err(|e| JoinError::Unreachable(e.to_string()))?;
    let mut stream = loop {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(GateEvent::Stream(opened)) if opened.peer == admin => break opened.stream,
            SwarmEvent::Behaviour(GateEvent::Refused { why, .. }) => {
                return Err(JoinError::Unreachable(format!("it {why}, or admits nobody")));
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => {
                return Err(JoinError::Unreachable(error.to_string()));
            }
            SwarmEvent::ConnectionClosed { .. } => {
                return Err(JoinError::Unreachable("the connection was lost".into()));
            }
            _ => {}
        }
    };
    let own = device.public();
    let talk = converse(&mut stream, ticket, &admin, &own, now);
    tokio::pin!(talk);
    loop {
        tokio::select! {
            result = &mut talk => return result,
            _ = swarm.select_next_some() => {}
        }
    }
}

fn lost(e: WireError) -> JoinError {
    match e {
        WireError::Io(e) => JoinError::Unreachable(format!("the connection was lost: {e}")),
        WireError::Malformed(e) => JoinError::BadAnswer(e.to_string()),
    }
}

/// Speaks with the device that the transport authenticated as `admin`.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    ticket: &Ticket,
    admin: &PeerId,
    own: &[u8; 32],
    now: UnixSecs,
) -> Result<(Certificate, Zeroizing<Vec<u8>>), JoinError> {
    let invitation = ticket.invitation();
    let ask = Message::Ask {
        invitation: invitation.encode(),
    };
    ask.write(stream).await.map_err(lost)?;
    let shown = match Message::read(stream).await.map_err(lost)? {
        Message::Admin { certificate } => certificate,
        Message::Refused(why) => return Err(JoinError::Refused(why)),
        _ => return Err(JoinError::BadAnswer("an unexpected message".into())),
    };
    let public = public_of(admin).unwrap_or_default();
    let not_an_admin = |why: String| JoinError::NotAnAdmin {
        device: device_of(&public).short(),
        why,
    };
    let certificate = Certificate::decode(&shown).map_err(|e| not_an_admin(e.to_string()))?;
    let member = certificate
        .verify_for(&public, &invitation.group_public, now)
        .map_err(|e| not_an_admin(e.to_string()))?;
    if member.role != Role::Admin {
        return Err(not_an_admin(format!("its role is {}", member.role)));
    }
    let secret = Message::Secret(Zeroizing::new(*ticket.secret()));
    secret.write(stream).await.map_err(lost)?;
    match Message::read(stream).await.map_err(lost)? {
        Message::Admitted { certificate, payload } => {
            let unusable = |e: &dyn std::fmt::Display| JoinError::BadAnswer(format!("the certificate: {e}"));
            let certificate = Certificate::decode(&certificate).map_err(|e| unusable(&e))?;
            certificate
                .verify_for(own, &invitation.group_public, now)
                .map_err(|e| unusable(&e))?;
            Ok((certificate, payload))
        }
        Message::Refused(why) => Err(JoinError::Refused(why)),
        _ => Err(JoinError::BadAnswer("an unexpected message".into())),
    }
}
