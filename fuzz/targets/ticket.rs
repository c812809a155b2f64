//! Invitations and tickets: any bytes as the binary form, as text, and as text with a right checksum.
#![no_main]

use dfs::keys::{Invitation, Ticket};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(invitation) = Invitation::decode(data) {
        assert_eq!(invitation.encode(), data);
        assert!(
            invitation.verify(&[1; 32], 0).is_err(),
            "an invitation of another group was believed"
        );
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Ticket::from_text(text);
    }
    let sum = blake3::derive_key("dfs 2026 ticket checksum", data);
    let whole = [data, &sum[..4]].concat();
    let text = format!("dfs1-{}", data_encoding::BASE32_NOPAD.encode(&whole));
    assert!(Ticket::from_text(&text).is_err(), "a forged ticket was believed");
});
