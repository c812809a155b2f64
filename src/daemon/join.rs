//! Joins a group by ticket: asks an admin for a certificate and keys, and makes folder and state of the new member.
//!
//! The device key is on the disk before the admin is asked, in a directory named after the invitation, so that an answer that got lost is
//! asked for again by the same device and the ticket is not used up by a crash.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use zeroize::Zeroizing;

use super::init::refuse_other_volume;
use super::{Places, admit, open};
use crate::base::clock::UnixSecs;
use crate::base::{DeviceId, VolumeId};
use crate::control::Failure;
use crate::folder::marker::Marker;
use crate::folder::state::{Keyring, StateDir, default_path};
use crate::keys::key_file::Passphrase;
use crate::keys::{DeviceKey, FIRST_EPOCH, GroupKey, Role, RootSecret, Ticket, VolumeKeys};
use crate::node;

/// How long the admins of a ticket may take in all.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A group that was joined. No `Debug`: it may hold the words.
#[derive(serde::Serialize)]
pub struct JoinedVolume {
    /// The volume.
    pub volume: VolumeId,
    /// This device.
    pub device: DeviceId,
    /// Its role.
    pub role: String,
    /// The state directory.
    pub state: PathBuf,
    /// The 24 words of a guest's new volume, to be shown once.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "words")]
    pub phrase: Option<Zeroizing<String>>,
}

fn words<S: serde::Serializer>(phrase: &Option<Zeroizing<String>>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(phrase.as_deref().map_or("", String::as_str))
}

/// Joins the group of `ticket` with `folder` (absolute), which becomes a folder of its volume; with a guest's ticket one of a volume of
/// its own, a new one or that of `words`.
pub fn join(
    places: &Places,
    folder: &Path,
    state: Option<&Path>,
    ticket: &Ticket,
    passphrase: Option<&Passphrase>,
    words: Option<RootSecret>,
    now: UnixSecs,
) -> anyhow::Result<JoinedVolume> {
    let what = format!("cannot join with {}", folder.display());
    let guest = ticket.invitation().role == Role::Guest;
    if words.is_some() && !guest {
        let why = "the words are those of a volume, but only a guest brings a volume to a group";
        return Err(Failure::new(what, why, "join without them, or with a ticket for a guest").into());
    }
    let again = words
        .as_ref()
        .map(|root| VolumeKeys::from_root(root, FIRST_EPOCH))
        .transpose()?
        .map(|keys| keys.volume());
    refuse_other_volume(&what, folder, again)?;
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
    if role != ticket.invitation().role {
        return Err(Failure::new(
            what,
            format!("the admin made this device a {role}, which is not what the ticket says"),
            "",
        )
        .into());
    }
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
    let mut phrase = None;
    let (volume, volume_keys, root) = if guest {
        let root = match words {
            Some(root) => root,
            None => {
                let root = RootSecret::generate()?;
                phrase = Some(root.to_phrase());
                root
            }
        };
        let own = VolumeKeys::from_root(&root, FIRST_EPOCH)?;
        // The secret itself would make an admin of somebody in a group of its own: the words are for that.
        (own.volume(), Some(own), None)
    } else {
        (gift.volume, gift.keys, gift.root)
    };
    let path = state.map_or_else(|| default_path(&places.state_home, &volume), Path::to_owned);
    open::refuse_overlap(&what, folder, &path)?;
    let keys = Keyring {
        device,
        volume: volume_keys.map(Arc::new),
        root,
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
        phrase,
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
