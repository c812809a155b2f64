//! Tests of the DHT's record store: bounds, validation, expiry.

use super::*;
use crate::base::clock::ManualClock;

fn store() -> Records {
    Records::new(PeerId::random(), [1; 32], Arc::new(ManualClock::at(1000)))
}

fn provider(key: u32, peer: PeerId) -> ProviderRecord {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&key.to_le_bytes());
    ProviderRecord::new(bytes.to_vec(), peer, vec![libp2p::Multiaddr::empty(); 50])
}

#[test]
fn what_is_no_valid_address_record_is_not_stored() {
    let mut store = store();
    assert!(store.put(Record::new(vec![0; 32], b"garbage".to_vec())).is_err());
    assert!(
        store
            .put(Record::new(vec![0; 32], vec![0; RECORD_MAX + 1]))
            .is_err()
    );
    assert!(
        store
            .add_provider(ProviderRecord::new(vec![1], PeerId::random(), vec![]))
            .is_err()
    );
    assert_eq!(store.values.len() + store.providers.len(), 0);
}

#[test]
fn a_flooding_peer_is_stopped_and_others_are_not() {
    let mut store = store();
    let (flooder, other) = (PeerId::random(), PeerId::random());
    let stored = (0..20_000)
        .filter(|key| store.add_provider(provider(*key, flooder)).is_ok())
        .count();
    assert!(
        (BURST as usize..BURST as usize + 2 * RATE as usize).contains(&stored),
        "{stored}"
    );
    assert!(store.add_provider(provider(0, other)).is_ok());
    let found = store.providers(&provider(0, other).key);
    assert_eq!(found.len(), 2);
    assert!(
        found
            .iter()
            .all(|p| p.addresses.len() <= ADDRESSES_MAX && p.expires.is_some())
    );
    store.remove_provider(&provider(0, other).key, &other);
    assert_eq!(store.providers(&provider(0, other).key).len(), 1);
}

#[test]
fn providers_of_one_file_are_bounded() {
    let mut store = store();
    let stored = (0..100)
        .filter(|_| store.add_provider(provider(1, PeerId::random())).is_ok())
        .count();
    assert_eq!(stored, PER_KEY_MAX);
    let own = store.own;
    assert!(
        store.add_provider(provider(1, own)).is_ok(),
        "our own always fits"
    );
}

#[test]
fn expired_providers_are_swept() {
    let mut store = store();
    let peer = PeerId::random();
    let mut record = provider(1, peer);
    record.expires = Some(Instant::now());
    store.add_provider(record).unwrap();
    assert!(store.providers(&provider(1, peer).key).is_empty());
    store.sweep(Instant::now() + SWEEP);
    assert_eq!((store.count, store.providers.len()), (0, 0));
}
