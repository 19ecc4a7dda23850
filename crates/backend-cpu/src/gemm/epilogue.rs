//! What happens to a tile of the product while it is still in cache.

use std::ops::Range;

use half::bf16;
use regraft_ir::ops::Activation;

use super::micro::End;
use crate::{
    Isa,
    simd::{
        Floats, Vectors,
        activation::map_registers,
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

/// What changes no sum that it is added to.
static NOTHING: [f32; MAX_WIDTH] = [-0.0; MAX_WIDTH];

impl Epilogue<'_> {
    /// Panics unless bias and residual cover a matrix of `m` by `n`.
    pub(crate) fn check(&self, m: usize, n: usize) {
        if let Some(bias) = self.bias {
            assert_eq!(bias.len(), n, "one bias for each column");
        }
        if let (Some(Residual { data, ld }), true) = (self.residual, m > 0 && n > 0) {
            let end = (m - 1).checked_mul(ld).and_then(|last| last.checked_add(n));
            assert!(end.is_some_and(|end| end <= data.len()), "the residual is too short");
        }
    }

    /// The addends of the columns of a last panel that is not whole, as one for each column of the panel.
    pub(super) fn bias_of_last<'b>(&self, columns: Range<usize>, buffer: &'b mut [f32; MAX_WIDTH]) -> &'b [f32] {
        buffer.fill(-0.0);
        if let Some(Floats::F32(bias)) = self.bias {
            buffer[..columns.len()].copy_from_slice(&bias[columns]);
        }
        buffer
    }

    /// What of it a kernel that computes `lanes` columns at once does in registers to rows from `row` on and a panel of `nr` columns from `col`
    /// on, of which `width` are there, and what is left.
    pub(super) fn split<'b>(
        &'b self,
        row: usize,
        col: usize,
        [width, nr, lanes]: [usize; 3],
        bias_of_last: &'b [f32],
    ) -> (Option<End<'b>>, Left) {
        if self.does_nothing() {
            return (None, Left::Nothing);
        }
        let (clamp, left) = match self.activation {
            Activation::None => (None, Left::Nothing),
            Activation::Relu => (Some([0.0, f32::INFINITY]), Left::Nothing),
            Activation::Relu6 => (Some([0.0, 6.0]), Left::Nothing),
            other => (None, Left::Activation(other)),
        };
        let residual = match self.residual {
            None => None,
            // After an activation that is left it cannot be added in registers.
            Some(_) if self.act_before_residual && matches!(left, Left::Activation(_)) => {
                return (None, Left::Epilogue);
            }
            Some(Residual { data: Floats::F32(data), ld }) if width.is_multiple_of(lanes) => {
                Some((&data[row * ld + col..], ld))
            }
            Some(_) => return (None, Left::Epilogue),
        };
        let bias: &[f32] = match self.bias {
            None => &NOTHING,
            Some(Floats::F32(bias)) if width == nr => &bias[col..col + nr],
            Some(Floats::F32(_)) => bias_of_last,
            Some(_) => return (None, Left::Epilogue),
        };
        (Some(End { bias, clamp, residual, clamp_first: self.act_before_residual }), left)
    }

    fn does_nothing(&self) -> bool {
        self.bias.is_none() && self.residual.is_none() && self.activation == Activation::None
    }

    /// Finishes the tile whose first element is `(row, col)` of `C`; it is one panel wide.
    pub(crate) fn apply(&self, isa: Isa, row: usize, col: usize, tile: &mut TileMut<'_, f32>) {
        if self.does_nothing() {
            return;
        }
        let (rows, cols, mut buffer) = (tile.rows(), tile.cols(), [0f32; MAX_WIDTH]);
        let end = self.rest(isa, col, &mut buffer[..cols]);
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

    /// All of it but the residual, for as many columns as `buffer` has, from column `col` on.
    fn rest<'b>(&'b self, isa: Isa, col: usize, buffer: &'b mut [f32]) -> Rest<'b> {
        let bias = self.bias.map(|bias| bias.read(isa, col, buffer));
        Rest { bias, activation: self.activation, act_before_residual: self.act_before_residual }
    }

    /// All of it, for rows from `row` on and as many columns from `col` on as `buffer` has, before results are rounded to bfloat16; `None` if the
    /// residual is of another type.
    pub(super) fn rounding<'b>(
        &'b self,
        isa: Isa,
        [row, col]: [usize; 2],
        buffer: &'b mut [f32],
    ) -> Option<Rounding<'b>> {
        let residual = match self.residual {
            None => None,
            Some(Residual { data: Floats::Bf16(data), ld }) => Some((&data[row * ld + col..], ld)),
            Some(_) => return None,
        };
        buffer.fill(-0.0);
        let bias = match self.bias {
            Some(bias) => bias.read(isa, col, buffer),
            None => buffer,
        };
        Some(Rounding {
            isa,
            bias,
            residual,
            activation: self.activation,
            act_before_residual: self.act_before_residual,
        })
    }
}

/// What becomes of sums, from some row and column on, that are rounded to bfloat16 after that.
#[derive(Clone, Copy)]
pub(super) struct Rounding<'a> {
    isa: Isa,
    /// One for each column, `-0.0` where there is none.
    bias: &'a [f32],
    /// An addend for each element, with the distance between rows.
    residual: Option<(&'a [bf16], usize)>,
    activation: Activation,
    act_before_residual: bool,
}

impl Rounding<'_> {
    /// What is left of it where a kernel has done the rest; no more columns than a panel has.
    pub(super) fn left(self, left: Left) -> Self {
        let activation = match left {
            Left::Nothing => Activation::None,
            Left::Activation(activation) => activation,
            Left::Epilogue => return self,
        };
        Rounding { bias: &NOTHING, residual: None, activation, ..self }
    }

    /// The same from so many rows and columns further on.
    pub(super) fn part(self, row: usize, col: usize) -> Self {
        let residual = self.residual.map(|(data, ld)| (&data[row * ld + col..], ld));
        Rounding { bias: &self.bias[col..], residual, ..self }
    }

    /// Rounds `sums` to `out`.
    pub(super) fn run(self, sums: &mut TileMut<'_, f32>, out: &mut TileMut<'_, bf16>) {
        round(self.isa, self, sums, out);
    }
}

/// What is left to be done to a tile that was stored.
#[derive(Clone, Copy)]
pub(super) enum Left {
    Nothing,
    Activation(Activation),
    Epilogue,
}

impl Left {
    /// Does it to a tile whose first element is `(row, col)` of `C`.
    #[inline]
    pub(super) fn finish(self, isa: Isa, epilogue: &Epilogue<'_>, [row, col]: [usize; 2], tile: &mut TileMut<'_, f32>) {
        match self {
            Left::Nothing => {}
            Left::Activation(left) => activate(isa, left, tile),
            Left::Epilogue => epilogue.apply(isa, row, col, tile),
        }
    }
}

/// What is done to each row of a tile that was stored.
#[derive(Clone, Copy, Default)]
struct Rest<'a> {
    bias: Option<&'a [f32]>,
    activation: Activation,
    act_before_residual: bool,
}

vector_fn! {
    /// Applies a function to all of a tile.
    pub(super) fn activate<S>(simd, activation: Activation, tile: &mut TileMut<'_, f32>) {
        with_activation!(activation, A => {
            if let Some(all) = tile.contiguous() {
                map_registers::<S, A>(simd, all);
            } else {
                for r in 0..tile.rows() {
                    map_registers::<S, A>(simd, tile.row(r));
                }
            }
        });
    }
}

vector_fn! {
    /// Finishes a tile; rows of the residual are so many elements apart.
    fn finish<S>(simd, end: Rest<'_>, residual: Option<(&[f32], usize)>, tile: &mut TileMut<'_, f32>) {
        with_activation!(end.activation, A => {
            for r in 0..tile.rows() {
                let xs = tile.row(r);
                let residual = residual.map(|(data, ld)| &data[r * ld..][..xs.len()]);
                finish_row::<S, A>(simd, end, residual, xs);
            }
        });
    }
}

/// When a residual is added.
const NEVER: u8 = 0;
const BEFORE_ACTIVATION: u8 = 1;
const AFTER_ACTIVATION: u8 = 2;

vector_fn! {
    product:
    /// Rounds `sums` to `out` after what `end` says.
    fn round<S>(simd, end: Rounding<'_>, sums: &mut TileMut<'_, f32>, out: &mut TileMut<'_, bf16>) {
        let bias = &end.bias[..sums.cols()];
        with_activation!(end.activation, A => {
            for r in 0..sums.rows() {
                let (xs, out) = (&*sums.row(r), out.row(r));
                let residual = end.residual.map(|(data, ld)| &data[r * ld..][..xs.len()]);
                match residual {
                    None => round_row::<S, A, NEVER>(simd, bias, &[], xs, out),
                    Some(residual) if end.act_before_residual => {
                        round_row::<S, A, AFTER_ACTIVATION>(simd, bias, residual, xs, out);
                    }
                    Some(residual) => round_row::<S, A, BEFORE_ACTIVATION>(simd, bias, residual, xs, out),
                }
            }
        });
    }
}

/// Rounds a row of sums to `out`. All are as long, but for a residual that is added [`NEVER`].
#[inline(always)]
fn round_row<S: Vectors, A: Function, const RESIDUAL: u8>(
    simd: S,
    bias: &[f32],
    residual: &[bf16],
    sums: &[f32],
    out: &mut [bf16],
) {
    let whole = sums.len() / S::LANES * S::LANES;
    let mut residuals = residual.chunks_exact(S::LANES);
    let lanes = sums.chunks_exact(S::LANES).zip(bias.chunks_exact(S::LANES)).zip(out.chunks_exact_mut(S::LANES));
    for ((sums, bias), out) in lanes {
        let mut addend = simd.splat(0.0);
        if let Some(residual) = residuals.next() {
            addend = simd.load_bf16(residual);
        }
        let x = simd.add(simd.load(sums), simd.load(bias));
        simd.store_bf16(activated::<S, A, RESIDUAL>(simd, x, addend), out);
    }
    if whole < sums.len() {
        let addend = simd.load_bf16(residuals.remainder());
        let x = simd.add(simd.load_some(&sums[whole..]), simd.load_some(&bias[whole..]));
        simd.store_bf16(activated::<S, A, RESIDUAL>(simd, x, addend), &mut out[whole..]);
    }
}

/// The function of a register, and the residual at its time.
#[inline(always)]
fn activated<S: Vectors, A: Function, const RESIDUAL: u8>(simd: S, x: S::V, residual: S::V) -> S::V {
    match RESIDUAL {
        NEVER => A::of(simd, x),
        BEFORE_ACTIVATION => A::of(simd, simd.add(x, residual)),
        _ => simd.add(A::of(simd, x), residual),
    }
}

#[inline(always)]
fn finish_row<S: Vectors, A: Function>(simd: S, end: Rest<'_>, residual: Option<&[f32]>, xs: &mut [f32]) {
    let whole = xs.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        let addend = residual.map(|residual| simd.load(&residual[at..]));
        let x = finished::<S, A>(simd, end, addend, &xs[at..at + S::LANES], at);
        simd.store(x, &mut xs[at..]);
    }
    if whole < xs.len() {
        let addend = residual.map(|residual| simd.load_some(&residual[whole..]));
        let x = finished::<S, A>(simd, end, addend, &xs[whole..], whole);
        simd.store_some(x, &mut xs[whole..]);
    }
}

/// What columns of a row become, from column `at` on, no more than a register holds.
#[inline(always)]
fn finished<S: Vectors, A: Function>(simd: S, end: Rest<'_>, residual: Option<S::V>, xs: &[f32], at: usize) -> S::V {
    let mut x = simd.load_some(xs);
    if let Some(bias) = end.bias {
        x = simd.add(x, simd.load_some(&bias[at..][..xs.len()]));
    }
    if end.act_before_residual {
        x = A::of(simd, x);
    }
    if let Some(residual) = residual {
        x = simd.add(x, residual);
    }
    if end.act_before_residual { x } else { A::of(simd, x) }
}
