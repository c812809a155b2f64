//! Settings of a node, and the error type of this room.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Port of a node unless told otherwise.
pub const DEFAULT_PORT: u16 = 8080;

/// Settings of a node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Where to listen. Port 0 takes a free one. It is enough that one of them works.
    pub listen: Vec<SocketAddr>,
    /// Addresses of members to connect to, such as `192.0.2.1:8080`, `host.example:8080` or `/ip4/192.0.2.1/tcp/8080`.
    pub known_peers: Vec<String>,
    /// Find members on the local network by multicast.
    pub mdns: bool,
    /// Ask the router for a port (UPnP), and find out whether this device can be reached (AutoNAT).
    pub nat: bool,
    /// Be reached through other members where this device cannot be reached by itself, get from there to a direct connection (DCUtR), and
    /// relay for members that cannot be reached.
    pub relay: bool,
    /// How long a peer may take to show its certificate.
    pub hello_timeout: Duration,
    /// A connection that nothing uses is closed after this.
    pub idle_timeout: Duration,
    /// A peer that takes nothing of what it is sent for this long is given up.
    pub stall_timeout: Duration,
    /// Most connections at one time.
    pub connections_max: u32,
    /// Most files that are kept announced in the DHT, the newest; zero: none.
    pub announce_budget: usize,
    /// Bytes of blocks sent per second, over all connections beyond the local network; none: no limit.
    pub upload: Option<u64>,
    /// So of blocks received.
    pub download: Option<u64>,
    /// Whether the limits hold in the local network (private, link-local and loopback addresses), too.
    pub limit_lan: bool,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            listen: vec![
                SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), DEFAULT_PORT),
                SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), DEFAULT_PORT),
            ],
            known_peers: Vec::new(),
            mdns: true,
            nat: true,
            relay: true,
            hello_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            stall_timeout: Duration::from_secs(60),
            connections_max: 512,
            announce_budget: 16_384,
            upload: None,
            download: None,
            limit_lan: false,
        }
    }
}

impl NodeConfig {
    /// For tests and for nodes that are told everything: one free port on the loopback address, no multicast, no router, no relay.
    pub fn loopback() -> Self {
        Self {
            listen: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)],
            mdns: false,
            nat: false,
            relay: false,
            ..Self::default()
        }
    }
}

/// Why a node could not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NodeError {
    /// This device's own certificate is not valid, so no member would accept it.
    #[error("this device's membership is not valid: {0}; ask an admin for a new ticket")]
    OwnCertificate(#[from] crate::keys::CertificateError),
    /// None of the addresses can be listened on.
    #[error("cannot listen on any of {addresses}: {reason}")]
    Listen {
        /// The addresses.
        addresses: String,
        /// What the operating system said.
        reason: String,
    },
    /// The transport could not be set up.
    #[error("the network cannot be used: {0}")]
    Transport(String),
    /// The text is no network address.
    #[error("{0:?} is no network address: expected host:port or a multiaddr such as /ip4/192.0.2.1/tcp/8080")]
    BadAddress(String),
    /// What was kept across restarts cannot be used.
    #[error("{0}")]
    State(String),
    /// The node is shutting down, or too busy to answer.
    #[error("the node does not answer")]
    Gone,
}

/// A network address in multiaddr form: accepts that, `ip:port`, `[ip6]:port` and `host:port`.
pub(super) fn multiaddr(text: &str) -> Result<libp2p::Multiaddr, NodeError> {
    let bad = || NodeError::BadAddress(text.to_owned());
    if text.starts_with('/') {
        return text.parse().map_err(|_| bad());
    }
    let written = if let Ok(socket) = text.parse::<SocketAddr>() {
        let kind = if socket.is_ipv4() { "ip4" } else { "ip6" };
        format!("/{kind}/{}/tcp/{}", socket.ip(), socket.port())
    } else {
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let port: u16 = port.parse().map_err(|_| bad())?;
        if host.is_empty() || host.contains('/') {
            return Err(bad());
        }
        format!("/dns/{host}/tcp/{port}")
    };
    written.parse().map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_every_form() {
        let read = |text: &str| multiaddr(text).map(|a| a.to_string()).ok();
        assert_eq!(read("192.0.2.1:80").as_deref(), Some("/ip4/192.0.2.1/tcp/80"));
        assert_eq!(
            read("[2001:db8::1]:80").as_deref(),
            Some("/ip6/2001:db8::1/tcp/80")
        );
        assert_eq!(read("a.example:80").as_deref(), Some("/dns/a.example/tcp/80"));
        assert_eq!(
            read("/ip4/192.0.2.1/tcp/80").as_deref(),
            Some("/ip4/192.0.2.1/tcp/80")
        );
        for bad in ["", "a", "a:b", ":80", "/ip4/x", "a/b:80"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
