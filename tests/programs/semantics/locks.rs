//! Locks between processes: `flock`, `fcntl` and those of open file descriptions.

use std::fs;

use super::python;
use crate::harness::volume::TestVolume;

/// Ways to take a lock, by name; each raises `BlockingIOError` when somebody else has it.
const LOCKS: &str = r#"
def flock(fd, kind): fcntl.flock(fd, kind | fcntl.LOCK_NB)
def posix(fd, kind, start=0, length=0): fcntl.lockf(fd, kind if kind == UN else kind | fcntl.LOCK_NB, length, start)
def ofd(fd, kind, start=0, length=0):
    number = {fcntl.LOCK_EX: fcntl.F_WRLCK, fcntl.LOCK_SH: fcntl.F_RDLCK, fcntl.LOCK_UN: fcntl.F_UNLCK}[kind]
    fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", number, os.SEEK_SET, start, length, 0))
def refused(lock, *arguments):
    try:
        lock(*arguments)
    except BlockingIOError:
        return
    raise AssertionError("the lock was given twice")
EX, SH, UN = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN
"#;

#[test]
fn locks_hold_between_processes_until_they_are_given_back() {
    let volume = TestVolume::mounted();
    fs::write(volume.at("file"), b"x".repeat(100)).unwrap();
    let program = r#"
mine = os.open("file", os.O_RDWR)
for lock in (flock, posix, ofd):
    def other(check):
        def run():
            theirs = os.open("file", os.O_RDWR)
            check(theirs)
        ends_well(child(run))
    lock(mine, EX)
    other(lambda fd: (refused(lock, fd, EX), refused(lock, fd, SH)))
    lock(mine, SH)
    other(lambda fd: (lock(fd, SH), refused(lock, fd, EX)))
    lock(mine, UN)
    other(lambda fd: lock(fd, EX))
    # The death of the one who has it gives it back.
    ready, tell = os.pipe()
    def hold():
        lock(os.open("file", os.O_RDWR), EX)
        os.write(tell, b"1")
        time.sleep(60)
    holder = child(hold)
    os.read(ready, 1)
    refused(lock, mine, EX)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    lock(mine, EX)
    lock(mine, UN)
# Ranges, for the two that have them.
for lock in (posix, ofd):
    lock(mine, EX, 10, 10)
    def ranges():
        fd = os.open("file", os.O_RDWR)
        lock(fd, EX, 0, 10)
        lock(fd, SH, 20, 0)
        refused(lock, fd, SH, 19, 2)
    ends_well(child(ranges))
    lock(mine, UN)
# Of a process: closing any descriptor of the file gives it back. Of an open file: only its own last one.
posix(mine, EX)
os.close(os.open("file", os.O_RDONLY))
ends_well(child(lambda: posix(os.open("file", os.O_RDWR), EX)))
ofd(mine, EX)
os.close(os.open("file", os.O_RDONLY))
refused(ofd, os.open("file", os.O_RDWR), EX)
ends_well(child(lambda: refused(ofd, os.open("file", os.O_RDWR), EX)))
# Who waits gets it when it is given back.
def wait():
    fcntl.lockf(os.open("file", os.O_RDWR), fcntl.LOCK_EX)
waiting = child(wait)
time.sleep(0.2)
assert os.waitpid(waiting, os.WNOHANG) == (0, 0)
ofd(mine, UN)
ends_well(waiting)
# Two who wait for each other are told.
a, b = os.pipe()
def first():
    fd = os.open("file", os.O_RDWR)
    posix(fd, EX, 0, 1)
    os.write(b, b"1")
    try: fcntl.lockf(fd, EX, 1, 1)
    except OSError as e: assert e.errno == errno.EDEADLK
posix(mine, EX, 1, 1)
other = child(first)
os.read(a, 1)
try: fcntl.lockf(mine, EX, 1, 0)
except OSError as e: assert e.errno == errno.EDEADLK
posix(mine, UN)
ends_well(other)
"#;
    python(volume.mountpoint(), &format!("{LOCKS}{program}")).ok();
}
