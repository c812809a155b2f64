//! The test suites that file systems are judged by, inside a mount: pjdfstest for the rules of POSIX, fsx for the bytes.

use std::fs;
use std::path::PathBuf;

use super::MINUTES;
use crate::harness::command::Cmd;
use crate::harness::long;
use crate::harness::volume::TestVolume;

/// Users that every Debian has.
const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.01
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// Every kind of operation that fsx has.
const FSX: &str = "
flen = 1048576
[opsize]
max = 131072
[weights]
close_open = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 3
fsync = 1
fdatasync = 1
posix_fallocate = 2
punch_hole = 4
sendfile = 2
posix_fadvise = 1
copy_file_range = 4
";

/// What ext4 skips too for want of a second file system, and one that needs a limit which only ext4 and a few others can tell.
fn may_be_skipped(test: &str) -> bool {
    test.contains("::erofs_") || test.contains("::exdev_") || test == "link::link_count_max"
}

fn config(volume: &TestVolume, text: &str) -> PathBuf {
    let path = volume.place().join("suite.toml");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn pjdfstest_finds_nothing_that_ext4_does_better() {
    let mut volume = TestVolume::new();
    volume.mount_with(["-o", "allow_other"]);
    fs::create_dir(volume.at("suite")).unwrap();
    let said = Cmd::new("pjdfstest")
        .arg("-c")
        .arg(config(&volume, PJDFSTEST))
        .arg("-p")
        .arg(volume.at("suite"))
        .dir(volume.at("suite"))
        .within(MINUTES)
        .ok();
    assert!(said.contains("Summary: 0 failed,"), "{said}");
    let skipped: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_suffix("skipped"))
        .map(str::trim)
        .collect();
    assert!(
        skipped.len() == 16 && skipped.iter().all(|test| may_be_skipped(test)),
        "{skipped:?}"
    );
    assert!(said.contains("382 passed"), "{said}");
}

#[test]
fn a_running_program_cannot_be_cut() {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

    let volume = TestVolume::mounted();
    let program = volume.at("program");
    fs::copy("/bin/sleep", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut running = std::process::Command::new(&program).arg("60").spawn().unwrap();
    let cut = fs::File::options()
        .read(true)
        .custom_flags(libc::O_TRUNC)
        .open(&program)
        .unwrap_err();
    assert_eq!(cut.raw_os_error(), Some(libc::ETXTBSY));
    assert!(running.try_wait().unwrap().is_none(), "it still runs");
    assert_eq!(fs::read(&program).unwrap(), fs::read("/bin/sleep").unwrap());
    running.kill().unwrap();
    running.wait().unwrap();
    fs::File::options()
        .read(true)
        .custom_flags(libc::O_TRUNC)
        .open(&program)
        .unwrap();
    assert_eq!(fs::metadata(&program).unwrap().len(), 0);
}

#[test]
fn fsx_finds_every_byte_where_it_was_put() {
    let mut volume = TestVolume::mounted();
    let config = config(&volume, FSX);
    let (seeds, operations) = if long() { (20, 100_000) } else { (3, 20_000) };
    for seed in 1..=seeds {
        Cmd::new("fsx")
            .arg("-f")
            .arg(&config)
            .args(["-N", &operations.to_string(), "-S", &seed.to_string(), "-P"])
            .arg(volume.place())
            .arg(volume.at(&format!("file-{seed}")))
            .within(10 * MINUTES)
            .ok();
        if long() && seed % 2 == 0 {
            volume.remount();
        }
    }
}
#[test]
fn locks_maps_and_appends_of_several_processes() {
    let volume = TestVolume::mounted();
    let script = r#"
for p in 1 2 3 4; do
  ( for n in $(seq 50); do flock lock -c "echo $p-$n >> log"; done ) &
done
wait
wc -l < log
sort -u log | wc -l
(for p in 1 2 3 4; do ( for n in $(seq 200); do echo "$p $n padding padding" >> appended; done ) & done; wait)
sort -u appended | wc -l
cp /bin/ls own-ls && ./own-ls own-ls
"#;
    let said = Cmd::bash(script).dir(volume.mountpoint()).within(MINUTES).ok();
    assert_eq!(said, "200\n200\n800\nown-ls\n");
}
