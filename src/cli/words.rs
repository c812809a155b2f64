//! The 24 words of a volume on the terminal: shown once when it is made, read when it is to be made again. Never on the command line.

use std::io::IsTerminal;

use zeroize::Zeroizing;

use super::passphrase;
use super::report::{Outcome, failed, note, print};
use crate::keys::RootSecret;

/// Shows the words of a new volume, on standard output.
pub fn show(phrase: &str) {
    print("");
    print("Write these 24 words down and keep them safe. They are shown only now. Whoever has");
    print("them can read everything in the volume; without them nothing can be read again");
    print("should all devices be lost.");
    print("");
    print("┌─────────────────────────────────────────────────────────────────┐");
    let words: Vec<&str> = phrase.split(' ').collect();
    for (row, four) in words.chunks(4).enumerate() {
        let mut line = Zeroizing::new(String::with_capacity(80));
        for (column, word) in four.iter().enumerate() {
            line.push_str(&format!("{:>4}. {word:<10}", row * 4 + column + 1));
        }
        print(format_args!("│ {:<63} │", &**line));
    }
    print("└─────────────────────────────────────────────────────────────────┘");
    print("");
}

/// Reads words from standard input.
pub fn read() -> Outcome<RootSecret> {
    let what = "cannot recover the volume";
    if std::io::stdin().is_terminal() {
        note("Type the 24 words, then Ctrl-D:");
    }
    let text = passphrase::read_text(std::io::stdin().lock())
        .map_err(|e| failed(what, format!("standard input: {e}"), "give the 24 words there"))?;
    let plain: Zeroizing<String> = Zeroizing::new(
        text.split_whitespace()
            .filter(|word| word.chars().any(char::is_alphabetic))
            .collect::<Vec<_>>()
            .join(" "),
    );
    RootSecret::from_phrase(&plain).map_err(|e| failed(what, e, "check the words against your note"))
}
