//! What a daemon sets about its process: limits, no core dumps with keys in them, umask, signals, a panic that ends in a drain.

use std::sync::mpsc::Sender;

use rustix::process::{DumpableBehavior, Resource, Rlimit};

use super::run::Event;

/// Sets limits and umask. What the host refuses is logged: none of it is needed to serve.
pub(super) fn prepare() {
    let files = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: files.maximum,
        maximum: files.maximum,
    };
    if let Err(e) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!("cannot raise the limit of open files: {e}");
    }
    let no_core = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(e) = rustix::process::setrlimit(Resource::Core, no_core)
        .and_then(|()| rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable))
    {
        tracing::warn!("cannot forbid core dumps: {e}");
    }
    // The volume applies the umask of each caller itself.
    rustix::process::umask(rustix::fs::Mode::empty());
}

/// Turns SIGTERM, SIGINT and SIGHUP into events.
pub(super) fn watch_signals(events: Sender<Event>) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let guard = runtime.enter();
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    drop(guard);
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                loop {
                    let name = tokio::select! {
                        _ = term.recv() => "SIGTERM",
                        _ = int.recv() => "SIGINT",
                        _ = hangup.recv() => "SIGHUP",
                    };
                    if events.send(Event::Signal(name)).is_err() {
                        return;
                    }
                }
            });
        })?;
    Ok(())
}

/// Makes a panic on any thread end the daemon in order, so that no mount stays behind that nobody serves.
pub(super) fn watch_panics(events: Sender<Event>) {
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        tracing::error!(
            "panic on thread {}: {panic}; this is a fault in dfs: unmounting\n{}",
            thread.name().unwrap_or("?"),
            std::backtrace::Backtrace::force_capture()
        );
        let _ = events.send(Event::Panic);
    }));
}

/// Tells systemd, when it started us and wants to know (sd_notify(3)).
pub(super) fn tell_systemd(state: sd_notify::NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::warn!("cannot tell systemd: {e}");
    }
}
