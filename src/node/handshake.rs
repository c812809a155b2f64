//! HELLO: the two sides of a block stream show and check certificates before anything else is said.
//!
//! Invariant: the side that accepted the stream shows its own certificate only after it has verified the other's, so that strangers
//! learn nothing; and a certificate counts only for the public key that the transport authenticated, and only as far as the roster allows.

use futures::{AsyncRead, AsyncWrite, AsyncWriteExt};
use libp2p::PeerId;

use crate::base::DeviceId;
use crate::keys::Certificate;
use crate::keys::certificate::Membership;

use super::frame::{Code, Frame, VERSION};
use super::local::{Local, device_of, public_of};
use super::server::REQUESTS_MAX;
use super::wire::{WireError, read_frame, write_frame};

/// Why the handshake failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// We do not accept the peer.
    #[error("{0}")]
    Theirs(String),
    /// The peer does not accept us.
    #[error("the peer does not accept this device: {0}")]
    Ours(String),
    /// It took too long.
    #[error("showed no certificate in time")]
    Silent,
    /// The stream broke.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// The peer as its certificate states, and what it granted.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// Its device id.
    pub(super) device: DeviceId,
    /// The certificate that it showed.
    pub(super) certificate: Certificate,
    /// As which member it counts: as the roster has it, else as its certificate states.
    pub(super) member: Membership,
    /// Bytes of blocks that may be sent to it.
    pub(super) window: u32,
    /// Requests that may be open.
    pub(super) requests: u16,
}

/// The part of the side that opened the stream, which grants `window` bytes.
pub(super) async fn open<S>(
    stream: &mut S,
    local: &Local,
    peer: &PeerId,
    window: u32,
) -> Result<Peer, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let talk = async {
        write_frame(stream, &hello(local, window))
            .await
            .map_err(WireError::Io)?;
        stream.flush().await.map_err(WireError::Io)?;
        match read_frame(stream).await? {
            Frame::Error { text, .. } => Err(Refusal::Ours(text)),
            frame => check(frame, local, peer),
        }
    };
    tokio::time::timeout(local.hello_timeout, talk)
        .await
        .unwrap_or(Err(Refusal::Silent))
}

/// The part of the side that accepted the stream, which grants `window` bytes. Tells the peer when it is refused.
pub(super) async fn accept<S>(
    stream: &mut S,
    local: &Local,
    peer: &PeerId,
    window: u32,
) -> Result<Peer, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let talk = async {
        let frame = read_frame(stream).await?;
        let checked = check(frame, local, peer);
        let answer = match &checked {
            Ok(_) => hello(local, window),
            Err(refusal) => Frame::Error {
                request: 0,
                code: Code::NotAMember,
                text: refusal.to_string(),
            },
        };
        write_frame(stream, &answer).await.map_err(WireError::Io)?;
        stream.flush().await.map_err(WireError::Io)?;
        if checked.is_err() {
            // Lets the reason arrive before the connection ends.
            let _ = stream.close().await;
        }
        checked
    };
    tokio::time::timeout(local.hello_timeout, talk)
        .await
        .unwrap_or(Err(Refusal::Silent))
}

fn hello(local: &Local, window: u32) -> Frame {
    Frame::Hello {
        version: VERSION,
        window,
        requests: REQUESTS_MAX,
        certificate: local.members.certificate().encode(),
    }
}

fn check(frame: Frame, local: &Local, peer: &PeerId) -> Result<Peer, Refusal> {
    let Frame::Hello {
        version,
        window,
        requests,
        certificate,
    } = frame
    else {
        return Err(Refusal::Theirs("showed no certificate".into()));
    };
    if version == 0 {
        return Err(Refusal::Theirs("speaks no version of the protocol".into()));
    }
    let public = public_of(peer).ok_or_else(|| Refusal::Theirs("has no Ed25519 key".into()))?;
    let certificate = Certificate::decode(&certificate)
        .map_err(|e| Refusal::Theirs(format!("showed an unreadable certificate: {e}")))?;
    let shown = certificate
        .verify_for(&public, &local.identity.group_public, local.clock.now())
        .map_err(|e| Refusal::Theirs(e.to_string()))?;
    let member = local.members.judge(shown).map_err(Refusal::Theirs)?;
    if let Some(left) = local.shut_out_for(&device_of(&public)) {
        let secs = left.as_secs() + 1;
        return Err(Refusal::Theirs(format!(
            "broke the protocol, and is shut out for {secs} more seconds"
        )));
    }
    Ok(Peer {
        device: device_of(&public),
        member,
        certificate,
        window,
        requests,
    })
}
