//! Regular expressions as Go's `regexp` reads them (upstream: RE2 in its Perl flavour), matched by the `regex` crate.
//!
//! The two dialects differ in what people do write: Go takes a brace that counts nothing for itself, knows `\Q…\E`, keeps
//! `\d`, `\w`, `\s` and `\b` to ASCII, and has no operators within classes. An expression is therefore read by Go's grammar,
//! refused in its words, and written down anew in the other dialect.

use regex::Regex;
use std::fmt::Write;

/// What a compiled expression may take.
const SIZE_MAX: usize = 32 << 20;
/// How often something may be repeated by a count.
const REPEAT_MAX: u32 = 1000;
/// How deep groups may nest.
const DEPTH_MAX: usize = 1000;

/// The classes that have names.
const CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "word",
    "xdigit",
];

/// Compiles an expression. The error is Go's.
pub fn compile(source: &str) -> Result<Regex, String> {
    let refuse = |(what, part): Refusal<'_>| format!("error parsing regexp: {what}: `{part}`");
    let written = Reader { source, rest: source, out: String::new(), groups: 0 }.read().map_err(refuse)?;
    let made = regex::RegexBuilder::new(&written).size_limit(SIZE_MAX).build();
    made.map_err(|_| refuse(("expression too large", source)))
}

/// What is wrong, and the part of the expression that Go shows.
type Refusal<'s> = (&'static str, &'s str);

struct Reader<'s> {
    source: &'s str,
    rest: &'s str,
    out: String,
    groups: usize,
}

/// One element of a class or an escape.
enum Piece {
    Char(char),
    /// A set in the other dialect, fit to stand within brackets.
    Set(String),
}

impl<'s> Reader<'s> {
    fn read(mut self) -> Result<String, Refusal<'s>> {
        // Whether there is something that an operator could repeat, and the last operator with what follows it.
        let mut repeatable = false;
        let mut last_repeat: Option<&'s str> = None;
        while let Some(c) = self.rest.chars().next() {
            let before = self.rest;
            let mut repeat = None;
            match c {
                '(' => {
                    repeatable = false;
                    if self.rest.starts_with("(?") {
                        self.flags()?;
                    } else {
                        self.take(1);
                        self.out.push('(');
                        self.groups += 1;
                    }
                    if self.groups > DEPTH_MAX {
                        return Err(("expression nests too deeply", self.source));
                    }
                    last_repeat = None;
                    continue;
                }
                '|' => {
                    self.copy(1);
                    repeatable = false;
                    last_repeat = None;
                    continue;
                }
                ')' => {
                    if self.groups == 0 {
                        return Err(("unexpected )", self.source));
                    }
                    self.groups -= 1;
                    self.copy(1);
                }
                '[' => self.class()?,
                '^' | '$' | '.' => self.copy(1),
                '*' | '+' | '?' => {
                    self.take(1);
                    repeat = Some(c.to_string());
                }
                '{' => match counts(self.rest) {
                    Some((length, min, max)) => {
                        self.take(length);
                        let shown = &before[..length];
                        if min > REPEAT_MAX || max.flatten().is_some_and(|max| max > REPEAT_MAX || max < min) {
                            return Err(("invalid repeat count", shown));
                        }
                        repeat = Some(shown.to_owned());
                    }
                    None => self.literal('{'),
                },
                '\\' => self.escape()?,
                c => self.literal(c),
            }
            let Some(operator) = repeat else {
                repeatable = true;
                last_repeat = None;
                continue;
            };
            if self.rest.starts_with('?') {
                self.take(1);
            }
            let shown = &before[..before.len() - self.rest.len()];
            if let Some(last) = last_repeat {
                return Err(("invalid nested repetition operator", &last[..last.len() - self.rest.len()]));
            }
            if !repeatable {
                return Err(("missing argument to repetition operator", shown));
            }
            self.out.push_str(&operator);
            if shown.len() > operator.len() {
                self.out.push('?');
            }
            last_repeat = Some(before);
        }
        if self.groups > 0 { Err(("missing closing )", self.source)) } else { Ok(self.out) }
    }

    fn take(&mut self, bytes: usize) -> &'s str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        taken
    }

    fn copy(&mut self, bytes: usize) {
        let taken = self.take(bytes);
        self.out.push_str(taken);
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.take(c.len_utf8());
        Some(c)
    }

    fn literal(&mut self, c: char) {
        self.take(c.len_utf8());
        write_char(&mut self.out, c);
    }

    /// `(?i)`, `(?i:`, `(?P<name>` and `(?<name>`.
    fn flags(&mut self) -> Result<(), Refusal<'s>> {
        let start = self.rest;
        if start.len() > 3 && (start.starts_with("(?P<") || start.starts_with("(?<")) {
            let begin = start.find('<').map_or(0, |at| at + 1);
            let Some(end) = start.find('>') else { return Err(("invalid named capture", start)) };
            let name = &start[begin..end];
            let is_name = !name.is_empty() && name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric());
            let group = format!("(?P<{name}>");
            // The other dialect has no names that begin with a digit; nobody asks for them here.
            if !is_name || self.out.contains(&group) {
                return Err(("invalid named capture", &start[..=end]));
            }
            self.take(end + 1);
            self.out.push_str(if name.starts_with(|c: char| c.is_ascii_digit()) { "(" } else { &group });
            self.groups += 1;
            return Ok(());
        }
        self.take(2);
        let (mut negative, mut saw_flag) = (false, false);
        let mut written = String::from("(?");
        while let Some(c) = self.next() {
            match c {
                'i' | 'm' | 's' | 'U' => saw_flag = true,
                '-' if !negative => {
                    negative = true;
                    saw_flag = false;
                }
                ':' | ')' if !negative || saw_flag => {
                    written.push(c);
                    if c == ':' {
                        self.groups += 1;
                    }
                    // Nothing at all is said by `(?)`.
                    self.out.push_str(if written == "(?)" { "" } else { &written });
                    return Ok(());
                }
                _ => return Err(("invalid or unsupported Perl syntax", &start[..start.len() - self.rest.len()])),
            }
            written.push(c);
        }
        Err(("missing closing )", self.source))
    }

    fn escape(&mut self) -> Result<(), Refusal<'s>> {
        let rest = self.rest;
        match rest.as_bytes().get(1) {
            Some(b'A') => self.copy(2),
            Some(b'z') => self.copy(2),
            Some(b'b') => {
                self.take(2);
                self.out.push_str(r"(?-u:\b)");
            }
            Some(b'B') => self.copy(2),
            Some(b'Q') => {
                self.take(2);
                let (quoted, after) = self.rest.split_once(r"\E").unwrap_or((self.rest, ""));
                quoted.chars().for_each(|c| write_char(&mut self.out, c));
                self.rest = after;
            }
            _ => match self.piece()? {
                Piece::Char(c) => write_char(&mut self.out, c),
                Piece::Set(set) => {
                    let _ = write!(self.out, "[{set}]");
                }
            },
        }
        Ok(())
    }

    /// An escape that may stand within a class too.
    fn piece(&mut self) -> Result<Piece, Refusal<'s>> {
        let start = self.rest;
        self.take(1);
        let Some(c) = self.next() else { return Err(("trailing backslash at end of expression", "")) };
        let invalid = |this: &Self| ("invalid escape sequence", &start[..start.len() - this.rest.len()]);
        let set = |set: &str| Ok(Piece::Set(set.to_owned()));
        match c {
            'd' => set("0-9"),
            'D' => set("[^0-9]"),
            'w' => set("0-9A-Za-z_"),
            'W' => set("[^0-9A-Za-z_]"),
            's' => set(r"\t\n\x0C\r "),
            'S' => set(r"[^\t\n\x0C\r ]"),
            'p' | 'P' => {
                let length = if self.rest.starts_with('{') {
                    self.rest.find('}').map(|at| at + 1)
                } else {
                    self.rest.chars().next().map(char::len_utf8)
                };
                let whole = |length: usize| &start[..2 + length];
                let Some(length) = length else { return Err(("invalid character class range", start)) };
                let name = self.take(length);
                let written = format!("\\{c}{name}");
                // Go's names of categories and scripts are short or as in Unicode's tables.
                let known = Regex::new(&written).is_ok();
                if known { Ok(Piece::Set(written)) } else { Err(("invalid character class range", whole(length))) }
            }
            '0'..='7' => {
                let is_octal = |s: &str| s.starts_with(|c: char| ('0'..='7').contains(&c));
                if c != '0' && !is_octal(self.rest) {
                    return Err(invalid(self));
                }
                let mut code = c as u32 - '0' as u32;
                for _ in 1..3 {
                    if !is_octal(self.rest) {
                        break;
                    }
                    code = code * 8 + self.next().map_or(0, |c| c as u32 - '0' as u32);
                }
                Ok(Piece::Char(char::from_u32(code).unwrap_or_default()))
            }
            'x' => {
                let digits = if self.rest.starts_with('{') {
                    let Some(end) = self.rest.find('}') else { return Err(("invalid escape sequence", start)) };
                    let inner = self.take(end + 1);
                    &inner[1..end]
                } else {
                    let length = self.rest.chars().take(2).map(char::len_utf8).sum();
                    self.take(length)
                };
                let wanted = if start[2..].starts_with('{') { 1..=8 } else { 2..=2 };
                let code = wanted.contains(&digits.len()).then(|| u32::from_str_radix(digits, 16).ok()).flatten();
                code.and_then(char::from_u32).map(Piece::Char).ok_or_else(|| invalid(self))
            }
            'a' => Ok(Piece::Char('\u{7}')),
            'f' => Ok(Piece::Char('\u{c}')),
            'n' => Ok(Piece::Char('\n')),
            'r' => Ok(Piece::Char('\r')),
            't' => Ok(Piece::Char('\t')),
            'v' => Ok(Piece::Char('\u{b}')),
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => Ok(Piece::Char(c)),
            _ => Err(invalid(self)),
        }
    }

    fn class(&mut self) -> Result<(), Refusal<'s>> {
        let whole = self.rest;
        self.take(1);
        self.out.push('[');
        if self.rest.starts_with('^') {
            self.copy(1);
        }
        let mut first = true;
        loop {
            if self.rest.starts_with(']') && !first {
                self.copy(1);
                return Ok(());
            }
            first = false;
            if self.rest.starts_with("[:")
                && let Some(end) = self.rest.find(":]")
            {
                let name = self.take(end + 2);
                let bare = name[2..name.len() - 2].trim_start_matches('^');
                if !CLASSES.contains(&bare) {
                    return Err(("invalid character class range", name));
                }
                self.out.push_str(name);
                continue;
            }
            let range = self.rest;
            let low = match self.class_piece(whole)? {
                Piece::Set(set) => {
                    self.out.push_str(&set);
                    continue;
                }
                Piece::Char(c) => c,
            };
            let mut high = low;
            if self.rest.starts_with('-') && self.rest.len() > 1 && !self.rest.starts_with("-]") {
                self.take(1);
                let shown = |this: &Self| &range[..range.len() - this.rest.len()];
                high = match self.class_piece(whole)? {
                    Piece::Char(c) if c >= low => c,
                    Piece::Char(_) => return Err(("invalid character class range", shown(self))),
                    Piece::Set(_) => return Err(("invalid escape sequence", &shown(self)[shown(self).len().min(2)..])),
                };
            }
            write_char(&mut self.out, low);
            if high != low {
                self.out.push('-');
                write_char(&mut self.out, high);
            }
        }
    }

    fn class_piece(&mut self, whole: &'s str) -> Result<Piece, Refusal<'s>> {
        if self.rest.starts_with('\\') {
            return self.piece();
        }
        self.next().map(Piece::Char).ok_or(("missing closing ]", whole))
    }
}

/// A character that stands for itself, in the other dialect.
fn write_char(out: &mut String, c: char) {
    if c.is_ascii_alphanumeric() || !c.is_ascii() {
        out.push(c);
    } else {
        let _ = write!(out, "\\x{:02X}", u32::from(c));
    }
}

/// `{n}`, `{n,}` or `{n,m}`: its length, the least and the most; the most is absent for one count, and empty for none.
fn counts(text: &str) -> Option<(usize, u32, Option<Option<u32>>)> {
    let end = text.find('}')?;
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let plain = plain && (digits.len() == 1 || !digits.starts_with('0'));
        plain.then(|| digits.parse().unwrap_or(u32::MAX))
    };
    let (min, max) = match text[1..end].split_once(',') {
        None => (number(&text[1..end])?, None),
        Some((min, "")) => (number(min)?, Some(None)),
        Some((min, max)) => (number(min)?, Some(Some(number(max)?))),
    };
    Some((end + 1, min, max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_mean_what_they_mean_in_go() {
        for (source, fits, does_not) in [
            (r"^a{,2}$", "a{,2}", "aa"),
            (r"^{x}$", "{x}", "x"),
            (r"^\w+$", "az_9", "é"),
            (r"^\W$", "é", "a"),
            (r"^[\d\-x]+$", "1-x", "٣"),
            (r"^[^\s&&]$", "a", "&"),
            (r"^[[a]]$", "[]", "a"),
            (r"^\Qa.b\E$", "a.b", "axb"),
            (r"^(?i)abc$", "ABC", "abd"),
            (r"^[]a]+$", "]a", "b"),
            (r"^a{2,3}?$", "aaa", "a"),
            (r"^\x41\x{42}\103$", "ABC", "abc"),
            (r"^(?P<y>\d{4})-(?<m>\d\d)$", "2024-01", "24-01"),
            (r"^[a-]+$", "a-", "b"),
            (r"\bfoo\b", "a foo b", "afoo"),
        ] {
            let regex = compile(source).unwrap_or_else(|why| panic!("{source}: {why}"));
            assert!(regex.is_match(fits), "{source} fits {fits}");
            assert!(!regex.is_match(does_not), "{source} does not fit {does_not}");
        }
    }

    #[test]
    fn expressions_are_refused_in_gos_words() {
        for (source, why) in [
            ("a(b", "missing closing ): `a(b`"),
            ("a)b", "unexpected ): `a)b`"),
            ("a[b", "missing closing ]: `[b`"),
            ("*", "missing argument to repetition operator: `*`"),
            ("a|*?b", "missing argument to repetition operator: `*?`"),
            ("a**", "invalid nested repetition operator: `**`"),
            ("a{1001}", "invalid repeat count: `{1001}`"),
            ("a{3,2}", "invalid repeat count: `{3,2}`"),
            (r"\", "trailing backslash at end of expression: ``"),
            (r"\y", r"invalid escape sequence: `\y`"),
            (r"a\1", r"invalid escape sequence: `\1`"),
            ("(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
            ("[z-a]", "invalid character class range: `z-a`"),
            ("[[:foo:]]", "invalid character class range: `[:foo:]`"),
            (r"\p{Foo}", r"invalid character class range: `\p{Foo}`"),
            ("(?P<a b>x)", "invalid named capture: `(?P<a b>`"),
        ] {
            assert_eq!(compile(source).unwrap_err(), format!("error parsing regexp: {why}"), "{source}");
        }
    }
}
