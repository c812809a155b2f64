//! Import and export: plain files and directories of the host into a volume, and out of it, through the volume's own operations.
//!
//! Nothing that exists is overwritten. Called for the control socket, and by commands that run without a daemon.

mod export;
mod import;
mod walk;

pub(super) use export::export;
pub(super) use import::import;

use crate::control::{Copied, Progress};

/// Bytes moved in one step.
const STEP: usize = 1 << 20;

/// Counts what was copied and reports it now and then.
struct Tally<'a> {
    copied: Copied,
    total_bytes: Option<u64>,
    reported: u64,
    report: &'a mut dyn FnMut(Progress) -> std::io::Result<()>,
}

impl<'a> Tally<'a> {
    fn new(report: &'a mut dyn FnMut(Progress) -> std::io::Result<()>, total_bytes: Option<u64>) -> Self {
        Self {
            copied: Copied::default(),
            total_bytes,
            reported: 0,
            report,
        }
    }

    /// Tells where it is; an error says that nobody wants to know any more, and the copy ends.
    fn at(&mut self, what: &std::path::Path) -> std::io::Result<()> {
        let entries = self.copied.files + self.copied.directories + self.copied.others;
        let mark = self.copied.bytes / (8 << 20) + entries / 64;
        if mark == self.reported {
            return Ok(());
        }
        self.reported = mark;
        (self.report)(Progress {
            what: what.display().to_string(),
            done_bytes: self.copied.bytes,
            total_bytes: self.total_bytes,
        })
    }
}
