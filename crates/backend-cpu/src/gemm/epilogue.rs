//! What happens to a tile of the product while it is still in cache.

use crate::{
    Isa,
    simd::{Activation, simd_fn},
    threads::TileMut,
};

/// A matrix of the shape of `C` that is added to the product.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    /// Element `(i, j)` is `data[i * ld + j]`.
    pub data: &'a [f32],
    /// Distance between rows.
    pub ld: usize,
}

/// The end of a product: `act(x + bias + residual)`, or `act(x + bias) + residual` if `act_before_residual`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// One addend for each column.
    pub bias: Option<&'a [f32]>,
    /// An addend for each element.
    pub residual: Option<Residual<'a>>,
    /// The activation.
    pub activation: Activation,
    /// Whether the residual is added after the activation.
    pub act_before_residual: bool,
}

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

    /// Finishes the tile whose first element is `(row, col)` of `C`.
    pub(super) fn apply(&self, isa: Isa, row: usize, col: usize, tile: TileMut<'_, f32>) {
        if !self.does_nothing() {
            finish(isa, self, row, col, tile);
        }
    }
}

simd_fn! {
    fn finish<F>(epilogue: &Epilogue<'_>, row: usize, col: usize, tile: TileMut<'_, f32>) {
        let mut tile = tile;
        let cols = tile.cols();
        for r in 0..tile.rows() {
            let xs = tile.row(r);
            if let Some(bias) = epilogue.bias {
                xs.iter_mut().zip(&bias[col..col + cols]).for_each(|(x, b)| *x += b);
            }
            if epilogue.act_before_residual {
                epilogue.activation.apply_lanes::<F>(xs);
            }
            if let Some(residual) = epilogue.residual {
                let addend = &residual.data[(row + r) * residual.ld + col..][..cols];
                xs.iter_mut().zip(addend).for_each(|(x, y)| *x += y);
            }
            if !epilogue.act_before_residual {
                epilogue.activation.apply_lanes::<F>(xs);
            }
        }
    }
}
