//! Snapshots and the records of their maps: what decodes must encode to the same bytes.
#![no_main]

use dfs::object::record::Record;
use dfs::object::snapshot::Snapshot;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(snapshot) = Snapshot::decode(data) {
        assert_eq!(snapshot.encode(), data);
    }
    if let Ok(record) = Record::decode(data) {
        assert_eq!(record.encode(), data);
    }
    let _ = Record::decode_entry(&data[..data.len().min(20)], data);
});
