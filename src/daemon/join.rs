//! Joins a group by ticket: asks an admin for a certificate and keys, and makes folder and state of the new member.
//!
//! The device key is on the disk before the admin is asked, in a directory named after the invitation, so that an answer that got lost is
//! asked for again by the same device and the ticket is not used up by a crash.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::{Places, admit, open};
use crate::base::clock::UnixSecs;
use crate::base::{DeviceId, VolumeId};
use crate::control::Failure;
use crate::folder::marker::Marker;
use crate::folder::state::{Keyring, StateDir, default_path};
use crate::keys::key_file::Passphrase;
use crate::keys::{DeviceKey, GroupKey, Ticket};
use crate::node;

/// How long the admins of a ticket may take in all.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A group that was joined.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct JoinedVolume {
    /// The volume.
    pub volume: VolumeId,
    /// This device.
    pub device: DeviceId,
    /// Its role.
    pub role: String,
    /// The state directory.
    pub state: PathBuf,
}

/// Joins the group of `ticket` with `folder` (absolute), which becomes a folder of its volume.
pub fn join(
    places: &Places,
    folder: &Path,
    state: Option<&Path>,
    ticket: &Ticket,
    passphrase: Option<&Passphrase>,
    now: UnixSecs,
) -> anyhow::Result<JoinedVolume> {
    let what = format!("cannot join with {}", folder.display());
    if let Some(marker) = Marker::load(folder).with_context(|| what.clone())? {
        let why = format!("it is already volume {}", marker.volume);
        return Err(Failure::new(what, why, "name another folder").into());
    }
    let waiting = waiting_room(places, state, ticket);
    if let Some(state) = state {
        open::refuse_overlap(&what, folder, state)?;
    }
    let staged = StateDir::open_or_create(&waiting).with_context(|| what.clone())?;
    let lock = staged
        .lock(Duration::from_secs(1))
        .with_context(|| what.clone())?;
    let device = match staged.read_device_key(passphrase)? {
        Some(device) => device,
        None => {
            let device = DeviceKey::generate()?;
            staged.write_device_key(&device, passphrase)?;
            device
        }
    };
    let joined = match node::join(ticket, &device, now, TIMEOUT) {
        Ok(joined) => joined,
        Err(e @ node::JoinError::Refused(_)) => {
            // The same device would be refused again.
            staged.discard();
            return Err(Failure::new(what, e, "ask for a new ticket").into());
        }
        Err(e) => {
            let hint = "see that the admin's device is on and reachable, and try again with the same ticket";
            return Err(Failure::new(what, e, hint).into());
        }
    };
    let role = joined.certificate.membership().role;
    let gift = admit::read(&joined.payload, role).map_err(|e| {
        Failure::new(
            what.clone(),
            format!("the admin's answer cannot be used: {e}"),
            "",
        )
    })?;
    if gift
        .root
        .as_ref()
        .is_some_and(|root| GroupKey::from_root(root).public() != joined.group_public)
    {
        return Err(Failure::new(what, "the admin's answer is not of its group", "").into());
    }
    let volume = gift.volume;
    let path = state.map_or_else(|| default_path(&places.state_home, &volume), Path::to_owned);
    open::refuse_overlap(&what, folder, &path)?;
    let keys = Keyring {
        device,
        volume: gift.keys.map(Arc::new),
        root: gift.root,
        group_public: joined.group_public,
        certificate: joined.certificate,
        passphrase: None,
    };
    let id = keys.device.id();
    staged.write_keys(&keys, passphrase)?;
    let admins: Vec<String> = joined.admins.into_iter().map(|admin| admin.address).collect();
    staged.remember_admins(&admins)?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    drop(lock);
    staged.move_to(&path).with_context(|| what.clone())?;
    let marker = Marker {
        volume,
        state: state.map(Path::to_owned),
    };
    marker.save(folder).with_context(|| what)?;
    Ok(JoinedVolume {
        volume,
        device: id,
        role: role.to_string(),
        state: path,
    })
}

/// Where the state is made until the group has answered: the same place for the same ticket.
fn waiting_room(places: &Places, state: Option<&Path>, ticket: &Ticket) -> PathBuf {
    let invitation = data_encoding::HEXLOWER.encode(&ticket.invitation().id.0);
    let name = format!(".joining-{invitation}");
    state.map_or_else(
        || places.state_home.join(&name),
        |state| state.with_file_name(&name),
    )
}
