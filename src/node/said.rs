//! What peers said when they were asked for a block, and how that is told when nobody gave it. Pure; used by `fetch`.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::{BlockId, DeviceId};
use crate::store::FetchError;

/// What one peer said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// Nothing yet.
    Asked,
    /// Nothing yet, and another one is asked as well.
    Late,
    /// That it has the block; it was not asked for it.
    Holds,
    /// That it does not have it.
    No,
    /// Bytes that are not the block.
    Wrong,
    /// Why it could not.
    Failed(String),
    /// Nothing: the connection was lost.
    Gone,
}

impl Said {
    /// Whether the peer need not be asked (again) for this block.
    pub(super) fn is_final(&self) -> bool {
        !matches!(self, Self::Holds | Self::Gone)
    }
}

/// Why a block was not had. `holders` have it by what they said under a lease; `silent` is said of those who were asked in vain.
pub(super) fn failure(
    id: BlockId,
    said: &BTreeMap<DeviceId, Said>,
    holders: &BTreeSet<DeviceId>,
    silent: &str,
) -> FetchError {
    if said.is_empty() && holders.is_empty() {
        return FetchError::Alone { id };
    }
    let told = |(device, said): (&DeviceId, &Said)| {
        let what = match said {
            Said::Asked | Said::Late => silent,
            Said::Holds => "has it, but was not asked in time",
            Said::No => "does not have it",
            Said::Wrong => "sent wrong bytes",
            Said::Failed(why) => why,
            Said::Gone => "the connection was lost",
        };
        format!("{} ({what})", device.short())
    };
    let away = holders.iter().filter(|device| !said.contains_key(*device));
    let away = away.map(|device| format!("{} (keeps it, but is not connected)", device.short()));
    let asked: Vec<String> = said.iter().map(told).chain(away).collect();
    FetchError::Unavailable {
        id,
        asked: asked.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_keep_a_block_and_are_away_are_named() {
        let (a, b) = (DeviceId([0xaa; 32]), DeviceId([0xbb; 32]));
        let id = BlockId([1; 32]);
        let holders = BTreeSet::from([a, b]);
        let told = failure(id, &BTreeMap::from([(a, Said::No)]), &holders, "").to_string();
        assert!(
            told.contains("aaaaaaaa (does not have it), bbbbbbbb (keeps it, but is not connected)"),
            "{told}"
        );
        let alone = failure(id, &BTreeMap::new(), &BTreeSet::new(), "");
        assert!(matches!(alone, FetchError::Alone { .. }));
    }
}
