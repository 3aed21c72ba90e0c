//! Text for people, on the standard output.
//!
//! A terminal gets colours and symbols, unless `NO_COLOR` is set or it is a dumb one. Everything else gets
//! plain ASCII.

use std::io::{self, IsTerminal, Write};

use crate::report::Check;

/// Columns of running text.
const WIDTH: usize = 78;
/// Columns of what a row is about.
const LABEL: usize = 30;

/// Where text goes.
pub struct Screen {
    /// `None`: nobody reads.
    out: Option<Box<dyn Write>>,
    fancy: bool,
    error: Option<io::Error>,
}

/// What a piece of text is.
#[derive(Clone, Copy, Debug)]
enum Style {
    Heading,
    Right,
    Wrong,
    Faint,
}

impl Style {
    /// The numbers of the escape sequence (ECMA-48, "select graphic rendition").
    fn code(self) -> &'static str {
        match self {
            Self::Heading => "1",
            Self::Right => "32",
            Self::Wrong => "1;31",
            Self::Faint => "2",
        }
    }
}

/// Whether escape codes and symbols are welcome. An empty `NO_COLOR` counts as none (no-color.org).
fn is_fancy(terminal: bool, no_color: Option<&str>, term: Option<&str>) -> bool {
    terminal && no_color.is_none_or(str::is_empty) && term != Some("dumb")
}

impl Screen {
    /// The standard output.
    pub fn stdout() -> Self {
        let out = io::stdout();
        let [no_color, term] = ["NO_COLOR", "TERM"]
            .map(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()));
        let fancy = is_fancy(out.is_terminal(), no_color.as_deref(), term.as_deref());
        Self { out: Some(Box::new(out)), fancy, error: None }
    }

    /// Shows nothing.
    pub fn dark() -> Self {
        Self { out: None, fancy: false, error: None }
    }

    /// The error that kept text from being written, if there was one. A reader who has gone is none.
    pub fn finish(mut self) -> io::Result<()> {
        if let Some(out) = &mut self.out
            && let Err(error) = out.flush()
        {
            self.stop(error);
        }
        self.error.map_or(Ok(()), Err)
    }

    /// One line as it is.
    pub fn line(&mut self, text: &str) {
        if let Some(out) = &mut self.out
            && let Err(error) = writeln!(out, "{}", text.trim_end())
        {
            self.stop(error);
        }
    }

    pub fn heading(&mut self, text: &str) {
        let text = self.styled(Style::Heading, text);
        self.line(&text);
    }

    /// Something of less interest.
    pub fn aside(&mut self, text: &str) {
        let text = self.styled(Style::Faint, text);
        self.line(&text);
    }

    /// Running text.
    pub fn paragraph(&mut self, text: &str) {
        for line in wrap(text, WIDTH - 2) {
            self.line(&format!("  {line}"));
        }
    }

    /// Something that came out.
    pub fn finding(&mut self, what: &str, found: &str) {
        self.row(None, what, found);
    }

    /// Something that was right or wrong.
    pub fn check(&mut self, check: &Check) {
        let Check { what, expected, got, ok } = check;
        match ok {
            true => self.row(Some(Style::Right), what, got),
            false => self.row(Some(Style::Wrong), what, &format!("{got}, expected {expected}")),
        }
    }

    /// An error that ended something.
    pub fn stopped(&mut self, why: &str) {
        self.row(Some(Style::Wrong), "stopped", why);
    }

    /// What it all comes to.
    pub fn verdict(&mut self, right: bool, text: &str) {
        let text = self.styled(if right { Style::Right } else { Style::Wrong }, text);
        self.line(&text);
    }

    /// `  ok     order of finishing            1, 2, 3, 4, 5`
    fn row(&mut self, mark: Option<Style>, what: &str, value: &str) {
        let (symbol, word) = match mark {
            Some(Style::Wrong) => ("✗", "WRONG"),
            Some(_) => ("✓", "ok"),
            None => ("", ""),
        };
        // Padded before it is styled: escape codes take no room.
        let mut column = if self.fancy { format!("{symbol:<2}") } else { format!("{word:<6}") };
        if let Some(style) = mark {
            column = self.styled(style, &column);
        }
        self.line(&format!("  {column} {what:<LABEL$}  {value}"));
    }

    fn styled(&self, style: Style, text: &str) -> String {
        if self.fancy { format!("\x1b[{}m{text}\x1b[0m", style.code()) } else { text.to_owned() }
    }

    fn stop(&mut self, error: io::Error) {
        self.out = None;
        if error.kind() != io::ErrorKind::BrokenPipe {
            self.error = Some(error);
        }
    }
}

/// Lines of at most `width` characters, where words allow it.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() || line.len() + 1 + word.len() <= width => {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn colours_are_for_terminals_that_want_them() {
        assert!(is_fancy(true, None, Some("xterm")));
        assert!(is_fancy(true, Some(""), None));
        assert!(!is_fancy(true, Some("1"), Some("xterm")));
        assert!(!is_fancy(true, None, Some("dumb")));
        assert!(!is_fancy(false, None, Some("xterm")));
    }

    /// Keeps what is written, or fails.
    #[derive(Clone, Default)]
    struct Paper(Rc<RefCell<Vec<u8>>>, Option<io::ErrorKind>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.1 {
                Some(kind) => Err(kind.into()),
                None => self.0.borrow_mut().write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn shown(fancy: bool) -> String {
        let paper = Paper::default();
        let mut screen = Screen { out: Some(Box::new(paper.clone())), fancy, error: None };
        screen.finding("sum", "4");
        screen.check(&Check::equal("sum", 4, 4));
        screen.check(&Check::equal("sum", 3, 4));
        assert!(screen.finish().is_ok());
        String::from_utf8(paper.0.take()).expect("UTF-8")
    }

    #[test]
    fn rows_stand_below_each_other() {
        let rows = shown(false);
        let rows: Vec<_> =
            rows.lines().map(|row| row.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(rows, ["sum 4", "ok sum 4", "WRONG sum 3, expected 4"]);
        let columns: Vec<_> = shown(false).lines().map(|row| row.find("sum")).collect();
        assert_eq!(columns, [Some(9); 3]);
        assert!(shown(true).contains("\x1b[32m✓ \x1b[0m sum"), "{:?}", shown(true));
    }

    #[test]
    fn a_reader_who_has_gone_is_no_error_and_a_full_disk_is() {
        let write = |kind| {
            let out = Paper(Rc::default(), Some(kind));
            let mut screen = Screen { out: Some(Box::new(out)), fancy: false, error: None };
            screen.line("text");
            screen.line("more");
            screen.finish().map_err(|error| error.kind())
        };
        assert_eq!(write(io::ErrorKind::BrokenPipe), Ok(()));
        assert_eq!(write(io::ErrorKind::StorageFull), Err(io::ErrorKind::StorageFull));
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrap("incomprehensible is", 4), ["incomprehensible", "is"]);
        assert_eq!(wrap("", 4), [""]);
    }
}
