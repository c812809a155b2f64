//! The rooms put together for one volume: store, network, volume. Closed in the opposite order, whatever happens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use parking_lot::Mutex;

use super::Located;
use super::events::Hub;
use super::network::Networking;
use super::prefetch::Prefetching;
use super::replication::{Own, Replication, ShardFetch, Shards};
use super::trees::{self, Trees};
use super::watchdog;
use crate::base::{DeviceId, GroupId, work};
use crate::folder::Folder;
use crate::folder::config::Config;
use crate::folder::keep::Keep;
use crate::folder::prefetch::Prefetch;
use crate::folder::state::{Keyring, StateDir};
use crate::keys::DeviceKey;
use crate::keys::certificate::Role;
use crate::store::{BlockStore, Fetch, NoFetch, ReplicaStore, SqliteStore, StoreOptions, Tiered};
use crate::sync::Journal;
use crate::volume::{Announce, Retention, StatusText, Volume, VolumeOptions};

/// What the command line says over `dfs.toml`; `None` leaves a setting as it is.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How long a read waits for blocks that only others have.
    pub timeout: Option<Duration>,
    /// Bytes of blocks kept here; zero: no bound.
    pub cache_size: Option<u64>,
    /// Bytes kept for other members.
    pub quota: Option<u64>,
    /// Guests are kept blocks for, as far as the quota goes.
    pub public: bool,
    /// fsync waits for replicas too.
    pub fsync_replicas: bool,
    /// Nothing may be changed.
    pub read_only: bool,
    /// No node at all.
    pub no_network: bool,
    /// Addresses to listen on.
    pub listen: Option<Vec<SocketAddr>>,
}

/// Who this device is.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) device: DeviceId,
    pub(super) group: GroupId,
    pub(super) role: Role,
}

/// An open volume with everything below it.
pub(super) struct Assembly {
    identity: Identity,
    store: Arc<SqliteStore>,
    network: Option<Arc<Networking>>,
    replication: Option<Arc<Replication>>,
    tiered: Arc<Tiered>,
    volume: Option<Arc<Volume>>,
    /// Where the volume's tree was, if that is known.
    journal: Option<Journal>,
    /// Whether the tree is committed.
    syncs: bool,
    read_only: bool,
    timeout: Duration,
    metrics: Option<SocketAddr>,
    keep: Keep,
    prefetch: Prefetch,
    closed: Mutex<bool>,
}

impl Assembly {
    /// Opens everything. `mounting`: the volume is needed, and so are its keys.
    pub(super) fn open(
        located: &Located,
        keys: Keyring,
        options: &Options,
        mounting: bool,
    ) -> anyhow::Result<Self> {
        // Before anything is mounted over it.
        let folder = Folder::open(&located.folder)
            .with_context(|| format!("cannot open the folder {}", located.folder.display()))?;
        let config = merged(located.state.config()?, options);
        let identity = Identity {
            device: keys.device.id(),
            group: keys.certificate.membership().group,
            role: keys.certificate.membership().role,
        };
        let cache_size = config.store.cache_size;
        let store = Arc::new(SqliteStore::open(
            &located.state.store_path(),
            StoreOptions { cache_size },
        )?);
        let blocks: Arc<dyn BlockStore> = Arc::clone(&store) as Arc<dyn BlockStore>;
        let network = start_network(&config, &keys, located, &blocks);
        let shards = network
            .as_ref()
            .map(|network| Shards::new(&store, network.node()));
        let fetch: Arc<dyn Fetch> = match &shards {
            Some(shards) => Arc::new(ShardFetch::start(shards)?),
            None => Arc::new(NoFetch),
        };
        let tiered = Tiered::new(blocks, fetch, config.network.timeout);
        let replication = shards
            .as_ref()
            .and_then(|shards| start_replication(&config, &keys, located, &store, &tiered, shards));
        let mut assembly = Self {
            identity,
            store,
            network,
            replication,
            tiered,
            volume: None,
            journal: None,
            syncs: config.sync.enabled,
            read_only: false,
            timeout: config.network.timeout,
            metrics: config.metrics.listen,
            keep: config.history.keep.clone(),
            prefetch: config.sync.prefetch.clone(),
            closed: Mutex::new(false),
        };
        let read_only = read_only(assembly.identity.role, options);
        assembly.read_only = read_only.is_some();
        if let Some(volume_keys) = keys.volume {
            let journal = load_journal(&located.state);
            let volume = Volume::start(
                folder,
                volume_keys,
                Arc::clone(&assembly.tiered),
                VolumeOptions {
                    timeout: config.network.timeout,
                    write_budget: config.volume.write_budget,
                    sync_interval: config.volume.sync_interval,
                    read_only,
                    unclean: assembly.store.opened_unclean(),
                    remote: assembly.network.is_some(),
                    fsync_replicas: options.fsync_replicas,
                    announce: assembly.network.as_ref().map(announcer),
                    retention: assembly
                        .replication
                        .as_ref()
                        .map(|replication| Arc::clone(replication) as Arc<dyn Retention>),
                    status: Some(status_text(&assembly)),
                    retained: journal.as_ref().map(Journal::moments),
                    state: Some(located.state.clone()),
                },
            )?;
            if assembly.store.opened_unclean() && !assembly.read_only {
                volume.remove_leftovers()?;
            }
            if let Some(replication) = &assembly.replication {
                replication.name_for(&volume)?;
            }
            assembly.volume = Some(volume);
            assembly.journal = journal;
        } else if mounting {
            anyhow::bail!(
                "this device is a host: it keeps the group's blocks and cannot read them; use `dfs serve`"
            );
        }
        Ok(assembly)
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn store(&self) -> &Arc<SqliteStore> {
        &self.store
    }

    /// Where blocks come from.
    pub(super) fn tiered(&self) -> &Arc<Tiered> {
        &self.tiered
    }

    /// What keeps copies elsewhere; none without a network.
    pub(super) fn replication(&self) -> Option<&Arc<Replication>> {
        self.replication.as_ref()
    }

    /// The network; none when it is off or could not be started.
    pub(super) fn network(&self) -> Option<&Arc<Networking>> {
        self.network.as_ref()
    }

    /// Where the page for Prometheus is.
    pub(super) fn metrics(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// How long an operation may wait for other computers.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether nothing may be changed.
    pub(super) fn read_only(&self) -> bool {
        self.read_only
    }

    /// The volume; a host has none.
    pub(super) fn volume(&self) -> Option<&Arc<Volume>> {
        self.volume.as_ref()
    }

    /// Begins to commit the volume's tree, and to compare it with those of others. None on a host, where the owner wants nothing changed,
    /// and where it is not known what was committed before. What happens is told to `hub`.
    pub(super) fn start_trees(&self, located: &Located, key: DeviceKey, hub: &Arc<Hub>) -> Option<Trees> {
        let (volume, journal) = (self.volume.as_ref()?, self.journal.clone()?);
        let reads_only = self.identity.role == Role::Reader;
        if !self.syncs || (self.read_only && !reads_only) {
            return None;
        }
        let own = trees::Own {
            key,
            group: self.identity.group,
            volume: located.marker.volume,
            may_write: !self.read_only,
        };
        let node = self.network.as_ref().map(|network| Arc::clone(network.node()));
        Trees::start(
            volume,
            &located.state,
            journal,
            node,
            (own, self.keep.clone()),
            hub,
        )
        .inspect_err(|error| tracing::error!(%error, "nothing is committed: no thread for it"))
        .ok()
    }

    /// Begins to bring content here before it is read. None without a network, and where the tree is not followed.
    pub(super) fn start_prefetch(
        &self,
        located: &Located,
        trees: Option<&Arc<Trees>>,
    ) -> Option<Prefetching> {
        let (volume, trees, network) = (self.volume.as_ref()?, trees?, self.network.as_ref()?);
        Prefetching::start(volume, trees, network, &located.state, &self.prefetch)
            .inspect_err(
                |error| tracing::error!(%error, "no content is brought here ahead: no thread for it"),
            )
            .ok()
    }

    /// Writes everything back, makes it durable and closes the store; a second call does nothing. Goes on after a failure, and reports the first.
    pub(super) fn close(&self) -> anyhow::Result<()> {
        if std::mem::replace(&mut *self.closed.lock(), true) {
            return Ok(());
        }
        let written = match &self.volume {
            Some(volume) => volume.shutdown().context("the volume"),
            None => Ok(()),
        };
        if let Some(replication) = &self.replication {
            replication.stop();
        }
        if let Some(network) = &self.network {
            network.stop();
        }
        self.tiered.close();
        let closed = self.store.close().context("the store");
        written.and(closed)
    }
}

impl Drop for Assembly {
    fn drop(&mut self) {
        if let Err(e) = self.close() {
            tracing::error!("not everything could be written back: {e:#}");
        }
    }
}

/// A journal that cannot be read keeps nobody from his files either, but nothing is committed and nothing is thrown away.
fn load_journal(state: &StateDir) -> Option<Journal> {
    let loaded = Journal::load(state);
    loaded
        .inspect_err(|error| tracing::error!(%error, "it is not known what was committed: nothing is, and no space is given back"))
        .ok()
}

/// Replication that cannot be started keeps nobody from his own files either.
fn start_replication(
    config: &Config,
    keys: &Keyring,
    located: &Located,
    store: &Arc<SqliteStore>,
    tiered: &Arc<Tiered>,
    shards: &Arc<Shards>,
) -> Option<Arc<Replication>> {
    let key = DeviceKey::from_bytes(&keys.device.seed());
    let offer = &config.replication;
    let guest = keys.certificate.membership().role == Role::Guest;
    let own = Own {
        zone: offer.zone.clone().unwrap_or_else(machine),
        quota: offer
            .quota
            .unwrap_or_else(|| share_of_disk(&located.state.store_path(), store)),
        public: offer.public.unwrap_or(if guest { u64::MAX } else { 0 }),
        allowance: offer.allowance,
        reserve: offer.reserve,
        wanted: offer
            .redundancy
            .map_or(offer.replicas, |groups| groups.parity + 1),
        groups: offer.redundancy.map(|groups| (groups.data, groups.parity)),
        has_volume: keys.volume.is_some(),
        cache_size: config.store.cache_size,
        key,
    };
    Replication::start(own, store, tiered, shards, &located.state)
        .inspect_err(|error| tracing::error!(%error, "nothing is replicated: no thread for it"))
        .ok()
        .map(Arc::new)
}

/// What fails together unless the owner says otherwise: this computer.
fn machine() -> String {
    let id = std::fs::read("/etc/machine-id").unwrap_or_default();
    if id.is_empty() {
        return String::new();
    }
    // Its id is nobody's business.
    let hash = blake3::derive_key("dfs 2026 zone of a computer", &id);
    format!("computer-{}", data_encoding::HEXLOWER.encode(&hash[..6]))
}

/// What is given to others where the owner has not said: a quarter of what is free or given already.
fn share_of_disk(path: &std::path::Path, store: &SqliteStore) -> u64 {
    let dir = path.parent().unwrap_or(path);
    let free = rustix::fs::statvfs(dir).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    (free + store.held_bytes().unwrap_or(0)) / 4
}

/// A network that cannot be had keeps nobody from his own files.
fn start_network(
    config: &Config,
    keys: &Keyring,
    located: &Located,
    store: &Arc<dyn BlockStore>,
) -> Option<Arc<Networking>> {
    if !config.network.enabled {
        return None;
    }
    match Networking::start(&config.network, keys, located, Arc::clone(store)) {
        Ok(network) => Some(Arc::new(network)),
        Err(e) => {
            tracing::error!("no network: {e}");
            None
        }
    }
}

/// What `.dfs/status` in the mount says: what the daemon knows without asking anyone.
fn status_text(assembly: &Assembly) -> StatusText {
    let (identity, store) = (assembly.identity.clone(), Arc::clone(&assembly.store));
    let (network, timeout) = (assembly.network.clone(), assembly.timeout);
    Arc::new(move || {
        let stats = store.stats().unwrap_or_default();
        let peers = network
            .as_ref()
            .and_then(|network| network.peers().ok())
            .unwrap_or_default();
        let text = serde_json::json!({
            "pid": std::process::id(),
            "device": identity.device,
            "group": identity.group,
            "role": identity.role.to_string(),
            "store": stats,
            "peers": peers,
            "work": work::so_far(),
            "stalls": watchdog::stalls(None, timeout),
            "warnings": network.as_ref().map(|network| network.warnings()).unwrap_or_default(),
        });
        format!("{text:#}\n").into_bytes()
    })
}

fn announcer(network: &Arc<Networking>) -> Announce {
    let node = Arc::clone(network.node());
    Arc::new(move |root| node.announce(root))
}

fn merged(mut config: Config, options: &Options) -> Config {
    if let Some(timeout) = options.timeout {
        config.network.timeout = timeout;
    }
    if let Some(cache_size) = options.cache_size {
        config.store.cache_size = cache_size;
    }
    if options.quota.is_some() {
        config.replication.quota = options.quota;
    }
    if options.public {
        config.replication.public = Some(u64::MAX);
    }
    if let Some(listen) = &options.listen {
        config.network.listen.clone_from(listen);
    }
    config.network.enabled &= !options.no_network;
    config
}

fn read_only(role: Role, options: &Options) -> Option<&'static str> {
    match role {
        Role::Guest | Role::Writer | Role::Admin if !options.read_only => None,
        Role::Guest | Role::Writer | Role::Admin => Some("mounted read-only"),
        Role::Reader | Role::Host => Some("this device is a reader of the group: it may not write"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_goes_over_the_file() {
        let options = Options {
            timeout: Some(Duration::from_secs(2)),
            cache_size: Some(1 << 30),
            no_network: true,
            ..Options::default()
        };
        let config = merged(Config::default(), &options);
        assert_eq!(config.network.timeout, Duration::from_secs(2));
        assert_eq!(config.store.cache_size, 1 << 30);
        assert!(!config.network.enabled);
        assert_eq!(merged(Config::default(), &Options::default()), Config::default());
    }

    #[test]
    fn who_may_write() {
        let free = Options::default();
        assert!(read_only(Role::Admin, &free).is_none() && read_only(Role::Writer, &free).is_none());
        assert!(read_only(Role::Reader, &free).is_some());
        let locked = Options {
            read_only: true,
            ..free
        };
        assert!(read_only(Role::Admin, &locked).is_some());
    }
}
