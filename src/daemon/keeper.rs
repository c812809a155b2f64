//! This device's keys while a daemon runs: given to members that lack them, taken from those that have newer ones, always on the disk first.
//!
//! Invariant: a secret that came from another member is used only if an admin has committed to it in the roster.

use std::sync::Arc;

use anyhow::Context;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::Located;
use super::admit;
use crate::base::VolumeId;
use crate::folder::state::{Keyring, StateDir};
use crate::keys::key_file::Passphrase;
use crate::keys::{Certificate, DeviceKey, GroupKey, Role, RootSecret, Roster, Standing, VolumeKeys};
use crate::node::Keys;

/// See the head of this file.
pub(super) struct Keeper {
    device: DeviceKey,
    group_public: [u8; 32],
    volume: VolumeId,
    state: StateDir,
    passphrase: Option<Arc<Passphrase>>,
    held: Mutex<Held>,
}

struct Held {
    /// Those that the volume reads and writes with.
    keys: Option<Arc<VolumeKeys>>,
    root: Option<RootSecret>,
    certificate: Certificate,
}

impl Keeper {
    pub(super) fn of(keys: &Keyring, located: &Located) -> Self {
        Self {
            device: DeviceKey::from_bytes(&keys.device.seed()),
            group_public: keys.group_public,
            volume: located.marker.volume,
            state: located.state.clone(),
            passphrase: keys.passphrase.clone(),
            held: Mutex::new(Held {
                keys: keys.volume.clone(),
                root: keys.root.clone(),
                certificate: keys.certificate.clone(),
            }),
        }
    }

    /// Takes newer keys of the same volume: to the disk, then into those in use.
    fn extend(&self, held: &mut Held, newer: VolumeKeys) -> anyhow::Result<()> {
        let keep = || self.state.write_volume_keys(&newer, self.passphrase.as_deref());
        match &held.keys {
            Some(keys) => {
                let trial = VolumeKeys::decode(&keys.encode())?;
                if !trial.extend(&newer)? {
                    return Ok(());
                }
                keep().context("the keys of a new epoch cannot be written")?;
                keys.extend(&newer)?;
                tracing::info!(
                    "new data is sealed under key epoch {} from now on",
                    keys.newest_epoch()
                );
            }
            None => {
                keep().context("the keys of the volume cannot be written")?;
                tracing::warn!("this device may read the volume now: start it again to mount it");
                held.keys = Some(Arc::new(newer));
            }
        }
        Ok(())
    }

    fn follow(&self, roster: &Roster) -> anyhow::Result<()> {
        let mut held = self.held.lock();
        if let (Some(root), Some(keys)) = (&held.root, &held.keys)
            && keys.newest_epoch() < roster.epoch()
        {
            let newer = VolumeKeys::from_root(root, roster.epoch())?;
            self.extend(&mut held, newer)?;
        }
        if let Standing::Member(certificate) = roster.standing(&self.device.id())
            && *certificate != held.certificate
        {
            self.state
                .write_certificate(certificate)
                .context("this device's new certificate cannot be written")?;
            let (before, after) = (held.certificate.membership().role, certificate.membership().role);
            if before != after {
                tracing::warn!(
                    "this device was a {before} and is a {after} now: what it may do changes when it is mounted again"
                );
            }
            held.certificate = certificate.clone();
        }
        Ok(())
    }

    fn accept(&self, gift: &[u8], roster: &Roster) -> anyhow::Result<()> {
        let gift = admit::open(gift)?;
        anyhow::ensure!(gift.volume == self.volume, "they are those of another volume");
        let mut held = self.held.lock();
        if let Some(newer) = gift.keys {
            let known = held.keys.as_ref().map_or(0, |keys| keys.newest_epoch());
            for epoch in known + 1..=newer.newest_epoch() {
                let committed = newer
                    .commitment(epoch)
                    .is_some_and(|commitment| roster.is_committed(epoch, &commitment));
                anyhow::ensure!(
                    committed,
                    "no admin has stated that the secret of epoch {epoch} is this one"
                );
            }
            self.extend(&mut held, newer)?;
        }
        if let Some(root) = gift.root
            && held.root.is_none()
        {
            anyhow::ensure!(
                GroupKey::from_root(&root).public() == self.group_public,
                "the root secret is that of another group"
            );
            let admin = matches!(
                roster.standing(&self.device.id()),
                Standing::Member(certificate) if certificate.membership().role == Role::Admin
            );
            anyhow::ensure!(admin, "this device is no admin");
            self.state.write_root(&root, self.passphrase.as_deref())?;
            tracing::warn!("this device is an admin now: start it again to invite and remove with it");
            held.root = Some(root);
        }
        Ok(())
    }
}

impl Keys for Keeper {
    fn newest_epoch(&self) -> u32 {
        self.held
            .lock()
            .keys
            .as_ref()
            .map_or(0, |keys| keys.newest_epoch())
    }

    fn has_root(&self) -> bool {
        self.held.lock().root.is_some()
    }

    fn give(&self, role: Role) -> Option<Zeroizing<Vec<u8>>> {
        let held = self.held.lock();
        // A guest's keys are those of its own volume.
        let own = held.certificate.membership().role;
        let keys = held.keys.as_deref().filter(|_| own.reads() && role.reads())?;
        let root = held.root.as_ref().filter(|_| role == Role::Admin);
        Some(admit::write(self.volume, Some(keys), root))
    }

    fn take(&self, gift: &[u8], roster: &Roster) -> Result<(), String> {
        self.accept(gift, roster).map_err(|e| format!("{e:#}"))
    }

    fn heard(&self, roster: &Roster) -> Result<(), String> {
        self.follow(roster).map_err(|e| format!("{e:#}"))
    }
}
