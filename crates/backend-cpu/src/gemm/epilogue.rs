//! What happens to a tile of the product while it is still in cache.

use regraft_ir::ops::Activation;

use crate::{
    Isa,
    simd::{Floats, activation, math, simd_fn},
    threads::TileMut,
};

/// A matrix of the shape of `C` that is added to the product.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    /// Element `(i, j)` is `data[i * ld + j]`.
    pub data: Floats<'a>,
    /// Distance between rows.
    pub ld: usize,
}

/// The end of a product: `act(x + bias + residual)`, or `act(x + bias) + residual` if `act_before_residual`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// One addend for each column.
    pub bias: Option<Floats<'a>>,
    /// An addend for each element.
    pub residual: Option<Residual<'a>>,
    /// The activation.
    pub activation: Activation,
    /// Whether the residual is added after the activation.
    pub act_before_residual: bool,
}

/// The most columns of a panel.
pub(super) const MAX_WIDTH: usize = 64;

impl Epilogue<'_> {
    /// Panics unless bias and residual cover a matrix of `m` by `n`.
    pub(super) fn check(&self, m: usize, n: usize) {
        if let Some(bias) = self.bias {
            assert_eq!(bias.len(), n, "one bias for each column");
        }
        if let (Some(Residual { data, ld }), true) = (self.residual, m > 0 && n > 0) {
            let end = (m - 1).checked_mul(ld).and_then(|last| last.checked_add(n));
            assert!(end.is_some_and(|end| end <= data.len()), "the residual is too short");
        }
    }

    fn does_nothing(&self) -> bool {
        self.bias.is_none() && self.residual.is_none() && self.activation == Activation::None
    }

    /// Finishes the tile whose first element is `(row, col)` of `C`; it is one panel wide.
    pub(super) fn apply(&self, isa: Isa, row: usize, col: usize, tile: &mut TileMut<'_, f32>) {
        if self.does_nothing() {
            return;
        }
        let (rows, cols, mut buffer) = (tile.rows(), tile.cols(), [0f32; MAX_WIDTH]);
        let bias = self.bias.map(|b| b.read(isa, col, &mut buffer[..cols]));
        let (end, at_once) = ((self.activation, self.act_before_residual), AT_ONCE / cols.max(1));
        for first in (0..rows).step_by(at_once) {
            let count = at_once.min(rows - first);
            let mut tile = tile.part(first..first + count, 0..cols);
            match self.residual {
                None => finish(isa, end, bias, None, &mut tile),
                Some(Residual { data: Floats::F32(data), ld }) => {
                    finish(isa, end, bias, Some((&data[(row + first) * ld + col..], ld)), &mut tile);
                }
                Some(Residual { data, ld }) => {
                    let mut widened = [0f32; AT_ONCE];
                    for (r, widened) in widened.chunks_exact_mut(cols).take(count).enumerate() {
                        data.load(isa, (row + first + r) * ld + col, widened);
                    }
                    finish(isa, end, bias, Some((&widened, cols)), &mut tile);
                }
            }
        }
    }
}

/// Elements that are finished together: a tile of the largest micro-kernels. An activation costs less on many in a row than on
/// the rows of a panel one by one.
const AT_ONCE: usize = 384;

simd_fn! {
    fn finish<F>(
        end: (Activation, bool),
        bias: Option<&[f32]>,
        residual: Option<(&[f32], usize)>,
        tile: &mut TileMut<'_, f32>,
    ) {
        let (act, before_residual) = end;
        let cols = tile.cols();
        let add_residual = |r: usize, xs: &mut [f32]| {
            if let Some((data, ld)) = residual {
                add(xs, &data[r * ld..]);
            }
        };
        if matches!(act, Activation::None | Activation::Relu) {
            // So little that copies would be most of it.
            for r in 0..tile.rows() {
                let xs = tile.row(r);
                bias.into_iter().for_each(|bias| add(xs, bias));
                if before_residual && act == Activation::Relu {
                    relu(xs);
                }
                add_residual(r, xs);
                if !before_residual && act == Activation::Relu {
                    relu(xs);
                }
            }
            return;
        }
        let mut values = [0f32; AT_ONCE];
        let values = &mut values[..tile.rows() * cols];
        for (r, values) in values.chunks_exact_mut(cols).enumerate() {
            copy(values, tile.row(r));
            bias.into_iter().for_each(|bias| add(values, bias));
            if !before_residual {
                add_residual(r, values);
            }
        }
        activation::apply_lanes::<F>(act, values);
        for (r, values) in values.chunks_exact_mut(cols).enumerate() {
            if before_residual {
                add_residual(r, values);
            }
            copy(tile.row(r), values);
        }
    }
}

/// Floats that rows are walked through in: rows are too short for what LLVM makes of a loop over a slice.
const STEP: usize = 16;

/// Adds the first elements of `ys` to `xs`.
#[inline(always)]
fn add(xs: &mut [f32], ys: &[f32]) {
    let ys = &ys[..xs.len()];
    let ((xs, last_xs), (ys, last_ys)) = (xs.as_chunks_mut::<STEP>(), ys.as_chunks::<STEP>());
    for (x, y) in xs.iter_mut().zip(ys) {
        *x = std::array::from_fn(|i| x[i] + y[i]);
    }
    last_xs.iter_mut().zip(last_ys).for_each(|(x, y)| *x += y);
}

/// The positive part of each element.
#[inline(always)]
fn relu(xs: &mut [f32]) {
    let (xs, last) = xs.as_chunks_mut::<STEP>();
    xs.iter_mut().for_each(|x| *x = x.map(math::relu));
    last.iter_mut().for_each(|x| *x = math::relu(*x));
}

/// Copies `ys` to `xs`.
#[inline(always)]
fn copy(xs: &mut [f32], ys: &[f32]) {
    let ((xs, last_xs), (ys, last_ys)) = (xs.as_chunks_mut::<STEP>(), ys.as_chunks::<STEP>());
    xs.iter_mut().zip(ys).for_each(|(x, y)| *x = *y);
    last_xs.iter_mut().zip(last_ys).for_each(|(x, y)| *x = *y);
}
