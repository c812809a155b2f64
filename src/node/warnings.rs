//! What a node says of its group, in the log and to people: who came and went, and what is wrong.

use std::collections::BTreeSet;

use crate::base::DeviceId;
use crate::base::clock::UnixSecs;
use crate::keys::{Roster, Standing};

/// What is wrong with the group or this device's part in it; shown until the node ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Warning {
    /// Another copy of this device is at work, or its state was put back.
    OwnCopy(u64),
    /// So of another device.
    Copy(DeviceId),
    /// A peer does not accept this device.
    Refused(String),
}

/// Notes a warning; what is new goes to the log.
pub(super) fn warn(warnings: &mut BTreeSet<Warning>, warning: Warning) {
    if !warnings.contains(&warning) {
        tracing::error!("{warning}");
        warnings.insert(warning);
    }
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OwnCopy(sequence) => write!(
                f,
                "this device was seen at start {sequence} by others, with another state than this one: its state directory was copied, \
                 or put back to an earlier time. If a copy runs elsewhere, stop it and let it join as a device of its own"
            ),
            Self::Copy(device) => write!(
                f,
                "device {} shows two states: its state directory was copied, or put back to an earlier time. If two computers use it, \
                 stop one and let it join as a device of its own",
                device.short()
            ),
            Self::Refused(why) => write!(f, "a member does not accept this device: {why}"),
        }
    }
}

/// Says in the log what changed.
pub(super) fn report(before: &Roster, after: &Roster) {
    for (device, at) in after.removed() {
        if !matches!(before.standing(device), Standing::Removed(_)) {
            tracing::warn!(device = %device.short(), "removed from the group on {}", date(at));
        }
    }
    for (device, entry) in after.members() {
        let role = entry.certificate.membership().role;
        match before.standing(device) {
            Standing::Member(old) if old.membership().role != role => {
                tracing::info!(device = %device.short(), "is a {role} now, no {} any more", old.membership().role);
            }
            Standing::Member(_) => {}
            _ => tracing::info!(device = %device.short(), "belongs to the group as a {role}"),
        }
    }
    if after.epoch() > before.epoch() {
        tracing::info!("key epoch {} has begun", after.epoch());
    }
}

/// A date as people write it, in UTC.
pub(super) fn date(at: UnixSecs) -> String {
    let at = i64::try_from(at)
        .ok()
        .and_then(|at| jiff::Timestamp::from_second(at).ok());
    at.map_or_else(
        || "an unknown date".into(),
        |at| at.strftime("%Y-%m-%d").to_string(),
    )
}
