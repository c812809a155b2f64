//! What the machine knows of each member: whether it is here, how far it is trusted, what it was asked, and its clock.
//!
//! Invariant: the clock that a lease runs by never goes faster than this process was seen running, at full speed only while its owner
//! is connected, and never backwards but for what a crash loses. No wall clock has a part in it.

use crate::base::BlockId;

use super::guests::Balance;
use super::judge::Standing;
use super::placement::Zone;
use super::rules::Rules;

/// A member, or a former one that still has leases here.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) member: bool,
    pub(super) zone: Zone,
    pub(super) quota: u64,
    pub(super) guest: bool,
    /// Of a guest: what it and this device keep for each other; `None`: to be summed up.
    pub(super) balance: Option<Balance>,
    pub(super) connected: bool,
    /// Since when it is connected, or is not.
    pub(super) since_ms: u64,
    pub(super) lost: bool,
    pub(super) full_until_ms: u64,
    pub(super) full_wait_ms: u64,
    pub(super) busy_until_ms: u64,
    /// Requests in a row that it did not answer.
    pub(super) silent: u8,
    /// Audits in a row that it did not answer.
    pub(super) withheld: u8,
    pub(super) strikes: u8,
    pub(super) condemned: u64,
    /// It was condemned and has not been acquitted.
    pub(super) is_condemned: bool,
    /// The clock of its leases at `clock_at_ms`.
    clock_ms: u64,
    clock_at_ms: u64,
    pub(super) next_audit_ms: u64,
    pub(super) next_renewal_ms: u64,
    /// How far the check of all its blocks has come that follows a failure, or that the user asked for.
    pub(super) walk: Option<BlockId>,
    /// How far it will have come when the audit that is under way is answered; `None` within: to its end.
    pub(super) walk_next: Option<Option<BlockId>>,
    /// The user waits for that check.
    pub(super) hurried: bool,
    pub(super) open: Open,
}

/// Requests that it has not answered.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Open {
    pub(super) puts: usize,
    pub(super) claims: usize,
    pub(super) renewals: usize,
    pub(super) confirmations: usize,
    pub(super) releases: usize,
    pub(super) audits: usize,
}

impl Peer {
    /// One that is not connected and not yet known to be a member.
    pub(super) fn new(now_ms: u64, clock_secs: u64, condemned: u64) -> Self {
        Self {
            member: false,
            zone: "".into(),
            quota: 0,
            guest: false,
            balance: None,
            connected: false,
            since_ms: now_ms,
            lost: false,
            full_until_ms: 0,
            full_wait_ms: 0,
            busy_until_ms: 0,
            silent: 0,
            withheld: 0,
            strikes: 0,
            condemned,
            is_condemned: condemned > 0,
            clock_ms: clock_secs * 1000,
            clock_at_ms: now_ms,
            next_audit_ms: 0,
            next_renewal_ms: 0,
            walk: None,
            walk_next: None,
            hurried: false,
            open: Open::default(),
        }
    }

    /// The clock of its leases, in seconds.
    pub(super) fn clock_secs(&self, now_ms: u64, rules: &Rules) -> u64 {
        (self.clock_ms + self.counted(now_ms, rules)) / 1000
    }

    /// How much of the time since the clock was settled counts, in milliseconds.
    fn counted(&self, now_ms: u64, rules: &Rules) -> u64 {
        let share = match (self.member, self.connected) {
            (false, _) => rules.removed_share,
            (true, true) => 1,
            (true, false) => rules.absent_share,
        };
        now_ms.saturating_sub(self.clock_at_ms) / share.max(1)
    }

    /// To be called before what the clock's speed depends on changes.
    fn settle_clock(&mut self, now_ms: u64, rules: &Rules) {
        self.clock_ms += self.counted(now_ms, rules);
        self.clock_at_ms = now_ms;
    }

    /// It is a member or not.
    pub(super) fn set_member(&mut self, member: bool, now_ms: u64, rules: &Rules) {
        self.settle_clock(now_ms, rules);
        self.member = member;
    }

    /// It comes or goes.
    pub(super) fn set_connected(&mut self, connected: bool, now_ms: u64, rules: &Rules) {
        self.settle_clock(now_ms, rules);
        if self.connected != connected {
            self.since_ms = now_ms;
        }
        self.connected = connected;
        self.silent = 0;
        self.busy_until_ms = 0;
    }

    pub(super) fn standing(&self, now_ms: u64) -> Standing {
        Standing {
            member: self.member,
            connected: self.connected,
            lost: self.lost,
            condemned: self.condemned,
            full: now_ms < self.full_until_ms,
            busy: now_ms < self.busy_until_ms,
        }
    }

    /// Whether it can be asked something now.
    pub(super) fn is_open(&self, now_ms: u64) -> bool {
        self.member && self.connected && now_ms >= self.busy_until_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_an_owner_that_is_away_is_slow() {
        const DAY_MS: u64 = 86_400_000;
        let rules = &Rules::default();
        let mut peer = Peer::new(0, 100, 0);
        peer.set_member(true, 0, rules);
        assert_eq!(peer.clock_secs(16 * DAY_MS, rules), 100 + 86_400);
        peer.set_connected(true, 16 * DAY_MS, rules);
        assert_eq!(peer.clock_secs(17 * DAY_MS, rules), 100 + 2 * 86_400);
        peer.set_connected(false, 17 * DAY_MS, rules);
        peer.set_member(false, 33 * DAY_MS, rules);
        assert_eq!(
            peer.clock_secs(37 * DAY_MS, rules),
            100 + 4 * 86_400,
            "removed: the others get time to take over"
        );
    }
}
