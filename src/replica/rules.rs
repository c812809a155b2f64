//! Every number of replication, with its reason.

/// Most blocks in one message.
pub const BLOCKS_MAX: usize = 256;

/// Urgency of a block that has its replicas, but not where they belong. Below it: the number of replicas it has.
pub(super) const REBALANCE: u8 = 128;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// The numbers that a group may choose. Times are seconds unless the name says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// How long a lease is, on the clock that the holder keeps for the owner.
    pub term_secs: u64,
    /// That clock goes at one part in so many while the owner is away: an owner has so many terms to come back.
    pub absent_share: u64,
    /// As above for an owner that was removed from the group: other owners of its blocks may be away and still need them.
    pub removed_share: u64,
    /// How long a block stays after its last lease was released: another device may take it up without sending it.
    pub released_secs: u64,
    /// How long it stays after its last lease expired.
    pub expired_secs: u64,
    /// A holder that is away for so long is lost: longer than a night, so that a reboot or a laptop that sleeps moves nothing.
    pub lost_secs: u64,
    /// Replicas beyond those wanted are released when the others were confirmed within this time.
    pub fresh_secs: u64,
    /// How often each holder is audited.
    pub audit_secs: u64,
    /// Slices in an audit, at least; so many more that every block is looked at within `audit_cycle_secs`.
    pub audit_slices: usize,
    /// In how long every block is audited about once, when there are not too many.
    pub audit_cycle_secs: u64,
    /// Failures after which a holder is condemned.
    pub strikes: u8,
    /// For how long.
    pub condemned_secs: u64,
    /// Blocks in a PUT.
    pub put_blocks: usize,
    /// Bytes of blocks in a PUT, at most, unless it is a single block.
    pub put_bytes: u64,
    /// PUTs that a holder is sent before it has answered.
    pub puts_open: usize,
    /// When an answer is not expected any more, in milliseconds.
    pub answer_ms: u64,
    /// When a full holder is asked again, in milliseconds; doubled each time, up to a day.
    pub full_ms: u64,
    /// How long new blocks wait for others to form a group with, in milliseconds.
    pub gather_ms: u64,
    /// Groups whose parity is being computed at a time.
    pub encodings_open: usize,
    /// How long blocks of groups that ended for lack of hosts stay by themselves, in seconds.
    pub regroup_secs: u64,
    /// Blocks being dropped at a time.
    pub drops_open: usize,
    /// How long a drop waits for confirmations, in milliseconds.
    pub drop_ms: u64,
    /// How often a wish to free that could not be fulfilled is looked at again, in milliseconds.
    pub refree_ms: u64,
    /// When what waits for others is looked at again, in milliseconds; doubled each time that nothing could be done.
    pub retry_ms: u64,
    /// The longest sleep, in milliseconds.
    pub sleep_ms: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            term_secs: 30 * DAY,
            absent_share: 16,
            removed_share: 4,
            released_secs: HOUR,
            expired_secs: 7 * DAY,
            lost_secs: DAY,
            fresh_secs: HOUR,
            audit_secs: HOUR,
            audit_slices: 16,
            audit_cycle_secs: 60 * DAY,
            strikes: 3,
            condemned_secs: 30 * DAY,
            put_blocks: 32,
            put_bytes: 8 << 20,
            puts_open: 2,
            answer_ms: 60_000,
            full_ms: HOUR * 1000,
            gather_ms: 5_000,
            encodings_open: 8,
            regroup_secs: DAY,
            drops_open: 1024,
            drop_ms: 60_000,
            refree_ms: HOUR * 1000,
            retry_ms: 10_000,
            sleep_ms: 600_000,
        }
    }
}
