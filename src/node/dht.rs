//! The DHT's part of the swarm actor: publishing this device's addresses and files, finding members and providers.
//!
//! Invariant: at most [`QUERIES`] questions are under way, and nothing that the DHT gives is used before its signature was checked;
//! providers are only dialled, and then have to show their certificates like everybody.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::kad::{self, GetProvidersOk, GetRecordOk, QueryResult, Quorum, Record, RecordKey};

use crate::base::{BlockId, RootId};

use super::address_record::AddressRecord;
use super::exchange::ToExchange;
use super::find::{Find, HOPS};
use super::local::{device_of, peer_of, public_of};
use super::swarm::{Actor, without_peer};

/// A record that reached nobody is tried again after this.
const RECORD_RETRY: Duration = Duration::from_secs(60);
/// The address record is renewed after this; well within its validity.
const RECORD_DAILY: Duration = Duration::from_secs(20 * 3600);
/// The roster is published and asked for after this, and some seconds after it has changed.
const ROSTER_HOURLY: Duration = Duration::from_secs(3600);
/// DHT queries under way at one time.
pub(super) const QUERIES: usize = 32;
/// What a query is for.
pub(super) enum Query {
    Providers(RootId, HashSet<PeerId>),
    OwnRecord,
    Addresses([u8; 32]),
    Roster,
    OwnHead,
    Head,
}

impl Actor {
    /// Asks the DHT for providers, as many questions at a time as are allowed.
    pub(super) async fn begin_lookups(&mut self) {
        while self.queries.len() < 2 * QUERIES {
            let Some(root) = self.lookups.pop() else {
                return;
            };
            let key = RecordKey::new(&root.0);
            let query = self.swarm.behaviour_mut().kad.get().get_providers(key);
            self.queries.insert(query, Query::Providers(root, HashSet::new()));
        }
    }

    /// Asks the DHT where a member is.
    pub(super) fn ask_addresses(&mut self, public: [u8; 32]) {
        let connected = self.connections.values().any(|c| c.member.is_some());
        if connected && self.queries.len() < QUERIES {
            let key = RecordKey::new(&AddressRecord::key(&self.local.group, &public));
            let query = self.swarm.behaviour_mut().kad.get().get_record(key);
            self.queries.insert(query, Query::Addresses(public));
        }
    }

    /// Searches for blocks from member to member.
    pub(super) async fn search(&mut self, ids: Vec<BlockId>) {
        let mut search = [0; 16];
        if getrandom::fill(&mut search).is_err() {
            return;
        }
        self.local.searches.lock().is_new(search, true, Instant::now());
        let find = Find {
            search,
            hops: HOPS,
            record: self.own_record().encode(),
            ids,
        };
        self.tell(ToExchange::Find {
            find: Box::new(find),
            except: Vec::new(),
        })
        .await;
    }

    /// Connects to a member that searches for what is here.
    pub(super) fn reach(&mut self, public: &[u8; 32], addresses: &[String]) {
        if !self.book.is_connected(&device_of(public)) {
            self.book.add_addresses(public, addresses, false, Instant::now());
            self.dial_device(public, addresses);
        }
    }

    /// Tells the exchange how many members are not connected, when that changed.
    pub(super) async fn count_absent(&mut self) {
        let own = self.local.identity.device.public();
        let members = self.local.members.publics();
        let absent = |public: &&[u8; 32]| **public != own && !self.book.is_connected(&device_of(public));
        let absent = members.iter().filter(absent).count();
        if absent != self.absent {
            self.absent = absent;
            self.tell(ToExchange::Absent(absent)).await;
        }
    }

    fn own_record(&self) -> AddressRecord {
        let (identity, addresses) = (&self.local.identity, self.addresses());
        let certificate = self.local.members.certificate();
        AddressRecord::issue(&identity.device, certificate, addresses, self.local.clock.now())
    }

    /// Publishes this device's addresses.
    pub(super) fn publish_record(&mut self) {
        let record = self.own_record();
        let key = AddressRecord::key(&self.local.group, &self.local.identity.device.public());
        let record = Record::new(key.to_vec(), record.encode());
        self.record_due = Some(Instant::now() + RECORD_DAILY);
        match self
            .swarm
            .behaviour_mut()
            .kad
            .get()
            .put_record(record, Quorum::One)
        {
            Ok(query) => {
                self.queries.insert(query, Query::OwnRecord);
            }
            Err(e) => tracing::warn!("this device's addresses could not be published: {e}"),
        }
    }

    /// Publishes the roster, and asks what others know of it.
    pub(super) fn exchange_roster(&mut self) {
        let members = std::sync::Arc::clone(&self.local.members);
        let key = RecordKey::new(&members.record_key());
        let record = Record::new(key.clone(), members.record());
        let kad = self.swarm.behaviour_mut().kad.get();
        let asked = kad.get_record(key);
        match kad.put_record(record, Quorum::One) {
            Ok(query) => {
                self.queries.insert(query, Query::Roster);
            }
            Err(e) => tracing::warn!("the roster could not be published: {e}"),
        }
        self.queries.insert(asked, Query::Roster);
        self.roster_due = Instant::now() + ROSTER_HOURLY;
    }

    /// Takes what Kademlia found.
    pub(super) async fn on_kad(&mut self, event: kad::Event) {
        let kad::Event::OutboundQueryProgressed { id, result, step, .. } = event else {
            return;
        };
        match (result, self.queries.get_mut(&id)) {
            (
                QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })),
                Some(Query::Providers(_, found)),
            ) => found.extend(providers),
            (QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))), Some(Query::Addresses(public))) => {
                let public = *public;
                self.addresses_found(&public, &found.record);
            }
            (QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))), Some(Query::Roster)) => {
                if let Err(e) = self.local.members.mail(&found.record.value) {
                    tracing::warn!("the DHT gave a record of the roster that is not valid: {e}");
                }
            }
            (QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))), Some(Query::Head)) => {
                self.head_found(&found.record);
            }
            (QueryResult::PutRecord(result), Some(Query::OwnHead)) => self.heads.published(result.is_ok()),
            (QueryResult::PutRecord(Err(e)), Some(Query::OwnRecord)) => {
                tracing::debug!("this device's addresses reached no other member: {e}");
                self.record_due = Some(Instant::now() + RECORD_RETRY);
            }
            _ => {}
        }
        if !step.last {
            return;
        }
        if let Some(Query::Providers(root, found)) = self.queries.remove(&id) {
            self.connect_providers(&found);
            self.tell_prospects().await;
            self.tell(ToExchange::LookedUp(root)).await;
        }
        self.begin_lookups().await;
    }

    /// Dials the providers that are not connected; the book counts them as prospects.
    fn connect_providers(&mut self, found: &HashSet<PeerId>) {
        for public in found.iter().filter_map(public_of) {
            let device = device_of(&public);
            if device == self.local.identity.device.id() || self.book.is_connected(&device) {
                continue;
            }
            let peer = peer_of(&public);
            let mut addresses = Vec::new();
            if let Some(peer) = peer {
                let kad = self.swarm.behaviour_mut().kad.get();
                for bucket in kad.kbuckets() {
                    for entry in bucket.iter().filter(|e| *e.node.key.preimage() == peer) {
                        addresses.extend(entry.node.value.iter().map(|a| without_peer(a).to_string()));
                    }
                }
            }
            self.book
                .add_addresses(&public, &addresses, false, Instant::now());
            self.dial_device(&public, &addresses);
            self.ask_addresses(public);
        }
    }

    fn addresses_found(&mut self, public: &[u8; 32], record: &Record) {
        let checked = AddressRecord::decode(&record.value).ok().filter(|found| {
            let now = self.local.clock.now();
            found.certificate.membership().device == *public
                && !self.local.members.is_removed(&device_of(public))
                && found
                    .verify(record.key.as_ref(), &self.local.identity.group_public, now)
                    .is_ok()
        });
        match checked {
            Some(found) => {
                self.book
                    .add_addresses(public, &found.addresses, false, Instant::now());
                self.dial_due();
            }
            None => tracing::warn!(
                device = %device_of(public).short(),
                "the DHT gave an address record that is not valid; it is ignored"
            ),
        }
    }
}
