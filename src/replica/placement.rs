//! Who should hold a block: weighted rendezvous hashing over the hosts, in distinct failure zones. Pure.
//!
//! Invariant: a host that joins or leaves changes where a block belongs only if the block goes to it or was on it. Every device computes
//! the same from the same hosts (but for the last bit of a logarithm), so that readers know whom to ask first; nothing relies on it for safety.
//!
//! Weighted rendezvous hashing: C. Schindelhauer and G. Schomaker, "Weighted distributed hash tables" (SPAA 2005), logarithmic method:
//! each host scores `-weight / ln(u)` with `u` uniform in (0, 1) from the hash of block and host; the highest scores win. A host's
//! share of the blocks is its share of the weights.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::base::{BlockId, DeviceId};

/// A failure zone: what fails together. Devices on one machine share one.
pub type Zone = Arc<str>;

/// A device that stores blocks for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The device.
    pub device: DeviceId,
    /// Its failure zone.
    pub zone: Zone,
    /// Bytes that it gives to others; its share is proportional. Zero: it is no host.
    pub weight: u64,
}

/// How strongly a block belongs to a host: larger is better.
fn score(block: &BlockId, device: &DeviceId, weight: u64) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(block.as_bytes());
    hasher.update(device.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    // 53 bits are what a double holds; the half keeps it off both ends.
    let u = ((u64::from_le_bytes(first) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    weight as f64 / -u.ln()
}

/// The best host of each zone for this block, best first. Zones in `without` are left out.
pub fn ranked<'a>(
    block: &BlockId,
    hosts: impl IntoIterator<Item = &'a Host>,
    without: &BTreeSet<&Zone>,
) -> Vec<&'a Host> {
    let mut scored: Vec<(f64, &Host)> = hosts
        .into_iter()
        .filter(|host| host.weight > 0 && !without.contains(&host.zone))
        .map(|host| (score(block, &host.device, host.weight), host))
        .collect();
    scored.sort_by(|(a, x), (b, y)| {
        b.partial_cmp(a)
            .unwrap_or(Ordering::Equal)
            .then_with(|| x.device.cmp(&y.device))
    });
    let mut zones = BTreeSet::new();
    scored
        .into_iter()
        .filter_map(|(_, host)| zones.insert(&host.zone).then_some(host))
        .collect()
}

/// In how many zones other than `own` a block can be at all.
pub fn possible<'a>(hosts: impl IntoIterator<Item = &'a Host>, own: &Zone) -> usize {
    hosts
        .into_iter()
        .filter(|host| host.weight > 0 && host.zone != *own)
        .map(|host| &host.zone)
        .collect::<BTreeSet<_>>()
        .len()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use proptest::prelude::*;

    fn device(n: u16) -> DeviceId {
        DeviceId(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    fn block(n: u32) -> BlockId {
        BlockId::of(&n.to_le_bytes())
    }

    fn host(n: u16, zone: u8, weight: u64) -> Host {
        Host {
            device: device(n),
            zone: zone.to_string().into(),
            weight,
        }
    }

    fn chosen(block: &BlockId, hosts: &[Host], wanted: usize) -> BTreeSet<DeviceId> {
        let own: Zone = "own".into();
        let ranked = ranked(block, hosts, &BTreeSet::from([&own]));
        ranked.into_iter().take(wanted).map(|h| h.device).collect()
    }

    fn hosts() -> impl Strategy<Value = Vec<Host>> {
        prop::collection::btree_map(0_u16..500, (0_u8..8, 0_u64..1000), 1..20).prop_map(|map| {
            map.into_iter()
                .map(|(n, (zone, weight))| host(n, zone, weight))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn who_joins_only_takes_and_who_leaves_only_gives(
            hosts in hosts(), at in any::<prop::sample::Index>(), id in any::<u32>(), wanted in 1_usize..5,
        ) {
            let mut fewer = hosts.clone();
            let moved = fewer.remove(at.index(hosts.len())).device;
            let (with, without) = (chosen(&block(id), &hosts, wanted), chosen(&block(id), &fewer, wanted));
            if with.contains(&moved) {
                prop_assert!(with.difference(&without).all(|d| *d == moved), "only the blocks of the one that leaves move");
                prop_assert!(without.difference(&with).count() <= 1);
            } else {
                prop_assert_eq!(with, without);
            }
        }

        #[test]
        fn zones_are_distinct_and_as_many_as_there_are(hosts in hosts(), id in any::<u32>(), wanted in 1_usize..6) {
            let own: Zone = "3".into();
            let ranked: Vec<&Host> = ranked(&block(id), &hosts, &BTreeSet::from([&own])).into_iter().take(wanted).collect();
            let zones: BTreeSet<&Zone> = ranked.iter().map(|h| &h.zone).collect();
            prop_assert_eq!(zones.len(), ranked.len());
            prop_assert!(!zones.contains(&own));
            prop_assert_eq!(ranked.len(), wanted.min(possible(&hosts, &own)));
            prop_assert!(ranked.iter().all(|h| h.weight > 0));
        }

        #[test]
        fn a_weight_that_grows_only_takes(hosts in hosts(), at in any::<prop::sample::Index>(), id in any::<u32>()) {
            let mut grown = hosts.clone();
            let at = at.index(hosts.len());
            grown[at].weight += 500;
            let (before, after) = (chosen(&block(id), &hosts, 2), chosen(&block(id), &grown, 2));
            prop_assert!(after.difference(&before).all(|d| *d == grown[at].device));
        }
    }

    #[test]
    fn shares_follow_the_weights() {
        let hosts: Vec<Host> = [(0, 100), (1, 200), (2, 300), (3, 400)]
            .map(|(n, weight)| host(n, n as u8, weight))
            .to_vec();
        let mut held: HashMap<DeviceId, u32> = HashMap::new();
        const BLOCKS: u32 = 20_000;
        for n in 0..BLOCKS {
            for device in chosen(&block(n), &hosts, 1) {
                *held.entry(device).or_default() += 1;
            }
        }
        for host in &hosts {
            let share = f64::from(held[&host.device]) / f64::from(BLOCKS);
            let fair = host.weight as f64 / 1000.0;
            // The hash is fixed, and so is the outcome; three standard deviations are 0.01.
            assert!((share - fair).abs() < 0.011, "{share} instead of {fair}");
        }
    }
}
