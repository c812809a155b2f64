//! Which of the snapshots that are kept may go. Pure. Called by `engine`.
//!
//! A rule names moments: whole multiples of its step, as far back as it reaches. Invariant: the snapshot that was current at each of these moments
//! stays, however often the list was thinned before; so do the newest, those that were current within the last hour, and those that are needed.

use super::journal::Kept;
use crate::base::BlockId;
use crate::folder::keep::{Keep, Rule};

/// What was current so lately stays, if anything does.
const RECENT_SECS: u64 = 3600;

/// The snapshots that stay, of those in the order of their arrival.
pub(super) fn thin(kept: &[Kept], keep: &Keep, now: u64, needed: impl Fn(&BlockId) -> bool) -> Vec<Kept> {
    let Keep::Rules(rules) = keep else {
        return kept.to_vec();
    };
    // A clock that was put back: time goes on where it was.
    let mut latest = 0;
    let begins: Vec<u64> = kept
        .iter()
        .map(|one| {
            latest = one.time.max(latest);
            latest
        })
        .collect();
    if now < latest {
        return kept.to_vec();
    }
    let stays = |at: usize| {
        let Some(end) = begins.get(at + 1).copied() else {
            return true;
        };
        let is_recent = !rules.is_empty() && end + RECENT_SECS > now;
        let is_wanted = || rules.iter().any(|rule| was_current(rule, begins[at], end, now));
        needed(&kept[at].id) || is_recent || is_wanted()
    };
    let numbered = kept.iter().enumerate();
    numbered
        .filter(|(at, _)| stays(*at))
        .map(|(_, one)| *one)
        .collect()
}

/// Whether what was current from `begin` until before `end` was so at a moment of the rule.
fn was_current(rule: &Rule, begin: u64, end: u64, now: u64) -> bool {
    let Some(last) = end.checked_sub(1) else {
        return false;
    };
    let moment = last - last % rule.every_secs;
    moment >= begin && moment + rule.within_secs >= now
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kept(times: &[u64]) -> Vec<Kept> {
        let one = |(n, time): (usize, &u64)| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&(n as u64).to_be_bytes());
            Kept {
                id: BlockId(id),
                time: *time,
                merge: false,
                twin: false,
            }
        };
        times.iter().enumerate().map(one).collect()
    }

    fn times(kept: &[Kept]) -> Vec<u64> {
        kept.iter().map(|one| one.time).collect()
    }

    fn current(kept: &[Kept], at: u64) -> Option<BlockId> {
        kept.iter().rfind(|one| one.time <= at).map(|one| one.id)
    }

    const HOUR: u64 = 3600;
    const DAY: u64 = 24 * HOUR;

    #[test]
    fn hours_then_days_then_weeks() {
        // A snapshot every ten minutes for 400 days.
        let all: Vec<u64> = (0..400 * DAY).step_by(600).collect();
        let now = 400 * DAY - 600;
        let left = thin(&kept(&all), &Keep::default(), now, |_| false);
        let ages: Vec<u64> = times(&left).iter().map(|time| now - time).collect();
        let within = |from: u64, to: u64| ages.iter().filter(|age| (from..to).contains(*age)).count();
        assert_eq!(within(0, HOUR + 600), 7, "everything of the last hour");
        assert_eq!(within(HOUR + 600, DAY), 23, "then one an hour");
        assert_eq!(within(DAY + HOUR, 30 * DAY), 29, "one a day");
        assert_eq!(within(31 * DAY, 366 * DAY), 48, "one a week");
        assert_eq!(within(366 * DAY, u64::MAX), 0);
    }

    #[test]
    fn what_was_for_long_is_kept_for_as_long_after_it_was_replaced() {
        let year = 365 * DAY;
        // Three years old, replaced a moment ago, and so twice more.
        let list = kept(&[0, 3 * year + 1, 3 * year + 5, 3 * year + 10]);
        let at = |now| times(&thin(&list, &Keep::default(), now, |_| false));
        assert_eq!(at(3 * year + 10), times(&list));
        let newest = 3 * year + 10;
        assert_eq!(at(3 * year + 2 * HOUR), [0, newest], "what was there yesterday");
        assert_eq!(at(4 * year + 20 * DAY), [newest]);
        let needed = |id: &BlockId| *id == list[1].id;
        let left = thin(&list, &Keep::default(), 9 * year, needed);
        assert_eq!(times(&left), [3 * year + 1, newest], "what others need stays");
    }

    #[test]
    fn all_none_and_a_clock_that_is_behind() {
        let list = kept(&[100, 9000, 50, 9001]);
        assert_eq!(thin(&list, &Keep::All, 1 << 40, |_| false), list);
        let none = Keep::Rules(Vec::new());
        assert_eq!(times(&thin(&list, &none, 9001, |_| false)), [9001]);
        assert_eq!(
            thin(&list, &none, 9000, |_| false),
            list,
            "the clock is wrong now"
        );
        assert!(thin(&[], &none, 0, |_| false).is_empty());
    }

    proptest! {
        /// Thinning now and then, as time goes by, keeps what a single look at the whole past would find.
        #[test]
        fn what_was_current_at_the_moments_of_the_rules_is_still_known(
            steps in proptest::collection::vec((1u64..3 * DAY, any::<bool>()), 1..60),
        ) {
            let mut now = 1000 * DAY;
            let begin = now;
            let keep = Keep::default();
            let Keep::Rules(rules) = &keep else { unreachable!() };
            let (mut arrived, mut left): (Vec<u64>, Vec<Kept>) = (Vec::new(), Vec::new());
            for (pause, does_thin) in steps {
                now += pause;
                arrived.push(now);
                left.push(*kept(&arrived).last().unwrap());
                if !does_thin {
                    continue;
                }
                left = thin(&left, &keep, now, |_| false);
                let all = kept(&arrived);
                prop_assert_eq!(left.last(), all.last());
                prop_assert_eq!(&thin(&left, &keep, now, |_| false), &left);
                for rule in rules {
                    let first = (now - rule.within_secs).max(begin);
                    let mut moment = first.next_multiple_of(rule.every_secs);
                    while moment <= now {
                        prop_assert_eq!(current(&left, moment), current(&all, moment));
                        moment += rule.every_secs;
                    }
                }
                for age in 0..4 {
                    let at = now - age * RECENT_SECS / 4;
                    prop_assert_eq!(current(&left, at), current(&all, at));
                }
            }
        }
    }
}
