//! What this node stores for the DHT: members' address records and provider records, in memory, under bounds of our own.
//!
//! Kademlia's own memory store counts everybody's records against one small limit and drops expired ones only when asked for them; this
//! one bounds what each peer may leave here, and sweeps. Invariant: a value is stored only if it is a valid [`AddressRecord`]; the roster and heads
//! are not stored at all, but merged into what this node knows, which is what it answers with; providers
//! come from authenticated members only (`gated`), for themselves only (Kademlia checks the source).

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{ProviderRecord, Record, RecordKey};

use crate::base::clock::Clock;
use crate::keys::head::HEAD_LEN;

use super::address_record::{AddressRecord, RECORD_MAX};
use super::heads::Heads;
use super::members::Members;
use super::peers::{ADDRESSES_MAX, PEERS_MAX};

/// Most provider records in all.
const PROVIDERS_MAX: usize = 262_144;
/// Most provider records that one peer may leave here.
const PER_PEER_MAX: usize = super::announce::BUDGET_MAX;
/// Most providers remembered of one file.
const PER_KEY_MAX: usize = 20;
/// Records that one peer may leave here at once, and per second on average.
const BURST: f64 = 8192.0;
const RATE: f64 = 1024.0;
/// Provider records are forgotten after this, unless renewed.
pub(super) const PROVIDER_TTL: Duration = Duration::from_secs(48 * 3600);
/// Expired records are swept at most this often.
const SWEEP: Duration = Duration::from_secs(60);

/// The store.
pub(super) struct Records {
    own: PeerId,
    group_public: [u8; 32],
    clock: Arc<dyn Clock>,
    /// Whose roster is kept under its own key: always as this node knows it.
    members: Option<(RecordKey, Arc<Members>)>,
    /// The heads that this node knows, each under its own key.
    heads: Option<Arc<Heads>>,
    values: HashMap<RecordKey, Record>,
    providers: HashMap<RecordKey, Vec<ProviderRecord>>,
    per_peer: HashMap<PeerId, Account>,
    count: usize,
    swept: Instant,
}

struct Account {
    records: usize,
    tokens: f64,
    filled: Instant,
}

impl Records {
    /// An empty store of the node `own`.
    pub(super) fn new(own: PeerId, group_public: [u8; 32], clock: Arc<dyn Clock>) -> Self {
        Self {
            own,
            group_public,
            clock,
            members: None,
            heads: None,
            values: HashMap::new(),
            providers: HashMap::new(),
            per_peer: HashMap::new(),
            count: 0,
            swept: Instant::now(),
        }
    }

    /// Also keeps the roster of these, and these heads.
    pub(super) fn with(mut self, members: &Arc<Members>, heads: &Arc<Heads>) -> Self {
        self.heads = Some(Arc::clone(heads));
        self.members = Some((RecordKey::new(&members.record_key()), Arc::clone(members)));
        self
    }

    fn roster(&self, key: &RecordKey) -> Option<&Arc<Members>> {
        let (of, members) = self.members.as_ref()?;
        (of == key).then_some(members)
    }

    fn sweep(&mut self, now: Instant) {
        if now < self.swept + SWEEP {
            return;
        }
        self.swept = now;
        self.values.retain(|_, record| !record.is_expired(now));
        for account in self.per_peer.values_mut() {
            account.records = 0;
        }
        self.count = 0;
        self.providers.retain(|_, providers| {
            providers.retain(|p| !p.is_expired(now));
            for provider in providers.iter() {
                if let Some(account) = self.per_peer.get_mut(&provider.provider) {
                    account.records += 1;
                }
            }
            self.count += providers.len();
            !providers.is_empty()
        });
        self.per_peer.retain(|_, account| {
            account.fill(now);
            account.records > 0 || account.tokens < BURST
        });
    }
}

impl Account {
    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * RATE).min(BURST);
        self.filled = now;
    }
}

impl RecordStore for Records {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        match self.roster(key) {
            Some(members) => Some(Cow::Owned(Record::new(key.clone(), members.record()))),
            None => match self.heads.as_ref().and_then(|heads| heads.record(key.as_ref())) {
                Some(head) => Some(Cow::Owned(Record::new(key.clone(), head))),
                None => self.values.get(key).map(Cow::Borrowed),
            },
        }
    }

    fn put(&mut self, record: Record) -> Result<()> {
        let now = Instant::now();
        self.sweep(now);
        if let Some(members) = self.roster(&record.key) {
            return members.mail(&record.value).map_err(|_| Error::ValueTooLarge);
        }
        if let Some(heads) = self.heads.as_ref().filter(|_| record.value.len() == HEAD_LEN) {
            let taken = heads.mail(record.key.as_ref(), &record.value);
            if taken.is_ok() {
                return Ok(());
            }
        }
        if record.value.len() > RECORD_MAX {
            return Err(Error::ValueTooLarge);
        }
        // Kademlia knows no error for "not valid".
        let new = AddressRecord::decode(&record.value).map_err(|_| Error::ValueTooLarge)?;
        if let Err(why) = new.verify(record.key.as_ref(), &self.group_public, self.clock.now()) {
            tracing::debug!("refused an address record: {why}");
            return Err(Error::ValueTooLarge);
        }
        if let Some(old) = self.values.get(&record.key) {
            if AddressRecord::decode(&old.value).is_ok_and(|old| old.issued > new.issued) {
                return Ok(());
            }
        } else if self.values.len() >= PEERS_MAX {
            return Err(Error::MaxRecords);
        }
        self.values.insert(record.key.clone(), record);
        Ok(())
    }

    fn remove(&mut self, key: &RecordKey) {
        self.values.remove(key);
    }

    /// Nothing: what is renewed, and when, is decided by `announce` and the swarm actor.
    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, mut record: ProviderRecord) -> Result<()> {
        let now = Instant::now();
        self.sweep(now);
        if record.key.as_ref().len() != 32 {
            return Err(Error::ValueTooLarge);
        }
        record.addresses.truncate(ADDRESSES_MAX);
        let latest = now + PROVIDER_TTL;
        record.expires = Some(record.expires.map_or(latest, |at| at.min(latest)));
        let own = record.provider == self.own;
        let account = self.per_peer.entry(record.provider).or_insert(Account {
            records: 0,
            tokens: BURST,
            filled: now,
        });
        account.fill(now);
        if account.tokens < 1.0 && !own {
            return Err(Error::MaxProvidedKeys);
        }
        account.tokens -= 1.0;
        let providers = self.providers.entry(record.key.clone()).or_default();
        if let Some(old) = providers.iter_mut().find(|p| p.provider == record.provider) {
            *old = record;
            return Ok(());
        }
        let full = account.records >= PER_PEER_MAX || self.count >= PROVIDERS_MAX;
        if (full || providers.len() >= PER_KEY_MAX) && !own {
            if providers.is_empty() {
                self.providers.remove(&record.key);
            }
            return Err(Error::MaxProvidedKeys);
        }
        account.records += 1;
        self.count += 1;
        providers.push(record);
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let now = Instant::now();
        let found = self.providers.get(key).into_iter().flatten();
        found.filter(|p| !p.is_expired(now)).cloned().collect()
    }

    /// Nothing: see [`Records::records`].
    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, key: &RecordKey, peer: &PeerId) {
        let Some(providers) = self.providers.get_mut(key) else {
            return;
        };
        let before = providers.len();
        providers.retain(|p| p.provider != *peer);
        let removed = before - providers.len();
        self.count -= removed;
        if let Some(account) = self.per_peer.get_mut(peer) {
            account.records = account.records.saturating_sub(removed);
        }
        if providers.is_empty() {
            self.providers.remove(key);
        }
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
