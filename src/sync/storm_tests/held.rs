//! Files that programs hold open for writing through a storm, and write to later.

use super::{BTreeSet, CALLER, OsString, RW, SetAttr, Storm, Wait, storms};
use crate::base::names::TEMP_PREFIX;
use crate::base::types::FileKind;

/// Files held open at once.
const HELD: usize = 4;

/// A file that is open for writing.
pub(super) struct Held {
    device: usize,
    fh: u64,
    ino: u64,
    /// Written and not flushed.
    written: Option<Vec<u8>>,
}

impl Storm {
    /// Opens a file for writing, or does something with one that is.
    pub(super) fn hold(&mut self) {
        let which = self.dice.roll(HELD);
        if which >= self.held.len() {
            return self.take_hold();
        }
        match self.dice.roll(4) {
            0 => self.let_one_go(which),
            1 => self.flush_one(which),
            2 => self.write_one(which),
            _ => {
                self.write_one(which);
                self.flush_one(which);
            }
        }
    }

    fn take_hold(&mut self) {
        let device = self.dice.roll(self.devices.len());
        let listed = self.devices[device].listed().into_iter();
        let files: Vec<u64> = listed
            .filter(|(_, _, kind)| *kind == FileKind::Regular)
            .map(|(_, ino, _)| ino)
            .collect();
        if files.is_empty() {
            return;
        }
        let ino = files[self.dice.roll(files.len())];
        let opened = self.devices[device].volume().open(ino, RW, Wait::Bounded);
        self.held.push(Held {
            device,
            fh: opened.unwrap().fh,
            ino,
            written: None,
        });
    }

    fn write_one(&mut self, which: usize) {
        let Held { device, fh, ino, .. } = self.held[which];
        let Some(old) = self.devices[device].read_handle(fh) else {
            return;
        };
        self.kept.remove(&old);
        let content = self.content(device);
        let volume = self.devices[device].volume();
        let empty = SetAttr {
            size: Some(0),
            ..SetAttr::default()
        };
        volume.setattr(ino, Some(fh), &empty, &CALLER).unwrap();
        volume.write(fh, 0, &content, Wait::Bounded).unwrap();
        self.held[which].written = Some(content);
    }

    fn flush_one(&mut self, which: usize) {
        let Held { device, fh, ino, .. } = self.held[which];
        let volume = self.devices[device].volume();
        volume.flush(fh).unwrap();
        let Some(content) = self.held[which].written.take() else {
            return;
        };
        // Somebody here may have written to it as well since, or have taken it away.
        let is_there = volume.getattr(ino, Some(fh)).unwrap().nlink > 0;
        if is_there && self.devices[device].read_handle(fh).as_ref() == Some(&content) {
            self.kept.insert(content);
        }
    }

    fn let_one_go(&mut self, which: usize) {
        self.flush_one(which);
        let held = self.held.swap_remove(which);
        self.devices[held.device].volume().release(held.fh);
    }

    pub(super) fn flush_held(&mut self) {
        (0..self.held.len()).for_each(|which| self.flush_one(which));
    }

    /// Those of a device that dies.
    pub(super) fn forget_held(&mut self, device: usize) {
        self.held.retain(|held| held.device != device);
    }

    /// Closes all. Nothing is left behind of those that were put aside.
    pub(super) fn let_go(&mut self) {
        while !self.held.is_empty() {
            self.let_one_go(0);
        }
        for device in &self.devices {
            let names: BTreeSet<OsString> = std::fs::read_dir(device.folder())
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            let is_hidden = |name: &&OsString| name.as_encoded_bytes().starts_with(TEMP_PREFIX.as_bytes());
            let left: Vec<_> = names.iter().filter(is_hidden).collect();
            assert!(left.is_empty(), "seed {}: {left:?}", self.seed);
        }
    }
}

#[test]
fn files_held_open_through_a_storm_keep_what_is_written_to_them() {
    for seed in storms(30) {
        let mut storm = Storm::new(seed, 3);
        storm.holds = true;
        for _ in 0..3 {
            storm.blow(40);
            storm.settle();
        }
        storm.let_go();
        storm.settle();
    }
}
