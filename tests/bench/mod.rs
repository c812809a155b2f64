//! What operations cost, in counts that a busy machine does not change: calls to the host, SQLite statements, commits, seals, bytes written.
//!
//! Each workload prints what one of its operations cost, and holds it to what is expected. The page docs/performance.md explains the figures.

mod workloads;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::harness::calls::{Calls, Counter, On};
use crate::harness::volume::{ALONE, TestVolume};

/// A commit of the tree falls into one figure or the next as it pleases: these are the costs of the operations alone.
const UNCOMMITTED: &str = "[sync]\nenabled = false\n";

/// What is put off is done after a second, so that it is seen soon.
const SETTINGS: &str = "[volume]\nsync_interval = 1\n";

/// The most calls of one kind for each operation where so many are expected. Above it is what background work does in the midst of it, and
/// requests that the kernel splits as it likes; a call more for each operation is more than this allows, up to ten of a kind.
fn most(expected: f64) -> f64 {
    (expected + 0.5).max(expected * 1.1)
}

/// What bytes may be above what is expected.
const MARGIN: f64 = 1.3;

/// A volume whose daemon's work is counted.
struct Counted {
    volume: TestVolume,
    counter: Option<Counter>,
}

/// What a workload is expected to cost.
struct Expected {
    /// Calls for each operation; of kinds that are not named none.
    calls: &'static [(&'static str, f64)],
    /// Bytes that are written to files, for each byte of content (for each operation, when there is no content).
    written: f64,
    statements: f64,
    commits: f64,
    sealed: f64,
    opened: f64,
}

/// What a workload did cost.
struct Cost {
    name: &'static str,
    operations: u64,
    /// Bytes of content that it was about.
    content: u64,
    calls: Calls,
    work: BTreeMap<String, u64>,
}

impl Counted {
    fn new() -> Self {
        let mut volume = TestVolume::new();
        volume.configure(&format!("{ALONE}{UNCOMMITTED}{SETTINGS}"));
        volume.mount();
        let counter = Counter::attach(&volume);
        Self {
            volume,
            counter: Some(counter),
        }
    }

    /// From the next [`Counted::cold`] on the daemon syncs nothing by itself: on a slow day that would come in the middle of a workload.
    fn without_background_sync(&mut self) {
        self.volume
            .configure(&format!("{ALONE}{UNCOMMITTED}[volume]\nsync_interval = 3600\n"));
    }

    /// Forgets all that kernel and daemon have in memory.
    fn cold(&mut self) {
        self.counter = None;
        self.volume.remount();
        self.counter = Some(Counter::attach(&self.volume));
    }

    fn work(&self) -> BTreeMap<String, u64> {
        serde_json::from_value(self.volume.status()["work"].clone()).unwrap()
    }

    /// What `run` costs, with what the daemon does for it later.
    fn cost(
        &mut self,
        name: &'static str,
        operations: u64,
        content: u64,
        run: impl FnOnce(&TestVolume),
    ) -> Cost {
        let before = self.work();
        let counter = self.counter.as_mut().unwrap();
        // The question itself does not count.
        counter.settle();
        run(&self.volume);
        let calls = counter.settle();
        let mut work = self.work();
        for (name, value) in &mut work {
            *value -= before[name];
        }
        Cost {
            name,
            operations,
            content,
            calls,
            work,
        }
    }

    /// The calls of a daemon that nobody asks anything.
    fn idle(&mut self, pause: Duration) -> Calls {
        let counter = self.counter.as_mut().unwrap();
        counter.settle();
        counter.idle(pause)
    }
}

impl Cost {
    fn each(&self, count: u64) -> f64 {
        count as f64 / self.operations as f64
    }

    fn written(&self, which: impl Fn(On) -> bool) -> f64 {
        let per = if self.content == 0 {
            self.operations
        } else {
            self.content
        };
        self.calls.written(which) as f64 / per as f64
    }

    /// Prints it, for whoever looks for what is wasteful.
    fn print(&self) {
        let mut text = format!("{}, each of {}:\n  calls     ", self.name, self.operations);
        for (name, count) in self.calls.kinds() {
            text += &format!(" {name} {:.2}", self.each(count));
        }
        let futex = self.calls.count(&["futex"], |_| true);
        let notices = self.calls.count(&["read"], |on| on == On::Notices);
        text += &format!(
            "\n  threads    futex {:.2}, reads of notices {:.2}\n  syncs     ",
            self.each(futex),
            self.each(notices)
        );
        for on in [On::Log, On::Database, On::Segments, On::Manifest, On::Other] {
            let syncs = self.calls.count(&["fsync", "fdatasync", "syncfs"], |at| at == on);
            text += &format!(" {on:?} {syncs}");
        }
        let per = if self.content == 0 {
            "operation"
        } else {
            "byte of content"
        };
        text += &format!("\n  written    {:.3} for each {per}:", self.written(|_| true));
        for on in [On::Log, On::Database, On::Segments, On::Manifest, On::Other] {
            text += &format!(" {on:?} {:.3}", self.written(|at| at == on));
        }
        text += "\n  work      ";
        for (name, count) in &self.work {
            text += &format!(" {name} {:.2}", self.each(*count));
        }
        eprintln!("{text}");
    }

    /// Holds it to what is expected.
    #[track_caller]
    fn hold(&self, expected: &Expected) {
        self.print();
        let total: f64 = expected.calls.iter().map(|(_, each)| each).sum();
        let found: f64 = self.calls.kinds().values().map(|count| self.each(*count)).sum();
        assert!(
            found * 2.0 > total,
            "{}: {found:.2} calls for each instead of {total:.2}: they are not seen, or the figures can be lowered",
            self.name
        );
        let mut above = Vec::new();
        let mut compare = |what: &str, found: f64, most: f64| {
            if found > most {
                above.push(format!("{what}: {found:.3}, at most {most:.3}"));
            }
        };
        for (name, count) in self.calls.kinds() {
            let known = expected.calls.iter().find(|(known, _)| *known == name);
            compare(
                &name,
                self.each(count),
                most(known.map_or(0.0, |(_, each)| *each)),
            );
        }
        compare("bytes written", self.written(|_| true), expected.written * MARGIN);
        for (name, each) in [
            ("statements", expected.statements),
            ("commits", expected.commits),
            ("sealed", expected.sealed),
            ("opened", expected.opened),
        ] {
            compare(name, self.each(self.work[name]), most(each));
        }
        assert!(
            above.is_empty(),
            "{} cost more than they did, for each:\n{}",
            self.name,
            above.join("\n")
        );
    }
}
