//! Names of weights, matched to those of a program that may be spread over several engines and PyTorch.

use pyo3::{prelude::*, types::PyString};
use regraft::{
    Constants, DType, MatchOptions, Rename, SourceInfo,
    ir::{Role, SourceKind},
};

use crate::{
    error::{Class, IntoPyErr},
    weights::state_dict_of,
};

/// What may be changed that no state dict holds: nothing, `'all'`, or names.
pub(crate) fn constants_of(constants: Option<&Bound<'_, PyAny>>) -> PyResult<Constants> {
    Ok(match constants {
        None => Constants::Keep,
        Some(all) if all.is_instance_of::<PyString>() => match all.extract::<String>()?.as_str() {
            "all" => Constants::ChangeAll,
            other => return Err(Class::Weights.error(format!("constants: expected 'all' or names, found '{other}'"))),
        },
        Some(names) => Constants::Change(names.try_iter()?.map(|name| name?.extract()).collect::<PyResult<_>>()?),
    })
}

/// Matches the names of `weights` to sources `(name, aliases, dtype, shape, in_state_dict, used)`: as they are, or by one rule for
/// all of them. Returns `(name, name of the source)` of each that is one, the rule in words, and `(name, why)` of each that
/// changes nothing. Raises everything that is wrong with the names.
#[pyfunction]
#[pyo3(signature = (sources, weights, *, partial=false, ignore_unknown=false, constants=None, rename=Vec::new()))]
pub(crate) fn match_names(
    sources: Vec<(String, Vec<String>, String, Vec<usize>, bool, bool)>,
    weights: &Bound<'_, PyAny>,
    partial: bool,
    ignore_unknown: bool,
    constants: Option<&Bound<'_, PyAny>>,
    rename: Vec<(String, String)>,
) -> PyResult<(Vec<(String, String)>, String, Vec<(String, &'static str)>)> {
    let weights = state_dict_of(weights)?;
    let options = MatchOptions::new()
        .partial(partial)
        .ignore_unknown(ignore_unknown)
        .constants(constants_of(constants)?)
        .renames(rename.iter().map(|(from, to)| Rename::new(from, to)));
    let used: Vec<bool> = sources.iter().map(|source| source.5).collect();
    let info =
        |(name, aliases, dtype, shape, in_state_dict, _): (String, Vec<String>, String, Vec<usize>, bool, bool)| {
            let dtype = DType::ALL.into_iter().find(|known| known.name() == dtype).unwrap_or(DType::F32);
            let kind = if in_state_dict { SourceKind::Buffer } else { SourceKind::Constant };
            SourceInfo { name, aliases, kind, dtype, shape, role: Role::default(), folded: None }
        };
    let sources: Vec<SourceInfo> = sources.into_iter().map(info).collect();
    let names = regraft::match_sources(&sources, &used, &weights, &options);
    let rule = if names.rule().is_identity() { String::new() } else { names.rule().to_string() };
    let ignored = names.ignored().iter().map(|ignored| (ignored.name().to_owned(), ignored.kind())).collect();
    let by_name: Vec<(String, usize)> = names.by_name().map(|(name, index)| (name.to_owned(), index)).collect();
    names.check(&sources, None, &options).map_err(|misfit| {
        regraft::Error::from(regraft::WeightsError::from(regraft::WeightsErrorKind::Fit(misfit))).into_py()
    })?;
    // Each name of a tied weight keeps a name of its own.
    let mut taken = vec![0; sources.len()];
    let named = by_name.into_iter().map(|(name, index)| {
        let own = sources[index].names().nth(taken[index]).unwrap_or(&sources[index].name).to_owned();
        taken[index] += 1;
        (name, own)
    });
    Ok((named.collect(), rule, ignored))
}
