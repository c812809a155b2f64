//! The rules by which heads are kept: order does not matter, forks are told, nothing is kept of those who may not write.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::base::{BlockId, VolumeId};
use crate::keys::DeviceKey;
use proptest::prelude::*;

const GROUP: GroupId = GroupId([4; 32]);

fn head(device: u8, before: Option<&Head>, snapshot: u8) -> Head {
    let key = DeviceKey::from_bytes(&[device; 32]);
    let (volume, snapshot) = (VolumeId([5; 16]), BlockId([snapshot; 32]));
    Head::issue(&key, &GROUP, volume, before, snapshot, 1, 1_700_000_000)
}

fn book() -> HeadBook {
    HeadBook::new(GROUP)
}

fn id(device: u8) -> DeviceId {
    DeviceKey::from_bytes(&[device; 32]).id()
}

const WRITES: Option<bool> = Some(true);

#[test]
fn the_newest_is_kept_and_what_is_older_or_known_changes_nothing() {
    let mut book = book();
    let first = head(1, None, 1);
    let second = head(1, Some(&first), 2);
    let third = head(1, Some(&second), 3);
    let place = |head: &Head| (head.seq, head.hash());
    assert!(book.wants(&id(1), place(&first)));
    assert_eq!(book.hear(first.clone(), None, WRITES), Heard::Newer);
    // The second is never heard of; that is no fork.
    assert_eq!(book.hear(third.clone(), None, WRITES), Heard::Newer);
    let version = book.version();
    for known in [&first, &second, &third] {
        assert!(!book.wants(&id(1), place(known)));
        assert_eq!(book.hear(known.clone(), None, WRITES), Heard::Known);
    }
    assert_eq!((book.get(&id(1)), book.version()), (Some(&third), version));
}

#[test]
fn a_device_that_went_two_ways_is_noticed_and_all_choose_the_same() {
    let first = head(1, None, 1);
    let (mut low, mut high) = (head(1, Some(&first), 2), head(1, Some(&first), 3));
    if low.hash() > high.hash() {
        std::mem::swap(&mut low, &mut high);
    }
    let fork = |first| Heard::Fork { first };
    let mut one = book();
    assert_eq!(one.hear(low.clone(), None, WRITES), Heard::Newer);
    assert!(one.wants(&id(1), (high.seq, high.hash())));
    assert_eq!(one.hear(high.clone(), None, WRITES), fork(true));
    assert!(!one.wants(&id(1), (high.seq, high.hash())));
    assert_eq!(one.hear(high.clone(), None, WRITES), Heard::Known, "told once");
    let mut other = book();
    assert_eq!(other.hear(high.clone(), None, WRITES), Heard::Newer);
    assert_eq!(other.hear(low.clone(), None, WRITES), fork(true));
    assert_eq!(other.hear(high.clone(), None, WRITES), Heard::Known, "told once");
    assert_eq!((one.get(&id(1)), other.get(&id(1))), (Some(&low), Some(&low)));
    // The one that was not kept goes on; again that is a fork, though not the first.
    let next = head(1, Some(&high), 4);
    assert_eq!(one.hear(next.clone(), None, WRITES), fork(false));
    // Both were merged: what follows is none.
    assert_eq!(one.hear(head(1, Some(&next), 5), None, WRITES), Heard::Newer);
}

#[test]
fn what_a_device_that_may_not_write_says_is_refused_and_dropped() {
    let mut book = book();
    assert_eq!(book.hear(head(1, None, 1), None, Some(false)), Heard::Refused);
    assert_eq!(book.hear(head(1, None, 1), None, WRITES), Heard::Newer);
    assert_eq!(book.hear(head(2, None, 1), None, WRITES), Heard::Newer);
    let key = key(&GROUP, &DeviceKey::from_bytes(&[1; 32]).public());
    assert!(book.under(&key).is_some());
    book.take_changed();
    assert!(book.settle(|_| WRITES).is_empty());
    assert_eq!(book.take_changed(), None);
    assert!(book.settle(|device| Some(*device != id(1))).is_empty());
    assert!(book.take_changed().is_some());
    assert_eq!(book.iter().map(Head::device_id).collect::<Vec<_>>(), [id(2)]);
    assert!(book.under(&key).is_none());
    assert_eq!(book.since(0, &id(9)).count(), 1);
}

#[test]
fn heads_of_devices_that_are_not_known_yet_wait_for_the_roster_within_bounds() {
    let mut book = book();
    let first = head(1, None, 1);
    let second = head(1, Some(&first), 2);
    assert_eq!(book.hear(second.clone(), Some(id(9)), None), Heard::Waits);
    assert_eq!(book.hear(first, Some(id(9)), None), Heard::Known);
    for device in 2..=WAITING_MAX as u8 {
        assert_eq!(book.hear(head(device, None, 1), None, None), Heard::Waits);
    }
    assert_eq!(book.hear(head(200, None, 1), None, None), Heard::Refused);
    assert_eq!(book.iter().count(), 0);
    let roster = |device: &DeviceId| (*device == id(1)).then_some(true);
    assert_eq!(book.settle(roster), [(second, Some(id(9)))]);
    assert!(book.settle(roster).is_empty());
    assert_eq!(book.waiting.len(), WAITING_MAX - 1);
}

#[test]
fn whoever_tells_others_sees_what_is_new_but_not_what_came_from_them() {
    let mut book = book();
    let (one, two) = (head(1, None, 1), head(2, None, 1));
    book.hear(one.clone(), Some(id(8)), WRITES);
    let told = book.version();
    book.hear(two.clone(), Some(id(9)), WRITES);
    let since = |book: &HeadBook, version, to| book.since(version, &id(to)).cloned().collect::<Vec<_>>();
    assert_eq!(since(&book, 0, 7), [one.clone(), two.clone()]);
    assert_eq!(since(&book, 0, 8), std::slice::from_ref(&two));
    assert_eq!(since(&book, told, 8), std::slice::from_ref(&two));
    assert_eq!(since(&book, told, 9), []);
    let next = head(1, Some(&one), 2);
    book.hear(next.clone(), Some(id(9)), WRITES);
    assert_eq!(since(&book, 0, 8), [two, next], "each device once");
    assert_eq!(since(&book, book.version(), 8), []);
}

#[test]
fn it_is_remembered_over_a_restart() {
    let mut before = book();
    assert_eq!(before.take_changed(), None);
    let (one, two) = (head(1, None, 1), head(2, None, 1));
    before.hear(one.clone(), None, WRITES);
    before.hear(two.clone(), None, WRITES);
    let bytes = before.take_changed().unwrap();
    assert_eq!(before.take_changed(), None);
    assert_eq!(
        (&bytes[..7], bytes.len()),
        (&b"dfsW\x01\x02\x00"[..], 7 + 2 * HEAD_LEN)
    );
    let mut after = book();
    after.load(&bytes, |_| None).unwrap();
    assert_eq!((after.get(&id(1)), after.get(&id(2))), (Some(&one), Some(&two)));
    assert_eq!(after.take_changed(), None);
    let mut after = book();
    after.load(&bytes, |device| Some(*device == id(2))).unwrap();
    assert_eq!((after.get(&id(1)), after.get(&id(2))), (None, Some(&two)));
    assert!(book().load(&bytes[..bytes.len() - 1], |_| None).is_err());
    assert!(book().load(&[&bytes[..], &[0]].concat(), |_| None).is_err());
}

/// Two lines of heads of each of two devices, which share their first.
fn heads_of_two() -> Vec<Head> {
    let mut all = Vec::new();
    for device in [1, 2] {
        let first = head(device, None, 0);
        for line in [10, 20] {
            let mut last = first.clone();
            for n in 1..5 {
                last = head(device, Some(&last), line + n);
                all.push(last.clone());
            }
        }
        all.push(first);
    }
    all
}

proptest! {
    #[test]
    fn any_order_and_repetition_ends_in_the_same_heads(
        order in Just((0..18).collect::<Vec<usize>>()).prop_shuffle(), again in proptest::collection::vec(0..18usize, 0..20),
    ) {
        let all = heads_of_two();
        prop_assert_eq!(all.len(), order.len());
        let mut book = book();
        for at in order.iter().chain(&again) {
            book.hear(all[*at].clone(), None, WRITES);
        }
        for device in [1, 2] {
            let mut of_device = all.iter().filter(|head| head.device_id() == id(device));
            let first = of_device.next().unwrap();
            let best = of_device.fold(first, |best, head| if head.supersedes(best) { head } else { best });
            prop_assert_eq!(book.get(&id(device)), Some(best));
        }
    }
}
