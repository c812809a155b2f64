//! Makes a volume, or makes one again from its recovery phrase: keys and state first, the folder's marker last, so that a crash on the way
//! leaves no folder that looks like a volume and cannot be opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use zeroize::Zeroizing;

use super::{Places, open};
use crate::base::clock::UnixSecs;
use crate::base::{DeviceId, VolumeId};
use crate::control::Failure;
use crate::folder::marker::Marker;
use crate::folder::state::{Keyring, StateDir, default_path};
use crate::keys::certificate::{Certificate, Membership, Role};
use crate::keys::key_file::Passphrase;
use crate::keys::{DeviceKey, FIRST_EPOCH, GroupKey, RootSecret, Roster, Statement, VolumeKeys};
use crate::node::StateFile;

/// How long an admin's certificate, which he issues himself, is good, in seconds. Renewed long before at a start.
pub(super) const ADMIN_CERTIFICATE_SECS: u64 = 5 * 365 * 86_400;

/// Where the root secret comes from.
#[derive(Debug)]
pub enum Origin {
    /// A new volume.
    New,
    /// The volume of this recovery phrase.
    Recovered(RootSecret),
}

/// A volume that was made. No `Debug`: it may hold the words.
pub struct Initialised {
    /// The volume.
    pub volume: VolumeId,
    /// This device.
    pub device: DeviceId,
    /// The state directory.
    pub state: PathBuf,
    /// The 24 words of a new volume, to be shown once.
    pub phrase: Option<Zeroizing<String>>,
}

/// Makes the volume of `origin` in `folder` (absolute), with its state at `state` or in the default place. `public`: guests are kept blocks for.
pub fn init(
    places: &Places,
    folder: &Path,
    state: Option<&Path>,
    origin: Origin,
    passphrase: Option<&Passphrase>,
    public: bool,
    now: UnixSecs,
) -> anyhow::Result<Initialised> {
    let what = format!("cannot make a volume in {}", folder.display());
    let (root, phrase) = match origin {
        Origin::New => {
            let root = RootSecret::generate()?;
            let phrase = root.to_phrase();
            (root, Some(phrase))
        }
        Origin::Recovered(root) => (root, None),
    };
    let volume_keys = VolumeKeys::from_root(&root, FIRST_EPOCH)?;
    let volume = volume_keys.volume();
    refuse_other_volume(&what, folder, phrase.is_none().then_some(volume))?;

    let path = state.map_or_else(|| default_path(&places.state_home, &volume), Path::to_owned);
    open::refuse_overlap(&what, folder, &path)?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;

    let keys = admin_keyring(root, volume_keys, now)?;
    let device = keys.device.id();
    let staged = StateDir::stage(&path).context(what.clone())?;
    let roster = own_roster(&keys)?.encode();
    let written = staged
        .write_keys(&keys, passphrase)
        .map_err(anyhow::Error::new)
        .and_then(|()| Ok(staged.write_list(StateFile::Roster.name(), &roster)?))
        .and_then(|()| match public {
            true => Ok(staged.set_public()?),
            false => Ok(()),
        });
    if let Err(e) = written {
        staged.discard();
        return Err(e.context(what));
    }
    let placed = match staged.clone().move_to(&path) {
        Ok(placed) => placed,
        Err(e) => {
            staged.discard();
            return Err(anyhow::Error::new(e).context(what));
        }
    };
    let marker = Marker {
        volume,
        state: state.map(Path::to_owned),
    };
    if let Err(e) = marker.save(folder) {
        placed.discard();
        return Err(anyhow::Error::new(e).context(what));
    }
    Ok(Initialised {
        volume,
        device,
        state: path,
        phrase,
    })
}

/// The keys of a new device that has the root secret: an admin that certifies itself.
fn admin_keyring(root: RootSecret, volume: VolumeKeys, now: UnixSecs) -> anyhow::Result<Keyring> {
    let device = DeviceKey::generate()?;
    let group = GroupKey::from_root(&root);
    Ok(Keyring {
        certificate: admin_certificate(&group, &device, volume.newest_epoch(), now),
        group_public: group.public(),
        device,
        volume: Some(Arc::new(volume)),
        root: Some(root),
        passphrase: None,
    })
}

/// What a device states that has the root secret from the words themselves: that it is an admin, and what the first epoch's secret is.
fn own_roster(keys: &Keyring) -> anyhow::Result<Roster> {
    let (root, volume) = (keys.root.as_ref(), keys.volume.as_ref());
    let group = GroupKey::from_root(root.context("an admin without the root secret")?);
    let mut roster = Roster::new(keys.group_public);
    let author = keys.device.public();
    let own = roster.draft_member(author, keys.certificate.clone());
    roster.add([Statement::sign(own, &group, &keys.device)]);
    if let Some(commitment) = volume.and_then(|volume| volume.commitment(FIRST_EPOCH)) {
        let first = roster.draft_epoch(author, FIRST_EPOCH, commitment);
        roster.add([Statement::sign(first, &group, &keys.device)]);
    }
    Ok(roster)
}

/// The certificate that an admin issues to himself.
pub(super) fn admin_certificate(
    group: &GroupKey,
    device: &DeviceKey,
    epoch: u32,
    now: UnixSecs,
) -> Certificate {
    let membership = Membership {
        group: group.id(),
        device: device.public(),
        role: Role::Admin,
        epoch,
        issued: now,
        expires: now.saturating_add(ADMIN_CERTIFICATE_SECS),
        zone: None,
    };
    Certificate::issue(group, membership)
}

/// A folder that is a volume stays that volume; a recovered one may be the same.
pub(super) fn refuse_other_volume(
    what: &str,
    folder: &Path,
    recovered: Option<VolumeId>,
) -> anyhow::Result<()> {
    let found = Marker::load(folder).map_err(|e| anyhow::Error::new(e).context(what.to_owned()))?;
    match found {
        Some(marker) if recovered != Some(marker.volume) => {
            let (why, hint) = match recovered {
                None => (
                    format!("it is already volume {}", marker.volume),
                    format!("mount it with `dfs up {}`", folder.display()),
                ),
                Some(volume) => (
                    format!(
                        "it is volume {}, but the words are those of volume {volume}",
                        marker.volume
                    ),
                    "use the words of that volume, or another folder".to_owned(),
                ),
            };
            Err(Failure::new(what, why, hint).into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::{PassphraseSource, locate};
    use crate::folder::state::KeysError;
    use crate::keys::key_file::KeyFileError;

    fn places(dir: &Path) -> Places {
        Places {
            state_home: dir.join("home"),
            runtime_dir: dir.join("run"),
        }
    }

    #[test]
    fn a_volume_is_made_once_and_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        let (places, folder) = (places(dir.path()), dir.path().join("folder"));
        let made = init(&places, &folder, None, Origin::New, None, false, 1000).unwrap();
        assert_eq!(made.phrase.as_ref().unwrap().split(' ').count(), 24);
        let located = locate(&places, &folder, None).unwrap();
        assert_eq!(located.state.path(), made.state);
        let keys = located.unlock(PassphraseSource::None).unwrap();
        assert_eq!(keys.device.id(), made.device);
        assert_eq!(keys.volume.unwrap().volume(), made.volume);
        assert_eq!(keys.certificate.membership().role, Role::Admin);
        let again = init(&places, &folder, None, Origin::New, None, false, 1000)
            .err()
            .unwrap();
        assert!(again.to_string().contains("already volume"), "{again}");
    }

    #[test]
    fn the_words_make_the_same_volume_elsewhere_but_not_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let (places, folder) = (places(dir.path()), dir.path().join("folder"));
        let made = init(&places, &folder, None, Origin::New, None, false, 1000).unwrap();
        let words = || Origin::Recovered(RootSecret::from_phrase(made.phrase.as_ref().unwrap()).unwrap());
        let state = dir.path().join("state2");
        let copy = dir.path().join("copy");
        let again = init(&places, &copy, Some(&state), words(), None, false, 1000).unwrap();
        assert_eq!(again.volume, made.volume);
        assert_ne!(again.device, made.device);
        assert!(again.phrase.is_none());
        assert_eq!(Marker::load(&copy).unwrap().unwrap().state, Some(state));
        // The state is lost, the folder is not.
        std::fs::remove_dir_all(&made.state).unwrap();
        init(&places, &folder, None, words(), None, false, 1000).unwrap();
        let other = Origin::Recovered(RootSecret::from_bytes([1; 32]));
        assert!(init(&places, &folder, None, other, None, false, 1000).is_err());
    }

    #[test]
    fn state_and_folder_do_not_overlap() {
        let dir = tempfile::tempdir().unwrap();
        let (places, folder) = (places(dir.path()), dir.path().join("folder"));
        for state in [folder.join("state"), dir.path().to_owned(), folder.clone()] {
            let error = init(&places, &folder, Some(&state), Origin::New, None, false, 1)
                .err()
                .unwrap();
            assert!(error.to_string().contains("inside"), "{error}");
            assert!(!folder.exists());
        }
    }

    #[test]
    fn sealed_keys_need_their_passphrase() {
        let dir = tempfile::tempdir().unwrap();
        let (places, folder) = (places(dir.path()), dir.path().join("folder"));
        let passphrase = Passphrase::new(Zeroizing::new("open sesame".into())).unwrap();
        init(&places, &folder, None, Origin::New, Some(&passphrase), false, 1).unwrap();
        let located = locate(&places, &folder, None).unwrap();
        let file = dir.path().join("phrase");
        std::fs::write(&file, "open sesame\n").unwrap();
        located.unlock(PassphraseSource::File(file)).unwrap();
        assert!(located.unlock(PassphraseSource::None).is_err());
        let wrong = PassphraseSource::Ask(Box::new(|| Ok(Zeroizing::new("wrong".into()))));
        let error = located.unlock(wrong).unwrap_err();
        assert!(matches!(
            error.downcast_ref::<KeysError>(),
            Some(KeysError::File {
                source: KeyFileError::WrongPassphrase,
                ..
            })
        ));
    }
}
