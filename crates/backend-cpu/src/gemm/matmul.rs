//! Products of two activations: `B` is packed into scratch on the way, batch by batch.

use super::{Epilogue, Operand, Panels, Rows, driver::block_shape, micro::Kernel, multiply_block, panel_width};
use crate::{
    Isa, Threads,
    pack::{MatrixView, pack_panels, panels_len},
    threads::TileGrid,
};

/// A right operand `[k, n]` that is not known before the run.
#[derive(Clone, Copy, Debug)]
pub struct DynamicB<'a> {
    /// Its storage.
    pub data: &'a [f32],
    /// Distance between rows of what is stored.
    pub ld: usize,
    /// Whether `[n, k]` is stored instead of `[k, n]`.
    pub transposed: bool,
}

impl<'a> DynamicB<'a> {
    fn view(&self, offset: usize, k: usize, n: usize) -> MatrixView<'a> {
        let (k_stride, n_stride) = if self.transposed { (1, self.ld) } else { (self.ld, 1) };
        MatrixView {
            data: self.data,
            offset,
            k_dims: vec![(k, k_stride)],
            n_len: n,
            n_stride,
            scale: None,
            overlay: None,
        }
    }
}

/// A batch of products `C[i] = epilogue(A[i] · B[i])`. A batch stride of 0 shares one operand.
#[derive(Debug)]
pub struct MatmulArgs<'a> {
    /// Number of products.
    pub batches: usize,
    /// Rows of `A` and `C`.
    pub m: usize,
    /// Columns of `B` and `C`.
    pub n: usize,
    /// Columns of `A`, rows of `B`.
    pub k: usize,
    /// `A`, row-major.
    pub a: &'a [f32],
    /// Distance between rows of `A`.
    pub lda: usize,
    /// Distance between the `A` of neighbouring products.
    pub a_batch: usize,
    /// `B`.
    pub b: DynamicB<'a>,
    /// Distance between the `B` of neighbouring products.
    pub b_batch: usize,
    /// `C`, row-major.
    pub c: &'a mut [f32],
    /// Distance between rows of `C`.
    pub ldc: usize,
    /// Distance between the `C` of neighbouring products.
    pub c_batch: usize,
    /// Bias and activation; a residual is not supported here.
    pub epilogue: Epilogue<'a>,
}

impl MatmulArgs<'_> {
    fn packed(&self, isa: Isa) -> (usize, usize) {
        let each = panels_len(self.k, self.n, panel_width(isa));
        (if self.b_batch == 0 { self.batches.min(1) } else { self.batches }, each)
    }

    /// Floats of scratch that [`matmul`] needs.
    pub fn scratch_len(&self, isa: Isa) -> usize {
        let (count, each) = self.packed(isa);
        count * each
    }
}

/// Computes a batch of products.
///
/// # Panics
///
/// If a slice is too short for its shape, `scratch` is shorter than [`MatmulArgs::scratch_len`], or there is a residual.
pub fn matmul(threads: &Threads, isa: Isa, args: MatmulArgs<'_>, scratch: &mut [f32]) {
    let (count, each) = args.packed(isa);
    let MatmulArgs { batches, m, n, k, a, lda, a_batch, b, b_batch, c, ldc, c_batch, epilogue } = args;
    assert!(epilogue.residual.is_none(), "a batched product takes no residual");
    epilogue.check(m, n);
    let scratch = &mut scratch[..count * each];
    threads.for_each_chunk(scratch, each, |i, out| {
        pack_panels(&Threads::single(), isa, &[b.view(i * b_batch, k, n)], panel_width(isa), out);
    });
    let operands: Vec<Operand<'_>> =
        (0..batches).map(|i| Operand::new(&a[(i * a_batch).min(a.len())..], Rows::Strided { lda }, m, 1, k)).collect();
    let nr = panel_width(isa);
    let (tile_rows, _) = block_shape(&Kernel::of(isa, nr), 1, m, n, k);
    let grid = TileGrid { outer: &[(batches, c_batch)], rows: m, cols: n, row_stride: ldc, tile_rows, tile_cols: n };
    threads.for_each_tile(c, &grid, |at, tile| {
        let packed = if b_batch == 0 { 0 } else { at.matrix };
        let panels = Panels::new(nr, &scratch[packed * each..][..each], k, n);
        multiply_block(isa, &operands[at.matrix], at.row, &panels, at.col, tile, &epilogue);
    });
}
