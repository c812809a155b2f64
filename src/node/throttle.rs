//! How fast blocks go out and come in: the limits of the settings, and that a reader's block goes before bulk replication.
//!
//! Invariant: whoever waits is served in turn within its class; bulk gives way to at most [`YIELDS`] reads before it has its own turn, so
//! that neither starves. The local network is exempt from the limits. Used by `outbox`.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Reads to which one block of bulk replication gives way.
const YIELDS: usize = 8;
/// And for how long at most, should the reads not move.
const YIELD_MAX: Duration = Duration::from_millis(500);
/// What may be sent at once after a pause: this share of a second's worth,
const BURST_SHARE: u64 = 4;
/// but at least so many bytes.
const BURST_MIN: u64 = 64 << 10;

/// A token bucket that lends: whoever comes takes what it needs, and waits until it is paid back. Pure.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Bytes, or whatever is counted, per second.
    rate: u64,
    burst: u64,
    /// Bytes that may be taken without waiting; negative: lent.
    left: f64,
    filled: Instant,
}

impl Bucket {
    /// A full one, of bytes.
    pub(super) fn new(rate: u64, now: Instant) -> Self {
        Self::with_burst(rate, (rate / BURST_SHARE).max(BURST_MIN), now)
    }

    /// A full one that gives so much at once.
    pub(super) fn with_burst(rate: u64, burst: u64, now: Instant) -> Self {
        Self {
            rate: rate.max(1),
            burst,
            left: burst as f64,
            filled: now,
        }
    }

    /// Takes so many bytes, and says after which time they may move.
    pub(super) fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.left = (self.left + passed * self.rate as f64).min(self.burst as f64) - bytes as f64;
        self.filled = self.filled.max(now);
        Duration::from_secs_f64((-self.left).max(0.0) / self.rate as f64)
    }
}

/// Lets bulk see that reads are waiting.
#[derive(Debug, Default)]
pub(super) struct Lane {
    waiting: AtomicUsize,
    passed: Notify,
}

impl Lane {
    /// One more read waits.
    pub(super) fn enter(&self) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
    }

    /// One of them waits no more.
    pub(super) fn leave(&self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        self.passed.notify_waiters();
    }

    /// Waits until no read waits, or until bulk has waited enough.
    pub(super) async fn give_way(&self) {
        let gone = async {
            for _ in 0..YIELDS {
                let passed = self.passed.notified();
                if self.waiting.load(Ordering::Acquire) == 0 {
                    return;
                }
                passed.await;
            }
        };
        let _ = tokio::time::timeout(YIELD_MAX, gone).await;
    }
}

/// A limit on what moves in one direction, over all connections together.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// None: no limit.
    bucket: Option<Mutex<Bucket>>,
    reads: tokio::sync::Mutex<()>,
    bulk: tokio::sync::Mutex<()>,
    lane: Lane,
}

impl Throttle {
    /// A limit in bytes per second; none without one.
    pub(super) fn new(rate: Option<u64>) -> Self {
        let bucket = rate.map(|rate| Mutex::new(Bucket::new(rate, Instant::now())));
        Self {
            bucket,
            ..Self::default()
        }
    }

    /// Waits until so many bytes may move.
    pub(super) async fn pass(&self, bytes: u64, bulk: bool) {
        let Some(bucket) = &self.bucket else {
            return;
        };
        let waits = Waits::of(&self.lane, !bulk);
        let _turn = if bulk {
            self.bulk.lock().await
        } else {
            self.reads.lock().await
        };
        if bulk {
            self.lane.give_way().await;
        }
        let wait = bucket.lock().take(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        drop(waits);
    }
}

struct Waits<'a>(Option<&'a Lane>);

impl<'a> Waits<'a> {
    fn of(lane: &'a Lane, read: bool) -> Self {
        let lane = read.then_some(lane);
        lane.inspect(|lane| lane.enter());
        Self(lane)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.inspect(|lane| lane.leave());
    }
}

/// The limits of a node.
#[derive(Debug, Default)]
pub(super) struct Limits {
    /// On blocks sent.
    pub(super) upload: Throttle,
    /// On blocks received.
    pub(super) download: Throttle,
    download_rate: Option<u64>,
    limit_lan: bool,
}

impl Limits {
    /// Limits in bytes per second.
    pub(super) fn new(upload: Option<u64>, download: Option<u64>, limit_lan: bool) -> Self {
        Self {
            upload: Throttle::new(upload),
            download: Throttle::new(download),
            download_rate: download,
            limit_lan,
        }
    }

    /// Whether they apply to a peer at this address.
    pub(super) fn apply_to(&self, remote: &Multiaddr) -> bool {
        self.limit_lan || !is_local(remote)
    }

    /// How much a peer may send before it is granted more: less where little may come in, never less than two blocks of this length.
    pub(super) fn window(&self, usual: u32, limited: bool, block_max: usize) -> u32 {
        let least = 2 * block_max as u32;
        match self.download_rate.filter(|_| limited) {
            Some(rate) => u32::try_from(rate / 2)
                .unwrap_or(usual)
                .clamp(least, usual.max(least)),
            None => usual,
        }
    }
}

/// Whether an address lies in the local network: private, link-local or loopback, and not behind a relay.
pub(super) fn is_local(address: &Multiaddr) -> bool {
    let mut local = false;
    for part in address {
        match part {
            Protocol::Ip4(ip) => local = is_local_ip(IpAddr::V4(ip)),
            Protocol::Ip6(ip) => local = is_local_ip(IpAddr::V6(ip)),
            Protocol::P2pCircuit => return false,
            _ => {}
        }
    }
    local
}

fn is_local_ip(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_bucket_keeps_its_rate_and_lends_a_whole_block() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1_000_000, start);
        assert_eq!(
            bucket.take(250_000, start),
            Duration::ZERO,
            "a quarter of a second at once"
        );
        assert_eq!(bucket.take(1_000_000, start), Duration::from_secs(1));
        assert_eq!(
            bucket.take(500_000, start),
            Duration::from_millis(1500),
            "on top of what is lent"
        );
        // An hour of silence gives no more than the burst.
        let later = start + Duration::from_secs(3600);
        assert_eq!(bucket.take(250_000, later), Duration::ZERO);
        let wait = bucket.take(100_000, later);
        assert!(
            wait.abs_diff(Duration::from_millis(100)) < Duration::from_millis(1),
            "{wait:?}"
        );
    }

    #[tokio::test]
    async fn a_read_goes_before_bulk_and_bulk_is_not_starved() {
        let throttle = Arc::new(Throttle::new(Some(40_000_000)));
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        let begin = |name: &'static str, bulk: bool| {
            let (throttle, order) = (Arc::clone(&throttle), Arc::clone(&order));
            tokio::spawn(async move {
                for _ in 0..20 {
                    throttle.pass(1_000_000, bulk).await;
                    order.lock().push(name);
                }
            })
        };
        for (name, bulk) in [("read", false), ("more", false), ("bulk", true)] {
            tasks.push(begin(name, bulk));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let order = order.lock();
        // After what may go at once, and while there are reads: most of what moves are reads, of both in turn.
        let first: Vec<_> = order.iter().skip(10).take(24).copied().collect();
        let count = |name| first.iter().filter(|n| **n == name).count();
        assert!((1..=12).contains(&count("bulk")), "{order:?}");
        assert!(count("read").abs_diff(count("more")) <= 2, "{order:?}");
        assert_eq!(order.len(), 60);
    }

    #[tokio::test]
    async fn a_limit_holds_over_everything_that_passes() {
        let throttle = Arc::new(Throttle::new(Some(1_000_000)));
        let begun = Instant::now();
        let all: Vec<_> = (0..10)
            .map(|n| {
                let throttle = Arc::clone(&throttle);
                tokio::spawn(async move { throttle.pass(50_000, n % 2 == 0).await })
            })
            .collect();
        for one in all {
            one.await.unwrap();
        }
        // 500,000 bytes, a quarter of a second of them at once.
        assert!(
            begun.elapsed() >= Duration::from_millis(250),
            "{:?}",
            begun.elapsed()
        );
    }

    #[test]
    fn the_local_network_is_told_from_the_rest() {
        let local = |text: &str| is_local(&text.parse().unwrap());
        for yes in [
            "/ip4/192.168.3.4/tcp/1",
            "/ip4/10.0.0.1/tcp/1",
            "/ip4/169.254.1.1/tcp/1",
            "/ip6/fe80::1/tcp/1",
            "/ip6/fd00::1/tcp/1",
            "/ip6/::ffff:172.16.0.1/tcp/1",
        ] {
            assert!(local(yes), "{yes}");
        }
        let relay =
            "/ip4/192.168.3.4/tcp/1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN/p2p-circuit";
        for no in [
            "/ip4/203.0.113.1/tcp/1",
            "/ip6/2001:db8::1/tcp/1",
            "/dns/a.example/tcp/1",
            relay,
        ] {
            assert!(!local(no), "{no}");
        }
        let limits = Limits::new(None, Some(1 << 20), false);
        assert_eq!(limits.window(20 << 20, false, 1000), 20 << 20);
        assert_eq!(limits.window(20 << 20, true, 1000), 512 << 10);
        assert_eq!(
            limits.window(20 << 20, true, 1 << 20),
            2 << 20,
            "or nothing would ever fit"
        );
    }
}
