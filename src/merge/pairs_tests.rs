//! What comes of each pair of changes that two devices make at the same time, as `docs/semantics.md` has it.

use std::collections::BTreeSet;

use super::tests::{change, expect, id_of, merged, moved, removed, three, tree, written_to};
use super::{MemoryTree, Place};

fn place(parent: &str, name: &str) -> Place {
    Place {
        parent: id_of(parent),
        name: name.as_bytes().into(),
    }
}

fn linked(tree: &mut MemoryTree, path: &str, name: &str) {
    change(tree, path, |node| assert!(node.places.insert(place("", name))));
}

fn unlinked(tree: &mut MemoryTree, path: &str, name: &str) {
    change(tree, path, |node| assert!(node.places.remove(&place("", name))));
}

fn mode(tree: &mut MemoryTree, path: &str, mode: u32) {
    change(tree, path, |node| node.meta.mode = mode);
}

fn mode_of(base: &MemoryTree, left: &MemoryTree, right: &MemoryTree, path: &str) -> u32 {
    merged(base, left, right).nodes()[&id_of(path)].meta.mode
}

#[test]
fn a_write_meets_everything_else_that_is_done_to_its_file() {
    let (base, mut wrote, mut other) = three();
    written_to(&mut wrote, "b", 7);
    let rest = [("d", 0), ("d/a", 1)];
    let and = |more: &[(&'static str, u8)]| [&rest[..], more].concat();
    moved(&mut other, "b", "d", "c");
    expect(&base, &wrote, &other, &and(&[("d/c", 7)]));
    let (_, _, mut other) = three();
    removed(&mut other, &["b"]);
    expect(&base, &wrote, &other, &and(&[("b", 7)]));
    let (_, _, mut other) = three();
    mode(&mut other, "b", 0o600);
    expect(&base, &wrote, &other, &and(&[("b", 7)]));
    assert_eq!(mode_of(&base, &wrote, &other, "b"), 0o600);
    let (_, _, mut other) = three();
    linked(&mut other, "b", "l");
    expect(&base, &wrote, &other, &and(&[("b", 7), ("l", 7)]));
}

#[test]
fn a_delete_gives_way_to_all_but_attributes() {
    let (base, mut gone, mut other) = three();
    removed(&mut gone, &["b"]);
    let rest = [("d", 0), ("d/a", 1)];
    let and = |more: &[(&'static str, u8)]| [&rest[..], more].concat();
    removed(&mut other, &["b"]);
    expect(&base, &gone, &other, &rest);
    let (_, _, mut other) = three();
    mode(&mut other, "b", 0o600);
    expect(&base, &gone, &other, &rest);
    let (_, _, mut other) = three();
    moved(&mut other, "b", "d", "c");
    expect(&base, &gone, &other, &and(&[("d/c", 2)]));
    let (_, _, mut other) = three();
    linked(&mut other, "b", "l");
    expect(&base, &gone, &other, &and(&[("b", 2), ("l", 2)]));
}

#[test]
fn names_of_one_file_come_and_go_one_by_one() {
    let mut base = tree(&[("b", 2)]);
    linked(&mut base, "b", "l");
    let sides = || (base.clone(), base.clone());
    // Each gives it a name.
    let (mut left, mut right) = sides();
    linked(&mut left, "b", "x");
    linked(&mut right, "b", "y");
    expect(&base, &left, &right, &[("b", 2), ("l", 2), ("x", 2), ("y", 2)]);
    // One takes a name, the other gives one.
    let (mut left, mut right) = sides();
    unlinked(&mut left, "b", "l");
    linked(&mut right, "b", "y");
    expect(&base, &left, &right, &[("b", 2), ("y", 2)]);
    // One takes a name, the other writes, or changes an attribute.
    written_to(&mut right, "b", 7);
    expect(&base, &left, &right, &[("b", 7), ("y", 7)]);
    let (_, mut right) = sides();
    mode(&mut right, "b", 0o600);
    expect(&base, &left, &right, &[("b", 2)]);
    assert_eq!(mode_of(&base, &left, &right, "b"), 0o600);
    // Both take the same.
    expect(&base, &left, &left, &[("b", 2)]);
    // Each takes the one that the other leaves: neither meant to be rid of the file, whether or not somebody wrote to it.
    let (_, mut right) = sides();
    unlinked(&mut right, "b", "b");
    expect(&base, &left, &right, &[("b", 2), ("l", 2)]);
    written_to(&mut right, "b", 7);
    expect(&base, &left, &right, &[("b", 7), ("l", 7)]);
    // One takes a name, the other all: it stays for who left one.
    let (_, mut right) = sides();
    removed(&mut right, &["b"]);
    expect(&base, &left, &right, &[("b", 2)]);
}

#[test]
fn a_move_keeps_what_else_is_done_to_its_file() {
    let (base, mut left, mut right) = three();
    moved(&mut left, "b", "d", "c");
    mode(&mut right, "b", 0o600);
    linked(&mut right, "b", "l");
    expect(
        &base,
        &left,
        &right,
        &[("d", 0), ("d/a", 1), ("d/c", 2), ("l", 2)],
    );
    assert_eq!(mode_of(&base, &left, &right, "b"), 0o600);
    // The same move is one.
    expect(&base, &left, &left, &[("d", 0), ("d/a", 1), ("d/c", 2)]);
}

#[test]
fn a_directory_that_goes_comes_back_for_what_is_put_into_it() {
    let (base, mut left, mut right) = three();
    removed(&mut left, &["d", "d/a"]);
    let new = tree(&[("d/new", 5)]).nodes()[&id_of("d/new")].clone();
    right.apply(&[(id_of("d/new"), Some(new))].into());
    expect(&base, &left, &right, &[("d", 0), ("d/new", 5), ("b", 2)]);
    // Nobody else did anything to it: gone, also when its attributes changed or it moved.
    let (_, _, mut right) = three();
    mode(&mut right, "d", 0o700);
    moved(&mut right, "d", "", "e");
    expect(&base, &left, &right, &[("b", 2)]);
    removed(&mut right, &["d", "d/a"]);
    expect(&base, &left, &right, &[("b", 2)]);
}

#[test]
fn names_that_look_alike_are_two() {
    let (base, mut left, mut right) = three();
    moved(&mut left, "b", "", "Caf\u{e9}");
    let other = tree(&[("Cafe\u{301}", 5)]);
    let id = id_of("Cafe\u{301}");
    right.apply(&[(id, Some(other.nodes()[&id].clone()))].into());
    let upper = tree(&[("CAFE\u{301}", 6)]);
    let id = id_of("CAFE\u{301}");
    right.apply(&[(id, Some(upper.nodes()[&id].clone()))].into());
    let both = merged(&base, &left, &right);
    let names: BTreeSet<Box<[u8]>> = both
        .nodes()
        .values()
        .flat_map(|node| node.places.iter().map(|place| place.name.clone()))
        .collect();
    for name in ["Caf\u{e9}", "Cafe\u{301}", "CAFE\u{301}"] {
        assert!(names.contains(name.as_bytes()), "{name}");
    }
    assert_eq!(names.len(), 5);
}
