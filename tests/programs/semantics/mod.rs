//! What `docs/semantics.md` says, call by call. Which test holds which line of the page is in `tests/tidy/semantics.rs`.

mod attributes;
mod content;
mod durability;
mod locks;
mod mounting;
mod names;

use std::path::Path;

use crate::harness::command::Cmd;

/// Calls that Rust has no safe form of (maps, locks of open file descriptions, file handles) are made by Python.
const PRELUDE: &str = r#"
import ctypes, errno, fcntl, mmap, os, signal, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def fails(code, call, *arguments):
    try:
        call(*arguments)
    except OSError as e:
        assert e.errno == code, (e, errno.errorcode[code])
    else:
        raise AssertionError("should fail with " + errno.errorcode[code])
def child(run):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run()
            code = 0
        except BaseException as e:
            print(repr(e), file=sys.stderr)
        finally:
            os._exit(code)
    return pid
def ends_well(*pids):
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
"#;

/// Runs a Python program in a folder of the mount.
fn python(folder: &Path, program: &str) -> Cmd {
    Cmd::new("python3")
        .args(["-c", &format!("{PRELUDE}{program}")])
        .dir(folder)
}

fn noflags() -> rustix::fs::XattrFlags {
    rustix::fs::XattrFlags::empty()
}
