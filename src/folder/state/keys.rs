//! The key files of a state directory: `keys/device.key`, `volume.key`, `root.key`, `group.pub` and `certificate`.
//!
//! Invariant: what is read fits together (the certificate is this device's, signed by this group), and one flipped bit in any of them is an
//! error that names the file. Secrets may be sealed under a passphrase. Written by `daemon` at init and join, read at every start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::{StateDir, StateError, files};
use crate::keys::certificate::{CERTIFICATE_MAX, Certificate};
use crate::keys::key_file::{self, KeyFileError, KeyKind, Passphrase};
use crate::keys::{DeviceKey, RootSecret, VolumeKeys};

/// Longest key file, in bytes: the longest secret, with header, tag and checksum.
const KEY_FILE_MAX: usize = key_file::SECRET_MAX + 1024;

/// Everything that makes this device what it is in its group.
#[derive(Debug)]
pub struct Keyring {
    /// This device.
    pub device: DeviceKey,
    /// What reading takes; a host has none.
    pub volume: Option<Arc<VolumeKeys>>,
    /// What everything is derived from; only an admin has it.
    pub root: Option<RootSecret>,
    /// The public key of the group.
    pub group_public: [u8; 32],
    /// What shows others that this device belongs.
    pub certificate: Certificate,
    /// What the secrets are sealed under, so that those that come later are as well.
    pub passphrase: Option<Arc<Passphrase>>,
}

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file could not be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file is not there.
    #[error("{0} is missing; restore it from a backup, or use the recovery phrase with `dfs init --recover`")]
    Missing(PathBuf),
    /// A file cannot be opened.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why; [`KeyFileError::PassphraseNeeded`] asks for a passphrase.
        source: KeyFileError,
    },
    /// A file holds something else than it should.
    #[error(
        "{path}: {reason}; restore it from a backup, or use the recovery phrase with `dfs init --recover`"
    )]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl StateDir {
    /// Writes all key files, secrets sealed under the passphrase if there is one. Each file is replaced whole, durably.
    pub fn write_keys(&self, keys: &Keyring, passphrase: Option<&Passphrase>) -> Result<(), KeysError> {
        self.write_device_key(&keys.device, passphrase)?;
        if let Some(volume) = &keys.volume {
            self.write_volume_keys(volume, passphrase)?;
        }
        if let Some(root) = &keys.root {
            self.write_root(root, passphrase)?;
        }
        files::replace(&self.key_path(GROUP), &keys.group_public)?;
        self.write_certificate(&keys.certificate)
    }

    /// Replaces the volume keys: there is a new epoch.
    pub fn write_volume_keys(
        &self,
        volume: &VolumeKeys,
        passphrase: Option<&Passphrase>,
    ) -> Result<(), KeysError> {
        self.write_secret(VOLUME, KeyKind::Volume, &volume.encode(), passphrase)
    }

    /// Writes the root secret: the device became an admin.
    pub fn write_root(&self, root: &RootSecret, passphrase: Option<&Passphrase>) -> Result<(), KeysError> {
        self.write_secret(ROOT, KeyKind::Root, root.as_bytes(), passphrase)
    }

    /// Writes the device key alone: all that there is before a group has answered.
    pub fn write_device_key(
        &self,
        device: &DeviceKey,
        passphrase: Option<&Passphrase>,
    ) -> Result<(), KeysError> {
        files::make_dir(&self.keys_dir())?;
        self.write_secret(DEVICE, KeyKind::Device, &*device.seed(), passphrase)
    }

    /// Reads the device key; `None` when there is none yet.
    pub fn read_device_key(&self, passphrase: Option<&Passphrase>) -> Result<Option<DeviceKey>, KeysError> {
        self.read_secret(DEVICE, KeyKind::Device, passphrase)?
            .map(|bytes| Ok(DeviceKey::from_bytes(&*self.exactly(DEVICE, &bytes)?)))
            .transpose()
    }

    /// Replaces the certificate: it was renewed.
    pub fn write_certificate(&self, certificate: &Certificate) -> Result<(), KeysError> {
        Ok(files::replace(
            &self.key_path(CERTIFICATE),
            &certificate.encode(),
        )?)
    }

    /// Whether reading the keys takes a passphrase.
    pub fn keys_are_sealed(&self) -> Result<bool, KeysError> {
        let path = self.key_path(DEVICE);
        let file = self.read_required(DEVICE, KEY_FILE_MAX)?;
        key_file::is_sealed(&file).map_err(|source| KeysError::File { path, source })
    }

    /// Reads all key files.
    pub fn read_keys(&self, passphrase: Option<&Passphrase>) -> Result<Keyring, KeysError> {
        let device = self
            .read_device_key(passphrase)?
            .ok_or_else(|| KeysError::Missing(self.key_path(DEVICE)))?;
        let volume = self
            .read_secret(VOLUME, KeyKind::Volume, passphrase)?
            .map(|bytes| VolumeKeys::decode(&bytes).map_err(|e| self.unfit(VOLUME, e)))
            .transpose()?;
        let root = self
            .read_secret(ROOT, KeyKind::Root, passphrase)?
            .map(|bytes| {
                self.exactly(ROOT, &bytes)
                    .map(|bytes| RootSecret::from_bytes(*bytes))
            })
            .transpose()?;
        let group_public = *self.exactly(GROUP, &self.read_required(GROUP, KEY_FILE_MAX)?)?;
        let certificate = Certificate::decode(&self.read_required(CERTIFICATE, CERTIFICATE_MAX)?)
            .map_err(|e| self.unfit(CERTIFICATE, e))?;
        // Its dates are the node's business: an expired certificate keeps nobody from his own files.
        let issued = certificate.membership().issued;
        certificate
            .verify_for(&device.public(), &group_public, issued)
            .map_err(|e| {
                self.unfit(
                    CERTIFICATE,
                    format!("it does not fit group.pub and device.key: {e}"),
                )
            })?;
        Ok(Keyring {
            device,
            volume: volume.map(Arc::new),
            root,
            group_public,
            certificate,
            passphrase: None,
        })
    }

    fn write_secret(
        &self,
        name: &str,
        kind: KeyKind,
        secret: &[u8],
        passphrase: Option<&Passphrase>,
    ) -> Result<(), KeysError> {
        let path = self.key_path(name);
        let file = key_file::encode(kind, secret, passphrase).map_err(|source| KeysError::File {
            path: path.clone(),
            source,
        })?;
        Ok(files::replace(&path, &file)?)
    }

    fn read_secret(
        &self,
        name: &str,
        kind: KeyKind,
        passphrase: Option<&Passphrase>,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, KeysError> {
        let path = self.key_path(name);
        let Some(file) = files::read(&path, KEY_FILE_MAX)? else {
            return Ok(None);
        };
        let file = Zeroizing::new(file);
        let (found, secret) =
            key_file::decode(&file, passphrase).map_err(|source| KeysError::File { path, source })?;
        if found != kind {
            return Err(self.unfit(name, "it is the file of another key"));
        }
        Ok(Some(secret))
    }

    fn read_required(&self, name: &str, max: usize) -> Result<Zeroizing<Vec<u8>>, KeysError> {
        let path = self.key_path(name);
        match files::read(&path, max)? {
            Some(bytes) => Ok(Zeroizing::new(bytes)),
            None => Err(KeysError::Missing(path)),
        }
    }

    fn exactly(&self, name: &str, bytes: &[u8]) -> Result<Zeroizing<[u8; 32]>, KeysError> {
        <[u8; 32]>::try_from(bytes)
            .map(Zeroizing::new)
            .map_err(|_| self.unfit(name, "it is not 32 bytes long"))
    }

    fn unfit(&self, name: &str, reason: impl ToString) -> KeysError {
        KeysError::Unfit {
            path: self.key_path(name),
            reason: reason.to_string(),
        }
    }

    fn keys_dir(&self) -> PathBuf {
        self.path().join("keys")
    }

    fn key_path(&self, name: &str) -> PathBuf {
        self.keys_dir().join(Path::new(name))
    }
}

const DEVICE: &str = "device.key";
const VOLUME: &str = "volume.key";
const ROOT: &str = "root.key";
const GROUP: &str = "group.pub";
const CERTIFICATE: &str = "certificate";
