//! The roster against what admins may do to it: in any order, at once, forged, replayed, after their removal.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::keys::{DeviceKey, GroupKey, Membership, RootSecret};

fn group() -> GroupKey {
    GroupKey::from_root(&RootSecret::from_bytes([7; 32]))
}

fn device(n: u8) -> DeviceKey {
    DeviceKey::from_bytes(&[n; 32])
}

fn certificate(n: u8, role: Role, issued: UnixSecs) -> Certificate {
    let membership = Membership {
        group: group().id(),
        device: device(n).public(),
        role,
        epoch: 1,
        issued,
        expires: issued + 1_000_000,
        zone: None,
    };
    Certificate::issue(&group(), membership)
}

/// One admin's computer.
#[derive(Clone)]
struct Admin {
    n: u8,
    roster: Roster,
}

impl Admin {
    /// An admin that certifies itself, as the first one does, and the one that has the recovery phrase.
    fn first(n: u8) -> Self {
        let mut admin = Self {
            n,
            roster: Roster::new(group().public()),
        };
        admin.member(n, Role::Admin, 1);
        admin
    }

    fn state(&mut self, draft: Draft) -> Statement {
        let statement = Statement::sign(draft, &group(), &device(self.n));
        assert!(self.roster.add([statement.clone()]));
        statement
    }

    fn member(&mut self, n: u8, role: Role, issued: UnixSecs) -> Statement {
        let draft = self
            .roster
            .draft_member(device(self.n).public(), certificate(n, role, issued));
        self.state(draft)
    }

    fn remove(&mut self, n: u8, at: UnixSecs) -> Statement {
        let draft = self
            .roster
            .draft_removal(device(self.n).public(), device(n).id(), at);
        self.state(draft)
    }

    /// Another admin with the same roster.
    fn beside(&self, n: u8) -> Self {
        Self {
            n,
            roster: self.roster.clone(),
        }
    }

    fn role(&self, n: u8) -> Option<Role> {
        role(&self.roster, n)
    }
}

fn role(roster: &Roster, n: u8) -> Option<Role> {
    match roster.standing(&device(n).id()) {
        Standing::Member(certificate) => Some(certificate.membership().role),
        _ => None,
    }
}

fn met(a: &Admin, b: &Admin) -> Roster {
    let (mut one, mut other) = (a.roster.clone(), b.roster.clone());
    one.merge(&b.roster);
    other.merge(&a.roster);
    assert_eq!(one, other);
    assert_eq!(one.digest(), other.digest());
    one
}

#[test]
fn members_come_change_their_role_and_go_for_good() {
    let mut a = Admin::first(1);
    a.member(2, Role::Writer, 10);
    assert_eq!((a.role(1), a.role(2)), (Some(Role::Admin), Some(Role::Writer)));
    a.member(2, Role::Reader, 20);
    assert_eq!(a.role(2), Some(Role::Reader));
    assert_eq!(
        a.roster
            .members()
            .find(|(d, _)| **d == device(2).id())
            .unwrap()
            .1
            .since,
        10
    );
    assert_eq!(a.roster.epoch_due(), 1);
    a.remove(2, 30);
    assert_eq!(a.roster.standing(&device(2).id()), Standing::Removed(30));
    assert_eq!(a.roster.epoch_due(), 2);
    // Neither an old certificate nor a new one brings it back.
    a.member(2, Role::Admin, 40);
    assert_eq!(a.roster.standing(&device(2).id()), Standing::Removed(30));
    assert_eq!(a.roster.standing(&device(9).id()), Standing::Unknown);
}

#[test]
fn a_reader_that_becomes_a_host_costs_an_epoch_and_a_new_host_does_not() {
    let mut a = Admin::first(1);
    a.member(2, Role::Host, 10);
    assert_eq!(a.roster.epoch_due(), 1);
    a.member(2, Role::Reader, 20);
    a.member(2, Role::Host, 30);
    assert_eq!(a.roster.epoch_due(), 2);
}

#[test]
fn the_removal_of_a_guest_costs_no_epoch_unless_it_was_more() {
    let mut a = Admin::first(1);
    a.member(2, Role::Guest, 10);
    a.remove(2, 20);
    assert_eq!(a.roster.epoch_due(), 1);
    // Two admins let it in as two things.
    a.member(3, Role::Guest, 10);
    a.member(3, Role::Writer, 20);
    a.remove(3, 30);
    assert_eq!(a.roster.epoch_due(), 2);
}

#[test]
fn what_a_removed_admin_states_later_does_not_count() {
    let mut a = Admin::first(1);
    a.member(2, Role::Admin, 10);
    let mut b = a.beside(2);
    b.member(3, Role::Writer, 20);
    a.roster.merge(&b.roster);
    a.remove(2, 30);
    // B does not know, and goes on.
    b.member(4, Role::Admin, 40);
    b.remove(3, 50);
    b.member(2, Role::Admin, 60);
    let roster = met(&a, &b);
    assert_eq!(role(&roster, 3), Some(Role::Writer), "from before its removal");
    assert_eq!(roster.standing(&device(4).id()), Standing::Unvouched);
    assert_eq!(roster.standing(&device(2).id()), Standing::Removed(30));
    assert_eq!(roster.epoch_due(), 2);
    // Nor what those state whom it made admins.
    let mut c = b.beside(4);
    c.remove(1, 70);
    let roster = met(&a, &c);
    assert_eq!(
        role(&roster, 1),
        Some(Role::Admin),
        "its author is one whom only a removed admin made one"
    );
}

#[test]
fn a_demoted_admin_is_not_heard_until_it_is_one_again() {
    let mut a = Admin::first(1);
    a.member(2, Role::Admin, 10);
    let mut b = a.beside(2);
    a.member(2, Role::Writer, 20);
    b.member(3, Role::Writer, 30);
    b.roster.merge(&a.roster);
    assert_eq!(b.roster.standing(&device(3).id()), Standing::Unvouched);
    a.member(2, Role::Admin, 40);
    b.roster.merge(&a.roster);
    assert_eq!(b.role(3), Some(Role::Writer));
    // It cannot raise itself.
    a.member(2, Role::Reader, 50);
    b.roster.merge(&a.roster);
    b.member(2, Role::Admin, 60);
    assert_eq!(b.role(2), Some(Role::Reader));
}

#[test]
fn admins_who_remove_each_other_at_once_agree_afterwards_and_one_is_left() {
    let mut a = Admin::first(1);
    a.member(2, Role::Admin, 10);
    let mut b = a.beside(2);
    a.remove(2, 20);
    b.remove(1, 20);
    let roster = met(&a, &b);
    let left: Vec<u8> = [1, 2]
        .into_iter()
        .filter(|n| role(&roster, *n).is_some())
        .collect();
    assert_eq!(left.len(), 1);
    assert_eq!(roster.epoch_due(), 2);
}

#[test]
fn two_admins_who_give_one_device_two_roles_at_once_agree_on_the_lower() {
    let mut a = Admin::first(1);
    a.member(2, Role::Admin, 10);
    a.member(3, Role::Writer, 10);
    let mut b = a.beside(2);
    a.member(3, Role::Admin, 30);
    b.member(3, Role::Reader, 20);
    assert_eq!(role(&met(&a, &b), 3), Some(Role::Reader));
    // One removes it, the other one gives it a role.
    let mut b = a.beside(2);
    a.remove(3, 40);
    b.member(3, Role::Admin, 50);
    assert_eq!(met(&a, &b).standing(&device(3).id()), Standing::Removed(40));
}

#[test]
fn removals_apart_from_each_other_cost_an_epoch_each() {
    let mut a = Admin::first(1);
    for n in 2..5 {
        a.member(n, if n == 2 { Role::Admin } else { Role::Writer }, 10);
    }
    let mut b = a.beside(2);
    a.remove(3, 20);
    b.remove(4, 20);
    assert_eq!((a.roster.epoch_due(), b.roster.epoch_due()), (2, 2));
    assert_eq!(met(&a, &b).epoch_due(), 3);
}

#[test]
fn the_last_admin_may_leave_and_the_phrase_makes_a_new_one() {
    let mut a = Admin::first(1);
    a.member(2, Role::Writer, 10);
    a.remove(1, 20);
    assert_eq!(a.roster.standing(&device(1).id()), Standing::Removed(20));
    assert_eq!(
        a.role(2),
        Some(Role::Writer),
        "what it stated before still counts"
    );
    let recovered = Admin::first(5);
    let roster = met(&a, &recovered);
    assert_eq!(
        (role(&roster, 5), role(&roster, 2)),
        (Some(Role::Admin), Some(Role::Writer))
    );
}

#[test]
fn an_epoch_is_committed_to_by_admins_only_as_long_as_they_are() {
    let mut a = Admin::first(1);
    a.member(2, Role::Admin, 10);
    let mut b = a.beside(2);
    let draft = a.roster.draft_epoch(device(1).public(), 2, [5; 32]);
    a.state(draft);
    assert!(a.roster.is_committed(2, &[5; 32]) && !a.roster.is_committed(2, &[6; 32]));
    assert_eq!(a.roster.epoch(), 2);
    a.remove(2, 20);
    let draft = b.roster.draft_epoch(device(2).public(), 9, [9; 32]);
    b.state(draft);
    assert_eq!(met(&a, &b).epoch(), 2);
}

#[test]
fn two_statements_under_one_number_give_a_copy_away() {
    let mut a = Admin::first(1);
    let mut copy = a.clone();
    a.member(2, Role::Writer, 10);
    copy.member(3, Role::Writer, 20);
    assert!(a.roster.doubles().is_empty());
    assert_eq!(met(&a, &copy).doubles(), BTreeSet::from([device(1).id()]));
}

#[test]
fn forged_statements_are_refused_and_replayed_ones_change_nothing() {
    let mut a = Admin::first(1);
    let removal = a.remove(2, 20);
    let bytes = removal.encode(&group().id());
    assert_eq!(Statement::decode(&bytes, &group().public()), Ok(removal.clone()));
    assert!(!a.roster.add([removal]), "replayed");
    // Without the group key.
    let other = GroupKey::from_root(&RootSecret::from_bytes([8; 32]));
    let draft = a.roster.draft_removal(device(3).public(), device(1).id(), 30);
    let theirs = Statement::sign(draft, &other, &device(3)).encode(&group().id());
    assert_eq!(
        Statement::decode(&theirs, &group().public()),
        Err(StatementError::Forged("the group key"))
    );
    assert_eq!(
        Statement::decode(&bytes, &other.public()),
        Err(StatementError::OtherGroup(group().id()))
    );
    // A certificate of another group in a statement of ours.
    let mut foreign = certificate(4, Role::Writer, 1).membership().clone();
    foreign.group = other.id();
    let draft = a
        .roster
        .draft_member(device(1).public(), Certificate::issue(&other, foreign));
    let smuggled = Statement::sign(draft, &group(), &device(1)).encode(&group().id());
    assert!(matches!(
        Statement::decode(&smuggled, &group().public()),
        Err(StatementError::Certificate(_))
    ));
}

/// What admins 1 to 3 do, each to what it has heard: (who, what, to whom, whom it hears before).
fn history() -> impl Strategy<Value = Vec<(u8, u8, u8, u8)>> {
    proptest::collection::vec((0_u8..3, 0_u8..7, 0_u8..6, 0_u8..4), 0..24)
}

fn play(history: &[(u8, u8, u8, u8)]) -> Vec<Admin> {
    let mut first = Admin::first(1);
    first.member(2, Role::Admin, 1);
    first.member(3, Role::Admin, 1);
    let mut admins: Vec<Admin> = (1..4).map(|n| first.beside(n)).collect();
    for (at, (who, what, whom, hears)) in history.iter().enumerate() {
        let who = usize::from(*who);
        if let Some(heard) = admins.get(usize::from(*hears)).map(|a| a.roster.clone()) {
            admins[who].roster.merge(&heard);
        }
        let (at, whom) = (at as u64 + 2, whom + 1);
        match what {
            0..4 => drop(admins[who].member(whom, Role::from_byte(*what).unwrap(), at)),
            4 => {
                let author = device(admins[who].n).public();
                let due = admins[who].roster.epoch_due();
                let draft = admins[who].roster.draft_epoch(author, due, [due as u8; 32]);
                admins[who].state(draft);
            }
            _ => drop(admins[who].remove(whom, at)),
        }
    }
    admins
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn merging_is_commutative_associative_and_idempotent(history in history()) {
        let admins = play(&history);
        let [a, b, c] = [0, 1, 2].map(|n: usize| admins[n].roster.clone());
        let merged = |x: &Roster, y: &Roster| {
            let mut both = x.clone();
            both.merge(y);
            both
        };
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        prop_assert_eq!(merged(&a, &a), a.clone());
        let all = merged(&merged(&a, &b), &c);
        prop_assert_eq!(merged(&all, &b), all.clone());
        // Nobody both belongs and was removed, and what was removed by somebody heard stays so.
        for (device, _) in all.removed() {
            prop_assert!(all.members().all(|(member, _)| member != device));
        }
        // As much of it as fits a record says who was removed.
        let extract = all.extract(3000);
        prop_assert!(extract.len() <= 3000);
        let part = Roster::decode(&extract, group().public()).unwrap();
        prop_assert_eq!(merged(&all, &part), all.clone());
        prop_assert_eq!(all.extract(usize::MAX), all.encode());
        // What one lacks of the other, as it goes over the wire, makes them equal.
        let known = a.ids().collect();
        let mut caught_up = a.clone();
        let public = group().public();
        caught_up.add(all.beyond(&known).iter().map(|bytes| Statement::decode(bytes, &public).unwrap()));
        prop_assert_eq!(caught_up, all);
    }

    #[test]
    fn rosters_round_trip_and_cut_or_altered_ones_are_refused(
        history in history(), cut in any::<prop::sample::Index>(), bit in any::<prop::sample::Index>(),
    ) {
        let roster = &play(&history)[0].roster;
        let bytes = roster.encode();
        prop_assert!(bytes.len() <= ROSTER_MAX);
        let decoded = Roster::decode(&bytes, group().public());
        prop_assert_eq!(decoded.as_ref(), Ok(roster));
        prop_assert!(Roster::decode(&bytes[..cut.index(bytes.len())], group().public()).is_err());
        let mut wrong = bytes.clone();
        let bit = bit.index(bytes.len() * 8);
        wrong[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Roster::decode(&wrong, group().public()).is_err());
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Roster::decode(&bytes, group().public());
        let _ = Statement::decode(&bytes, &group().public());
    }
}

#[test]
fn golden_bytes_of_version_1() {
    let mut a = Admin::first(1);
    a.member(2, Role::Host, 10);
    a.remove(2, 20);
    let draft = a.roster.draft_epoch(device(1).public(), 2, [5; 32]);
    a.state(draft);
    let bytes = a.roster.encode();
    assert_eq!(&bytes[..7], b"dfsM\x01\x04\0");
    assert_eq!(
        blake3::hash(&bytes).to_hex().as_str(),
        "471a4cf7b402ed530e6b2f905697a28c65dd6490201d8a86bb13244e776e302a",
        "the form of a roster changed: raise its version"
    );
}
