//! Products of two activations: `B` is packed into scratch on the way, batch by batch.

use super::{Epilogue, GemmShape, Operand, Panels, Rows, Workspace, micro::panel_widths_of, multiply_block};
use crate::{
    Isa, Scratch, Threads,
    pack::{MatrixView, pack_half_panels, pack_panels, panel_elements},
    scratch::bytes_of,
    simd::{Float, FloatType, Floats},
    threads::{MAX_WORKERS, TileGrid},
};

/// A right operand `[k, n]` that is not known before the run.
#[derive(Clone, Copy, Debug)]
pub struct DynamicB<'a> {
    /// Its storage.
    pub data: Floats<'a>,
    /// Distance between rows of what is stored.
    pub ld: usize,
    /// Whether `[n, k]` is stored instead of `[k, n]`.
    pub transposed: bool,
}

/// Packs a right operand of a run into panels of its own type; `out` has their bytes, `scratch` is [`dynamic_scratch`] floats.
pub(crate) fn pack_dynamic(
    isa: Isa,
    b: &DynamicB<'_>,
    [k, n]: [usize; 2],
    nr: usize,
    out: &mut [u8],
    scratch: &mut [f32],
) {
    // Panels of no rows start anywhere.
    if out.is_empty() {
        return;
    }
    let (k_stride, n_stride) = if b.transposed { (1, b.ld) } else { (b.ld, 1) };
    macro_rules! view {
        ($data:expr) => {
            MatrixView {
                data: $data,
                offset: 0,
                k_dims: vec![(k, k_stride)],
                n_len: n,
                n_stride,
                scale: None,
                overlay: None,
            }
        };
    }
    let (one, mut scratch) = (Threads::single(), Scratch::new(bytemuck::cast_slice_mut(scratch)));
    match b.data {
        Floats::F32(data) => pack_panels(&one, isa, &[view!(data)], nr, bytemuck::cast_slice_mut(out)),
        Floats::F16(data) => {
            pack_half_panels::<_, half::f16>(&one, isa, &[view!(data)], nr, bytemuck::cast_slice_mut(out), &mut scratch)
        }
        Floats::Bf16(data) => pack_half_panels::<_, half::bf16>(
            &one,
            isa,
            &[view!(data)],
            nr,
            bytemuck::cast_slice_mut(out),
            &mut scratch,
        ),
    }
}

/// Floats that [`pack_dynamic`] works in.
pub(crate) fn dynamic_scratch(b: FloatType, k: usize, nr: usize) -> usize {
    if b == FloatType::F32 { 0 } else { k * nr }
}

/// The width of the panels that right operands of a run are packed into.
pub(crate) fn dynamic_width(isa: Isa, b: FloatType) -> usize {
    panel_widths_of(isa, b).next().expect("every instruction set has a kernel for every type")
}

/// A batch of products `C[i] = epilogue(A[i] · B[i])`. A batch stride of 0 shares one operand.
#[derive(Debug)]
pub struct MatmulArgs<'a, C = f32> {
    /// Number of products.
    pub batches: usize,
    /// Rows of `A` and `C`.
    pub m: usize,
    /// Columns of `B` and `C`.
    pub n: usize,
    /// Columns of `A`, rows of `B`.
    pub k: usize,
    /// `A`, row-major.
    pub a: Floats<'a>,
    /// Distance between rows of `A`.
    pub lda: usize,
    /// Distance between the `A` of neighboring products.
    pub a_batch: usize,
    /// `B`.
    pub b: DynamicB<'a>,
    /// Distance between the `B` of neighboring products.
    pub b_batch: usize,
    /// `C`, row-major.
    pub c: &'a mut [C],
    /// Distance between rows of `C`.
    pub ldc: usize,
    /// Distance between the `C` of neighboring products.
    pub c_batch: usize,
    /// Bias and activation; a residual is not supported here.
    pub epilogue: Epilogue<'a>,
}

/// What the scratch of a batch of products depends on.
#[derive(Clone, Copy, Debug)]
pub struct MatmulShape {
    /// Number of products.
    pub batches: usize,
    /// Whether all of them have one right operand.
    pub shared_b: bool,
    /// Rows of `A` and `C`.
    pub m: usize,
    /// Columns of `B` and `C`.
    pub n: usize,
    /// Columns of `A`, rows of `B`.
    pub k: usize,
    /// Element type of `A`.
    pub a: FloatType,
    /// Element type of `B`.
    pub b: FloatType,
    /// Element type of `C`.
    pub c: FloatType,
}

impl MatmulShape {
    fn gemm(&self, isa: Isa) -> GemmShape {
        let MatmulShape { m, n, k, a, b, c, .. } = *self;
        GemmShape { m, n, k_tap: k, taps: 1, nr: dynamic_width(isa, b), a, b, c }
    }

    /// How many right operands are packed, and the bytes of each.
    fn packed(&self, isa: Isa) -> (usize, usize) {
        let each = panel_elements(self.b, self.k, self.n, dynamic_width(isa, self.b)) * self.b.size();
        (if self.shared_b { self.batches.min(1) } else { self.batches }, each)
    }

    /// Bytes of scratch that [`matmul`] needs.
    pub fn scratch(&self, isa: Isa, threads: &Threads) -> usize {
        let ((count, each), shape) = (self.packed(isa), self.gemm(isa));
        let (rows, cols) = shape.block(isa, &Threads::single());
        let (a, sums) = shape.workspace(isa, rows, cols);
        let worker =
            bytes_of::<u8>(a) + bytes_of::<f32>(sums) + bytes_of::<f32>(dynamic_scratch(self.b, self.k, shape.nr));
        bytes_of::<u8>(count * each) + threads.count() * worker
    }
}

/// Computes a batch of products.
///
/// # Panics
///
/// If a slice is too short for its shape, the scratch is shorter than [`MatmulShape::scratch`], or there is a residual.
pub fn matmul<C: Float>(threads: &Threads, isa: Isa, args: MatmulArgs<'_, C>, scratch: &mut Scratch<'_>) {
    let MatmulArgs { batches, m, n, k, a, lda, a_batch, b, b_batch, c, ldc, c_batch, epilogue } = args;
    assert!(epilogue.residual.is_none(), "a batched product takes no residual");
    epilogue.check(m, n);
    let shared_b = b_batch == 0;
    let shape = MatmulShape { batches, shared_b, m, n, k, a: a.ty(), b: b.data.ty(), c: C::TYPE };
    let ((count, each), product) = (shape.packed(isa), shape.gemm(isa));
    let (nr, (tile_rows, tile_cols)) = (product.nr, product.block(isa, &Threads::single()));
    let mut scratch = scratch.again();
    let packed = scratch.take::<u8>(count * each);
    let workers = threads.count().min(MAX_WORKERS);
    {
        let mut scratch = scratch.again();
        let mut panels = scratch.parts::<f32>(workers, dynamic_scratch(shape.b, k, nr));
        threads.for_each_chunk_with(&mut panels, packed, each, |panel, i, out| {
            let b = DynamicB { data: b.data.from(i * b_batch), ..b };
            pack_dynamic(isa, &b, [k, n], nr, out, panel);
        });
    }
    let operands: Vec<Operand<'_>> =
        (0..batches).map(|i| Operand::new(a.from(i * a_batch), Rows::Strided { lda }, m, 1, k)).collect();
    let mut workers = Workspace::parts(&mut scratch, workers, product.workspace(isa, tile_rows, tile_cols));
    let grid = TileGrid { outer: &[(batches, c_batch)], rows: m, cols: n, row_stride: ldc, tile_rows, tile_cols };
    threads.for_each_tile_with(&mut workers, c, &grid, |work, at, tile| {
        let i = if shared_b { 0 } else { at.matrix };
        let panels = Panels::new(nr, Floats::of_bytes(shape.b, &packed[i * each..][..each]), k, n);
        multiply_block(isa, &operands[at.matrix], at.row, &panels, at.col, tile, &epilogue, work);
    });
}
