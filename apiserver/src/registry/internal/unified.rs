//! The difference between two values in upstream's internal form, line by line, as its refusals show it (upstream:
//! `apimachinery/pkg/util/diff`, on `difflib`).

use super::{Shape, dump};
use coxswain_api::field::View;
use std::collections::HashMap;
use std::ops::Range;

/// How many equal lines are shown around what differs.
const CONTEXT: usize = 3;
/// The work grows with the square of the lines: of longer texts the difference is left out.
const LINES_MAX: usize = 2_000;
/// From this many lines on, those that are more than a hundredth of all begin no stretch.
const POPULAR_FROM: usize = 200;

pub fn internal(old: &View<'_>, new: &View<'_>, shape: &Shape) -> String {
    let [old, new] = [old, new].map(|value| pretty(&dump(value, shape).0));
    let [old, new] = [&old, &new].map(|text| text.lines().collect::<Vec<_>>());
    if old.len().max(new.len()) > LINES_MAX {
        return String::new();
    }
    unified(&old, &new)
}

/// JSON text with one space for each level, and with letters that mean something in HTML escaped.
fn pretty(json: &str) -> String {
    let mut out = String::new();
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    let break_line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', depth));
    };
    let mut chars = json.chars().peekable();
    while let Some(c) = chars.next() {
        if quoted {
            match c {
                '<' | '>' | '&' => out.push_str(&format!("\\u{:04x}", c as u32)),
                c => out.push(c),
            }
            quoted = c != '"' || escaped;
            escaped = c == '\\' && !escaped;
            continue;
        }
        match c {
            '{' | '[' => {
                out.push(c);
                match chars.next_if(|next| matches!(next, '}' | ']')) {
                    Some(end) => out.push(end),
                    None => {
                        depth += 1;
                        break_line(&mut out, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                break_line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                break_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c => {
                quoted = c == '"';
                out.push(c);
            }
        }
    }
    out
}

/// A stretch of lines that both have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Match {
    old: usize,
    new: usize,
    size: usize,
}

/// Where each line of the new text stands.
type Places<'a> = HashMap<&'a str, Vec<usize>>;

/// The longest stretch in both ranges; of several the earliest.
fn longest(old: &[&str], new: &[&str], places: &Places<'_>, a: Range<usize>, b: Range<usize>) -> Match {
    let (from, to) = ((a.start, b.start), (a.end, b.end));
    let mut best = Match { old: a.start, new: b.start, size: 0 };
    // How long the stretch is that ends at a line of the new text, for the line of the old one before.
    let mut lengths: HashMap<usize, usize> = HashMap::new();
    for i in a {
        let mut next = HashMap::new();
        for j in places.get(old[i]).into_iter().flatten().copied().filter(|j| b.contains(j)) {
            let before = j.checked_sub(1).and_then(|j| lengths.get(&j)).copied().unwrap_or(0);
            let size = before + 1;
            next.insert(j, size);
            if size > best.size {
                best = Match { old: i + 1 - size, new: j + 1 - size, size };
            }
        }
        lengths = next;
    }
    // Lines that begin no stretch are still part of one.
    while best.old > from.0 && best.new > from.1 && old[best.old - 1] == new[best.new - 1] {
        best = Match { old: best.old - 1, new: best.new - 1, size: best.size + 1 };
    }
    while best.old + best.size < to.0
        && best.new + best.size < to.1
        && old[best.old + best.size] == new[best.new + best.size]
    {
        best.size += 1;
    }
    best
}

/// All stretches that both have, in order; those that touch are one.
fn matches(old: &[&str], new: &[&str]) -> Vec<Match> {
    let mut places = Places::new();
    for (j, line) in new.iter().enumerate() {
        places.entry(line).or_default().push(j);
    }
    if new.len() >= POPULAR_FROM {
        places.retain(|_, lines| lines.len() <= new.len() / 100 + 1);
    }
    let mut found = Vec::new();
    let mut open = vec![(0..old.len(), 0..new.len())];
    while let Some((a, b)) = open.pop() {
        let hit = longest(old, new, &places, a.clone(), b.clone());
        if hit.size > 0 {
            open.push((a.start..hit.old, b.start..hit.new));
            open.push((hit.old + hit.size..a.end, hit.new + hit.size..b.end));
            found.push(hit);
        }
    }
    found.sort_by_key(|m| (m.old, m.new));
    let mut joined: Vec<Match> = Vec::new();
    for hit in found {
        match joined.last_mut() {
            Some(last) if last.old + last.size == hit.old && last.new + last.size == hit.new => last.size += hit.size,
            _ => joined.push(hit),
        }
    }
    joined
}

/// A stretch of both texts, which is the same or not.
#[derive(Clone, Debug)]
struct Piece {
    same: bool,
    old: Range<usize>,
    new: Range<usize>,
}

fn pieces(old: &[&str], new: &[&str]) -> Vec<Piece> {
    let end = Match { old: old.len(), new: new.len(), size: 0 };
    let (mut i, mut j, mut out) = (0, 0, Vec::new());
    for hit in matches(old, new).into_iter().chain([end]) {
        if i < hit.old || j < hit.new {
            out.push(Piece { same: false, old: i..hit.old, new: j..hit.new });
        }
        (i, j) = (hit.old + hit.size, hit.new + hit.size);
        if hit.size > 0 {
            out.push(Piece { same: true, old: hit.old..i, new: hit.new..j });
        }
    }
    out
}

/// What differs, with what is around it; far from each other, differences are apart.
fn groups(mut pieces: Vec<Piece>) -> Vec<Vec<Piece>> {
    let tail = |piece: &mut Piece| {
        piece.old.start = piece.old.start.max(piece.old.end.saturating_sub(CONTEXT));
        piece.new.start = piece.new.start.max(piece.new.end.saturating_sub(CONTEXT));
    };
    let head = |piece: &mut Piece| {
        piece.old.end = piece.old.end.min(piece.old.start + CONTEXT);
        piece.new.end = piece.new.end.min(piece.new.start + CONTEXT);
    };
    if let Some(first) = pieces.first_mut().filter(|p| p.same) {
        tail(first);
    }
    if let Some(last) = pieces.last_mut().filter(|p| p.same) {
        head(last);
    }
    let (mut out, mut group) = (Vec::new(), Vec::new());
    for mut piece in pieces {
        if piece.same && piece.old.len() > 2 * CONTEXT {
            let mut end = piece.clone();
            head(&mut end);
            group.push(end);
            out.push(std::mem::take(&mut group));
            tail(&mut piece);
        }
        group.push(piece);
    }
    out.push(group);
    out.retain(|group| group.iter().any(|piece| !piece.same));
    out
}

fn unified(old: &[&str], new: &[&str]) -> String {
    let mut out = String::new();
    for group in groups(pieces(old, new)) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        let (a, b) = (span(first.old.start..last.old.end), span(first.new.start..last.new.end));
        out.push_str(&format!("@@ -{a} +{b} @@\n"));
        for piece in &group {
            let mut lines = |sign: char, lines: &[&str]| {
                lines.iter().for_each(|line| out.extend([&sign.to_string(), *line, "\n"]));
            };
            if piece.same {
                lines(' ', &old[piece.old.clone()]);
            } else {
                lines('-', &old[piece.old.clone()]);
                lines('+', &new[piece.new.clone()]);
            }
        }
    }
    out
}

/// The lines of a hunk, counted from one.
fn span(lines: Range<usize>) -> String {
    match lines.len() {
        1 => (lines.start + 1).to_string(),
        0 => format!("{},0", lines.start),
        count => format!("{},{count}", lines.start + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::internal::volumes;
    use coxswain_api::json;

    #[test]
    fn differences_are_shown_with_what_is_around_them() {
        let old = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "a<b"});
        let new = json!({"accessModes": [], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "c"});
        let text = internal(&View::root(&old), &View::root(&new), &volumes::CLAIM);
        let expected = "@@ -1,7 +1,5 @@\n {\n- \"AccessModes\": [\n-  \"ReadWriteOnce\"\n- ],\n+ \"AccessModes\": [],\n  \"Selector\": null,\n  \"Resources\": {\n   \"Limits\": null,\n@@ -10,7 +8,7 @@\n   }\n  },\n  \"VolumeName\": \"\",\n- \"StorageClassName\": \"a\\u003cb\",\n+ \"StorageClassName\": \"c\",\n  \"VolumeMode\": null,\n  \"DataSource\": null,\n  \"DataSourceRef\": null,\n";
        assert_eq!(text, expected);
        assert_eq!(unified(&["a"], &["a"]), "");
        assert_eq!(unified(&["a"], &["b", "c"]), "@@ -1 +1,2 @@\n-a\n+b\n+c\n");
    }

    /// As upstream's library has it: what follows a change is found again only by lines that are rare.
    #[test]
    fn lines_that_are_frequent_extend_a_stretch_and_begin_none() {
        let mut old = vec!["same"; 300];
        let mut new = old.clone();
        (old[150], new[150]) = ("old", "new");
        assert_eq!(matches(&old, &new), [Match { old: 0, new: 0, size: 150 }]);
        (old[200], new[200]) = ("rare", "rare");
        let second = Match { old: 151, new: 151, size: 149 };
        assert_eq!(matches(&old, &new), [Match { old: 0, new: 0, size: 150 }, second]);
    }
}
