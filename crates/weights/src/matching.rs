use std::collections::BTreeMap;

use rayon::prelude::*;
use regraft_tensor::{DType, Tensor};

use crate::{
    Cause, Digest, Ignored, MatchOptions, Misfit, NameRule, Problem, RefitMap, SourceInfo, StateDict, Unknown,
    constants,
    naming::{self, Found, Sides},
    on_shared_threads,
    stored::{self, StoredOtherwise},
};

/// Given tensors by source index, as they were given: their floats may be of another width than the source's.
pub type Matched = BTreeMap<usize, Tensor>;

/// Given tensors whose names were matched to sources, not checked yet.
#[derive(Debug)]
pub struct Names<'a> {
    /// By source.
    pub(crate) given: Vec<Option<(&'a str, &'a Tensor)>>,
    /// The source of each name that was given, whether or not it takes a tensor; by name.
    pub(crate) by_name: Vec<(&'a str, usize)>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) unknown: Vec<Problem>,
    pub(crate) ignored: Vec<Ignored>,
    rule: NameRule,
    /// How many sources must be given.
    needed: usize,
    /// What quantized the weights of the file, by the names without a source.
    quantized: Option<&'static str>,
}

/// Matches the names of `weights` to the sources of `map`: as they are, or by one rule for all of them. What does not match is
/// reported by [`Names::check`], together with all other problems.
pub fn match_names<'a>(map: &'a RefitMap, weights: &'a StateDict, options: &'a MatchOptions) -> Names<'a> {
    match_sources(&map.sources, &map.are_read(), weights, options)
}

/// As [`match_names`]; `used` says which of the sources have slots.
///
/// ```
/// use regraft_weights::{MatchOptions, RefitMap, StateDict, match_sources};
///
/// # fn f(map: &RefitMap, weights: &StateDict) {
/// let options = MatchOptions::new().partial(true);
/// let names = match_sources(&map.sources, &map.are_read(), weights, &options);
/// println!("{}", names.rule());
/// # }
/// ```
pub fn match_sources<'a>(
    sources: &'a [SourceInfo],
    used: &[bool],
    weights: &'a StateDict,
    options: &'a MatchOptions,
) -> Names<'a> {
    // What the program never reads need not be given, and may have any shape.
    let is_weight =
        |source: &SourceInfo| source.kind.in_state_dict() || constants::may_change(source, weights, options);
    let is_checked: Vec<bool> = sources.iter().zip(used).map(|(source, used)| *used && is_weight(source)).collect();
    let is_needed = |(source, used): (&SourceInfo, &bool)| *used && source.kind.in_state_dict() && !options.partial;
    let needed: Vec<bool> = sources.iter().zip(used).map(is_needed).collect();
    let (given, unused, doubles) = naming::rename(weights.iter(), &options.renames);
    let (partial, ignore_unknown) = (options.partial, options.ignore_unknown);
    let sides = Sides { sources, needed: &needed, is_checked: &is_checked, given: &given, ignore_unknown, partial };
    let mut names = Names {
        given: vec![None; sources.len()],
        by_name: Vec::with_capacity(weights.len()),
        problems: Vec::new(),
        unknown: Vec::new(),
        ignored: Vec::new(),
        rule: NameRule::default(),
        needed: needed.iter().filter(|needed| **needed).count(),
        quantized: None,
    };
    names.problems.extend(unused.iter().map(|rename| Problem::RenameUnused { name: rename.from().to_owned() }));
    names.problems.extend(doubles.into_iter().map(|(name, other)| Problem::Twice { name, other }));
    let known = |name: &&String| sources.iter().any(|source| source.names().any(|other| other == name.as_str()));
    if let crate::Constants::Change(constants) = &options.constants {
        let unknown = constants.iter().filter(|name| !known(name));
        names.problems.extend(unknown.map(|name| Problem::NotGiven { name: name.clone() }));
    }
    let found = match naming::find(&sides) {
        Found::One(found) => found,
        Found::Two(one, other) => {
            names.problems.push(Problem::Ambiguous { rules: [one.to_string(), other.to_string()] });
            return names;
        }
    };
    names.rule = found.rule(&sides);
    for ((name, tensor), index) in weights.iter().zip(&found.sources) {
        let folded = index.filter(|index| constants::is_compared(&sources[*index], weights, options));
        match folded {
            Some(index) => names.take_folded(sources, (name, tensor), index),
            None => names.take(sources, used, &is_checked, (name, tensor), *index, ignore_unknown),
        }
    }
    names.take_constants(sources, used, weights, options);
    let named = weights.iter().zip(&found.sources);
    let unplaced: Vec<&str> = named.filter(|(_, source)| source.is_none()).map(|((name, _), _)| name).collect();
    names.quantized = stored::format_of(&unplaced);
    names.add_missing(&sides, stored::otherwise(weights, &unplaced, &options.renames));
    // Where no rule fits, names are taken as they are only if some are known; what is wrong with them shows later.
    let is_taken = found.fits || (names.rule == NameRule::default() && names.given.iter().any(Option::is_some));
    if names.problems.is_empty() && names.unknown.is_empty() && !is_taken {
        names.problems.push(Problem::NoneKnown { names: weights.len() });
    }
    names.add_reasons(sources, weights);
    names
}

impl<'a> Names<'a> {
    /// Takes over one name of the file.
    fn take(
        &mut self,
        sources: &[SourceInfo],
        used: &[bool],
        is_checked: &[bool],
        (name, tensor): (&'a str, &'a Tensor),
        source: Option<usize>,
        ignore_unknown: bool,
    ) {
        let Some(index) = source else {
            if naming::is_counter(name) {
                self.ignored.push(Ignored::Counter { name: name.to_owned() });
            } else if ignore_unknown {
                self.ignored.push(Ignored::Unknown { name: name.to_owned() });
            } else {
                self.unknown.push(Problem::Unknown { name: name.to_owned(), suggestion: None, why: Unknown::NoSource });
            }
            return;
        };
        // In order, as a state dict lists them.
        self.by_name.push((name, index));
        if used[index] && !is_checked[index] {
            self.ignored.push(Ignored::Constant { name: name.to_owned() });
        } else if !is_checked[index] && !naming::fits(&sources[index], tensor) {
            self.ignored.push(Ignored::Unread { name: name.to_owned() });
        } else if !is_checked[index] && !sources[index].kind.in_state_dict() {
            self.ignored.push(Ignored::Constant { name: name.to_owned() });
        } else if let Some((other, given)) = self.given[index] {
            if !given.bit_equal(tensor) {
                let (name, alias) = (other.to_owned(), name.to_owned());
                self.problems.push(Problem::TiedDiffer { name, alias });
            }
        } else {
            self.given[index] = Some((name, tensor));
        }
    }

    /// Lists the sources that must be given and are not. What the file has in another form than one that is read was not left
    /// out by the tool that wrote it: such a source is never kept as it is.
    fn add_missing(&mut self, sides: &Sides<'_>, stored: StoredOtherwise) {
        for (index, source) in sides.sources.iter().enumerate() {
            let may_be_kept = !sides.needed[index];
            if self.given[index].is_some() || (may_be_kept && !(sides.partial && sides.is_checked[index])) {
                continue;
            }
            let found = source.names().find_map(|own| stored.of(own)).map(str::to_owned);
            if found.is_some() || !may_be_kept {
                self.problems.push(Problem::Missing { name: source.name.clone(), found });
            }
        }
    }

    /// Explains each unknown name.
    fn add_reasons(&mut self, sources: &[SourceInfo], weights: &StateDict) {
        let (removed, is_whole) = (&self.rule.removed, self.rule.added.is_empty());
        for problem in &mut self.unknown {
            let Problem::Unknown { name, suggestion, why } = problem else { continue };
            let Some(tensor) = weights.get(name) else { continue };
            let fitting = sources.iter().filter(|source| naming::fits(source, tensor));
            *suggestion = self::suggestion(name, fitting.flat_map(SourceInfo::names));
            *why = match removed.as_slice() {
                _ if is_of_exporter(name) => Unknown::MadeByExporter,
                [prefix] if is_whole && !has_prefix(name, prefix) => Unknown::OutsideOf { prefix: prefix.clone() },
                _ => Unknown::NoSource,
            };
        }
    }

    /// The rule by which all names are names of sources.
    pub fn rule(&self) -> &NameRule {
        &self.rule
    }

    /// Names that were given and change nothing.
    pub fn ignored(&self) -> &[Ignored] {
        &self.ignored
    }

    /// The source that a name of the file is.
    pub fn source_of(&self, name: &str) -> Option<usize> {
        let found = self.by_name.binary_search_by_key(&name, |(own, _)| own).ok()?;
        Some(self.by_name[found].1)
    }

    /// The names of the file that are sources, with what they are.
    pub fn by_name(&self) -> impl Iterator<Item = (&'a str, usize)> {
        self.by_name.iter().copied()
    }

    /// Checks shapes, dtypes and values, and contents where a digest is given. Floats of another width fit: they are
    /// converted on the way to the slots.
    ///
    /// # Errors
    /// All problems at once: missing names, then what does not fit, each in the engine's order, then unknown names, then
    /// values.
    pub fn check(
        self,
        sources: &[SourceInfo],
        digests: Option<&[Option<Digest>]>,
        options: &MatchOptions,
    ) -> Result<Matched, Misfit> {
        let Names { mut given, mut problems, unknown, rule, needed, quantized, .. } = self;
        for (source, given) in sources.iter().zip(&mut given) {
            if let Some(problem) = given.and_then(|(_, tensor)| mismatch(source, tensor)) {
                problems.push(problem);
                *given = None;
            }
        }
        problems.extend(unknown);
        problems.extend(check_values(sources, &given, digests, options));
        if !problems.is_empty() {
            let matched = given.iter().flatten().count();
            let cause = Cause::of(&problems, sources, (&rule, matched, needed), quantized);
            return Err(Misfit { problems, sources: sources.len(), cause });
        }
        Ok(given.into_iter().enumerate().filter_map(|(i, given)| Some((i, given?.1.clone()))).collect())
    }
}

pub(crate) fn mismatch(source: &SourceInfo, tensor: &Tensor) -> Option<Problem> {
    (!naming::fits(source, tensor)).then(|| Problem::Mismatch {
        name: source.name.clone(),
        expected: source.type_text(),
        found: format!("{}{:?}", tensor.dtype(), tensor.shape()),
    })
}

fn has_prefix(name: &str, prefix: &str) -> bool {
    name == prefix
        || name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'))
        || name.contains(&format!(".{prefix}."))
}

/// The names that ONNX exporters give to weights that they folded or transposed.
fn is_of_exporter(name: &str) -> bool {
    name.starts_with("onnx::") || name.strip_prefix("val_").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
}

/// The known name nearest to `name`, if it is near enough to be meant.
pub fn suggestion<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let near = |other: &&str| other.len().abs_diff(name.len()) <= 4;
    known
        .filter(near)
        .map(|other| (edit_distance(name, other), other))
        .filter(|(distance, _)| *distance <= 4 && *distance * 4 <= name.len())
        .min()
        .map(|(_, other)| other.to_owned())
}

/// Insertions, deletions, substitutions and swaps of neighbors that make `b` of `a`.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let swap = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                let substitute = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let best = substitute.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if swap { best.min(rows[i - 2][j - 2] + 1) } else { best }
            };
        }
    }
    rows[a.len()][b.len()]
}

fn check_values(
    sources: &[SourceInfo],
    given: &[Option<(&str, &Tensor)>],
    digests: Option<&[Option<Digest>]>,
    options: &MatchOptions,
) -> Vec<Problem> {
    if !options.reject_non_finite && digests.is_none() {
        return Vec::new();
    }
    let check = |(index, given): (usize, &Option<(&str, &Tensor)>)| {
        let (name, tensor) = (*given)?;
        let count = if options.reject_non_finite { non_finite(tensor) } else { 0 };
        if count > 0 {
            return Some(Problem::NonFinite { name: name.into(), count });
        }
        let expected = (*digests?.get(index)?)?;
        let found = Digest::of(&tensor.cast(sources[index].dtype));
        (found != expected).then(|| Problem::NotIdentical { name: name.into() })
    };
    on_shared_threads(|| given.par_iter().enumerate().filter_map(check).collect())
}

/// How many values of a tensor are infinite or not a number.
pub fn non_finite(tensor: &Tensor) -> usize {
    match tensor.dtype() {
        DType::F32 => count(tensor, |b: [u8; 4]| !f32::from_ne_bytes(b).is_finite()),
        DType::F64 => count(tensor, |b: [u8; 8]| !f64::from_ne_bytes(b).is_finite()),
        DType::F16 => count(tensor, |b: [u8; 2]| !half::f16::from_ne_bytes(b).is_finite()),
        DType::BF16 => count(tensor, |b: [u8; 2]| !half::bf16::from_ne_bytes(b).is_finite()),
        DType::I64
        | DType::I32
        | DType::I16
        | DType::I8
        | DType::U8
        | DType::Bool
        | DType::U16
        | DType::U32
        | DType::U64 => 0,
    }
}

fn count<const N: usize>(tensor: &Tensor, is: impl Fn([u8; N]) -> bool) -> usize {
    tensor.bytes().as_chunks::<N>().0.iter().filter(|b| is(**b)).count()
}

#[cfg(test)]
mod tests {
    use regraft_ir::SourceKind;

    use super::*;
    use crate::{FormatId, Recipe};

    fn map() -> RefitMap {
        let source = |name: &str, shape: &[usize]| SourceInfo {
            name: name.into(),
            aliases: vec![],
            kind: SourceKind::Parameter,
            dtype: DType::F32,
            shape: shape.to_vec(),
            role: regraft_ir::Role::Other,
            folded: None,
        };
        let sources = vec![source("fc.weight", &[2, 3]), source("fc.bias", &[2])];
        let recipe = |index: usize, shape: &str| {
            let name = &sources[index].name;
            let program =
                format!("program \"r\" {{\nsource %0 : f32{shape} = \"{name}\" (parameter)\noutput %0 = \"slot\"\n}}");
            let graph = regraft_ir::text::parse(&program).expect("a program");
            let (slot, format, index) = (name.clone(), FormatId::PLAIN, index as u32);
            Recipe { slot, graph, sources: vec![index], uses: vec![index], format, layout_ops: 0 }
        };
        let recipes = vec![recipe(0, "[2, 3]"), recipe(1, "[2]")];
        RefitMap { sources, twins: vec![], recipes }
    }

    fn check(weights: &StateDict, options: &MatchOptions) -> Result<Matched, Vec<Problem>> {
        match_names(&map(), weights, options).check(&map().sources, None, options).map_err(|misfit| misfit.problems)
    }

    #[test]
    fn all_problems_are_listed_at_once() {
        let mut weights = StateDict::new();
        weights.insert("fc.wieght", Tensor::from_slice(&[2, 3], &[0f32; 6]));
        weights.insert("fc.bias", Tensor::from_slice(&[3], &[0f32; 3]));
        let problems = check(&weights, &MatchOptions::default()).expect_err("nothing fits");
        let lines: Vec<String> = problems.iter().map(|p| format!("{}: {}", p.name(), p.what())).collect();
        assert_eq!(
            lines,
            [
                "fc.weight: missing",
                "fc.bias: expected f32[2], found f32[3]",
                "fc.wieght: unknown; did you mean fc.weight?"
            ]
        );
    }

    #[test]
    fn floats_of_another_width_fit() {
        let mut weights = StateDict::new();
        weights.insert("fc.bias", Tensor::from_f64(DType::BF16, &[2], &[1.5, -2.0]));
        let options = MatchOptions { partial: true, ..MatchOptions::default() };
        assert_eq!(check(&weights, &options).expect("fits")[&1].dtype(), DType::BF16);
        weights.insert("fc.bias", Tensor::from_i64(DType::I64, &[2], &[1, 2]));
        assert!(check(&weights, &options).is_err());
    }

    /// A weight that the file has in a form that is not read was not left out, so the old value must not be kept.
    #[test]
    fn what_is_stored_otherwise_is_missed_even_in_part() {
        let bias = || ("fc.bias".to_owned(), Tensor::from_slice(&[2], &[0f32; 2]));
        let packed = |name: &str| (name.to_owned(), Tensor::from_i64(DType::I32, &[1], &[1]));
        for ignore_unknown in [false, true] {
            let options = MatchOptions { partial: true, ignore_unknown, ..MatchOptions::default() };
            let of = |weights: &StateDict| match_names(&map(), weights, &options).check(&map().sources, None, &options);
            let gptq = StateDict::from_iter([bias(), packed("fc.qweight"), packed("fc.qzeros"), packed("fc.scales")]);
            let misfit = of(&gptq).expect_err("quantized");
            assert_eq!(misfit.problems[0].what(), "missing: in its place is fc.qweight (quantized), which is not read");
            assert_eq!(misfit.cause, Cause::Quantized { format: "AWQ or GPTQ".into() });
            let mut narrow = StateDict::from_iter([bias()]);
            narrow.skip("fc.weight", "a tensor of float8_e4m3fn");
            assert!(of(&narrow).expect_err("not read").problems[0].what().contains("float8_e4m3fn"));
            // Neither another layer's, nor what the file does not have at all.
            let mut other = StateDict::from_iter([bias()]);
            other.skip("other.weight", "a tensor of float8_e4m3fn");
            assert!(of(&other).is_ok());
        }
    }

    /// Which source each name becomes under a rule, and the rule, for sources and names of one shape.
    fn named(sources: &[&str], given: &[&str], options: &MatchOptions) -> Result<(String, Vec<String>), Vec<Problem>> {
        let info = |name: &&str| SourceInfo {
            name: (*name).into(),
            aliases: vec![],
            kind: SourceKind::Parameter,
            dtype: DType::F32,
            shape: vec![1],
            role: regraft_ir::Role::Other,
            folded: None,
        };
        let sources: Vec<SourceInfo> = sources.iter().map(info).collect();
        let one = || Tensor::from_slice(&[1], &[0f32]);
        let weights: StateDict = given.iter().map(|name| ((*name).to_owned(), one())).collect();
        let names = match_sources(&sources, &vec![true; sources.len()], &weights, options);
        let rule = names.rule().to_string();
        let matched = names.check(&sources, None, options).map_err(|misfit| misfit.problems)?;
        Ok((rule, matched.keys().map(|index| sources[*index].name.clone()).collect()))
    }

    #[test]
    fn one_rule_is_for_all_names() {
        let full = MatchOptions::default();
        for (given, rule) in [
            (["a.w", "b.w"], "as they are"),
            (["module.a.w", "module.b.w"], "after removing `module.`"),
            (["x.y.a.w", "x.y.b.w"], "after removing `x.y.`"),
            (["a._orig_mod.w", "b.w"], "after removing `_orig_mod.`"),
        ] {
            let found = named(&["a.w", "b.w"], &given, &full).expect(rule);
            assert_eq!(found, (rule.to_owned(), vec!["a.w".to_owned(), "b.w".to_owned()]));
        }
        let found = named(&["model.a.w", "model.b.w"], &["net.a.w", "net.b.w"], &full).expect("a rule");
        assert_eq!(found.0, "after removing `net.`, after adding `model.`");
        // Not one rule, a part in the place of another, and a name too many.
        assert!(named(&["a.w", "b.w"], &["x.a.w", "y.b.w"], &full).is_err());
        assert!(named(&["encoder.a.w"], &["decoder.a.w"], &full).is_err());
        assert!(named(&["a.w", "b.w"], &["x.a.w", "x.b.w", "y.c"], &full).is_err());
    }

    #[test]
    fn two_rules_are_none() {
        let given = ["generator.a.w", "discriminator.a.w"];
        let lenient = MatchOptions { ignore_unknown: true, ..MatchOptions::default() };
        for partial in [false, true] {
            let options = MatchOptions { partial, ..lenient.clone() };
            let problems = named(&["a.w"], &given, &options).expect_err("two rules");
            let rules = ["after removing `discriminator.`", "after removing `generator.`"].map(str::to_owned);
            let Problem::Ambiguous { rules: mut found } = problems[0].clone() else { panic!("{problems:?}") };
            found.sort();
            assert_eq!(found, rules);
        }
        // What is there by its own name is meant.
        let found = named(&["a.w"], &["a.w", "ema.a.w"], &lenient).expect("as they are");
        assert_eq!(found.0, "as they are");
        // A few names of another model are none of this one.
        let partial = MatchOptions { partial: true, ..lenient };
        assert!(named(&["a.w", "b.w"], &["other.a.w", "c"], &partial).is_err());
        assert!(named(&["a.w", "b.w"], &["module.a.w", "c"], &partial).is_ok());
    }
}
