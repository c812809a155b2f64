//! The root secret of a volume, and the 24 words that spell it. Held by admins only; everything else is derived from it.

use std::fmt;

use bip39::{Language, Mnemonic};
use zeroize::{Zeroize, Zeroizing};

use super::{NoRandomness, random};

/// Words of a recovery phrase: 256 bits and a checksum of 8.
const PHRASE_WORDS: usize = 24;

/// 32 random bytes from which all keys of a volume and its group come.
#[derive(Clone, PartialEq, Eq)]
pub struct RootSecret(Zeroizing<[u8; 32]>);

/// Why a recovery phrase was not accepted. Never quotes the phrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PhraseError {
    /// The phrase has another number of words.
    #[error("a recovery phrase has {PHRASE_WORDS} words, this one has {0}")]
    WordCount(usize),
    /// A word is not in the English BIP 39 list.
    #[error("word {0} of the recovery phrase is not in the list of words; check its spelling")]
    UnknownWord(usize),
    /// Every word exists, but together they are no phrase.
    #[error("the words of the recovery phrase do not belong together: one is wrong, or two changed places")]
    Checksum,
}

impl RootSecret {
    /// A new secret from the operating system's generator.
    pub fn generate() -> Result<Self, NoRandomness> {
        Ok(Self::from_bytes(random()?))
    }

    /// The secret with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret itself: for the key file and for derivations.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The recovery phrase: 24 English words of BIP 39, with single spaces.
    pub fn to_phrase(&self) -> Zeroizing<String> {
        let mut phrase = Zeroizing::new(String::with_capacity(PHRASE_WORDS * 9));
        // 32 bytes are a length that BIP 39 has; the mnemonic wipes itself.
        let Ok(mut mnemonic) = Mnemonic::from_entropy_in(Language::English, self.as_bytes()) else {
            return phrase;
        };
        for word in mnemonic.words() {
            if !phrase.is_empty() {
                phrase.push(' ');
            }
            phrase.push_str(word);
        }
        mnemonic.zeroize();
        phrase
    }

    /// The secret that a recovery phrase spells. Case and white space do not matter.
    pub fn from_phrase(phrase: &str) -> Result<Self, PhraseError> {
        let words = phrase.split_whitespace().count();
        if words != PHRASE_WORDS {
            return Err(PhraseError::WordCount(words));
        }
        let mut normal = Zeroizing::new(String::with_capacity(phrase.len() + PHRASE_WORDS));
        for word in phrase.split_whitespace() {
            if !normal.is_empty() {
                normal.push(' ');
            }
            normal.extend(word.chars().map(|c| c.to_ascii_lowercase()));
        }
        let mut mnemonic =
            Mnemonic::parse_in_normalized(Language::English, &normal).map_err(|error| match error {
                bip39::Error::UnknownWord(at) => PhraseError::UnknownWord(at + 1),
                _ => PhraseError::Checksum,
            })?;
        let (mut entropy, len) = mnemonic.to_entropy_array();
        mnemonic.zeroize();
        let secret = <[u8; 32]>::try_from(&entropy[..len]).map(Self::from_bytes);
        entropy.zeroize();
        secret.map_err(|_| PhraseError::WordCount(words))
    }
}

impl fmt::Debug for RootSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootSecret(secret)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn vectors_of_bip_39() {
        // https://github.com/trezor/python-mnemonic/blob/master/vectors.json
        let phrase = RootSecret::from_bytes([0; 32]).to_phrase();
        assert_eq!(*phrase, format!("{}art", "abandon ".repeat(23)));
        let phrase = RootSecret::from_bytes([0x7f; 32]).to_phrase();
        assert!(phrase.starts_with("legal winner thank year wave sausage worth useful legal"));
        assert!(phrase.ends_with("worth title"));
    }

    #[test]
    fn what_is_wrong_with_a_phrase_is_said() {
        let good = RootSecret::from_bytes([9; 32]).to_phrase();
        assert_eq!(
            RootSecret::from_phrase("abandon art"),
            Err(PhraseError::WordCount(2))
        );
        let mut words: Vec<&str> = good.split(' ').collect();
        words[4] = "xyzzy";
        assert_eq!(
            RootSecret::from_phrase(&words.join(" ")),
            Err(PhraseError::UnknownWord(5))
        );
        let wrong = "abandon ".repeat(24);
        assert_eq!(RootSecret::from_phrase(&wrong), Err(PhraseError::Checksum));
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(
            format!("{:?}", RootSecret::from_bytes([1; 32])),
            "RootSecret(secret)"
        );
    }

    proptest! {
        #[test]
        fn phrases_round_trip_in_any_case_and_spacing(bytes: [u8; 32]) {
            let secret = RootSecret::from_bytes(bytes);
            let phrase = secret.to_phrase();
            prop_assert_eq!(phrase.split(' ').count(), PHRASE_WORDS);
            prop_assert_eq!(RootSecret::from_phrase(&phrase), Ok(secret.clone()));
            let shouted = format!(" {}\n", phrase.to_uppercase().replace(' ', "\n\t "));
            prop_assert_eq!(RootSecret::from_phrase(&shouted), Ok(secret));
        }

        #[test]
        fn any_text_is_refused_without_a_panic(text in "\\PC{0,200}") {
            prop_assert!(RootSecret::from_phrase(&text).is_err());
        }
    }
}
