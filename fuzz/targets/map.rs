//! Maps of snapshots: nodes cut from the input, which name each other by number. No way to read or change such a map may panic or go on for ever, and
//! all ways agree on what is in it.
#![no_main]

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::Arc;

use dfs::base::BlockId;
use dfs::object::map::{Edits, MemoryNodes, Nodes, Root, diff, get, scan, update, walk};
use libfuzzer_sys::fuzz_target;

/// The nodes of the input, under ids that begin with their numbers, and those that are put.
struct Given {
    nodes: Vec<Arc<Vec<u8>>>,
    put: MemoryNodes,
}

impl Nodes for Given {
    type Error = Infallible;

    fn get(&self, id: &BlockId) -> Result<Arc<Vec<u8>>, Infallible> {
        let given = self
            .nodes
            .get(usize::from(id.0[0]))
            .filter(|_| id.0[1..] == [0; 31]);
        given.map_or_else(|| self.put.get(id), |node| Ok(Arc::clone(node)))
    }

    fn put(&self, nodes: &[Vec<u8>]) -> Result<Vec<BlockId>, Infallible> {
        self.put.put(nodes)
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&[depth, len], mut rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let mut nodes = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        nodes.push(Arc::new(after[..length].to_vec()));
        rest = &after[length..];
    }
    let nodes = Given {
        nodes,
        put: MemoryNodes::default(),
    };
    let root = Root {
        id: Some(BlockId([0; 32])),
        depth,
        len: u64::from(len),
    };
    let mut all = Edits::new();
    let read = scan(&nodes, &root, b"", |key, value| {
        assert!(
            all.insert(key.to_vec(), Some(value.to_vec())).is_none(),
            "a key twice"
        );
        ControlFlow::Continue(())
    });
    let mut walked = 0;
    let each = |_: &[u8], _: &[u8]| {
        walked += 1;
        ControlFlow::Continue(())
    };
    let ways = [
        walk(&nodes, &root, |_| true, each).is_ok(),
        diff(&nodes, &Root::EMPTY, &root, |_, _, _| ControlFlow::Continue(())).is_ok(),
    ];
    assert_eq!(ways, [read.is_ok(); 2]);
    let _ = update(
        &nodes,
        &root,
        &Edits::from([(b"key".to_vec(), Some(b"value".to_vec()))]),
    );
    if read.is_ok() {
        assert_eq!((all.len() as u64, walked), (root.len, root.len));
        for (key, value) in &all {
            assert_eq!(&get(&nodes, &root, key).expect("a sound map"), value);
        }
    }
});
