//! What all active adapters together do to one source, ready to be computed tile by tile.

use regraft_tensor::{DType, Tensor};

use crate::{Factors, MagnitudeAxis, Update};

/// `W' = W + Σ terms` for one source `W`, seen as a matrix of `rows x cols`. Computed in f32 from the pristine source and
/// rounded to the source's dtype last, so that what a slot is made of is exactly what a merged checkpoint would hold.
#[derive(Clone, Debug)]
pub struct Overlay {
    /// The source's dtype in the engine, which `W'` is rounded to.
    pub dtype: DType,
    /// Size of the source's first axis.
    pub rows: usize,
    /// Product of its other sizes.
    pub cols: usize,
    /// What is added. All plain low-rank updates are one term, whose rank is the sum of theirs.
    pub terms: Vec<Term>,
    /// What takes the source's place before anything is added, when [`Overlay::rewrite`] was called.
    pub base: Option<Tensor>,
    /// What makes it, in this order, with the caller's scales.
    rewrites: Vec<(Update, f64)>,
}

/// One summand of an [`Overlay`]; scales are folded in.
#[derive(Clone, Debug)]
pub struct Term {
    /// The delta.
    pub delta: Delta,
    /// DoRA: the term is `factors * (W + delta) - W`.
    pub norms: Option<Norms>,
}

/// A delta in the form that it is computed from.
#[derive(Clone, Debug)]
pub enum Delta {
    /// `up @ down`.
    LowRank(LowRank),
    /// The product by element of two low-rank products.
    Hadamard(LowRank, LowRank),
    /// `kron(left, right)`.
    Kronecker {
        /// The outer factor.
        left: Matrix,
        /// The inner factor.
        right: Matrix,
    },
    /// `scale * delta`.
    Full {
        /// `rows x cols` of f32.
        delta: Tensor,
        /// The factor.
        scale: f32,
    },
}

/// Two factors of a product.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// The inner size.
    pub rank: usize,
    /// `rows x rank`, row-major.
    pub up: Vec<f32>,
    /// `rank x cols`, row-major.
    pub down: Vec<f32>,
}

/// A small matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Number of columns.
    pub cols: usize,
    /// Row-major.
    pub data: Vec<f32>,
}

/// Norms that a DoRA term scales rows or columns to.
#[derive(Clone, Debug)]
pub struct Norms {
    /// What has a norm of its own.
    pub axis: MagnitudeAxis,
    /// The norms wanted.
    pub magnitude: Vec<f32>,
    /// `magnitude / norm(W + delta)`: depends on `W`, and so is filled in when that is available. Empty before.
    pub factors: Vec<f32>,
}

impl Overlay {
    /// The overlay of these updates with the caller's scales, in this order, on a source of this dtype and shape.
    ///
    /// # Panics
    /// When the updates are not of the source's size, which reading an adapter rules out.
    pub fn new(dtype: DType, shape: &[usize], updates: &[(&Update, f64)]) -> Overlay {
        let rows = shape.first().copied().unwrap_or(1);
        let cols = shape.iter().skip(1).product();
        let (mut plain, mut terms): (Vec<LowRank>, Vec<Term>) = (Vec::new(), Vec::new());
        let mut rewrites = Vec::new();
        for &(update, by) in updates {
            match update {
                rewrite if rewrite.is_rewrite() => {
                    assert!(rewrite.size(rows, cols) == (rows, cols), "an update of another size than its source");
                    rewrites.push((rewrite.clone(), by));
                }
                Update::LowRank { factors, scale, magnitude: None } => plain.push(LowRank::new(factors, scale * by)),
                other => terms.push(Term::new(other, by)),
            }
        }
        if let Some(low_rank) = LowRank::stack(rows, plain) {
            terms.insert(0, Term { delta: Delta::LowRank(low_rank), norms: None });
        }
        terms.iter().for_each(|term| term.check(rows, cols));
        Overlay { dtype, rows, cols, terms, base: None, rewrites }
    }

    /// Whether [`Overlay::rewrite`] is to be called before use.
    pub fn has_rewrites(&self) -> bool {
        !self.rewrites.is_empty()
    }

    /// Makes what takes the place of `source`, which is in the engine's dtype.
    pub fn rewrite(&mut self, source: &Tensor) {
        for (update, by) in std::mem::take(&mut self.rewrites) {
            self.base = Some(update.rewritten(self.base.as_ref().unwrap_or(source), by));
        }
    }

    /// The product that is all there is to add, without rounding: what nearly all adapters come down to.
    pub fn plain(&self) -> Option<&LowRank> {
        match self.terms.as_slice() {
            [Term { delta: Delta::LowRank(product), norms: None }] if self.dtype == DType::F32 => Some(product),
            _ => None,
        }
    }

    /// Whether factors must be filled in before use.
    pub fn has_norms(&self) -> bool {
        self.terms.iter().any(|t| t.norms.is_some())
    }
}

impl Term {
    fn new(update: &Update, by: f64) -> Term {
        let (delta, magnitude) = match update {
            Update::LowRank { factors, scale, magnitude } => {
                (Delta::LowRank(LowRank::new(factors, scale * by)), magnitude.as_ref())
            }
            Update::Hadamard { first, second, scale, magnitude } => {
                let (first, second) = (LowRank::new(first, scale * by), LowRank::new(second, 1.0));
                (Delta::Hadamard(first, second), magnitude.as_ref())
            }
            Update::Kronecker { left, right, scale, magnitude } => {
                let (left, right) = (Matrix::new(left, scale * by), Matrix::new(right, 1.0));
                (Delta::Kronecker { left, right }, magnitude.as_ref())
            }
            Update::Full { delta, scale } => (Delta::Full { delta: delta.clone(), scale: (scale * by) as f32 }, None),
            Update::Replace { .. }
            | Update::Rows { .. }
            | Update::Scaled { .. }
            | Update::Decomposed { .. }
            | Update::Rotated(_) => {
                unreachable!("rewrites are not terms")
            }
        };
        let norms = magnitude.map(|m| Norms { axis: m.axis, magnitude: floats(&m.values, 1.0), factors: Vec::new() });
        Term { delta, norms }
    }

    fn check(&self, rows: usize, cols: usize) {
        let fits = |p: &LowRank| p.up.len() == rows * p.rank && p.down.len() == p.rank * cols;
        let delta_fits = match &self.delta {
            Delta::LowRank(p) => fits(p),
            Delta::Hadamard(p, q) => fits(p) && fits(q),
            Delta::Kronecker { left, right } => {
                left.cols * right.cols == cols && left.data.len() * right.data.len() == rows * cols
            }
            Delta::Full { delta, .. } => delta.as_slice::<f32>().is_some_and(|d| d.len() == rows * cols),
        };
        let norms_fit = self.norms.as_ref().is_none_or(|norms| {
            norms.magnitude.len()
                == match norms.axis {
                    MagnitudeAxis::Rows => rows,
                    MagnitudeAxis::Columns => cols,
                }
        });
        assert!(delta_fits && norms_fit, "an update of another size than its source");
    }
}

impl LowRank {
    fn new(factors: &Factors, scale: f64) -> LowRank {
        let rank = factors.down.shape().first().copied().unwrap_or(0);
        LowRank { rank, up: floats(&factors.up, scale), down: floats(&factors.down, 1.0) }
    }

    /// Products side by side: the ranks add up.
    fn stack(rows: usize, mut products: Vec<LowRank>) -> Option<LowRank> {
        if products.len() < 2 {
            return products.pop();
        }
        let rank = products.iter().map(|p| p.rank).sum();
        let mut up = Vec::with_capacity(rows * rank);
        for row in 0..rows {
            products.iter().for_each(|p| up.extend_from_slice(&p.up[row * p.rank..][..p.rank]));
        }
        let down = products.into_iter().flat_map(|p| p.down).collect();
        Some(LowRank { rank, up, down })
    }
}

impl Matrix {
    fn new(matrix: &Tensor, scale: f64) -> Matrix {
        Matrix { cols: matrix.shape().get(1).copied().unwrap_or(1), data: floats(matrix, scale) }
    }
}

/// The values times `scale`, rounded once.
fn floats(tensor: &Tensor, scale: f64) -> Vec<f32> {
    let values = tensor.as_slice::<f32>().expect("factors are f32");
    match scale {
        1.0 => values.to_vec(),
        _ => values.iter().map(|v| (f64::from(*v) * scale) as f32).collect(),
    }
}
