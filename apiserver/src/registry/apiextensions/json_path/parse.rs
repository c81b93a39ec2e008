//! Reading a path, with upstream's own idea of where a name, an index or a filter ends.

use super::{Filter, Node, Operator, Slice};
use coxswain_api::Value;

/// Filters and unions nest at most so deep.
const DEPTH_MAX: usize = 32;

/// The nodes of a path; none if it is malformed.
pub(super) fn path(text: &str) -> Option<Vec<Node>> {
    nodes(text, 0)
}

fn nodes(text: &str, depth: usize) -> Option<Vec<Node>> {
    let mut reader = Reader { rest: text, made: Vec::new(), depth };
    (depth <= DEPTH_MAX).then_some(())?;
    while !reader.rest.is_empty() {
        reader.node()?;
    }
    Some(reader.made)
}

struct Reader<'a> {
    rest: &'a str,
    made: Vec<Node>,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn node(&mut self) -> Option<()> {
        if let Some(rest) = self.rest.strip_prefix("[?(") {
            self.rest = rest;
            return self.filter();
        }
        if let Some(rest) = self.rest.strip_prefix("..") {
            // One descent right after another would be without end.
            (self.made.last() != Some(&Node::Recursive)).then_some(())?;
            self.rest = rest;
            self.made.push(Node::Recursive);
            if rest.starts_with(is_alphanumeric) {
                self.field();
            }
            return Some(());
        }
        let c = self.rest.chars().next()?;
        match c {
            ' ' | '@' | '$' => self.rest = &self.rest[1..],
            '[' => return self.bracket(),
            '"' | '\'' => return self.quoted(c),
            '.' => {
                self.rest = &self.rest[1..];
                self.field();
            }
            c if matches!(c, '+' | '-') || c.is_numeric() => return self.number(),
            c if is_alphanumeric(c) => {
                let end = self.rest.find(is_terminator).unwrap_or(self.rest.len());
                let word = self.take(end);
                self.made.push(match word {
                    "true" => Node::Literal(true.into()),
                    "false" => Node::Literal(false.into()),
                    _ => Node::Identifier,
                });
            }
            _ => return None,
        }
        Some(())
    }

    fn take(&mut self, end: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    /// A name up to the next terminator that has no backslash before it.
    fn field(&mut self) {
        let mut escaped = false;
        let end = self.rest.find(|c| match escaped {
            true => {
                escaped = false;
                false
            }
            false => {
                escaped = c == '\\';
                is_terminator(c)
            }
        });
        let name = self.take(end.unwrap_or(self.rest.len()));
        self.made.push(match name {
            "*" => Node::Wildcard,
            name => Node::Field(name.replace('\\', "").into()),
        });
    }

    fn number(&mut self) -> Option<()> {
        let signed = usize::from(self.rest.starts_with(['+', '-']));
        let end = self.rest[signed..].find(|c: char| c != '.' && !c.is_numeric()).map(|at| at + signed);
        let text = self.take(end.unwrap_or(self.rest.len()));
        let literal = match text.parse::<i64>() {
            Ok(whole) => Value::from(whole),
            Err(_) => Value::from(text.parse::<f64>().ok()?),
        };
        self.made.push(Node::Literal(literal));
        Some(())
    }

    fn quoted(&mut self, quote: char) -> Option<()> {
        let mut escaped = false;
        let end = self.rest[1..].find(|c| {
            let ends = c == quote && !escaped;
            escaped = c == '\\';
            ends || c == '\n'
        })?;
        let text = self.take(end + 2);
        let inside = text[1..].strip_suffix(quote)?;
        self.made.push(Node::Literal(unescaped(inside)?.into()));
        Some(())
    }

    /// `[…]` that is no filter: it ends at the first closing bracket, whatever is quoted.
    fn bracket(&mut self) -> Option<()> {
        let end = self.rest.find([']', '\n']).filter(|end| self.rest.as_bytes()[*end] == b']')?;
        let taken = self.take(end + 1);
        let inside = &taken[1..end];
        if inside.contains(',') {
            let branches = inside.split(',').map(|one| nodes(&format!("[{}]", one.trim_matches(' ')), self.depth + 1));
            self.made.push(Node::Union(branches.collect::<Option<_>>()?));
        } else if let Some(key) = inside.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
            // A key in quotes is read as a path: dots in it need a backslash.
            (!key.contains('\'')).then_some(())?;
            self.made.extend(nodes(&format!(".{key}"), self.depth + 1)?);
        } else {
            self.made.push(Node::Slice(slice(if inside == "*" { ":" } else { inside })?));
        }
        Some(())
    }

    fn filter(&mut self) -> Option<()> {
        // One quoted text at most is seen through; a bracket within it does not end the filter.
        let (mut opened, mut closed, mut before) = (None, false, ' ');
        let end = self.rest.find(|c| {
            match (c, opened) {
                ('\n', _) => return true,
                ('"' | '\'', None) => opened = Some(c),
                ('"' | '\'', Some(quote)) => closed |= before != '\\' && c == quote,
                (')', _) if opened.is_some() == closed => return true,
                _ => {}
            }
            before = c;
            false
        })?;
        let inside = self.take(end);
        self.rest = self.rest.strip_prefix(")]")?;
        let is_sign = |c| matches!(c, '!' | '<' | '>' | '=');
        let parts = inside.find(is_sign).filter(|at| *at > 0).and_then(|at| {
            let (left, rest) = inside.split_at(at);
            let signs = rest.find(|c| !is_sign(c)).unwrap_or(rest.len());
            let (operator, right) = rest.split_at(signs);
            (!right.is_empty()).then_some((left, operator, right))
        });
        let depth = self.depth + 1;
        let filter = match parts {
            None => Filter { left: nodes(inside, depth)?, operator: Operator::Exists, right: Vec::new() },
            Some((left, operator, right)) => {
                let operator = match operator {
                    "==" => Operator::Equal,
                    "!=" => Operator::NotEqual,
                    "<" => Operator::Less,
                    "<=" => Operator::LessOrEqual,
                    ">" => Operator::Greater,
                    ">=" => Operator::GreaterOrEqual,
                    _ => Operator::Unknown,
                };
                Filter { left: nodes(left, depth)?, operator, right: nodes(right, depth)? }
            }
        };
        self.made.push(Node::Filter(Box::new(filter)));
        Some(())
    }
}

/// `n`, `n:m` or `n:m:step`, each of which may be missing.
fn slice(text: &str) -> Option<Slice> {
    let mut numbers = [None; 3];
    let pieces: Vec<&str> = text.split(':').collect();
    (pieces.len() <= 3).then_some(())?;
    for (number, piece) in numbers.iter_mut().zip(&pieces).filter(|(_, piece)| !piece.is_empty()) {
        let digits = piece.strip_prefix('-').unwrap_or(piece);
        digits.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
        *number = Some(piece.parse().ok()?);
    }
    let [from, to, step] = numbers;
    Some(Slice { from, to, step, single: pieces.len() == 1 })
}

/// A quoted text as Go's literals are escaped, in either kind of quotes.
fn unescaped(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next()? {
            'x' => code(&mut chars, 2)?,
            'u' => code(&mut chars, 4)?,
            'U' => code(&mut chars, 8)?,
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'a' => '\x07',
            'b' => '\x08',
            'f' => '\x0c',
            'v' => '\x0b',
            c @ ('\\' | '"' | '\'') => c,
            _ => return None,
        });
    }
    Some(out)
}

/// A character by so many hexadecimal digits.
fn code(chars: &mut std::str::Chars<'_>, digits: usize) -> Option<char> {
    let hex = chars.as_str().get(..digits)?;
    *chars = chars.as_str()[digits..].chars();
    char::from_u32(u32::from_str_radix(hex, 16).ok()?)
}

fn is_alphanumeric(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

fn is_terminator(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n' | '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}')
}
