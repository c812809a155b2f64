//! The libp2p swarm of a node: transport, protocols and their limits. Everything but the gate itself lies behind the gate.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use libp2p::identity::Keypair;
use libp2p::kad::{BucketInserts, Mode, StoreInserts};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    StreamProtocol, Swarm, SwarmBuilder, autonat, connection_limits, dcutr, dns, identify, kad, mdns, noise,
    ping, relay, tcp, tls, upnp, yamux,
};

use super::admission::Admissions;
use super::config::{NodeConfig, NodeError};
use super::gate::{Gate, GateConfig, Protocol};
use super::gated::Gated;
use super::local::Local;
use super::records::{PROVIDER_TTL, Records};

/// Connections without a certificate at one time.
const STRANGERS_MAX: usize = 64;
/// Connections to one peer: both sides may dial at once, directly and through a relay.
const PER_PEER_MAX: u32 = 4;
/// Connections being made at one time, in each direction.
const PENDING_MAX: u32 = 64;
/// How long a Kademlia query may take.
const QUERY: Duration = Duration::from_secs(10);
/// Streams of a connection, all protocols together.
const STREAMS_MAX: usize = 128;

/// What the swarm speaks.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    pub(super) gate: Gate,
    pub(super) kad: Gated<kad::Behaviour<Records>>,
    identify: Gated<identify::Behaviour>,
    ping: Gated<ping::Behaviour>,
    mdns: Toggle<mdns::tokio::Behaviour>,
    relay_client: Gated<relay::client::Behaviour>,
    relay: Toggle<Gated<relay::Behaviour>>,
    dcutr: Toggle<Gated<dcutr::Behaviour>>,
    autonat: Toggle<Gated<autonat::Behaviour>>,
    upnp: Toggle<upnp::tokio::Behaviour>,
}

/// Builds the swarm. Must be called inside the node's runtime.
pub(super) fn build(
    config: &NodeConfig,
    local: &Arc<Local>,
    keypair: Keypair,
    admissions: &Admissions,
) -> Result<Swarm<Behaviour>, NodeError> {
    let make = |keypair: &Keypair, client| behaviour(config, local, keypair, admissions, client);
    swarm(keypair, config.idle_timeout, make)
}

/// A swarm over TCP with TLS or Noise, Yamux, DNS and the relay's client, whatever it speaks.
pub(super) fn swarm<B: NetworkBehaviour>(
    keypair: Keypair,
    idle: Duration,
    behaviour: impl Fn(&Keypair, relay::client::Behaviour) -> Result<B, NodeError>,
) -> Result<Swarm<B>, NodeError> {
    let failed = |e: &dyn std::fmt::Display| NodeError::Transport(e.to_string());
    let multiplexer = || {
        // Receive windows tune themselves (yamux 0.13 and later), up to the connection's whole window.
        let mut config = yamux::Config::default();
        config.set_max_num_streams(STREAMS_MAX);
        config
    };
    // TLS first: on the same machine it moved 653 to 861 MB/s where Noise moved 626 to 666.
    let tcp = || {
        SwarmBuilder::with_existing_identity(keypair.clone())
            .with_tokio()
            .with_tcp(
                tcp::Config::default().nodelay(true),
                (tls::Config::new, noise::Config::new),
                multiplexer,
            )
            .map_err(|e| failed(&e))
    };
    macro_rules! finish {
        ($builder:expr) => {
            $builder
                .with_relay_client((tls::Config::new, noise::Config::new), multiplexer)
                .map_err(|e| failed(&e))?
                .with_behaviour(|keypair, client| {
                    behaviour(keypair, client)
                        .map_err(|e| -> Box<dyn std::error::Error + Send + Sync> { e.into() })
                })
                .map_err(|e| failed(&e))?
                .with_swarm_config(|c| c.with_idle_connection_timeout(idle))
                .build()
        };
    }
    Ok(match tcp()?.with_dns() {
        Ok(builder) => finish!(builder),
        Err(e) => {
            tracing::info!("host names cannot be resolved, only addresses can be dialled: {e}");
            let nowhere = dns::ResolverConfig::from_parts(None, Vec::new(), Vec::new());
            finish!(tcp()?.with_dns_config(nowhere, dns::ResolverOpts::default()))
        }
    })
}

fn behaviour(
    config: &NodeConfig,
    local: &Arc<Local>,
    keypair: &Keypair,
    admissions: &Admissions,
    client: relay::client::Behaviour,
) -> Result<Behaviour, NodeError> {
    let peer = keypair.public().to_peer_id();
    let limits = connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(PENDING_MAX))
        .with_max_pending_outgoing(Some(PENDING_MAX))
        .with_max_established_per_peer(Some(PER_PEER_MAX))
        .with_max_established(Some(config.connections_max));
    let mut accept = vec![Protocol::Block];
    if local.desk.is_some() {
        accept.push(Protocol::Join);
    }
    let gate = GateConfig {
        group: local.group,
        open: Protocol::Block,
        accept,
        patience: config.hello_timeout,
        strangers_max: STRANGERS_MAX,
    };
    let name = identify_name(local);
    let identify = identify::Config::new(name, keypair.public()).with_agent_version("dfs".into());
    let mdns = if config.mdns {
        let made = mdns::tokio::Behaviour::new(mdns::Config::default(), peer);
        made.inspect_err(|e| tracing::warn!("members on the local network cannot be found by multicast: {e}"))
            .ok()
    } else {
        None
    };
    let gated = |on: bool| on.then(|| admissions.clone());
    Ok(Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        gate: Gate::new(gate, admissions.clone()),
        kad: Gated::new(kademlia(local, peer), admissions.clone()),
        identify: Gated::new(identify::Behaviour::new(identify), admissions.clone()),
        ping: Gated::new(ping::Behaviour::new(ping::Config::new()), admissions.clone()),
        mdns: mdns.into(),
        relay_client: Gated::new(client, admissions.clone()),
        relay: gated(config.relay)
            .map(|a| Gated::new(relay::Behaviour::new(peer, relay_limits()), a))
            .into(),
        dcutr: gated(config.relay)
            .map(|a| Gated::new(dcutr::Behaviour::new(peer), a))
            .into(),
        autonat: gated(config.nat)
            .map(|a| Gated::new(autonat::Behaviour::new(peer, autonat::Config::default()), a))
            .into(),
        upnp: config.nat.then(upnp::tokio::Behaviour::default).into(),
    })
}

fn kademlia(local: &Arc<Local>, peer: libp2p::PeerId) -> kad::Behaviour<Records> {
    let protocol = StreamProtocol::try_from_owned(format!("/dfs/{}/kad/1", local.group))
        .unwrap_or(StreamProtocol::new("/dfs/none"));
    let mut config = kad::Config::new(protocol);
    config
        .set_query_timeout(QUERY)
        // Every record passes the checks of our own store.
        .set_record_filtering(StoreInserts::Unfiltered)
        // Only members whose address is known to work come into the table: see the swarm actor.
        .set_kbucket_inserts(BucketInserts::Manual)
        // Renewal is scheduled here, under a budget.
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_provider_record_ttl(Some(PROVIDER_TTL))
        .set_periodic_bootstrap_interval(Some(Duration::from_secs(600)))
        .set_caching(kad::Caching::Disabled)
        .set_max_packet_size(16 << 10);
    if let Some(few) = NonZeroUsize::new(20) {
        config.set_replication_factor(few);
    }
    let records = Records::new(peer, local.identity.group_public, Arc::clone(&local.clock));
    let records = records.with(&local.members, &local.heads);
    let mut kad = kad::Behaviour::with_config(peer, records, config);
    // In a home network nobody confirms an external address, and a node would remain a client for ever.
    kad.set_mode(Some(Mode::Server));
    kad
}

/// The name under which identify presents the group; it differs from group to group.
fn identify_name(local: &Local) -> String {
    format!("/dfs/{}/1", local.group)
}

/// A relay for members only carries blocks too, not just the first few packets of the default (128 KiB in two minutes).
fn relay_limits() -> relay::Config {
    relay::Config {
        max_circuit_bytes: 1 << 40,
        max_circuit_duration: Duration::from_secs(24 * 3600),
        // Each of two members that cannot be reached may talk to many others through one relay.
        max_circuits: 256,
        max_circuits_per_peer: 64,
        ..relay::Config::default()
    }
}
