//! One who listens to events: told how it is, then what happens, and what is another one since he was told last.
//!
//! What happens once comes through the listener's queue; what is so or otherwise (connections, copies, standing) is looked at, and costs nothing
//! while nobody listens. Called by `answers`, on the thread of the caller.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::events::{Heard, Hub};
use crate::base::DeviceId;
use crate::base::clock::{Clock, SystemClock};
use crate::control::{Accord, Answer, Caller, Event, Failure, Now, Standing, Tree, What};

/// How often it is looked what is otherwise.
const LOOK: Duration = Duration::from_millis(500);

/// How often it is looked whether copies are missing, which the whole list of blocks is asked for; less often where that takes long.
const LOOK_AT_COPIES: Duration = Duration::from_secs(3);

/// Looking at copies takes no more than this part of the time.
const PART: u32 = 20;

/// Tells one caller, until he leaves or the daemon ends. `now` says how it is; bytes that lack copies only when it is told to.
pub(super) fn listen(
    hub: &Arc<Hub>,
    caller: &Caller<'_>,
    now: impl Fn(bool) -> Result<Now, Failure>,
) -> Result<Answer, Failure> {
    let what = "cannot listen to events";
    let listener = hub.listen().ok_or_else(|| {
        Failure::new(
            what,
            "enough others listen to this daemon already",
            "end one of them",
        )
    })?;
    let tell = |what| {
        let time = SystemClock.now();
        let told = caller.tell(Event { time, what }, || hub.is_closed());
        told.map_err(|error| Failure::new("cannot tell of events", error, ""))
    };
    let mut last = now(true)?;
    tell(What::State(Box::new(last.clone())))?;
    let (mut looked, mut copies_at) = (Instant::now(), Instant::now() + LOOK_AT_COPIES);
    loop {
        let mut is_over = false;
        match listener.next(LOOK.saturating_sub(looked.elapsed())) {
            Heard::Event(event) => tell_at(caller, hub, event)?,
            Heard::Lost(count) => {
                tell(What::Lost { count })?;
                if let Ok(state) = now(true) {
                    last = state;
                    tell(What::State(Box::new(last.clone())))?;
                }
            }
            Heard::Nothing => {}
            Heard::Closed => is_over = true,
        }
        if is_over {
            tell(What::End)?;
            return Ok(Answer::Ended);
        }
        if caller.is_gone() {
            return Ok(Answer::Ended);
        }
        if looked.elapsed() < LOOK {
            continue;
        }
        let begun = Instant::now();
        let with_copies = begun >= copies_at;
        looked = begun;
        // What cannot be told while the daemon ends has not changed.
        let Ok(mut seen) = now(with_copies) else {
            continue;
        };
        if with_copies {
            copies_at = Instant::now() + LOOK_AT_COPIES.max(begun.elapsed() * PART);
        } else {
            seen.lacking_bytes = last.lacking_bytes;
        }
        for what in differences(&last, &seen) {
            tell(what)?;
        }
        last = seen;
    }
}

fn tell_at(caller: &Caller<'_>, hub: &Hub, event: Event) -> Result<(), Failure> {
    let told = caller.tell(event, || hub.is_closed());
    told.map_err(|error| Failure::new("cannot tell of events", error, ""))
}

/// What is another one now.
fn differences(last: &Now, now: &Now) -> Vec<What> {
    let mut found = Vec::new();
    let set = |list: &[DeviceId]| -> BTreeSet<DeviceId> { list.iter().copied().collect() };
    let (before, after) = (set(&last.connected), set(&now.connected));
    let device = |device: &DeviceId| *device;
    found.extend(
        after
            .difference(&before)
            .map(device)
            .map(|device| What::Connected { device }),
    );
    found.extend(
        before
            .difference(&after)
            .map(device)
            .map(|device| What::Disconnected { device }),
    );
    if let Some(state) = now.tree.filter(|_| now.tree != last.tree) {
        found.push(What::Tree {
            state,
            snapshot: now.snapshot,
        });
    }
    match (last.lacking_bytes.unwrap_or(0), now.lacking_bytes.unwrap_or(0)) {
        (0, lacking_bytes @ 1..) => found.push(What::CopiesMissing { lacking_bytes }),
        (1.., 0) => found.push(What::CopiesComplete),
        _ => {}
    }
    let new = now.warnings.iter().filter(|text| !last.warnings.contains(text));
    found.extend(new.map(|text| What::Warning { text: text.clone() }));
    found
}

/// The tree of this device compared with those of others, of which these are connected.
pub(super) fn accord(tree: &Tree, connected: &[DeviceId]) -> Accord {
    let any = |standing, of: &dyn Fn(&DeviceId) -> bool| {
        let mut devices = tree.devices.iter();
        devices.any(|other| other.standing == standing && of(&other.device))
    };
    let is_behind = tree.waiting.is_some() || any(Standing::Ahead, &|_| true);
    let is_ahead = tree.changed || any(Standing::Behind, &|device| connected.contains(device));
    match (is_ahead, is_behind) {
        (false, false) => Accord::InSync,
        (true, false) => Accord::Ahead,
        (false, true) => Accord::Behind,
        (true, true) => Accord::Apart,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{BlockId, VolumeId};
    use crate::control::TreeOf;

    const A: DeviceId = DeviceId([1; 32]);
    const B: DeviceId = DeviceId([2; 32]);

    fn tree(of: &[(DeviceId, Standing)]) -> Tree {
        Tree {
            snapshot: None,
            since: None,
            kept: 0,
            changed: false,
            waiting: None,
            conflicts: None,
            devices: of
                .iter()
                .map(|(device, standing)| TreeOf {
                    device: *device,
                    standing: *standing,
                })
                .collect(),
        }
    }

    #[test]
    fn how_trees_stand() {
        let same = tree(&[(A, Standing::Same), (B, Standing::Behind)]);
        // Who is away need not have it yet.
        assert_eq!(accord(&same, &[A]), Accord::InSync);
        assert_eq!(accord(&same, &[A, B]), Accord::Ahead);
        // What somebody has who is away is missing here all the same.
        let behind = tree(&[(A, Standing::Ahead), (B, Standing::Behind)]);
        assert_eq!(accord(&behind, &[]), Accord::Behind);
        assert_eq!(accord(&behind, &[B]), Accord::Apart);
        let mut own = tree(&[]);
        own.changed = true;
        assert_eq!(accord(&own, &[]), Accord::Ahead);
        own.waiting = Some("x".into());
        assert_eq!(accord(&own, &[]), Accord::Apart);
    }

    #[test]
    fn what_is_otherwise_is_told_once() {
        let last = Now {
            volume: VolumeId([3; 16]),
            device: A,
            mountpoint: None,
            tree: Some(Accord::InSync),
            snapshot: None,
            conflicts: Some(0),
            waiting: None,
            connected: vec![B],
            lacking_bytes: Some(0),
            warnings: vec!["old".into()],
        };
        assert_eq!(differences(&last, &last), []);
        let snapshot = Some(BlockId([9; 32]));
        let now = Now {
            tree: Some(Accord::Ahead),
            snapshot,
            connected: vec![A],
            lacking_bytes: Some(5),
            warnings: vec!["old".into(), "new".into()],
            ..last.clone()
        };
        let told = [
            What::Connected { device: A },
            What::Disconnected { device: B },
            What::Tree {
                state: Accord::Ahead,
                snapshot,
            },
            What::CopiesMissing { lacking_bytes: 5 },
            What::Warning { text: "new".into() },
        ];
        assert_eq!(differences(&last, &now), told);
        let more = Now {
            lacking_bytes: Some(6),
            ..now.clone()
        };
        assert_eq!(differences(&now, &more), []);
        assert!(differences(&now, &last).contains(&What::CopiesComplete));
    }
}
