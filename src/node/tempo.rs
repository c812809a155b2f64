//! How fast a peer answers, and how many requests may be sent twice because one was slow. Pure; times are passed in.
//!
//! Invariant: at most one request in [`ONE_IN`] is hedged in the long run, and [`BURST`] at once, so that hedging cannot make a busy group
//! busier (J. Dean, L. A. Barroso: The Tail at Scale, 2013). Used by `fetch`.

use std::time::Duration;

/// What a peer that has answered nothing yet is taken for: it should be tried, but not get everything.
const FIRST: Duration = Duration::from_millis(10);
const NEXT: Duration = Duration::from_millis(2);
/// No peer is so fast that what it owes already does not count.
const NEXT_MIN: Duration = Duration::from_micros(50);
/// A request is slow when it takes so many times what was expected,
const MULTIPLE: u32 = 3;
/// and longer than this besides: a disk or a scheduler that hesitates is no reason to ask elsewhere.
const GRACE: Duration = Duration::from_millis(50);
/// Weight of a new measurement against all before: RFC 6298.
const WEIGHT: u32 = 8;
/// Of so many requests one may be sent twice.
const ONE_IN: u32 = 20;
/// And so many at once.
const BURST: u32 = 4;

/// What was measured of one peer's answers.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tempo {
    /// From a request to its answer, when nothing else was owed.
    first: Option<Duration>,
    /// From one answer to the next, while more than one was owed.
    next: Option<Duration>,
}

impl Tempo {
    /// The peer answered what was asked so long ago, and something else so long ago, if at all.
    pub(super) fn answered(&mut self, asked: Duration, other: Option<Duration>) {
        match other {
            Some(other) if other < asked => smooth(&mut self.next, other),
            _ => smooth(&mut self.first, asked),
        }
    }

    /// How long a request takes that is sent when so many are open already.
    pub(super) fn expected(&self, open: usize) -> Duration {
        let open = u32::try_from(open).unwrap_or(u32::MAX);
        let next = self.next.or(self.first).unwrap_or(NEXT).max(NEXT_MIN);
        self.first
            .unwrap_or(FIRST)
            .saturating_add(next.saturating_mul(open))
    }

    /// How long what is open already takes; `None`: nobody knows.
    pub(super) fn backlog(&self, open: usize) -> Option<Duration> {
        let open = u32::try_from(open).unwrap_or(u32::MAX);
        Some(self.next?.max(NEXT_MIN).saturating_mul(open))
    }

    /// After how long such a request counts as slow.
    pub(super) fn patience(&self, open: usize) -> Duration {
        self.expected(open).saturating_mul(MULTIPLE).saturating_add(GRACE)
    }
}

fn smooth(kept: &mut Option<Duration>, new: Duration) {
    *kept = Some(kept.map_or(new, |kept| (kept * (WEIGHT - 1) + new) / WEIGHT));
}

/// How many requests may be sent twice.
#[derive(Debug)]
pub(super) struct Budget(u32);

impl Default for Budget {
    fn default() -> Self {
        Self(BURST * ONE_IN)
    }
}

impl Budget {
    /// A request was sent.
    pub(super) fn earn(&mut self) {
        self.0 = (self.0 + 1).min(BURST * ONE_IN);
    }

    /// Whether one more may be sent twice; it counts as sent.
    pub(super) fn spend(&mut self) -> bool {
        let rest = self.0.checked_sub(ONE_IN);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    /// Whether there is something to spend.
    pub(super) fn is_left(&self) -> bool {
        self.0 >= ONE_IN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_queue_at_a_fast_peer_is_expected_to_take_less_than_a_slow_peer() {
        let (mut fast, mut slow) = (Tempo::default(), Tempo::default());
        for _ in 0..20 {
            fast.answered(ms(40), None);
            fast.answered(ms(40), Some(ms(2)));
            slow.answered(ms(40), None);
            slow.answered(ms(40), Some(ms(25)));
        }
        assert_eq!(fast.expected(0), slow.expected(0));
        assert!(fast.expected(10) < slow.expected(2));
        assert!(slow.patience(2) >= slow.expected(2) * 3);
    }

    #[test]
    fn measurements_follow_a_change_and_forget_an_outlier() {
        let mut tempo = Tempo::default();
        tempo.answered(ms(10), None);
        tempo.answered(ms(1000), None);
        (0..40).for_each(|_| tempo.answered(ms(10), None));
        assert!(tempo.expected(0) < ms(20));
        (0..40).for_each(|_| tempo.answered(ms(100), None));
        assert!(tempo.expected(0) > ms(90));
    }

    #[test]
    fn a_budget_is_a_share_of_what_was_sent() {
        let mut budget = Budget::default();
        assert_eq!((0..100).filter(|_| budget.spend()).count(), BURST as usize);
        let mut spent = 0;
        for _ in 0..1000 {
            budget.earn();
            spent += u32::from(budget.is_left() && budget.spend());
        }
        assert_eq!(spent, 1000 / ONE_IN);
    }
}
