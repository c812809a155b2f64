//! What must hold of groups in the simulated world; the storms that they go through are in `simulation_tests`.

use super::rules::Rules;
use super::simulation::{DAY, Dice, HOUR, MINUTE, SECOND, World};
use super::simulation_tests::{
    assert_all_repaired, assert_nothing_is_lost, assert_nothing_leaks, assert_silence, settle, storm,
    with_seeds,
};
use crate::base::BlockId;
use crate::store::{GroupStore, ReplicaStore};

/// An owner whose blocks are in groups, and so many hosts in zones of their own.
fn owner_and_hosts(seed: u64, (data, parity): (u8, u8), hosts: usize) -> World {
    let mut world = World::new(seed);
    let owner = world.add("home", 0, true, Rules::default());
    world.protect(owner, data, parity);
    for n in 0..hosts {
        world.add(&format!("host {n}"), 1 << 20, false, Rules::default());
    }
    (0..=hosts).for_each(|n| world.boot(n));
    world.run(world.now + MINUTE);
    world
}

/// How many of these blocks are in groups of which all shards are there.
fn in_whole_groups(world: &World, owner: usize, blocks: &[BlockId]) -> usize {
    let is_whole = |block: &&BlockId| {
        world.group_of(owner, block).is_some_and(|group| {
            let all = group.data.len() + group.parity.len();
            world.honest_shards(owner, &group) == all
        })
    };
    blocks.iter().filter(is_whole).count()
}

#[test]
fn a_group_survives_the_loss_of_as_many_hosts_as_it_has_parity() {
    let mut world = owner_and_hosts(11, (4, 2), 9);
    let blocks: Vec<BlockId> = (0..60).map(|_| world.write(0)).collect();
    world.run(world.now + HOUR);
    // Two lengths, less than one group of each is left over.
    assert!(in_whole_groups(&world, 0, &blocks) >= 60 - 2 * 3);
    world.free(0, &blocks);
    world.run(world.now + HOUR);
    assert_eq!(world.devices[0].freed, 60, "{:?}", world.devices[0].unfreed);
    let (bytes, all): (u64, u64) = (world.held(), blocks.iter().map(|block| world.len(block)).sum());
    assert!(bytes < all * 17 / 10, "{bytes} bytes are kept for {all}");
    world.destroy(3);
    world.destroy(7);
    assert!(world.excused.is_empty());
    assert_nothing_is_lost(&world);
    world.run(world.now + 2 * DAY);
    assert!(in_whole_groups(&world, 0, &blocks) >= 60 - 2 * 3);
    assert_all_repaired(&world);
    // And again, after the repair.
    world.destroy(1);
    world.destroy(9);
    assert!(world.excused.is_empty());
    assert_silence(&mut world);
}

#[test]
fn others_can_read_when_the_owner_is_lost_as_well() {
    let mut world = owner_and_hosts(12, (4, 2), 6);
    let reader = world.add("elsewhere", 0, true, Rules::default());
    world.boot(reader);
    let blocks: Vec<BlockId> = (0..40).map(|_| world.write(0)).collect();
    world.run(world.now + HOUR);
    world.free(0, &blocks);
    world.run(world.now + HOUR);
    assert_eq!(world.devices[0].freed, 40, "{:?}", world.devices[0].unfreed);
    world.retain(reader, &blocks, 0);
    for gone in [0, 2, 5] {
        world.destroy(gone);
    }
    assert!(world.excused.is_empty());
    for block in &blocks {
        world.read(reader, block);
        assert!(world.devices[reader].has(block), "{block} cannot be read");
    }
}

#[test]
fn too_few_zones_mean_replicas_until_there_are_enough_again() {
    let mut world = owner_and_hosts(13, (3, 2), 4);
    let blocks: Vec<BlockId> = (0..30).map(|_| world.write(0)).collect();
    world.run(world.now + HOUR);
    for block in &blocks {
        assert_eq!(
            world.honest_replicas(0, block),
            3,
            "as many losses are survived as with a group"
        );
    }
    let fifth = world.add("host 5", 1 << 20, false, Rules::default());
    world.boot(fifth);
    world.tell_roster();
    world.run(world.now + 3 * HOUR);
    assert!(in_whole_groups(&world, 0, &blocks) >= 30 - 2 * 2);
    let held = world.held();
    world.free(0, &blocks);
    world.run(world.now + HOUR);
    assert_eq!(world.devices[0].freed, 30, "{:?}", world.devices[0].unfreed);
    // One is removed: four are too few again, and what was on it is made again.
    world.destroy(2);
    world.dismiss(2);
    world.run(world.now + DAY);
    assert!(world.excused.is_empty());
    assert_all_repaired(&world);
    assert!(world.held() > held);
    for block in &blocks {
        assert_eq!(world.honest_replicas(0, block), 3);
    }
    let store = world.devices[0].store();
    assert!(store.group_health().unwrap().is_empty(), "no group is left");
    assert_silence(&mut world);
}

#[test]
fn one_that_is_away_for_long_does_not_end_groups_that_still_bear_a_loss() {
    let mut world = owner_and_hosts(14, (4, 2), 6);
    let blocks: Vec<BlockId> = (0..40).map(|_| world.write(0)).collect();
    world.run(world.now + HOUR);
    world.stop(4);
    world.run(world.now + 3 * DAY);
    assert!(world.group_of(0, &blocks[0]).is_some());
    // What is written now cannot be in a group.
    let new = world.write(0);
    world.run(world.now + HOUR);
    assert_eq!(world.honest_replicas(0, &new), 3);
    world.boot(4);
    world.run(world.now + HOUR);
    assert!(in_whole_groups(&world, 0, &blocks) >= 40 - 2 * 3);
    // Two more at once are more than they bear: what is left is replicated one by one.
    for n in [3, 4] {
        world.stop(n);
    }
    world.run(world.now + 3 * DAY);
    for block in &blocks {
        assert!(world.honest_replicas(0, block) >= 3);
    }
}

#[test]
fn what_is_deleted_from_a_group_takes_nothing_from_the_others() {
    with_seeds(200, 8, |seed| {
        let mut dice = Dice::new(seed ^ 3);
        let mut world = owner_and_hosts(seed, (4, 2), 8);
        let mut blocks: Vec<BlockId> = (0..40).map(|_| world.write(0)).collect();
        world.run(world.now + HOUR);
        world.free(0, &blocks);
        world.run(world.now + HOUR);
        assert_eq!(world.devices[0].freed, 40, "{:?}", world.devices[0].unfreed);
        for round in 0..4 {
            let gone: Vec<BlockId> = blocks.iter().copied().filter(|_| dice.hits(300)).collect();
            blocks.retain(|block| !gone.contains(block));
            world.give_up(0, &gone);
            let wait = dice.below(2 * HOUR);
            world.run(world.now + wait);
            assert_nothing_is_lost(&world);
            if round < 2 {
                world.destroy(1 + round * 3);
                world.dismiss(1 + round * 3);
                assert!(world.excused.is_empty(), "seed {seed}: {:?}", world.excused);
                world.run(world.now + 2 * DAY);
            }
            assert_nothing_is_lost(&world);
        }
        assert_all_repaired(&world);
        world.give_up(0, &blocks);
        world.run(world.now + DAY);
        assert_nothing_leaks(&world);
        assert_eq!(world.held(), 0);
        let store = world.devices[0].store();
        assert!(store.kept_after(None, 1).unwrap().is_empty());
        assert!(store.group_health().unwrap().is_empty());
    });
}

#[test]
fn two_devices_that_free_the_same_grouped_files_at_once_leave_enough_of_all() {
    with_seeds(1000, 12, |seed| {
        let mut world = World::new(seed);
        let (data, parity) = [(2, 1), (3, 2), (4, 2)][(seed % 3) as usize];
        let count = usize::from(data + parity) + 1 + world.dice.below(2) as usize;
        for n in 0..count {
            let at = world.add(&format!("zone {n}"), 1 << 30, true, Rules::default());
            world.protect(at, data, parity);
        }
        (0..count).for_each(|n| world.boot(n));
        world.run(world.now + MINUTE);
        let blocks: Vec<BlockId> = (0..1 + world.dice.below(24)).map(|_| world.write(0)).collect();
        // The others have the same files, some of them read already.
        let readers = 1 + world.dice.below(2) as usize;
        for reader in 1..=readers {
            world.retain(reader, &blocks, parity + 1);
            for block in &blocks {
                if world.dice.hits(700) {
                    world.read(reader, block);
                }
            }
        }
        world.run(world.now + 10 * MINUTE);
        assert_all_repaired(&world);
        let mut dice = Dice::new(seed ^ 1);
        world.weather = storm(&mut dice);
        for _ in 0..1 + dice.below(3) {
            for n in 0..=readers {
                let wait = dice.below(400);
                world.run(world.now + wait);
                world.free(n, &blocks);
            }
            let wait = dice.below(3 * SECOND);
            world.run(world.now + wait);
            match dice.below(4) {
                0 => world.split(dice.below(count as u64) as usize, 1),
                1 => world.crash(dice.below(count as u64) as usize),
                _ => {}
            }
            assert_nothing_is_lost(&world);
        }
        settle(&mut world, 2 * HOUR);
        assert_nothing_is_lost(&world);
        assert_all_repaired(&world);
        // Not too careful either: in peace one gets what it wants.
        let here: Vec<BlockId> = (0..u64::from(data) * 4).map(|_| world.write(0)).collect();
        world.run(world.now + 10 * MINUTE);
        world.free(0, &here);
        world.run(world.now + 10 * MINUTE);
        let device = &world.devices[0];
        for block in &here {
            assert_eq!(
                device.store().length(block).unwrap(),
                None,
                "{:?}",
                device.unfreed
            );
        }
    });
}
