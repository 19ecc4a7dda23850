use std::collections::BTreeMap;

use rayon::prelude::*;
use regraft_tensor::{DType, Tensor};

use crate::{Digest, Problem, RefitMap, SourceInfo, StateDict, on_shared_threads};

/// What a refit asks of the weights it is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MatchOptions {
    /// Take the keys that are there; otherwise every source that a state dict holds must be given.
    pub partial: bool,
    /// Refuse infinite values and NaN.
    pub reject_non_finite: bool,
}

/// Given tensors by source index, as they were given: floats may be of another width than the source.
pub type Matched = BTreeMap<usize, Tensor>;

/// Given tensors whose names were matched to sources, not checked yet.
#[derive(Debug)]
pub struct Names<'a> {
    given: BTreeMap<usize, (&'a str, &'a Tensor)>,
    missing: Vec<Problem>,
    unknown: Vec<Problem>,
}

/// Matches the names of `weights` to the sources of `map`. What does not match is reported by [`Names::check`], together
/// with all other problems.
pub fn match_names<'a>(map: &'a RefitMap, weights: &'a StateDict, options: MatchOptions) -> Names<'a> {
    let mut missing = Vec::new();
    // A state dict may leave out what the program never reads, such as `num_batches_tracked`.
    let used: Vec<bool> = map.slots_by_source().iter().map(|slots| !slots.is_empty()).collect();
    let mut given: BTreeMap<usize, (&str, &Tensor)> = BTreeMap::new();
    for (index, source) in map.sources.iter().enumerate() {
        let mut names = source.names().filter_map(|n| Some((n, weights.get(n)?)));
        match names.next() {
            Some((name, tensor)) => {
                if let Some((alias, _)) = names.find(|(_, other)| !other.bit_equal(tensor)) {
                    missing.push(Problem::TiedDiffer { name: name.into(), alias: alias.into() });
                }
                given.insert(index, (name, tensor));
            }
            None if source.kind.in_state_dict() && !options.partial && used[index] => {
                missing.push(Problem::Missing { name: source.name.clone() });
            }
            None => {}
        }
    }
    Names { given, missing, unknown: unknown_names(map, weights) }
}

impl Names<'_> {
    /// Checks shapes, dtypes and values, and contents where a digest is given. Floats of another width fit: they are
    /// converted on the way to the slots.
    ///
    /// # Errors
    /// All problems at once: missing names, then what does not fit, each in the engine's order, then unknown names, then
    /// values.
    pub fn check(
        self,
        map: &RefitMap,
        digests: Option<&[Option<Digest>]>,
        options: MatchOptions,
    ) -> Result<Matched, Vec<Problem>> {
        let Names { mut given, missing: mut problems, unknown } = self;
        problems.extend(given.iter().filter_map(|(&i, (_, tensor))| mismatch(&map.sources[i], tensor)));
        problems.extend(unknown);
        given.retain(|&i, (_, tensor)| mismatch(&map.sources[i], tensor).is_none());
        problems.extend(check_values(map, &given, digests, options));
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(given.into_iter().map(|(i, (_, tensor))| (i, tensor.clone())).collect())
    }
}

fn mismatch(source: &SourceInfo, tensor: &Tensor) -> Option<Problem> {
    let fits = source.shape == tensor.shape() && source.dtype.same_class(tensor.dtype());
    (!fits).then(|| Problem::Mismatch {
        name: source.name.clone(),
        expected: source.type_text(),
        found: format!("{}{:?}", tensor.dtype(), tensor.shape()),
    })
}

fn unknown_names(map: &RefitMap, weights: &StateDict) -> Vec<Problem> {
    let known = map.by_name();
    let unknown = weights.iter().map(|(name, _)| name).filter(|n| !known.contains_key(n));
    unknown
        .map(|name| Problem::Unknown { name: name.into(), suggestion: suggestion(name, known.keys().copied()) })
        .collect()
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

/// Insertions, deletions, substitutions and swaps of neighbours that make `b` of `a`.
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
    map: &RefitMap,
    given: &BTreeMap<usize, (&str, &Tensor)>,
    digests: Option<&[Option<Digest>]>,
    options: MatchOptions,
) -> Vec<Problem> {
    let check = |(&index, &(name, tensor)): (&usize, &(&str, &Tensor))| {
        let count = if options.reject_non_finite { non_finite(tensor) } else { 0 };
        if count > 0 {
            return Some(Problem::NonFinite { name: name.into(), count });
        }
        let expected = (*digests?.get(index)?)?;
        let found = Digest::of(&tensor.cast(map.sources[index].dtype));
        (found != expected).then(|| Problem::NotIdentical { name: name.into() })
    };
    on_shared_threads(|| given.par_iter().filter_map(check).collect())
}

fn non_finite(tensor: &Tensor) -> usize {
    match tensor.dtype() {
        DType::F32 => count(tensor, |b: [u8; 4]| !f32::from_ne_bytes(b).is_finite()),
        DType::F64 => count(tensor, |b: [u8; 8]| !f64::from_ne_bytes(b).is_finite()),
        DType::F16 => count(tensor, |b: [u8; 2]| !half::f16::from_ne_bytes(b).is_finite()),
        DType::BF16 => count(tensor, |b: [u8; 2]| !half::bf16::from_ne_bytes(b).is_finite()),
        DType::I64 | DType::I32 | DType::I16 | DType::I8 | DType::U8 | DType::Bool => 0,
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
        };
        let sources = vec![source("fc.weight", &[2, 3]), source("fc.bias", &[2])];
        let program = "program \"r\" {
            source %0 : f32[2, 3] = \"fc.weight\" (parameter)
            output %0 = \"slot\"
        }";
        let graph = regraft_ir::text::parse(program).expect("a program");
        let (slot, format) = ("fc.weight".to_owned(), FormatId::PLAIN);
        let recipe = Recipe { slot, graph, sources: vec![0], uses: vec![0], format, layout_ops: 0 };
        RefitMap { sources, twins: vec![], recipes: vec![recipe] }
    }

    fn check(weights: &StateDict, options: MatchOptions) -> Result<Matched, Vec<Problem>> {
        match_names(&map(), weights, options).check(&map(), None, options)
    }

    #[test]
    fn all_problems_are_listed_at_once() {
        let mut weights = StateDict::new();
        weights.insert("fc.wieght", Tensor::from_slice(&[2, 3], &[0f32; 6]));
        weights.insert("fc.bias", Tensor::from_slice(&[3], &[0f32; 3]));
        let problems = check(&weights, MatchOptions::default()).expect_err("nothing fits");
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
        assert_eq!(check(&weights, options).expect("fits")[&1].dtype(), DType::BF16);
        weights.insert("fc.bias", Tensor::from_i64(DType::I64, &[2], &[1, 2]));
        assert!(check(&weights, options).is_err());
    }
}
