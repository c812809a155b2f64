//! What people do with the simulated devices: write, read, delete, want space back.

use bytes::Bytes;

use super::World;
use crate::base::BlockId;
use crate::replica::message::Event;
use crate::store::{BlockStore, Put, PutKind};

impl World {
    /// A device writes a new block and syncs it.
    pub(in crate::replica) fn write(&mut self, at: usize) -> BlockId {
        self.next_content += 1;
        // Where groups are formed, of two lengths that do not go together.
        let is_long = self.devices[at].setup.groups.is_some() && self.next_content.is_multiple_of(3);
        // As sealed blocks are: the parity of two of them is never a third.
        let noise = blake3::hash(&self.next_content.to_le_bytes());
        let bytes: Bytes = noise.as_bytes().repeat(if is_long { 6 } else { 3 }).into();
        let id = BlockId::of(&bytes);
        self.contents.insert(id, bytes.clone());
        let put = Put {
            id,
            bytes,
            kind: PutKind::Dirty,
            plain: None,
        };
        let _ = self.devices[at].disk.inner.put(vec![put]);
        let _ = self.devices[at].disk.inner.sync();
        let wanted = self.devices[at].setup.wanted;
        self.retain(at, &[id], wanted);
        id
    }

    /// The files of a device need these blocks from now on.
    pub(in crate::replica) fn retain(&mut self, at: usize, blocks: &[BlockId], wanted: u8) {
        let retained = blocks
            .iter()
            .map(|block| self.as_retained(block, wanted))
            .collect();
        self.devices[at]
            .retained
            .extend(blocks.iter().map(|block| (*block, wanted)));
        self.tell(at, Event::Retain(retained));
    }

    /// They do not need these any more: a marking of what is left.
    pub(in crate::replica) fn give_up(&mut self, at: usize, blocks: &[BlockId]) {
        self.devices[at]
            .retained
            .retain(|block, _| !blocks.contains(block));
        self.tell(at, Event::BeginMark);
        let left = self.devices[at].retained.clone();
        let left = left
            .iter()
            .map(|(block, wanted)| self.as_retained(block, *wanted))
            .collect();
        self.tell(at, Event::Named(left));
        self.tell(at, Event::EndMark);
        self.collect(at);
    }

    /// The volume's own collection: what neither its files nor others need goes.
    pub(in crate::replica) fn collect(&mut self, at: usize) {
        let device = &self.devices[at];
        if !device.setup.has_volume || device.gone {
            return;
        }
        let all = device.disk.inner.list(None, usize::MAX).unwrap();
        let useless: Vec<BlockId> = all
            .into_iter()
            .map(|(block, _)| block)
            .filter(|block| !device.retained.contains_key(block))
            .collect();
        device.disk.inner.remove(&useless).unwrap();
    }

    pub(in crate::replica) fn free(&mut self, at: usize, blocks: &[BlockId]) {
        self.tell(at, Event::Free(blocks.to_vec()));
    }

    /// A reader fetches a block into its cache.
    pub(in crate::replica) fn read(&mut self, at: usize, block: &BlockId) {
        if self.devices[at].is_up()
            && let Some(bytes) = self.fetch(at, block)
        {
            let put = Put {
                id: *block,
                bytes,
                kind: PutKind::Cached,
                plain: None,
            };
            self.devices[at].disk.inner.put(vec![put]).unwrap();
        }
    }
}
