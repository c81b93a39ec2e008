//! Checks every codec against objects as upstream wrote them: `cargo run -p coxswain-api --example round_trips -- DIR`, where DIR
//! holds `GROUP.VERSION.KIND.json`, `.yaml` and `.pb` (upstream's `staging/src/k8s.io/api/testdata/HEAD`).
//!
//! Each file must give the same tree, and the tree each file again: protobuf and YAML byte by byte, JSON line by line.
//! CBOR has no files and must come back as it went.

use coxswain_api::Value;
use coxswain_api::codec::{Format, decode, encode, interpret};
use coxswain_api::schema::{StructRef, builtin};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let folder = PathBuf::from(std::env::args().nth(1).expect("the folder with the objects"));
    let mut files: Vec<PathBuf> = match std::fs::read_dir(&folder) {
        Ok(entries) => {
            entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "json")).collect()
        }
        Err(e) => {
            eprintln!("{}: {e}", folder.display());
            return ExitCode::from(2);
        }
    };
    files.sort();
    let (mut checks, mut failures) = (0, Vec::new());
    for file in &files {
        let mut object = Object { file, checks: 0, failures: Vec::new() };
        if let Err(e) = object.check() {
            object.failures.push(e);
        }
        checks += object.checks;
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        failures.extend(object.failures.iter().map(|f| format!("{name}: {f}")));
    }
    failures.iter().for_each(|f| println!("{f}"));
    println!("{} objects, {checks} checks, {} failures", files.len(), failures.len());
    ExitCode::from(u8::from(!failures.is_empty() || files.is_empty()))
}

struct Object<'a> {
    file: &'a Path,
    checks: usize,
    failures: Vec<String>,
}

impl Object<'_> {
    fn check(&mut self) -> Result<(), String> {
        let json = self.read("json")?;
        let stated = interpret(&json, Format::Json).map_err(|e| e.to_string())?;
        let (group, version) = stated.group_version().ok_or("apiVersion has two slashes")?;
        // Watch events name no kind but in the name of their file.
        let name = self.file.file_stem().unwrap_or_default().to_string_lossy();
        let kind = if stated.kind.is_empty() { name.rsplit('.').next().unwrap_or_default() } else { &stated.kind };
        let schema = builtin().kind(group, version, kind).ok_or("the kind is not known")?;
        let tree = tree(&json, Format::Json, schema)?;
        self.holds(indented(&tree, schema).trim_end() == String::from_utf8_lossy(&json).trim_end(), || {
            "the JSON that is written differs".into()
        });
        for (format, extension) in [(Format::Yaml, "yaml"), (Format::Protobuf, "pb")] {
            let bytes = self.read(extension)?;
            match self::tree(&bytes, format, schema) {
                Ok(read) => self.holds(read == tree, || {
                    format!("{format:?} is read otherwise: {}", first_difference(&tree, &read, ""))
                }),
                Err(e) => self.holds(false, || format!("{format:?} is refused: {e}")),
            }
            let written = written(&tree, format, schema);
            self.holds(written == bytes, || {
                let at = written.iter().zip(&bytes).position(|(a, b)| a != b).unwrap_or(written.len().min(bytes.len()));
                let around = |b: &[u8]| b[at.saturating_sub(20)..(at + 40).min(b.len())].escape_ascii().to_string();
                format!("{format:?} differs at byte {at}: …{} instead of …{}", around(&written), around(&bytes))
            });
        }
        for format in [Format::Json, Format::Cbor] {
            let again = self::tree(&written(&tree, format, schema), format, schema)?;
            self.holds(again == tree, || {
                format!("{format:?} does not come back: {}", first_difference(&tree, &again, ""))
            });
        }
        Ok(())
    }

    fn read(&self, extension: &str) -> Result<Vec<u8>, String> {
        let path = self.file.with_extension(extension);
        std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn holds(&mut self, ok: bool, what: impl FnOnce() -> String) {
        self.checks += 1;
        if !ok {
            self.failures.push(what());
        }
    }
}

/// Decoded, with nothing to complain of.
fn tree(bytes: &[u8], format: Format, schema: &StructRef) -> Result<Value, String> {
    let decoded = decode(bytes, format, schema).map_err(|e| e.to_string())?;
    if decoded.strict_errors.is_empty() { Ok(decoded.value) } else { Err(decoded.strict_errors.join(", ")) }
}

fn written(tree: &Value, format: Format, schema: &StructRef) -> Vec<u8> {
    let mut out = Vec::new();
    encode(tree, format, schema, &mut out);
    out
}

/// Our JSON, in upstream's order of fields, indented as upstream's files are.
fn indented(tree: &Value, schema: &StructRef) -> String {
    let compact = written(tree, Format::Json, schema);
    let (mut out, mut depth, mut in_text, mut escaped) = (String::new(), 0, false, false);
    let mut chars = String::from_utf8_lossy(&compact).chars().collect::<Vec<_>>().into_iter().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.push_str(&"  ".repeat(depth));
    };
    while let Some(c) = chars.next() {
        if in_text {
            out.push(c);
            in_text = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            '{' | '[' => {
                out.push(c);
                if chars.peek().is_some_and(|next| matches!(next, '}' | ']')) {
                    out.extend(chars.next());
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth -= 1;
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            _ => {
                in_text = c == '"';
                out.push(c);
            }
        }
    }
    out
}

fn first_difference(a: &Value, b: &Value, at: &str) -> String {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let mut keys: Vec<&String> = x.keys().chain(y.keys()).collect();
            keys.sort();
            let differs = keys.into_iter().find(|k| x.get(*k) != y.get(*k)).map(String::as_str).unwrap_or_default();
            let of = |map: &serde_json::Map<String, Value>| map.get(differs).cloned().unwrap_or_default();
            first_difference(&of(x), &of(y), &format!("{at}.{differs}"))
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            let i = (0..x.len()).find(|&i| x[i] != y[i]).unwrap_or_default();
            first_difference(&x[i], &y[i], &format!("{at}[{i}]"))
        }
        _ => format!("{at}: {a} and {b}"),
    }
}
