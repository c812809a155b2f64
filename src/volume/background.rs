//! Threads that nobody waits for: sealing what streams in, and making what was written durable every few seconds.
//!
//! Invariant: they hold the volume only weakly between two rounds, and end within one round of `stop`. They work for all files, so they
//! never wait for the network: a file whose sealing needs a block that is elsewhere has its turn when that has come.

use std::sync::Arc;
use std::sync::Weak;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::{Condvar, Mutex};

use super::Volume;
use super::error::{Result, VolumeError};
use super::open_file::OpenFile;
use super::spill::Spill;
use crate::base::activity;

/// Files that wait to be sealed. One that finds no place is sealed when it is flushed.
const QUEUE: usize = 256;

/// Threads that hand stretches to the sealing cores: two, so that one seals while the other waits for the store.
const SEALERS: usize = 2;

/// Between two collections, and at least so many times as long as the last one took.
const COLLECT_PAUSE: Duration = Duration::from_secs(10);
const COLLECT_SHARE: u32 = 20;

/// So many files that are not durable start a sync before its time.
const UNSYNCED_MAX: usize = 20_000;

/// The threads and what tells them to stop.
#[derive(Debug, Default)]
pub struct Background {
    queue: Mutex<Option<Sender<Arc<OpenFile>>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stopping: Arc<(Mutex<bool>, Condvar)>,
}

impl Background {
    /// Queues a file to be sealed. Says whether it was.
    pub fn queue(&self, file: &Arc<OpenFile>) -> bool {
        match &*self.queue.lock() {
            Some(queue) => !matches!(
                queue.try_send(Arc::clone(file)),
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_))
            ),
            None => false,
        }
    }

    /// Ends the threads and waits for them.
    pub fn stop(&self) {
        *self.stopping.0.lock() = true;
        self.stopping.1.notify_all();
        self.queue.lock().take();
        let threads: Vec<_> = self.threads.lock().drain(..).collect();
        for thread in threads {
            if thread.thread().id() != std::thread::current().id() {
                drop(thread.join());
            }
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts the threads of a volume.
pub fn start(volume: &Arc<Volume>, sync_interval: Duration) -> Result<()> {
    let (sender, receiver) = bounded(QUEUE);
    *volume.background.queue.lock() = Some(sender);
    let mut threads = volume.background.threads.lock();
    for index in 0..SEALERS {
        let (weak, receiver) = (Arc::downgrade(volume), receiver.clone());
        threads.push(spawn(format!("dfs-write-{index}"), move || {
            seal_loop(&weak, &receiver)
        })?);
    }
    let (weak, stopping) = (Arc::downgrade(volume), Arc::clone(&volume.background.stopping));
    threads.push(spawn("dfs-sync".into(), move || {
        sync_loop(&weak, &stopping, sync_interval)
    })?);
    Ok(())
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name)
        .spawn(run)
        .map_err(|error| VolumeError::host("start a thread", error))
}

fn seal_loop(volume: &Weak<Volume>, queue: &Receiver<Arc<OpenFile>>) {
    activity::impatient();
    for file in queue {
        let _busy = activity::begin("seal", file.ino);
        let Some(volume) = volume.upgrade() else { return };
        let what = if volume.budget.is_tight() {
            Spill::All
        } else {
            Spill::Streams
        };
        let outcome = volume.spill(&file, what);
        let mut state = file.state.lock();
        state.queued = false;
        if let Err(error) = outcome
            && !matches!(error, VolumeError::WouldWait)
        {
            let error = error.to_string();
            if state.failed.as_ref() != Some(&error) {
                tracing::warn!(file = %volume.nodes.shown_path(file.ino), %error, "what was written cannot be stored yet");
            }
            state.failed = Some(error);
        }
    }
}

fn sync_loop(volume: &Weak<Volume>, stopping: &(Mutex<bool>, Condvar), interval: Duration) {
    activity::impatient();
    let (mut failing, mut collect_after) = (false, Instant::now());
    loop {
        let deadline = Instant::now() + interval;
        {
            let mut stop = stopping.0.lock();
            while !*stop {
                let step = deadline.min(Instant::now() + Duration::from_millis(500));
                stopping.1.wait_until(&mut stop, step);
                let crowded = volume
                    .upgrade()
                    .is_none_or(|volume| volume.durability.len() > UNSYNCED_MAX);
                if Instant::now() >= deadline || crowded {
                    break;
                }
            }
            if *stop {
                return;
            }
        }
        let Some(volume) = volume.upgrade() else { return };
        let _busy = activity::begin("background sync", 0);
        volume.rewrite_suspects();
        let outcome = volume.write_back_all().and(volume.sync_all());
        match (&outcome, failing) {
            (Err(error), false) => {
                tracing::error!(%error, "what was written is not durable yet; it is tried again")
            }
            (Ok(()), true) => tracing::info!("what was written is durable again"),
            _ => {}
        }
        failing = outcome.is_err();
        if outcome.is_ok() {
            volume.fold_quiet(&|| *stopping.0.lock());
        }
        if outcome.is_ok() && volume.is_worth_collecting() && Instant::now() >= collect_after {
            let began = Instant::now();
            match volume.collect() {
                Ok(blocks) => tracing::info!(blocks, "blocks that nothing refers to any more were removed"),
                Err(error) => tracing::info!(%error, "no blocks were collected this time"),
            }
            collect_after = Instant::now() + COLLECT_PAUSE.max(began.elapsed() * COLLECT_SHARE);
        }
    }
}

impl Volume {
    /// Brings every changed file's `.f` up to date. One that fails does not keep the others from it.
    pub(super) fn write_back_all(&self) -> Result<()> {
        let mut outcome = Ok(());
        for file in self.handles.all() {
            let changed = {
                let state = file.state.lock();
                state.changed && !state.unlinked
            };
            if changed && let Err(error) = self.write_back(&file) {
                // One that needs a block from elsewhere has its turn again when that has come.
                if !matches!(error, VolumeError::WouldWait) {
                    outcome = Err(error);
                }
                continue;
            }
            let mut shard = self.handles.shard(file.ino).lock();
            let state = file.state.lock();
            self.drop_if_idle(&mut shard, &file, &state);
        }
        outcome
    }

    /// Makes everything in the `.f` files and the store durable.
    pub(super) fn sync_all(&self) -> Result<()> {
        let seen = self.durability.snapshot();
        if seen.is_empty() {
            return Ok(());
        }
        self.blocks.tiered().store().sync().map_err(VolumeError::store)?;
        self.sync_folder()?;
        for (ino, version) in seen {
            // Under the shard's lock, so that a file being loaded sees either the entry or its effect.
            let shard = self.handles.shard(ino).lock();
            match shard.get(&ino) {
                Some(file) => {
                    let mut state = file.state.lock();
                    if state.version() == version && self.durability.is_durable(ino, version) {
                        state.durable = state.latest;
                    }
                }
                None => drop(self.durability.is_durable(ino, version)),
            }
        }
        Ok(())
    }

    /// Makes everything in the folder survive a power cut. A failure is everybody's: it does not say whose data the kernel has dropped, and only
    /// whoever syncs first hears of it.
    pub fn sync_folder(&self) -> Result<()> {
        self.folder.sync().map_err(|error| {
            for (ino, _) in self.durability.snapshot() {
                self.sync_failed(ino, &error);
            }
            VolumeError::host("sync the folder", error)
        })
    }

    /// Takes note that what was written to a file may not reach the disk, though the kernel says so from now on. It is written again before
    /// the next sync, and each handle that is open now is told once by its own next sync, as errseq_t of Linux does it.
    pub(super) fn sync_failed(&self, ino: u64, error: &std::io::Error) {
        self.durability.suspect(ino);
        if let Some(file) = self.handles.open_file(ino) {
            let failed = &mut file.state.lock().failed_syncs;
            *failed = (failed.0 + 1, rustix::io::Errno::from_io_error(error));
        }
    }

    /// Writes again what a failed sync may have dropped, of closed files too.
    fn rewrite_suspects(&self) {
        for ino in self.durability.suspects() {
            if let Err(error) = self.with_open(ino, true, |file| self.write_back(file)) {
                let file = self.nodes.shown_path(ino);
                tracing::debug!(%file, %error, "a file whose sync failed cannot be written again yet");
            }
        }
    }
}
