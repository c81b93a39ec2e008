//! Field selectors such as `status.phase!=Running,spec.nodeName=a` (upstream: `apimachinery/pkg/fields`).

use std::fmt;

/// A conjunction of equalities and inequalities. The default matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    pub requirements: Vec<FieldRequirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    pub field: Box<str>,
    pub value: Box<str>,
    /// `!=` instead of `=`.
    pub negated: bool,
}

impl FieldSelector {
    /// Parses the text with upstream's sentences for what is wrong. Which fields there are is the resource's affair.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut terms = split_terms(text);
        terms.sort_unstable();
        let mut requirements = Vec::new();
        for term in terms.into_iter().filter(|t| !t.is_empty()) {
            let Some((field, negated, value)) = split_term(term) else {
                return Err(format!("invalid selector: '{text}'; can't understand '{term}'"));
            };
            let value = unescape(value)?;
            // A term without field and value restricts nothing.
            if !field.is_empty() || !value.is_empty() {
                requirements.push(FieldRequirement { field: field.into(), value: value.into(), negated });
            }
        }
        Ok(Self { requirements })
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// `field` says what an object has; an unknown field is the empty text.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> &'a str) -> bool {
        self.requirements.iter().all(|r| (field(&r.field) == &*r.value) != r.negated)
    }

    /// The value that a field must have, if the selector says so.
    pub fn exact_match(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| !r.negated && &*r.field == field).map(|r| &*r.value)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let (comma, operator) = (if i == 0 { "" } else { "," }, if r.negated { "!=" } else { "=" });
            write!(f, "{comma}{}{operator}{}", r.field, escape_field_value(&r.value))?;
        }
        Ok(())
    }
}

/// A value as it has to be written in a field selector.
pub fn escape_field_value(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        if matches!(c, '\\' | ',' | '=') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// The terms between commas; a backslash protects the next character.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, b) in text.bytes().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

/// Field, whether negated, and the value as written.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    for (i, b) in term.bytes().enumerate() {
        let rest = &term.as_bytes()[i..];
        match b {
            b'!' if rest.starts_with(b"!=") => return Some((&term[..i], true, &term[i + 2..])),
            b'=' if rest.starts_with(b"==") => return Some((&term[..i], false, &term[i + 2..])),
            b'=' => return Some((&term[..i], false, &term[i + 1..])),
            _ => {}
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(format!("invalid field selector: invalid escape sequence: \\{c}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".to_owned()),
            },
            // Upstream prints the number of the character.
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {}", c as u32)),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_selectors_read_print_and_match() {
        let s = FieldSelector::parse(r"b!=1,a==x\,y,").unwrap();
        assert_eq!(s.to_string(), r"a=x\,y,b!=1");
        assert!(s.matches(|f| if f == "a" { "x,y" } else { "" }));
        assert!(!s.matches(|_| "1"));
        assert_eq!(s.exact_match("a"), Some("x,y"));
        assert_eq!(FieldSelector::parse("a").unwrap_err(), "invalid selector: 'a'; can't understand 'a'");
        assert_eq!(
            FieldSelector::parse("a=b=c").unwrap_err(),
            "invalid field selector: unescaped character in value: 61"
        );
    }
}
