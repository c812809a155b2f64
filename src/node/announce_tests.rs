//! The announcing schedule on a simulated clock: budget, renewal, regions, restarts.

use super::*;
use proptest::prelude::*;

const START: UnixSecs = 1_700_000_000;

fn root(n: u64) -> [u8; 32] {
    *blake3::hash(&n.to_le_bytes()).as_bytes()
}

fn key(root: &[u8; 32]) -> Key {
    *blake3::hash(root).as_bytes()
}

fn schedule(files: std::ops::Range<u64>, budget: usize) -> Schedule {
    let mut schedule = Schedule::new(budget);
    for n in files {
        schedule.add(key(&root(n)), root(n));
    }
    schedule
}

/// Runs from second to second, as long as something is due; what was announced, and the batches it took.
fn run(schedule: &mut Schedule, now: &mut UnixSecs, members: usize) -> (Vec<[u8; 32]>, usize) {
    let (mut told, mut batches) = (Vec::new(), 0);
    while let Some(batch) = schedule.next(*now, members) {
        assert!(batch.roots.len() <= BATCH);
        assert!(batch.roots.iter().all(|root| batch.region.contains(&key(root))));
        told.extend(batch.roots);
        batches += 1;
        schedule.told(*now);
        *now += 1;
    }
    (told, batches)
}

#[test]
fn everything_is_announced_once_and_again_in_time_and_what_is_new_at_once() {
    let (mut now, mut schedule) = (START, schedule(0..2000, 10_000));
    let (mut told, batches) = run(&mut schedule, &mut now, 5);
    told.sort_unstable();
    let mut all: Vec<_> = (0..2000).map(root).collect();
    all.sort_unstable();
    assert_eq!((told, batches), (all, 4), "512 in each message");
    assert!(!schedule.add(key(&root(7)), root(7)), "known");
    assert!(schedule.add(key(&root(2000)), root(2000)));
    assert_eq!(run(&mut schedule, &mut now, 5).0, [root(2000)], "alone");
    now += RENEW_SECS - 100;
    assert_eq!(run(&mut schedule, &mut now, 5).1, 0);
    now += 100;
    assert_eq!(run(&mut schedule, &mut now, 5).0.len(), 2001);
}

#[test]
fn the_newest_files_within_the_budget_are_kept_announced() {
    let (mut now, mut schedule) = (START, schedule(0..1500, 1000));
    let (told, _) = run(&mut schedule, &mut now, 5);
    assert_eq!((schedule.len(), told.len()), (1000, 1000));
    assert!((500..1500).all(|n| told.contains(&root(n))));
    assert!(super::tests::schedule(0..10, 0).is_empty(), "nothing");
}

#[test]
fn a_restart_announces_nothing_twice_and_goes_on_where_it_was() {
    let (mut now, mut before) = (START, schedule(0..4000, 10_000));
    // Killed in the middle: eighty members have four regions, of which two are done.
    let mut done = Vec::new();
    while done.len() < 2000 || before.sweep.is_some() {
        let batch = before.next(now, 80).unwrap();
        done.extend(batch.roots);
        before.told(now);
        now += 1;
    }
    let mut after = Schedule::new(10_000);
    after.load(&before.encode(), key).unwrap();
    assert_eq!(after.len(), 4000);
    let (rest, _) = run(&mut after, &mut now, 80);
    assert_eq!(done.len() + rest.len(), 4000);
    assert!(rest.iter().all(|root| !done.contains(root)));
    assert_eq!(run(&mut after, &mut now, 80).1, 0);
    // A clock that was set back: rather once too often than never.
    now = START - 1_000_000;
    assert_eq!(run(&mut after, &mut now, 80).0.len(), 4000);
}

#[test]
fn what_reached_nobody_is_tried_again_after_a_while() {
    let (mut now, mut schedule) = (START, schedule(0..10, 100));
    for _ in 0..3 {
        let batch = schedule.next(now, 2).unwrap();
        assert_eq!(batch.roots.len(), 10);
        schedule.failed(now, &batch, key);
        assert_eq!(schedule.next(now + RETRY_SECS - 1, 2), None);
        now += RETRY_SECS;
    }
    assert_eq!(run(&mut schedule, &mut now, 2).0.len(), 10);
    schedule.add(key(&root(10)), root(10));
    let batch = schedule.next(now, 2).unwrap();
    schedule.failed(now, &batch, key);
    now += RETRY_SECS;
    assert_eq!(run(&mut schedule, &mut now, 2).0, [root(10)]);
}

#[test]
fn a_group_that_grows_has_more_regions_and_each_file_enough_members() {
    assert_eq!(
        [1, 20, 39, 40, 80, 1000, 1 << 20].map(Region::depth),
        [0, 0, 0, 1, 2, 5, 8]
    );
    for members in [3u64, 30, 300, 3000] {
        let others: Vec<(Key, u64)> = (0..members).map(|n| (key(&root(n)), n)).collect();
        for n in 0..20 {
            let region = Region::of(&key(&root(n)), Region::depth(members as usize));
            let targets = region.targets(others.clone());
            let least = REPLICATION.min(members as usize);
            assert!(
                (least..=2 * REPLICATION).contains(&targets.len()),
                "{}",
                targets.len()
            );
            // The nearest one of all to the file is among them.
            let file = key(&root(n));
            let distance = |at: &Key| std::array::from_fn::<u8, 32, _>(|i| at[i] ^ file[i]);
            let nearest = others.iter().min_by_key(|(at, _)| distance(at)).unwrap();
            assert!(targets.contains(&nearest.1) || targets.len() == 2 * REPLICATION);
        }
    }
}

/// What `benches/node.rs` prints, held to its bounds.
#[test]
fn the_cost_grows_with_members_and_hundreds_of_files() {
    let budget = 16_384;
    let messages = |files, members| super::messages(files, budget, members);
    // Beyond the budget, nothing.
    assert_eq!(messages(100_000, 5), messages(16_384, 5));
    assert_eq!(
        messages(100_000, 5),
        4 * 32,
        "32 messages to each of four others, in 20 hours"
    );
    // One by one it would be a search and up to twenty messages for each file.
    assert!(messages(100_000, 1000) < 2 * REPLICATION as u64 * (32 + 32));
    assert_eq!(super::messages(100_000, BUDGET_MAX, 5), 4 * 196);
    assert_eq!(messages(100, 20), 19);
}

proptest! {
    #[test]
    fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Schedule::new(10).load(&bytes, key);
        bytes.splice(0..0, [b'd', b'f', b's', b'R', 1]);
        bytes.resize(bytes.len() + 2048, 0);
        let _ = Schedule::new(10).load(&bytes, key);
    }

    /// Whatever is added when, told or lost: every file that is kept announced is told within the time it takes to renew, and no file that is not.
    #[test]
    fn nothing_is_forgotten(script in proptest::collection::vec((0u64..60, 0u64..40_000, any::<bool>()), 1..60), members in 1usize..200) {
        let (mut now, mut schedule) = (START, Schedule::new(40));
        let mut last: BTreeMap<[u8; 32], UnixSecs> = BTreeMap::new();
        for (n, pause, reached) in script {
            schedule.add(key(&root(n)), root(n));
            while let Some(batch) = schedule.next(now, members) {
                if reached {
                    last.extend(batch.roots.iter().map(|root| (*root, now)));
                    schedule.told(now);
                } else {
                    schedule.failed(now, &batch, key);
                }
                now += 1;
            }
            now += pause;
        }
        now += RETRY_SECS;
        while let Some(batch) = schedule.next(now, members) {
            last.extend(batch.roots.iter().map(|root| (*root, now)));
            schedule.told(now);
            now += 1;
        }
        for root in schedule.roots.values() {
            prop_assert!(last.get(root).is_some_and(|at| at + RENEW_SECS + 200 > now));
        }
    }
}
