//! The simple JSON paths of definitions: `.spec.a`, `.spec.list[0].b`, `.metadata.annotations['x\.y']`, `.a[*].b`
//! (upstream: `client-go/util/jsonpath` as far as printer columns, scales and selectable fields may use it).

use coxswain_api::Value;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Field(Box<str>),
    Index(i64),
    All,
}

/// A parsed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// None if the text is no path of this kind.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text.strip_prefix('.')?;
        let mut steps = Vec::new();
        let mut begins = true;
        while !rest.is_empty() {
            if let Some(inner) = rest.strip_prefix('[') {
                let (inside, after) = bracket(inner)?;
                steps.push(inside);
                rest = after;
            } else {
                if !begins {
                    rest = rest.strip_prefix('.')?;
                }
                let (name, after) = field(rest);
                if name.is_empty() {
                    return None;
                }
                steps.push(Step::Field(name.into()));
                rest = after;
            }
            begins = false;
        }
        (!steps.is_empty()).then_some(JsonPath(steps))
    }

    /// The names of the path, if it consists of names alone.
    pub fn fields(&self) -> Option<Vec<&str>> {
        self.0.iter().map(|s| if let Step::Field(name) = s { Some(&**name) } else { None }).collect()
    }

    /// The first value at the path.
    pub fn find<'a>(&self, object: &'a Value) -> Option<&'a Value> {
        find(&self.0, object)
    }
}

fn find<'a>(steps: &[Step], value: &'a Value) -> Option<&'a Value> {
    let Some((step, rest)) = steps.split_first() else { return Some(value) };
    match step {
        Step::Field(name) => find(rest, value.get(&**name)?),
        Step::Index(index) => {
            let list = value.as_array()?;
            let at = if *index < 0 { list.len() as i64 + index } else { *index };
            find(rest, list.get(usize::try_from(at).ok()?)?)
        }
        Step::All => match value {
            Value::Array(list) => list.iter().find_map(|v| find(rest, v)),
            Value::Object(map) => map.values().find_map(|v| find(rest, v)),
            _ => None,
        },
    }
}

/// A name up to the next dot or bracket; a backslash takes the next character as it is.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => return (name, &text[at..]),
            c => name.push(c),
        }
    }
    (name, "")
}

fn bracket(text: &str) -> Option<(Step, &str)> {
    if let Some(quote) = text.chars().next().filter(|c| matches!(c, '\'' | '"')) {
        let mut name = String::new();
        let mut chars = text[1..].char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => name.extend(chars.next().map(|(_, c)| c)),
                c if c == quote => return Some((Step::Field(name.into()), text[1 + at + 1..].strip_prefix(']')?)),
                c => name.push(c),
            }
        }
        return None;
    }
    let (inside, after) = text.split_once(']')?;
    match inside {
        "*" => Some((Step::All, after)),
        number => Some((Step::Index(number.parse().ok()?), after)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    #[test]
    fn a_path_leads_to_the_first_value() {
        let object = json!({"a": {"b": [{"c": 1}, {"c": 2}]}, "m": {"x.y": "z"}});
        let at = |path: &str| JsonPath::parse(path).unwrap().find(&object).cloned();
        assert_eq!(at(".a.b[1].c"), Some(json!(2)));
        assert_eq!(at(".a.b[-1].c"), Some(json!(2)));
        assert_eq!(at(".a.b[*].c"), Some(json!(1)));
        assert_eq!(at(".m.x\\.y"), Some(json!("z")));
        assert_eq!(at(".m['x.y']"), Some(json!("z")));
        assert_eq!(at(".a.none"), None);
        assert_eq!(JsonPath::parse("spec.a"), None);
        assert_eq!(JsonPath::parse(".a..b"), None);
    }
}
