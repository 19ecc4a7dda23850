use std::{collections::BTreeSet, fmt};

use regraft_tensor::Explanation;
use serde::{Deserialize, Serialize};

use crate::{NameRule, Problem, SourceInfo, Unknown};

/// Weights that do not fit an engine: every reason, and the common cause.
///
/// ```
/// use regraft_weights::{Misfit, Problem};
///
/// let misfit = Misfit::new(vec![Problem::Missing { name: "fc.weight".into(), found: None }], 62);
/// println!("{misfit}"); // a line that sums up, a line for each problem, and advice
/// for problem in &misfit.problems {
///     println!("{problem}");
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Misfit {
    /// Every reason.
    pub problems: Vec<Problem>,
    /// How many sources the engine has.
    pub sources: usize,
    /// The common cause.
    pub cause: Cause,
}

/// The common cause of all problems, which advice depends on.
///
/// ```
/// use regraft_weights::{Cause, Misfit};
///
/// fn advice(misfit: &Misfit) -> Option<&'static str> {
///     match misfit.cause {
///         Cause::FewKeys => Some("refit with RefitOptions::partial"),
///         Cause::OnlyUnknown => Some("refit with RefitOptions::ignore_unknown"),
///         _ => None,
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// Everything that was given fits, and some sources were not given.
    FewKeys,
    /// Everything that is needed was given, beside names that the engine does not have.
    OnlyUnknown,
    /// By a rule most names are those of sources, but some are not.
    NearRule {
        /// The rule in words, empty for the names as they are.
        rule: String,
        /// Sources that it finds.
        matched: usize,
        /// Sources that must be given.
        of: usize,
    },
    /// Whole norms are missing: the tool that wrote the file folded them into the weights before them.
    FoldedNorm {
        /// The module of one of them.
        module: String,
        /// How many.
        norms: usize,
    },
    /// The file has quantized weights, with their scales beside them.
    Quantized {
        /// The tool or the format.
        format: String,
    },
    /// Shapes differ, or hardly any name is known.
    OtherModel,
    /// What was compiled into the program differs.
    OtherProgram,
    /// Two rules for the names fit.
    Ambiguous,
    /// Other weights than an identical engine takes.
    NotIdentical,
    /// Infinite values or NaN, where they are refused.
    NonFinite,
    /// Something else; the problems say what to do.
    Other,
}

impl Misfit {
    /// What is wrong, without advice that depends on the causes.
    pub fn new(problems: Vec<Problem>, sources: usize) -> Misfit {
        Misfit { problems, sources, cause: Cause::Other }
    }

    /// How many sources of how many do not fit, and how many names are unknown, in words.
    pub fn summary(&self) -> String {
        let is_unknown = |p: &&Problem| matches!(p, Problem::Unknown { .. });
        let is_about_names = |p: &&Problem| {
            matches!(p, Problem::Ambiguous { .. } | Problem::RenameUnused { .. } | Problem::NoneKnown { .. })
        };
        let unknown = self.problems.iter().filter(is_unknown).count();
        let known = self.problems.iter().filter(|p| !is_unknown(p) && !is_about_names(p));
        let known = known.map(Problem::name).collect::<BTreeSet<_>>().len();
        let known_text =
            format!("{known} of {} sources {} not fit", self.sources, if known == 1 { "does" } else { "do" });
        let unknown_text = format!("{unknown} {} unknown", if unknown == 1 { "name is" } else { "names are" });
        match (known, unknown) {
            (0, 0) => "the names do not fit".to_owned(),
            (_, 0) => known_text,
            (0, _) => unknown_text,
            _ => format!("{known_text}, {unknown_text}"),
        }
    }
}

impl Misfit {
    /// In parts. Advice follows from the cause and how weights are given, and is for the caller to word.
    pub fn explained(&self) -> Explanation {
        Explanation::new(format!("{}; nothing was changed", self.summary()))
            .problems(self.problems.iter().map(|problem| (problem.name().to_owned(), problem.what())))
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.explained().fmt(f)
    }
}

impl Cause {
    /// The cause of `problems`, when `matched` of `needed` sources were found by `rule`, and the file is one of `quantized`
    /// weights.
    pub(crate) fn of(
        problems: &[Problem],
        sources: &[SourceInfo],
        (rule, matched, needed): (&NameRule, usize, usize),
        quantized: Option<&str>,
    ) -> Cause {
        let count = |is: fn(&Problem) -> bool| problems.iter().filter(|p| is(p)).count();
        let missing = count(|p| matches!(p, Problem::Missing { found: None, .. }));
        let unknown = count(|p| matches!(p, Problem::Unknown { .. }));
        let mismatched = count(|p| matches!(p, Problem::Mismatch { .. }));
        if count(|p| matches!(p, Problem::Ambiguous { .. })) > 0 {
            return Cause::Ambiguous;
        }
        if count(|p| matches!(p, Problem::Folded { .. })) > 0 {
            return Cause::OtherProgram;
        }
        if count(|p| matches!(p, Problem::NotIdentical { .. })) > 0 {
            return Cause::NotIdentical;
        }
        let is_lost = |p: &Problem| matches!(p, Problem::Missing { .. } | Problem::Mismatch { .. });
        if problems.iter().any(is_lost)
            && let Some(format) = quantized
        {
            return Cause::Quantized { format: format.to_owned() };
        }
        if let Some((module, norms)) = folded_norms(problems, sources)
            && matched > 0
        {
            return Cause::FoldedNorm { module, norms };
        }
        let most = matched * 2 >= needed.max(1);
        match (missing, unknown, mismatched) {
            (0, 0, 0) if count(|p| matches!(p, Problem::NonFinite { .. })) > 0 => Cause::NonFinite,
            (0, 0, 0) => Cause::Other,
            (1.., 0, 0) if matched > 0 => Cause::FewKeys,
            (0, 1.., 0) if matched > 0 => Cause::OnlyUnknown,
            (_, _, 0) if most && matched > 0 => {
                let rule = if rule.is_identity() { String::new() } else { rule.to_string() };
                Cause::NearRule { rule, matched, of: needed }
            }
            _ => Cause::OtherModel,
        }
    }
}

/// The module of a batch norm and how many there are, where the file lacks all of them and has most of the rest: whoever wrote it
/// folded them.
fn folded_norms(problems: &[Problem], sources: &[SourceInfo]) -> Option<(String, usize)> {
    let module = |name: &str| name.rsplit_once('.').map_or(String::new(), |(module, _)| module.to_owned());
    let missing: BTreeSet<&str> =
        problems.iter().filter(|p| matches!(p, Problem::Missing { .. })).map(Problem::name).collect();
    let norms: BTreeSet<String> =
        sources.iter().filter(|source| source.name.ends_with("running_mean")).map(|s| module(&s.name)).collect();
    let weights = sources.iter().filter(|s| s.kind.in_state_dict() && !s.name.ends_with("num_batches_tracked"));
    let (of_norms, others): (Vec<&SourceInfo>, Vec<&SourceInfo>) =
        weights.partition(|source| norms.contains(&module(&source.name)));
    let is_missing = |source: &&&SourceInfo| missing.contains(source.name.as_str());
    let is_folded = |p: &Problem| matches!(p, Problem::Unknown { why: Unknown::MadeByExporter, .. });
    let has_most = others.iter().filter(is_missing).count() * 2 <= others.len() || problems.iter().any(is_folded);
    (has_most && of_norms.iter().all(|source| is_missing(&source))).then_some(())?;
    Some((norms.first()?.clone(), norms.len()))
}
