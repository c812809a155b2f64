//! What other members offer, as they said when they were last met. Remembered, so that a member that is away stays a place for blocks.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::base::DeviceId;
use crate::folder::state::StateDir;
use crate::keys::Role;
use crate::node;
use crate::replica::message::Member;

/// Name of the list in the state directory.
const LIST: &str = "profiles";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Profile {
    quota: u64,
    zone: String,
}

/// The profiles.
pub(super) struct Profiles {
    state: StateDir,
    known: BTreeMap<String, Profile>,
}

impl Profiles {
    /// What was remembered; what cannot be read is said again when members are met.
    pub(super) fn load(state: &StateDir) -> Self {
        let known = match state.read_list(LIST) {
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).unwrap_or_default(),
            _ => BTreeMap::new(),
        };
        Self {
            state: state.clone(),
            known,
        }
    }

    /// Takes note of what a member says of itself.
    pub(super) fn set(&mut self, device: DeviceId, quota: u64, zone: &str) {
        let profile = Profile {
            quota,
            zone: zone.to_owned(),
        };
        if self.known.insert(device.to_string(), profile.clone()) == Some(profile) {
            return;
        }
        let saved = serde_json::to_vec(&self.known).map_err(std::io::Error::other);
        let saved =
            saved.and_then(|bytes| self.state.write_list(LIST, &bytes).map_err(std::io::Error::other));
        if let Err(error) = saved {
            tracing::warn!(%error, "what a member offers is not remembered");
        }
    }

    /// A member as the machine is to see it. One that was never met offers nothing, and a guest nothing to who wants none.
    pub(super) fn member(&self, listed: &node::Member, guests: bool) -> Member {
        let (device, zone) = (listed.device, listed.zone.clone());
        let guest = listed.role == Some(Role::Guest);
        let profile = self.known.get(&device.to_string());
        let said = profile
            .map(|profile| profile.zone.clone())
            .filter(|zone| !zone.is_empty());
        let zone = zone.or(said).unwrap_or_else(|| device.to_string());
        Member {
            device,
            zone: Arc::from(zone.as_str()),
            quota: profile
                .filter(|_| guests || !guest)
                .map_or(0, |profile| profile.quota),
            guest,
        }
    }
}
