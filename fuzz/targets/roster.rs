//! Rosters, statements, presences and heads: what decodes encodes to the same bytes, and nothing unsigned is believed.
#![no_main]

use dfs::base::GroupId;
use dfs::keys::head::Unverified;
use dfs::keys::{GroupKey, Head, Presence, RootSecret, Roster, Statement, roster};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let group = GroupKey::from_root(&RootSecret::from_bytes([1; 32]));
    let _ = roster::split(data);
    if let Ok(roster) = Roster::decode(data, group.public()) {
        assert!(roster.is_empty(), "a forged statement was believed");
        assert_eq!(roster.encode(), data);
    }
    assert!(
        Statement::decode(data, &group.public()).is_err(),
        "a forged statement was believed"
    );
    let group = GroupId([1; 32]);
    assert!(
        Presence::decode(data, &group).is_err(),
        "a forged presence was believed"
    );
    assert!(Head::decode(data, &group).is_err(), "a forged head was believed");
    if let Ok(head) = Unverified::decode(data, &group) {
        let _ = (head.device(), head.place());
        assert!(head.verify(&group).is_err(), "a forged head was believed");
    }
});
