//! Proofs of possession of what is not here: a holder that grants a lease under a challenge on a shard of which this device has no copy
//! to compare with shows a random slice of it instead.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::carrier::Carrier;
use crate::base::{BlockId, DeviceId};
use crate::replica::message::{Outcome, Request, Slice};
use crate::replica::slice;
use crate::replica::wire::{Receipt, SLICES_MAX, Said, Told};
use crate::store::ReplicaStore;

/// How long a holder may take to show them.
const WITHIN: Duration = Duration::from_secs(20);

impl Carrier {
    /// The blocks of a receipt that are not here, and of which the holder has shown a slice just now.
    pub(super) fn shown(&self, holder: DeviceId, receipt: &Receipt) -> HashSet<BlockId> {
        let mut slices = Vec::new();
        for (block, outcome, _) in &receipt.outcomes {
            let here = self.store.length(block).ok().flatten();
            if let (Outcome::Granted, None) = (outcome, here)
                && let Ok(Some(kept)) = self.store.kept(block)
            {
                let mut random = [0; 8];
                if getrandom::fill(&mut random).is_err() {
                    return HashSet::new();
                }
                let offset = slice::offset(u64::from_le_bytes(random), kept.len);
                slices.push(Slice {
                    block: *block,
                    offset,
                });
            }
        }
        let mut shown = HashSet::new();
        for some in slices.chunks(SLICES_MAX) {
            shown.extend(self.audited(holder, receipt.seq, some));
        }
        shown
    }

    fn audited(&self, holder: DeviceId, seq: u64, slices: &[Slice]) -> Vec<BlockId> {
        let deadline = Instant::now() + WITHIN;
        let request = Request::Audit {
            seq,
            slices: slices.to_vec(),
        };
        let (tell, told) = bounded(1);
        let done = move |result| drop(tell.send(result));
        let body = Said::Request(request).encode().into();
        self.node.say(holder, body, deadline, Box::new(done));
        let Ok(Ok(body)) = told.recv_deadline(deadline) else {
            return Vec::new();
        };
        let Ok(Told::Slices { slices: shown, .. }) = Told::decode(&body) else {
            return Vec::new();
        };
        let right = slices
            .iter()
            .zip(&shown)
            .filter(|(slice, shown)| slice::check(&slice.block, slice.offset, shown).is_ok());
        right.map(|(slice, _)| slice.block).collect()
    }
}
