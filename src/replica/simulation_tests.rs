//! What must hold in the simulated world. `DFS_TEST_SEED` repeats a run; `tests/run --long` runs for longer.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use super::message::Unfreed;
use super::rules::Rules;
use super::simulation::{DAY, Dice, FAIR, HOUR, Lie, MINUTE, SECOND, Sent, Weather, World};
use crate::base::BlockId;
use crate::store::ReplicaStore;

pub(super) fn is_long() -> bool {
    std::env::var("NEXTEST_PROFILE").is_ok_and(|profile| profile == "long")
}

/// Runs `round` with seeds one after another: the one given, or at least `count` new ones, for at most about `secs` seconds
/// (an hour with `--long`).
pub(super) fn with_seeds(count: u64, secs: u64, round: impl Fn(u64)) {
    let run = |seed: u64| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| round(seed))) {
            eprintln!("repeat with DFS_TEST_SEED={seed}");
            resume_unwind(panic);
        }
    };
    if let Some(seed) = std::env::var("DFS_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        return run(seed);
    }
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let first = since.as_nanos() as u64 % 1_000_000_000;
    eprintln!("DFS_TEST_SEED={first}, then one more each");
    let start = Instant::now();
    let secs = Duration::from_secs(if is_long() { 1200 } else { secs });
    let count = if is_long() { u64::MAX } else { count };
    let mut done = 0;
    while done < count && (start.elapsed() < secs || done == 0) {
        // The last one that is told is the one that hangs, when one does.
        eprintln!("seed {}", first + done);
        run(first + done);
        done += 1;
    }
    eprintln!("{done} seeds");
}

pub(super) fn storm(dice: &mut Dice) -> Weather {
    Weather {
        loss: dice.below(200),
        twice: dice.below(100),
        delay_ms: 1 + dice.below(2000),
        crashes: dice.below(700),
    }
}

/// Devices in zones of their own, all with a volume, all hosts.
fn equals(world: &mut World, count: usize, rules: Rules) -> Vec<usize> {
    let all: Vec<usize> = (0..count)
        .map(|n| world.add(&format!("zone {n}"), 1 << 30, true, rules))
        .collect();
    all.iter().for_each(|n| world.boot(*n));
    all
}

/// Quiet weather, everybody up who can be, and time for everything to settle.
pub(super) fn settle(world: &mut World, time: u64) {
    world.weather = FAIR;
    for n in 0..world.devices.len() {
        world.split(n, 0);
        world.devices[n].disk_heals();
        world.boot(n);
    }
    let until = world.now + time;
    while world.now < until {
        let next = (world.now + HOUR).min(until);
        world.run(next);
        for n in 0..world.devices.len() {
            world.boot(n);
        }
    }
}

pub(super) fn assert_all_repaired(world: &World) {
    for n in 0..world.devices.len() {
        let device = &world.devices[n];
        if device.gone || device.lie.is_some() {
            continue;
        }
        for (block, wanted) in &device.retained {
            if world.excused.contains(block) {
                continue;
            }
            let honest = world
                .devices
                .iter()
                .filter(|d| !d.gone && d.lie.is_none() && d.setup.quota > 0);
            let zones: BTreeSet<_> = honest
                .map(|d| d.setup.zone.clone())
                .filter(|z| *z != device.setup.zone)
                .collect();
            // A liar that was acquitted counts until it is found again.
            let liars = world.devices.iter().filter(|d| d.lie.is_some()).count();
            let need = usize::from(*wanted).min(zones.len()).saturating_sub(liars);
            if let Some(group) = world.group_of(n, block) {
                let all = group.data.len() + group.parity.len();
                let have = world.honest_shards(n, &group);
                assert!(
                    have >= all.min(zones.len()).saturating_sub(liars),
                    "{block} of device {n} has {have} shards of {all}: {:?}",
                    group
                        .ids()
                        .map(|id| device.store().replicas(id))
                        .collect::<Vec<_>>()
                );
                continue;
            }
            let have = world.honest_replicas(n, block);
            assert!(
                have >= need,
                "{block} of device {n} has {have} replicas instead of {need}: {:?}",
                device.store().kept(block)
            );
        }
    }
}

pub(super) fn assert_nothing_leaks(world: &World) {
    for (n, device) in world.devices.iter().enumerate() {
        if device.gone || device.lie.is_some() {
            continue;
        }
        for (block, _) in crate::store::BlockStore::list(device.store(), None, usize::MAX).unwrap() {
            let leases = device.store().leases(&block).unwrap();
            for lease in &leases {
                let owner = world
                    .devices
                    .iter()
                    .find(|d| d.setup.device == lease.owner)
                    .unwrap();
                assert!(
                    owner.retained.contains_key(&block) || world.is_shard(owner, &block),
                    "device {n} keeps {block} for an owner that does not retain it"
                );
                let knows = owner
                    .store()
                    .replicas(&block)
                    .unwrap()
                    .iter()
                    .any(|r| r.holder == device.setup.device);
                assert!(knows, "device {n} keeps {block} for an owner that does not know");
            }
            let own = device.setup.has_volume && device.retained.contains_key(&block);
            assert!(own || !leases.is_empty(), "device {n} has {block} for nobody");
        }
        assert!(
            device.store().owed_to().unwrap().is_empty(),
            "device {n} still owes"
        );
    }
}

pub(super) fn assert_nothing_is_lost(world: &World) {
    let lost: Vec<BlockId> = world
        .lost()
        .into_iter()
        .filter(|b| !world.excused.contains(b))
        .collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
}

/// After a quiet day nothing is said any more but what keeps leases alive and holders honest.
pub(super) fn assert_silence(world: &mut World) {
    world.sent = Sent::default();
    let until = world.now + DAY / 2;
    world.run(until);
    // Wishes that cannot be fulfilled are repeated every hour, full hosts tried again every day, and what a liar lost is replaced.
    let busy = Sent {
        audits: 0,
        leases: 0,
        moves: 0,
        ..world.sent
    };
    if world
        .devices
        .iter()
        .any(|device| device.lie.is_some() || device.is_small())
    {
        return;
    }
    assert_eq!(busy, Sent::default(), "still busy");
}

#[test]
fn two_devices_that_free_the_same_files_at_once_leave_replicas_of_all() {
    with_seeds(1000, 12, |seed| {
        let mut world = World::new(seed);
        let count = 2 + world.dice.below(3) as usize;
        let all = equals(&mut world, count, Rules::default());
        world.run(world.now + MINUTE);
        let blocks: Vec<BlockId> = (0..1 + world.dice.below(12)).map(|_| world.write(0)).collect();
        // The other has the same files, some of them read already.
        world.retain(1, &blocks, 2);
        for block in &blocks {
            if world.dice.hits(700) {
                world.read(1, block);
            }
        }
        world.run(world.now + 10 * MINUTE);
        assert_all_repaired(&world);
        let mut dice = Dice::new(seed ^ 1);
        world.weather = storm(&mut dice);
        for _ in 0..1 + dice.below(3) {
            for n in [0, 1] {
                let wait = dice.below(400);
                world.run(world.now + wait);
                world.free(n, &blocks);
            }
            let wait = dice.below(3 * SECOND);
            world.run(world.now + wait);
            match dice.below(4) {
                0 => world.split(all[dice.below(count as u64) as usize], 1),
                1 => world.crash(all[dice.below(count as u64) as usize]),
                _ => {}
            }
            assert_nothing_is_lost(&world);
        }
        settle(&mut world, 2 * HOUR);
        assert_nothing_is_lost(&world);
        assert_all_repaired(&world);
        // Not too careful either: in peace one of two gets what it wants.
        let here = world.write(0);
        world.run(world.now + 10 * MINUTE);
        world.free(0, &[here]);
        world.run(world.now + 10 * MINUTE);
        let device = &world.devices[0];
        assert_eq!(
            device.store().length(&here).unwrap(),
            None,
            "{:?}",
            device.unfreed
        );
    });
}

#[test]
fn a_group_in_storms_keeps_everything_and_comes_to_rest() {
    with_seeds(u64::MAX, 12, |seed| storms(seed, None));
}

#[test]
fn shards_in_storms_keep_everything_and_come_to_rest() {
    with_seeds(u64::MAX, 12, |seed| {
        let shape = [(2, 1), (3, 1), (2, 2), (4, 2)][(seed % 4) as usize];
        storms(seed, Some(shape));
    });
}

/// All kinds of mishaps, with blocks by themselves or in groups of `data` and `parity` shards.
fn storms(seed: u64, shape: Option<(u8, u8)>) {
    let mut world = World::new(seed);
    let mut dice = Dice::new(seed ^ 2);
    let volumes = 2 + dice.below(3) as usize;
    // Sometimes too few for groups, from the beginning or later.
    let more = shape.map_or(0, |(data, parity)| u64::from(data + parity) - 3);
    let hosts = (3 + more + dice.below(3)) as usize;
    let zones = 4 + more + dice.below(4);
    for n in 0..volumes + hosts {
        let own = 4 + more as usize;
        let zone = format!("zone {}", if n < own { n as u64 } else { dice.below(zones) });
        // Some are soon full: a block has 96 bytes.
        let quota = if dice.hits(200) { 1000 } else { 1 << 20 };
        let at = world.add(&zone, quota, n < volumes, Rules::default());
        world.devices[at].wall_error = dice.below(100 * 86_400);
        if let Some((data, parity)) = shape.filter(|_| n < volumes) {
            world.protect(at, data, parity);
        }
    }
    let wanted = world.devices[0].setup.wanted;
    // At most one lies, or every promise of the others would be worth nothing.
    if dice.hits(500) {
        let liar = volumes + dice.below(hosts as u64) as usize;
        world.devices[liar].lie = Some([Lie::Drops, Lie::Corrupts, Lie::Withholds][dice.below(3) as usize]);
    }
    (0..volumes + hosts).for_each(|n| world.boot(n));
    world.run(world.now + MINUTE);
    let mut destroyed = false;
    for _ in 0..30 + dice.below(40) {
        if dice.hits(200) {
            world.weather = if dice.hits(500) { FAIR } else { storm(&mut dice) };
        }
        let at = dice.below(volumes as u64) as usize;
        let any = dice.below((volumes + hosts) as u64) as usize;
        match dice.below(14) {
            0..=3 if world.devices[at].is_up() => {
                for _ in 0..dice.below(20) {
                    let block = world.write(at);
                    // Another device gets the same tree.
                    let other = dice.below(volumes as u64) as usize;
                    if other != at {
                        world.retain(other, &[block], wanted);
                    }
                }
            }
            4 | 5 => {
                let mine: Vec<BlockId> = world.devices[at].retained.keys().copied().collect();
                world.free(at, &mine);
            }
            6 => {
                // Deleted, which all of the volume come to know: after a while nobody retains it.
                let mine: Vec<BlockId> = world.devices[at]
                    .retained
                    .keys()
                    .copied()
                    .filter(|_| dice.hits(200))
                    .collect();
                for n in 0..volumes {
                    if world.devices[n].is_up() {
                        world.give_up(n, &mine);
                    } else {
                        world.devices[n].retained.retain(|block, _| !mine.contains(block));
                    }
                }
            }
            7 => world.crash(any),
            8 => world.split(any, dice.below(3) as u8),
            9 => world.split(any, 0),
            10 => {
                let mine: Vec<BlockId> = world.devices[at].retained.keys().copied().collect();
                if !mine.is_empty() {
                    world.read(at, &mine[dice.below(mine.len() as u64) as usize]);
                }
            }
            11 => {
                // Away for a long time, with a clock that is wrong when it comes back.
                world.stop(any);
                world.devices[any].wall_error = dice.below(400 * 86_400);
            }
            12 if !destroyed && world.devices[any].lie.is_none() => {
                destroyed = true;
                world.destroy(any);
                world.dismiss(any);
            }
            _ => world.boot(any),
        }
        let longest = if dice.hits(100) { 10 * DAY } else { HOUR };
        let wait = dice.below(longest);
        world.run(world.now + wait);
        assert_nothing_is_lost(&world);
    }
    for n in 0..volumes {
        let kept: Vec<BlockId> = Vec::new();
        world.boot(n);
        world.give_up(n, &kept);
    }
    settle(&mut world, 3 * DAY);
    assert_nothing_is_lost(&world);
    // A crash may have interrupted the marking: then a volume names everything once more.
    for n in 0..volumes {
        world.give_up(n, &[]);
    }
    // Leases of those that never come back, and of requests whose answers were lost, run out.
    settle(&mut world, 135 * DAY);
    for n in 0..volumes {
        world.collect(n);
    }
    assert_nothing_is_lost(&world);
    assert_all_repaired_where_there_is_room(&world);
    assert_nothing_leaks(&world);
    assert_silence(&mut world);
}

/// With hosts that are full, only that nothing is worse than it has to be can be said: where none is, everything is repaired.
fn assert_all_repaired_where_there_is_room(world: &World) {
    if !world.devices.iter().any(|device| device.is_small()) {
        assert_all_repaired(world);
    }
}

#[test]
fn a_liar_is_found_and_replaced() {
    for (seed, lie) in [(1, Lie::Drops), (2, Lie::Corrupts), (3, Lie::Withholds)] {
        let mut world = World::new(seed);
        let all = equals(&mut world, 5, Rules::default());
        world.devices[4].lie = Some(lie);
        world.run(world.now + MINUTE);
        for _ in 0..40 {
            world.write(0);
        }
        world.run(world.now + DAY * 3 / 2);
        let liar = world.devices[4].setup.device;
        assert!(
            world.devices[all[0]].condemned.contains(&liar),
            "{lie:?} was not found"
        );
        world.run(world.now + HOUR);
        assert_all_repaired(&world);
        // And not a moment later than its owner wants to rely on it.
        let blocks: Vec<BlockId> = world.devices[0].retained.keys().copied().collect();
        world.free(0, &blocks);
        world.run(world.now + HOUR);
        assert_eq!(world.devices[0].freed, 40, "{:?}", world.devices[0].unfreed);
        assert_nothing_is_lost(&world);
    }
}

#[test]
fn an_owner_that_is_away_for_a_year_finds_everything() {
    let mut world = World::new(4);
    let owner = world.add("home", 0, true, Rules::default());
    let hosts: Vec<usize> = (0..2)
        .map(|n| world.add(&format!("host {n}"), 1 << 20, false, Rules::default()))
        .collect();
    (0..3).for_each(|n| world.boot(n));
    world.run(world.now + MINUTE);
    let blocks: Vec<BlockId> = (0..20).map(|_| world.write(owner)).collect();
    world.run(world.now + HOUR);
    world.free(owner, &blocks);
    world.run(world.now + HOUR);
    assert_eq!(
        world.devices[owner].freed, 20,
        "{:?}",
        world.devices[owner].unfreed
    );
    world.stop(owner);
    // The hosts' wall clocks jump ahead by years meanwhile, and they restart.
    for month in 0..12 {
        world.run(world.now + 30 * DAY);
        for host in &hosts {
            world.devices[*host].wall_error += month * 40 * 86_400;
            world.stop(*host);
            world.boot(*host);
        }
    }
    assert_nothing_is_lost(&world);
    world.boot(owner);
    world.run(world.now + DAY);
    assert_all_repaired(&world);
    assert_silence(&mut world);
    // Removed from the group, its leases do end.
    world.destroy(owner);
    world.dismiss(owner);
    world.run(world.now + 140 * DAY);
    for host in hosts {
        assert_eq!(world.devices[host].store().held_bytes().unwrap(), 0);
    }
}

#[test]
fn a_reboot_moves_nothing_and_a_loss_is_repaired() {
    let mut world = World::new(5);
    let all = equals(&mut world, 5, Rules::default());
    world.run(world.now + MINUTE);
    for _ in 0..30 {
        world.write(0);
    }
    world.run(world.now + HOUR);
    assert_all_repaired(&world);
    world.sent = Sent::default();
    for n in all {
        world.stop(n);
        world.run(world.now + 8 * HOUR);
        world.boot(n);
        world.run(world.now + HOUR);
    }
    assert_eq!(
        (world.sent.puts, world.sent.releases),
        (0, 0),
        "a night moves nothing"
    );
    for n in [3, 4] {
        world.destroy(n);
    }
    world.run(world.now + 2 * DAY);
    assert_all_repaired(&world);
    assert!(world.sent.puts + world.sent.leases > 0);
}

#[test]
fn a_device_that_wants_space_back_gets_it_by_moving_what_it_holds() {
    let mut world = World::new(6);
    equals(&mut world, 4, Rules::default());
    world.run(world.now + MINUTE);
    let blocks: Vec<BlockId> = (0..30).map(|_| world.write(0)).collect();
    world.retain(1, &blocks, 2);
    blocks.iter().for_each(|block| world.read(1, block));
    world.run(world.now + HOUR);
    let held = world.devices[1].store().held_bytes().unwrap();
    assert!(held > 0);
    world.free(1, &blocks);
    world.run(world.now + MINUTE);
    assert!(world.devices[1].unfreed[&Unfreed::HeldForOthers] > 0);
    world.run(world.now + 6 * HOUR);
    assert_eq!(
        world.devices[1].store().held_bytes().unwrap(),
        0,
        "{:?}",
        world.devices[1].unfreed
    );
    assert_all_repaired(&world);
    assert_nothing_is_lost(&world);
}

#[test]
fn many_devices_share_the_load_and_replace_who_leaves() {
    let count = if is_long() { 1000 } else { 60 };
    let mut world = World::new(7);
    let rules = Rules {
        audit_secs: 6 * 3600,
        sleep_ms: HOUR,
        ..Rules::default()
    };
    for n in 0..count {
        // A few write, all hold.
        world.add(&format!("zone {}", n % (count / 2)), 1 << 20, n < 5, rules);
    }
    (0..count).for_each(|n| world.boot(n));
    world.run(world.now + MINUTE);
    for n in 0..5 {
        for _ in 0..100 {
            world.write(n);
        }
    }
    world.run(world.now + HOUR);
    assert_all_repaired(&world);
    let blocks: Vec<BlockId> = world.devices[0].retained.keys().copied().collect();
    world.free(0, &blocks);
    world.run(world.now + HOUR);
    assert_eq!(world.devices[0].freed, 100, "{:?}", world.devices[0].unfreed);
    for round in 0..4 {
        // A tenth leaves for good, one after another.
        for n in 0..count.div_ceil(40) {
            let at = 5 + (round * 17 + n * 31) % (count - 5);
            if !world.devices[at].gone {
                world.destroy(at);
                world.run(world.now + 2 * DAY);
            }
        }
        assert_nothing_is_lost(&world);
    }
    world.run(world.now + 2 * DAY);
    assert_all_repaired(&world);
    assert!(
        world.excused.is_empty(),
        "two days are enough to repair before the next one leaves"
    );
}
