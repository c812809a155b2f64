//! Blocks of groups: found by the record of their group, made again from the other shards. Nothing of it is kept in the cache.
//!
//! Invariant: what leaves was checked against its id; a record that a member shows is only believed as far as what is made with it. No
//! call waits longer than its deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::met::Met;
use crate::base::{BlockId, DeviceId};
use crate::daemon::network::SharedNode;
use crate::replica::erasure::{self, Group};
use crate::replica::wire::{GROUPS_MAX, Said, Told};
use crate::store::{
    BlockStore, CheckedBlock, Fetch, FetchError, GroupStore, Put, PutKind, ReplicaStore, SqliteStore, Want,
};

/// How long other members may take to say in which group a block is.
const WHICH_WITHIN: Duration = Duration::from_secs(3);

/// When a shard that has not come does not keep another one from being asked for any more.
const STALL: Duration = Duration::from_millis(1500);

/// How long a shard is looked for where it should be, before it is made again.
const THERE_WITHIN: Duration = Duration::from_secs(10);

/// What shards are found and made with.
pub(in crate::daemon) struct Shards {
    pub(super) store: Arc<SqliteStore>,
    pub(super) node: Arc<SharedNode>,
    pub(super) met: Arc<Met>,
}

impl Shards {
    pub(in crate::daemon) fn new(store: &Arc<SqliteStore>, node: &Arc<SharedNode>) -> Arc<Self> {
        Arc::new(Self {
            store: Arc::clone(store),
            node: Arc::clone(node),
            met: Arc::default(),
        })
    }

    /// The group of this device that a block is in.
    pub(super) fn own_group(&self, block: &BlockId) -> Option<Group> {
        let n = self.store.kept(block).ok()??.group.filter(|n| *n > 0)?;
        Group::decode(&self.store.group(n).ok()??.record).ok()
    }

    /// The groups that this device knows to hold a block: its own, and those of which it keeps shards.
    pub(super) fn groups_of(&self, block: &BlockId) -> Vec<Group> {
        let held = self.store.records_of(block, GROUPS_MAX).unwrap_or_default();
        let held = held.iter().filter_map(|record| Group::decode(record).ok());
        let mut groups: Vec<Group> = self.own_group(block).into_iter().chain(held).collect();
        groups.retain(|group| group.ids().any(|id| id == block));
        groups.truncate(GROUPS_MAX);
        groups
    }

    /// Whether a member that can be reached is known to have a block.
    pub(super) fn is_near(&self, block: &BlockId) -> bool {
        let holders = self.store.replicas(block).unwrap_or_default();
        self.met.any(holders.iter().map(|replica| replica.holder))
    }

    /// The block: from here, from those that have it, or made again.
    pub(super) fn obtain(&self, block: &BlockId, group: &Group, deadline: Instant) -> Result<Bytes, String> {
        if let Ok(Some(bytes)) = self.store.get(block) {
            return Ok(bytes);
        }
        let soon = deadline.min(Instant::now() + THERE_WITHIN);
        let fetch = || self.fetch(block, soon);
        let make = || self.make(block, group, deadline);
        match self.is_near(block) {
            true => fetch().or_else(|_| make()),
            false => make().or_else(|why| fetch().map_err(|_| why)),
        }
    }

    fn fetch(&self, block: &BlockId, deadline: Instant) -> Result<Bytes, String> {
        let (tell, told) = bounded(1);
        self.start(*block, deadline, tell);
        match told.recv_deadline(deadline) {
            Ok((_, result)) => result.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn start(&self, block: BlockId, deadline: Instant, tell: Sender<(BlockId, Result<Bytes, FetchError>)>) {
        let want = Want {
            id: block,
            root: None,
            ahead: false,
        };
        let done = move |result: Result<CheckedBlock, FetchError>| {
            drop(tell.send((block, result.map(|block| block.bytes().clone()))));
        };
        self.node.start(want, deadline, Box::new(done));
    }

    /// The block, made from as many other shards of its group as are enough.
    pub(super) fn make(&self, block: &BlockId, group: &Group, deadline: Instant) -> Result<Bytes, String> {
        let need = group.data.len();
        let mut shards = Vec::with_capacity(need);
        let mut elsewhere = Vec::new();
        for id in group.ids().filter(|id| *id != block) {
            match self.store.get(id) {
                Ok(Some(bytes)) if shards.len() < need => shards.push(bytes),
                Ok(Some(_)) => {}
                _ => elsewhere.push(*id),
            }
        }
        // Those first that somebody near is known to have; the last is asked for first.
        elsewhere.sort_by_key(|id| self.is_near(id));
        let (tell, told) = bounded(group.data.len() + group.parity.len());
        let mut asked = 0;
        let mut answered = 0;
        while shards.len() < need {
            while shards.len() + asked - answered < need
                && let Some(id) = elsewhere.pop()
            {
                self.start(id, deadline, tell.clone());
                asked += 1;
            }
            if asked == answered {
                return Err(format!(
                    "{} shards of its group were found, {need} are needed",
                    shards.len()
                ));
            }
            match told.recv_deadline(deadline.min(Instant::now() + STALL)) {
                Ok((_, result)) => {
                    answered += 1;
                    shards.extend(result.ok());
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {
                    if let Some(id) = elsewhere.pop() {
                        self.start(id, deadline, tell.clone());
                        asked += 1;
                    }
                }
                Err(_) => return Err("the other shards of its group did not come in time".into()),
            }
        }
        let at = group.ids().position(|id| id == block);
        let all = erasure::restore(group, &shards).map_err(|error| error.to_string())?;
        at.and_then(|at| all.into_iter().nth(at))
            .ok_or_else(|| "it is not in that group".into())
    }

    /// The block, made with the record of a group that this device or another member knows.
    pub(super) fn make_of_any(&self, block: &BlockId, deadline: Instant) -> Result<Bytes, String> {
        let mut why = String::from("nobody knows of a group that it is in");
        let mut tried: Vec<Group> = Vec::new();
        for group in self.groups_of(block) {
            match self.make(block, &group, deadline) {
                Ok(bytes) => return Ok(bytes),
                Err(error) => why = error,
            }
            tried.push(group);
        }
        let members: Vec<DeviceId> = self.met.all().into_iter().collect();
        let (tell, told) = bounded(members.len());
        let within = deadline.min(Instant::now() + WHICH_WITHIN);
        let body: Bytes = Said::Which(*block).encode().into();
        for member in &members {
            let tell = tell.clone();
            let done = move |result: Result<Bytes, String>| drop(tell.send(result));
            self.node.say(*member, body.clone(), within, Box::new(done));
        }
        drop(tell);
        for _ in &members {
            let Ok(result) = told.recv_deadline(within) else {
                break;
            };
            let Ok(Told::Groups(groups)) =
                result.and_then(|body| Told::decode(&body).map_err(|e| e.to_string()))
            else {
                continue;
            };
            for group in groups {
                if tried.len() >= GROUPS_MAX || tried.contains(&group) || !group.ids().any(|id| id == block) {
                    continue;
                }
                match self.make(block, &group, deadline) {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => why = error,
                }
                tried.push(group);
            }
        }
        Err(why)
    }

    /// Makes the parity of blocks that are here, and puts it into the store.
    pub(super) fn encode(&self, blocks: &[BlockId], parity: u8) -> Result<Group, String> {
        let read = |block: &BlockId| match self.store.get(block) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err("a block of it is gone".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let data = blocks.iter().map(read).collect::<Result<Vec<Bytes>, String>>()?;
        let (group, made) =
            erasure::protect(&data, usize::from(parity)).map_err(|error| error.to_string())?;
        let put = |(id, bytes): (&BlockId, Bytes)| Put {
            id: *id,
            bytes,
            kind: PutKind::Cached,
            plain: None,
        };
        let puts = group.parity.iter().zip(made).map(put).collect();
        self.store.put(puts).map_err(|error| error.to_string())?;
        Ok(group)
    }
}
