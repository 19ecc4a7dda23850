//! Updates that are products of factors: LoRA, embeddings, LoHa, LoKr.

use regraft_ir::Role;
use regraft_tensor::Tensor;

use super::{Layer, Outcome, Weight, shape, unsupported};
use crate::{Factors, MagnitudeAxis, Update, dialect::Part, matrix};

/// Factors that were read, and how they lie in the weight.
pub(super) struct Product {
    pub(super) factors: Factors,
    pub(super) rank: usize,
    /// What has a norm of its own, in DoRA as PEFT does it: outputs.
    pub(super) outputs: MagnitudeAxis,
}

impl<'a> Layer<'a, '_> {
    /// `up` of `[out, r, ...]` and `down` of `[r, in, ...]`, with a kernel between them in LoCon.
    pub(super) fn low_rank(&self, weight: Weight<'_>) -> Outcome<Product> {
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
    pub(super) fn embedding(&self, weight: Weight<'_>) -> Outcome<Product> {
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

    pub(super) fn hadamard(&self, weight: Weight<'_>) -> Outcome<Update> {
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
    pub(super) fn kronecker(&self, weight: Weight<'_>) -> Outcome<Update> {
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
}

/// The rank of a factor `[r, ...]`.
fn rank_of(key: &str, down: &Tensor, weight: Weight<'_>) -> Outcome<usize> {
    match down.shape() {
        [rank, _, ..] if *rank > 0 && *rank <= 4 * weight.rows.max(weight.cols) => Ok(*rank),
        _ => Err(shape(key, &format!("a rank that makes sense for {}", weight.info.type_text()), down)),
    }
}
