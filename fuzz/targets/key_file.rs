//! Key files: any bytes, and the same bytes with the checksum that belongs to them. Never with a passphrase: Argon2 would be all it does.
#![no_main]

use dfs::keys::key_file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = key_file::is_sealed(data);
    let _ = key_file::decode(data, None);
    let sound = [data, blake3::hash(data).as_bytes().as_slice()].concat();
    if let Ok((kind, secret)) = key_file::decode(&sound, None) {
        let again = key_file::encode(kind, &secret, None).expect("what was decoded can be encoded");
        assert_eq!(&again[..], &sound[..]);
    }
});
