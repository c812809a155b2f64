//! How many connections come from one address: a handshake costs both sides, and an attacker has more time. Pure; the clock is passed in.
//!
//! Invariant: at most [`ADDRESSES_MAX`] addresses are remembered; one that is forgotten begins anew. Called by `gate` before anything is
//! negotiated.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

/// Connections that may come at once: as many computers may be behind one router.
const BURST: f64 = 64.0;
/// And per second on average.
const RATE: f64 = 4.0;
/// Most addresses that are remembered.
const ADDRESSES_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Arrivals(HashMap<IpAddr, (f64, Instant)>);

impl Arrivals {
    /// Whether one more connection may come from this address. Those through a relay were let in there.
    pub(super) fn admit(&mut self, remote: &Multiaddr, now: Instant) -> bool {
        let Some(address) = source(remote) else {
            return true;
        };
        if self.0.len() >= ADDRESSES_MAX && !self.0.contains_key(&address) {
            let full = Duration::from_secs_f64(BURST / RATE);
            self.0
                .retain(|_, (_, at)| now.saturating_duration_since(*at) < full);
            if self.0.len() >= ADDRESSES_MAX {
                self.0.clear();
            }
        }
        let (left, at) = self.0.entry(address).or_insert((BURST, now));
        let passed = now.saturating_duration_since(*at).as_secs_f64();
        (*left, *at) = ((*left + passed * RATE).min(BURST), now);
        let admitted = *left >= 1.0;
        *left -= f64::from(u8::from(admitted));
        admitted
    }
}

/// Where a connection comes from; an IPv6 network is one, for whoever has an address there has all.
fn source(remote: &Multiaddr) -> Option<IpAddr> {
    if remote.iter().any(|part| part == Protocol::P2pCircuit) {
        return None;
    }
    remote.iter().find_map(|part| match part {
        Protocol::Ip4(address) => Some(IpAddr::V4(address)),
        Protocol::Ip6(address) => {
            let mut octets = address.octets();
            octets[8..].fill(0);
            Some(IpAddr::V6(octets.into()))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_burst_then_a_few_a_second_and_each_address_for_itself() {
        let (mut arrivals, mut now) = (Arrivals::default(), Instant::now());
        let one = from("/ip4/192.0.2.1/tcp/4000");
        let mut come = |remote: &Multiaddr, now| (0..200).filter(|_| arrivals.admit(remote, now)).count();
        assert_eq!(come(&one, now), 64);
        now += Duration::from_secs(2);
        assert_eq!(come(&one, now), 8);
        assert_eq!(come(&from("/ip4/192.0.2.2/tcp/4000"), now), 64);
        assert_eq!(come(&from("/ip6/2001:db8::1/tcp/1"), now), 64);
        assert_eq!(come(&from("/ip6/2001:db8::2/tcp/1"), now), 0, "one network");
        let relay = "/ip4/192.0.2.1/tcp/4000/p2p-circuit";
        assert_eq!(come(&from(relay), now), 200);
        now += Duration::from_secs(3600);
        assert_eq!(come(&one, now), 64, "not more for having waited");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut arrivals, now) = (Arrivals::default(), Instant::now());
        for n in 0..20_000u32 {
            let address = std::net::Ipv4Addr::from(n);
            assert!(arrivals.admit(&from(&format!("/ip4/{address}/tcp/1")), now));
        }
        assert!(arrivals.0.len() <= ADDRESSES_MAX);
    }
}
