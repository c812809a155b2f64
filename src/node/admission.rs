//! What is known about each connection: whether its peer has shown a valid certificate, and what moved over it.
//!
//! Invariant: `trusted` is set only by `handshake`, after the certificate of the very peer that the transport authenticated was verified;
//! `ready` only after the peer did the same. `gated` keeps every other protocol shut until then. Shared by the swarm actor, the
//! connection handlers and the stream tasks.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use libp2p::swarm::ConnectionId;
use parking_lot::Mutex;

use super::throttle::Lane;

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Admission {
    trusted: AtomicBool,
    ready: AtomicBool,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// Blocks that wait to be sent to a reader on it.
    pub(super) lane: Lane,
}

impl Admission {
    /// The peer has shown a valid certificate: its streams are accepted.
    pub(super) fn trust(&self) {
        self.trusted.store(true, Ordering::Release);
    }

    /// The peer has accepted ours as well: streams to it may be opened.
    pub(super) fn make_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// See [`Admission::trust`].
    pub(super) fn is_trusted(&self) -> bool {
        self.trusted.load(Ordering::Acquire)
    }

    /// See [`Admission::make_ready`].
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Counts bytes of blocks.
    pub(super) fn count(&self, bytes_in: u64, bytes_out: u64) {
        self.bytes_in.fetch_add(bytes_in, Ordering::Relaxed);
        self.bytes_out.fetch_add(bytes_out, Ordering::Relaxed);
    }

    /// Bytes of blocks received and sent.
    pub(super) fn counted(&self) -> (u64, u64) {
        (
            self.bytes_in.load(Ordering::Relaxed),
            self.bytes_out.load(Ordering::Relaxed),
        )
    }
}

/// All connections, being made or made.
#[derive(Debug, Clone, Default)]
pub(super) struct Admissions(Arc<Mutex<HashMap<ConnectionId, Arc<Admission>>>>);

impl Admissions {
    /// The state of a connection; made when it is first asked for.
    pub(super) fn of(&self, connection: ConnectionId) -> Arc<Admission> {
        Arc::clone(self.0.lock().entry(connection).or_default())
    }

    /// Forgets a connection that ended or never came about.
    pub(super) fn forget(&self, connection: ConnectionId) {
        self.0.lock().remove(&connection);
    }

    /// Connections whose peers have not shown a certificate.
    pub(super) fn strangers(&self) -> usize {
        self.0.lock().values().filter(|a| !a.is_trusted()).count()
    }
}
