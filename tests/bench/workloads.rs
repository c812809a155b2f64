//! The workloads: each small, and each of one kind of operation.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::{Counted, Expected};
use crate::harness::calls::On;
use crate::harness::command::Cmd;
use crate::harness::volume::TestVolume;
use crate::harness::{Dice, noise};

const SMALL_FILES: u64 = 500;
const SMALL_LEN: usize = 1 << 10;
const MEDIUM_FILES: u64 = 100;
const MEDIUM_LEN: usize = 30 << 10;
const MIB: usize = 1 << 20;
const LARGE_MIB: u64 = 64;
const LARGE_LEN: u64 = LARGE_MIB << 20;
const PAGE: usize = 4 << 10;
const APPENDS: u64 = 100;
const RANDOM_READS: u64 = 500;
/// So few that the file is not worth folding afterwards, which would count when the machine is slow.
const RANDOM_WRITES: u64 = 64;

fn name(directory: &str, n: u64) -> String {
    format!("{directory}/file-{n:04}")
}

/// Files of noise in a directory of their own.
fn create(volume: &TestVolume, directory: &str, files: u64, len: usize) {
    for n in 0..files {
        fs::write(volume.at(&name(directory, n)), noise(n, len)).unwrap();
    }
}

#[test]
fn small_files() {
    let mut counted = Counted::new();
    fs::create_dir(counted.volume.at("small")).unwrap();
    let content = SMALL_FILES * SMALL_LEN as u64;
    counted
        .cost("files of 1 KiB created", SMALL_FILES, content, |volume| {
            create(volume, "small", SMALL_FILES, SMALL_LEN);
        })
        .hold(&Expected {
            calls: &[
                ("answers", 7.0),
                ("close", 1.0),
                ("fgetxattr", 2.0),
                ("fstat", 2.0),
                ("getrandom", 2.0),
                ("newfstatat", 3.0),
                ("openat2", 1.0),
                ("pwrite64", 1.0),
                ("requests", 7.0),
                ("utimensat", 1.0),
            ],
            written: 1.11,
            statements: 0.0,
            commits: 0.0,
            sealed: 0.0,
            opened: 0.0,
        });
    counted.cold();
    counted
        .cost("files looked at, cold", SMALL_FILES, 0, |volume| {
            for n in 0..SMALL_FILES {
                let meta = fs::symlink_metadata(volume.at(&name("small", n))).unwrap();
                assert_eq!(meta.len(), SMALL_LEN as u64);
            }
        })
        .hold(&Expected {
            calls: &[
                // Sizes are known from the mount before: no `.f` is opened.
                ("answers", 1.0),
                ("newfstatat", 1.0),
                ("requests", 1.0),
            ],
            written: 0.0,
            statements: 0.0,
            commits: 0.0,
            sealed: 0.0,
            opened: 0.0,
        });
    counted.cold();
    counted
        .cost("files of 1 KiB read, cold", SMALL_FILES, content, |volume| {
            for n in 0..SMALL_FILES {
                let found = fs::read(volume.at(&name("small", n))).unwrap();
                assert!(found == noise(n, SMALL_LEN), "file {n}");
            }
        })
        .hold(&Expected {
            calls: &[
                ("answers", 4.0),
                ("close", 2.0),
                ("fcntl", 2.0),
                ("getrandom", 1.0),
                ("newfstatat", 2.0),
                ("openat2", 2.0),
                ("pread64", 5.0),
                ("requests", 4.0),
            ],
            written: 0.0,
            statements: 0.0,
            commits: 0.0,
            sealed: 0.0,
            opened: 0.0,
        });
    let calls = counted.idle(Duration::from_secs(3));
    assert_eq!(calls.written(|_| true), 0, "nothing is to be written: {calls:?}");
    assert_eq!(
        calls.count(&["fsync", "fdatasync", "syncfs"], |_| true),
        0,
        "{calls:?}"
    );
    counted
        .cost("files of 1 KiB deleted", SMALL_FILES, 0, |volume| {
            for n in 0..SMALL_FILES {
                fs::remove_file(volume.at(&name("small", n))).unwrap();
            }
        })
        .hold(&Expected {
            calls: &[
                ("answers", 3.0),
                ("close", 2.0),
                ("fstat", 2.0),
                ("newfstatat", 3.0),
                ("openat2", 2.0),
                ("pread64", 2.0),
                ("requests", 4.0),
                ("unlinkat", 1.0),
            ],
            written: 0.0,
            statements: 0.0,
            commits: 0.0,
            sealed: 0.0,
            opened: 0.0,
        });
}

#[test]
fn files_of_30_kib() {
    let mut counted = Counted::new();
    fs::create_dir(counted.volume.at("medium")).unwrap();
    let content = MEDIUM_FILES * MEDIUM_LEN as u64;
    counted
        .cost("files of 30 KiB created", MEDIUM_FILES, content, |volume| {
            create(volume, "medium", MEDIUM_FILES, MEDIUM_LEN);
        })
        .hold(&Expected {
            calls: &[
                ("answers", 7.0),
                ("close", 1.0),
                ("fgetxattr", 2.0),
                ("fstat", 2.0),
                ("getrandom", 2.0),
                ("locks", 8.2),
                ("newfstatat", 3.2),
                ("openat2", 1.0),
                ("pread64", 2.1),
                ("pwrite64", 9.1),
                ("pwritev", 1.0),
                ("requests", 7.0),
                ("statfs", 1.0),
                ("utimensat", 1.0),
            ],
            written: 3.25,
            statements: 8.2,
            commits: 1.0,
            sealed: 1.0,
            opened: 0.0,
        });
    counted.cold();
    counted
        .cost("files of 30 KiB read, cold", MEDIUM_FILES, content, |volume| {
            for n in 0..MEDIUM_FILES {
                let found = fs::read(volume.at(&name("medium", n))).unwrap();
                assert!(found == noise(n, MEDIUM_LEN), "file {n}");
            }
        })
        .hold(&Expected {
            calls: &[
                ("answers", 4.0),
                ("close", 2.0),
                ("fcntl", 2.0),
                ("getrandom", 1.0),
                ("locks", 2.0),
                ("newfstatat", 2.2),
                ("openat2", 2.0),
                ("pread64", 6.0),
                ("requests", 4.0),
            ],
            written: 0.0,
            statements: 1.0,
            commits: 0.0,
            sealed: 0.0,
            opened: 1.0,
        });
    counted
        .cost("files of 30 KiB deleted", MEDIUM_FILES, 0, |volume| {
            for n in 0..MEDIUM_FILES {
                fs::remove_file(volume.at(&name("medium", n))).unwrap();
            }
        })
        .hold(&Expected {
            calls: &[
                ("answers", 3.0),
                ("close", 2.0),
                ("fstat", 2.0),
                ("newfstatat", 3.0),
                ("openat2", 2.0),
                ("pread64", 2.0),
                ("requests", 4.0),
                ("unlinkat", 1.0),
            ],
            written: 0.0,
            statements: 0.0,
            commits: 0.0,
            sealed: 0.0,
            opened: 0.0,
        });
}

#[test]
fn a_large_file() {
    let mut counted = Counted::new();
    counted
        .cost("MiB written, then fsync", LARGE_MIB, LARGE_LEN, |volume| {
            let mut file = File::create_new(volume.at("large")).unwrap();
            for n in 0..LARGE_MIB {
                file.write_all(&noise(n, MIB)).unwrap();
            }
            file.sync_all().unwrap();
        })
        .hold(&Expected {
            calls: &[
                ("answers", 1.1),
                ("locks", 7.7),
                ("newfstatat", 0.5),
                ("pread64", 2.3),
                ("pwrite64", 6.5),
                ("pwritev", 0.2),
                ("requests", 1.1),
                ("statfs", 0.2),
            ],
            written: 1.045,
            statements: 22.0,
            commits: 0.2,
            sealed: 4.25,
            opened: 0.0,
        });
    counted.cold();
    counted
        .cost("MiB read, cold", LARGE_MIB, LARGE_LEN, |volume| {
            let mut file = File::open(volume.at("large")).unwrap();
            let mut found = vec![0; MIB];
            for n in 0..LARGE_MIB {
                file.read_exact(&mut found).unwrap();
                assert!(found == noise(n, MIB), "MiB {n}");
            }
        })
        .hold(&Expected {
            calls: &[
                ("answers", 1.1),
                ("locks", 7.0),
                ("newfstatat", 0.9),
                ("openat", 0.2),
                ("pread64", 5.0),
                ("requests", 1.1),
            ],
            written: 0.0,
            statements: 4.6,
            commits: 0.0,
            sealed: 0.0,
            opened: 4.25,
        });
    let copy = counted.cost("MiB copied with cp", LARGE_MIB, LARGE_LEN, |volume| {
        Cmd::new("cp")
            .arg("--reflink=auto")
            .args([volume.at("large"), volume.at("copy")])
            .ok();
    });
    copy.hold(&Expected {
        calls: &[
            ("answers", 0.2),
            ("locks", 17.6),
            ("newfstatat", 0.1),
            ("pread64", 0.2),
            ("requests", 0.2),
        ],
        written: 0.001,
        statements: 12.9,
        commits: 0.0,
        sealed: 0.0,
        opened: 0.0,
    });
}

#[test]
fn random_places_of_a_large_file() {
    let mut counted = Counted::new();
    let mut file = File::create_new(counted.volume.at("large")).unwrap();
    for n in 0..LARGE_MIB {
        file.write_all(&noise(n, MIB)).unwrap();
    }
    drop(file);
    counted.cold();
    let content = RANDOM_READS * PAGE as u64;
    counted
        .cost("random reads of 4 KiB, cold", RANDOM_READS, content, |volume| {
            let file = File::open(volume.at("large")).unwrap();
            let (mut dice, mut found) = (Dice::new(1), vec![0; PAGE]);
            for _ in 0..RANDOM_READS {
                let page = dice.below(LARGE_LEN / PAGE as u64) as usize * PAGE;
                file.read_exact_at(&mut found, page as u64).unwrap();
                let expected = noise((page / MIB) as u64, page % MIB + PAGE);
                assert!(found == expected[page % MIB..], "at {page}");
            }
        })
        .hold(&Expected {
            calls: &[
                ("answers", 1.0),
                ("locks", 1.0),
                ("newfstatat", 0.1),
                ("pread64", 0.6),
                ("requests", 0.6),
            ],
            written: 0.0,
            statements: 0.55,
            commits: 0.0,
            sealed: 0.0,
            opened: 0.5,
        });
    counted.without_background_sync();
    counted.cold();
    let content = RANDOM_WRITES * PAGE as u64;
    counted
        .cost(
            "random writes of 4 KiB, then fsync",
            RANDOM_WRITES,
            content,
            |volume| {
                let file = File::options().write(true).open(volume.at("large")).unwrap();
                let mut dice = Dice::new(2);
                for n in 0..RANDOM_WRITES {
                    let page = dice.below(LARGE_LEN / PAGE as u64) * PAGE as u64;
                    file.write_all_at(&noise(1000 + n, PAGE), page).unwrap();
                }
                file.sync_all().unwrap();
            },
        )
        .hold(&Expected {
            calls: &[
                ("answers", 1.1),
                ("locks", 0.7),
                ("newfstatat", 0.5),
                ("pread64", 0.5),
                ("pwrite64", 0.5),
                ("requests", 1.1),
            ],
            written: 2.2,
            statements: 0.9,
            commits: 0.0,
            sealed: 0.0,
            opened: 0.0,
        });
}

#[test]
fn appends_each_with_fsync() {
    let mut counted = Counted::new();
    let content = APPENDS * PAGE as u64;
    let cost = counted.cost("appends of 4 KiB, each with fsync", APPENDS, content, |volume| {
        let mut file = File::create_new(volume.at("log")).unwrap();
        for n in 0..APPENDS {
            file.write_all(&noise(n, PAGE)).unwrap();
            file.sync_all().unwrap();
        }
    });
    cost.hold(&Expected {
        calls: &[
            ("answers", 2.1),
            ("fdatasync", 1.0),
            ("fsync", 1.1),
            ("getrandom", 1.0),
            ("locks", 10.0),
            ("newfstatat", 0.2),
            ("pread64", 4.7),
            ("pwrite64", 16.5),
            ("requests", 2.1),
            ("statfs", 2.0),
            ("utimensat", 1.0),
            ("fstat", 1.0),
        ],
        written: 9.4,
        statements: 9.2,
        commits: 1.05,
        sealed: 1.0,
        opened: 0.8,
    });
    // By design: the store's log and the `.f`, once each, side by side.
    let syncs = |on| cost.calls.count(&["fsync", "fdatasync"], |at| at == on);
    assert_eq!(syncs(On::Manifest), APPENDS);
    assert!(
        (APPENDS..APPENDS * 13 / 10).contains(&syncs(On::Log)),
        "{}",
        syncs(On::Log)
    );
}
