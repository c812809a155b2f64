//! Daemons without fork: a command starts its own program again, waits until that one says that it is ready (or why it is not), and
//! ends. The started one stays on the terminal until then, so that it can ask for a passphrase and is ended by an interrupt; when it is
//! ready it leaves the session and its standard streams. Called by `mount_helper`, `up` and `serve`.
//!
//! The word goes over the standard output of the started one: one line of JSON.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Set for the started program.
const CHILD_ENV: &str = "DFS_BACKGROUND";
/// How many heaps glibc makes.
const ARENAS_ENV: &str = "MALLOC_ARENA_MAX";
/// How long a start may take, passphrase included.
pub const START_WITHIN: Duration = Duration::from_secs(180);
/// How long a program that was told to give up may take to clean up.
const GIVE_UP_WITHIN: Duration = Duration::from_secs(20);
/// Longest line that is read, in bytes.
const LINE_MAX: u64 = 64 << 10;

/// Why there is no daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotStarted {
    /// Exit code for the command.
    pub code: u8,
    /// What to say; empty when the started program said it itself.
    pub text: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Ready,
    Failed { code: u8, text: String },
}

/// Whether this process is the started one.
pub fn is_child() -> bool {
    std::env::var_os(CHILD_ENV).is_some()
}

/// Starts this program again as `name` with `arguments` and returns when it is ready.
pub fn start(name: &str, arguments: &[OsString], failed_code: u8) -> Result<(), NotStarted> {
    let failed = |text: String| NotStarted {
        code: failed_code,
        text,
    };
    let program = std::env::current_exe()
        .map_err(|error| failed(format!("this program cannot find itself: {error}")))?;
    let mut command = Command::new(program);
    command
        .arg0(name)
        .args(arguments)
        .env(CHILD_ENV, "1")
        // Threads with heaps of their own would each keep what the largest files ever needed there (mallopt(3)).
        .env(ARENAS_ENV, std::env::var_os(ARENAS_ENV).unwrap_or("2".into()))
        .stdout(Stdio::piped());
    let child = command
        .spawn()
        .map_err(|error| failed(format!("the daemon cannot be started: {error}")))?;
    wait_for_word(child, START_WITHIN, failed_code)
}

fn wait_for_word(mut child: Child, at_most: Duration, failed_code: u8) -> Result<(), NotStarted> {
    let failed = |text: String| NotStarted {
        code: failed_code,
        text,
    };
    let Some(output) = child.stdout.take() else {
        return Err(failed("the daemon has no output".into()));
    };
    let (sender, said) = sync_channel(1);
    // Ends with the other end of the pipe, or with this process.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(output.take(LINE_MAX)).read_line(&mut line);
        let _ = sender.send(read.map(|_| line));
    });
    match said.recv_timeout(at_most) {
        Ok(Ok(line)) if line.is_empty() => Err(failed(format!(
            "the daemon ended without a word ({})",
            ended(&mut child)
        ))),
        Ok(Ok(line)) => match serde_json::from_str(&line) {
            Ok(Word::Ready) => Ok(()),
            Ok(Word::Failed { code, text }) => {
                ended(&mut child);
                Err(NotStarted { code, text })
            }
            Err(_) => Err(failed(format!(
                "the daemon spoke out of turn: {}",
                line.trim_end()
            ))),
        },
        Ok(Err(error)) => Err(failed(format!("the daemon cannot be heard: {error}"))),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            give_up(&child);
            Err(failed(format!(
                "the daemon was not ready within {} s; its log says more",
                at_most.as_secs()
            )))
        }
    }
}

fn give_up(child: &Child) {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended by itself.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// Waits, bounded, for a program that has closed its output.
fn ended(child: &mut Child) -> String {
    let deadline = std::time::Instant::now() + GIVE_UP_WITHIN;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return describe(status),
            Ok(None) if std::time::Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            Ok(None) => return "it still runs".into(),
            Err(error) => return error.to_string(),
        }
    }
}

fn describe(status: ExitStatus) -> String {
    status.to_string()
}

/// Says to the starting command that the daemon is up, and leaves its terminal. From here on nobody listens but the log.
pub fn announce_ready() -> std::io::Result<()> {
    say(&Word::Ready)?;
    // Fails when it leads a session already, which is what is wanted.
    let _ = rustix::process::setsid();
    // Or the directory it was started in could never be unmounted.
    rustix::process::chdir(c"/")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Says to the starting command why there is no daemon.
pub fn announce_failure(code: u8, text: &str) {
    // Should nobody listen any more, the log has it.
    let _ = say(&Word::Failed {
        code,
        text: text.to_owned(),
    });
}

fn say(word: &Word) -> std::io::Result<()> {
    let mut line = serde_json::to_string(word)?;
    line.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.flush()
}

/// The arguments of this process after the program's name.
pub fn own_arguments() -> Vec<OsString> {
    std::env::args_os().skip(1).collect()
}

/// The program's name as it was called, without its directory: `mount.dfs` is also installed as `mount.fuse.dfs`.
pub fn own_name(default: &str) -> String {
    let called = std::env::args_os().next();
    let name = called
        .as_deref()
        .map(std::path::Path::new)
        .and_then(std::path::Path::file_name)
        .and_then(OsStr::to_str);
    name.unwrap_or(default).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(script: &str, at_most: Duration) -> Result<(), NotStarted> {
        let child = Command::new("sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for_word(child, at_most, 32)
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_daemon_that_is_ready_is_left_alone() {
        assert_eq!(
            heard(r#"echo '"ready"'; exec >/dev/null; sleep 0.05"#, LONG),
            Ok(())
        );
    }

    #[test]
    fn a_failure_comes_with_its_code_and_text() {
        let failed = heard(r#"echo '{"failed":{"code":8,"text":"no"}}'; exit 8"#, LONG);
        assert_eq!(
            failed,
            Err(NotStarted {
                code: 8,
                text: "no".into()
            })
        );
    }

    #[test]
    fn silence_death_and_nonsense_are_failures() {
        let died = heard("exit 3", LONG).unwrap_err();
        assert!(
            died.code == 32 && died.text.contains("exit status: 3"),
            "{died:?}"
        );
        let killed = heard("kill -9 $$", LONG).unwrap_err();
        assert!(killed.text.contains("signal: 9"), "{killed:?}");
        let nonsense = heard("echo hello", LONG).unwrap_err();
        assert!(nonsense.text.contains("hello"), "{nonsense:?}");
        let silent = heard("exec sleep 30", Duration::from_millis(50)).unwrap_err();
        assert!(silent.text.contains("not ready"), "{silent:?}");
    }

    #[test]
    fn words_are_the_lines_above() {
        assert_eq!(serde_json::to_string(&Word::Ready).unwrap(), r#""ready""#);
        let failed = Word::Failed {
            code: 8,
            text: "no".into(),
        };
        assert_eq!(
            serde_json::to_string(&failed).unwrap(),
            r#"{"failed":{"code":8,"text":"no"}}"#
        );
    }
}
