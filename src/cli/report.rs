//! What a command says: results on standard output, errors in three parts (what, why, what to do) on standard error, exit codes 0, 1, 2.

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use crate::control::Failure;
use crate::control::client::ClientError;

/// How a command ends when not well.
#[derive(Debug)]
pub enum Exit {
    /// It failed: exit code 1.
    Failed(Failure),
    /// It was called wrongly: exit code 2.
    Usage(String),
}

/// Result of a command.
pub type Outcome<T = ()> = Result<T, Exit>;

/// A failure in three parts.
pub fn failed(what: impl Into<String>, why: impl ToString, hint: impl Into<String>) -> Exit {
    Exit::Failed(Failure::new(what, why, hint))
}

impl From<Failure> for Exit {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The failure of a daemon's work; `what` is what was to be done.
pub fn from_daemon(what: &str, error: anyhow::Error) -> Exit {
    match error.downcast::<Failure>() {
        Ok(failure) => failure.into(),
        Err(error) => failed(what, reasons(&error), ""),
    }
}

/// The error with its causes, each said once: many name their cause themselves.
fn reasons(error: &anyhow::Error) -> String {
    error
        .chain()
        .fold(String::new(), |said, cause| match cause.to_string() {
            cause if said.is_empty() => cause,
            cause if said.contains(&cause) => said,
            cause => format!("{said}: {cause}"),
        })
}

/// The failure of a question to a daemon.
pub fn from_client(what: &str, error: ClientError) -> Exit {
    match error {
        ClientError::Refused(failure) => failure.into(),
        ClientError::NotRunning(_) => {
            failed(what, error, "start it with `dfs up FOLDER` or `dfs serve FOLDER`")
        }
        other => failed(what, other, "`dfs status FOLDER` and the log say more"),
    }
}

/// Prints a line of a result. A reader that has gone away is no error.
pub fn print(line: impl fmt::Display) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Prints a line that is no result, on standard error.
pub fn note(line: impl fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Prints a value as JSON.
pub fn print_json(value: &impl serde::Serialize) -> Outcome {
    let text = serde_json::to_string_pretty(value).map_err(|e| failed("cannot print the result", e, ""))?;
    print(text);
    Ok(())
}

/// Says how a command ended, and gives its exit code.
pub fn finish(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Exit::Usage(text)) => {
            note(format_args!("dfs: {text}\n  do:  see `dfs help`"));
            ExitCode::from(2)
        }
        Err(Exit::Failed(failure)) => {
            note(three_parts(&failure));
            ExitCode::from(1)
        }
    }
}

/// What is logged: more for every `-v`.
pub fn log_filter(verbose: u8) -> String {
    match verbose {
        0 => "warn,dfs=info",
        1 => "info,dfs=debug",
        _ => "debug,dfs=trace",
    }
    .to_owned()
}

/// A failure as text: what, why, what to do.
pub fn three_parts(failure: &Failure) -> String {
    let mut text = format!("dfs: {}\n  why: {}", failure.what, indented(&failure.why));
    if !failure.hint.is_empty() {
        text.push_str("\n  do:  ");
        text.push_str(&indented(&failure.hint));
    }
    text
}

fn indented(text: &str) -> String {
    text.trim_end().replace('\n', "\n       ")
}

/// A number of bytes for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_three_parts() {
        let all = three_parts(&Failure::new("cannot x", "y\nis", "do z"));
        assert_eq!(all, "dfs: cannot x\n  why: y\n       is\n  do:  do z");
        assert_eq!(
            three_parts(&Failure::new("cannot x", "y", "")),
            "dfs: cannot x\n  why: y"
        );
    }

    #[test]
    fn a_cause_is_said_once() {
        let cause = || std::io::Error::other("gone");
        assert_eq!(
            reasons(&anyhow::Error::new(cause()).context("x: gone")),
            "x: gone"
        );
        assert_eq!(reasons(&anyhow::Error::new(cause()).context("x")), "x: gone");
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16384.0 PiB");
    }
}
