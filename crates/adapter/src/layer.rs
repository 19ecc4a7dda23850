//! From the tensors of one module to the updates of its sources.

use std::collections::BTreeMap;

use regraft_ir::Role;
use regraft_tensor::{DType, Tensor};
use regraft_weights::{RefitMap, SourceInfo};

use crate::{
    AdapterConfig, AdapterLayer, AdapterProblem, Factors, Magnitude, MagnitudeAxis, Update, config::Scaling,
    dialect::Part, matrix, oft::ROTATION, resolve::Target,
};

/// The tensors of one module by what they are, each with its key.
pub(super) type Parts<'a> = BTreeMap<Part, (&'a str, &'a Tensor)>;

/// The tensors of one module's update.
pub(super) struct Layer<'a, 'l> {
    /// The module's name in the model that was trained.
    pub(super) module: &'l str,
    pub(super) parts: Parts<'a>,
    pub(super) scaling: Scaling,
    /// A scale must be said: the tool that wrote the tensors keeps it elsewhere.
    pub(super) needs_scale: bool,
    pub(super) config: &'l AdapterConfig,
    /// It is a parameter that PEFT adapted without a module's help.
    pub(super) is_parameter: bool,
}

pub(super) type Outcome<T> = Result<T, AdapterProblem>;

/// A weight as updates see it.
#[derive(Clone, Copy)]
pub(super) struct Weight<'a> {
    pub(super) info: &'a SourceInfo,
    /// What it is to the module that is adapted.
    pub(super) role: Role,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Weight<'_> {
    /// How many rows or columns it has.
    pub(super) fn lines(&self, axis: MagnitudeAxis) -> usize {
        match axis {
            MagnitudeAxis::Rows => self.rows,
            MagnitudeAxis::Columns => self.cols,
        }
    }
}

/// Factors that were read, and how they lie in the weight.
struct Product {
    factors: Factors,
    rank: usize,
    /// What has a norm of its own, in DoRA as PEFT does it: outputs.
    outputs: MagnitudeAxis,
}

impl<'a> Layer<'a, '_> {
    /// The updates of the module's weight and bias.
    pub(super) fn updates(&self, target: Target, map: &RefitMap) -> Outcome<Vec<AdapterLayer>> {
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

    /// `up` of `[out, r, ...]` and `down` of `[r, in, ...]`, with a kernel between them in LoCon.
    fn low_rank(&self, weight: Weight<'_>) -> Outcome<Product> {
        let ((down_key, down), (up_key, up)) = (self.part(Part::Down, Part::Up)?, self.part(Part::Up, Part::Down)?);
        let rank = rank_of(down_key, down, weight)?;
        let up = matrix::flat(up_key, up, up.shape().first().copied().unwrap_or(0))?;
        let (rows, cols) = (weight.rows, weight.cols);
        if let Some((key, kernel)) = self.given(Part::Mid) {
            let down = matrix::tucker(key, kernel, (down_key, down), (rows, cols))?;
            let up = matrix::expect(up_key, up, [rows, down.shape()[0]])?;
            return Ok(Product { factors: Factors { up, down }, rank, outputs: MagnitudeAxis::Rows });
        }
        let down = matrix::flat(down_key, down, rank)?;
        if self.is_crossed(weight, (down_key, &down), &up)? {
            let up = matrix::expect(up_key, up, [cols, rank])?;
            let factors = Factors { up: matrix::transposed(&down), down: matrix::transposed(&up) };
            return Ok(Product { factors, rank, outputs: MagnitudeAxis::Columns });
        }
        let groups = down.shape()[1] / cols;
        if groups > 1 && groups * cols == down.shape()[1] && groups * up.shape()[1] == rank {
            let why =
                "LoRA of a grouped convolution cannot be merged into its weight: each output depends on all inputs";
            return Err(unsupported(down_key, why));
        }
        let factors = Factors {
            up: matrix::expect(up_key, up, [rows, rank])?,
            down: matrix::expect(down_key, down, [rank, cols])?,
        };
        Ok(Product { factors, rank, outputs: MagnitudeAxis::Rows })
    }

    /// Whether the module's weight is stored as `[in, out]`: what the program does with it says so, and where that does not
    /// tell, the sizes, if they fit one way only. `down` is `[rank, in]` and `up` `[out, rank]`.
    fn is_crossed(&self, weight: Weight<'_>, (key, down): (&str, &Tensor), up: &Tensor) -> Outcome<bool> {
        match weight.role {
            Role::Linear | Role::Conv | Role::Table => return Ok(false),
            Role::LinearInOut => return Ok(true),
            Role::ConvTranspose => {
                let why = "LoRA of a transposed convolution, which no tool defines: merge this layer with its own tool";
                return Err(unsupported(key, why));
            }
            Role::Other => {}
        }
        let (outputs, inputs) = (up.shape()[0], down.shape()[1]);
        let straight = (outputs, inputs) == (weight.rows, weight.cols);
        let crossed = weight.info.shape.len() == 2 && (outputs, inputs) == (weight.cols, weight.rows);
        match straight && crossed {
            false => Ok(crossed),
            true => {
                let why = "the weight is square, and neither the program nor the class of its module says whether it \
                           is stored as [in, out]: merge this layer with the tool that made it";
                Err(unsupported(key, why))
            }
        }
    }

    /// `A` of `[r, num]` and `B` of `[dim, r]` over a weight `[num, dim]`: the delta is `(B @ A)` transposed.
    fn embedding(&self, weight: Weight<'_>) -> Outcome<Product> {
        let (down_key, down) = self.part(Part::EmbeddingDown, Part::EmbeddingUp)?;
        let (up_key, up) = self.part(Part::EmbeddingUp, Part::EmbeddingDown)?;
        let rank = rank_of(down_key, down, weight)?;
        let down = matrix::flat(down_key, down, rank)?;
        if down.shape()[1] != weight.rows {
            let (given, rows) = (down.shape()[1], weight.rows);
            let why = format!(
                "is for {given} rows, and the engine's {} has {rows}: the vocabulary was resized",
                weight.info.name
            );
            return Err(unsupported(down_key, &why));
        }
        let up = matrix::flat(up_key, up, up.shape().first().copied().unwrap_or(0))?;
        let up = matrix::expect(up_key, up, [weight.cols, rank])?;
        let factors = Factors { up: matrix::transposed(&down), down: matrix::transposed(&up) };
        Ok(Product { factors, rank, outputs: MagnitudeAxis::Columns })
    }

    fn hadamard(&self, weight: Weight<'_>) -> Outcome<Update> {
        let first = self.hadamard_factors(weight, [Part::HadaW1A, Part::HadaW1B, Part::HadaT1])?;
        let second = self.hadamard_factors(weight, [Part::HadaW2A, Part::HadaW2B, Part::HadaT2])?;
        let scale = self.scale(first.rank)?;
        let magnitude = self.magnitude(weight, MagnitudeAxis::Rows)?;
        Ok(Update::Hadamard { first: first.factors, second: second.factors, scale, magnitude })
    }

    /// `a` of `[out, r]` and `b` of `[r, in]`, or with a kernel `a` of `[r, out]`.
    fn hadamard_factors(&self, weight: Weight<'_>, [a, b, kernel]: [Part; 3]) -> Outcome<Product> {
        let ((up_key, up), (down_key, down)) = (self.part(a, b)?, self.part(b, a)?);
        let rank = rank_of(down_key, down, weight)?;
        let rows_of_up = up.shape().first().copied().unwrap_or(0);
        let up = matrix::flat(up_key, up, rows_of_up)?;
        let (up, down) = match self.given(kernel) {
            Some((key, kernel)) => {
                (matrix::transposed(&up), matrix::tucker(key, kernel, (down_key, down), (weight.rows, weight.cols))?)
            }
            None => (up, matrix::flat(down_key, down, rank)?),
        };
        let inner = down.shape()[0];
        let factors = Factors {
            up: matrix::expect(up_key, up, [weight.rows, inner])?,
            down: matrix::expect(down_key, down, [inner, weight.cols])?,
        };
        Ok(Product { factors, rank, outputs: MagnitudeAxis::Rows })
    }

    /// Each factor as it is, or as a product; the inner one perhaps with a kernel.
    fn kronecker(&self, weight: Weight<'_>) -> Outcome<Update> {
        let (left_key, left) = match self.given(Part::LokrW1) {
            Some((key, left)) => (key, matrix::flat(key, left, left.shape().first().copied().unwrap_or(0))?),
            None => self.multiplied(weight, Part::LokrW1A, Part::LokrW1B)?,
        };
        let across = weight.rows.checked_div(left.shape()[0]).unwrap_or(0);
        let along = weight.cols.checked_div(left.shape()[1]).unwrap_or(0);
        let (right_key, right) = match (self.given(Part::LokrW2), self.given(Part::LokrT2)) {
            (Some((key, right)), _) => (key, matrix::flat(key, right, right.shape().first().copied().unwrap_or(0))?),
            (None, None) => self.multiplied(weight, Part::LokrW2A, Part::LokrW2B)?,
            (None, Some((key, kernel))) => {
                let (up_key, up) = self.part(Part::LokrW2A, Part::LokrW2B)?;
                let up = matrix::flat(up_key, up, up.shape().first().copied().unwrap_or(0))?;
                let down = matrix::tucker(key, kernel, self.part(Part::LokrW2B, Part::LokrW2A)?, (weight.rows, along))?;
                (up_key, matrix::product(up_key, &matrix::transposed(&up), &down, weight.rows * weight.cols)?)
            }
        };
        if left.shape()[0] * across != weight.rows || left.shape()[1] * along != weight.cols {
            let whole = format!("a factor of {}", weight.info.type_text());
            return Err(shape(left_key, &whole, &left));
        }
        let right = matrix::expect(right_key, right, [across, along])?;
        let taps = self.given(Part::LokrW2).map_or(0, |(_, right)| right.shape().len());
        if self.config.peft_type.is_some() && taps == 3 && weight.info.shape.len() == 3 && left.numel() > 1 {
            let why =
                "PEFT multiplies the whole lokr_w2 of a Conv1d in an order of its own: merge this layer with PEFT";
            return Err(unsupported(right_key, why));
        }
        Ok(Update::Kronecker {
            left,
            right,
            scale: self.kronecker_scale()?,
            magnitude: self.magnitude(weight, MagnitudeAxis::Rows)?,
        })
    }

    fn multiplied(&self, weight: Weight<'_>, a: Part, b: Part) -> Outcome<(&'a str, Tensor)> {
        let ((up_key, up), (down_key, down)) = (self.part(a, b)?, self.part(b, a)?);
        let up = matrix::flat(up_key, up, up.shape().first().copied().unwrap_or(0))?;
        let down = matrix::flat(down_key, down, down.shape().first().copied().unwrap_or(0))?;
        Ok((up_key, matrix::product(up_key, &up, &down, weight.rows * weight.cols)?))
    }

    /// PEFT divides by the rank that was asked for, LyCORIS by that of the factors: where both are whole there is none.
    fn kronecker_scale(&self) -> Outcome<f64> {
        let factor = |part| self.given(part).and_then(|(_, t)| t.shape().first().copied());
        match self.scaling.rank.or_else(|| factor(Part::LokrW1B).or_else(|| factor(Part::LokrW2B))) {
            Some(rank) if rank > 0 => self.scale(rank),
            _ => Ok(1.0),
        }
    }

    /// IA3: PEFT's factors are the weight's axis, `[out, 1]` or `[1, in]`; LyCORIS's differ from 1 by what the file has.
    fn scaled(
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
    fn whole(&self, target: Target, map: &RefitMap) -> Outcome<Vec<AdapterLayer>> {
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

    fn full(&self, weight: Weight<'_>) -> Outcome<Update> {
        let (key, delta) = self.part(Part::Diff, Part::Diff)?;
        let delta = matrix::flat(key, delta, weight.rows)?;
        Ok(Update::Full { delta: matrix::expect(key, delta, [weight.rows, weight.cols])?, scale: 1.0 })
    }

    fn bias(&self, target: Target, map: &RefitMap) -> Outcome<Vec<AdapterLayer>> {
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

    /// The file's alpha over the rank, or what the configuration says.
    pub(super) fn scale(&self, rank: usize) -> Outcome<f64> {
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
    pub(super) fn check_rank(&self, key: &str, rank: usize) -> Outcome<()> {
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
    fn with_singular_values(&self, (key, values): (&str, &Tensor), product: &mut Product) -> Outcome<f64> {
        let values = matrix::expect(key, matrix::flat(key, values, product.rank)?, [product.rank, 1])?;
        product.factors = matrix::scaled_inside(&product.factors, &values);
        let alpha = self.scaling.alpha.ok_or_else(|| AdapterProblem::NoScale { key: key.into() })?;
        let rank = product.rank as f64;
        Ok(if alpha > 0.0 { alpha } else { rank } / (rank + 1e-5))
    }

    /// DoRA's norms; `outputs` is what PEFT's are of.
    fn magnitude(&self, weight: Weight<'_>, outputs: MagnitudeAxis) -> Outcome<Option<Magnitude>> {
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
    fn norms_of_inputs(&self, weight: Weight<'_>) -> Outcome<Option<(Tensor, usize)>> {
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
    fn decomposed(&self, update: Update, weight: Weight<'_>) -> Outcome<Update> {
        let Some((norms, taps)) = self.norms_of_inputs(weight)? else { return Ok(update) };
        let (delta, _) = update.delta(weight.rows, weight.cols);
        let delta = Tensor::from_f64(DType::F32, &[weight.rows, weight.cols], &delta);
        Ok(Update::Decomposed { delta, taps, norms })
    }

    pub(super) fn given(&self, part: Part) -> Option<(&'a str, &'a Tensor)> {
        self.parts.get(&part).copied()
    }

    /// Some key of the module, for messages.
    pub(super) fn first_key(&self) -> &'a str {
        self.parts.values().next().map_or("", |(key, _)| *key)
    }

    /// A part that must be there because `other` is.
    pub(super) fn part(&self, part: Part, other: Part) -> Outcome<(&'a str, &'a Tensor)> {
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

/// The source that a use is of.
fn info_of(map: &RefitMap, used_as: usize) -> &SourceInfo {
    &map.sources[map.source_of(used_as).expect("targets are uses of the map")]
}

/// The rank of a factor `[r, ...]`.
fn rank_of(key: &str, down: &Tensor, weight: Weight<'_>) -> Outcome<usize> {
    match down.shape() {
        [rank, _, ..] if *rank > 0 && *rank <= 4 * weight.rows.max(weight.cols) => Ok(*rank),
        _ => Err(shape(key, &format!("a rank that makes sense for {}", weight.info.type_text()), down)),
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

pub(super) fn incomplete(key: &str, missing: &str) -> AdapterProblem {
    AdapterProblem::Incomplete { key: key.into(), missing: missing.into() }
}

pub(super) fn unsupported(key: &str, why: &str) -> AdapterProblem {
    AdapterProblem::Unsupported { key: key.into(), why: why.into() }
}

pub(super) fn shape(key: &str, expected: &str, found: &Tensor) -> AdapterProblem {
    let found = format!("{}{:?}", found.dtype(), found.shape());
    AdapterProblem::Shape { key: key.into(), expected: expected.into(), found }
}
