//! The libp2p behaviour that opens and accepts our own streams, and closes connections whose peers show no certificate in time.
//!
//! One block stream is opened by each side; the side that was dialled opens its own only once it trusts the dialler. Streams go to the
//! swarm actor as events, which gives each to a task. Invariant: at most [`INBOUND_MAX`] streams of a connection are open inwards, and a
//! connection that is not trusted ends after [`GateConfig::patience`].

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{Ready, ready};
use libp2p::PeerId;
use libp2p::core::transport::PortUse;
use libp2p::core::{Endpoint, Multiaddr, UpgradeInfo, upgrade};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionClosed, ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, DialFailure,
    FromSwarm, ListenFailure, NetworkBehaviour, NotifyHandler, Stream, StreamProtocol, SubstreamProtocol,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use tokio::time::Sleep;

use crate::base::GroupId;

use super::admission::{Admission, Admissions};
use super::arrivals::Arrivals;

/// Streams that a peer may have open to us on one connection.
const INBOUND_MAX: usize = 3;
/// Streams beyond that, each dropped, after which the connection is.
const EXCESS_MAX: u32 = 16;
/// How long the negotiation of a stream may take.
const NEGOTIATION: Duration = Duration::from_secs(10);

/// Which of our protocols a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Blocks, between members.
    Block,
    /// Joining, between a device with a ticket and an admin.
    Join,
}

impl Protocol {
    /// Its name: it carries the group, so that other groups' devices do not even get to speak.
    pub(super) fn name(self, group: &GroupId) -> StreamProtocol {
        let which = match self {
            Self::Block => "block",
            Self::Join => "join",
        };
        StreamProtocol::try_from_owned(format!("/dfs/{group}/{which}/1"))
            .unwrap_or(StreamProtocol::new("/dfs/none"))
    }
}

/// How the gate behaves.
#[derive(Debug, Clone)]
pub(super) struct GateConfig {
    /// The group.
    pub(super) group: GroupId,
    /// What is opened on connections that we dialled.
    pub(super) open: Protocol,
    /// What is accepted.
    pub(super) accept: Vec<Protocol>,
    /// How long a connection may stay without a certificate.
    pub(super) patience: Duration,
    /// Connections without a certificate at one time.
    pub(super) strangers_max: usize,
}

/// A stream, ready for our own frames.
pub(super) struct Opened {
    /// The peer, as the transport authenticated it.
    pub(super) peer: PeerId,
    /// The connection.
    pub(super) connection: ConnectionId,
    /// What is spoken.
    pub(super) protocol: Protocol,
    /// Whether the peer opened it.
    pub(super) inbound: bool,
    /// The stream.
    pub(super) stream: Stream,
    /// The connection's state.
    pub(super) admission: Arc<Admission>,
    /// The peer's address.
    pub(super) remote: Multiaddr,
    /// Counts the stream as open while it lives.
    pub(super) slot: Option<Arc<()>>,
}

/// What the gate tells the swarm actor.
pub(super) enum GateEvent {
    /// A stream is ready.
    Stream(Box<Opened>),
    /// The peer does not get in, or we not to it; the connection is being closed.
    Refused {
        /// The peer.
        peer: PeerId,
        /// Its address.
        remote: Multiaddr,
        /// Why, for the log.
        why: String,
    },
    /// The peer does what none may do; the connection is being closed.
    Abuse {
        /// The peer.
        peer: PeerId,
        /// Its address.
        remote: Multiaddr,
        /// What, for the log.
        why: &'static str,
    },
}

impl std::fmt::Debug for GateEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stream(opened) => f.debug_tuple("Stream").field(&opened.protocol).finish(),
            Self::Abuse { why, .. } => f.debug_tuple("Abuse").field(why).finish(),
            Self::Refused { why, .. } => f.debug_tuple("Refused").field(why).finish(),
        }
    }
}

/// The behaviour.
pub(super) struct Gate {
    config: GateConfig,
    admissions: Admissions,
    remotes: HashMap<ConnectionId, Multiaddr>,
    arrivals: Arrivals,
    queue: VecDeque<ToSwarm<GateEvent, Wake>>,
    waker: Option<Waker>,
}

impl Gate {
    /// A gate for the group.
    pub(super) fn new(config: GateConfig, admissions: Admissions) -> Self {
        Self {
            config,
            admissions,
            remotes: HashMap::new(),
            arrivals: Arrivals::default(),
            queue: VecDeque::new(),
            waker: None,
        }
    }

    /// Lets the connection's handlers look at its admission again.
    pub(super) fn wake(&mut self, peer: PeerId, connection: ConnectionId) {
        self.push(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(connection),
            event: Wake,
        });
    }

    fn push(&mut self, event: ToSwarm<GateEvent, Wake>) {
        self.queue.push_back(event);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn handler(
        &mut self,
        connection: ConnectionId,
        remote: &Multiaddr,
        dialled: bool,
    ) -> Result<GateHandler, ConnectionDenied> {
        if self.admissions.strangers() >= self.config.strangers_max {
            return Err(ConnectionDenied::new(TooManyStrangers));
        }
        self.remotes.insert(connection, remote.clone());
        Ok(GateHandler {
            open: self.config.open,
            group: self.config.group,
            accept: self.config.accept.clone(),
            asked: false,
            dialled,
            patience: Box::pin(tokio::time::sleep(self.config.patience)),
            impatient: false,
            admission: self.admissions.of(connection),
            slots: Arc::new(()),
            excess: 0,
            events: VecDeque::new(),
        })
    }

    fn close(&mut self, peer: PeerId, connection: ConnectionId) {
        self.push(ToSwarm::CloseConnection {
            peer_id: peer,
            connection: libp2p::swarm::CloseConnection::One(connection),
        });
    }

    fn forget(&mut self, connection: ConnectionId) {
        self.admissions.forget(connection);
        self.remotes.remove(&connection);
    }
}

#[derive(Debug, thiserror::Error)]
#[error("too many connections without a certificate")]
struct TooManyStrangers;

#[derive(Debug, thiserror::Error)]
#[error("too many connections from this address")]
struct TooManyArrivals;

impl NetworkBehaviour for Gate {
    type ConnectionHandler = GateHandler;
    type ToSwarm = GateEvent;

    fn handle_pending_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        match self.arrivals.admit(remote, Instant::now()) {
            true => Ok(()),
            false => Err(ConnectionDenied::new(TooManyArrivals)),
        }
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(connection, remote, false)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        _: PeerId,
        remote: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(connection, remote, true)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. })
            | FromSwarm::DialFailure(DialFailure { connection_id, .. })
            | FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) => self.forget(connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        let remote = self
            .remotes
            .get(&connection)
            .cloned()
            .unwrap_or_else(Multiaddr::empty);
        match event {
            FromHandler::Stream {
                protocol,
                inbound,
                stream,
                slot,
            } => {
                let opened = Opened {
                    peer,
                    connection,
                    protocol,
                    inbound,
                    stream: *stream,
                    admission: self.admissions.of(connection),
                    remote,
                    slot,
                };
                self.push(ToSwarm::GenerateEvent(GateEvent::Stream(Box::new(opened))));
            }
            FromHandler::Failed(why) => {
                self.push(ToSwarm::GenerateEvent(GateEvent::Refused { peer, remote, why }));
                self.close(peer, connection);
            }
            FromHandler::Abuse(why) => {
                self.push(ToSwarm::GenerateEvent(GateEvent::Abuse { peer, remote, why }));
                self.close(peer, connection);
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some(event) = self.queue.pop_front() {
            return Poll::Ready(event);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Makes a connection look at its admission again.
#[derive(Debug)]
pub(super) struct Wake;

/// What a handler tells the gate.
pub(super) enum FromHandler {
    /// A stream is ready.
    Stream {
        /// What is spoken.
        protocol: Protocol,
        /// Whether the peer opened it.
        inbound: bool,
        /// The stream.
        stream: Box<Stream>,
        /// Counts the stream.
        slot: Option<Arc<()>>,
    },
    /// There will be none, or no certificate came.
    Failed(String),
    /// The peer opens streams without end.
    Abuse(&'static str),
}

impl std::fmt::Debug for FromHandler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stream { .. } => "Stream",
            Self::Failed(_) => "Failed",
            Self::Abuse(_) => "Abuse",
        })
    }
}

/// The gate's part of a connection.
pub(super) struct GateHandler {
    open: Protocol,
    group: GroupId,
    accept: Vec<Protocol>,
    asked: bool,
    dialled: bool,
    patience: Pin<Box<Sleep>>,
    impatient: bool,
    admission: Arc<Admission>,
    slots: Arc<()>,
    /// Streams that the peer opened beyond those it may.
    excess: u32,
    events: VecDeque<FromHandler>,
}

impl ConnectionHandler for GateHandler {
    type FromBehaviour = Wake;
    type ToBehaviour = FromHandler;
    type InboundProtocol = Offer;
    type OutboundProtocol = Offer;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Offer> {
        SubstreamProtocol::new(Offer::new(&self.accept, &self.group), ()).with_timeout(NEGOTIATION)
    }

    fn on_behaviour_event(&mut self, Wake: Wake) {}

    fn connection_keep_alive(&self) -> bool {
        // Strangers end by impatience; members are kept by their streams.
        !self.admission.is_trusted()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Self::ToBehaviour>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(event));
        }
        let opens = self.dialled || (self.open == Protocol::Block && self.admission.is_trusted());
        if opens && !self.asked {
            self.asked = true;
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(Offer::new(&[self.open], &self.group), ())
                    .with_timeout(NEGOTIATION),
            });
        }
        if !self.impatient && !self.admission.is_trusted() && self.patience.poll_unpin(cx).is_ready() {
            self.impatient = true;
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(FromHandler::Failed(
                "showed no certificate in time".into(),
            )));
        }
        Poll::Pending
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Offer, Offer, (), ()>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (protocol, stream),
                ..
            }) => {
                if Arc::strong_count(&self.slots) > INBOUND_MAX {
                    tracing::debug!("a peer opened more streams than it may; one was dropped");
                    self.excess += 1;
                    if self.excess == EXCESS_MAX {
                        let why = "it opens more streams than it may, again and again";
                        self.events.push_back(FromHandler::Abuse(why));
                    }
                    return;
                }
                self.events.push_back(FromHandler::Stream {
                    protocol,
                    inbound: true,
                    stream: Box::new(stream),
                    slot: Some(Arc::clone(&self.slots)),
                });
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (protocol, stream),
                ..
            }) => self.events.push_back(FromHandler::Stream {
                protocol,
                inbound: false,
                stream: Box::new(stream),
                slot: None,
            }),
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                self.events.push_back(FromHandler::Failed(format!(
                    "does not speak this group's protocol: no dfs, or another group ({error})"
                )));
            }
            _ => {}
        }
    }
}

/// Negotiates one of our protocols and hands over the bare stream.
#[derive(Debug, Clone)]
pub(super) struct Offer(Vec<(Protocol, StreamProtocol)>);

impl Offer {
    fn new(protocols: &[Protocol], group: &GroupId) -> Self {
        Self(protocols.iter().map(|p| (*p, p.name(group))).collect())
    }

    fn which(&self, name: &StreamProtocol) -> Protocol {
        self.0
            .iter()
            .find(|(_, n)| n == name)
            .map_or(Protocol::Block, |(p, _)| *p)
    }
}

impl UpgradeInfo for Offer {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0
            .iter()
            .map(|(_, name)| name.clone())
            .collect::<Vec<_>>()
            .into_iter()
    }
}

impl upgrade::InboundUpgrade<Stream> for Offer {
    type Output = (Protocol, Stream);
    type Error = std::convert::Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, stream: Stream, info: Self::Info) -> Self::Future {
        ready(Ok((self.which(&info), stream)))
    }
}

impl upgrade::OutboundUpgrade<Stream> for Offer {
    type Output = (Protocol, Stream);
    type Error = std::convert::Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, stream: Stream, info: Self::Info) -> Self::Future {
        ready(Ok((self.which(&info), stream)))
    }
}
