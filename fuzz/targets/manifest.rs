//! Slots of `.f` files: any bytes, and the same bytes as the authentic content of a slot. What decodes must encode and decode to itself.
#![no_main]

use dfs::keys::{RootSecret, VolumeKeys};
use dfs::object::slot;
use dfs::seal::seal_payload_with_nonce;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let keys = VolumeKeys::from_root(&RootSecret::from_bytes([1; 32]), 2).expect("two epochs");
    assert!(
        !matches!(slot::decode(data, &keys), Ok(Some(_))),
        "a forged slot was opened"
    );
    let _ = VolumeKeys::decode(data);

    let Some((size, content)) = data.split_first_chunk::<8>() else {
        return;
    };
    let (epoch, key) = keys.current();
    let mut header = b"dfsm\x01\0".to_vec();
    let sealed_len = u16::try_from(content.len() + dfs::seal::PAYLOAD_OVERHEAD).unwrap_or(u16::MAX);
    header.extend_from_slice(&sealed_len.to_le_bytes());
    header.extend_from_slice(&epoch.to_le_bytes());
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&[3; 24]);
    header.extend_from_slice(size);
    header.extend_from_slice(&[4; 24]);
    let sealed = seal_payload_with_nonce(key, [5; 24], &header, content).expect("a nonce is given");
    let slot = [header, sealed].concat();
    if let Ok(Some(manifest)) = slot::decode(&slot, &keys) {
        let again = slot::encode(&manifest, &keys).expect("what was decoded can be encoded");
        assert_eq!(slot::decode(&again, &keys), Ok(Some(manifest)));
    }
});
