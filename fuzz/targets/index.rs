//! Index blocks: what decodes as a list of extents or references must encode to the same bytes.
#![no_main]

use dfs::object::index;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(extents) = index::decode_extents(data) {
        assert_eq!(index::encode_extents(&extents), data);
        let total: usize = index::cut_extents(&extents).iter().map(|range| range.len()).sum();
        assert_eq!(total, extents.len());
    }
    if let Ok(refs) = index::decode_refs(data) {
        assert_eq!(index::encode_refs(&refs), data);
        let total: usize = index::cut_refs(&refs).iter().map(|range| range.len()).sum();
        assert_eq!(total, refs.len());
    }
});
