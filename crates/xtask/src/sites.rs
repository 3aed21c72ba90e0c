//! Where a source file can be weakened, and how.
//!
//! Each `Acquire`, `Release`, `AcqRel` and `SeqCst` becomes `Relaxed` (and `AcqRel` each of its halves);
//! each `fence(..)` and `fence_after_rmw()` goes; and each line that ends in `// mutant: remove` goes.
//!
//! A change that can not be noticed is explained where it stands, at the end of the line or on lines of its
//! own above:
//!
//! ```text
//! // mutant: equivalent, because REASON
//! // mutant: AcqRel -> Acquire equivalent, because REASON
//! // mutant: remove; SeqCst -> Relaxed equivalent, because REASON
//! ```

use std::ops::Range;

/// One way to weaken a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutant {
    /// Counted from 1, as editors do.
    pub line: usize,
    pub column: usize,
    /// What is done: `Acquire -> Relaxed`, `fence removed`, `line removed`.
    pub change: String,
    /// The line, for people.
    pub code: String,
    /// Why no test can notice it, if the source says so.
    pub explained: Option<String>,
    range: Range<usize>,
    replacement: &'static str,
}

impl Mutant {
    /// The source with this change made.
    pub fn apply(&self, source: &str) -> String {
        format!("{}{}{}", &source[..self.range.start], self.replacement, &source[self.range.end..])
    }
}

/// All mutants of a file, in the order of its lines. Tests at its end are left out.
pub fn find(source: &str) -> Result<Vec<Mutant>, String> {
    let (code, comments) = separate(source);
    let lines = line_ranges(source);
    let line_of = |at: usize| lines.partition_point(|range| range.start <= at) - 1;
    let end = tests_start(&code);

    let mut mutants = Vec::new();
    let mut add = |range: Range<usize>, change: String, replacement: &'static str| {
        let line = line_of(range.start);
        mutants.push(Mutant {
            line: line + 1,
            column: range.start - lines[line].start + 1,
            change,
            code: source[lines[line].clone()].trim().to_owned(),
            explained: None,
            range,
            replacement,
        });
    };
    for word in words(&code[..end]) {
        let weaker: &[&'static str] = match &code[word.clone()] {
            "Acquire" | "Release" | "SeqCst" => &["Relaxed"],
            "AcqRel" => &["Acquire", "Release", "Relaxed"],
            "fence_after_rmw" => {
                if let Some(call) = call_with(&code, word.end).filter(|_| !is_definition(&code, word.start)) {
                    add(path_start(&code, word.start)..call.end, "fence removed".to_owned(), "()");
                }
                continue;
            }
            _ => continue,
        };
        if let Some(fence) = enclosing_fence(&code, word.start) {
            add(fence, "fence removed".to_owned(), "()");
            continue;
        }
        for replacement in weaker {
            add(word.clone(), format!("{} -> {replacement}", &code[word.clone()]), replacement);
        }
    }

    let mut explanations = Vec::new();
    for comment in &comments {
        let text = source[comment.clone()].trim_start_matches('/').trim();
        let Some(text) = text.strip_prefix("mutant:") else {
            continue;
        };
        let line = line_of(comment.start);
        let alone = code[lines[line].clone()].trim().is_empty();
        let wrong = |what: &str| format!("line {}: {what}: `mutant:{text}`", line + 1);
        let mut text = text.trim();
        if let Some(rest) = text.strip_prefix("remove") {
            if alone {
                return Err(wrong("`remove` stands at the end of the line that goes"));
            }
            add(lines[line].clone(), "line removed".to_owned(), "");
            text = rest.trim_start_matches(';').trim();
            if text.is_empty() {
                continue;
            }
        }
        let (change, reason) = text
            .split_once("equivalent, because ")
            .filter(|(_, reason)| !reason.trim().is_empty())
            .ok_or_else(|| wrong("neither `remove` nor `equivalent, because REASON`"))?;
        let target = if alone {
            (line + 1..lines.len()).find(|line| !code[lines[*line].clone()].trim().is_empty())
        } else {
            Some(line)
        };
        let target = target.ok_or_else(|| wrong("there is no code below"))?;
        explanations.push((
            target + 1,
            change.trim().to_owned(),
            reason.trim().to_owned(),
            wrong("explains nothing"),
        ));
    }

    mutants.sort_by_key(|mutant| (mutant.range.start, mutant.range.end));
    for (line, change, reason, complaint) in explanations {
        let mut used = false;
        for mutant in
            mutants.iter_mut().filter(|m| m.line == line && (change.is_empty() || m.change == change))
        {
            mutant.explained = Some(reason.clone());
            used = true;
        }
        if !used {
            return Err(complaint);
        }
    }
    Ok(mutants)
}

/// The source with comments, literals and `use` declarations blanked (the same length in bytes), and where
/// the line comments are.
fn separate(source: &str) -> (String, Vec<Range<usize>>) {
    let bytes = source.as_bytes();
    let mut code = bytes.to_vec();
    let mut comments = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let (end, is_comment) = if rest.starts_with(b"//") {
            (find_from(bytes, at, b"\n"), true)
        } else if rest.starts_with(b"/*") {
            (block_comment_end(bytes, at), false)
        } else if let Some(end) = raw_string_end(bytes, at) {
            (end, false)
        } else if rest[0] == b'"' {
            (quoted_end(bytes, at, b'"'), false)
        } else if rest[0] == b'\'' && is_char(rest) {
            (quoted_end(bytes, at, b'\''), false)
        } else {
            at += 1;
            continue;
        };
        if is_comment {
            comments.push(at..end);
        }
        blank(&mut code, at..end);
        at = end;
    }
    blank_uses(&mut code);
    // Only whole comments and literals were blanked, so what is left is as valid as it was.
    (String::from_utf8_lossy(&code).into_owned(), comments)
}

fn blank(code: &mut [u8], range: Range<usize>) {
    code[range].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
}

fn find_from(bytes: &[u8], at: usize, needle: &[u8]) -> usize {
    bytes[at..]
        .windows(needle.len())
        .position(|window| window == needle)
        .map_or(bytes.len(), |found| at + found)
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// The end of `r"..."`, `r#"..."#` and so on, if one starts here.
fn raw_string_end(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes[at] != b'r' || (at > 0 && is_word(bytes[at - 1]) && bytes[at - 1] != b'b') {
        return None;
    }
    let hashes = bytes[at + 1..].iter().take_while(|byte| **byte == b'#').count();
    let quote = at + 1 + hashes;
    if bytes.get(quote) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    Some((find_from(bytes, quote + 1, &close) + close.len()).min(bytes.len()))
}

fn quoted_end(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// `'x'` and `'\n'` are characters, `'a` is a lifetime.
fn is_char(rest: &[u8]) -> bool {
    match rest.get(1) {
        Some(b'\\') => true,
        Some(byte) if byte.is_ascii() => rest.get(2) == Some(&b'\''),
        Some(_) => true,
        None => false,
    }
}

fn blank_uses(code: &mut [u8]) {
    let mut start = 0;
    while start < code.len() {
        let end = find_from(code, start, b"\n");
        let line = String::from_utf8_lossy(&code[start..end]).trim_start().to_owned();
        let line = line.strip_prefix("pub").map_or(line.as_str(), |rest| {
            let rest = rest.trim_start();
            rest.strip_prefix('(')
                .and_then(|rest| rest.split_once(')'))
                .map_or(rest, |(_, rest)| rest)
                .trim_start()
        });
        let next = if line.starts_with("use ") {
            let semicolon = find_from(code, start, b";");
            blank(code, start..semicolon);
            semicolon
        } else {
            end
        };
        start = next + 1;
    }
}

/// Where `#[cfg(test)] mod ...` starts; the end of the file if there is none.
fn tests_start(code: &str) -> usize {
    const ATTRIBUTE: &str = "#[cfg(test)]";
    code.match_indices(ATTRIBUTE)
        .find(|(at, _)| code[at + ATTRIBUTE.len()..].trim_start().starts_with("mod "))
        .map_or(code.len(), |(at, _)| at)
}

fn line_ranges(source: &str) -> Vec<Range<usize>> {
    let mut start = 0;
    source
        .split('\n')
        .map(|line| {
            let range = start..start + line.len();
            start = range.end + 1;
            range
        })
        .collect()
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn words(code: &str) -> impl Iterator<Item = Range<usize>> {
    let bytes = code.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() && !is_word(bytes[at]) {
            at += 1;
        }
        let start = at;
        while at < bytes.len() && is_word(bytes[at]) {
            at += 1;
        }
        (at > start).then_some(start..at)
    })
}

/// Where the path that ends in the word at `start` begins: that of `crate::` in `crate::fence`.
fn path_start(code: &str, start: usize) -> usize {
    code[..start].trim_end_matches(|c: char| c == ':' || c == '_' || c.is_ascii_alphanumeric()).len()
}

/// The parentheses that follow `at`, if nothing but white space comes before them.
fn call_with(code: &str, at: usize) -> Option<Range<usize>> {
    let open = at + code[at..].find(|c: char| !c.is_whitespace())?;
    if code.as_bytes()[open] != b'(' {
        return None;
    }
    let mut depth = 0;
    for (i, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(open..i + 1);
        }
    }
    None
}

fn is_definition(code: &str, name: usize) -> bool {
    code[..name].trim_end().ends_with("fn")
}

/// The whole of `path::fence(Ordering::X)` if the ordering at `word` is its argument.
fn enclosing_fence(code: &str, word: usize) -> Option<Range<usize>> {
    let before = code[..path_start(code, word)].trim_end().strip_suffix('(')?.trim_end();
    let name = before.strip_suffix("fence").filter(|rest| !rest.bytes().last().is_some_and(is_word))?;
    let call = call_with(code, before.len())?;
    Some(path_start(code, name.len())..call.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(source: &str) -> Vec<(usize, String)> {
        find(source).unwrap().into_iter().map(|m| (m.line, m.change)).collect()
    }

    #[test]
    fn each_ordering_is_weakened_and_acqrel_also_by_halves() {
        let source = "x.load(Ordering::Acquire);\ny.swap(1, AcqRel);\nz.store(1, SeqCst);\n";
        let expected = [
            (1, "Acquire -> Relaxed"),
            (2, "AcqRel -> Acquire"),
            (2, "AcqRel -> Release"),
            (2, "AcqRel -> Relaxed"),
            (3, "SeqCst -> Relaxed"),
        ];
        assert_eq!(changes(source), expected.map(|(line, change)| (line, change.to_owned())));
        let mutants = find(source).unwrap();
        assert_eq!(mutants[0].apply(source), source.replace("Acquire", "Relaxed"));
        assert_eq!(mutants[2].apply(source), source.replace("AcqRel", "Release"));
    }

    #[test]
    fn fences_go_as_a_whole() {
        let source = "a();\ncrate::fence(Ordering::Release);\nfence( SeqCst );\nself.fence_after_rmw();\nfn fence_after_rmw() {}\n";
        let mutants = find(source).unwrap();
        let lines: Vec<_> = mutants.iter().map(|m| (m.line, m.change.as_str())).collect();
        assert_eq!(lines, [(2, "fence removed"), (3, "fence removed"), (4, "fence removed")]);
        assert_eq!(mutants[0].apply("a();\ncrate::fence(Ordering::Release);"), "a();\n();");
        assert!(mutants[1].apply(source).contains("\n();\nself"));
    }

    #[test]
    fn marked_lines_go() {
        let source = "a();\nb.store(1, Relaxed); // mutant: remove\nc();\n";
        let mutants = find(source).unwrap();
        assert_eq!(mutants.len(), 1);
        assert_eq!(mutants[0].apply(source), "a();\n\nc();\n");
    }

    #[test]
    fn comments_strings_imports_and_tests_are_no_sites() {
        let source = "
//! Acquire in a comment
use core::sync::atomic::Ordering::{Acquire,
    Release};
pub(crate) use x::SeqCst;
/* AcqRel /* nested */ AcqRel */
const A: &str = \"Acquire \\\" Release\";
const B: &str = r#\"SeqCst \" AcqRel\"#;
const C: char = '\"';
fn f<'a>(x: &'a str) { AcquireNot; not_Release; }
#[cfg(test)]
mod tests { fn g() { x.load(Acquire); } }
";
        assert_eq!(changes(source), []);
    }

    #[test]
    fn a_reason_excuses_its_line_or_one_change_of_it() {
        let source = "
a.load(Acquire); // mutant: equivalent, because nobody looks
b.swap(1, AcqRel); // mutant: AcqRel -> Release equivalent, because of the fence above
// mutant: equivalent, because it is said
// in two lines
c.load(Acquire);
d.store(1, Release); // mutant: remove; Release -> Relaxed equivalent, because it is swept up later
";
        let mutants = find(source).unwrap();
        let explained: Vec<_> =
            mutants.iter().filter(|m| m.explained.is_some()).map(|m| (m.line, m.change.as_str())).collect();
        assert_eq!(
            explained,
            [
                (2, "Acquire -> Relaxed"),
                (3, "AcqRel -> Release"),
                (6, "Acquire -> Relaxed"),
                (7, "Release -> Relaxed")
            ]
        );
        assert_eq!(mutants.len(), 7);
    }

    #[test]
    fn a_marker_that_is_not_understood_is_an_error() {
        for wrong in [
            "a(); // mutant: equivalent",
            "a.load(Acquire); // mutant: equivalent, because ",
            "a(); // mutant: equivalent, because there is nothing here",
            "a.load(Acquire); // mutant: Release -> Relaxed equivalent, because of that",
            "// mutant: remove\na();",
            "a(); // mutant: removed",
            "// mutant: equivalent, because it is the end",
        ] {
            assert!(find(wrong).is_err(), "{wrong}");
        }
    }
}
