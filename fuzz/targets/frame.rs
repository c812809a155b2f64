//! Frames of the block protocol and messages of joining: what decodes encodes to the same bytes.
#![no_main]

use dfs::node::address_record::AddressRecord;
use dfs::node::frame::decode_whole;
use dfs::node::join_message::Message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(frame) = decode_whole(data) {
        let (mut bytes, block) = frame.encode();
        bytes.extend_from_slice(block.map_or(&[], |b| &b[..]));
        assert_eq!(bytes, data);
    }
    if let Ok(message) = Message::decode(data) {
        assert_eq!(&message.encode()[..], data);
    }
    if let Ok(record) = AddressRecord::decode(data) {
        assert_eq!(record.encode(), data);
        assert!(
            record.verify(&[0; 32], &[1; 32], 0).is_err(),
            "a forged record was believed"
        );
    }
});
