//! The same random operations on a mount and on a plain directory, with kills and remounts between: both must stay the same.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::harness::tree;
use crate::harness::volume::TestVolume;
use crate::harness::{Dice, long, noise, seed};

#[test]
fn random_operations_with_kills_and_remounts() {
    let bound = Duration::from_secs(if long() { 600 } else { 20 });
    let mut volume = TestVolume::mounted();
    let model = volume.place().join("model");
    fs::create_dir(&model).unwrap();
    let mut dice = Dice::new(seed());
    let start = Instant::now();
    while start.elapsed() < bound {
        for _ in 0..150 {
            let action = Action::choose(&mut dice);
            let (ours, plain) = (action.apply(volume.mountpoint()), action.apply(&model));
            let kinds = |result: &std::io::Result<()>| result.as_ref().err().map(|e| e.raw_os_error());
            assert_eq!(
                kinds(&ours),
                kinds(&plain),
                "{action:?}: {ours:?} here, {plain:?} there"
            );
        }
        if dice.below(3) == 0 {
            volume.kill();
            volume.mount();
        } else if dice.below(2) == 0 {
            volume.remount();
        }
        let expected = without_virtual(tree::snapshot(&model));
        let mut found = without_virtual(tree::snapshot(volume.mountpoint()));
        for (path, entry) in &mut found {
            entry.mtime = expected.get(path).and_then(|other| other.mtime);
        }
        tree::assert_same(&expected, &found);
    }
}

fn without_virtual<V>(
    mut tree: std::collections::BTreeMap<PathBuf, V>,
) -> std::collections::BTreeMap<PathBuf, V> {
    tree.retain(|path, _| !path.starts_with(".dfs"));
    tree
}

fn name(dice: &mut Dice) -> PathBuf {
    let file = format!("f{}", dice.below(12));
    match dice.below(4) {
        0 => PathBuf::from(file),
        n => PathBuf::from(format!("d{n}")).join(file),
    }
}

#[derive(Debug)]
enum Action {
    Write(PathBuf, u64, usize),
    Patch(PathBuf, u64, u64, usize),
    Append(PathBuf, u64, usize),
    Cut(PathBuf, u64),
    Rename(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Unlink(PathBuf),
    MakeDir(u64),
    RemoveDir(u64),
    Mode(PathBuf, u32),
}

impl Action {
    fn choose(dice: &mut Dice) -> Self {
        let seed = dice.below(1 << 40);
        let small = |dice: &mut Dice| {
            let bound = [10, 5_000, 300_000, 2_000_000][dice.below(4) as usize];
            dice.below(bound)
        };
        match dice.below(16) {
            0..=3 => Self::Write(name(dice), seed, small(dice) as usize),
            4..=6 => Self::Patch(name(dice), seed, small(dice), small(dice) as usize),
            7 => Self::Append(name(dice), seed, dice.below(9_000) as usize),
            8 => Self::Cut(name(dice), small(dice)),
            9..=10 => Self::Rename(name(dice), name(dice)),
            11 => Self::Link(name(dice), name(dice)),
            12 => Self::Unlink(name(dice)),
            13 => Self::MakeDir(dice.below(4)),
            14 => Self::RemoveDir(dice.below(4)),
            _ => Self::Mode(name(dice), [0o644, 0o600, 0o755, 0o4755][dice.below(4) as usize]),
        }
    }

    fn apply(&self, root: &Path) -> std::io::Result<()> {
        let at = |path: &PathBuf| root.join(path);
        let open = |path: &PathBuf| fs::File::options().write(true).open(at(path));
        match self {
            Self::Write(path, seed, len) => fs::write(at(path), noise(*seed, *len)),
            Self::Patch(path, seed, offset, len) => open(path)?.write_all_at(&noise(*seed, *len), *offset),
            Self::Append(path, seed, len) => {
                let mut file = fs::File::options().append(true).open(at(path))?;
                file.write_all(&noise(*seed, *len))
            }
            Self::Cut(path, len) => open(path)?.set_len(*len),
            Self::Rename(from, to) => fs::rename(at(from), at(to)),
            Self::Link(from, to) => fs::hard_link(at(from), at(to)),
            Self::Unlink(path) => fs::remove_file(at(path)),
            Self::MakeDir(number) => fs::create_dir(root.join(format!("d{number}"))),
            Self::RemoveDir(number) => fs::remove_dir(root.join(format!("d{number}"))),
            Self::Mode(path, bits) => {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(at(path), fs::Permissions::from_mode(*bits))
            }
        }
    }
}
