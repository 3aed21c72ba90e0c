//! Says in words how the type in a segment differs from the one that this program expects.
//!
//! The text in the segment is foreign: it may be cut, damaged or made up. It is read by a parser that stops at the first
//! character it does not expect and keeps what it understood so far; the comparison then looks for the first difference
//! in the part that both sides have. Bounded on all sides: [`MAX_TEXT`] bytes are looked at, [`MAX_DEPTH`] types may be
//! nested, and of every name at most [`MAX_NAME`] characters are shown, with control characters escaped.

use super::CUT;

/// Of a longer description only so many bytes are read.
const MAX_TEXT: usize = 64 * 1024;
/// Deeper nesting counts as unreadable, so that a made-up text cannot exhaust the stack.
const MAX_DEPTH: usize = 32;
/// Characters shown of one name or number.
const MAX_NAME: usize = 48;
/// Characters shown of a description that is quoted as a whole.
const MAX_QUOTE: usize = 200;

/// Names the first difference between two descriptions: `stored` comes from the segment, `ours` is
/// [`Layout::describe`](super::Layout::describe) of the type that this program expects.
///
/// The answer is a sentence without a full stop that can follow a colon, a few thousand bytes at most and without control
/// characters. There always is one: `stored` may be cut (the answer says so if the difference may lie behind the cut),
/// may hold anything at all, and is never trusted. A description that was cut should end in `…`, as
/// [`describe_within`](super::Layout::describe_within) writes it; without that mark, one cut within its last number
/// cannot be told from a complete one.
///
/// ```
/// use crossproc_segment::plain::difference;
///
/// assert_eq!(
///     difference(
///         "Order { id: u64 @0, qty: u32 @8, tag: u32 @12 } 16 bytes align 8",
///         "Order { id: u64 @0, qty: u64 @8 } 16 bytes align 8",
///     ),
///     "field `qty`: the segment has u32 at offset 8, this program expects u64 at offset 8",
/// );
/// ```
#[must_use]
pub fn difference(stored: &str, ours: &str) -> String {
    if stored == ours {
        return format!("there is none, both descriptions are `{}`", shown(ours, MAX_QUOTE));
    }
    let theirs = Description::read(stored);
    let mine = Description::read(ours);
    if theirs.text.is_empty() {
        return format!(
            "the segment does not describe its type, this program expects `{}`",
            shown(ours, MAX_QUOTE)
        );
    }
    let agrees_to_its_end = ours.starts_with(theirs.text);
    if !agrees_to_its_end {
        if let Some(difference) = theirs.difference_from(&mine) {
            return difference;
        }
    }
    if agrees_to_its_end || (theirs.stop == Some(Stop::End) && mine.stop.is_none()) {
        let bytes = theirs.text.len();
        return format!(
            "the segment's description of its type is cut after {bytes} bytes, \
             the difference lies in its last part or behind the cut"
        );
    }
    format!(
        "the descriptions cannot be compared field by field: the segment says `{}`, this program expects `{}`",
        shown(stored, MAX_QUOTE),
        shown(ours, MAX_QUOTE)
    )
}

/// A description as far as it could be read. Of what stands in it at most the last type, list or number is incomplete.
struct Description<'a> {
    /// The text without the mark of a cut.
    text: &'a str,
    ty: Option<Type<'a>>,
    size: Option<&'a str>,
    align: Option<&'a str>,
    /// Why reading stopped before the end of the grammar.
    stop: Option<Stop>,
}

enum Type<'a> {
    Scalar(&'a str),
    Array { element: Box<Type<'a>>, count: Option<&'a str> },
    Struct { name: &'a str, fields: List<'a> },
    Enum { name: &'a str, integer: &'a str, variants: List<'a> },
}

/// The fields of a struct or the variants of an enum.
struct List<'a> {
    parts: Vec<Part<'a>>,
    /// Its end was seen.
    whole: bool,
}

struct Part<'a> {
    name: &'a str,
    /// A field has a type, a variant has none.
    ty: Option<Type<'a>>,
    /// The offset of the field or the value of the variant.
    number: Option<&'a str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The text ends.
    End,
    /// The text goes on with something else than the grammar allows, or is nested too deep.
    Strange,
}

impl<'a> Description<'a> {
    fn difference_from(&self, ours: &Description<'a>) -> Option<String> {
        let (stored_type, our_type) = (self.ty.as_ref()?, ours.ty.as_ref()?);
        if !stored_type.looks_like(our_type) {
            return Some(format!(
                "the segment has {}, this program expects {}",
                stored_type.phrase(),
                our_type.phrase()
            ));
        }
        if let Some(difference) = stored_type.difference_within(our_type, "") {
            return Some(difference);
        }
        let name = our_type.brief();
        match (self.size, ours.size) {
            (Some(stored), Some(ours)) if stored != ours => {
                let (stored, ours) = (short(stored), short(ours));
                return Some(format!(
                    "`{name}` has {stored} bytes in the segment and {ours} in this program"
                ));
            }
            _ => {}
        }
        match (self.align, ours.align) {
            (Some(stored), Some(ours)) if stored != ours => {
                let (stored, ours) = (short(stored), short(ours));
                Some(format!(
                    "`{name}` is aligned to {stored} bytes in the segment and to {ours} in this program"
                ))
            }
            _ => None,
        }
    }
}

impl<'a> Type<'a> {
    /// Both are the same kind of type by the same name. What was not read counts as the same.
    fn looks_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Type::Scalar(one), Type::Scalar(two)) => one == two,
            (Type::Struct { name: one, .. }, Type::Struct { name: two, .. }) => one == two,
            (Type::Enum { name: one, .. }, Type::Enum { name: two, .. }) => one == two,
            (Type::Array { element: one, count: n }, Type::Array { element: two, count: m }) => {
                one.looks_like(two) && !differ(*n, *m)
            }
            _ => false,
        }
    }

    /// The first difference between the insides of two types that look alike; `path` leads to them, it is empty for the outermost.
    fn difference_within(&self, ours: &Type<'a>, path: &str) -> Option<String> {
        match (self, ours) {
            (Type::Array { element: stored, .. }, Type::Array { element: ours, .. }) => {
                stored.difference_within(ours, &format!("{path}[]"))
            }
            (Type::Struct { name, fields: stored }, Type::Struct { fields: ours, .. }) => {
                Owner { path, name, kind: Owns::Fields }.first_difference(stored, ours)
            }
            (
                Type::Enum { name, integer: stored_integer, variants: stored },
                Type::Enum { integer: our_integer, variants: ours, .. },
            ) => {
                if stored_integer != our_integer {
                    let field = if path.is_empty() { String::new() } else { format!("field `{path}`: ") };
                    let (name, stored, ours) = (short(name), short(stored_integer), short(our_integer));
                    return Some(format!(
                        "{field}the segment stores `{name}` as {stored}, this program as {ours}"
                    ));
                }
                Owner { path, name, kind: Owns::Variants }.first_difference(stored, ours)
            }
            _ => None,
        }
    }

    /// The type in a sentence: "u64", "struct `Order`", "[Order; 3]".
    fn phrase(&self) -> String {
        match self {
            Type::Struct { .. } => format!("struct `{}`", self.brief()),
            Type::Enum { .. } => format!("enum `{}`", self.brief()),
            Type::Scalar(_) | Type::Array { .. } => self.brief(),
        }
    }

    fn brief(&self) -> String {
        match self {
            Type::Scalar(name) | Type::Struct { name, .. } | Type::Enum { name, .. } => short(name),
            Type::Array { element, count } => {
                let count = count.map_or_else(|| CUT.to_string(), short);
                format!("[{}; {count}]", element.brief())
            }
        }
    }
}

impl List<'_> {
    fn has(&self, name: &str) -> bool {
        self.named(name).is_some()
    }

    fn named(&self, name: &str) -> Option<&Part<'_>> {
        self.parts.iter().find(|part| part.name == name)
    }
}

/// The struct or enum whose parts are compared.
struct Owner<'p> {
    /// Leads to the field that has this type; empty for the outermost type.
    path: &'p str,
    name: &'p str,
    kind: Owns,
}

enum Owns {
    Fields,
    Variants,
}

impl Owner<'_> {
    fn first_difference(&self, stored: &List, ours: &List) -> Option<String> {
        for (theirs, our) in stored.parts.iter().zip(&ours.parts) {
            if theirs.name != our.name {
                return Some(self.other_name(stored, theirs, ours, our));
            }
            if let (Some(their_type), Some(our_type)) = (&theirs.ty, &our.ty) {
                if !their_type.looks_like(our_type) {
                    return Some(self.mismatch(theirs, our));
                }
                if let Some(difference) = their_type.difference_within(our_type, &self.path_to(our)) {
                    return Some(difference);
                }
            }
            if differ(theirs.number, our.number) {
                return Some(self.mismatch(theirs, our));
            }
        }
        let both = stored.parts.len().min(ours.parts.len());
        match (stored.parts.get(both), ours.parts.get(both)) {
            (None, Some(our)) if stored.whole => Some(self.missing(our)),
            (Some(theirs), None) if ours.whole => Some(self.extra(theirs)),
            _ => None,
        }
    }

    /// `theirs` and `our` stand at the same position and have different names.
    fn other_name(&self, stored: &List, theirs: &Part, ours: &List, our: &Part) -> String {
        match (ours.has(theirs.name), stored.named(our.name)) {
            (true, None) if stored.whole => self.missing(our),
            (false, Some(_)) if ours.whole => self.extra(theirs),
            (true, Some(elsewhere)) if differ(elsewhere.number, our.number) => self.mismatch(elsewhere, our),
            _ => format!(
                "{}: in its place the segment has `{}`, {}; this program expects {}",
                self.subject(our),
                short(theirs.name),
                self.phrase(theirs),
                self.phrase(our)
            ),
        }
    }

    fn mismatch(&self, theirs: &Part, our: &Part) -> String {
        format!(
            "{}: the segment has {}, this program expects {}",
            self.subject(our),
            self.phrase(theirs),
            self.phrase(our)
        )
    }

    fn missing(&self, our: &Part) -> String {
        format!(
            "{}: the segment has no such {}, this program expects {}",
            self.subject(our),
            self.noun(),
            self.phrase(our)
        )
    }

    fn extra(&self, theirs: &Part) -> String {
        format!(
            "{}: the segment has {}, this program has no such {}",
            self.subject(theirs),
            self.phrase(theirs),
            self.noun()
        )
    }

    fn noun(&self) -> &'static str {
        match self.kind {
            Owns::Fields => "field",
            Owns::Variants => "variant",
        }
    }

    fn path_to(&self, part: &Part) -> String {
        let dot = if self.path.is_empty() { "" } else { "." };
        format!("{}{dot}{}", self.path, short(part.name))
    }

    fn subject(&self, part: &Part) -> String {
        match self.kind {
            Owns::Fields => format!("field `{}`", self.path_to(part)),
            Owns::Variants => {
                let field =
                    if self.path.is_empty() { String::new() } else { format!("field `{}`: ", self.path) };
                format!("{field}variant `{}` of `{}`", short(part.name), short(self.name))
            }
        }
    }

    /// The part in a sentence: "u32 at offset 8", and "of `Address`" for a field of an inner struct; the value of a variant.
    fn phrase(&self, part: &Part) -> String {
        match (&part.ty, part.number) {
            (Some(ty), Some(offset)) if self.path.is_empty() => {
                format!("{} at offset {}", ty.phrase(), short(offset))
            }
            (Some(ty), Some(offset)) => {
                format!("{} at offset {} of `{}`", ty.phrase(), short(offset), short(self.name))
            }
            (Some(ty), None) => ty.phrase(),
            (None, Some(value)) => short(value),
            (None, None) => CUT.to_string(),
        }
    }
}

/// Both are known and not the same.
fn differ(stored: Option<&str>, ours: Option<&str>) -> bool {
    stored.is_some() && ours.is_some() && stored != ours
}

fn short(name: &str) -> String {
    shown(name, MAX_NAME)
}

/// The first `limit` characters of `text`, then `…`; what would move the cursor or is invisible is escaped.
fn shown(text: &str, limit: usize) -> String {
    let mut out = String::new();
    let mut room = limit;
    for character in text.chars() {
        let plain = matches!(character, '\'' | '"' | '\\');
        let width = if plain { 1 } else { character.escape_debug().count() };
        if width > room {
            out.push(CUT);
            break;
        }
        room -= width;
        if plain {
            out.push(character);
        } else {
            out.extend(character.escape_debug());
        }
    }
    out
}

/// Reads a description from its start. After the first stop every method does nothing.
struct Reader<'a> {
    rest: &'a str,
    stop: Option<Stop>,
}

impl<'a> Description<'a> {
    fn read(text: &'a str) -> Self {
        let mut end = text.len().min(MAX_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let marked = text[..end].strip_suffix(CUT);
        let cut = marked.is_some() || end < text.len();
        let text = marked.unwrap_or(&text[..end]);

        let mut reader = Reader { rest: text, stop: None };
        let ty = reader.ty(0);
        reader.expect(" ");
        let size = reader.number();
        reader.expect(" bytes align ");
        let align = reader.last_number(cut);
        Self { text, ty, size, align, stop: reader.stop }
    }
}

impl<'a> Reader<'a> {
    fn ty(&mut self, depth: usize) -> Option<Type<'a>> {
        if depth == MAX_DEPTH {
            self.stop.get_or_insert(Stop::Strange);
            return None;
        }
        if self.find("[") {
            let element = Box::new(self.ty(depth + 1)?);
            self.expect("; ");
            let count = self.number();
            self.expect("]");
            return Some(Type::Array { element, count });
        }
        let name = self.name()?;
        if self.find(" {}") {
            return Some(Type::Struct { name, fields: List { parts: Vec::new(), whole: true } });
        }
        if self.find(" { ") {
            return Some(Type::Struct { name, fields: self.list(|reader| reader.field(depth + 1)) });
        }
        if self.find(" as ") {
            let integer = self.name()?;
            self.expect(" { ");
            return Some(Type::Enum { name, integer, variants: self.list(Self::variant) });
        }
        self.stop.is_none().then_some(Type::Scalar(name))
    }

    fn list(&mut self, mut part: impl FnMut(&mut Self) -> Option<Part<'a>>) -> List<'a> {
        let mut parts = Vec::new();
        loop {
            parts.extend(part(self));
            if !self.find(", ") {
                return List { parts, whole: self.expect(" }") };
            }
        }
    }

    fn field(&mut self, depth: usize) -> Option<Part<'a>> {
        let name = self.name()?;
        self.expect(": ");
        let ty = Some(self.ty(depth)?);
        self.expect(" @");
        Some(Part { name, ty, number: self.number() })
    }

    fn variant(&mut self) -> Option<Part<'a>> {
        let name = self.name()?;
        self.expect(" = ");
        let start = self.rest;
        self.find("-");
        let digits = self.number()?;
        let sign = start.len() - self.rest.len() - digits.len();
        Some(Part { name, ty: None, number: Some(&start[..sign + digits.len()]) })
    }

    fn name(&mut self) -> Option<&'a str> {
        self.token(|character| !character.is_control() && !" {}[],:;@=".contains(character))
    }

    fn number(&mut self) -> Option<&'a str> {
        self.token(|character| character.is_ascii_digit())
    }

    /// The number that ends the description.
    fn last_number(&mut self, cut: bool) -> Option<&'a str> {
        let digits = self.rest;
        if self.stop.is_none()
            && !cut
            && !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
        {
            self.rest = "";
            return Some(digits);
        }
        let digits = self.number();
        // Something follows where nothing should.
        self.stop.get_or_insert(Stop::Strange);
        digits
    }

    /// The longest run of such characters; none if the text ends with it, because it may have been cut there.
    fn token(&mut self, belongs: impl Fn(char) -> bool) -> Option<&'a str> {
        if self.stop.is_some() {
            return None;
        }
        match self.rest.find(|character| !belongs(character)) {
            None => self.stop = Some(Stop::End),
            Some(0) => self.stop = Some(Stop::Strange),
            Some(end) => {
                let token = &self.rest[..end];
                self.rest = &self.rest[end..];
                return Some(token);
            }
        }
        None
    }

    /// Whether the text goes on with `literal`, which is then read. A text that ends within `literal` stops the reader.
    fn find(&mut self, literal: &str) -> bool {
        if self.stop.is_some() {
            return false;
        }
        if let Some(rest) = self.rest.strip_prefix(literal) {
            self.rest = rest;
            return true;
        }
        if literal.starts_with(self.rest) {
            self.stop = Some(Stop::End);
        }
        false
    }

    /// As [`find`](Self::find); anything else stops the reader.
    fn expect(&mut self, literal: &str) -> bool {
        let found = self.find(literal);
        if !found {
            self.stop.get_or_insert(Stop::Strange);
        }
        found
    }
}
