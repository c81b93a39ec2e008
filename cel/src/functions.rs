//! The table of functions: which there are, in which overloads (upstream: cel-go's `stdlib` and `ext`, `apiserver/pkg/cel/library`).

use crate::types::Type;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// One way to call a function.
#[derive(Debug)]
pub(crate) struct Overload {
    pub(crate) id: &'static str,
    /// Whether it is called on a value, which is then the first of its arguments.
    pub(crate) is_member: bool,
    pub(crate) arguments: Vec<Type>,
    pub(crate) result: Type,
    /// How many type variables it has.
    pub(crate) variables: u32,
}

static TABLE: LazyLock<HashMap<&'static str, Vec<Overload>>> = LazyLock::new(|| {
    let mut table: HashMap<&'static str, Vec<Overload>> = HashMap::new();
    let lines = include_str!("functions.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    for (name, overload) in lines.map(line) {
        table.entry(name).or_default().push(overload);
    }
    for (name, verb) in [("_<_", "less"), ("_<=_", "less_equals"), ("_>_", "greater"), ("_>=_", "greater_equals")] {
        table.insert(name, comparisons(verb));
    }
    for name in crate::library::names::all() {
        let name = leaked(format!("format.{name}"));
        let result = Type::Named("kubernetes.NamedFormat");
        table.insert(name, vec![Overload { id: name, is_member: false, arguments: Vec::new(), result, variables: 0 }]);
    }
    // Lists are ordered by what can be ordered.
    for name in ["isSorted", "min", "max"] {
        let kinds = [
            Type::Int,
            Type::Uint,
            Type::Double,
            Type::Bool,
            Type::Duration,
            Type::Timestamp,
            Type::String,
            Type::Bytes,
        ];
        let overloads = table.entry(name).or_default();
        for of in kinds {
            let result = if name == "isSorted" { Type::Bool } else { of.clone() };
            let id = leaked(format!("list_{of}_{name}"));
            overloads.push(Overload { id, is_member: true, arguments: vec![Type::list(of)], result, variables: 0 });
        }
    }
    for (name, extra) in [("sort", false), ("@sortByAssociatedKeys", true)] {
        for of in [
            Type::Int,
            Type::Uint,
            Type::Double,
            Type::Bool,
            Type::Duration,
            Type::Timestamp,
            Type::String,
            Type::Bytes,
        ] {
            let id = leaked(format!("list_{of}_{name}"));
            let any = Type::list(Type::Variable(0));
            let (arguments, result, variables) = if extra {
                (vec![any.clone(), Type::list(of)], any, 1)
            } else {
                (vec![Type::list(of.clone())], Type::list(of), 0)
            };
            table.entry(name).or_default().push(Overload { id, is_member: true, arguments, result, variables });
        }
    }
    table
});

/// The overloads of a function, empty if there is none of that name.
pub(crate) fn overloads(name: &str) -> &'static [Overload] {
    TABLE.get(name).map_or(&[], Vec::as_slice)
}

/// Made once, when the table is.
fn leaked(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

/// Numbers compare across their types.
fn comparisons(verb: &str) -> Vec<Overload> {
    use Type::*;
    let kinds = [
        (Bool, Bool, "bool"),
        (Int, Int, "int64"),
        (Int, Double, "int64_double"),
        (Int, Uint, "int64_uint64"),
        (Uint, Uint, "uint64"),
        (Uint, Double, "uint64_double"),
        (Uint, Int, "uint64_int64"),
        (Double, Double, "double"),
        (Double, Int, "double_int64"),
        (Double, Uint, "double_uint64"),
        (String, String, "string"),
        (Bytes, Bytes, "bytes"),
        (Timestamp, Timestamp, "timestamp"),
        (Duration, Duration, "duration"),
    ];
    let one = |(a, b, suffix)| Overload {
        id: leaked(format!("{verb}_{suffix}")),
        is_member: false,
        arguments: vec![a, b],
        result: Bool,
        variables: 0,
    };
    kinds.into_iter().map(one).collect()
}

/// `id name(types) -> type` or `id type.name(types) -> type`.
fn line(line: &'static str) -> (&'static str, Overload) {
    let (id, rest) = line.split_once(' ').expect("a line begins with the overload");
    let (call, result) = rest.rsplit_once(" -> ").expect("a line ends with the result");
    let call = call.strip_suffix(')').expect("a call ends with its parenthesis");
    // The parenthesis of the arguments is the last that opens at depth zero.
    let mut depth = 0;
    let open = call.rfind(|c| {
        depth += match c {
            ')' => 1,
            '(' => -1,
            _ => 0,
        };
        depth < 0
    });
    let (name, arguments) = call.split_at(open.expect("a call has its parenthesis"));
    let mut letters = Vec::new();
    let mut types: Vec<Type> = Vec::new();
    let (target, name) = member(name);
    if let Some(target) = target {
        types.push(parse(target, &mut letters));
    }
    types.extend(split(&arguments[1..]).into_iter().map(|t| parse(t, &mut letters)));
    let result = parse(result, &mut letters);
    let overload =
        Overload { id, is_member: target.is_some(), arguments: types, result, variables: letters.len() as u32 };
    (name, overload)
}

/// The type that a function is called on. A prefix such as `sets.` is part of the name instead.
fn member(name: &'static str) -> (Option<&'static str>, &'static str) {
    const PREFIXES: [&str; 9] =
        ["optional.", "sets.", "strings.", "lists.", "cel.", "ip.", "format.", "jsonpatch.", "math."];
    match name.rsplit_once('.') {
        Some((target, function)) if !PREFIXES.iter().any(|p| name.starts_with(p) && p.len() == target.len() + 1) => {
            (Some(target), function)
        }
        _ => (None, name),
    }
}

fn split(list: &'static str) -> Vec<&'static str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in list.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(list[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    if !list.trim().is_empty() {
        parts.push(list[start..].trim());
    }
    parts
}

fn parse(text: &'static str, letters: &mut Vec<char>) -> Type {
    if let Some((of, inner)) = text.strip_suffix(')').and_then(|t| t.split_once('(')) {
        let mut inner: Vec<Type> = split(inner).into_iter().map(|t| parse(t, letters)).collect();
        let last = inner.pop().expect("a type has its parameters");
        return match of {
            "list" => Type::list(last),
            "map" => Type::map(inner.pop().expect("a map has a key"), last),
            "optional" => Type::optional(last),
            _ => Type::Meta(Arc::new(last)),
        };
    }
    match text {
        "dyn" => Type::Dyn,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        text if text.len() == 1 => {
            let letter = text.chars().next().unwrap_or_default();
            let at = letters.iter().position(|l| *l == letter).unwrap_or_else(|| {
                letters.push(letter);
                letters.len() - 1
            });
            Type::Variable(at as u32)
        }
        named => Type::Named(named),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are_meant() {
        let told = |name: &str| -> Vec<String> {
            let types = |o: &Overload| o.arguments.iter().map(Type::to_string).collect::<Vec<_>>().join(", ");
            overloads(name).iter().map(|o| format!("{} {} ({}) {}", o.id, o.is_member, types(o), o.result)).collect()
        };
        assert_eq!(told("sets.contains"), ["list_sets_contains_list false (list(_var0), list(_var0)) bool"]);
        assert_eq!(told("getScheme"), ["url_get_scheme true (kubernetes.URL) string"]);
        assert_eq!(told("getQuery"), ["url_get_query true (kubernetes.URL) map(string, list(string))"]);
        assert_eq!(told("hasValue"), ["optional_hasValue true (optional_type(_var0)) bool"]);
        assert_eq!(told("optional.none"), ["optional_none false () optional_type(_var0)"]);
        assert_eq!(told("sort")[0], "list_int_sort true (list(int)) list(int)");
        assert_eq!(told("nothing"), Vec::<String>::new());
    }
}
