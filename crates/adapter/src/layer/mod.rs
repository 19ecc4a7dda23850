//! From the tensors of one module to the updates of its sources.

mod factors;
mod scale;
mod whole;

use std::collections::BTreeMap;

use regraft_ir::Role;
use regraft_tensor::Tensor;
use regraft_weights::{RefitMap, SourceInfo};

use crate::{
    AdapterConfig, AdapterLayer, AdapterProblem, MagnitudeAxis, Update, config::Scaling, dialect::Part, oft::ROTATION,
    resolve::Target,
};

/// The tensors of one module by what they are, each with its key.
pub(crate) type Parts<'a> = BTreeMap<Part, (&'a str, &'a Tensor)>;

/// The tensors of one module's update.
pub(crate) struct Layer<'a, 'l> {
    /// The module's name in the model that was trained.
    pub(crate) module: &'l str,
    pub(crate) parts: Parts<'a>,
    pub(crate) scaling: Scaling,
    /// A scale must be said: the tool that wrote the tensors keeps it elsewhere.
    pub(crate) needs_scale: bool,
    pub(crate) config: &'l AdapterConfig,
    /// It is a parameter that PEFT adapted without a module's help.
    pub(crate) is_parameter: bool,
}

pub(crate) type Outcome<T> = Result<T, AdapterProblem>;

/// A weight as updates see it.
#[derive(Clone, Copy)]
pub(crate) struct Weight<'a> {
    pub(crate) info: &'a SourceInfo,
    /// What it is to the module that is adapted.
    pub(crate) role: Role,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Weight<'_> {
    /// How many rows or columns it has.
    pub(crate) fn lines(&self, axis: MagnitudeAxis) -> usize {
        match axis {
            MagnitudeAxis::Rows => self.rows,
            MagnitudeAxis::Columns => self.cols,
        }
    }
}

impl<'a> Layer<'a, '_> {
    /// The updates of the module's weight and bias.
    pub(crate) fn updates(&self, target: Target, map: &RefitMap) -> Outcome<Vec<AdapterLayer>> {
        let mut layers = Vec::new();
        let weight_part = self.parts.keys().find(|part| !NO_WEIGHT.contains(part));
        if let Some(part) = weight_part {
            let key = self.parts[part].0;
            let source = target.weight.ok_or_else(|| unsupported(key, "the module has no weight of its own"))?;
            let info = info_of(map, source);
            if !info.dtype.is_float() || info.shape.is_empty() {
                return Err(unsupported(key, &format!("the weight is {}, which takes no adapters", info.type_text())));
            }
            let (rows, cols) = (info.shape[0], info.shape[1..].iter().product());
            if rows == 0 || cols == 0 {
                return Err(unsupported(key, "the weight is empty"));
            }
            let weight = Weight { info, role: map.role(source), rows, cols };
            if self.parts.contains_key(&Part::Ia3) {
                return self.only(IA3).and_then(|()| self.scaled(weight, (source, target.bias), map));
            }
            layers.push(AdapterLayer { source, update: self.weight(weight)? });
        }
        layers.extend(self.bias(target, map)?);
        layers.extend(self.whole(target, map)?);
        match self.parts.values().next() {
            // An alpha alone scales nothing.
            Some((key, _)) if layers.is_empty() => Err(incomplete(key, "factor")),
            _ => Ok(layers),
        }
    }

    fn weight(&self, weight: Weight<'_>) -> Outcome<Update> {
        let has = |parts: &[Part]| parts.iter().any(|part| self.parts.contains_key(part));
        if self.is_parameter {
            return self.only(LORA).and_then(|()| self.of_parameter(weight));
        }
        if has(ROTATION) {
            return self.only(ROTATION).and_then(|()| self.rotated(weight));
        }
        if has(FULL) {
            return self.only(FULL).and_then(|()| self.full(weight));
        }
        if (has(LOHA) || has(LOKR)) && weight.role == Role::LinearInOut {
            let key = self.first_key();
            return Err(unsupported(key, "the weight is stored as [in, out], which LoHa and LoKr are not defined for"));
        }
        if has(LOHA) {
            return self
                .only(LOHA)
                .and_then(|()| self.hadamard(weight))
                .and_then(|update| self.decomposed(update, weight));
        }
        if has(LOKR) {
            return self
                .only(LOKR)
                .and_then(|()| self.kronecker(weight))
                .and_then(|update| self.decomposed(update, weight));
        }
        let mut product = match has(EMBEDDING) {
            true => self.only(EMBEDDING).and_then(|()| self.embedding(weight))?,
            false => self.low_rank(weight)?,
        };
        let scale = match self.given(Part::Singular) {
            Some(given) => self.with_singular_values(given, &mut product)?,
            None => {
                self.check_rank(self.first_key(), product.rank)?;
                self.scale(product.rank)?
            }
        };
        let magnitude = self.magnitude(weight, product.outputs)?;
        if self.config.use_dora && magnitude.is_none() && self.norms_of_inputs(weight)?.is_none() {
            let key = self.first_key();
            return Err(incomplete(key, Part::Magnitude.name()));
        }
        self.decomposed(Update::LowRank { factors: product.factors, scale, magnitude }, weight)
    }

    /// Checks that there are no parts of other kinds, which would be left out.
    fn only(&self, kind: &[Part]) -> Outcome<()> {
        let others = [FULL, LOHA, LOKR, EMBEDDING, LORA, IA3, ROTATION].into_iter().filter(|other| *other != kind);
        match others.flatten().find_map(|part| self.given(*part)) {
            Some((key, _)) => Err(unsupported(key, "the file has an update of another kind for the same module")),
            None => Ok(()),
        }
    }

    pub(crate) fn given(&self, part: Part) -> Option<(&'a str, &'a Tensor)> {
        self.parts.get(&part).copied()
    }

    /// Some key of the module, for messages.
    pub(crate) fn first_key(&self) -> &'a str {
        self.parts.values().next().map_or("", |(key, _)| *key)
    }

    /// A part that must be there because `other` is.
    pub(crate) fn part(&self, part: Part, other: Part) -> Outcome<(&'a str, &'a Tensor)> {
        self.given(part).ok_or_else(|| {
            let there = self.given(other).or_else(|| self.parts.values().next().copied());
            incomplete(there.map_or("", |(key, _)| key), part.name())
        })
    }
}

/// Parts that are not an update of the weight that is added to it.
const NO_WEIGHT: &[Part] = &[
    Part::DiffBias,
    Part::UpBias,
    Part::Alpha,
    Part::Weight,
    Part::Bias,
    Part::BaseWeight,
    Part::Tokens,
    Part::OnInput,
];
const FULL: &[Part] = &[Part::Diff];
const IA3: &[Part] = &[Part::Ia3];
const LORA: &[Part] = &[Part::Down, Part::Up, Part::Mid, Part::Singular];
const EMBEDDING: &[Part] = &[Part::EmbeddingDown, Part::EmbeddingUp];
const LOHA: &[Part] = &[Part::HadaW1A, Part::HadaW1B, Part::HadaW2A, Part::HadaW2B, Part::HadaT1, Part::HadaT2];
const LOKR: &[Part] =
    &[Part::LokrW1, Part::LokrW1A, Part::LokrW1B, Part::LokrW2, Part::LokrW2A, Part::LokrW2B, Part::LokrT2];

/// The source that a use is of.
fn info_of(map: &RefitMap, used_as: usize) -> &SourceInfo {
    &map.sources[map.source_of(used_as).expect("targets are uses of the map")]
}

pub(crate) fn incomplete(key: &str, missing: &str) -> AdapterProblem {
    AdapterProblem::Incomplete { key: key.into(), missing: missing.into() }
}

pub(crate) fn unsupported(key: &str, why: &str) -> AdapterProblem {
    AdapterProblem::Unsupported { key: key.into(), why: why.into() }
}

pub(crate) fn shape(key: &str, expected: &str, found: &Tensor) -> AdapterProblem {
    let found = format!("{}{:?}", found.dtype(), found.shape());
    AdapterProblem::Shape { key: key.into(), expected: expected.into(), found }
}
