//! What a user asks about the volume's tree and its past: versions, differences, to have one back, and what was kept twice.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::care;
use super::trees::Trees;
use crate::control::{
    Became, ConflictCopy, Conflicts, Failure, Past, PathDiff, PathDifference, PathKind, PathLog,
    PathRestored, PathVersion, Tally, When,
};
use crate::sync::{At, Change, Conflict, Counts, Difference, Kept, Kind, SyncError, Version};
use crate::volume::Volume;

/// Versions or paths told in one answer.
const TOLD_MAX: usize = 1000;

/// Bytes of paths told in one answer: four times as many characters at most, which a line of the control socket has room for.
const PATHS_MAX: usize = 128 << 10;

/// How long a look at the past waits for what just changed to be committed.
const COMMITTED_WITHIN: Duration = Duration::from_secs(5);

/// The versions of a path, newest first.
pub(super) fn log(trees: &Trees, path: &Path, most: usize) -> Result<PathLog, Failure> {
    let what = || format!("cannot tell the versions of {}", shown(path));
    trees.now(COMMITTED_WITHIN);
    let most = most.clamp(1, TOLD_MAX);
    let found = trees
        .engine()
        .log(path, most)
        .map_err(|error| failure(what(), error))?;
    let all = found.len();
    let versions = within(found.into_iter().map(version), |version| {
        length(&version.path) + version.other.as_deref().map_or(0, length)
    });
    if versions.is_empty() {
        return Err(failure(what(), SyncError::NeverThere(path.to_owned())));
    }
    Ok(PathLog {
        more: all == most || versions.len() < all,
        versions,
    })
}

/// What differs between two snapshots at a path and below it.
pub(super) fn diff(
    trees: &Trees,
    path: &Path,
    from: Option<&When>,
    to: Option<&When>,
) -> Result<PathDiff, Failure> {
    let failed = |error| failure(format!("cannot compare {}", shown(path)), error);
    trees.now(COMMITTED_WITHIN);
    let engine = trees.engine();
    let to = match to {
        Some(to) => engine.kept_at(&at(to)),
        None => engine.newest(),
    }
    .map_err(failed)?;
    let from = match from {
        Some(from) => Some(engine.kept_at(&at(from)).map_err(failed)?),
        None => engine.kept_before(&to.id),
    };
    let base = from.as_ref().map(|from| &from.id);
    let found = engine.differences(base, &to.id, path).map_err(failed)?;
    let all = found.len();
    let differences = within(found.into_iter().map(difference), |one| {
        length(&one.path) + one.from.as_deref().map_or(0, length)
    });
    Ok(PathDiff {
        from: from.map(past),
        to: past(to),
        left_out: (all - differences.len()) as u64,
        differences,
    })
}

/// Brings a path back to what it was.
pub(super) fn restore(
    volume: &Arc<Volume>,
    trees: &Trees,
    path: &Path,
    when: Option<&When>,
) -> Result<PathRestored, Failure> {
    care::write_back(volume)?;
    let when = when.map(at);
    let restored = trees
        .engine()
        .restore(path, when.as_ref())
        .map_err(|error| failure(format!("cannot restore {}", shown(path)), error))?;
    Ok(PathRestored {
        path: path.to_owned(),
        from: past(restored.from),
        snapshot: restored.snapshot,
        changes: restored.changes,
    })
}

/// The conflict copies at a path and below it.
pub(super) fn conflicts(volume: &Arc<Volume>, trees: &Trees, path: &Path) -> Result<Conflicts, Failure> {
    care::write_back(volume)?;
    let committed = matches!(trees.now(COMMITTED_WITHIN), Some(Ok(_)));
    let (found, all) = trees
        .engine()
        .conflicts(path, TOLD_MAX)
        .map_err(|error| failure("cannot list the conflict copies".into(), error))?;
    let conflicts = within(found.into_iter().map(conflict), |one| {
        length(&one.path) + one.of.as_deref().map_or(0, length)
    });
    Ok(Conflicts {
        left_out: all - conflicts.len() as u64,
        conflicts,
        committed,
    })
}

/// As many as one answer has room for.
fn within<T>(all: impl Iterator<Item = T>, length: impl Fn(&T) -> usize) -> Vec<T> {
    let mut room = PATHS_MAX;
    all.take(TOLD_MAX)
        .take_while(|one| {
            let left = room.checked_sub(length(one));
            room = left.unwrap_or(0);
            left.is_some()
        })
        .collect()
}

fn length(path: &Path) -> usize {
    path.as_os_str().len()
}

fn shown(path: &Path) -> String {
    match path.as_os_str().is_empty() {
        true => "the volume".into(),
        false => path.display().to_string(),
    }
}

fn failure(what: String, error: SyncError) -> Failure {
    let hint = match &error {
        SyncError::NoPath(_) => "name a path without `..`",
        SyncError::NoSnapshot => "snapshots are made a moment after the first change",
        SyncError::Older(oldest) => {
            let oldest = i64::try_from(*oldest).ok();
            let oldest = oldest.and_then(|secs| jiff::Timestamp::from_second(secs).ok());
            let oldest = oldest.map_or_else(String::new, |at| format!("; it is of {at}"));
            return Failure::new(
                what,
                format!("{error}{oldest}"),
                "`dfs log` shows the snapshots that are kept",
            );
        }
        SyncError::NotOne(_, 0) => "`dfs log` shows the snapshots that are kept",
        SyncError::NotOne(..) => "give more digits of the id: `dfs log --json` shows all of them",
        SyncError::NotThereThen(_) | SyncError::NeverThere(_) => {
            "`dfs log` of the directory above shows what was there, and when"
        }
        SyncError::StillThere(_) => {
            "say which version is to replace it, with `--at`: `dfs log PATH` shows them"
        }
        SyncError::NotADirectory(_) => "move away what is there now, or restore the directory itself",
        SyncError::ReadOnly => "restore on a device that writes, or mount without `ro`",
        SyncError::Busy => "try again in a minute: `dfs status` shows what is under way",
        SyncError::InTheWay { .. } => {
            "close what has files open there and restore again: what is done stays done, and nothing was lost"
        }
        SyncError::Volume(_) | SyncError::State(_) => {
            "blocks that only other devices have need one of them: `dfs status`; the log says more"
        }
    };
    Failure::new(what, error, hint)
}

fn at(when: &When) -> At {
    match when {
        When::Time(time) => At::Time(*time),
        When::Snapshot(id) => At::Id(id.clone()),
    }
}

fn past(kept: Kept) -> Past {
    Past {
        snapshot: kept.id,
        time: kept.time,
    }
}

fn became(change: Change) -> Became {
    match change {
        Change::There => Became::There,
        Change::Created => Became::Created,
        Change::Changed => Became::Changed,
        Change::Attributes => Became::Attributes,
        Change::Moved => Became::Moved,
        Change::Deleted => Became::Deleted,
    }
}

fn kind(kind: Kind) -> PathKind {
    match kind {
        Kind::Directory => PathKind::Directory,
        Kind::File => PathKind::File,
        Kind::Symlink => PathKind::Symlink,
        Kind::Special => PathKind::Special,
    }
}

fn tally(counts: Counts) -> Tally {
    Tally {
        created: counts.created,
        changed: counts.changed,
        moved: counts.moved,
        deleted: counts.deleted,
    }
}

fn version(version: Version) -> PathVersion {
    PathVersion {
        at: past(version.kept),
        device: version.device,
        path: version.path,
        change: became(version.change),
        other: version.other,
        kind: version.kind.map(kind),
        size: version.size,
        counts: version.counts.map(tally),
    }
}

fn conflict(one: Conflict) -> ConflictCopy {
    ConflictCopy {
        path: one.path,
        of: one.of,
        device: one.device,
        time: one.time,
        size: one.size,
        of_size: one.of_size,
    }
}

fn difference(one: Difference) -> PathDifference {
    PathDifference {
        path: one.path,
        change: became(one.change),
        from: one.from,
        kind: kind(one.kind),
        before: one.before,
        after: one.after,
    }
}
