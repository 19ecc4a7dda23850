//! What happens to a tile of the product while it is still in cache.

use regraft_ir::ops::Activation;

use crate::{
    Isa,
    simd::{Floats, activation, math, simd_fn, vector_fn},
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

/// What is added to a tile, and where negative sums become zero.
#[derive(Clone, Copy, Default)]
struct Addends<'a> {
    bias: Option<&'a [f32]>,
    /// Its rows are so many elements apart.
    residual: Option<(&'a [f32], usize)>,
    /// Before the residual is added.
    clips_first: bool,
    clips_last: bool,
}

fn finish(
    isa: Isa,
    (act, before_residual): (Activation, bool),
    bias: Option<&[f32]>,
    residual: Option<(&[f32], usize)>,
    tile: &mut TileMut<'_, f32>,
) {
    let clips = act == Activation::Relu;
    if clips || act == Activation::None {
        let (clips_first, clips_last) = (clips && before_residual, clips && !before_residual);
        return add(isa, Addends { bias, residual, clips_first, clips_last }, tile);
    }
    let (first, last) = if before_residual { (None, residual) } else { (residual, None) };
    add(isa, Addends { bias, residual: first, ..Addends::default() }, tile);
    activate(isa, act, tile);
    if last.is_some() {
        add(isa, Addends { residual: last, ..Addends::default() }, tile);
    }
}

vector_fn! {
    fn add<S>(simd, addends: Addends<'_>, tile: &mut TileMut<'_, f32>) {
        let Addends { bias, residual, clips_first, clips_last } = addends;
        let cols = tile.cols();
        let whole = cols / S::LANES * S::LANES;
        for r in 0..tile.rows() {
            let xs = tile.row(r);
            let residual = residual.map(|(data, ld)| &data[r * ld..][..cols]);
            for at in (0..whole).step_by(S::LANES) {
                let mut x = simd.load(&xs[at..]);
                if let Some(bias) = bias {
                    x = simd.add(x, simd.load(&bias[at..]));
                }
                if clips_first {
                    x = simd.relu(x);
                }
                if let Some(residual) = residual {
                    x = simd.add(x, simd.load(&residual[at..]));
                }
                if clips_last {
                    x = simd.relu(x);
                }
                simd.store(x, &mut xs[at..]);
            }
            for at in whole..cols {
                let mut x = xs[at];
                if let Some(bias) = bias {
                    x += bias[at];
                }
                if clips_first {
                    x = math::relu(x);
                }
                if let Some(residual) = residual {
                    x += residual[at];
                }
                xs[at] = if clips_last { math::relu(x) } else { x };
            }
        }
    }
}

simd_fn! {
    fn activate<F>(act: Activation, tile: &mut TileMut<'_, f32>) {
        let (rows, cols) = (tile.rows(), tile.cols());
        let mut values = [0f32; AT_ONCE];
        for r in 0..rows {
            copy(&mut values[r * cols..][..cols], tile.row(r));
        }
        activation::apply_lanes::<F>(act, &mut values[..rows * cols]);
        for r in 0..rows {
            copy(tile.row(r), &values[r * cols..][..cols]);
        }
    }
}

/// Floats that rows are copied in: they are too short for a call of `memcpy` to pay.
const STEP: usize = 16;

/// Copies `ys` to `xs`.
#[inline(always)]
fn copy(xs: &mut [f32], ys: &[f32]) {
    let ((xs, last_xs), (ys, last_ys)) = (xs.as_chunks_mut::<STEP>(), ys.as_chunks::<STEP>());
    for (x, y) in xs.iter_mut().zip(ys) {
        *x = *y;
    }
    for (x, y) in last_xs.iter_mut().zip(last_ys) {
        *x = *y;
    }
}
