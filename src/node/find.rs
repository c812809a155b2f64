//! FIND: a search for blocks whose holders are not connected to who wants them, passed on from member to member a few times.
//!
//! Whoever has a block connects to who wants it, at the addresses in a record that this one signed, and tells it (FOUND). Invariant: a search
//! goes at most [`HOPS`] steps beyond the first, passes each member once, and costs each at most `FAN` messages; what is remembered of
//! searches is bounded. Used by `serve`, `exchange` and the swarm actor.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::base::BlockId;
use crate::base::codec::{DecodeError, Reader, Writer};

use super::address_record::{AddressRecord, RECORD_MAX};
use super::exchange::ToExchange;
use super::local::{Command, Local, device_of};

/// How often a search may be passed on.
pub const HOPS: u8 = 2;
/// Members to which one member passes a search.
pub(super) const FAN: usize = 6;
/// Most blocks that are searched for at once.
pub const IDS_MAX: usize = 32;
/// Longest form of one, in bytes.
pub const FIND_MAX: usize = 16 + 1 + 2 + RECORD_MAX + 2 + IDS_MAX * 32;
/// Searches of one connection that are taken at once, and per second on average; the others are dropped.
pub(super) const BURST: f64 = 16.0;
pub(super) const RATE: f64 = 4.0;
/// Searches remembered, and for how long.
const SEEN_MAX: usize = 4096;
const SEEN_FOR: Duration = Duration::from_secs(60);

/// A search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Find {
    /// Its name, random.
    pub search: [u8; 16],
    /// How many more times it may be passed on.
    pub hops: u8,
    /// Who wants the blocks, and where it is: an encoded [`AddressRecord`], not verified yet.
    pub record: Vec<u8>,
    /// The blocks, 1 to [`IDS_MAX`].
    pub ids: Vec<BlockId>,
}

impl Find {
    /// Writes the binary form.
    pub(super) fn encode(&self, w: &mut Writer) {
        w.raw(&self.search).u8(self.hops).bytes16(&self.record);
        encode_ids(&self.ids, w);
    }

    /// Reads the binary form.
    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (search, hops) = (r.array()?, r.u8()?);
        if hops > HOPS {
            return Err(DecodeError::Invalid("a search that wants to go too far"));
        }
        Ok(Self {
            search,
            hops,
            record: r.bytes16(RECORD_MAX)?.to_vec(),
            ids: decode_ids(r)?,
        })
    }
}

/// Writes a list of at most [`IDS_MAX`] blocks.
pub(super) fn encode_ids(ids: &[BlockId], w: &mut Writer) {
    w.u16(ids.len() as u16);
    for id in ids {
        w.raw(id.as_bytes());
    }
}

/// Reads a list of 1 to [`IDS_MAX`] blocks.
pub(super) fn decode_ids(r: &mut Reader<'_>) -> Result<Vec<BlockId>, DecodeError> {
    let count = usize::from(r.u16()?);
    if count == 0 || count > IDS_MAX {
        return Err(DecodeError::Invalid("a search for no block or too many"));
    }
    (0..count).map(|_| r.array().map(BlockId)).collect()
}

/// The searches that this device has seen lately, its own among them.
#[derive(Debug, Default)]
pub(super) struct Searches {
    seen: HashMap<[u8; 16], bool>,
    order: VecDeque<([u8; 16], Instant)>,
}

impl Searches {
    /// Notes a search; whether it was not seen before.
    pub(super) fn is_new(&mut self, search: [u8; 16], own: bool, now: Instant) -> bool {
        while let Some((oldest, at)) = self.order.front()
            && (self.order.len() >= SEEN_MAX || *at + SEEN_FOR <= now)
        {
            self.seen.remove(oldest);
            self.order.pop_front();
        }
        if self.seen.contains_key(&search) {
            return false;
        }
        self.seen.insert(search, own);
        self.order.push_back((search, now));
        true
    }

    /// Whether this device searches for that.
    pub(super) fn is_own(&self, search: &[u8; 16]) -> bool {
        self.seen.get(search).copied().unwrap_or_default()
    }
}

/// Takes a search that a member sent: answers for what is here, passes on the rest. Reads from the disk.
pub(super) fn take(local: &Local, from: [u8; 32], find: Find) {
    if !local.searches.lock().is_new(find.search, false, Instant::now()) {
        return;
    }
    let Ok(record) = AddressRecord::decode(&find.record) else {
        return;
    };
    let public = record.certificate.membership().device;
    let (wants, own) = (device_of(&public), local.identity.device.id());
    let key = AddressRecord::key(&local.group, &public);
    let valid = record.verify(&key, &local.identity.group_public, local.clock.now());
    if valid.is_err() || wants == own || local.members.is_removed(&wants) {
        return;
    }
    let (held, rest): (Vec<BlockId>, Vec<BlockId>) = find
        .ids
        .iter()
        .partition(|id| local.store.contains(id).unwrap_or(false));
    if !held.is_empty() {
        let found = ToExchange::Found {
            device: wants,
            search: find.search,
            ids: held,
        };
        let _ = local.exchange.try_send(found);
        let reach = Command::Reach(public, record.addresses);
        let _ = local.actor.try_send(reach);
    }
    if !rest.is_empty() && find.hops > 0 {
        let find = Find {
            hops: find.hops - 1,
            ids: rest,
            ..find
        };
        let _ = local.exchange.try_send(ToExchange::Find {
            find: Box::new(find),
            except: vec![wants, device_of(&from)],
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_is_taken_once_and_few_are_remembered() {
        let (mut searches, now) = (Searches::default(), Instant::now());
        let name = |n: u64| {
            let mut search = [0; 16];
            search[..8].copy_from_slice(&n.to_le_bytes());
            search
        };
        assert!(searches.is_new(name(1), true, now));
        assert!(!searches.is_new(name(1), false, now), "it came back in a circle");
        assert!(searches.is_own(&name(1)) && !searches.is_own(&name(2)));
        for n in 2..3 * SEEN_MAX as u64 {
            assert!(searches.is_new(name(n), false, now));
        }
        assert_eq!((searches.seen.len(), searches.order.len()), (SEEN_MAX, SEEN_MAX));
        assert!(searches.is_new(name(0), false, now + SEEN_FOR));
        assert_eq!(searches.seen.len(), 1, "all others are forgotten");
    }

    #[test]
    fn a_search_that_wants_to_go_too_far_is_refused() {
        let find = Find {
            search: [1; 16],
            hops: HOPS + 1,
            record: vec![2; 9],
            ids: vec![BlockId([3; 32])],
        };
        let read = |find: &Find| {
            let mut w = Writer::with_capacity(99);
            find.encode(&mut w);
            Find::decode(&mut Reader::new(&w.into_vec()))
        };
        assert!(read(&find).is_err());
        let near = Find { hops: HOPS, ..find };
        assert_eq!(read(&near), Ok(near.clone()));
        assert!(
            read(&Find {
                ids: vec![BlockId([0; 32]); IDS_MAX + 1],
                ..near
            })
            .is_err()
        );
    }
}
