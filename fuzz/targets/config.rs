//! The texts that people and other programs may edit: `dfs.toml`, the `.dfs` marker, recovery words, sizes.
#![no_main]

use std::path::Path;

use dfs::folder::config::{Config, parse_size};
use dfs::folder::marker::Marker;
use dfs::keys::RootSecret;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Config::parse(Path::new("dfs.toml"), data);
    if let Ok(marker) = Marker::parse(data) {
        let text = marker.format().expect("what was parsed can be written");
        assert_eq!(Marker::parse(text.as_bytes()), Ok(marker));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = parse_size(text);
        let _ = RootSecret::from_phrase(text);
    }
});
