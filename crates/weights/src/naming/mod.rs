//! Which tensor of a file is which source: by their names as they are, or by one rule for all names of the file.
//!
//! Wrappers (`DistributedDataParallel`, FSDP, `torch.compile`, Lightning) put segments into names, and some layers have older
//! spellings. A rule removes such differences on both sides, from all names alike. It fits when it finds all
//! sources that are needed, leaves no name unused, and all shapes agree. Two rules that fit and mean different tensors are an
//! error: nothing is guessed.

mod prefix;
mod spelling;

use std::{borrow::Cow, collections::HashMap, fmt};

use regraft_tensor::Tensor;
use serde::{Deserialize, Serialize};

use self::{prefix::Prefixes, spelling::canonical_spelling};
use crate::{Rename, SourceInfo};

/// Segments that wrappers put anywhere into names, and that name nothing else.
const WRAPPERS: [&str; 4] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module"];
/// What `DataParallel` and `DistributedDataParallel` put there; it is also a name of modules.
const PARALLEL: [&str; 1] = ["module"];
/// Usual names of the model inside a class that trains or adapts it.
const HOLDERS: [&str; 4] = ["model", "net", "network", "base_model"];

/// What the matching looks at beside names.
pub(crate) struct Sides<'a> {
    pub(crate) sources: &'a [SourceInfo],
    /// Whether each source must be given.
    pub(crate) needed: &'a [bool],
    /// Whether the shape of what is given for a source matters.
    pub(crate) is_checked: &'a [bool],
    /// Names of the file after renaming, with their tensors.
    pub(crate) given: &'a [(Cow<'a, str>, &'a Tensor)],
    /// Whether names without a source are not an obstacle.
    pub(crate) ignore_unknown: bool,
    /// Whether sources that are not given are not an obstacle.
    pub(crate) partial: bool,
}

/// The rule that turns names of a file into names of sources: "after removing `module.`".
///
/// ```
/// use regraft_weights::NameRule;
///
/// assert!(NameRule::default().is_identity());
/// let rule = NameRule { removed: vec!["module".into()], ..NameRule::default() };
/// assert_eq!(rule.to_string(), "after removing `module.`");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NameRule {
    /// Prefixes that are removed from names of the file.
    pub removed: Vec<String>,
    /// Prefixes that are added to names of the file.
    pub added: Vec<String>,
    /// Whether older or newer spellings are read as the engine's: `gamma` as `weight`, `weight_g` as
    /// `parametrizations.weight.original0`.
    pub spelling: bool,
}

impl NameRule {
    /// Whether names are taken as they are.
    pub fn is_identity(&self) -> bool {
        *self == NameRule::default()
    }
}

impl fmt::Display for NameRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: &[String]| {
            let quoted: Vec<String> = names.iter().map(|name| format!("`{name}.`")).collect();
            quoted.join(" and ")
        };
        let mut parts = Vec::new();
        if !self.removed.is_empty() {
            parts.push(format!("after removing {}", list(&self.removed)));
        }
        if !self.added.is_empty() {
            parts.push(format!("after adding {}", list(&self.added)));
        }
        if self.spelling {
            parts.push("with other spellings of layers".to_owned());
        }
        match parts.is_empty() {
            true => f.write_str("as they are"),
            false => f.write_str(&parts.join(", ")),
        }
    }
}

/// Which source each name of the file is.
#[derive(Clone, Debug)]
pub(crate) struct Assignment {
    /// By the order of the given names.
    pub(crate) sources: Vec<Option<usize>>,
    /// How many names found a source whose shape agrees.
    pub(crate) matched: usize,
    /// Whether there is no contradiction.
    pub(crate) fits: bool,
    /// Whether all needed names are there, and no others, whatever their tensors.
    is_named: bool,
    /// Whether every source that weights may change is given.
    is_whole: bool,
    /// Whether other spellings were ignored.
    spelling: bool,
}

impl Assignment {
    /// What the rule did, from the names that it brought together.
    pub(crate) fn rule(&self, sides: &Sides<'_>) -> NameRule {
        describe(sides, &self.sources, self.spelling)
    }
}

/// The result of looking for a rule.
pub(crate) enum Found {
    /// The names as they are, or the only rule that fits, or the nearest one.
    One(Assignment),
    /// Two rules that fit and mean different tensors.
    Two(NameRule, NameRule),
}

/// Finds the rule by which the names of the file are those of sources.
pub(crate) fn find(sides: &Sides<'_>) -> Found {
    let engine = Names::of_engine(sides, Level::None, false);
    let file: Vec<Cow<'_, str>> = sides.given.iter().map(|(name, _)| Cow::from(&**name)).collect();
    let as_they_are = engine.as_ref().map(|engine| assign(sides, engine, &file, ("", ""), false));
    let mut nearest = as_they_are.unwrap_or_else(|| unmatched(sides));
    if nearest.fits || nearest.is_named {
        return Found::One(nearest);
    }
    let mut fitting: Vec<Assignment> = Vec::new();
    let mut seen = Vec::new();
    for (level, spelling) in LEVELS {
        let Some(engine) = Names::of_engine(sides, level, spelling) else { continue };
        let file = canonical(sides.given.iter().map(|(name, _)| &**name), level, spelling);
        // What this level changes on neither side, the one before has tried.
        if seen.iter().any(|(e, f): &(Names<'_>, Vec<_>)| e.by_name == engine.by_name && *f == file)
            || has_doubles(&file)
        {
            continue;
        }
        for (from, to) in Prefixes::of(sides, &engine, &file).candidates() {
            let mut found = assign(sides, &engine, &file, (&from, &to), spelling);
            // Where anything fits somehow, a prefix that may be the name of a part must explain everything.
            let is_lenient = sides.partial && sides.ignore_unknown;
            found.fits &= !is_lenient || found.is_whole || prefix::is_known(&from, &to);
            if found.fits && !fitting.iter().any(|other| other.sources == found.sources) {
                fitting.push(found);
            } else if !found.fits && found.matched > nearest.matched {
                nearest = found;
            }
        }
        seen.push((engine, file));
    }
    if sides.partial && sides.ignore_unknown {
        // All that were tried fit somehow: the one that finds most.
        let most = fitting.iter().map(|found| found.matched).max().unwrap_or(0);
        fitting.retain(|found| found.matched == most);
    }
    let mut fitting = fitting.into_iter();
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => Found::One(one),
        (Some(one), Some(other)) => Found::Two(one.rule(sides), other.rule(sides)),
        (None, _) => Found::One(nearest),
    }
}

/// How much of names a rule ignores.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    None,
    Wrappers,
    Parallel,
    Holders,
}

const LEVELS: [(Level, bool); 8] = [
    (Level::None, false),
    (Level::Wrappers, false),
    (Level::Parallel, false),
    (Level::Holders, false),
    (Level::None, true),
    (Level::Wrappers, true),
    (Level::Parallel, true),
    (Level::Holders, true),
];

impl Level {
    fn leaves_out(self, segment: &str) -> bool {
        (self != Level::None && WRAPPERS.contains(&segment))
            || (matches!(self, Level::Parallel | Level::Holders) && PARALLEL.contains(&segment))
            || (self == Level::Holders && HOLDERS.contains(&segment))
    }
}

/// The names of an engine's sources in the form that a level compares.
struct Names<'a> {
    by_name: HashMap<Cow<'a, str>, usize>,
}

impl<'a> Names<'a> {
    /// `None` when two sources have one name in that form.
    fn of_engine(sides: &Sides<'a>, level: Level, spelling: bool) -> Option<Names<'a>> {
        let all = sides.sources.iter().enumerate().flat_map(|(i, source)| source.names().map(move |name| (i, name)));
        let (indices, names): (Vec<usize>, Vec<&str>) = all.unzip();
        let mut by_name = HashMap::with_capacity(names.len());
        for (name, index) in canonical(names.into_iter(), level, spelling).into_iter().zip(indices) {
            if by_name.insert(name, index).is_some_and(|other| other != index) {
                return None;
            }
        }
        Some(Names { by_name })
    }
}

/// Names in the form that a level compares.
fn canonical<'n>(names: impl Iterator<Item = &'n str>, level: Level, spelling: bool) -> Vec<Cow<'n, str>> {
    let has_more = |name: &str| level != Level::None && name.split('.').any(|segment| level.leaves_out(segment));
    let without = |name: &'n str| match has_more(name) {
        false => Cow::from(name),
        true => {
            let kept: Vec<&str> = name.split('.').filter(|segment| !level.leaves_out(segment)).collect();
            Cow::from(kept.join("."))
        }
    };
    let names: Vec<Cow<'n, str>> = names.map(without).collect();
    if spelling { canonical_spelling(&names) } else { names }
}

/// A name without all that wrappers and holders add.
pub(crate) fn without_holders(name: &str) -> Cow<'_, str> {
    canonical(std::iter::once(name), Level::Holders, false).swap_remove(0)
}

fn has_doubles(names: &[Cow<'_, str>]) -> bool {
    let mut sorted: Vec<&str> = names.iter().map(|name| &**name).collect();
    sorted.sort_unstable();
    sorted.windows(2).any(|pair| pair[0] == pair[1])
}

/// Each name after the rule: `from` at its start is replaced by `to`.
fn assign(
    sides: &Sides<'_>,
    engine: &Names<'_>,
    file: &[Cow<'_, str>],
    (from, to): (&str, &str),
    spelling: bool,
) -> Assignment {
    let mut sources = Vec::with_capacity(file.len());
    let mut given = vec![false; sides.sources.len()];
    let mut named = vec![false; sides.sources.len()];
    let (mut matched, mut is_obstructed, mut has_unknown) = (0, false, false);
    for (name, (_, tensor)) in file.iter().zip(sides.given) {
        let source = renamed(name, from, to).and_then(|name| engine.by_name.get(&*name).copied());
        if let Some(index) = source {
            named[index] = true;
        }
        match source {
            Some(index) if !fits(&sides.sources[index], tensor) => is_obstructed |= sides.is_checked[index],
            Some(index) => {
                given[index] = true;
                matched += usize::from(sides.is_checked[index]);
            }
            None => has_unknown |= !sides.ignore_unknown && !is_counter(name),
        }
        sources.push(source);
    }
    let has_all = |which: &[bool]| sides.needed.iter().zip(which).all(|(needed, has)| *has || !needed);
    // A file of which no name is known is of another model.
    let found_any = matched > 0 || sources.iter().zip(file).all(|(source, name)| source.is_some() || is_counter(name));
    let fits = has_all(&given) && !is_obstructed && !has_unknown && found_any;
    let is_named = has_all(&named) && !has_unknown && sides.needed.contains(&true);
    let is_whole = sides.is_checked.iter().zip(&given).all(|(is_checked, given)| *given || !is_checked);
    Assignment { sources, matched, fits, is_named, is_whole, spelling }
}

fn unmatched(sides: &Sides<'_>) -> Assignment {
    Assignment {
        sources: vec![None; sides.given.len()],
        matched: 0,
        fits: false,
        is_named: false,
        is_whole: false,
        spelling: false,
    }
}

/// Whether a tensor can stand for a source.
pub(crate) fn fits(source: &SourceInfo, tensor: &Tensor) -> bool {
    source.shape == tensor.shape() && source.dtype.same_class(tensor.dtype())
}

/// A batch norm counts its batches, and no program for inference reads that.
pub(crate) fn is_counter(name: &str) -> bool {
    name.rsplit('.').next() == Some("num_batches_tracked")
}

/// `name` with whole segments `from` at its start replaced by `to`; `None` when it does not begin with them.
fn renamed<'n>(name: &'n str, from: &str, to: &str) -> Option<Cow<'n, str>> {
    let rest = match from.is_empty() {
        true => name,
        false => name.strip_prefix(from)?.strip_prefix('.')?,
    };
    Some(if to.is_empty() { rest.into() } else { format!("{to}.{rest}").into() })
}

/// What a rule did, from the names that it brought together.
fn describe(sides: &Sides<'_>, sources: &[Option<usize>], spelling: bool) -> NameRule {
    let mut rule = NameRule::default();
    for ((name, _), source) in sides.given.iter().zip(sources) {
        let Some(source) = source else { continue };
        let info = &sides.sources[*source];
        if info.names().any(|other| other == name) {
            continue;
        }
        // The name of a tied weight that is nearest.
        let distances = info.names().map(|other| segment_difference(name, other));
        let Some((removed, added, respelled)) = distances.min_by_key(|(a, b, c)| (a.len() + b.len(), *c)) else {
            continue;
        };
        for (segments, all) in [(removed, &mut rule.removed), (added, &mut rule.added)] {
            for segment in segments {
                if !all.contains(&segment) {
                    all.push(segment);
                }
            }
        }
        rule.spelling |= respelled && spelling;
    }
    rule.removed.sort_unstable();
    rule.added.sort_unstable();
    rule
}

/// Runs of segments that only `from` has, those that only `to` has, and whether their last parts are spelled differently.
fn segment_difference(from: &str, to: &str) -> (Vec<String>, Vec<String>, bool) {
    let (from, to): (Vec<&str>, Vec<&str>) = (from.split('.').collect(), to.split('.').collect());
    let (from, from_tail) = spelling::without_tail(&from);
    let (to, to_tail) = spelling::without_tail(&to);
    // The longest common sequence of segments; names have few.
    let mut longest = vec![vec![0usize; to.len() + 1]; from.len() + 1];
    for i in (0..from.len()).rev() {
        for j in (0..to.len()).rev() {
            longest[i][j] = match from[i] == to[j] {
                true => longest[i + 1][j + 1] + 1,
                false => longest[i + 1][j].max(longest[i][j + 1]),
            };
        }
    }
    let (mut removed, mut added): (Vec<Vec<&str>>, Vec<Vec<&str>>) = (vec![vec![]], vec![vec![]]);
    let (mut i, mut j) = (0, 0);
    while i < from.len() || j < to.len() {
        if i < from.len() && j < to.len() && from[i] == to[j] {
            removed.push(Vec::new());
            added.push(Vec::new());
            (i, j) = (i + 1, j + 1);
        } else if j == to.len() || (i < from.len() && longest[i + 1][j] >= longest[i][j + 1]) {
            removed.last_mut().into_iter().for_each(|run| run.push(from[i]));
            i += 1;
        } else {
            added.last_mut().into_iter().for_each(|run| run.push(to[j]));
            j += 1;
        }
    }
    let joined = |runs: Vec<Vec<&str>>| {
        runs.into_iter().filter(|run| !run.is_empty()).map(|run| run.join(".")).collect::<Vec<_>>()
    };
    (joined(removed), joined(added), from_tail != to_tail)
}

/// The names after `renames`; those that no name begins with, and names that came together.
pub(crate) fn rename<'a>(
    names: impl Iterator<Item = (&'a str, &'a Tensor)>,
    renames: &'a [Rename],
) -> (Vec<(Cow<'a, str>, &'a Tensor)>, Vec<&'a Rename>, Vec<(String, String)>) {
    if renames.is_empty() {
        return (names.map(|(name, tensor)| (name.into(), tensor)).collect(), Vec::new(), Vec::new());
    }
    let mut unused: Vec<&Rename> = renames.iter().collect();
    let mut first: HashMap<String, String> = HashMap::new();
    let (mut renamed, mut doubles) = (Vec::new(), Vec::new());
    for (name, tensor) in names {
        let applied = renames.iter().find_map(|rename| Some((rename, rename.apply(name)?)));
        let new = match applied {
            Some((rename, new)) => {
                unused.retain(|other| *other != rename);
                new
            }
            None => name.to_owned(),
        };
        if let Some(other) = first.insert(new.clone(), name.to_owned()) {
            doubles.push((name.to_owned(), other));
        }
        renamed.push((new.into(), tensor));
    }
    (renamed, unused, doubles)
}
