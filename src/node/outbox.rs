//! What waits to be written to one stream: everything short goes before blocks, and blocks keep to the limits (`throttle`).
//!
//! Invariant: frames of one kind keep their order; while a block waits for its turn, short frames pass it. Used by `link` and `serve`.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use futures::{AsyncWrite, AsyncWriteExt};
use libp2p::Multiaddr;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::base::DeviceId;

use super::admission::Admission;
use super::frame::Frame;
use super::local::Local;
use super::throttle::Limits;
use super::wire::write_frame;

/// Frames that may wait to be written to a peer; all but a few of them are answers to what it asked.
const OUTBOX_MAX: usize = 4096;

/// Why a conversation ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The stream broke, or the node is shutting down.
    Lost,
    /// The peer broke the protocol.
    Violation(String),
    /// The peer is not, or not any more, what it was when the connection began; no fault of its software.
    Dismissed(String),
}

impl Ended {
    /// Says in the log what the peer did, and shuts it out if it is to blame.
    pub(super) fn note(&self, local: &Local, device: DeviceId, remote: &Multiaddr) {
        match self {
            Self::Lost => {}
            Self::Violation(why) => local.shut_out(device, remote, why),
            Self::Dismissed(why) => {
                tracing::warn!(device = %device.short(), address = %remote, "closing the connection: {why}");
            }
        }
    }
}

#[derive(Default)]
struct Queues {
    short: VecDeque<Frame>,
    blocks: VecDeque<Frame>,
    /// Credit that is not granted before as much has passed the limit.
    grants: VecDeque<u32>,
}

/// Frames that wait to be written, with a bell.
pub(super) struct Outbox {
    queues: Mutex<Queues>,
    bell: Notify,
    granting: Notify,
    /// Whether the limits apply to this peer.
    limited: bool,
    /// A peer that takes nothing for this long is given up.
    stall: Duration,
}

impl Outbox {
    /// An empty one.
    pub(super) fn new(limited: bool, stall: Duration) -> Self {
        Self {
            queues: Mutex::default(),
            bell: Notify::new(),
            granting: Notify::new(),
            limited,
            stall,
        }
    }

    /// Adds frames in order.
    pub(super) fn put(&self, frames: impl IntoIterator<Item = Frame>, admission: &Admission) {
        let mut queues = self.queues.lock();
        let (mut more, mut grants) = (false, false);
        for frame in frames {
            match frame {
                Frame::Credit { bytes } if self.limited => {
                    queues.grants.push_back(bytes);
                    grants = true;
                    continue;
                }
                Frame::Data { .. } => {
                    admission.lane.enter();
                    queues.blocks.push_back(frame);
                }
                Frame::Put { .. } => queues.blocks.push_back(frame),
                frame => queues.short.push_back(frame),
            }
            more = true;
        }
        if more {
            self.bell.notify_one();
        }
        if grants {
            self.granting.notify_one();
        }
    }

    /// Whether the peer does not read what it gets.
    pub(super) fn is_full(&self) -> bool {
        let queues = self.queues.lock();
        queues.short.len() + queues.blocks.len() > OUTBOX_MAX
    }

    /// Grants credit as fast as the limit lets blocks in. Never ends.
    pub(super) async fn grant(&self, limits: &Limits) -> Ended {
        loop {
            let next = self.queues.lock().grants.pop_front();
            let Some(bytes) = next else {
                self.granting.notified().await;
                continue;
            };
            limits.download.pass(u64::from(bytes), false).await;
            self.queues.lock().short.push_back(Frame::Credit { bytes });
            self.bell.notify_one();
        }
    }

    /// Writes what is there and flushes; then waits for the bell. Says after each frame what was `written`.
    pub(super) async fn write_to<W: AsyncWrite + Unpin>(
        &self,
        stream: &mut W,
        admission: &Admission,
        limits: &Limits,
        written: impl Fn(&Frame),
    ) -> Ended {
        loop {
            if !self.write_short(stream).await {
                return Ended::Lost;
            }
            let block = self.queues.lock().blocks.pop_front();
            let Some(frame) = block else {
                if !self.flush(stream).await {
                    return Ended::Lost;
                }
                self.bell.notified().await;
                continue;
            };
            let mut turn = pin!(self.turn(&frame, admission, limits));
            loop {
                tokio::select! {
                    biased;
                    () = &mut turn => break,
                    () = self.bell.notified() => {
                        if !(self.write_short(stream).await && self.flush(stream).await) {
                            return Ended::Lost;
                        }
                    }
                }
            }
            match tokio::time::timeout(self.stall, write_frame(stream, &frame)).await {
                Ok(Ok(bytes)) => admission.count(0, bytes),
                _ => return Ended::Lost,
            }
            if matches!(frame, Frame::Data { .. }) {
                admission.lane.leave();
            }
            written(&frame);
        }
    }

    /// Waits until a block may be written.
    async fn turn(&self, frame: &Frame, admission: &Admission, limits: &Limits) {
        let (bytes, bulk) = match frame {
            Frame::Put { block, .. } => (block.len() as u64, true),
            Frame::Data { block, .. } => (block.len() as u64, false),
            _ => return,
        };
        if bulk {
            admission.lane.give_way().await;
        }
        if self.limited {
            limits.upload.pass(bytes, bulk).await;
        }
    }

    async fn write_short<W: AsyncWrite + Unpin>(&self, stream: &mut W) -> bool {
        loop {
            let Some(frame) = self.queues.lock().short.pop_front() else {
                return true;
            };
            if !matches!(
                tokio::time::timeout(self.stall, write_frame(stream, &frame)).await,
                Ok(Ok(_))
            ) {
                return false;
            }
        }
    }

    async fn flush<W: AsyncWrite + Unpin>(&self, stream: &mut W) -> bool {
        matches!(tokio::time::timeout(self.stall, stream.flush()).await, Ok(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::BlockId;
    use bytes::Bytes;

    fn put(request: u32, len: usize) -> Frame {
        Frame::Put {
            request,
            id: BlockId([0; 32]),
            block: vec![0; len].into(),
        }
    }

    fn data(request: u32) -> Frame {
        let block = Bytes::from(vec![0; 1000]);
        Frame::Data { request, block }
    }

    /// What is written, in order, within a fifth of a second.
    async fn written(outbox: &Outbox, admission: &Admission, limits: &Limits) -> Vec<Frame> {
        let order = Mutex::new(Vec::new());
        let mut sink = futures::io::sink();
        let writing = outbox.write_to(&mut sink, admission, limits, |frame| {
            order.lock().push(frame.clone())
        });
        let _ = tokio::time::timeout(Duration::from_millis(200), writing).await;
        order.into_inner()
    }

    #[tokio::test]
    async fn what_is_short_passes_a_block_that_waits() {
        let limits = Limits::new(Some(100_000), Some(100_000), true);
        let (outbox, admission) = (Outbox::new(true, Duration::from_secs(60)), Admission::default());
        outbox.put([put(1, 600_000), Frame::Missing { request: 2 }], &admission);
        assert!(
            written(&outbox, &admission, &limits).await.is_empty(),
            "five seconds are lent"
        );
        let queues = outbox.queues.lock();
        assert!(queues.short.is_empty(), "it was written meanwhile");
    }

    #[tokio::test]
    async fn a_readers_block_on_the_same_connection_goes_first() {
        let (limits, admission) = (Limits::default(), Admission::default());
        let stall = Duration::from_secs(60);
        let (asking, answering) = (Outbox::new(true, stall), Outbox::new(true, stall));
        asking.put((1..=3).map(|n| put(n, 1000)), &admission);
        answering.put((11..=13).map(data), &admission);
        let order = Mutex::new(Vec::new());
        let note = |frame: &Frame| match frame {
            Frame::Put { request, .. } | Frame::Data { request, .. } => order.lock().push(*request),
            _ => {}
        };
        let (mut a, mut b) = (futures::io::sink(), futures::io::sink());
        let both = async {
            tokio::join!(
                asking.write_to(&mut a, &admission, &limits, note),
                answering.write_to(&mut b, &admission, &limits, note)
            )
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), both).await;
        assert_eq!(order.into_inner(), [11, 12, 13, 1, 2, 3]);
    }

    #[tokio::test]
    async fn credit_is_granted_as_fast_as_blocks_may_come() {
        let limits = Limits::new(None, Some(1_000_000), true);
        let (outbox, admission) = (Outbox::new(true, Duration::from_secs(60)), Admission::default());
        outbox.put([Frame::Credit { bytes: 350_000 }], &admission);
        let begun = std::time::Instant::now();
        let granted = async {
            while outbox.queues.lock().short.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            _ = outbox.grant(&limits) => {}
            () = granted => {}
        }
        assert!(
            begun.elapsed() >= Duration::from_millis(100),
            "{:?}",
            begun.elapsed()
        );
        let free = Outbox::new(false, Duration::from_secs(60));
        free.put([Frame::Credit { bytes: 1 }], &admission);
        assert_eq!(free.queues.lock().short.len(), 1, "the local network is exempt");
    }
}
