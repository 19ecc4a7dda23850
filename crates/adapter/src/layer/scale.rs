//! Scales and norms: what a file and a configuration say about factors.

use regraft_tensor::{DType, Tensor};

use super::{Layer, Outcome, Weight, factors::Product, shape, unsupported};
use crate::{AdapterProblem, Magnitude, MagnitudeAxis, Update, config::Scaling, dialect::Part, matrix};

impl Layer<'_, '_> {
    /// The file's alpha over the rank, or what the configuration says.
    pub(crate) fn scale(&self, rank: usize) -> Outcome<f64> {
        let Some((key, alpha)) = self.given(Part::Alpha) else { return self.said_scale(rank) };
        let values = if alpha.numel() == 1 { alpha.to_f64_vec() } else { Vec::new() };
        match values.as_slice() {
            [alpha] if alpha.is_finite() => {
                let scaling = Scaling { alpha: Some(*alpha), fixed: None, ..self.scaling };
                Ok(scaling.factor(rank).unwrap_or(1.0))
            }
            _ => Err(shape(key, "one finite number", alpha)),
        }
    }

    fn said_scale(&self, rank: usize) -> Outcome<f64> {
        let key = || self.parts.iter().find(|(part, _)| part.is_scaled()).map_or("", |(_, (key, _))| *key).to_owned();
        match self.scaling.factor(rank) {
            Some(scale) => Ok(scale),
            None if self.needs_scale => Err(AdapterProblem::NoScale { key: key() }),
            None => Ok(1.0),
        }
    }

    /// Factors of another rank than the configuration says are not those that it is about.
    pub(crate) fn check_rank(&self, key: &str, rank: usize) -> Outcome<()> {
        let said = self.scaling.rank.filter(|_| self.config.r.is_some() && !self.parts.contains_key(&Part::Alpha));
        match said.filter(|said| *said != rank) {
            Some(said) => {
                let why = format!("has rank {rank}, and the configuration says {said}: it is that of another adapter");
                Err(unsupported(key, &why))
            }
            None => Ok(()),
        }
    }

    /// AdaLoRA: singular values between the factors. PEFT divides by the rank, and a little.
    pub(super) fn with_singular_values(&self, (key, values): (&str, &Tensor), product: &mut Product) -> Outcome<f64> {
        let values = matrix::expect(key, matrix::flat(key, values, product.rank)?, [product.rank, 1])?;
        product.factors = matrix::scaled_inside(&product.factors, &values);
        let alpha = self.scaling.alpha.ok_or_else(|| AdapterProblem::NoScale { key: key.into() })?;
        let rank = product.rank as f64;
        Ok(if alpha > 0.0 { alpha } else { rank } / (rank + 1e-5))
    }

    /// DoRA's norms; `outputs` is what PEFT's are of.
    pub(super) fn magnitude(&self, weight: Weight<'_>, outputs: MagnitudeAxis) -> Outcome<Option<Magnitude>> {
        if let Some((key, values)) = self.given(Part::Magnitude) {
            return Ok(Some(Magnitude { axis: outputs, values: norms(key, values, weight, outputs)? }));
        }
        let Some((key, values)) = self.given(Part::DoraScale) else { return Ok(None) };
        // `[out, 1, ...]` are norms of outputs, `[1, in, ...]` of inputs: one per column only where there is no kernel.
        let per_row = values.shape().first() == Some(&weight.rows) && values.numel() == weight.rows;
        let axis = if per_row { MagnitudeAxis::Rows } else { MagnitudeAxis::Columns };
        if self.norms_of_inputs(weight)?.is_some() {
            return Ok(None);
        }
        Ok(Some(Magnitude { axis, values: norms(key, values, weight, axis)? }))
    }

    /// LyCORIS's norms of the inputs of a convolution with a kernel, `[1, in, 1, ...]`, and columns of each.
    pub(super) fn norms_of_inputs(&self, weight: Weight<'_>) -> Outcome<Option<(Tensor, usize)>> {
        let Some((key, values)) = self.given(Part::DoraScale) else { return Ok(None) };
        let [_, inputs, kernel @ ..] = weight.info.shape.as_slice() else { return Ok(None) };
        let taps = kernel.iter().product::<usize>();
        let is_theirs = values.shape().len() == weight.info.shape.len() && values.shape()[..2] == [1, *inputs];
        match taps > 1 && is_theirs && values.numel() == *inputs {
            true => Ok(Some((matrix::flat(key, values, 1)?, taps))),
            false => Ok(None),
        }
    }

    /// The update with norms that are of neither rows nor columns, where the file has those.
    pub(super) fn decomposed(&self, update: Update, weight: Weight<'_>) -> Outcome<Update> {
        let Some((norms, taps)) = self.norms_of_inputs(weight)? else { return Ok(update) };
        let (delta, _) = update.delta(weight.rows, weight.cols);
        let delta = Tensor::from_f64(DType::F32, &[weight.rows, weight.cols], &delta);
        Ok(Update::Decomposed { delta, taps, norms })
    }
}

fn norms(key: &str, values: &Tensor, weight: Weight<'_>, axis: MagnitudeAxis) -> Outcome<Tensor> {
    let wanted = weight.lines(axis);
    let norms = matrix::flat(key, values, values.numel().max(1))?;
    match values.numel() == wanted {
        true => Ok(norms),
        false => Err(shape(key, &format!("{wanted} norms"), values)),
    }
}
