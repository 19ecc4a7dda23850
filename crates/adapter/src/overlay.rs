//! The combined update of all active adapters to one source, computed tile by tile.

use std::sync::OnceLock;

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
    /// The tensor that replaces the source before anything is added, when [`Overlay::rewrite`] was called.
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

/// A product of two factors: those of several updates side by side, so that their ranks add up.
#[derive(Clone, Debug)]
pub struct LowRank {
    rows: usize,
    cols: usize,
    rank: usize,
    /// The factors of each update, with its scale.
    parts: Vec<(Factors, f64)>,
    values: OnceLock<LowRankValues>,
}

/// Two factors of a product, on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRankValues {
    /// `rows x rank`, row-major; scales are folded in, rounded once.
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
        let (mut plain, mut terms): (Vec<(Factors, f64)>, Vec<Term>) = (Vec::new(), Vec::new());
        let mut rewrites = Vec::new();
        for &(update, by) in updates {
            match update {
                rewrite if rewrite.is_rewrite() => {
                    assert!(rewrite.size(rows, cols) == (rows, cols), "an update of another size than its source");
                    rewrites.push((rewrite.clone(), by));
                }
                Update::LowRank { factors, scale, magnitude: None } => plain.push((factors.clone(), scale * by)),
                other => terms.push(Term::new(other, by)),
            }
        }
        if !plain.is_empty() {
            terms.insert(0, Term { delta: Delta::LowRank(LowRank::new(plain)), norms: None });
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

    /// Makes what [`LowRank::values`] gives, ahead of its use.
    pub fn make_values(&self) {
        for term in &self.terms {
            match &term.delta {
                Delta::LowRank(product) => _ = product.values(),
                Delta::Hadamard(first, second) => _ = (first.values(), second.values()),
                Delta::Kronecker { .. } | Delta::Full { .. } => {}
            }
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
                (Delta::LowRank(LowRank::new(vec![(factors.clone(), scale * by)])), magnitude.as_ref())
            }
            Update::Hadamard { first, second, scale, magnitude } => {
                let product = |factors: &Factors, scale| LowRank::new(vec![(factors.clone(), scale)]);
                (Delta::Hadamard(product(first, scale * by), product(second, 1.0)), magnitude.as_ref())
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
        let fits = |p: &LowRank| p.fits(rows, cols);
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
    fn new(parts: Vec<(Factors, f64)>) -> LowRank {
        let first = |size: &[usize]| size.first().copied().unwrap_or(0);
        let rows = parts.first().map_or(0, |(factors, _)| first(factors.up.shape()));
        let cols = parts.first().map_or(0, |(factors, _)| factors.down.shape().get(1).copied().unwrap_or(0));
        let rank = parts.iter().map(|(factors, _)| first(factors.down.shape())).sum();
        LowRank { rows, cols, rank, parts, values: OnceLock::new() }
    }

    /// The inner size.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Rows, columns, and the inner size.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.rows, self.cols, self.rank)
    }

    /// The factors and their scale, where they are those of one update.
    pub fn single(&self) -> Option<(&Factors, f64)> {
        match self.parts.as_slice() {
            [(factors, scale)] => Some((factors, *scale)),
            _ => None,
        }
    }

    /// The factors on the host: made when they are first asked for.
    pub fn values(&self) -> &LowRankValues {
        self.values.get_or_init(|| {
            let mut each: Vec<LowRankValues> = self.parts.iter().map(LowRankValues::new).collect();
            if each.len() == 1 {
                return each.remove(0);
            }
            let mut up = Vec::with_capacity(self.rows * self.rank);
            for row in 0..self.rows {
                for part in &each {
                    let rank = part.up.len() / self.rows;
                    up.extend_from_slice(&part.up[row * rank..][..rank]);
                }
            }
            LowRankValues { up, down: each.into_iter().flat_map(|part| part.down).collect() }
        })
    }

    fn fits(&self, rows: usize, cols: usize) -> bool {
        let part = |(factors, _): &(Factors, f64)| {
            let rank = factors.down.shape().first().copied().unwrap_or(0);
            factors.up.numel() == rows * rank && factors.down.numel() == rank * cols
        };
        self.parts.iter().all(part)
    }
}

impl LowRankValues {
    fn new((factors, scale): &(Factors, f64)) -> LowRankValues {
        LowRankValues { up: floats(&factors.up, *scale), down: floats(&factors.down, 1.0) }
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
