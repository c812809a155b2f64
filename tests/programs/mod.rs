//! Programs that people use, inside a mount: what they check themselves is the test.

mod beside;
mod copies;
mod databases;
mod desktop;
mod editors;
mod images;
mod posix;
mod semantics;
mod sources;
mod stress;

use std::time::Duration;

/// For programs that build or pack.
const MINUTES: Duration = Duration::from_secs(240);
