//! What happens to a tile of the product while it is still in cache.

use regraft_ir::ops::Activation;

use crate::{
    Isa,
    simd::{
        Floats, Vectors,
        functions::{Function, with_activation},
        vector_fn,
    },
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
        let end = End { bias, activation: self.activation, act_before_residual: self.act_before_residual };
        match self.residual {
            None => finish(isa, end, None, tile),
            Some(Residual { data: Floats::F32(data), ld }) => {
                finish(isa, end, Some((&data[row * ld + col..], ld)), tile)
            }
            Some(Residual { data, ld }) => {
                let mut widened = [0f32; MAX_WIDTH];
                for r in 0..rows {
                    data.load(isa, (row + r) * ld + col, &mut widened[..cols]);
                    finish(isa, end, Some((&widened, cols)), &mut tile.part(r..r + 1, 0..cols));
                }
            }
        }
    }
}

/// What is done to each row of a tile.
#[derive(Clone, Copy)]
struct End<'a> {
    bias: Option<&'a [f32]>,
    activation: Activation,
    act_before_residual: bool,
}

vector_fn! {
    /// Finishes a tile; rows of the residual are so many elements apart.
    fn finish<S>(simd, end: End<'_>, residual: Option<(&[f32], usize)>, tile: &mut TileMut<'_, f32>) {
        with_activation!(end.activation, A => {
            for r in 0..tile.rows() {
                let xs = tile.row(r);
                let residual = residual.map(|(data, ld)| &data[r * ld..][..xs.len()]);
                finish_row::<S, A>(simd, end, residual, xs);
            }
        });
    }
}

#[inline(always)]
fn finish_row<S: Vectors, A: Function>(simd: S, end: End<'_>, residual: Option<&[f32]>, xs: &mut [f32]) {
    let whole = xs.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        let mut x = simd.load(&xs[at..]);
        if let Some(bias) = end.bias {
            x = simd.add(x, simd.load(&bias[at..]));
        }
        if end.act_before_residual {
            x = A::of(simd, x);
        }
        if let Some(residual) = residual {
            x = simd.add(x, simd.load(&residual[at..]));
        }
        if !end.act_before_residual {
            x = A::of(simd, x);
        }
        simd.store(x, &mut xs[at..]);
    }
    if whole == xs.len() {
        return;
    }
    let mut x = simd.load_some(&xs[whole..]);
    if let Some(bias) = end.bias {
        x = simd.add(x, simd.load_some(&bias[whole..]));
    }
    if end.act_before_residual {
        x = A::of(simd, x);
    }
    if let Some(residual) = residual {
        x = simd.add(x, simd.load_some(&residual[whole..]));
    }
    if !end.act_before_residual {
        x = A::of(simd, x);
    }
    simd.store_some(x, &mut xs[whole..]);
}
