//! Just enough of Rust's grammar to see paths: words and punctuation with their line, without comments, text literals and characters.
//!
//! Only `tests/tidy.rs` uses it. It never fails: on text that is not Rust it yields fewer or odd tokens.

/// A word, or one mark of punctuation (`::` is one), and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

/// The tokens of `source`, comments and the inside of literals left out.
pub fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let mut lexer = Lexer {
        chars: &chars,
        at: 0,
        line: 1,
        out: Vec::new(),
    };
    while lexer.at < chars.len() {
        lexer.step();
    }
    lexer.out
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
    line: usize,
    out: Vec<Token>,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn advance(&mut self, count: usize) {
        let end = (self.at + count).min(self.chars.len());
        self.line += self.chars[self.at..end].iter().filter(|&&c| c == '\n').count();
        self.at = end;
    }

    fn step(&mut self) {
        match (self.peek(0), self.peek(1)) {
            ('/', '/') => self.line_comment(),
            ('/', '*') => self.block_comment(),
            ('"', _) => self.text(),
            ('\'', _) => self.quote(),
            (':', ':') => self.emit(2),
            (c, _) if c.is_alphanumeric() || c == '_' => self.word(),
            (c, _) if c.is_whitespace() => self.advance(1),
            _ => self.emit(1),
        }
    }

    fn emit(&mut self, len: usize) {
        let text: String = self.chars[self.at..self.at + len].iter().collect();
        self.out.push(Token {
            text,
            line: self.line,
        });
        self.advance(len);
    }

    fn line_comment(&mut self) {
        while self.at < self.chars.len() && self.peek(0) != '\n' {
            self.advance(1);
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        while self.at < self.chars.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => {
                    depth += 1;
                    self.advance(2);
                }
                ('*', '/') => {
                    depth -= 1;
                    self.advance(2);
                    if depth == 0 {
                        return;
                    }
                }
                _ => self.advance(1),
            }
        }
    }

    fn text(&mut self) {
        self.advance(1);
        while self.at < self.chars.len() && self.peek(0) != '"' {
            self.advance(if self.peek(0) == '\\' { 2 } else { 1 });
        }
        self.advance(1);
    }

    fn raw_text(&mut self) {
        let hashes = (0..).take_while(|&n| self.peek(n) == '#').count();
        self.advance(hashes + 1);
        while self.at < self.chars.len() {
            if self.peek(0) == '"' && (1..=hashes).all(|n| self.peek(n) == '#') {
                self.advance(hashes + 1);
                return;
            }
            self.advance(1);
        }
    }

    /// A character, or a lifetime: only the first has its closing quote right after one character or an escape.
    fn quote(&mut self) {
        if self.peek(1) == '\\' {
            self.advance(3);
            while self.at < self.chars.len() && self.peek(0) != '\'' {
                self.advance(1);
            }
            self.advance(1);
        } else if self.peek(2) == '\'' {
            self.advance(3);
        } else {
            self.advance(1);
        }
    }

    fn word(&mut self) {
        let len = (0..)
            .take_while(|&n| self.peek(n).is_alphanumeric() || self.peek(n) == '_')
            .count();
        let word: String = self.chars[self.at..self.at + len].iter().collect();
        let (next, after) = (self.peek(len), self.peek(len + 1));
        let opens_raw = next == '"' || (next == '#' && (after == '"' || after == '#'));
        match word.as_str() {
            "r" | "br" | "cr" if opens_raw => {
                self.advance(len);
                self.raw_text();
            }
            "b" | "c" if next == '"' => self.advance(len),
            "b" if next == '\'' => self.advance(len),
            _ => self.emit(len),
        }
    }
}
