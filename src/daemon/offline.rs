//! Work on a volume that no daemon has: opened for one command, closed after it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;

use super::admit::Admission;
use super::assembly::{Assembly, Options};
use super::keeper::Keeper;
use super::network::{self, StateFiles};
use super::run::take_lock;
use super::{Located, PassphraseSource, copy, membership};
use crate::base::clock::SystemClock;
use crate::control::{Changed, Copied, Group, Progress};
use crate::node::{Admit, Members, NodeState, PeerInfo, remembered_peers};

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

/// Lists the group; see [`crate::control::Request::Members`]. As this device last knew it.
pub fn members(located: &Located, passphrase: PassphraseSource) -> anyhow::Result<Group> {
    with_group(located, passphrase, |group, peers| {
        Ok(membership::list(group, peers))
    })
}

/// Removes a device from the group; see [`crate::control::Request::Remove`]. Others hear of it when this device next meets them.
pub fn remove(located: &Located, passphrase: PassphraseSource, device: &str) -> anyhow::Result<Changed> {
    with_group(located, passphrase, |group, peers| {
        Ok(membership::remove(group, peers, device)?)
    })
}

/// Gives a device another role; see [`crate::control::Request::Role`]. Others hear of it when this device next meets them.
pub fn set_role(
    located: &Located,
    passphrase: PassphraseSource,
    device: &str,
    role: &str,
) -> anyhow::Result<Changed> {
    with_group(located, passphrase, |group, peers| {
        Ok(membership::set_role(group, peers, device, role)?)
    })
}

fn with_group<T>(
    located: &Located,
    passphrase: PassphraseSource,
    work: impl FnOnce(&Members, &[PeerInfo]) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let lock = take_lock(located)?;
    let keys = located.unlock(passphrase)?;
    let state: Arc<dyn NodeState> = Arc::new(StateFiles(located.state.clone()));
    let peers = remembered_peers(keys.device.id(), &*state);
    let group = Members::open(
        &network::identity(&keys),
        "",
        state,
        Arc::new(SystemClock),
        Admission::of(&keys).map(|admission| Arc::new(admission) as Arc<dyn Admit>),
        Some(Arc::new(Keeper::of(&keys, located))),
        false,
    )?;
    let done = work(&group, &peers);
    drop(lock);
    done
}
