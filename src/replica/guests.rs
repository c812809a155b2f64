//! What guests of an open group may have kept here: each as much as it keeps for this device, and a small allowance.
//!
//! What a guest keeps for third ones does not count, because nobody but they could vouch for it, and they may be its own. Invariant: no
//! guest gets a lease on a further block beyond its share, nor all guests together beyond `public` bytes (which count a block once for each).

use crate::base::DeviceId;
use crate::store::StoreError;

use super::machine::Machine;
use super::message::Report;

/// After this time what a guest keeps for this device is looked up again, in milliseconds.
const LOOK_AGAIN_MS: u64 = 60_000;

/// What this device and a guest keep for each other, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Balance {
    /// Leased here by the guest.
    here: u64,
    /// Kept there for this device.
    there: u64,
    looked_ms: u64,
    /// That it gets no more has been reported.
    told: bool,
}

impl Machine {
    /// Whether a guest gets a lease on a block of `len` bytes; `renewed`: it has one.
    pub(super) fn grants_guest(
        &mut self,
        guest: &DeviceId,
        len: u64,
        renewed: bool,
    ) -> Result<bool, StoreError> {
        self.weigh_guests()?;
        let all: u64 = self
            .peers
            .values()
            .filter_map(|peer| peer.balance)
            .map(|b| b.here)
            .sum();
        let (public, allowance) = (self.setup.public, self.setup.allowance);
        let Some(balance) = self.peers.get_mut(guest).and_then(|peer| peer.balance.as_mut()) else {
            return Ok(false);
        };
        let share = balance.there.saturating_add(allowance);
        let grants = match renewed {
            // What it has stays while what it keeps for this device changes, within reason.
            true => public > 0 && balance.here <= share.saturating_mul(2),
            false => balance.here + len <= share && all + len <= public,
        };
        if grants && !renewed {
            balance.here += len;
        }
        if !grants && !std::mem::replace(&mut balance.told, true) {
            let (here, there) = (balance.here, balance.there);
            self.report(Report::GuestRefused(*guest, here, there));
        }
        Ok(grants)
    }

    /// Leases of a guest have ended, or were not granted after all: what it has here is summed up anew.
    pub(super) fn weigh_again(&mut self, guest: &DeviceId) {
        if let Some(peer) = self.peers.get_mut(guest) {
            peer.balance = None;
        }
    }

    fn weigh_guests(&mut self) -> Result<(), StoreError> {
        let (now, secs) = (self.now_ms, self.secs());
        for (device, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.guest) {
            let fresh = |b: &Balance| now < b.looked_ms + LOOK_AGAIN_MS;
            if peer.balance.as_ref().is_some_and(fresh) {
                continue;
            }
            let (here, there) = self.store.balance(device, secs)?;
            // What nobody can rely on earns nothing.
            let there = if peer.is_condemned || peer.lost { 0 } else { there };
            peer.balance = Some(Balance {
                here,
                there,
                looked_ms: now,
                told: false,
            });
        }
        Ok(())
    }
}
