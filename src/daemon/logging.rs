//! Where the log goes: standard error in the foreground and under systemd, else a file in the state directory, begun anew when it is long.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// Length from which a log file is put aside at a start, in bytes.
const LOG_MAX: u64 = 8 << 20;

/// Where the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard error.
    Stderr,
    /// The file in the state directory.
    File,
}

/// What is logged and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRequest {
    /// Where to.
    pub target: LogTarget,
    /// What, as `RUST_LOG` says it, e.g. `info,dfs::node=debug`.
    pub filter: String,
}

/// Starts logging for the whole process. A process that logs already goes on as it does.
pub(super) fn start(request: &LogRequest, file: &Path) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&request.filter)
        .with_context(|| format!("the log filter {:?} cannot be understood", request.filter))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    // An error says that there is a log already.
    let _ = match request.target {
        LogTarget::Stderr => log.with_writer(std::io::stderr).try_init(),
        LogTarget::File => {
            rotate(file).with_context(|| format!("cannot put the log {} aside", file.display()))?;
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(file)
                .with_context(|| format!("cannot open the log {}", file.display()))?;
            log.with_writer(Mutex::new(file)).try_init()
        }
    };
    Ok(())
}

/// Keeps one previous log.
fn rotate(file: &Path) -> std::io::Result<()> {
    match std::fs::metadata(file) {
        Ok(meta) if meta.len() > LOG_MAX => std::fs::rename(file, file.with_extension("log.1")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_put_aside_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dfs.log");
        rotate(&path).unwrap();
        std::fs::write(&path, "short").unwrap();
        rotate(&path).unwrap();
        assert!(path.exists());
        let long = std::fs::File::create(&path).unwrap();
        long.set_len(LOG_MAX + 1).unwrap();
        rotate(&path).unwrap();
        assert!(!path.exists() && dir.path().join("dfs.log.1").exists());
    }
}
