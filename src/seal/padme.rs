//! Padmé: the lengths that sealed content is padded to, so that a size tells only its magnitude.
//!
//! Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs" (PETS 2019), section 4:
//! a length keeps as many significant bits as its exponent has bits; overhead is at most 12 %, and falls as lengths grow.

/// The smallest Padmé length that is not below `len`, in bytes.
pub fn padme(len: usize) -> usize {
    if len < 2 {
        return len;
    }
    let exponent = len.ilog2();
    let low_bits = exponent - (exponent.ilog2() + 1);
    let mask = (1_usize << low_bits) - 1;
    len.saturating_add(mask) & !mask
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_of_the_paper() {
        // Worked by hand: 9 = 0b1001 keeps 3 bits; 100 keeps 3 + 3; 1 MiB + 1 keeps 5 after the first.
        assert_eq!([0, 1, 2, 8, 9, 10, 11].map(padme), [0, 1, 2, 8, 10, 10, 12]);
        assert_eq!(padme(100), 104);
        assert_eq!(padme((1 << 20) + 1), (1 << 20) + (1 << 15));
    }

    proptest! {
        #[test]
        fn never_shorter_at_most_12_percent_more_and_stable(len in 0_usize..(1 << 30)) {
            let padded = padme(len);
            prop_assert!(padded >= len);
            prop_assert!(padded - len <= len * 12 / 100);
            prop_assert_eq!(padme(padded), padded);
        }

        #[test]
        fn grows_with_its_input(len in 0_usize..(1 << 30)) {
            prop_assert!(padme(len) <= padme(len + 1));
        }
    }
}
