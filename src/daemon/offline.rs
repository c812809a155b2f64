//! Work on a volume that no daemon has: opened for one command, closed after it.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::assembly::{Assembly, Options};
use super::run::take_lock;
use super::{Located, PassphraseSource, copy};
use crate::control::{Copied, Progress};

/// Copies plain files into a volume that no daemon has; see [`crate::control::Request::Import`].
pub fn import(
    located: &Located,
    passphrase: PassphraseSource,
    from: &[PathBuf],
    into: &Path,
    report: &mut dyn FnMut(Progress) -> std::io::Result<()>,
) -> anyhow::Result<Copied> {
    with_volume(located, passphrase, |volume| {
        Ok(copy::import(volume, from, into, report)?)
    })
}

/// Copies files out of a volume that no daemon has; see [`crate::control::Request::Export`]. Without a network: only what is here.
pub fn export(
    located: &Located,
    passphrase: PassphraseSource,
    from: &Path,
    to: &Path,
    report: &mut dyn FnMut(Progress) -> std::io::Result<()>,
) -> anyhow::Result<Copied> {
    with_volume(located, passphrase, |volume| {
        Ok(copy::export(volume, from, to, report)?)
    })
}

fn with_volume<T>(
    located: &Located,
    passphrase: PassphraseSource,
    work: impl FnOnce(&crate::volume::Volume) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let lock = take_lock(located)?;
    let keys = located.unlock(passphrase)?;
    let options = Options {
        no_network: true,
        ..Options::default()
    };
    let assembly = Assembly::open(located, keys, &options, true)?;
    let volume = assembly
        .volume()
        .context("this device is a host and cannot read the volume")?;
    let done = work(volume);
    let closed = assembly.close();
    drop(lock);
    let done = done?;
    closed.context("not everything could be written back")?;
    Ok(done)
}
