//! Requests on the control socket: one JSON value a line.
#![no_main]

use dfs::control::{Reply, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let text = serde_json::to_vec(&request).expect("what was read can be written");
        serde_json::from_slice::<Request>(&text).expect("and read again");
    }
    let _ = serde_json::from_slice::<Reply>(data);
});
