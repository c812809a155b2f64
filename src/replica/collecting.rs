//! What is retained, and giving up what is not: mark and sweep.
//!
//! Invariant: a sweep takes only what no [`Event::Retain`](super::message::Event::Retain) has named since its marking began, and only after
//! that marking came to its end in this very process. It resumes after a crash.

use crate::store::{Kept, Number, ReplicaChange, StoreError};

use super::machine::{Machine, STEP};
use super::message::Retained;

impl Machine {
    pub(super) fn retain(&mut self, blocks: &[Retained], exactly: bool) -> Result<(), StoreError> {
        let mut changes = Vec::new();
        let mut judge = Vec::new();
        // What is new waits a little for others to form a group with.
        let wait = self.can_group();
        for retained in blocks {
            let old = self.store.kept(&retained.block)?;
            // What a marking says is all there is to say, but for what was said since it began.
            let more = old.filter(|old| !exactly || old.mark == self.mark);
            // In a group nothing would mean that it is only kept for the others.
            let is_grouped = old.is_some_and(|old| old.group > Some(0));
            let kept = Kept {
                block: retained.block,
                len: old.filter(|_| is_grouped).map_or(retained.len, |old| old.len),
                wanted: more
                    .map_or(0, |more| more.wanted)
                    .max(retained.wanted)
                    .max(u8::from(is_grouped)),
                pinned: more.is_some_and(|more| more.pinned) || retained.pinned,
                mark: self.mark,
                copies: old.map_or(0, |old| old.copies),
                todo: old.map_or((!wait).then_some(0), |old| old.todo),
                group: old.map_or(self.loose(), |old| old.group),
            };
            if old != Some(kept) {
                changes.push(ReplicaChange::Keep(kept));
                if kept.pinned {
                    changes.push(ReplicaChange::Protect { block: kept.block });
                }
                if is_grouped && kept.wanted > self.setup.wanted {
                    self.leave_group(&kept, &mut changes)?;
                }
                if wait && old.is_none() {
                    self.gather_soon();
                } else if old.is_none_or(|old| old.wanted != kept.wanted) {
                    judge.push(kept);
                }
            }
        }
        self.store.apply(&changes, false)?;
        let mut changes = Vec::new();
        for kept in judge {
            let replicas = self.store.replicas(&kept.block)?;
            self.settle_todo(&kept, &replicas, &mut changes)?;
            // New ones are not to wait until a long pass over others has ended.
            self.pass = None;
            self.hurry();
        }
        self.store.apply(&changes, false)?;
        Ok(())
    }

    pub(super) fn begin_mark(&mut self) -> Result<(), StoreError> {
        self.mark += 1;
        self.marking = true;
        self.store
            .apply(&[ReplicaChange::Number(Number::Mark, self.mark)], true)?;
        Ok(())
    }

    pub(super) fn end_mark(&mut self) -> Result<(), StoreError> {
        if !std::mem::take(&mut self.marking) {
            return Ok(());
        }
        // What was marked must be as durable as the order to sweep the rest.
        self.store
            .apply(&[ReplicaChange::Number(Number::Sweep, self.mark)], true)?;
        self.sweep = Some((self.mark, None));
        Ok(())
    }

    pub(super) fn sweep_step(&mut self) -> Result<(), StoreError> {
        let Some((mark, after)) = self.sweep else {
            return Ok(());
        };
        let page = self.store.kept_after(after, STEP)?;
        let mut changes = Vec::new();
        for kept in page.iter().filter(|kept| kept.mark < mark) {
            if kept.group > Some(0) {
                self.sweep_shard(kept, mark, &mut changes)?;
                continue;
            }
            self.abandon(&kept.block);
            changes.push(ReplicaChange::Unkeep { block: kept.block });
        }
        if page.len() < STEP {
            changes.push(ReplicaChange::Number(Number::Sweep, 0));
            self.sweep = None;
        } else {
            self.sweep = Some((mark, page.last().map(|kept| kept.block)));
        }
        self.store.apply(&changes, true)?;
        Ok(())
    }
}
