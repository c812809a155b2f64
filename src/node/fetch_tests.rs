//! Tests of the fetch engine: single rules, and a simulation with virtual time and peers that lie, stall, lose blocks and leave.

use super::*;
use bytes::Bytes;
use proptest::prelude::*;

fn block(n: u8) -> Bytes {
    Bytes::from(vec![n; 3])
}

fn checked(bytes: Bytes) -> CheckedBlock {
    CheckedBlock::new(BlockId::of(&bytes), bytes).unwrap()
}

fn id(n: u8) -> BlockId {
    BlockId::of(&block(n))
}

fn device(n: u64) -> DeviceId {
    DeviceId([n as u8; 32])
}

fn want(waiter: u64, n: u8, now: Instant) -> Event {
    Event::Want {
        waiter,
        want: Want {
            id: id(n),
            root: Some(RootId([1; 32])),
            ahead: false,
        },
        holders: Vec::new(),
        deadline: now + Duration::from_secs(30),
    }
}

fn up(link: u64) -> Event {
    Event::LinkUp {
        link,
        device: device(link),
        capacity: 64,
    }
}

fn gets(actions: &[Action]) -> Vec<u64> {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::Send(link, Ask::Get(_)) => Some(*link),
            _ => None,
        })
        .collect()
}

fn results(actions: Vec<Action>) -> Vec<(u64, Result<CheckedBlock, FetchError>)> {
    actions
        .into_iter()
        .filter_map(|a| match a {
            Action::Done(waiter, result) => Some((waiter, result)),
            _ => None,
        })
        .collect()
}

#[test]
fn what_nobody_waits_for_comes_last_and_only_as_far_as_it_delays_nobody() {
    let now = Instant::now();
    let mut engine = Engine::default();
    engine.handle(up(1), now);
    let ahead = |waiter: u64, n: u8| match want(waiter, n, now) {
        Event::Want {
            waiter,
            want,
            holders,
            deadline,
        } => Event::Want {
            waiter,
            want: Want { ahead: true, ..want },
            holders,
            deadline,
        },
        other => other,
    };
    // The line brings a block every 100 ms.
    let mut at = now;
    for n in 0..8 {
        engine.handle(want(u64::from(n), n, now), at);
        engine.handle(want(100, n + 8, now), at);
        at += Duration::from_millis(100);
        engine.handle(Event::Reply(1, Reply::Block(checked(block(n)))), at);
        at += Duration::from_millis(100);
        engine.handle(Event::Reply(1, Reply::Block(checked(block(n + 8)))), at);
    }
    let asked = |actions: &[Action]| -> Vec<BlockId> {
        let get = |a: &Action| match a {
            Action::Send(_, Ask::Get(id)) => Some(*id),
            _ => None,
        };
        actions.iter().filter_map(get).collect()
    };
    let actions = engine.handle_all((20..60).map(|n| ahead(u64::from(n), n)), at);
    let first = asked(&actions).len();
    assert!((4..8).contains(&first), "{first} of 40");
    // Somebody waits for one of those, and for one that is new: at once.
    assert_eq!(asked(&engine.handle(Event::Hurry(id(50)), at)), [id(50)]);
    assert_eq!(asked(&engine.handle(want(200, 70, now), at)), [id(70)]);
    // The rest comes as the line brings it, in order.
    let mut next = 20 + first as u8;
    for n in 20..20 + first as u8 {
        at += Duration::from_millis(100);
        for id_asked in asked(&engine.handle(Event::Reply(1, Reply::Block(checked(block(n)))), at)) {
            assert_eq!(id_asked, id(next));
            next += 1;
        }
    }
    assert!(next > 20 + first as u8);
}

#[test]
fn alone_fails_at_once() {
    let (mut engine, now) = (Engine::default(), Instant::now());
    let done = results(engine.handle(want(1, 1, now), now));
    assert!(matches!(done[..], [(1, Err(FetchError::Alone { .. }))]));
}

#[test]
fn a_missing_answer_moves_on_and_the_last_one_ends_the_want() {
    let (mut engine, now) = (Engine::default(), Instant::now());
    engine.handle(up(1), now);
    engine.handle(up(2), now);
    let first = gets(&engine.handle(want(1, 1, now), now));
    assert_eq!(first, [1]);
    let second = gets(&engine.handle(Event::Reply(1, Reply::Missing(id(1))), now));
    assert_eq!(second, [2]);
    let actions = engine.handle(Event::Reply(2, Reply::Missing(id(1))), now);
    assert!(matches!(actions[..], [Action::Lookup(_)]), "{actions:?}");
    let done = results(engine.handle(Event::LookedUp(RootId([1; 32])), now));
    let [(1, Err(FetchError::Unavailable { asked, .. }))] = &done[..] else {
        panic!("{done:?}")
    };
    assert_eq!(asked, "01010101 (does not have it), 02020202 (does not have it)");
}

#[test]
fn wrong_bytes_ban_the_peer_and_another_is_asked() {
    let (mut engine, now) = (Engine::default(), Instant::now());
    engine.handle(up(1), now);
    engine.handle(up(2), now);
    engine.handle(want(1, 1, now), now);
    let actions = engine.handle(Event::Reply(1, Reply::Wrong(id(1))), now);
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Banned(d, _) if *d == device(1)))
    );
    assert_eq!(gets(&actions), [2]);
    assert_eq!(gets(&engine.handle(want(2, 2, now), now)), [2], "banned");
    let later = now + WRONG.first;
    engine.handle(Event::Tick, later);
    engine.handle(Event::Reply(2, Reply::Missing(id(2))), later);
    assert_eq!(
        gets(&engine.handle(want(3, 3, later), later)),
        [1],
        "it has another chance"
    );
}

#[test]
fn a_late_peer_gets_company_and_the_first_answer_wins() {
    let (mut engine, now) = (Engine::default(), Instant::now());
    engine.handle(up(1), now);
    engine.handle(up(2), now);
    engine.handle(want(1, 1, now), now);
    // Nothing is known of it: ten milliseconds were expected.
    let slow = now + engine.links[&1].tempo.patience(0);
    assert_eq!(engine.wakeup(), Some(slow));
    assert!(
        engine
            .handle(Event::Tick, slow - Duration::from_millis(1))
            .is_empty()
    );
    assert_eq!(gets(&engine.handle(Event::Tick, slow)), [2]);
    let actions = engine.handle(Event::Reply(1, Reply::Block(checked(block(1)))), now + LATE);
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Send(2, Ask::Cancel(_))))
    );
    assert!(matches!(results(actions)[..], [(1, Ok(_))]));
    assert!(engine.wants.is_empty() && engine.queue.is_empty());
}

#[test]
fn a_peer_that_connects_while_a_want_is_pending_is_asked() {
    let (mut engine, now) = (Engine::default(), Instant::now());
    engine.handle(Event::Prospects(1), now);
    assert!(engine.handle(want(1, 1, now), now).is_empty());
    assert_eq!(gets(&engine.handle(up(7), now)), [7]);
    // Lost before it answered, and back again.
    engine.handle(Event::LinkDown(7), now);
    assert_eq!(
        gets(&engine.handle(
            Event::LinkUp {
                link: 8,
                device: device(7),
                capacity: 1
            },
            now
        )),
        [8]
    );
}

#[test]
fn known_holders_are_preferred_and_share_the_load() {
    let (mut engine, now) = (Engine::default(), Instant::now());
    for link in 1..=3 {
        engine.handle(up(link), now);
    }
    for (link, n) in [(2, 1), (3, 2)] {
        engine.handle(want(1, n, now), now);
        engine.handle(Event::Reply(1, Reply::Missing(id(n))), now);
        engine.handle(Event::Reply(link, Reply::Held(vec![(id(n), true)])), now);
        let holder = *engine.wants[&id(n)]
            .said
            .iter()
            .find(|(_, s)| **s == Said::Asked)
            .unwrap()
            .0;
        engine.handle(
            Event::Reply(u64::from(holder.0[0]), Reply::Block(checked(block(n)))),
            now,
        );
    }
    let known = engine.holders[&RootId([1; 32])].len();
    let mut asked: Vec<u64> = (10..20)
        .flat_map(|n| gets(&engine.handle(want(1, n, now), now)))
        .collect();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked.len(), known);
    assert!(!asked.contains(&1), "it has never had a block of this file");
}

#[test]
fn capacity_bounds_what_is_open_and_busy_waits() {
    let (mut engine, now) = (Engine::default(), Instant::now());
    engine.handle(
        Event::LinkUp {
            link: 1,
            device: device(1),
            capacity: 2,
        },
        now,
    );
    let open: usize = (0..10)
        .map(|n| gets(&engine.handle(want(1, n, now), now)).len())
        .sum();
    assert_eq!(open, 2);
    assert_eq!(
        gets(&engine.handle(Event::Reply(1, Reply::Block(checked(block(0)))), now)).len(),
        1
    );
    assert!(gets(&engine.handle(Event::Reply(1, Reply::Busy(id(1), 200)), now)).is_empty());
    let later = now + Duration::from_millis(200);
    let slow = engine.wakeup().unwrap();
    assert!(slow < later);
    assert!(
        engine.handle(Event::Tick, slow).is_empty(),
        "there is nobody else to ask"
    );
    assert_eq!(engine.wakeup(), Some(later));
    assert_eq!(gets(&engine.handle(Event::Tick, later)).len(), 1);
}

fn haves(actions: &[Action]) -> Vec<(u64, usize)> {
    let told = actions.iter().filter_map(|a| match a {
        Action::Send(link, Ask::Have(ids)) => Some((*link, ids.len())),
        _ => None,
    });
    told.collect()
}

#[test]
fn many_wants_at_once_cost_one_have_per_peer_and_none_once_a_holder_is_known() {
    let (mut engine, now) = (Engine::default(), Instant::now());
    (1..=3).for_each(|link| drop(engine.handle(up(link), now)));
    let wants = |from: u8, to: u8| (from..to).map(move |n| want(u64::from(n), n, now));
    let actions = engine.handle_all(wants(0, 100), now);
    assert_eq!(gets(&actions).len(), 100, "each is asked of one peer");
    let asked = haves(&actions);
    assert_eq!(asked.len(), 3, "and of the others in one frame each: {asked:?}");
    assert_eq!(asked.iter().map(|(_, ids)| ids).sum::<usize>(), 200);
    // One of them has some of it.
    let held: Vec<_> = (0..20).map(|n| (id(n), true)).collect();
    engine.handle(Event::Reply(2, Reply::Held(held)), now);
    let actions = engine.handle_all(wants(100, 120), now);
    assert_eq!((gets(&actions), haves(&actions)), (vec![2; 20], vec![]));
}

#[test]
fn who_keeps_a_block_under_a_lease_is_asked_before_all_others() {
    let (mut engine, now) = (Engine::default(), Instant::now());
    (1..=9).for_each(|link| drop(engine.handle(up(link), now)));
    let Event::Want {
        waiter,
        want,
        deadline,
        ..
    } = want(1, 1, now)
    else {
        panic!()
    };
    let event = Event::Want {
        waiter,
        want,
        holders: vec![device(7), device(77)],
        deadline,
    };
    let actions = engine.handle(event, now);
    assert_eq!((gets(&actions), haves(&actions)), (vec![7], vec![]));
    for link in [7, 1, 2, 3, 4, 5, 6, 8] {
        engine.handle(Event::Reply(link, Reply::Missing(id(1))), now);
    }
    engine.handle(Event::Reply(9, Reply::Missing(id(1))), now);
    let done = results(engine.handle(Event::LookedUp(RootId([1; 32])), now));
    let told = format!("{:?}", done[0].1);
    assert!(
        told.contains("4d4d4d4d (keeps it, but is not connected)"),
        "{told}"
    );
}

/// Reads `blocks` of one file one after the other from two peers that both have them, each of which answers after what `takes` says (in
/// ms, by the peer and the block's number). Returns the times that the reads took, and how many GETs they cost.
fn read_all(blocks: u64, takes: impl Fn(u64, u64) -> u64) -> (Vec<u64>, usize) {
    let start = Instant::now();
    let mut engine = Engine::default();
    let at = |ms: u64| start + Duration::from_millis(ms);
    engine.handle_all((0..2).map(up), start);
    let (mut now, mut asked, mut times) = (0, 0, Vec::new());
    let mut coming: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    for n in 0..blocks {
        let begun = now;
        let bytes = Bytes::from(n.to_le_bytes().to_vec());
        let block_id = BlockId::of(&bytes);
        let mut event = Some(Event::Want {
            waiter: n,
            want: Want {
                id: block_id,
                root: Some(RootId([1; 32])),
                ahead: false,
            },
            holders: vec![device(0), device(1)],
            deadline: at(now + 60_000),
        });
        loop {
            let mut done = false;
            for action in engine.handle_all(event.take(), at(now)) {
                match action {
                    Action::Send(link, Ask::Get(_)) => {
                        asked += 1;
                        coming.insert((now + takes(link, n), link), n);
                    }
                    Action::Send(link, Ask::Cancel(_)) => coming.retain(|(_, from), _| *from != link),
                    Action::Done(_, result) => done = result.is_ok(),
                    _ => {}
                }
            }
            if done {
                break;
            }
            let wake = engine
                .wakeup()
                .map_or(u64::MAX, |w| (w - start).as_millis() as u64 + 1);
            match coming.first_key_value().map(|(key, _)| *key) {
                Some((when, link)) if when <= wake => {
                    coming.remove(&(when, link));
                    now = now.max(when);
                    let reply = Reply::Block(checked(bytes.clone()));
                    event = Some(Event::Reply(link, reply));
                }
                _ => now = now.max(wake),
            }
        }
        times.push(now - begun);
    }
    times.sort_unstable();
    (times, asked)
}

#[test]
fn a_peer_that_hesitates_now_and_then_is_hedged_at_little_cost() {
    // Every fortieth block takes a second at the first peer that is asked for it.
    let asked_before = std::cell::Cell::new(u64::MAX);
    let (times, gets) = read_all(1000, |_, n| match n % 40 == 39 && asked_before.replace(n) != n {
        true => 1000,
        false => 10,
    });
    assert!(gets <= 1050, "one request in twenty may be sent twice: {gets}");
    assert!(times[999] < 200, "none waits for it: {} ms", times[999]);
    assert_eq!(times[900], 10);
}

#[test]
fn peers_that_are_merely_slow_are_not_hedged() {
    for pace in [5, 100, 700] {
        let (_, gets) = read_all(300, |_, n| pace + n % 7);
        assert!(
            gets <= 300 + 4,
            "{gets} at {pace} ms: only until the pace is known"
        );
    }
}

#[test]
fn the_faster_of_two_peers_gets_the_more() {
    let slow_asked = std::cell::Cell::new(0);
    let (times, gets) = read_all(3000, |link, _| match link {
        0 => {
            slow_asked.set(slow_asked.get() + 1);
            100
        }
        _ => 10,
    });
    assert!(gets <= 3010, "{gets}");
    // Thirty seconds.
    assert!(
        (2..=6).contains(&slow_asked.get()),
        "but it is tried again: {}",
        slow_asked.get()
    );
    assert_eq!((times[2990], times[2999] <= 100), (10, true));
}

#[test]
fn what_no_connected_member_has_is_searched_for_once_and_not_where_all_are_connected() {
    let (mut engine, now) = (Engine::default(), Instant::now());
    engine.handle(up(1), now);
    let missing = |engine: &mut Engine, n: u8, now| {
        let mut actions = engine.handle(want(u64::from(n), n, now), now);
        actions.extend(engine.handle(Event::Reply(1, Reply::Missing(id(n))), now));
        actions.extend(engine.handle(Event::LookedUp(RootId([1; 32])), now));
        actions
    };
    let found = |actions: &[Action]| -> Vec<BlockId> {
        let ids = actions.iter().filter_map(|a| match a {
            Action::Find(ids) => Some(ids.clone()),
            _ => None,
        });
        ids.flatten().collect()
    };
    let actions = missing(&mut engine, 1, now);
    assert!(found(&actions).is_empty() && results(actions).len() == 1);
    engine.handle(Event::Absent(1), now);
    assert_eq!(found(&missing(&mut engine, 2, now)), [id(2)]);
    // The next ones wait a moment, and go together.
    assert!(found(&missing(&mut engine, 3, now)).is_empty());
    assert!(found(&missing(&mut engine, 4, now)).is_empty());
    let later = now + SEARCH_PAUSE;
    assert_eq!(engine.wakeup(), Some(later));
    let both = found(&engine.handle(Event::Tick, later));
    assert_eq!(BTreeSet::from_iter(both), BTreeSet::from([id(3), id(4)]));
    // One has it, and connects.
    engine.handle(Event::Found(device(9), vec![id(2), id(77)]), later);
    assert_eq!(
        gets(&engine.handle(up(9), later)).len(),
        3,
        "it may have the others too"
    );
    engine.handle(Event::Reply(9, Reply::Block(checked(block(2)))), later);
    engine.handle(Event::Reply(9, Reply::Missing(id(3))), later);
    let actions = engine.handle(Event::Reply(9, Reply::Missing(id(4))), later);
    assert!(
        found(&actions).is_empty() && results(actions).is_empty(),
        "an answer may still come"
    );
    let done = results(engine.handle(Event::Tick, later + SEARCH));
    assert_eq!(done.len(), 2);
    assert_eq!(engine.wakeup(), None);
}

/// How a simulated peer treats a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Honest,
    Empty,
    Lying,
    Silent,
    Busy,
}

fn manner(n: u8) -> Manner {
    match n % 5 {
        0 => Manner::Honest,
        1 => Manner::Empty,
        2 => Manner::Lying,
        3 => Manner::Silent,
        _ => Manner::Busy,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Seeded groups of peers of every manner that come and go: each waiter hears exactly once, in time, and never wrong bytes; and
    /// when an honest peer stays connected, it hears the right ones.
    #[test]
    fn every_waiter_hears_once_and_in_time(
        peers in proptest::collection::vec((0u8..5, 0u64..4_000, 0u64..40_000), 1..6),
        wants in proptest::collection::vec((0u8..30, 0u64..5_000), 1..40),
        stable: bool,
    ) {
        let start = Instant::now();
        let mut engine = Engine::default();
        engine.handle(Event::Prospects(peers.len()), start);
        // (time in ms, order, event)
        let mut agenda: BTreeMap<(u64, u64), Event> = BTreeMap::new();
        let mut order = 0;
        let mut plan = |agenda: &mut BTreeMap<(u64, u64), Event>, at: u64, event: Event| {
            order += 1;
            agenda.insert((at, order), event);
        };
        for (n, (_, joins, leaves)) in peers.iter().enumerate() {
            plan(&mut agenda, *joins, up(n as u64));
            if !stable {
                plan(&mut agenda, joins + leaves, Event::LinkDown(n as u64));
            }
        }
        for (waiter, (n, at)) in wants.iter().enumerate() {
            plan(&mut agenda, *at, want(waiter as u64, *n, start + Duration::from_millis(*at)));
        }
        let mut heard: HashMap<u64, (u64, Result<CheckedBlock, FetchError>)> = HashMap::new();
        let mut now_ms = 0;
        let mut steps = 0;
        loop {
            steps += 1;
            prop_assert!(steps < 100_000, "the engine does not come to rest");
            // To the next whole millisecond: at the one before it is not time yet.
            let whole = |time: Duration| time.as_nanos().div_ceil(1_000_000) as u64;
            let wake = engine.wakeup().map(|at| whole(at.saturating_duration_since(start)));
            let next = agenda.first_key_value().map(|((at, _), _)| *at);
            let event = match (next, wake) {
                (None, None) => break,
                (Some(at), wake) if wake.is_none_or(|w| at <= w) => {
                    now_ms = now_ms.max(at);
                    agenda.pop_first().unwrap().1
                }
                (_, Some(w)) => {
                    now_ms = now_ms.max(w);
                    Event::Tick
                }
                _ => unreachable!(),
            };
            for action in engine.handle(event, start + Duration::from_millis(now_ms)) {
                match action {
                    Action::Send(link, Ask::Get(block_id)) => {
                        let n = (0..30).find(|n| id(*n) == block_id).unwrap();
                        let reply = match manner(peers[link as usize].0) {
                            Manner::Honest => Reply::Block(checked(block(n))),
                            Manner::Empty => Reply::Missing(block_id),
                            Manner::Lying => Reply::Wrong(block_id),
                            Manner::Busy => Reply::Busy(block_id, 500),
                            Manner::Silent => continue,
                        };
                        plan(&mut agenda, now_ms + 5 + u64::from(n), Event::Reply(link, reply));
                    }
                    Action::Send(link, Ask::Have(ids)) => {
                        let holds = manner(peers[link as usize].0) != Manner::Empty;
                        let held = ids.into_iter().map(|id| (id, holds)).collect();
                        plan(&mut agenda, now_ms + 3, Event::Reply(link, Reply::Held(held)));
                    }
                    Action::Send(..) | Action::Banned(..) | Action::Find(_) => {}
                    Action::Lookup(root) => plan(&mut agenda, now_ms + 100, Event::LookedUp(root)),
                    Action::Done(waiter, result) => {
                        prop_assert!(heard.insert(waiter, (now_ms, result)).is_none(), "heard twice");
                    }
                }
            }
        }
        let honest = peers.iter().any(|(m, ..)| manner(*m) == Manner::Honest);
        for (waiter, (n, at)) in wants.iter().enumerate() {
            let (when, result) = heard.get(&(waiter as u64)).expect("heard nothing");
            prop_assert!(*when <= at + 30_000);
            if let Ok(bytes) = result {
                prop_assert_eq!(bytes.bytes(), &block(*n));
            }
            prop_assert!(!(stable && honest) || result.is_ok(), "{:?}", result);
        }
        prop_assert!(engine.wants.is_empty() && engine.queue.is_empty());
    }
}
