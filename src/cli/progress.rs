//! Progress on a terminal, and silence where there is none.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::control::Progress;

/// A bar on standard error, or nothing.
#[derive(Debug)]
pub struct Bar(Option<ProgressBar>);

impl Bar {
    /// A bar that is shown when `visible`.
    pub fn new(visible: bool) -> Self {
        Self(visible.then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        }))
    }

    /// Shows how far it is.
    pub fn show(&self, progress: &Progress) {
        let Some(bar) = &self.0 else { return };
        let template = match progress.total_bytes {
            Some(total) => {
                bar.set_length(total);
                "{spinner} {bytes}/{total_bytes} {bytes_per_sec} {eta} {wide_msg}"
            }
            None => "{spinner} {bytes} {bytes_per_sec} {wide_msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_position(progress.done_bytes);
        bar.set_message(progress.what.clone());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
