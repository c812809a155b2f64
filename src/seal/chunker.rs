//! Where files are cut: FastCDC with a gear table that only holders of the volume key know, and runs of zeros set aside as holes.
//!
//! Xia et al., "FastCDC" (USENIX ATC 2016) and "The Design of Fast Content-Defined Chunking" (TPDS 2020): a gear hash over the last
//! 64 bytes, normalised chunking. Invariant: where a piece ends depends on nothing but the volume key and the bytes from the piece's start,
//! however they are handed over (adjacent `Zeros` count as one). Called by `volume`.

use crate::base::limits::{CHUNK_AVG, CHUNK_MAX, CHUNK_MIN};

const GEAR_CONTEXT: &str = "dfs 2026 v1 gear table";

/// Bytes that the gear hash sees: older ones have been shifted out of its 64 bits.
const WINDOW: usize = 64;
/// From here on, in bytes, cuts are made likely; they come after another 64 KiB on average, which makes `CHUNK_AVG`.
const CENTRE: usize = CHUNK_AVG - CHUNK_MIN;
/// A cut before `CENTRE` needs a hash below this: one in 2^20.
const RARE: u64 = 1 << (64 - 20);
/// A cut after `CENTRE` needs a hash below this: one in 2^16.
const LIKELY: u64 = 1 << (64 - 16);

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// So many bytes to seal: 1 to `CHUNK_MAX`.
    Data(usize),
    /// So many zero bytes, at least one: becomes a hole. Any length at the end of a file, a multiple of `CHUNK_MIN` elsewhere.
    Zeros(usize),
}

impl Piece {
    /// Length of the piece, in bytes.
    pub fn len(&self) -> usize {
        match *self {
            Self::Data(len) | Self::Zeros(len) => len,
        }
    }

    /// Never: a piece has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Cuts the files of one volume.
pub struct Chunker {
    gear: Box<[u64; 256]>,
    /// Every entry of `gear` times two: the hash can then roll over two bytes at once.
    gear_doubled: Box<[u64; 256]>,
}

impl std::fmt::Debug for Chunker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Chunker(secret)")
    }
}

impl Drop for Chunker {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.gear[..]);
        zeroize::Zeroize::zeroize(&mut self.gear_doubled[..]);
    }
}

impl Chunker {
    /// A chunker whose gear table is derived from the volume's chunk key.
    pub fn new(key: &[u8; 32]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(GEAR_CONTEXT);
        hasher.update(key);
        let mut output = hasher.finalize_xof();
        let mut gear = Box::new([0_u64; 256]);
        for entry in gear.iter_mut() {
            let mut bytes = [0; 8];
            output.fill(&mut bytes);
            *entry = u64::from_le_bytes(bytes);
        }
        let gear_doubled = Box::new(gear.map(|entry| entry << 1));
        Self { gear, gear_doubled }
    }

    /// The first piece of `data`; `last` says that the file ends where `data` does.
    /// `None`: more data is needed, or there is none. At least `CHUNK_MAX` bytes, or `last` with one byte, always give a piece.
    pub fn cut(&self, data: &[u8], last: bool) -> Option<Piece> {
        let zeros = zero_prefix(data);
        if last && zeros == data.len() && zeros > 0 {
            return Some(Piece::Zeros(zeros));
        }
        if zeros >= CHUNK_MIN {
            // Rounded down, so that a run that is handed over in parts ends at the same place.
            return Some(Piece::Zeros(zeros - zeros % CHUNK_MIN));
        }
        if data.is_empty() || (data.len() < CHUNK_MAX && !last) {
            return None;
        }
        let window = &data[..data.len().min(CHUNK_MAX)];
        let end = zero_run(window).unwrap_or(window.len());
        Some(Piece::Data(self.gear_cut(&window[..end])))
    }

    /// The first cut of `data` by the gear hash, or its end.
    fn gear_cut(&self, data: &[u8]) -> usize {
        if data.len() <= CHUNK_MIN {
            return data.len();
        }
        let warm_up = &data[CHUNK_MIN - WINDOW..CHUNK_MIN];
        let hash = warm_up.iter().fold(0, |hash, byte| self.roll(hash, *byte));
        let centre = data.len().min(CENTRE);
        let (rare, likely) = (&data[CHUNK_MIN..centre], &data[centre..]);
        match self.scan(hash, rare, RARE) {
            Ok(len) => CHUNK_MIN + len,
            Err(hash) => self
                .scan(hash, likely, LIKELY)
                .map_or(data.len(), |len| centre + len),
        }
    }

    /// Rolls over `data` until the hash is below `bound`: the bytes up to and including that one, else the hash at the end.
    /// Two bytes a step, as in the paper of 2020: a fifth faster than one by one.
    fn scan(&self, mut hash: u64, data: &[u8], bound: u64) -> Result<usize, u64> {
        let (pairs, rest) = data.as_chunks::<2>();
        for (at, [first, second]) in pairs.iter().enumerate() {
            let halfway = self.roll(hash, *first);
            if halfway < bound {
                return Ok(2 * at + 1);
            }
            let added = self.gear_doubled[usize::from(*first)].wrapping_add(self.gear[usize::from(*second)]);
            hash = (hash << 2).wrapping_add(added);
            if hash < bound {
                return Ok(2 * at + 2);
            }
        }
        if let [last] = rest {
            hash = self.roll(hash, *last);
            if hash < bound {
                return Ok(data.len());
            }
        }
        Err(hash)
    }

    #[inline(always)]
    fn roll(&self, hash: u64, byte: u8) -> u64 {
        (hash << 1).wrapping_add(self.gear[usize::from(byte)])
    }
}

/// How many bytes at the start of `data` are zero.
fn zero_prefix(data: &[u8]) -> usize {
    const STEP: usize = 128;
    let zero_steps = data
        .chunks_exact(STEP)
        .take_while(|step| step.iter().fold(0, |any, byte| any | byte) == 0)
        .count();
    let from = zero_steps * STEP;
    from + data[from..].iter().take_while(|byte| **byte == 0).count()
}

/// How many bytes at the end of `data` are zero.
fn zero_suffix(data: &[u8]) -> usize {
    const STEP: usize = 128;
    let zero_steps = data
        .rchunks_exact(STEP)
        .take_while(|step| step.iter().fold(0, |any, byte| any | byte) == 0)
        .count();
    let upto = data.len() - zero_steps * STEP;
    data.len() - upto + data[..upto].iter().rev().take_while(|byte| **byte == 0).count()
}

/// The start of the first run of at least `CHUNK_MIN` zeros that lies within `data`.
fn zero_run(data: &[u8]) -> Option<usize> {
    // A run that long covers a byte at a multiple of CHUNK_MIN: look only there.
    let mut searched = 0;
    for probe in (0..data.len()).step_by(CHUNK_MIN) {
        if data[probe] != 0 || probe < searched {
            continue;
        }
        let start = probe - zero_suffix(&data[searched..probe]);
        let end = probe + zero_prefix(&data[probe..]);
        if end - start >= CHUNK_MIN {
            return Some(start);
        }
        searched = end;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunker() -> Chunker {
        Chunker::new(&[1; 32])
    }

    /// Bytes that repeat nowhere.
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .finalize_xof()
            .fill(&mut out);
        out
    }

    /// All pieces, handed over at most `feed` bytes at a time beyond what is needed; adjacent holes joined.
    fn pieces(chunker: &Chunker, data: &[u8], feed: usize) -> Vec<Piece> {
        let (mut at, mut given, mut out) = (0, 0, Vec::<Piece>::new());
        while at < data.len() {
            let Some(piece) = chunker.cut(&data[at..given], given == data.len()) else {
                assert!(given < data.len(), "all was given and no piece came");
                given = data.len().min(given + feed);
                continue;
            };
            at += piece.len();
            match (out.last_mut(), piece) {
                (Some(Piece::Zeros(before)), Piece::Zeros(more)) => *before += more,
                _ => out.push(piece),
            }
        }
        out
    }

    fn ends(pieces: &[Piece]) -> Vec<usize> {
        let add = |at: &mut usize, piece: &Piece| {
            *at += piece.len();
            Some(*at)
        };
        pieces.iter().scan(0, add).collect()
    }

    #[test]
    fn nothing_is_cut_from_nothing_or_too_little() {
        assert_eq!(chunker().cut(&[], true), None);
        assert_eq!(chunker().cut(&[], false), None);
        assert_eq!(chunker().cut(&noise(0, CHUNK_MAX - 1), false), None);
        assert_eq!(chunker().cut(&[1], true), Some(Piece::Data(1)));
        assert_eq!(chunker().cut(&[0], true), Some(Piece::Zeros(1)));
        assert_eq!(chunker().cut(&[0], false), None);
    }

    #[test]
    fn sizes_are_within_bounds_and_about_the_average() {
        let data = noise(1, 24 << 20);
        let pieces = pieces(&chunker(), &data, usize::MAX >> 1);
        for piece in &pieces[..pieces.len() - 1] {
            assert!((CHUNK_MIN..=CHUNK_MAX).contains(&piece.len()));
        }
        let average = data.len() / pieces.len();
        assert!((200 << 10..320 << 10).contains(&average), "{average}");
    }

    #[test]
    fn an_insertion_at_the_front_moves_few_cuts() {
        let before = noise(2, 8 << 20);
        let after = [b"!", &before[..]].concat();
        let old = ends(&pieces(&chunker(), &before, 1 << 20));
        let new = ends(&pieces(&chunker(), &after, 1 << 20));
        let moved = new.iter().filter(|end| !old.contains(&(*end - 1))).count();
        assert!(moved <= 3, "{moved} of {} cuts moved", new.len());
    }

    #[test]
    fn the_key_decides_where() {
        let data = noise(3, 4 << 20);
        let a = pieces(&chunker(), &data, 1 << 20);
        let b = pieces(&Chunker::new(&[2; 32]), &data, 1 << 20);
        assert_ne!(a, b);
    }

    #[test]
    fn runs_of_zeros_become_holes_that_begin_where_they_do() {
        let text = noise(4, 10_000);
        let data = [
            &text[..],
            &[0; 3 * CHUNK_MIN + 5],
            &text[..],
            &[0; CHUNK_MIN - 1],
            &text[..],
            &[0; 9],
        ]
        .concat();
        let expected = [
            Piece::Data(10_000),
            Piece::Zeros(3 * CHUNK_MIN),
            Piece::Data(5 + 10_000 + CHUNK_MIN - 1 + 10_000 + 9),
        ];
        assert_eq!(pieces(&chunker(), &data, 1 << 20), expected);
        // Longer than any chunk, and to the end of the file.
        let data = vec![0; 5 * CHUNK_MAX + 7];
        assert_eq!(pieces(&chunker(), &data, 1 << 20), [Piece::Zeros(data.len())]);
        assert_eq!(pieces(&chunker(), &data, 1 << 30), [Piece::Zeros(data.len())]);
    }

    #[test]
    fn a_run_is_found_wherever_it_begins() {
        for start in [
            1,
            2,
            127,
            128,
            129,
            CHUNK_MIN - 1,
            CHUNK_MIN,
            CHUNK_MIN + 1,
            CHUNK_MAX - CHUNK_MIN,
        ] {
            let mut data = vec![1; CHUNK_MAX];
            data[start..start + CHUNK_MIN].fill(0);
            assert_eq!(zero_run(&data), Some(start));
            data[start + CHUNK_MIN - 1] = 1;
            assert_eq!(zero_run(&data), None);
            assert_eq!(zero_prefix(&data[start..]), CHUNK_MIN - 1);
            assert_eq!(zero_suffix(&data[..start + CHUNK_MIN - 1]), CHUNK_MIN - 1);
        }
    }

    #[test]
    fn two_bytes_a_step_find_what_one_by_one_would() {
        let (chunker, data) = (chunker(), noise(5, 300_000));
        for (from, bound) in [(0, RARE), (1, LIKELY), (2, u64::MAX), (3, 1 << 56), (4, 0)] {
            let (data, mut hash, mut found) = (&data[from..], from as u64, None);
            for (at, byte) in data.iter().enumerate() {
                hash = (hash << 1).wrapping_add(chunker.gear[usize::from(*byte)]);
                if hash < bound {
                    found = Some(at + 1);
                    break;
                }
            }
            assert_eq!(chunker.scan(from as u64, data, bound), found.ok_or(hash));
        }
    }

    /// Files with text and zeros: alternating stretches.
    fn files() -> impl Strategy<Value = Vec<u8>> {
        let stretch = (any::<bool>(), any::<u64>(), 0_usize..200_000);
        proptest::collection::vec(stretch, 0..12).prop_map(|stretches| {
            let bytes = |(zero, seed, len)| if zero { vec![0; len] } else { noise(seed, len) };
            stretches.into_iter().flat_map(bytes).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn pieces_cover_the_file_however_it_is_fed(data in files(), feed in 1_usize..2_000_000) {
            let whole = pieces(&chunker(), &data, usize::MAX >> 1);
            prop_assert_eq!(whole.iter().map(Piece::len).sum::<usize>(), data.len());
            prop_assert_eq!(&pieces(&chunker(), &data, feed.max(5000)), &whole);
            let mut at = 0;
            for piece in whole {
                if matches!(piece, Piece::Zeros(_)) {
                    prop_assert!(data[at..at + piece.len()].iter().all(|byte| *byte == 0));
                } else {
                    prop_assert!(piece.len() <= CHUNK_MAX);
                }
                at += piece.len();
            }
        }
    }
}
