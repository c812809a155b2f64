//! Memory for blocks, used again: touching new memory costs a sixth of sealing on a virtual machine.
//!
//! Invariant: a buffer is handed out again only when nothing refers to it any more; it is never much larger than what it holds, so that a
//! cache of blocks is as large as it seems; and only a bounded amount lies idle. Used by `block`.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

/// Idle memory kept, in bytes: what one batch of write-back holds, about.
const IDLE_BYTES_MAX: usize = 16 << 20;
/// Smaller buffers come from the allocator, which keeps their memory itself.
const RECYCLED_MIN: usize = 32 << 10;

/// Buffers that wait to be used again. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Idle>>);

#[derive(Default)]
struct Idle {
    /// The one that came back first is first.
    buffers: VecDeque<Vec<u8>>,
    /// What they hold together.
    bytes: usize,
}

impl Idle {
    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        let fits = |buffer: &Vec<u8>| (len..=len + len / 8).contains(&buffer.capacity());
        let at = self.buffers.iter().position(fits)?;
        let buffer = self.buffers.remove(at)?;
        self.bytes -= buffer.capacity();
        Some(buffer)
    }

    fn keep(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.bytes += buffer.capacity();
        self.buffers.push_back(buffer);
        // The oldest go: sizes that are no longer asked for do not stay.
        while self.bytes > IDLE_BYTES_MAX {
            let Some(oldest) = self.buffers.pop_front() else {
                break;
            };
            self.bytes -= oldest.capacity();
        }
    }
}

impl Buffers {
    /// An empty buffer with room for `len` bytes and at most an eighth more.
    pub(super) fn take(&self, len: usize) -> Vec<u8> {
        if len < RECYCLED_MIN {
            return Vec::with_capacity(len);
        }
        let idle = self.0.lock().take(len);
        idle.unwrap_or_else(|| Vec::with_capacity(len))
    }

    /// The buffer as shared bytes; its memory comes back when the last of them is dropped.
    pub(super) fn share(&self, buffer: Vec<u8>) -> Bytes {
        if buffer.capacity() < RECYCLED_MIN {
            return Bytes::from(buffer);
        }
        Bytes::from_owner(Shared {
            buffer,
            home: Arc::downgrade(&self.0),
        })
    }
}

struct Shared {
    buffer: Vec<u8>,
    home: Weak<Mutex<Idle>>,
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            home.lock().keep(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(buffers: &Buffers, len: usize, byte: u8) -> Bytes {
        let mut buffer = buffers.take(len);
        assert!(buffer.is_empty());
        buffer.resize(len, byte);
        buffers.share(buffer)
    }

    #[test]
    fn memory_comes_back_only_when_the_last_reference_is_gone() {
        let buffers = Buffers::default();
        let first = shared(&buffers, 100_000, 1);
        let (address, clone, slice) = (first.as_ptr(), first.clone(), first.slice(5..10));
        drop((first, clone));
        let second = shared(&buffers, 100_000, 2);
        assert_ne!(second.as_ptr(), address);
        assert_eq!(slice, [1; 5][..]);
        drop(slice);
        let third = shared(&buffers, 99_000, 3);
        assert_eq!(third.as_ptr(), address);
        assert_eq!((second.len(), third.len()), (100_000, 99_000));
        assert!(third.iter().all(|byte| *byte == 3));
    }

    #[test]
    fn a_buffer_is_never_much_too_large_and_little_lies_idle() {
        let buffers = Buffers::default();
        drop(shared(&buffers, 1_000_000, 1));
        assert!(buffers.take(800_000).capacity() <= 900_000);
        drop(
            (0..30)
                .map(|_| shared(&buffers, 1_000_000, 1))
                .collect::<Vec<_>>(),
        );
        let idle = buffers.0.lock();
        assert_eq!(idle.bytes, idle.buffers.iter().map(Vec::capacity).sum::<usize>());
        assert!(idle.bytes <= IDLE_BYTES_MAX && idle.buffers.len() >= 10);
    }

    #[test]
    fn bytes_outlive_their_buffers() {
        let buffers = Buffers::default();
        let bytes = shared(&buffers, 50_000, 7);
        drop(buffers);
        assert!(bytes.iter().all(|byte| *byte == 7));
    }
}
