//! Errors as the user sees them: one line that says what happened, a list of problems, a line of help.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use regraft::{AdapterErrorKind, Problem, RuntimeErrorKind, WeightsErrorKind, adapter::AdapterProblem};
use serde_json::{Value, json};

/// More problems than this are cut short unless asked for.
const LISTED: usize = 40;
/// Names wider than this do not push the column to the right.
const WIDEST: usize = 60;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    problems: Vec<(String, String)>,
    help: Option<String>,
    usage: bool,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Failure { message: message.into(), problems: Vec::new(), help: None, usage: false }
    }

    /// A command line that cannot be meant.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Failure { usage: true, ..Failure::new(message) }
    }

    pub(crate) fn problem(mut self, name: impl Into<String>, what: impl Into<String>) -> Self {
        self.problems.push((name.into(), what.into()));
        self
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Names the file that the error is about, unless the message does.
    pub(crate) fn about(mut self, path: &Path) -> Self {
        let path = path.display().to_string();
        if !self.message.contains(&path) {
            self.message = format!("{path}: {}", self.message);
        }
        self
    }

    /// Says more of the problems that say just `what`.
    pub(crate) fn replace_what(mut self, what: &str, with: &str) -> Self {
        self.problems.iter_mut().filter(|(_, w)| w == what).for_each(|(_, w)| with.clone_into(w));
        self
    }

    /// The parts of a text that was written for people: message, indented problems, a line of help.
    fn from_text(text: &str) -> Self {
        let mut lines = text.lines();
        let mut failure = Failure::new(without_doubled_path(lines.next().unwrap_or_default()));
        for line in lines {
            let line = line.trim_start();
            if let Some(help) = line.strip_prefix("help: ") {
                failure.help = Some(help.to_owned());
            } else {
                let (name, what) = line.split_once("  ").unwrap_or((line, ""));
                failure.problems.push((name.to_owned(), what.trim().to_owned()));
            }
        }
        failure
    }

    fn from_problems(problems: &[Problem], sources: usize) -> Self {
        let failure = Failure::misfit(problems, sources);
        Failure {
            message: format!("{}; nothing was changed", failure.message),
            help: help_for(problems).map(str::to_owned),
            ..failure
        }
    }

    /// Weights that do not fit an engine that was not to be changed.
    pub(crate) fn misfit(problems: &[Problem], sources: usize) -> Self {
        let mut failure = Failure::new(regraft::misfit_summary(problems, sources));
        failure.problems = problems.iter().map(|p| (p.name().to_owned(), p.what())).collect();
        failure
    }

    /// Prints to stderr; with `json` also an object to stdout.
    pub(crate) fn print(&self, json: bool, all: bool) {
        if json {
            // Nobody is left to tell when stdout is closed.
            let _ = writeln!(io::stdout(), "{}", self.to_json());
        }
        let _ = io::stderr().write_all(self.to_text(all).as_bytes());
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.usage { 2 } else { 1 })
    }

    fn to_json(&self) -> Value {
        let problems: Vec<Value> =
            self.problems.iter().map(|(name, what)| json!({"name": name, "what": what})).collect();
        json!({"error": self.message, "problems": problems, "help": self.help})
    }

    fn to_text(&self, all: bool) -> String {
        let mut text = format!("error: {}\n", self.message);
        let listed = if all { self.problems.len() } else { self.problems.len().min(LISTED) };
        let width = self.problems[..listed].iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).min(WIDEST);
        for (name, what) in &self.problems[..listed] {
            let line = format!("  {name:width$}  {what}");
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}", line.trim_end());
        }
        if listed < self.problems.len() {
            let _ = writeln!(text, "  and {} more (-v lists all)", self.problems.len() - listed);
        }
        if let Some(help) = &self.help {
            let _ = writeln!(text, "  help: {help}");
        }
        text
    }
}

fn help_for(problems: &[Problem]) -> Option<&'static str> {
    let only = |is: fn(&Problem) -> bool| problems.iter().any(is);
    if only(|p| matches!(p, Problem::NotIdentical { .. })) {
        return Some("give the weights that the program was compiled with, or compile without --identical");
    }
    if only(|p| matches!(p, Problem::Missing { .. })) {
        return Some("--partial refits only the keys that the file has (an engine that has weights already)");
    }
    if only(|p| matches!(p, Problem::NonFinite { .. })) {
        return Some("without --reject-non-finite such values are taken as they are");
    }
    None
}

/// `a: a: why` as `a: why`.
fn without_doubled_path(line: &str) -> String {
    match line.split_once(": ") {
        Some((path, rest)) if rest.starts_with(path) && rest[path.len()..].starts_with(": ") => rest.to_owned(),
        _ => line.to_owned(),
    }
}

impl From<regraft::Error> for Failure {
    fn from(error: regraft::Error) -> Self {
        let weights = match &error {
            regraft::Error::Weights(e) => Some(e.kind()),
            regraft::Error::Adapter(e) => return from_adapter(e.kind()),
            regraft::Error::Runtime(e) => match e.kind() {
                RuntimeErrorKind::Weights(kind) => Some(kind),
                RuntimeErrorKind::Adapter(kind) => return from_adapter(kind),
                RuntimeErrorKind::NotBound => {
                    return Failure::new("the engine is stripped: it has no weights yet")
                        .help("bind it first: regraft bind STRIPPED.rgf --weights MODEL.safetensors -o BOUND.rgf");
                }
                RuntimeErrorKind::Frozen => {
                    return Failure::new("the engine is frozen: it holds no recipes, so its weights cannot change")
                        .help("compile the program with --mode refittable");
                }
                _ => None,
            },
            _ => None,
        };
        match weights {
            Some(WeightsErrorKind::Fit { problems, sources }) => Failure::from_problems(problems, *sources),
            _ => Failure::from_text(&error.to_string()),
        }
    }
}

fn from_adapter(kind: &AdapterErrorKind) -> Failure {
    let text = kind.to_string();
    let AdapterErrorKind::Fit { problems, .. } = kind else { return Failure::from_text(&text) };
    let failure = Failure::new(text.lines().next().unwrap_or_default());
    let failure = problems.iter().fold(failure, |f, p| f.problem(p.key(), p.what()));
    match problems.iter().any(|problem| matches!(problem, AdapterProblem::NoScale { .. })) {
        true => failure.help("--adapter-alpha ALPHA states it, --adapter-config CONFIG.json gives the configuration"),
        false => failure,
    }
}

macro_rules! from_errors {
    ($($t:ty),*) => {$(
        impl From<$t> for Failure {
            fn from(error: $t) -> Self {
                regraft::Error::from(error).into()
            }
        }
    )*};
}
from_errors!(regraft::RuntimeError, regraft::WeightsError, regraft::AdapterError, regraft::WriteError);

impl From<regraft::cache::CacheError> for Failure {
    fn from(error: regraft::cache::CacheError) -> Self {
        Failure::from_text(&error.to_string()).help("give another folder with --cache-dir, or set REGRAFT_CACHE_DIR")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_taken_apart() {
        let failure =
            Failure::from_text("a.rgf: a.rgf: 2 ops\n  aten.foo    2×, first in x\n  aten.b\n  help: upgrade");
        assert_eq!(failure.message, "a.rgf: 2 ops");
        assert_eq!(failure.problems[0], ("aten.foo".into(), "2×, first in x".into()));
        assert_eq!(failure.problems[1], ("aten.b".into(), String::new()));
        assert_eq!(failure.help.as_deref(), Some("upgrade"));
    }

    #[test]
    fn problems_are_aligned_and_long_lists_cut_short() {
        let failure = Failure::new("2 do not fit").problem("a", "missing").problem("long.name", "unknown").help("look");
        assert_eq!(
            failure.to_text(false),
            "error: 2 do not fit\n  a          missing\n  long.name  unknown\n  help: look\n"
        );
        let many = (0..50).fold(Failure::new("many"), |f, i| f.problem(i.to_string(), "missing"));
        assert!(many.to_text(false).ends_with("  and 10 more (-v lists all)\n"));
        assert_eq!(many.to_text(true).lines().count(), 51);
    }
}
