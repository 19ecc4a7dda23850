//! Constants of the program, where the file with the weights is a program itself. Constants that only move through recipes
//! are taken like weights; a value that was compiled in must be the same.

use std::collections::HashMap;

use regraft_tensor::{DType, Tensor};

use crate::{Digest, Ignored, MatchOptions, Names, Problem, SourceInfo, StateDict, Unknown, matching::mismatch};

/// Up to this many values are written out; of more there is a digest.
const WRITTEN: usize = 8;

/// The value of a tensor as text, which differs for tensors of one type that differ.
pub fn folded_value(tensor: &Tensor) -> String {
    if tensor.numel() > WRITTEN {
        return format!("{} values with digest {}", tensor.numel(), Digest::of(tensor));
    }
    let values: Vec<String> = match tensor.dtype() {
        DType::F64 => tensor.to_f64_vec().iter().map(f64::to_string).collect(),
        dtype if dtype.is_float() => tensor.to_f64_vec().iter().map(|v| (*v as f32).to_string()).collect(),
        _ => tensor.to_i64_vec().iter().map(i64::to_string).collect(),
    };
    match values.as_slice() {
        [one] if tensor.shape().is_empty() => one.clone(),
        _ => format!("[{}]", values.join(", ")),
    }
}

/// Whether a source that no state dict holds is taken from these weights.
pub(crate) fn may_change(source: &SourceInfo, weights: &StateDict, options: &MatchOptions) -> bool {
    let is_there = || source.names().any(|name| weights.get(name).is_some());
    options.constants.allow(source.names()) || (weights.constants().is_some() && is_there())
}

/// Whether a source was compiled in, and these weights must have it as it was.
pub(crate) fn is_compared(source: &SourceInfo, weights: &StateDict, options: &MatchOptions) -> bool {
    source.folded.is_some() && may_change(source, weights, options)
}

impl<'a> Names<'a> {
    /// Compares a tensor of the file with what was compiled in.
    pub(crate) fn take_folded(&mut self, sources: &[SourceInfo], (name, tensor): (&'a str, &'a Tensor), index: usize) {
        self.by_name.push((name, index));
        self.compare(&sources[index], tensor);
    }

    fn compare(&mut self, source: &SourceInfo, tensor: &Tensor) {
        let Some(expected) = &source.folded else { return };
        if let Some(problem) = mismatch(source, tensor) {
            return self.problems.push(problem);
        }
        let found = folded_value(&tensor.cast(source.dtype));
        if found != *expected {
            let (name, expected) = (source.name.clone(), expected.clone());
            self.problems.push(Problem::Folded { name, expected, found });
        }
    }

    /// Takes over what stands in the nodes of the program that the weights are of. It is known by its names as they are: no
    /// wrapper renames it.
    pub(crate) fn take_constants<'s>(
        &mut self,
        sources: &'s [SourceInfo],
        used: &[bool],
        weights: &'a StateDict,
        options: &MatchOptions,
    ) {
        let Some(constants) = weights.constants() else { return };
        let of_program = |(_, source): &(usize, &SourceInfo)| !source.kind.in_state_dict();
        let names = |(index, source): (usize, &'s SourceInfo)| source.names().map(move |name| (name, index));
        let by_name: HashMap<&str, usize> = sources.iter().enumerate().filter(of_program).flat_map(names).collect();
        for (name, tensor) in constants {
            let Some(&index) = by_name.get(name.as_str()) else {
                self.take_stray(sources, name, options);
                continue;
            };
            if sources[index].folded.is_some() {
                self.compare(&sources[index], tensor);
            } else if used[index] {
                self.given[index] = Some((name.as_str(), tensor));
            }
        }
    }

    /// Takes over a constant that the engine does not have. One of a program of another format has none of the file's.
    fn take_stray(&mut self, sources: &[SourceInfo], name: &str, options: &MatchOptions) {
        let name = name.to_owned();
        match sources.iter().any(|source| source.folded.is_some()) {
            true if options.ignore_unknown => self.ignored.push(Ignored::Unknown { name }),
            true => self.unknown.push(Problem::Unknown { name, suggestion: None, why: Unknown::NoSource }),
            false => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use regraft_ir::{Role, SourceKind};

    use super::*;
    use crate::{Cause, Misfit, match_sources};

    fn source(name: &str, shape: &[usize], folded: Option<&str>) -> SourceInfo {
        let kind = if name == "w" { SourceKind::Parameter } else { SourceKind::Constant };
        let folded = folded.map(str::to_owned);
        SourceInfo {
            name: name.into(),
            aliases: vec![],
            kind,
            dtype: DType::F32,
            shape: shape.to_vec(),
            role: Role::Other,
            folded,
        }
    }

    /// A weight, a number and a shape that were compiled in, a table that a slot is made of, and one that nothing reads.
    fn sources() -> (Vec<SourceInfo>, Vec<bool>) {
        let all = vec![
            source("w", &[1], None),
            source("scale", &[], Some("0.5")),
            source("axes", &[2], Some("[0, 1]")),
            source("table", &[2], None),
            source("unread", &[1], None),
        ];
        (all, vec![true, false, false, true, false])
    }

    /// Weights of a program whose initializers are `w` and `axes`, with these tensors in nodes.
    fn weights(axes: [f32; 2], constants: &[(&str, Tensor)]) -> StateDict {
        let mut weights = StateDict::new();
        weights.insert("w", Tensor::from_slice(&[1], &[1f32]));
        weights.insert("axes", Tensor::from_slice(&[2], &axes));
        weights.set_constants(constants.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect());
        weights
    }

    fn scale(value: f32) -> (&'static str, Tensor) {
        ("scale", Tensor::from_slice(&[], &[value]))
    }

    fn table() -> (&'static str, Tensor) {
        ("table", Tensor::from_slice(&[2], &[3f32, 4.0]))
    }

    fn check(weights: &StateDict, options: &MatchOptions) -> Result<Vec<usize>, Misfit> {
        let (sources, used) = sources();
        let names = match_sources(&sources, &used, weights, options);
        names.check(&sources, None, options).map(|matched| matched.into_keys().collect())
    }

    #[test]
    fn what_can_change_is_taken_and_what_was_compiled_in_is_compared() {
        let full = MatchOptions::default();
        let unread = ("unread", Tensor::from_slice(&[3], &[0f32; 3]));
        let same = weights([0.0, 1.0], &[scale(0.5), table(), unread]);
        assert_eq!(check(&same, &full).expect("a program"), [0, 3]);
        let other = weights([0.0, 2.0], &[scale(0.25), table()]);
        let misfit = check(&other, &full).expect_err("another program");
        let what: Vec<_> = misfit.problems.iter().map(|p| (p.name(), p.what())).collect();
        assert!(what[0].1.contains("expected [0, 1], found [0, 2]") && what[0].0 == "axes", "{what:?}");
        assert!(what[1].1.contains("expected 0.5, found 0.25") && what[1].0 == "scale", "{what:?}");
        assert_eq!((what.len(), misfit.cause), (2, Cause::OtherProgram));
        let wider = weights([0.0, 1.0], &[("scale", Tensor::from_slice(&[2], &[0.5f32; 2])), table()]);
        assert!(matches!(check(&wider, &full).expect_err("a shape").problems[..], [Problem::Mismatch { .. }]));
    }

    #[test]
    fn names_of_constants_must_be_those_of_the_program() {
        let full = MatchOptions::default();
        let renamed = weights([0.0, 1.0], &[("scale_2", scale(0.5).1), table()]);
        let problems = check(&renamed, &full).expect_err("another program").problems;
        assert!(matches!(&problems[..], [Problem::Unknown { name, .. }] if name == "scale_2"), "{problems:?}");
        assert_eq!(check(&renamed, &MatchOptions::new().ignore_unknown(true)).expect("parts"), [0, 3]);
        // What a model takes as an input, the program may have been compiled with.
        let fewer = weights([0.0, 1.0], &[table()]);
        assert_eq!(check(&fewer, &full).expect("weights"), [0, 3]);
    }

    #[test]
    fn state_dicts_bring_no_constants() {
        let mut dict = StateDict::new();
        dict.insert("w", Tensor::from_slice(&[1], &[1f32]));
        dict.insert("scale", scale(0.25).1);
        dict.insert("table", table().1);
        assert_eq!(check(&dict, &MatchOptions::default()).expect("weights"), [0]);
        // Unless they are told to; what was compiled in cannot change.
        let one = MatchOptions::new().constants(crate::Constants::Change(["table".to_owned()].into()));
        assert_eq!(check(&dict, &one).expect("weights"), [0, 3]);
        let all = MatchOptions::new().constants(crate::Constants::ChangeAll);
        assert!(matches!(check(&dict, &all).expect_err("compiled in").problems[..], [Problem::Folded { .. }]));
        // An engine of another format knows nothing of the nodes of a file.
        let (mut sources, used) = sources();
        sources.iter_mut().for_each(|source| source.folded = None);
        let program = weights([0.0, 1.0], &[("Constant_3", scale(0.25).1)]);
        let full = MatchOptions::default();
        assert!(match_sources(&sources, &used, &program, &full).check(&sources, None, &full).is_ok());
    }

    #[test]
    fn values_are_told_apart() {
        let of = |values: &[f32]| folded_value(&Tensor::from_slice(&[values.len()], values));
        assert_eq!(of(&[0.1, -0.0]), "[0.1, -0]");
        assert_ne!(of(&[0.0]), of(&[-0.0]));
        assert_eq!(folded_value(&Tensor::from_slice(&[], &[7i64])), "7");
        assert_ne!(of(&[0.0; 9]), of(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1e-30]));
    }
}
