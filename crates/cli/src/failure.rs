//! Errors as the user sees them: one line that says what happened, a list of problems, a line of help.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use regraft::{
    AdapterErrorKind, Cause, CheckpointErrorKind, Explanation, Misfit, Problem, RuntimeErrorKind, WeightsErrorKind,
    adapter::AdapterProblem,
};
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

    /// Weights that do not fit an engine; `file` is what they were read from.
    pub(crate) fn misfit(misfit: &Misfit, file: Option<&str>) -> Self {
        let mut failure = Failure::new(misfit.summary());
        let what = |problem: &Problem| match (problem, file) {
            (Problem::Missing { found: None, .. }, Some(file)) => format!("missing in {file}"),
            _ => problem.what(),
        };
        failure.problems = misfit.problems.iter().map(|p| (p.name().to_owned(), what(p))).collect();
        failure.help = help_for(misfit);
        failure
    }

    /// The same, of an engine that was to be changed.
    pub(crate) fn unchanged(self) -> Self {
        Failure { message: format!("{}; nothing was changed", self.message), ..self }
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

/// What to do about weights that do not fit. Advice must not lead to an engine of mixed weights: parts of a file are offered
/// only where everything that it has fits.
fn help_for(misfit: &Misfit) -> Option<String> {
    Some(match &misfit.cause {
        Cause::FewKeys => {
            "--partial refits only the keys that the file has (an engine that has weights already)".to_owned()
        }
        Cause::OnlyUnknown => "--ignore-unknown ignores names that the engine does not have".to_owned(),
        Cause::NearRule { rule, matched, of } if rule.is_empty() => {
            format!("{matched} of {of} names match; --rename FROM=TO renames others")
        }
        Cause::NearRule { rule, matched, of } => {
            format!("{matched} of {of} names match {rule}; --rename FROM=TO renames others")
        }
        Cause::FoldedNorm { module, norms } => format!(
            "the file has none of the {norms} batch norms, such as {module}: an optimizer folded them into other weights; \
             export the model without optimization (torch.onnx.export(..., optimize=False, do_constant_folding=False)), or \
             save its state_dict"
        ),
        Cause::Quantized { format } => format!(
            "the weights of the file are quantized ({format}), which Regraft does not read: give those in f32, f16 or bf16 that \
             they were made of, or dequantize them with the tool that wrote them"
        ),
        Cause::OtherModel => "the file is of another model or size than the engine; compile its program".to_owned(),
        Cause::OtherProgram => {
            "the file is of another program than the engine: compile it, with regraft compile".to_owned()
        }
        Cause::Ambiguous => "say which is meant: --rename FROM=TO, or --key for one part of the file".to_owned(),
        Cause::NotIdentical => {
            "give the weights that the program was compiled with, or compile without --identical".to_owned()
        }
        Cause::NonFinite => "without --reject-non-finite such values are taken as they are".to_owned(),
        _ => return None,
    })
}

/// The weights that do not fit, when that is what an error is about.
pub(crate) fn misfit_of(error: &regraft::Error) -> Option<&Misfit> {
    let kind = match error {
        regraft::Error::Weights(error) => error.kind(),
        regraft::Error::Runtime(error) => match error.kind() {
            RuntimeErrorKind::Weights(kind) => kind,
            _ => return None,
        },
        _ => return None,
    };
    match kind {
        WeightsErrorKind::Fit(misfit) => Some(misfit),
        _ => None,
    }
}

impl From<Explanation> for Failure {
    fn from(Explanation { what, problems, help }: Explanation) -> Self {
        Failure { message: what, problems, help, usage: false }
    }
}

impl From<regraft::Error> for Failure {
    fn from(error: regraft::Error) -> Self {
        if let Some(misfit) = misfit_of(&error) {
            return Failure::misfit(misfit, None).unchanged();
        }
        let failure = Failure::from(error.explained());
        match &error {
            regraft::Error::Adapter(e) => advised_of_adapter(failure, e.kind()),
            regraft::Error::Checkpoint(e) => advised_of_checkpoint(failure, e.kind()),
            regraft::Error::Runtime(e) => match e.kind() {
                RuntimeErrorKind::Adapter(kind) => advised_of_adapter(failure, kind),
                RuntimeErrorKind::NotBound => Failure::new("the engine is stripped: it has no weights yet")
                    .help("bind it first: regraft bind STRIPPED.rgf --weights MODEL.safetensors -o BOUND.rgf"),
                RuntimeErrorKind::Frozen => {
                    Failure::new("the engine is frozen: it holds no recipes, so its weights cannot change")
                        .help("compile the program with --mode refittable")
                }
                _ => failure,
            },
            _ => failure,
        }
    }
}

fn advised_of_checkpoint(failure: Failure, kind: &CheckpointErrorKind) -> Failure {
    match kind {
        CheckpointErrorKind::Several { keys } => failure
            .help(format!("choose one: {}", keys.iter().map(|k| format!("--key {k}")).collect::<Vec<_>>().join(", "))),
        CheckpointErrorKind::NoKey { .. } => failure.help("--key names one of them"),
        _ => failure,
    }
}

fn advised_of_adapter(failure: Failure, kind: &AdapterErrorKind) -> Failure {
    match kind {
        AdapterErrorKind::Fit { problems, .. }
            if problems.iter().any(|problem| matches!(problem, AdapterProblem::NoScale { .. })) =>
        {
            failure.help("--adapter-alpha ALPHA states it, --adapter-config CONFIG.json gives the configuration")
        }
        _ => failure,
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

impl From<regraft_server::ServeError> for Failure {
    fn from(error: regraft_server::ServeError) -> Self {
        use regraft_server::ServeError;
        let failure = Failure::new(error.to_string());
        match error {
            ServeError::OpenToAll(_) => failure.help("--infer-tokens and --weights-tokens name files of tokens"),
            ServeError::Batching { .. } => failure.help("without --batch each request runs alone"),
            ServeError::NameTwice(_) | ServeError::Name(_) => failure.help("give a name: NAME=MODEL.rgf"),
            _ => failure,
        }
    }
}

impl From<regraft::cache::CacheError> for Failure {
    fn from(error: regraft::cache::CacheError) -> Self {
        Failure::from(error.explained()).help("give another folder with --cache-dir, or set REGRAFT_CACHE_DIR")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
