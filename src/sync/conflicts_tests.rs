//! Conflict copies of one device's tree, found by name.

use std::path::{Path, PathBuf};

use super::history_tests::One;

#[test]
fn copies_are_found_with_what_they_are_copies_of() {
    let one = One::new();
    assert_eq!(one.engine.conflicts(Path::new(""), 10).unwrap(), (Vec::new(), 0));
    let long = format!("{}.txt", "x".repeat(249));
    let cut = format!("{}.conflict-12345678-abcdef01.txt", "x".repeat(222));
    assert_eq!((long.len(), cut.len()), (253, 253));
    one.mkdir("dir");
    one.mkdir("dir/a.conflict-12345678-abcdef01");
    for (path, text) in [
        ("a.txt", "one"),
        ("a.conflict-12345678-abcdef01.txt", "the other"),
        ("dir/alone.conflict-12345678-abcdef01", "alone"),
        ("dir/a.conflict-2", "no copy"),
        (&long, "long"),
        (&cut, "cut"),
    ] {
        one.write(path, text.as_bytes());
    }
    let head = one.commit();
    let (found, all) = one.engine.conflicts(Path::new(""), 10).unwrap();
    assert_eq!((found.len(), all), (3, 3));
    let at = |path: &str| found.iter().find(|copy| copy.path == Path::new(path)).unwrap();
    let copy = at("a.conflict-12345678-abcdef01.txt");
    assert_eq!(copy.of, Some(PathBuf::from("a.txt")));
    assert_eq!((copy.size, copy.of_size), (Some(9), Some(3)));
    assert_eq!(copy.device.as_deref(), Some("12345678"));
    assert!(copy.time > 1_600_000_000);
    let alone = at("dir/alone.conflict-12345678-abcdef01");
    assert_eq!((&alone.of, alone.of_size), (&None, None));
    assert_eq!(at(&cut).of, Some(PathBuf::from(&long)));

    // Below a path, and no more than is asked for.
    let (found, all) = one.engine.conflicts(Path::new("dir"), 10).unwrap();
    assert_eq!((found.len(), all), (1, 1));
    assert!(found[0].path.starts_with("dir"));
    let (found, all) = one.engine.conflicts(Path::new(""), 1).unwrap();
    assert_eq!((found.len(), all), (1, 3));
    assert!(one.engine.conflicts(Path::new("../x"), 1).is_err());

    // Of two that may have been cut nobody says which.
    one.write(&format!("{}y.txt", "x".repeat(248)), b"another");
    one.commit();
    let (found, _) = one.engine.conflicts(Path::new(&cut), 10).unwrap();
    assert_eq!((found.len(), &found[0].of), (1, &None));
    assert_eq!(one.engine.count_conflicts(&head).unwrap(), 3);
}
