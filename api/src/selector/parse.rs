//! The grammar of label selectors (upstream: the lexer and parser of `apimachinery/pkg/labels/selector.go`).

use super::{Operator, Requirement};
use crate::field::{Error, Path};
use crate::names;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Error,
    End,
    Close,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    Identifier,
    In,
    Less,
    NotEquals,
    NotIn,
    Open,
}

/// Whether `in` and `notin` are operators here, or plain words.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    Operator,
    Word,
}

fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\r' | b'\n')
}

fn is_special(b: u8) -> bool {
    matches!(b, b'=' | b'!' | b'(' | b')' | b',' | b'>' | b'<')
}

fn special_token(text: &str) -> Option<Token> {
    Some(match text {
        ")" => Token::Close,
        "," => Token::Comma,
        "!" => Token::Not,
        "==" => Token::DoubleEquals,
        "=" => Token::Equals,
        ">" => Token::Greater,
        "<" => Token::Less,
        "!=" => Token::NotEquals,
        "(" => Token::Open,
        _ => return None,
    })
}

/// All tokens, the last being [`Token::End`].
fn scan(text: &str) -> Vec<(Token, String)> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    loop {
        while at < bytes.len() && is_space(bytes[at]) {
            at += 1;
        }
        // A NUL ends the text, as it does upstream.
        if at >= bytes.len() || bytes[at] == 0 {
            tokens.push((Token::End, String::new()));
            return tokens;
        }
        let start = at;
        if is_special(bytes[at]) {
            let mut found = None;
            while at < bytes.len() && is_special(bytes[at]) {
                match special_token(&text[start..=at]) {
                    Some(token) => found = Some((token, at + 1)),
                    None if found.is_some() => break,
                    None => {}
                }
                at += 1;
            }
            match found {
                Some((token, end)) => {
                    at = end;
                    tokens.push((token, text[start..end].to_owned()));
                }
                None => tokens.push((Token::Error, format!("error expected: keyword found '{}'", &text[start..at]))),
            }
        } else {
            while at < bytes.len() && bytes[at] != 0 && !is_special(bytes[at]) && !is_space(bytes[at]) {
                at += 1;
            }
            let word = &text[start..at];
            let token = match word {
                "in" => Token::In,
                "notin" => Token::NotIn,
                _ => Token::Identifier,
            };
            tokens.push((token, word.to_owned()));
        }
    }
}

struct Parser {
    tokens: Vec<(Token, String)>,
    at: usize,
}

impl Parser {
    fn peek(&self, position: Position) -> (Token, &str) {
        let (token, text) = &self.tokens[self.at.min(self.tokens.len() - 1)];
        let word = position == Position::Word && matches!(token, Token::In | Token::NotIn);
        (if word { Token::Identifier } else { *token }, text)
    }

    fn next(&mut self, position: Position) -> (Token, String) {
        let (token, text) = self.peek(position);
        let next = (token, text.to_owned());
        self.at += 1;
        next
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let (mut token, mut key) = self.next(Position::Word);
        let mut negated = false;
        if token == Token::Not {
            negated = true;
            (token, key) = self.next(Position::Word);
        }
        if token != Token::Identifier {
            return Err(format!("found '{key}', expected: identifier"));
        }
        let wrong = names::qualified_name(&key);
        if !wrong.is_empty() {
            return Err(Error::invalid(&Path::root(), &key, wrong.join("; ")).to_string());
        }
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(Position::Word).0, Token::End | Token::Comma) {
            return Requirement::new(&key, Operator::Exists, Vec::new());
        }
        let (token, text) = self.next(Position::Operator);
        let operator = match token {
            Token::In => Operator::In,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            Token::NotIn => Operator::NotIn,
            Token::NotEquals => Operator::NotEquals,
            _ => return Err(format!("found '{text}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        let mut values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        values.sort_unstable();
        values.dedup();
        Requirement::new(&key, operator, values)
    }

    fn values(&mut self) -> Result<Vec<Box<str>>, String> {
        let (token, text) = self.next(Position::Word);
        if token != Token::Open {
            return Err(format!("found '{text}' expected: '('"));
        }
        let (token, first) = self.peek(Position::Word);
        let first = first.to_owned();
        match token {
            Token::Identifier | Token::Comma => {
                let values = self.list()?;
                if self.next(Position::Word).0 != Token::Close {
                    return Err(format!("found '{first}', expected: ')'"));
                }
                Ok(values)
            }
            Token::Close => {
                self.at += 1;
                Ok(vec!["".into()])
            }
            _ => Err(format!("found '{first}', expected: ',', ')' or identifier")),
        }
    }

    fn list(&mut self) -> Result<Vec<Box<str>>, String> {
        let mut values: Vec<Box<str>> = Vec::new();
        loop {
            let (token, text) = self.next(Position::Word);
            match token {
                Token::Identifier => {
                    values.push(text.into());
                    match self.peek(Position::Word) {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => return Ok(values),
                        (_, text) => return Err(format!("found '{text}', expected: ',' or ')'")),
                    }
                }
                Token::Comma => {
                    if values.is_empty() {
                        values.push("".into());
                    }
                    match self.peek(Position::Word).0 {
                        Token::Close => {
                            values.push("".into());
                            return Ok(values);
                        }
                        Token::Comma => values.push("".into()),
                        _ => {}
                    }
                }
                _ => return Err(format!("found '{text}', expected: ',', or identifier")),
            }
        }
    }

    fn exact_value(&mut self) -> Result<Box<str>, String> {
        if matches!(self.peek(Position::Word).0, Token::End | Token::Comma) {
            return Ok("".into());
        }
        match self.next(Position::Word) {
            (Token::Identifier, text) => Ok(text.into()),
            (_, text) => Err(format!("found '{text}', expected: identifier")),
        }
    }
}

/// Parses the whole text.
pub(super) fn requirements(text: &str) -> Result<Vec<Requirement>, String> {
    let mut parser = Parser { tokens: scan(text), at: 0 };
    let mut requirements = Vec::new();
    loop {
        match parser.peek(Position::Word) {
            (Token::Identifier | Token::Not, _) => {
                let one = parser.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?;
                requirements.push(one);
                match parser.next(Position::Word) {
                    (Token::End, _) => return Ok(requirements),
                    (Token::Comma, _) => {
                        let (token, text) = parser.peek(Position::Word);
                        if !matches!(token, Token::Identifier | Token::Not) {
                            return Err(format!("found '{text}', expected: identifier after ','"));
                        }
                    }
                    (_, text) => return Err(format!("found '{text}', expected: ',' or 'end of string'")),
                }
            }
            (Token::End, _) => return Ok(requirements),
            (_, text) => return Err(format!("found '{text}', expected: !, identifier, or 'end of string'")),
        }
    }
}
