//! fio and stress-ng: they verify what they wrote themselves.

use super::MINUTES;
use crate::harness::command::Cmd;
use crate::harness::long;
use crate::harness::volume::TestVolume;

/// The stressors of stress-ng's class `filesystem` that a FUSE mount can serve: 42 of 48.
///
/// Left out: `bind-mount` (makes mounts of `/`, and fails on the host's ext4 alike), `binderfs` (is a filesystem of its own), `eventfd` and
/// `procfs` (touch no file of the mount), `fiemap` and `verity` (ask by ioctl for what FUSE does not pass; stress-ng skips them by itself).
const STRESSORS: &[&str] = &[
    "access",
    "chattr",
    "chdir",
    "chmod",
    "chown",
    "copy-file",
    "dentry",
    "dir",
    "dirdeep",
    "dirmany",
    "dnotify",
    "dup",
    "fallocate",
    "fanotify",
    "fcntl",
    "file-ioctl",
    "filename",
    "flock",
    "fpunch",
    "fsize",
    "fstat",
    "getdent",
    "handle",
    "hdd",
    "inode-flags",
    "inotify",
    "io",
    "iomix",
    "ioprio",
    "lease",
    "link",
    "locka",
    "lockf",
    "lockofd",
    "mknod",
    "open",
    "rename",
    "symlink",
    "sync-file",
    "touch",
    "utime",
    "xattr",
];

fn fio(volume: &TestVolume, name: &str, options: &[&str]) {
    let mib = if long() { 256 } else { 12 };
    let output = Cmd::new("fio")
        .args([
            "--name",
            name,
            "--rw=randwrite",
            "--numjobs=4",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
        ])
        .args([
            "--randseed=7",
            "--group_reporting",
            "--end_fsync=1",
            &format!("--size={mib}M"),
        ])
        .args(options)
        .arg("--directory")
        .arg(volume.mountpoint())
        .dir(volume.place())
        .within(MINUTES * 3)
        .ok();
    assert!(output.contains("err= 0"), "{output}");
    let again = Cmd::new("fio")
        .args([
            "--name",
            name,
            "--rw=randwrite",
            "--numjobs=4",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_only=1",
        ])
        .args(["--randseed=7", "--group_reporting", &format!("--size={mib}M")])
        .args(options)
        .arg("--directory")
        .arg(volume.mountpoint())
        .dir(volume.place());
    again.within(MINUTES * 3).ok();
}

#[test]
fn fio_verifies_random_writes_of_four_jobs() {
    let mut volume = TestVolume::mounted();
    let kinds: &[(&str, &[&str])] = &[
        (
            "buffered",
            &["--ioengine=psync", "--bsrange=512-64k", "--bs_unaligned=1"],
        ),
        (
            "direct",
            &["--ioengine=libaio", "--iodepth=16", "--direct=1", "--bs=4k"],
        ),
        ("mapped", &["--ioengine=mmap", "--bs=4k"]),
    ];
    for (name, options) in kinds {
        fio(&volume, name, options);
    }
    volume.remount();
    for (name, options) in kinds {
        fio(&volume, name, &[*options, &["--verify_only=1"]].concat());
    }
}

/// All four jobs on one file, each in its own quarter: their pages and chunks meet.
#[test]
fn fio_verifies_four_jobs_on_one_file() {
    let volume = TestVolume::mounted();
    let mib = if long() { 256 } else { 8 };
    let (size, step) = (format!("--size={mib}M"), format!("--offset_increment={mib}M"));
    // Not `mmap`: fio maps a shared file at the wrong place then, on ext4 too.
    for engine in [
        ["--ioengine=psync", "--direct=0"],
        ["--ioengine=libaio", "--direct=1"],
    ] {
        Cmd::new("fio")
            .args([
                "--name=shared",
                "--rw=randwrite",
                "--bs=4k",
                "--numjobs=4",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--group_reporting",
            ])
            .args(engine)
            .args([&size, &step, "--end_fsync=1"])
            .arg("--filename")
            .arg(volume.at("shared"))
            .dir(volume.place())
            .within(MINUTES * 3)
            .ok();
    }
}

#[test]
fn stress_ng_verifies_the_filesystem_class() {
    let volume = TestVolume::mounted();
    let seconds = if long() { 20 } else { 1 };
    let pairs: Vec<String> = STRESSORS
        .iter()
        .flat_map(|name| [format!("--{name}"), "2".to_owned()])
        .collect();
    let said = Cmd::new("stress-ng")
        .args(pairs)
        .args([
            "--verify",
            "--sequential",
            "2",
            "--timeout",
            &seconds.to_string(),
            "--temp-path",
        ])
        .arg(volume.mountpoint())
        .dir(volume.place())
        .within(MINUTES * 5)
        .run();
    assert!(said.succeeded(), "{said}");
    for word in ["fail:", "error:", "skipping"] {
        assert!(!said.said().contains(word), "{said}");
    }
    let left: Vec<_> = std::fs::read_dir(volume.mountpoint())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
