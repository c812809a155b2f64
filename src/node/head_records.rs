//! The swarm actor's part that brings heads through the DHT, to and from members that are never connected at one time.
//!
//! Invariant: however often this device has a new head, it is published at most once in [`PUBLISH`], and the last one always is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::kad::{Quorum, Record, RecordKey};

use super::dht::{QUERIES, Query};
use super::local::device_of;
use super::swarm::Actor;

/// This device's head is published at most this often.
const PUBLISH: Duration = Duration::from_secs(60);
/// It is published again after this, for members that have come meanwhile.
const PUBLISH_AGAIN: Duration = Duration::from_secs(3600);
/// How often the heads of devices that are not connected are asked for.
const ASK: Duration = Duration::from_secs(300);
/// Questions begun at one time.
const ASK_AT_ONCE: usize = 8;
/// The list of heads is saved at most this often, and at the end.
const SAVE: Duration = Duration::from_secs(5);

/// When heads are published and asked for. Pure.
pub(super) struct HeadSchedule {
    /// Hash of the head that was published last, and when.
    published: Option<([u8; 32], Instant)>,
    /// Not before.
    publish_next: Instant,
    ask_next: Instant,
    /// Public keys of devices that are to be asked about.
    asking: VecDeque<[u8; 32]>,
    save_next: Instant,
}

impl HeadSchedule {
    /// Everything is due.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            published: None,
            publish_next: now,
            ask_next: now,
            asking: VecDeque::new(),
            save_next: now,
        }
    }

    /// Whether the head with this hash is to be published now.
    fn publishes(&mut self, hash: [u8; 32], now: Instant) -> bool {
        let fresh = self
            .published
            .is_some_and(|(last, at)| last == hash && now < at + PUBLISH_AGAIN);
        let due = !fresh && now >= self.publish_next;
        if due {
            self.published = Some((hash, now));
            self.publish_next = now + PUBLISH;
        }
        due
    }

    /// Whether what was published has reached anybody; else it is published again.
    pub(super) fn published(&mut self, reached: bool) {
        if !reached {
            self.published = None;
        }
    }

    /// Whether it is time to ask about all devices again.
    fn asks(&mut self, now: Instant) -> bool {
        let due = now >= self.ask_next && self.asking.is_empty();
        if due {
            self.ask_next = now + ASK;
        }
        due
    }

    /// There may be devices that were not asked about.
    fn ask_soon(&mut self, now: Instant) {
        self.ask_next = now;
    }

    /// Whether the list may be saved now.
    pub(super) fn may_save(&self, now: Instant) -> bool {
        now >= self.save_next
    }

    /// The list was saved.
    pub(super) fn saved(&mut self, now: Instant) {
        self.save_next = now + SAVE;
    }
}

impl Actor {
    /// Lets heads follow the roster, and looks at those that came through the DHT.
    pub(super) fn tend_heads(&mut self, roster_changed: bool) {
        if roster_changed {
            self.heads.ask_soon(Instant::now());
        }
        if roster_changed || self.local.heads.has_mail() {
            let heads = Arc::clone(&self.local.heads);
            tokio::task::spawn_blocking(move || {
                heads.settle();
                heads.open_mail();
            });
        }
    }

    /// Publishes this device's head, and asks for those of devices that are not connected, as far as it is due.
    pub(super) fn exchange_heads(&mut self, now: Instant) {
        let own = self.local.identity.device.public();
        let head = self.local.heads.own();
        if self.queries.len() < QUERIES
            && let Some(hash) = head.map(|head| head.hash())
            && self.heads.publishes(hash, now)
        {
            self.publish_head(&own);
        }
        if self.heads.asks(now) {
            let members = &self.local.members;
            let away = |public: &[u8; 32]| {
                let device = device_of(public);
                members.writes(&device) == Some(true) && !self.book.is_connected(&device)
            };
            // This device's own as well: others may know one that is newer than what was put back here.
            self.heads.asking = members.publics().into_iter().filter(away).collect();
        }
        for _ in 0..ASK_AT_ONCE {
            if self.queries.len() >= QUERIES {
                return;
            }
            let Some(public) = self.heads.asking.pop_front() else {
                return;
            };
            let key = RecordKey::new(&self.local.heads.key(&public));
            let query = self.swarm.behaviour_mut().kad.get().get_record(key);
            self.queries.insert(query, Query::Head);
        }
    }

    fn publish_head(&mut self, own: &[u8; 32]) {
        let key = self.local.heads.key(own);
        let Some(head) = self.local.heads.record(&key) else {
            return;
        };
        let record = Record::new(key.to_vec(), head);
        let kad = self.swarm.behaviour_mut().kad.get();
        match kad.put_record(record, Quorum::One) {
            Ok(query) => {
                self.queries.insert(query, Query::OwnHead);
            }
            Err(e) => tracing::warn!("this device's head could not be published: {e}"),
        }
    }

    /// The DHT gave a record under the key of a head.
    pub(super) fn head_found(&self, record: &Record) {
        if let Err(e) = self.local.heads.mail(record.key.as_ref(), &record.value) {
            tracing::warn!("the DHT gave a record of a head that is not valid: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_head_is_published_once_a_minute_and_the_last_is_not_lost() {
        let start = Instant::now();
        let mut schedule = HeadSchedule::new(start);
        // A commit every two seconds for ten minutes, looked at every second.
        let mut published = Vec::new();
        for second in 0_u64..7200 {
            let newest = (second / 2).min(300);
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&newest.to_le_bytes());
            if schedule.publishes(hash, start + Duration::from_secs(second)) {
                published.push((second, newest));
            }
        }
        let minutes = (0..=10).map(|minute| (minute * 60, minute * 30));
        let again = std::iter::once((600 + 3600, 300));
        assert_eq!(published, minutes.chain(again).collect::<Vec<_>>());
    }

    #[test]
    fn devices_are_asked_about_every_five_minutes_and_when_the_roster_changes_but_one_round_at_a_time() {
        let start = Instant::now();
        let mut schedule = HeadSchedule::new(start);
        assert!(schedule.asks(start));
        schedule.asking.push_back([1; 32]);
        schedule.ask_soon(start);
        assert!(!schedule.asks(start), "the round before is not through");
        schedule.asking.clear();
        assert!(schedule.asks(start));
        assert!(!schedule.asks(start + ASK / 2));
        assert!(schedule.asks(start + ASK));
    }

    #[test]
    fn what_reached_nobody_is_published_again() {
        let start = Instant::now();
        let mut schedule = HeadSchedule::new(start);
        assert!(schedule.publishes([1; 32], start));
        schedule.published(false);
        assert!(!schedule.publishes([1; 32], start + PUBLISH / 2));
        assert!(schedule.publishes([1; 32], start + PUBLISH));
    }
}
