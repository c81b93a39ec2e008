//! Blocks of PEM as upstream's decoder finds them: what is around and between them is passed over.

use base64::Engine;

/// One block of a text.
pub(super) struct Block {
    pub label: String,
    pub has_headers: bool,
    pub bytes: Vec<u8>,
}

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";

/// The first block of the text, and what follows it.
pub(super) fn next_block(text: &str) -> Option<(Block, &str)> {
    let mut rest = text;
    loop {
        rest = after_line_start(rest, BEGIN)?;
        let (line, after) = split_line(rest);
        rest = after;
        let Some(label) = line.strip_suffix(DASHES) else { continue };
        let mut has_headers = false;
        let mut body = rest;
        while let (line, after) = split_line(body)
            && line.contains(':')
            && !after.is_empty()
        {
            (has_headers, body) = (true, after);
        }
        // The end may follow at once only if nothing stood before it.
        let end = match body.strip_prefix(END) {
            Some(trailer) if !has_headers => Some(("", trailer)),
            _ => body.find("\n-----END ").map(|at| (&body[..at], &body[at + 1 + END.len()..])),
        };
        let Some((content, trailer)) = end else { continue };
        let closes = trailer.strip_prefix(label).and_then(|trailer| trailer.strip_prefix(DASHES));
        let Some((_, after)) = closes.map(split_line).filter(|(left, _)| left.is_empty()) else { continue };
        let content: String = content.chars().filter(|c| !matches!(c, ' ' | '\t' | '\r' | '\n')).collect();
        let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(content) else { continue };
        return Some((Block { label: label.to_owned(), has_headers, bytes }, after));
    }
}

/// Every block of the text.
pub(super) fn blocks(text: &str) -> impl Iterator<Item = Block> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (block, after) = next_block(rest)?;
        rest = after;
        Some(block)
    })
}

/// What follows the first line that begins so.
fn after_line_start<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    if let Some(rest) = text.strip_prefix(start) {
        return Some(rest);
    }
    let at = text.find(&format!("\n{start}"))?;
    Some(&text[at + 1 + start.len()..])
}

/// The first line without the space at its end, and the rest.
fn split_line(text: &str) -> (&str, &str) {
    let (line, rest) = text.split_once('\n').unwrap_or((text, ""));
    (line.trim_end_matches([' ', '\t', '\r']), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_around_blocks_is_passed_over() {
        let text = "x\n-----BEGIN A-----\nYQ ==\n-----END A-----\nbetween\n-----BEGIN B-----\nk: v\n\nYg==\n-----END B-----\n\
                    -----BEGIN C-----\n?\n-----END C-----\n-----BEGIN D-----\n-----END D-----";
        let found: Vec<_> = blocks(text).map(|b| (b.label, b.has_headers, b.bytes)).collect();
        let expected = [("A", false, &b"a"[..]), ("B", true, b"b"), ("D", false, b"")]
            .map(|(l, h, b)| (l.to_owned(), h, b.to_vec()));
        assert_eq!(found, expected);
    }
}
