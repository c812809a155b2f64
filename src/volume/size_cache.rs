//! The file `sizes` of the state directory: the sizes of files between two mounts. A cache: it may be deleted at any time.
//!
//! Invariant: believed as a whole or not at all, and only where nothing can have changed a `.f` under an unchanged change time: on the same
//! filesystem, with the same store, after an orderly end, which makes everything durable before the file is written. What is not
//! believed is removed, so that it cannot be believed later. Bytes: docs/store.md.

use zeroize::Zeroizing;

use super::Volume;
use super::attributes::now;
use super::sizes::{Entry, SIZES_MAX, Sizes, UNKNOWN, day_of};
use crate::base::StoreId;
use crate::folder::Folder;
use crate::folder::state::StateDir;
use crate::keys::VolumeKeys;
use crate::store::BlockStore;

const MAGIC: &[u8; 8] = b"dfssizes";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 64;
const ENTRY_LEN: usize = 40;
const MAC_LEN: usize = 32;
const KEY_CONTEXT: &str = "dfs 2026-11 sizes of files between mounts";

/// Longest file, in bytes.
const FILE_LEN_MAX: usize = HEADER_LEN + ENTRY_LEN * SIZES_MAX + MAC_LEN;

/// Magic numbers (statfs(2)) of filesystems that keep inode numbers and change times of nanoseconds: ext2 to ext4, XFS, Btrfs, F2FS, bcachefs,
/// ZFS, tmpfs. Others invent numbers at each mount, or take times from another computer's clock.
const STEADY: [u32; 7] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0xf2f5_2010,
    0xca45_1a4e,
    0x2fc1_2fc1,
    0x0102_1994,
];

/// What the inode numbers and versions in the file belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Home {
    fs_type: u32,
    fs_id: u64,
    root_ino: u64,
    store: StoreId,
}

impl Home {
    /// None where the folder's filesystem is not steady.
    fn of(folder: &Folder, store: StoreId) -> std::io::Result<Option<Self>> {
        let fs_type = folder.fs_type()?;
        if !STEADY.contains(&fs_type) {
            return Ok(None);
        }
        let root = rustix::fs::fstat(folder.root())?;
        Ok(Some(Self {
            fs_type,
            fs_id: folder.statvfs()?.f_fsid,
            root_ino: root.st_ino,
            store,
        }))
    }
}

/// Why the file is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("it is not whole, or of another volume or version")]
    Damaged,
    #[error("it belongs to another folder, filesystem or store")]
    Elsewhere,
    #[error("it is newer than the store")]
    Newer,
}

/// The sizes that the last session left; none when there are none to be believed.
pub(super) fn load(
    state: &StateDir,
    folder: &Folder,
    keys: &VolumeKeys,
    store: &dyn BlockStore,
    unclean: bool,
) -> Sizes {
    if unclean {
        // A power cut may have taken a change and left its time.
        remove(state);
        return Sizes::default();
    }
    let home = match Home::of(folder, store.id()) {
        Ok(Some(home)) => home,
        Ok(None) => return Sizes::default(),
        Err(error) => {
            tracing::warn!(%error, "the folder's filesystem does not say what it is; sizes of files are read anew");
            remove(state);
            return Sizes::default();
        }
    };
    let read = match state.read_sizes(FILE_LEN_MAX) {
        Ok(Some(bytes)) => decode(&bytes, &home, store.last_seq(), keys).map_err(|error| error.to_string()),
        Ok(None) => return Sizes::default(),
        Err(error) => Err(error.to_string()),
    };
    match read {
        Ok(entries) => Sizes::loaded(entries),
        Err(error) => {
            tracing::warn!(%error, "the cache of file sizes is not used; sizes are read anew");
            remove(state);
            Sizes::default()
        }
    }
}

fn remove(state: &StateDir) {
    if let Err(error) = state.remove_sizes() {
        tracing::warn!(%error, "an old cache of file sizes cannot be removed");
    }
}

impl Volume {
    /// Keeps the sizes for the next mount. Called at an orderly end, when nothing changes any more. A failure costs time at the next mount.
    pub(super) fn save_sizes(&self) {
        let Some(state) = &self.state else { return };
        let store = self.blocks.tiered().store();
        let Ok(Some(home)) = Home::of(&self.folder, store.id()) else {
            return;
        };
        let mut sizes = self.sizes.lock();
        tracing::debug!(
            read = sizes.missed(),
            "sizes of files that were not known and had to be read"
        );
        let (entries, changed) = sizes.settle(day_of(now()));
        if !changed {
            return;
        }
        // What others wrote into the folder too: a later power cut must not take what these sizes were read from and leave its change time.
        let saved = self
            .sync_folder()
            .map_err(|error| error.to_string())
            .and_then(|()| {
                let bytes = encode(entries, &home, store.last_seq(), self.blocks.keys());
                state.write_sizes(&bytes).map_err(|error| error.to_string())
            });
        if let Err(error) = saved {
            tracing::warn!(%error, "the sizes of files are not kept for the next mount");
        }
    }
}

fn mac_key(keys: &VolumeKeys) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(blake3::derive_key(KEY_CONTEXT, keys.index_key()))
}

fn encode(entries: &[Entry], home: &Home, seq: u64, keys: &VolumeKeys) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + ENTRY_LEN * entries.len() + MAC_LEN);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&home.fs_type.to_le_bytes());
    bytes.extend_from_slice(&home.fs_id.to_le_bytes());
    bytes.extend_from_slice(&home.root_ino.to_le_bytes());
    bytes.extend_from_slice(&home.store.0);
    bytes.extend_from_slice(&seq.to_le_bytes());
    bytes.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    for entry in entries {
        bytes.extend_from_slice(&entry.ino.to_le_bytes());
        bytes.extend_from_slice(&entry.ctime.to_le_bytes());
        bytes.extend_from_slice(&entry.size.to_le_bytes());
        bytes.extend_from_slice(&entry.stored.to_le_bytes());
        bytes.extend_from_slice(&entry.mtime.to_le_bytes());
        bytes.extend_from_slice(&entry.day.to_le_bytes());
    }
    let mac = blake3::keyed_hash(&mac_key(keys), &bytes);
    bytes.extend_from_slice(mac.as_bytes());
    bytes
}

fn decode(bytes: &[u8], home: &Home, last_seq: u64, keys: &VolumeKeys) -> Result<Vec<Entry>, Refused> {
    let (body, mac) = bytes.split_last_chunk::<MAC_LEN>().ok_or(Refused::Damaged)?;
    if blake3::keyed_hash(&mac_key(keys), body) != blake3::Hash::from_bytes(*mac) {
        return Err(Refused::Damaged);
    }
    // Written by a holder of the key from here on; checked all the same.
    let (header, rest) = body.split_at_checked(HEADER_LEN).ok_or(Refused::Damaged)?;
    let mut header = Fields(header);
    if header.take() != Some(*MAGIC) || header.take().map(u32::from_le_bytes) != Some(VERSION) {
        return Err(Refused::Damaged);
    }
    let written = (|| {
        Some(Home {
            fs_type: header.take().map(u32::from_le_bytes)?,
            fs_id: header.u64()?,
            root_ino: header.u64()?,
            store: StoreId(header.take()?),
        })
    })();
    if written != Some(*home) {
        return Err(Refused::Elsewhere);
    }
    if header.u64().is_none_or(|seq| seq > last_seq) {
        return Err(Refused::Newer);
    }
    let count = header.u64().and_then(|count| usize::try_from(count).ok());
    if rest.len() % ENTRY_LEN != 0 || count != Some(rest.len() / ENTRY_LEN) || count > Some(SIZES_MAX) {
        return Err(Refused::Damaged);
    }
    let entries: Option<Vec<_>> = rest
        .chunks_exact(ENTRY_LEN)
        .map(|entry| Fields(entry).entry())
        .collect();
    entries
        .filter(|all| all.is_sorted_by(|a, b| a.ino < b.ino))
        .filter(|all| all.iter().all(|entry| entry.ctime != UNKNOWN))
        .ok_or(Refused::Damaged)
}

/// What is left of a stretch of fields.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn entry(&mut self) -> Option<Entry> {
        Some(Entry {
            ino: self.u64()?,
            ctime: self.take().map(i64::from_le_bytes)?,
            size: self.u64()?,
            stored: self.u64()?,
            mtime: self.take().map(u32::from_le_bytes)?,
            day: self.take().map(u32::from_le_bytes)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keys::RootSecret;

    fn keys(seed: u8) -> VolumeKeys {
        VolumeKeys::from_root(&RootSecret::from_bytes([seed; 32]), 1).unwrap()
    }

    const HOME: Home = Home {
        fs_type: 0xef53,
        fs_id: 7,
        root_ino: 2,
        store: StoreId([1; 16]),
    };

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let entry = (
            any::<i64>(),
            any::<u64>(),
            any::<u64>(),
            any::<u32>(),
            any::<u32>(),
        );
        proptest::collection::btree_map(any::<u64>(), entry, 0..40).prop_map(|all| {
            let entry = |(ino, (ctime, size, stored, mtime, day)): (u64, (i64, u64, u64, u32, u32))| Entry {
                ino,
                ctime: ctime.max(UNKNOWN + 1),
                size,
                stored,
                mtime,
                day,
            };
            all.into_iter().map(entry).collect()
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_nothing_else(
            all in entries(), at in any::<prop::sample::Index>(), bit in 0..8u32, cut in any::<prop::sample::Index>(),
        ) {
            let keys = keys(7);
            let bytes = encode(&all, &HOME, 5, &keys);
            prop_assert_eq!(decode(&bytes, &HOME, 5, &keys), Ok(all));
            let mut altered = bytes.clone();
            altered[at.index(bytes.len())] ^= 1u8 << bit;
            prop_assert_eq!(decode(&altered, &HOME, 5, &keys), Err(Refused::Damaged));
            prop_assert_eq!(decode(&bytes[..cut.index(bytes.len())], &HOME, 5, &keys), Err(Refused::Damaged));
            let mut longer = bytes;
            longer.extend([0; ENTRY_LEN]);
            prop_assert_eq!(decode(&longer, &HOME, 5, &keys), Err(Refused::Damaged));
        }
    }

    #[test]
    fn another_volume_home_or_an_older_store_is_refused() {
        let bytes = encode(&[], &HOME, 5, &keys(7));
        assert_eq!(decode(&bytes, &HOME, 6, &keys(7)), Ok(Vec::new()));
        assert_eq!(decode(&bytes, &HOME, 5, &keys(8)), Err(Refused::Damaged));
        assert_eq!(decode(&bytes, &HOME, 4, &keys(7)), Err(Refused::Newer));
        let others = [
            Home { fs_type: 1, ..HOME },
            Home { fs_id: 8, ..HOME },
            Home { root_ino: 3, ..HOME },
            Home {
                store: StoreId([2; 16]),
                ..HOME
            },
        ];
        for other in others {
            assert_eq!(decode(&bytes, &other, 5, &keys(7)), Err(Refused::Elsewhere));
        }
    }
}
