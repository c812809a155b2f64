//! Which inode numbers of the past the kernel knows, and what each is: a record of a snapshot's map.
//!
//! Invariant: a number stays with one record for as long as the kernel holds references to it, and no longer than that it takes memory. It follows
//! from the snapshot and the record's key, so it is the same at every mount, and the names of one file have the same one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use indexmap::IndexMap;
use indexmap::map::Entry;
use parking_lot::Mutex;

use crate::base::tree::ROOT;
use crate::base::{BlockId, FileId};
use crate::object::map::Root;
use crate::object::record::{own_key, parse_key};
use crate::volume::error::{Result, VolumeError};
use crate::volume::moments::Moment;
use crate::volume::shown::{PAST_FIRST, PAST_LAST};

/// Entries below which the table keeps its room when the kernel forgets.
const ROOM_KEPT: usize = 1 << 14;

/// Longest chain of directories in a message: a bound on damage.
const DEPTH_MAX: usize = 1 << 12;

/// A snapshot that somebody looks at.
#[derive(Debug)]
pub struct Snap {
    pub(super) id: BlockId,
    /// When the folder came to it, in seconds since the Unix epoch.
    pub(super) time: u64,
    /// Its name.
    pub(super) name: String,
    /// Its tree, once somebody looked into it.
    pub(super) root: OnceLock<Root>,
    /// It is not kept any more.
    gone: AtomicBool,
}

impl Snap {
    pub(super) fn new(moment: &Moment, name: &str) -> Self {
        Self {
            id: moment.id,
            time: moment.time,
            name: name.to_owned(),
            root: OnceLock::new(),
            gone: AtomicBool::new(false),
        }
    }

    /// An error once it is not kept any more.
    pub(super) fn check(&self) -> Result<()> {
        match self.gone.load(Ordering::Relaxed) {
            true => Err(VolumeError::Stale),
            false => Ok(()),
        }
    }
}

/// The inode number of what a snapshot has at the key of a record, unless something else has got it before.
pub(super) fn number(snapshot: &BlockId, key: &[u8]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(snapshot.as_bytes()).update(key);
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    PAST_FIRST + u64::from_le_bytes(first) % (PAST_LAST - PAST_FIRST + 1)
}

/// What is behind an inode number.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) snap: Arc<Snap>,
    /// The key of its record.
    pub(super) key: Box<[u8]>,
    /// The key of the name that it was found under, where that is another one.
    named: Option<Box<[u8]>>,
    lookups: u64,
}

impl Known {
    /// The key of the name that it was found under; of the top directory its own.
    pub(super) fn name_key(&self) -> &[u8] {
        self.named.as_ref().unwrap_or(&self.key)
    }
}

/// The table, and the snapshots in it.
#[derive(Debug, Default)]
pub(in crate::volume) struct Past {
    known: Mutex<IndexMap<u64, Known>>,
    snaps: Mutex<Vec<Arc<Snap>>>,
}

impl Past {
    /// Somebody looks at a snapshot that is kept. Those that nobody looks at any more are left out.
    pub(super) fn look_at(&self, name: &str, moment: &Moment) -> Arc<Snap> {
        let mut snaps = self.snaps.lock();
        if let Some(known) = snaps.iter().find(|known| known.id == moment.id) {
            return Arc::clone(known);
        }
        snaps.retain(|snap| Arc::strong_count(snap) > 1);
        let snap = Arc::new(Snap::new(moment, name));
        snaps.push(Arc::clone(&snap));
        snap
    }

    /// Only these are kept from now on.
    pub(in crate::volume) fn kept(&self, is_kept: impl Fn(&BlockId) -> bool) {
        let mut snaps = self.snaps.lock();
        snaps.retain(|snap| {
            let stays = is_kept(&snap.id);
            snap.gone.store(!stays, Ordering::Relaxed);
            stays
        });
    }

    /// One more reference to what has its record at `key`, found under the key `named`. Returns its number.
    pub(super) fn found(&self, snap: &Arc<Snap>, key: &[u8], named: &[u8]) -> u64 {
        let mut known = self.known.lock();
        let mut ino = number(&snap.id, key);
        loop {
            match known.entry(ino) {
                Entry::Occupied(mut entry) => {
                    let one = entry.get_mut();
                    if one.snap.id == snap.id && *one.key == *key {
                        // It may have been let go of and come back.
                        one.snap = Arc::clone(snap);
                        one.lookups += 1;
                        return ino;
                    }
                    // One in 10^8 among a million.
                    ino = if ino == PAST_LAST { PAST_FIRST } else { ino + 1 };
                }
                Entry::Vacant(entry) => {
                    entry.insert(Known {
                        snap: Arc::clone(snap),
                        key: key.into(),
                        named: (named != key).then(|| named.into()),
                        lookups: 1,
                    });
                    return ino;
                }
            }
        }
    }

    /// Gives back references; with the last one the number means nothing any more.
    pub(super) fn forget(&self, ino: u64, count: u64) {
        let mut known = self.known.lock();
        let Some(one) = known.get_mut(&ino) else { return };
        one.lookups = one.lookups.saturating_sub(count);
        if one.lookups == 0 {
            known.swap_remove(&ino);
            if known.len() < known.capacity() / 4 && known.capacity() > ROOM_KEPT {
                let room = known.len() * 2;
                known.shrink_to(room);
            }
        }
    }

    /// What a number means, in a snapshot that is still kept.
    pub(super) fn get(&self, ino: u64) -> Result<Known> {
        let known = self.known.lock().get(&ino).cloned().ok_or(VolumeError::Stale)?;
        known.snap.check()?;
        Ok(known)
    }

    /// The path below `.dfs/snapshots`, for messages; what is not known any more is `?`.
    pub(super) fn path(&self, ino: u64) -> String {
        let known = self.known.lock();
        let (mut parts, mut at) = (Vec::new(), known.get(&ino));
        while parts.len() < DEPTH_MAX {
            let Some(one) = at else {
                parts.push("?".to_owned());
                break;
            };
            match parse_key(one.name_key()) {
                Ok((ROOT, [])) => {
                    parts.push(one.snap.name.clone());
                    break;
                }
                Ok((parent, name)) => {
                    parts.push(String::from_utf8_lossy(name).into_owned());
                    at = known.get(&number(&one.snap.id, &own_key(&parent)));
                }
                Err(_) => break,
            }
        }
        parts.reverse();
        parts.join("/")
    }

    /// How many numbers mean something.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.lock().len()
    }

    /// Has what is behind a number stand at another one.
    #[cfg(test)]
    pub(super) fn stands_at(&self, ino: u64, other: u64) {
        let mut known = self.known.lock();
        if let Some(one) = known.swap_remove(&ino) {
            known.insert(other, one);
        }
    }
}

/// The directory that a key of a directory's own record means.
pub(super) fn directory(key: &[u8]) -> Result<FileId> {
    match parse_key(key) {
        Ok((id, [])) => Ok(id),
        _ => Err(VolumeError::NotDirectory),
    }
}
