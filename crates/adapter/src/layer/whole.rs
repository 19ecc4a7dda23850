//! Updates without factors of a product: IA3, tensors and rows trained as a whole, full deltas, biases.

use regraft_ir::Role;
use regraft_tensor::Tensor;
use regraft_weights::{RefitMap, SourceInfo};

use super::{Layer, Outcome, Weight, incomplete, info_of, shape, unsupported};
use crate::{AdapterLayer, AdapterProblem, MagnitudeAxis, Update, dialect::Part, matrix, resolve::Target};

impl Layer<'_, '_> {
    /// IA3: PEFT's factors are the weight's axis, `[out, 1]` or `[1, in]`; LyCORIS's differ from 1 by what the file has.
    pub(super) fn scaled(
        &self,
        weight: Weight<'_>,
        (source, bias): (usize, Option<usize>),
        map: &RefitMap,
    ) -> Outcome<Vec<AdapterLayer>> {
        let (key, given) = self.part(Part::Ia3, Part::OnInput)?;
        let is_table = matches!(weight.role, Role::Table | Role::ConvTranspose);
        if is_table || weight.info.shape.len() < 2 {
            return Err(unsupported(key, "IA3 of an embedding or a transposed convolution is not supported"));
        }
        let is_crossed = weight.role == Role::LinearInOut;
        let (outputs, inputs) = match weight.info.shape.as_slice() {
            [inputs, outputs] if is_crossed => (*outputs, *inputs),
            [outputs, inputs, ..] => (*outputs, *inputs),
            _ => (0, 0),
        };
        let factors = matrix::flat(key, given, 1)?;
        let from_lycoris = key.ends_with(".weight");
        let factors = if from_lycoris { matrix::one_more(&factors) } else { factors };
        let on_inputs = match (self.given(Part::OnInput), given.shape()) {
            (Some((_, flag)), _) => flag.to_f64_vec().first().is_some_and(|flag| *flag != 0.0),
            (None, [1, n]) if weight.info.shape.len() == 2 && *n > 1 => true,
            (None, [n, 1]) if weight.info.shape.len() == 2 && *n > 1 => false,
            (None, _) if from_lycoris => return Err(incomplete(key, Part::OnInput.name())),
            (None, _) if self.config.peft_type.is_none() => {
                let why = "whether inputs or outputs are scaled, its configuration says: give adapter_config.json";
                return Err(unsupported(key, why));
            }
            (None, _) => self.config.is_feedforward(self.module),
        };
        let wanted = if on_inputs { inputs } else { outputs };
        if factors.numel() != wanted {
            return Err(shape(key, &format!("{wanted} factors"), given));
        }
        let taps = weight.cols / inputs.max(1);
        let (axis, weights) = match (on_inputs, is_crossed) {
            (true, false) => (MagnitudeAxis::Columns, matrix::repeated(&factors, taps)),
            (false, true) => (MagnitudeAxis::Columns, factors.clone()),
            _ => (MagnitudeAxis::Rows, factors.clone()),
        };
        let mut layers = vec![AdapterLayer { source, update: Update::Scaled { axis, factors: weights } }];
        // LyCORIS leaves the bias as it is.
        let is_scaled = |source: &usize| !on_inputs && !from_lycoris && info_of(map, *source).dtype.is_float();
        if let Some(source) = bias.filter(is_scaled) {
            layers.push(AdapterLayer { source, update: Update::Scaled { axis: MagnitudeAxis::Rows, factors } });
        }
        Ok(layers)
    }

    /// Tensors that were trained as a whole, and rows of them.
    pub(super) fn whole(&self, target: Target, map: &RefitMap) -> Outcome<Vec<AdapterLayer>> {
        let mut layers = Vec::new();
        for (part, place) in
            [(Part::BaseWeight, target.weight), (Part::Weight, target.weight), (Part::Bias, target.bias)]
        {
            let Some((key, values)) = self.given(part) else { continue };
            let source = place.ok_or_else(|| unsupported(key, "the engine's module has none"))?;
            let info = info_of(map, source);
            check_whole(key, values, info)?;
            let (rows, cols) = (info.shape.first().copied().unwrap_or(1), info.shape.iter().skip(1).product::<usize>());
            let values = matrix::as_it_is(values, [rows, cols]);
            layers.push(AdapterLayer { source, update: Update::Replace { values } });
        }
        if let Some((key, values)) = self.given(Part::Tokens) {
            let source = target.weight.ok_or_else(|| unsupported(key, "the engine's module has no weight"))?;
            let info = info_of(map, source);
            let rows = self.config.token_indices(self.module);
            let why = "trained tokens, and the configuration does not say which: give it (trainable_token_indices)";
            let rows = rows.ok_or_else(|| unsupported(key, why))?;
            let ([len, dim], [_, cols]) = (values.shape(), info.shape.as_slice()) else {
                return Err(shape(key, "rows of an embedding", values));
            };
            let is_inside = rows.iter().all(|row| *row < info.shape[0]);
            if *len != rows.len() || dim != cols || !is_inside || !values.dtype().is_float() || !info.dtype.is_float() {
                let expected = format!("{} rows of {}", rows.len(), info.type_text());
                return Err(shape(key, &expected, values));
            }
            let values = matrix::as_it_is(values, [rows.len(), *cols]);
            // Tokens that are trained are trained wherever the table is tied to.
            let uses = map.source_of(source).map(|of| map.uses(of).collect::<Vec<_>>()).unwrap_or_default();
            layers.extend(uses.into_iter().map(|source| AdapterLayer {
                source,
                update: Update::Rows { rows: rows.clone(), values: values.clone() },
            }));
        }
        Ok(layers)
    }

    pub(super) fn full(&self, weight: Weight<'_>) -> Outcome<Update> {
        let (key, delta) = self.part(Part::Diff, Part::Diff)?;
        let delta = matrix::flat(key, delta, weight.rows)?;
        Ok(Update::Full { delta: matrix::expect(key, delta, [weight.rows, weight.cols])?, scale: 1.0 })
    }

    pub(super) fn bias(&self, target: Target, map: &RefitMap) -> Outcome<Vec<AdapterLayer>> {
        let given = [Part::DiffBias, Part::UpBias].into_iter().filter_map(|part| Some((part, self.given(part)?)));
        let mut layers: Vec<AdapterLayer> = Vec::new();
        for (part, (key, delta)) in given {
            let source = target.bias.ok_or_else(|| unsupported(key, "the module has no bias"))?;
            let info = info_of(map, source);
            if !info.dtype.is_float() {
                return Err(unsupported(key, &format!("the bias is {}, which takes no adapters", info.type_text())));
            }
            let rows = info.shape.iter().product();
            let delta = matrix::expect(key, matrix::flat(key, delta, rows)?, [rows, 1])?;
            let scale = match part {
                Part::UpBias => {
                    let (_, down) = self.part(Part::Down, Part::UpBias)?;
                    self.scale(down.shape().first().copied().unwrap_or(1).max(1))?
                }
                _ => 1.0,
            };
            if !layers.is_empty() {
                return Err(AdapterProblem::Twice { key: key.into(), other: self.parts[&Part::DiffBias].0.into() });
            }
            layers.push(AdapterLayer { source, update: Update::Full { delta, scale } });
        }
        Ok(layers)
    }
}

/// A tensor that takes the place of a source must be just like it.
fn check_whole(key: &str, values: &Tensor, info: &SourceInfo) -> Outcome<()> {
    if !values.dtype().is_float() || !info.dtype.is_float() {
        return Err(shape(key, &info.type_text(), values));
    }
    match (values.shape(), info.shape.as_slice()) {
        (given, expected) if given == expected => Ok(()),
        ([given, dim], [rows, cols]) if dim == cols => {
            let why = format!(
                "has {given} rows, and the engine's {} has {rows}: the vocabulary was resized; compile the resized model",
                info.name
            );
            Err(unsupported(key, &why))
        }
        _ => Err(shape(key, &info.type_text(), values)),
    }
}
