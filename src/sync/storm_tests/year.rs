//! One of three devices is away for a year, while the others forget what they need not keep.

use std::collections::BTreeMap;

use super::{Arc, CALLER, Ordering, OsString, ROOT_INO, RW, Settings, Storm, Wait, storms};
use crate::base::clock::{Clock, ManualClock};
use crate::folder::keep::Keep;

const DAY: u64 = 24 * 3600;

/// The device that is away.
const AWAY: usize = 2;

impl Storm {
    /// The devices that are not away come to one tree.
    fn meet(&self) {
        for _ in 0..3 {
            for device in &self.devices[..AWAY] {
                let round = device.engine().round(true, true).unwrap();
                assert!(
                    round.failed.is_none() && !round.waiting,
                    "seed {}: {round:?}",
                    self.seed
                );
            }
        }
        let head = |n: usize| self.devices[n].engine().journal().head;
        assert_eq!(head(0), head(1), "seed {}", self.seed);
    }

    fn forget_past(&self, now: u64) {
        for device in &self.devices {
            device.engine().thin(now).unwrap();
            device.volume().collect().unwrap();
        }
    }
}

fn a_year_away(seed: u64, keep: Keep) {
    let clock = Arc::new(ManualClock::at(1_700_000_000));
    let settings = Settings {
        keep,
        clock: Arc::clone(&clock) as Arc<dyn Clock>,
        ..Settings::default()
    };
    let mut storm = Storm::with(seed, 3, &settings);
    for _ in 0..80 {
        storm.change();
        storm.meet();
    }
    storm.settle();
    storm.net.cut[AWAY].store(true, Ordering::SeqCst);
    let mut own = BTreeMap::new();
    for day in (0..365).step_by(3) {
        let now = 1_700_000_000 + day * DAY + storm.dice.roll(DAY as usize) as u64;
        clock.set(now);
        for _ in 0..3 {
            // In touch, so that nothing is changed on both at once.
            let who = storm.dice.roll(AWAY);
            storm.change_on(who);
            storm.meet();
        }
        if day % 40 == 0 {
            let name = OsString::from(format!("made while away, day {day}"));
            let content = storm.content(AWAY);
            let away = storm.devices[AWAY].volume();
            let (_, opened) = away.create(ROOT_INO, &name, 0o644, RW, &CALLER).unwrap();
            away.write(opened.fh, 0, &content, Wait::Bounded).unwrap();
            away.flush(opened.fh).unwrap();
            away.release(opened.fh);
            own.insert(name, content);
            storm.devices[AWAY].engine().round(true, true).unwrap();
        }
        if day % 7 == 0 {
            storm.forget_past(now);
        }
        if day % 90 == 0 {
            storm.devices[AWAY].life = None;
            storm.devices[AWAY].start();
        }
    }
    let expected = storm.devices[0].tree();
    storm.net.cut[AWAY].store(false, Ordering::SeqCst);
    storm.settle();
    // What was deleted stays so, and what is new on either side is there.
    let mut found = storm.devices[AWAY].tree();
    for (name, content) in own {
        let path = vec![name.clone()];
        let told = found.remove(&path);
        assert!(told.is_some(), "seed {seed}: {name:?} is lost");
        let ino = storm.devices[0].volume().lookup(ROOT_INO, &name).unwrap().ino;
        assert_eq!(storm.devices[0].read(ino), Some(content), "seed {seed}: {name:?}");
    }
    assert_eq!(found, expected, "seed {seed}");
}

#[test]
fn who_was_away_for_a_year_rolls_nothing_back() {
    for seed in storms(1) {
        a_year_away(seed, Keep::default());
        a_year_away(seed + 1000, Keep::Rules(Vec::new()));
    }
}
