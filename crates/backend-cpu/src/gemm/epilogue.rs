//! What happens to a tile of the product while it is still in cache.

use regraft_ir::ops::Activation;

use crate::{
    Isa,
    simd::{Floats, activation, simd_fn},
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
    pub(super) fn apply(&self, isa: Isa, row: usize, col: usize, mut tile: TileMut<'_, f32>) {
        if self.does_nothing() {
            return;
        }
        let (cols, mut buffers) = (tile.cols(), [[0f32; MAX_WIDTH]; 2]);
        let [bias, residual] = &mut buffers;
        let bias = self.bias.map(|b| b.read(isa, col, &mut bias[..cols]));
        for r in 0..tile.rows() {
            let residual =
                self.residual.map(|Residual { data, ld }| data.read(isa, (row + r) * ld + col, &mut residual[..cols]));
            finish(isa, (self.activation, self.act_before_residual), bias, residual, tile.row(r));
        }
    }
}

simd_fn! {
    fn finish<F>(end: (Activation, bool), bias: Option<&[f32]>, residual: Option<&[f32]>, xs: &mut [f32]) {
        let (act, before_residual) = end;
        if let Some(bias) = bias {
            xs.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
        if before_residual {
            activation::apply_lanes::<F>(act, xs);
        }
        if let Some(residual) = residual {
            xs.iter_mut().zip(residual).for_each(|(x, y)| *x += y);
        }
        if !before_residual {
            activation::apply_lanes::<F>(act, xs);
        }
    }
}
