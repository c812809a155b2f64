//! Random changes of pieces beside a plain vector of bytes.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    Write(u64, Vec<u8>),
    Size(u64),
    Punch(u64, u64),
    Seal,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0u64..300, proptest::collection::vec(1u8..255, 1..80)).prop_map(|(o, d)| Op::Write(o, d)),
        (0u64..400).prop_map(Op::Size),
        (0u64..300, 1u64..100).prop_map(|(o, l)| Op::Punch(o, l)),
        Just(Op::Seal),
    ]
}

fn content(pieces: &Pieces, blocks: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    for (offset, piece) in pieces.iter() {
        assert_eq!(offset, at, "no gap, no overlap");
        assert!(piece.len > 0);
        at += piece.len;
        let len = piece.len as usize;
        match &piece.source {
            Source::Hole => out.resize(out.len() + len, 0),
            Source::Memory { bytes, from } => out.extend_from_slice(&bytes[*from..from + len]),
            Source::Block { id, skip, .. } => {
                let block = &blocks[usize::from(id.0[0])];
                out.extend_from_slice(&block[*skip as usize..*skip as usize + len]);
            }
            Source::Index { .. } => unreachable!(),
        }
    }
    assert_eq!(at, pieces.size());
    out
}

/// Turns the first unsettled stretch into one block.
fn seal(pieces: &mut Pieces, blocks: &mut Vec<Vec<u8>>) {
    if blocks.len() == 255 {
        return;
    }
    let Some(range) = pieces.unsettled_after(0) else {
        return;
    };
    let bytes = content(pieces, blocks)[range.start as usize..range.end as usize].to_vec();
    let whole = bytes.len() as u32;
    let id = BlockId([blocks.len() as u8; 32]);
    blocks.push(bytes);
    pieces.replace(range, [(u64::from(whole), Source::Block { id, skip: 0, whole })]);
}

proptest! {
    #[test]
    fn pieces_are_the_bytes_of_a_plain_file(ops in proptest::collection::vec(op(), 1..60)) {
        let (mut pieces, mut model, mut blocks) = (Pieces::default(), Vec::new(), Vec::new());
        for op in ops {
            match op {
                Op::Write(offset, data) => {
                    let end = offset as usize + data.len();
                    if model.len() < end { model.resize(end, 0); }
                    model[offset as usize..end].copy_from_slice(&data);
                    pieces.write(offset, &data);
                }
                Op::Size(size) => { model.resize(size as usize, 0); pieces.set_size(size); }
                Op::Punch(offset, len) => {
                    let end = ((offset + len) as usize).min(model.len());
                    if (offset as usize) < end { model[offset as usize..end].fill(0); }
                    pieces.punch(offset..offset + len);
                }
                Op::Seal => seal(&mut pieces, &mut blocks),
            }
            prop_assert_eq!(&content(&pieces, &blocks), &model);
            let memory: u64 = pieces.iter().filter(|(_, p)| matches!(p.source, Source::Memory { .. })).map(|(_, p)| p.len).sum();
            prop_assert_eq!(memory, pieces.in_memory());
        }
        while !pieces.is_settled() && blocks.len() < 255 { seal(&mut pieces, &mut blocks); }
        prop_assert_eq!(&content(&pieces, &blocks), &model);
    }
}

#[test]
fn small_appends_share_one_buffer() {
    let mut pieces = Pieces::default();
    for i in 0..1000u64 {
        pieces.write(i * 100, &[7; 100]);
    }
    assert_eq!(pieces.iter().count(), 1);
}

#[test]
fn a_change_gives_up_only_the_index_block_it_falls_into() {
    let mut pieces = Pieces::default();
    for n in 0..3u8 {
        pieces.push(
            100,
            Source::Index {
                id: BlockId([n; 32]),
                depth: 1,
            },
        );
    }
    for n in 0..3u8 {
        let below = vec![(
            100,
            Source::Block {
                id: BlockId([n + 10; 32]),
                skip: 0,
                whole: 100,
            },
        )];
        pieces.expand(u64::from(n) * 100, BlockId([n; 32]), 1, below);
    }
    pieces.replace(250..300, [(50, Source::Hole)]);
    assert!(
        pieces.intact_at(200).is_none(),
        "new pieces in a stretch need a new index block"
    );
    pieces.write(150, b"x");
    assert!(pieces.intact_at(0).is_some() && pieces.intact_at(100).is_none());
}
