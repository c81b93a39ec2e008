//! The tokens of JSON, refused in the words of Go's scanner.

use super::DEPTH_MAX;
use crate::codec::DecodeError;
use std::borrow::Cow;

type Result<T> = std::result::Result<T, DecodeError>;

/// Reads tokens off a document. Nothing it is given makes it panic or recurse without bound.
pub(super) struct Parser<'a> {
    data: &'a [u8],
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0, depth: 0 }
    }

    /// Reads one value with nothing after it.
    pub(super) fn document<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let value = read(self)?;
        self.space();
        match self.data.get(self.at) {
            None => Ok(value),
            Some(&c) => Err(unexpected(c, "after top-level value")),
        }
    }

    #[inline]
    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.data.get(self.at) {
            self.at += 1;
        }
    }

    /// The next byte that is no space.
    #[inline]
    fn next_token(&mut self) -> Result<u8> {
        self.space();
        self.data.get(self.at).copied().ok_or_else(end)
    }

    /// The first byte of the value that follows.
    #[inline]
    pub(super) fn peek_value(&mut self) -> Result<u8> {
        let c = self.next_token()?;
        match c {
            b'{' | b'[' | b'"' | b't' | b'f' | b'n' | b'-' | b'0'..=b'9' => Ok(c),
            _ => Err(unexpected(c, "looking for beginning of value")),
        }
    }

    fn enter(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(DecodeError::Syntax("exceeded max depth".into()));
        }
        Ok(())
    }

    /// Reads an object; `member` reads each member's value.
    pub(super) fn object(&mut self, mut member: impl FnMut(&mut Self, Cow<'a, str>) -> Result<()>) -> Result<()> {
        self.enter()?;
        self.at += 1;
        if self.next_token()? == b'}' {
            self.at += 1;
            self.depth -= 1;
            return Ok(());
        }
        loop {
            match self.next_token()? {
                b'"' => {}
                c => return Err(unexpected(c, "looking for beginning of object key string")),
            }
            let key = self.string()?;
            match self.next_token()? {
                b':' => self.at += 1,
                c => return Err(unexpected(c, "after object key")),
            }
            member(self, key)?;
            match self.next_token()? {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    self.depth -= 1;
                    return Ok(());
                }
                c => return Err(unexpected(c, "after object key:value pair")),
            }
        }
    }

    /// Reads an array; `element` reads each element.
    pub(super) fn array(&mut self, mut element: impl FnMut(&mut Self, usize) -> Result<()>) -> Result<()> {
        self.enter()?;
        self.at += 1;
        if self.next_token()? == b']' {
            self.at += 1;
            self.depth -= 1;
            return Ok(());
        }
        let mut i = 0;
        loop {
            element(self, i)?;
            i += 1;
            match self.next_token()? {
                b',' => self.at += 1,
                b']' => {
                    self.at += 1;
                    self.depth -= 1;
                    return Ok(());
                }
                c => return Err(unexpected(c, "after array element")),
            }
        }
    }

    /// Reads a string, whose opening quote is next.
    pub(super) fn string(&mut self) -> Result<Cow<'a, str>> {
        let start = self.at + 1;
        let mut i = start;
        loop {
            match self.data.get(i) {
                None => return Err(end()),
                Some(b'"') => {
                    self.at = i + 1;
                    // Go replaces each byte that is not UTF-8.
                    return Ok(decode_utf8(&self.data[start..i]));
                }
                Some(b'\\') => break,
                Some(&c) if c < 0x20 => return Err(unexpected(c, "in string literal")),
                Some(_) => i += 1,
            }
        }
        self.string_with_escapes(start, i).map(Cow::Owned)
    }

    fn string_with_escapes(&mut self, start: usize, first: usize) -> Result<String> {
        let mut out = decode_utf8(&self.data[start..first]).into_owned();
        let mut i = first;
        loop {
            let plain = i;
            while !matches!(self.data.get(i), None | Some(b'"' | b'\\' | 0..=0x1f)) {
                i += 1;
            }
            out.push_str(&decode_utf8(&self.data[plain..i]));
            match self.data.get(i) {
                None => return Err(end()),
                Some(b'"') => {
                    self.at = i + 1;
                    return Ok(out);
                }
                Some(b'\\') => {}
                Some(&c) => return Err(unexpected(c, "in string literal")),
            }
            let simple = match self.data.get(i + 1) {
                None => return Err(end()),
                Some(b'u') => {
                    let (c, next) = self.unicode_escape(i)?;
                    out.push(c);
                    i = next;
                    continue;
                }
                Some(b'"') => '"',
                Some(b'\\') => '\\',
                Some(b'/') => '/',
                Some(b'b') => '\u{8}',
                Some(b'f') => '\u{c}',
                Some(b'n') => '\n',
                Some(b'r') => '\r',
                Some(b't') => '\t',
                Some(&c) => return Err(unexpected(c, "in string escape code")),
            };
            out.push(simple);
            i += 2;
        }
    }

    /// The character of the `\uXXXX` at `i`, and what follows it; a lone half of a surrogate pair is replaced.
    fn unicode_escape(&self, i: usize) -> Result<(char, usize)> {
        let unit = |i: usize| {
            let mut n = 0u32;
            for k in i + 2..i + 6 {
                let c = *self.data.get(k).ok_or_else(end)?;
                let digit = (c as char).to_digit(16);
                n = n * 16 + digit.ok_or_else(|| unexpected(c, "in \\u hexadecimal character escape"))?;
            }
            Ok(n)
        };
        let high = unit(i)?;
        if (0xd800..0xdc00).contains(&high)
            && self.data.get(i + 6) == Some(&b'\\')
            && self.data.get(i + 7) == Some(&b'u')
        {
            let low = unit(i + 6)?;
            if (0xdc00..0xe000).contains(&low) {
                let c = char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00));
                return Ok((c.unwrap_or(char::REPLACEMENT_CHARACTER), i + 12));
            }
        }
        Ok((char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER), i + 6))
    }

    /// Reads a number and gives its text.
    pub(super) fn number(&mut self) -> Result<&'a str> {
        let start = self.at;
        let mut i = start;
        let digits = |data: &[u8], mut i: usize| {
            while data.get(i).is_some_and(u8::is_ascii_digit) {
                i += 1;
            }
            i
        };
        let fail = |i: usize, data: &[u8], state: &str| match data.get(i) {
            None => end(),
            Some(&c) => unexpected(c, state),
        };
        if self.data[i] == b'-' {
            i += 1;
        }
        match self.data.get(i) {
            Some(b'0') => i += 1,
            Some(b'1'..=b'9') => i = digits(self.data, i),
            _ => return Err(fail(i, self.data, "in numeric literal")),
        }
        if self.data.get(i) == Some(&b'.') {
            let from = i + 1;
            i = digits(self.data, from);
            if i == from {
                return Err(fail(i, self.data, "after decimal point in numeric literal"));
            }
        }
        if let Some(b'e' | b'E') = self.data.get(i) {
            i += 1;
            if let Some(b'+' | b'-') = self.data.get(i) {
                i += 1;
            }
            let from = i;
            i = digits(self.data, from);
            if i == from {
                return Err(fail(i, self.data, "in exponent of numeric literal"));
            }
        }
        self.at = i;
        Ok(std::str::from_utf8(&self.data[start..i]).unwrap_or_default())
    }

    /// Reads `true`, `false` or `null`, whose first letter is next.
    pub(super) fn literal(&mut self, word: &'static str) -> Result<()> {
        for (k, want) in word.bytes().enumerate().skip(1) {
            match self.data.get(self.at + k) {
                None => return Err(end()),
                Some(&c) if c == want => {}
                Some(&c) => {
                    let state = format!("in literal {word} (expecting {})", quote(want));
                    return Err(unexpected(c, &state));
                }
            }
        }
        self.at += word.len();
        Ok(())
    }

    /// Reads a value and forgets it; says what it is as Go's messages call it, without recursion.
    pub(super) fn skip_value(&mut self) -> Result<&'static str> {
        let what = match self.peek_value()? {
            b'{' => "object",
            b'[' => "array",
            b'"' => {
                self.string()?;
                return Ok("string");
            }
            b't' => {
                self.literal("true")?;
                return Ok("bool");
            }
            b'f' => {
                self.literal("false")?;
                return Ok("bool");
            }
            b'n' => {
                self.literal("null")?;
                return Ok("null");
            }
            _ => {
                self.number()?;
                return Ok("number");
            }
        };
        if what == "object" {
            self.object(|p, _| p.skip_value().map(drop))?;
        } else {
            self.array(|p, _| p.skip_value().map(drop))?;
        }
        Ok(what)
    }
}

fn decode_utf8(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => {
            let mut out = String::with_capacity(bytes.len());
            for chunk in bytes.utf8_chunks() {
                out.push_str(chunk.valid());
                for _ in chunk.invalid() {
                    out.push(char::REPLACEMENT_CHARACTER);
                }
            }
            Cow::Owned(out)
        }
    }
}

fn end() -> DecodeError {
    DecodeError::Syntax("unexpected end of JSON input".into())
}

fn unexpected(c: u8, state: &str) -> DecodeError {
    DecodeError::Syntax(format!("invalid character {} {state}", quote(c)))
}

/// A byte as Go's scanner quotes it.
fn quote(c: u8) -> String {
    match c {
        b'\'' => r"'\''".into(),
        b'"' => "'\"'".into(),
        _ => {
            let quoted = crate::field::go_quote(&char::from(c).to_string());
            format!("'{}'", &quoted[1..quoted.len() - 1])
        }
    }
}
