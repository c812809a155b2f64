//! `kill -9` of the daemon at random moments of random concurrent work: what `close` returned for is there, and so is every name.
//!
//! `DFS_TEST_SEED` repeats the work of a run (its timing cannot be repeated), `DFS_TEST_KILLS` sets how many kills there are.

use std::time::Duration;

use crate::harness::command::Cmd;
use crate::harness::ledger::Crash;
use crate::harness::volume::{ALONE, TestVolume};
use crate::harness::workers::Workers;
use crate::harness::{Dice, seed};

#[test]
fn kills_at_random_moments() {
    kill_often(8);
}

#[test]
#[ignore = "takes twenty minutes: only with --long"]
fn many_kills_at_random_moments() {
    kill_often(500);
}

fn kill_often(kills: u64) {
    let kills = std::env::var("DFS_TEST_KILLS").map_or(kills, |text| text.parse().unwrap());
    let mut dice = Dice::new(seed());
    let mut volume = TestVolume::mounted();
    let mut workers = Workers::prepare(&volume, 3);
    for kill in 0..kills {
        eprintln!("kill {kill}");
        let interval = [1, 1, 3600][dice.below(3) as usize];
        volume.configure(&format!("{ALONE}[volume]\nsync_interval = {interval}\n"));
        if kill % 2 == 0 {
            volume.remount();
        }
        let round = workers.start(dice.below(1 << 60));
        std::thread::sleep(Duration::from_millis(50 + dice.below(1500)));
        round.crash_comes();
        volume.kill();
        let ended = round.end();
        Cmd::new("umount").arg("-l").arg(volume.mountpoint()).ok();
        volume.mount();
        workers.judge(ended, Crash::Kill);
    }
    volume.unmount();
    volume.own("fsck-dfs").arg(volume.folder()).ok();
}
