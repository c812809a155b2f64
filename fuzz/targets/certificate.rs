//! Membership certificates: what decodes encodes to the same bytes, and none of it passes for signed.
#![no_main]

use dfs::keys::{Certificate, GroupKey, RootSecret};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(certificate) = Certificate::decode(data) {
        assert_eq!(certificate.encode(), data);
        let group = GroupKey::from_root(&RootSecret::from_bytes([1; 32]));
        let now = certificate.membership().issued;
        assert!(
            certificate.verify(&group.public(), now).is_err(),
            "a forged certificate was believed"
        );
    }
});
