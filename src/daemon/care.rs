//! What a user asks about the care for his blocks: free space, keep files here, check everything, look for what nobody needs.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::replication::{Freed as Sum, Replication};
use crate::base::{BlockId, DeviceId};
use crate::control::{
    self, Exchange, Failure, Freed, Garbage, Pinned, Progress, Replication as Health, Verified,
};
use crate::replica::message::Unfreed;
use crate::store::{BlockStore, Put, PutKind, SqliteStore, StoreError, Tiered, Want};
use crate::volume::Volume;

/// How long a wish may take to be heard before the command ends without waiting for that: walking a large folder takes its time.
const SETTLED_WITHIN: Duration = Duration::from_secs(20);

/// Blocks freed before progress is told.
const FREED_AT_ONCE: usize = 4096;

/// How long the holders of so many may take to confirm.
const FREE_WITHIN: Duration = Duration::from_secs(300);

/// Blocks checked before progress is told.
const CHECKED_AT_ONCE: usize = 256;

/// How often it is looked how far holders are.
const LOOK: Duration = Duration::from_millis(200);

/// How long holders, or repair, may take without anything coming of it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Tells how far something is; fails when nobody listens any more.
pub(super) type Report<'a> = &'a mut dyn FnMut(Progress) -> std::io::Result<()>;

/// What it works on.
pub(super) struct Care<'a> {
    pub(super) what: &'static str,
    pub(super) volume: &'a Arc<Volume>,
    pub(super) replication: &'a Replication,
    pub(super) store: &'a SqliteStore,
}

impl Care<'_> {
    /// Frees the blocks of files, a part at a time; with a target only until so many bytes are freed, the least recently used first.
    pub(super) fn free(
        &self,
        paths: &[PathBuf],
        target: Option<u64>,
        report: Report<'_>,
    ) -> Result<Freed, Failure> {
        let mut blocks = HashSet::new();
        for path in paths {
            let named = self
                .volume
                .blocks_below(path)
                .map_err(|e| Failure::new(format!("{} of {}", self.what, path.display()), e, ""))?;
            blocks.extend(named.into_keys());
        }
        let mut all: Vec<BlockId> = blocks.into_iter().collect();
        let mut sum = Sum::default();
        let mut lengths = Vec::new();
        if target.is_some() {
            let by_use = self.store.by_use(&all).map_err(|e| self.failed(e))?;
            lengths = by_use.iter().map(|cold| cold.len).collect();
            all = by_use.iter().map(|cold| cold.block).collect();
        }
        let mut at = 0;
        while at < all.len() && target.is_none_or(|target| sum.bytes < target) {
            let mut end = all.len().min(at + FREED_AT_ONCE);
            if let Some(target) = target {
                let mut more = target - sum.bytes;
                let enough = lengths[at..end].iter().position(|len| {
                    more = more.saturating_sub(*len);
                    more == 0
                });
                end = enough.map_or(end, |last| at + last + 1);
            }
            let Some(freed) = self.replication.free(all[at..end].to_vec(), FREE_WITHIN) else {
                let hint = "`dfs status` shows who is connected; what was wanted is freed when it can be";
                return Err(Failure::new(
                    self.what,
                    "the holders did not confirm in time",
                    hint,
                ));
            };
            at = end;
            sum.blocks += freed.blocks;
            sum.bytes += freed.bytes;
            for (why, count) in freed.kept {
                *sum.kept.entry(why).or_default() += count;
            }
            let progress = Progress {
                what: "freeing".into(),
                done_bytes: sum.bytes,
                total_bytes: target,
            };
            if report(progress).is_err() {
                break;
            }
        }
        // The space is to be seen on the disk when the command ends.
        self.store
            .tidy()
            .map_err(|e| Failure::new("cannot give the space back to the disk", e, ""))?;
        Ok(Freed {
            blocks: sum.blocks,
            bytes: sum.bytes,
            kept: sum
                .kept
                .into_iter()
                .map(|(why, count)| (unfreed(why).to_owned(), count))
                .collect(),
        })
    }

    /// Looks for blocks that nothing needs, and removes them when told to.
    pub(super) fn collect(&self, now: bool) -> Result<Garbage, Failure> {
        let unused = self.volume.garbage().map_err(|e| self.failed(e))?;
        let free = self.store.unleased(&unused).map_err(|e| self.failed(e))?;
        let found = Garbage {
            blocks: free.len() as u64,
            bytes: free.iter().map(|(_, len)| len).sum(),
            held: (unused.len() - free.len()) as u64,
            removed: now,
        };
        if now {
            self.volume.collect().map_err(|e| self.failed(e))?;
            self.store.tidy().map_err(|e| self.failed(e))?;
        }
        Ok(found)
    }

    fn failed(&self, why: impl ToString) -> Failure {
        Failure::new(self.what, why, "")
    }
}

/// Keeping files here needs nobody else.
pub(super) struct Pinning<'a> {
    pub(super) what: &'static str,
    pub(super) volume: &'a Arc<Volume>,
    pub(super) replication: Option<&'a Replication>,
}

impl Pinning<'_> {
    /// Wishes that files stay here, and brings them; or wishes it no more.
    pub(super) fn pin(&self, paths: &[PathBuf], pinned: bool, report: Report<'_>) -> Result<Pinned, Failure> {
        let mut sum = Pinned::default();
        for path in paths {
            let failed = |e| Failure::new(format!("{} {}", self.what, path.display()), e, "");
            self.volume.pin(path, pinned).map_err(failed)?;
            if !pinned {
                continue;
            }
            let before = sum.brought_bytes;
            let brought = self.volume.bring(path, &mut |brought, all| {
                let progress = Progress {
                    what: format!("{}: {} of {all} blocks", path.display(), brought.looked_at),
                    done_bytes: before + brought.bytes,
                    total_bytes: None,
                };
                report(progress).is_ok()
            });
            let brought = brought.map_err(failed)?;
            sum.blocks += brought.looked_at;
            sum.brought += brought.blocks;
            sum.brought_bytes += brought.bytes;
            sum.missing += brought.missing;
        }
        if let Some(replication) = self.replication {
            replication.settle(SETTLED_WITHIN);
        }
        Ok(sum)
    }
}

/// Writes everything back.
pub(super) fn write_back(volume: &Volume) -> Result<(), Failure> {
    volume
        .write_everything()
        .map_err(|e| Failure::new("cannot write everything back", e, ""))
}

/// Waits until everything has its replicas, at most so long.
pub(super) fn wait_for_replicas(
    replication: &Replication,
    at_most: Duration,
    report: Report<'_>,
) -> Result<Health, Failure> {
    let deadline = Instant::now() + at_most;
    loop {
        let settled = replication.is_settled();
        let now = health(replication)?;
        if settled && now.lacking_bytes == 0 || Instant::now() >= deadline {
            return Ok(now);
        }
        if report(replicating(&now)).is_err() {
            return Ok(now);
        }
        std::thread::sleep(LOOK);
    }
}

fn replicating(health: &Health) -> Progress {
    let single: u64 = health.health.iter().map(|h| h.bytes).sum();
    let all = single + health.groups.iter().map(|g| g.bytes).sum::<u64>();
    Progress {
        what: "replicating".into(),
        done_bytes: all.saturating_sub(health.lacking_bytes),
        total_bytes: Some(all),
    }
}

/// Checks every block here against its id, and a part of every block that the holders here have.
pub(super) fn verify(
    what: &'static str,
    store: &SqliteStore,
    tiered: &Tiered,
    replication: Option<&Replication>,
    repair: bool,
    report: Report<'_>,
) -> Result<Box<Verified>, Failure> {
    let failed = |why: StoreError| Failure::new(what, why, "`dfs fsck` on the unmounted volume says more");
    let total = store.stats().map_err(failed)?.bytes;
    let mut found = Verified::default();
    if let Some(replication) = replication {
        replication.verify();
    }
    let mut after = None;
    loop {
        let page = store.list(after, CHECKED_AT_ONCE).map_err(failed)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        for (block, _) in page {
            match store.get(&block) {
                Ok(Some(bytes)) => {
                    found.blocks += 1;
                    found.bytes += bytes.len() as u64;
                }
                Ok(None) => {}
                Err(StoreError::Damaged(_)) if repair && mend(store, tiered, block) => {
                    found.blocks += 1;
                    found.mended += 1;
                }
                Err(StoreError::Damaged(_)) => found.damaged.push(block.to_string()),
                Err(error) => return Err(failed(error)),
            }
        }
        let progress = Progress {
            what: "checking what is here".into(),
            done_bytes: found.bytes,
            total_bytes: Some(total.max(found.bytes)),
        };
        if report(progress).is_err() {
            return Ok(Box::new(found));
        }
    }
    if let Some(replication) = replication {
        check_holders(replication, &mut found, report);
        found.replication = Some(match repair {
            true => wait_for_repair(replication, report)?,
            false => health(replication)?,
        });
        found.away = away(replication).map_err(failed)?;
    }
    Ok(Box::new(found))
}

/// Replaces a damaged block by what others have.
pub(super) fn mend(store: &SqliteStore, tiered: &Tiered, block: BlockId) -> bool {
    let want = Want {
        id: block,
        root: None,
        ahead: false,
    };
    let Ok(bytes) = tiered.get(want) else { return false };
    let put = Put {
        id: block,
        bytes,
        kind: PutKind::Cached,
        plain: None,
    };
    let mended = store.put(vec![put]).is_ok() && matches!(store.get(&block), Ok(Some(_)));
    if mended {
        tracing::warn!(%block, "a damaged block was replaced by a copy from another device");
    }
    mended
}

/// Waits until the holders that are here have shown what they have.
fn check_holders(replication: &Replication, found: &mut Verified, report: Report<'_>) {
    let mut last = (Instant::now(), 0);
    while let Some(checked) = replication.checked() {
        (found.replicas_right, found.replicas_wrong) = (checked.right, checked.wrong);
        found.silent = checked.holders;
        let done = checked.right + checked.wrong;
        if done != last.1 {
            last = (Instant::now(), done);
        }
        let progress = Progress {
            what: format!("checking other devices: {done} copies, {} to go", checked.holders),
            done_bytes: found.bytes,
            total_bytes: None,
        };
        if checked.holders == 0 || last.0.elapsed() > PATIENCE || report(progress).is_err() {
            break;
        }
        std::thread::sleep(LOOK);
    }
}

/// Waits until everything has its replicas again, or nothing comes of waiting.
fn wait_for_repair(replication: &Replication, report: Report<'_>) -> Result<Health, Failure> {
    let mut last = (Instant::now(), u64::MAX);
    loop {
        let settled = replication.is_settled();
        let now = health(replication)?;
        if now.lacking_bytes < last.1 {
            last = (Instant::now(), now.lacking_bytes);
        }
        let over = settled && now.lacking_bytes == 0;
        if over || last.0.elapsed() > PATIENCE || report(replicating(&now)).is_err() {
            return Ok(now);
        }
        std::thread::sleep(LOOK);
    }
}

fn away(replication: &Replication) -> Result<Vec<DeviceId>, StoreError> {
    let here = replication.reachable();
    let holders = replication.stored_at()?;
    Ok(holders
        .into_iter()
        .map(|share| share.device)
        .filter(|device| !here.contains(device))
        .collect())
}

/// How well the volume's blocks are replicated.
pub(super) fn health(replication: &Replication) -> Result<Health, Failure> {
    ask_store(replication).map_err(|e| {
        Failure::new(
            "cannot tell how well everything is replicated",
            e,
            "the log says more",
        )
    })
}

fn ask_store(replication: &Replication) -> Result<Health, StoreError> {
    let by_replicas: Vec<control::Health> = replication
        .health()?
        .into_iter()
        .map(|line| control::Health {
            replicas: line.copies,
            wanted: line.wanted,
            blocks: line.blocks,
            bytes: line.bytes,
        })
        .collect();
    let mut members: BTreeMap<DeviceId, Exchange> = BTreeMap::new();
    let none = |device| Exchange {
        device,
        stored_blocks: 0,
        stored_bytes: 0,
        held_blocks: 0,
        held_bytes: 0,
    };
    for share in replication.stored_at()? {
        let entry = members.entry(share.device).or_insert_with(|| none(share.device));
        (entry.stored_blocks, entry.stored_bytes) = (share.blocks, share.bytes);
    }
    for share in replication.held_for()? {
        let entry = members.entry(share.device).or_insert_with(|| none(share.device));
        (entry.held_blocks, entry.held_bytes) = (share.blocks, share.bytes);
    }
    let groups: Vec<control::Groups> = replication
        .groups()?
        .into_iter()
        .map(|line| control::Groups {
            have: line.have,
            data: line.data,
            parity: line.parity,
            groups: line.groups,
            bytes: line.bytes,
        })
        .collect();
    let single = by_replicas.iter().filter(|line| line.replicas < line.wanted);
    let single: u64 = single.map(|line| line.bytes).sum();
    let grouped = groups.iter().filter(|line| line.have < line.data + line.parity);
    let grouped: u64 = grouped.map(|line| line.bytes).sum();
    let (queued_blocks, queued_bytes) = replication.queued()?;
    Ok(Health {
        lacking_bytes: single + grouped,
        health: by_replicas,
        groups,
        held_bytes: replication.held_bytes()?,
        queued_blocks,
        queued_bytes,
        bytes_per_sec: replication.bytes_per_sec(),
        possible: replication.possible(),
        members: members.into_values().collect(),
    })
}

/// Why a block stays, for people.
fn unfreed(why: Unfreed) -> &'static str {
    match why {
        Unfreed::Pinned => "pinned",
        Unfreed::TooFew => "too few replicas",
        Unfreed::HoldersAway => "the holders are away or did not confirm",
        Unfreed::Contended => "another device is freeing the same",
        Unfreed::HeldForOthers => "kept for another device, which was asked to move it",
        Unfreed::NotRetained => "not known to be replicated yet",
        Unfreed::NotHere => "not on this device",
    }
}
