//! Who may use the store for others, and when: operations of one peer do not crowd out another's, and what is placed here does not crowd
//! out what is read.
//!
//! Invariant: at most [`ALL`] operations run at one time, [`PER_PEER`] of them for one peer and [`BULK`] to place blocks; whoever waits is
//! served in turn, and no peer has more than [`PER_PEER`] in the common queue. Used by `serve`.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::base::DeviceId;

/// Operations at one time.
pub(super) const ALL: usize = 16;
/// Of one peer, over all its connections.
const PER_PEER: usize = 8;
/// That place blocks here.
const BULK: usize = 8;

/// The slots of a node.
#[derive(Debug)]
pub(super) struct Slots {
    all: Arc<Semaphore>,
    bulk: Arc<Semaphore>,
    peers: Mutex<HashMap<DeviceId, Weak<Semaphore>>>,
}

/// One peer's share.
#[derive(Debug, Clone)]
pub(super) struct Share(Arc<Semaphore>);

/// A slot that is taken until it is dropped.
pub(super) struct Slot {
    _held: (
        OwnedSemaphorePermit,
        Option<OwnedSemaphorePermit>,
        OwnedSemaphorePermit,
    ),
}

impl Slots {
    /// All are free.
    pub(super) fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(ALL)),
            bulk: Arc::new(Semaphore::new(BULK)),
            peers: Mutex::default(),
        }
    }

    /// The share of a peer; the same for all its connections.
    pub(super) fn share(&self, device: DeviceId) -> Share {
        let mut peers = self.peers.lock();
        if let Some(share) = peers.get(&device).and_then(Weak::upgrade) {
            return Share(share);
        }
        peers.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(PER_PEER));
        peers.insert(device, Arc::downgrade(&share));
        Share(share)
    }

    /// Waits for a slot.
    pub(super) async fn enter(&self, share: &Share, bulk: bool) -> Option<Slot> {
        // The own share first: what waits there is in nobody's way.
        let own = Arc::clone(&share.0).acquire_owned().await.ok()?;
        let placing = match bulk {
            true => Some(Arc::clone(&self.bulk).acquire_owned().await.ok()?),
            false => None,
        };
        let all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Slot {
            _held: (own, placing, all),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Operations that take a millisecond each; who was served, in order.
    async fn serve(peers: Vec<(u8, usize, bool)>) -> Vec<u8> {
        let slots = Arc::new(Slots::new());
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (peer, operations, bulk) in peers {
            let share = slots.share(DeviceId([peer; 32]));
            for _ in 0..operations {
                let (slots, share, order) = (Arc::clone(&slots), share.clone(), Arc::clone(&order));
                tasks.push(tokio::spawn(async move {
                    let slot = slots.enter(&share, bulk).await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    order.lock().push(peer);
                    drop(slot);
                }));
            }
            tokio::task::yield_now().await;
        }
        for task in tasks {
            task.await.unwrap();
        }
        let order = order.lock();
        order.clone()
    }

    #[tokio::test]
    async fn one_peers_flood_leaves_another_its_half() {
        // The flood was there first.
        let order = serve(vec![(1, 2000, false), (2, 100, false)]).await;
        let done = order.iter().rposition(|peer| *peer == 2).unwrap();
        assert!(
            done < 250,
            "its last operation was the {done}th, of 100 of its own"
        );
    }

    #[tokio::test]
    async fn many_peers_that_place_blocks_leave_a_reader_its_half() {
        let mut peers: Vec<_> = (10..20).map(|peer| (peer, 500, true)).collect();
        peers.push((2, 100, false));
        let order = serve(peers).await;
        let done = order.iter().rposition(|peer| *peer == 2).unwrap();
        assert!(done < 250, "its last operation was the {done}th");
    }

    #[tokio::test]
    async fn a_second_connection_brings_no_second_share() {
        let slots = Slots::new();
        let (one, two) = (slots.share(DeviceId([1; 32])), slots.share(DeviceId([1; 32])));
        let mut held = Vec::new();
        for _ in 0..PER_PEER {
            held.push(slots.enter(&one, false).await);
        }
        let more = tokio::time::timeout(Duration::from_millis(100), slots.enter(&two, false));
        assert!(more.await.is_err());
        drop((one, two, held));
        slots.share(DeviceId([2; 32]));
        assert_eq!(slots.peers.lock().len(), 1, "who left is forgotten");
    }
}
