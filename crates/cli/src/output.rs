//! Everything that is printed: lines with aligned verbs, tables, units, progress, and the JSON object with the same facts.

use std::{
    borrow::Cow,
    io::{self, Write},
    panic::PanicHookInfo,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};

use crate::failure::Failure;

/// Where facts go: lines as they become known, or one JSON object at the end.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
    verbose: u8,
    /// Lines go to stderr because stdout carries something else.
    aside: bool,
    facts: Map<String, Value>,
    /// The first failed write. A reader that went away is not a failure: what it wanted, it has read.
    error: Option<io::Error>,
}

impl Output {
    pub(crate) fn new(json: bool, verbose: u8) -> Self {
        Output { json, verbose, aside: false, facts: Map::new(), error: None }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    pub(crate) fn is_verbose(&self) -> bool {
        self.verbose > 0
    }

    /// Leaves stdout to what [`Output::text`] prints.
    pub(crate) fn lines_aside(&mut self) {
        self.aside = true;
    }

    /// A line that begins with a verb.
    pub(crate) fn line(&mut self, verb: &str, text: impl AsRef<str>) {
        self.print_line(&format!("  {verb:<9}  {}", text.as_ref()));
    }

    /// A line when asked for more.
    pub(crate) fn detail(&mut self, verb: &str, text: impl AsRef<str>) {
        if self.verbose > 0 {
            self.line(verb, text);
        }
    }

    /// Something that the user should know though all is well.
    pub(crate) fn note(&mut self, text: impl AsRef<str>) {
        if !self.json {
            let _ = writeln!(io::stderr(), "note: {}", text.as_ref());
        }
    }

    /// A table with a heading.
    pub(crate) fn table(&mut self, heading: &[&str], rows: &[Vec<String>]) {
        if self.json {
            return;
        }
        let heading: Vec<Cow<'_, str>> = heading.iter().map(|&h| h.into()).collect();
        let rows = rows.iter().map(|row| row.iter().map(|cell| cell.as_str().into()).collect());
        let all: Vec<Vec<Cow<'_, str>>> = std::iter::once(heading).chain(rows).collect();
        let text = aligned(&all);
        self.print_line("");
        for line in text {
            self.print_line(&line);
        }
    }

    fn print_line(&mut self, line: &str) {
        if self.json {
            return;
        }
        if self.aside {
            let _ = writeln!(io::stderr(), "{line}");
        } else {
            self.text(&format!("{line}\n"));
        }
    }

    /// Text for stdout as it is.
    pub(crate) fn text(&mut self, text: &str) {
        if self.error.is_none() {
            let mut stdout = io::stdout().lock();
            self.error = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).err();
        }
    }

    /// A fact for the JSON object.
    pub(crate) fn fact(&mut self, key: &str, value: impl Into<Value>) {
        self.facts.insert(key.to_owned(), value.into());
    }

    /// Shows on a terminal that something is under way, until the result is dropped.
    pub(crate) fn busy(&self, what: impl Into<Cow<'static, str>>) -> Busy {
        if self.json {
            return Busy(ProgressBar::hidden());
        }
        // Draws on stderr, and only when that is a terminal.
        let bar = ProgressBar::new_spinner().with_message(what);
        bar.enable_steady_tick(Duration::from_millis(100));
        Busy(bar)
    }

    /// Shows on a terminal how far `count` rounds have come.
    pub(crate) fn rounds(&self, what: &'static str, count: usize) -> Busy {
        if self.json {
            return Busy(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template("  {msg:9}  {bar:30} {pos}/{len}");
        let bar = ProgressBar::new(count as u64).with_message(what);
        // A template that does not parse would only cost the looks.
        Busy(match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        })
    }

    /// Prints what is left to print.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        if self.json {
            let text = Value::Object(std::mem::take(&mut self.facts)).to_string();
            self.text(&(text + "\n"));
        }
        match self.error.take() {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::new(format!("could not write to stdout: {error}")))
            }
            _ => Ok(()),
        }
    }
}

/// A spinner or a bar on the terminal; gone when dropped.
#[derive(Debug)]
pub(crate) struct Busy(ProgressBar);

impl Busy {
    pub(crate) fn step(&self) {
        self.0.inc(1);
    }

    /// Says what goes on now.
    pub(crate) fn message(&self, what: impl Into<Cow<'static, str>>) {
        self.0.set_message(what);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Columns as wide as their widest cell, but none wider than makes sense for the others.
fn aligned(rows: &[Vec<Cow<'_, str>>]) -> Vec<String> {
    const WIDEST: usize = 64;
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(|c| width(c).min(WIDEST)).collect();
    let line = |row: &Vec<Cow<'_, str>>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &w)| format!("{cell:w$}")).collect();
        format!("  {}", cells.join("  ")).trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// `417.6 MB`
pub(crate) fn bytes(n: impl TryInto<u64>) -> String {
    let n = n.try_into().unwrap_or(u64::MAX);
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

/// `63.1 ms`
pub(crate) fn milliseconds(ms: f64) -> String {
    match ms {
        ..1.0 => format!("{:.0} µs", ms * 1e3),
        ..100.0 => format!("{ms:.2} ms"),
        ..1_000.0 => format!("{ms:.0} ms"),
        _ => format!("{:.2} s", ms / 1e3),
    }
}

/// `1 slot`, `2 slots`
pub(crate) fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// `1 engine`, `2 engines`, `no engines`
pub(crate) fn engines(n: usize) -> String {
    if n == 0 { "no engines".into() } else { count(n, "engine") }
}

/// `3 minutes ago`
pub(crate) fn ago(seconds: u64) -> String {
    let (n, unit) = match seconds {
        0..60 => return "just now".into(),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{} ago", count(n as usize, unit))
}

/// A panic is a bug of ours: say so in a few words.
pub(crate) fn report_bug(info: &PanicHookInfo<'_>) {
    let place = info.location().map(|l| format!(" at {}:{}", short(l.file()), l.line())).unwrap_or_default();
    let payload = info.payload();
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let what = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
    let _ = writeln!(
        io::stderr(),
        "error: this is a bug in regraft {}: {what}{place}\n  help: please report it with the command line; no file was \
         left half-written",
        env!("CARGO_PKG_VERSION")
    );
}

/// The last parts of a path: the folder of dependencies on the machine of the build is of no use to a reader.
fn short(path: &str) -> &str {
    path.rmatch_indices(['/', '\\']).nth(2).map_or(path, |(at, _)| &path[at + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_carry_units() {
        assert_eq!(bytes(812usize), "812 B");
        assert_eq!(bytes(417_600_000usize), "417.6 MB");
        assert_eq!(milliseconds(0.0853), "85 µs");
        assert_eq!(milliseconds(63.14), "63.14 ms");
        assert_eq!(milliseconds(1240.0), "1.24 s");
        assert_eq!(
            [ago(59), ago(60), ago(7_200), ago(90_000)],
            ["just now", "1 minute ago", "2 hours ago", "1 day ago"]
        );
        assert_eq!(count(1, "slot") + ", " + &count(2, "node"), "1 slot, 2 nodes");
    }

    #[test]
    fn columns_are_aligned_and_lines_end_without_blanks() {
        let rows = [vec!["a".into(), "b".into()], vec!["long".into(), "".into()]];
        assert_eq!(aligned(&rows), ["  a     b", "  long"]);
    }

    #[test]
    fn paths_of_other_machines_are_cut() {
        assert_eq!(short("/x/y/registry/foo-1.0/src/lib.rs"), "foo-1.0/src/lib.rs");
        assert_eq!(short("src/lib.rs"), "src/lib.rs");
    }
}
