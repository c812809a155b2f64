//! `kill -9` of any of three computers in the midst of replicating, freeing, checking and collecting: nothing is lost, and nothing is
//! kept that nobody needs.
//!
//! `DFS_TEST_SEED` repeats the order of things (their timing cannot be repeated), `DFS_TEST_KILLS` sets how many kills there are.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use super::replicas::{drop_caches, lacking, three};
use crate::harness::command::{Cmd, Running};
use crate::harness::volume::TestVolume;
use crate::harness::{Dice, noise, seed, wait_for};

/// Everything that has to come right again after a kill.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn kills_in_the_midst_of_replication() {
    kill_often(10);
}

#[test]
#[ignore = "takes twenty minutes: only with --long"]
fn many_kills_in_the_midst_of_replication() {
    kill_often(200);
}

/// What A's files hold, as far as it was acknowledged: the seed and the length of their content.
type Files = BTreeMap<u64, (u64, usize)>;

/// Blocks of an empty tree and of the snapshots that lead to it: each computer keeps up to 256 of these small blocks, and gives back those
/// that it needs no more when it next names all that it needs.
const TREE_BLOCKS: u64 = 300;

fn kill_often(kills: u64) {
    let kills = std::env::var("DFS_TEST_KILLS").map_or(kills, |text| text.parse().unwrap());
    let mut dice = Dice::new(seed());
    let (_cable, a, b, c) = three();
    let mut all = [a, b, c];
    let mut files = Files::new();
    for kill in 0..kills {
        let victim = dice.below(3) as usize;
        let deed = ["sync", "free", "verify", "gc", "pin"][dice.below(5) as usize];
        eprintln!("kill {kill}: computer {victim} during {deed}");
        write_some(&all[0], &mut files, &mut dice, kill);
        let running = begin(&all[0], deed);
        std::thread::sleep(Duration::from_millis(dice.below(600)));
        all[victim].kill();
        Cmd::new("umount").arg("-l").arg(all[victim].mountpoint()).ok();
        drop(running);
        all[victim].mount();
        if dice.below(3) == 0 {
            all_come_right(&all, &files);
        }
    }
    all_come_right(&all, &files);
    // Nothing is left of what nobody needs.
    for name in files.keys() {
        fs::remove_file(all[0].at(&name.to_string())).unwrap();
    }
    all[0].dfs(["gc", "--now"]).arg(all[0].folder()).ok();
    wait_for("all leases are given back", PATIENCE, || {
        let status = all[0].status();
        let members = status["replication"]["members"].as_array().unwrap();
        let stored = |member: &serde_json::Value| member["stored_blocks"].as_u64().unwrap();
        members.iter().all(|member| stored(member) <= TREE_BLOCKS)
            && all[1..].iter().all(|holder| leased(holder) <= 3 * TREE_BLOCKS)
    });
    wait_for("nothing is kept here either", PATIENCE, || {
        all[0].dfs(["gc", "--now"]).arg(all[0].folder()).ok();
        all[0].status()["store"]["blocks"].as_u64().unwrap() <= TREE_BLOCKS
    });
}

/// Blocks that a computer keeps for others.
fn leased(holder: &TestVolume) -> u64 {
    let status = holder.status();
    let members = status["replication"]["members"].as_array().unwrap();
    members
        .iter()
        .map(|member| member["held_blocks"].as_u64().unwrap())
        .sum()
}

/// Files come, change and go.
fn write_some(volume: &TestVolume, files: &mut Files, dice: &mut Dice, round: u64) {
    for _ in 0..1 + dice.below(4) {
        let name = dice.below(12);
        let path = volume.at(&name.to_string());
        if files.contains_key(&name) && dice.below(4) == 0 {
            fs::remove_file(path).unwrap();
            files.remove(&name);
            continue;
        }
        let content = (round * 100 + name, 100_000 + dice.below(4_000_000) as usize);
        fs::write(path, noise(content.0, content.1)).unwrap();
        files.insert(name, content);
    }
}

fn begin(volume: &TestVolume, deed: &str) -> Running {
    let command = match deed {
        "sync" => volume.dfs(["sync", "--wait", "30"]),
        "gc" => volume.dfs(["gc", "--now"]),
        other => volume.dfs([other]),
    };
    command.arg(volume.mountpoint()).start()
}

/// Every file can be read and has its replicas.
fn all_come_right(all: &[TestVolume; 3], files: &Files) {
    // What was pinned would stay for ever.
    all[0].dfs(["unpin"]).arg(all[0].mountpoint()).ok();
    wait_for("everything has its replicas", PATIENCE, || {
        lacking(&all[0]).0 == 0
    });
    drop_caches();
    for (name, (seed, len)) in files {
        let path = all[0].at(&name.to_string());
        wait_for("a file can be read", PATIENCE, || match fs::read(&path) {
            Ok(found) => {
                assert!(found == noise(*seed, *len), "{name} has other bytes");
                true
            }
            Err(_) => false,
        });
    }
}
