//! From a folder to its state and keys: what every start and every command without a daemon begins with.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use zeroize::Zeroizing;

use super::{PassphraseSource, Places};
use crate::control::Failure;
use crate::folder::marker::{LoadError, Marker};
use crate::folder::state::{Keyring, StateDir, default_path};
use crate::keys::key_file::Passphrase;

/// Longest passphrase, in bytes.
const PASSPHRASE_MAX: u64 = 4096;

/// A folder that is a volume, with its state directory.
#[derive(Debug)]
pub struct Located {
    /// The folder, absolute.
    pub folder: PathBuf,
    /// What its `.dfs` says.
    pub marker: Marker,
    /// The state directory.
    pub state: StateDir,
}

/// Finds the state of the volume in `folder` (absolute): at `state` if given, else where its marker says, else in the default place.
pub fn locate(places: &Places, folder: &Path, state: Option<&Path>) -> anyhow::Result<Located> {
    let what = format!("cannot open the volume in {}", folder.display());
    let marker = match Marker::load(folder) {
        Ok(Some(marker)) => marker,
        Ok(None) => {
            return Err(Failure::new(
                what,
                "there is no volume: the folder has no .dfs",
                format!(
                    "create one with `dfs init {}`, or join one with `dfs join`",
                    folder.display()
                ),
            )
            .into());
        }
        Err(e @ LoadError::Mount(_)) => {
            return Err(Failure::new(what, e, "name the folder, or unmount first").into());
        }
        Err(e) => {
            return Err(Failure::new(
                what,
                e,
                "restore the .dfs file, or remove it and run `dfs init --recover`",
            )
            .into());
        }
    };
    let path = match (state, marker.state.as_deref()) {
        (Some(path), _) | (None, Some(path)) => path.to_owned(),
        (None, None) => default_path(&places.state_home, &marker.volume),
    };
    let state = StateDir::open(&path).map_err(|e| anyhow::Error::new(e).context(what))?;
    Ok(Located {
        folder: folder.to_owned(),
        marker,
        state,
    })
}

impl Located {
    /// Reads the keys, with a passphrase if they need one, and checks that they are this volume's.
    pub fn unlock(&self, passphrase: PassphraseSource) -> anyhow::Result<Keyring> {
        let passphrase = if self.state.keys_are_sealed()? {
            Some(
                passphrase
                    .read()
                    .context("cannot read the passphrase of the keys")?,
            )
        } else {
            None
        };
        let mut keys = self.state.read_keys(passphrase.as_ref())?;
        keys.passphrase = passphrase.map(Arc::new);
        if let Some(volume) = &keys.volume
            && volume.volume() != self.marker.volume
        {
            return Err(Failure::new(
                format!("cannot open the volume in {}", self.folder.display()),
                format!(
                    "its .dfs names volume {}, but the keys in {} are those of volume {}",
                    self.marker.volume.short(),
                    self.state.path().display(),
                    volume.volume().short()
                ),
                "name the right state directory with --state",
            )
            .into());
        }
        Ok(keys)
    }
}

impl PassphraseSource {
    fn read(self) -> anyhow::Result<Passphrase> {
        let text = match self {
            Self::File(path) => {
                let mut text = Zeroizing::new(String::with_capacity(PASSPHRASE_MAX as usize));
                File::open(&path)
                    .and_then(|file| file.take(PASSPHRASE_MAX).read_to_string(&mut text))
                    .with_context(|| path.display().to_string())?;
                let line = text.split(['\n', '\r']).next().unwrap_or_default();
                Zeroizing::new(line.to_owned())
            }
            Self::Ask(ask) => ask().context("no answer on the terminal")?,
            Self::None => {
                return Err(Failure::new(
                    "cannot open the keys",
                    "they are sealed under a passphrase, and there is no terminal to ask on",
                    "name a file that holds it with --passphrase-file, or with -o passphrase_file= for mount",
                )
                .into());
            }
        };
        Passphrase::new(text).context("it is empty")
    }
}

/// The state must not lie under what may become the mount, nor the folder in the state: either would wait for itself.
pub(super) fn refuse_overlap(what: &str, folder: &Path, state: &Path) -> anyhow::Result<()> {
    let (inner, outer) = if state.starts_with(folder) {
        ("the state directory", folder)
    } else if folder.starts_with(state) {
        ("the folder", state)
    } else {
        return Ok(());
    };
    Err(Failure::new(
        what,
        format!("{inner} would be inside {}", outer.display()),
        "name another state directory with --state",
    )
    .into())
}
