//! Attention: `out = softmax(scale * Q Kᵀ + mask) V` for every batch and head.
//!
//! `Kᵀ` and `V` of every key head are packed into panels first; then blocks of query rows run on their own: a block's scores are a
//! matrix product into scratch that stays in the second-level cache, softmax goes over whole rows there, and a second product with
//! `V` writes the output. A row whose keys are all masked gives zeros, as PyTorch's safe softmax does.

use half::bf16;

use self::weights::{Row, weigh};
use crate::{
    Isa, Scratch, Threads,
    gemm::{
        DynamicB, Epilogue, Operand, Panels, Rows, TILE_ROWS, Workspace, dynamic_scratch, dynamic_width,
        gathered_bytes, multiply_block, pack_dynamic,
    },
    pack::panel_elements,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, simd_fn},
    threads::{MAX_WORKERS, TileAt, TileGrid, TileMut},
};

mod weights;

/// Distances between the elements of a tensor `[batch, heads, seq, dim]` whose last dimension is contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadStrides {
    /// Between batches.
    pub batch: usize,
    /// Between heads.
    pub head: usize,
    /// Between positions of the sequence.
    pub seq: usize,
}

/// One of Q, K and V.
#[derive(Clone, Copy, Debug)]
pub struct HeadTensor<'a> {
    /// Its storage, from its first element.
    pub data: Floats<'a>,
    /// Where its elements are.
    pub strides: HeadStrides,
}

impl<'a> HeadTensor<'a> {
    /// The storage from the first position of a head.
    fn head(&self, batch: usize, head: usize) -> Floats<'a> {
        self.data.from(batch * self.strides.batch + head * self.strides.head)
    }
}

/// What is done to the scores of a query and a key.
#[derive(Clone, Copy, Debug)]
pub enum MaskValues<'a> {
    /// The value is added.
    Add(Floats<'a>),
    /// The score counts if the value is not zero.
    Keep(&'a [u8]),
}

/// A mask for `[batch, heads, queries, keys]`; a stride of 0 shares it along a dimension.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// The values.
    pub values: MaskValues<'a>,
    /// Distances between batches, heads, queries and keys.
    pub strides: [usize; 4],
}

/// An attention layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs<'a> {
    /// Batches.
    pub batch: usize,
    /// Heads of Q and of the output.
    pub heads: usize,
    /// Heads of K and V; divides `heads`, and neighboring query heads share one.
    pub kv_heads: usize,
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// Elements of a query and a key.
    pub head_dim: usize,
    /// Elements of a value and of an output row.
    pub value_dim: usize,
    /// The factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Whether query `i` sees keys `0 ..= i` only.
    pub causal: bool,
    /// The mask.
    pub mask: Option<Mask<'a>>,
    /// Q, `[batch, heads, q_len, head_dim]`.
    pub q: HeadTensor<'a>,
    /// K, `[batch, kv_heads, kv_len, head_dim]`.
    pub k: HeadTensor<'a>,
    /// V, `[batch, kv_heads, kv_len, value_dim]`.
    pub v: HeadTensor<'a>,
    /// Where the elements of the output are.
    pub out_strides: HeadStrides,
}

/// Floats of scores that stay in the second-level cache next to the panels.
const SCORES: usize = 24 * 1024;

/// The most query rows of a block.
const MAX_ROWS: usize = 96;

/// What the scratch of an attention layer depends on.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Batches.
    pub batch: usize,
    /// Heads of K and V.
    pub kv_heads: usize,
    /// Keys.
    pub kv_len: usize,
    /// Elements of a query and a key.
    pub head_dim: usize,
    /// Elements of a value.
    pub value_dim: usize,
    /// Element types of K, V and the output.
    pub types: [FloatType; 3],
}

impl AttentionShape {
    /// Panels and their bytes: of a head's `Kᵀ`, and of its `V`.
    fn panels(&self, isa: Isa) -> [(usize, usize); 2] {
        let each = |ty: FloatType, k, n| {
            let nr = dynamic_width(isa, ty);
            (nr, panel_elements(ty, k, n, nr) * ty.size())
        };
        [each(self.types[0], self.head_dim, self.kv_len), each(self.types[1], self.kv_len, self.value_dim)]
    }

    /// Bytes of a head's panels, each matrix from a cache line on.
    fn head_bytes(&self, isa: Isa) -> (usize, usize) {
        let [k, v] = self.panels(isa).map(|(_, bytes)| bytes_of::<u8>(bytes));
        (k, v)
    }

    /// Query rows of a block: whole tiles of the kernel.
    fn rows(&self, isa: Isa) -> usize {
        let tile = if isa == Isa::Amx && self.types[..2] == [FloatType::Bf16; 2] { 2 * TILE_ROWS } else { 12 };
        (SCORES / self.kv_len.max(1)).clamp(tile, MAX_ROWS) / tile * tile
    }

    /// Distance between rows of scores: a multiple of a cache line, but not of the distance at which rows collide in cache.
    fn score_stride(&self) -> usize {
        self.kv_len.next_multiple_of(64) + 16
    }

    /// Whether weights are rounded to bfloat16 to be multiplied with `V`: as in PyTorch's, where `V` is too.
    fn narrow_weights(&self, isa: Isa) -> bool {
        self.types[1] == FloatType::Bf16 && isa >= Isa::Avx512Bf16
    }

    /// Floats that packing a head works in.
    fn pack_floats(&self, isa: Isa) -> usize {
        let [k, v] = self.panels(isa);
        dynamic_scratch(self.types[0], self.head_dim, k.0).max(dynamic_scratch(self.types[1], self.kv_len, v.0))
    }

    /// Sizes of a worker's parts: scores, narrowed weights, gathered queries or weights in bytes, sums.
    fn parts(&self, isa: Isa) -> [usize; 4] {
        let (rows, stride) = (self.rows(isa), self.score_stride());
        let (narrow, gathered_weights) = match self.narrow_weights(isa) {
            true => (rows * stride, gathered_bytes(rows, 1, self.kv_len)),
            false => (0, 0),
        };
        let sums = if self.types[2] == FloatType::F32 { 0 } else { rows * self.value_dim };
        [rows * stride, narrow, gathered_bytes(rows, 1, self.head_dim).max(gathered_weights), sums]
    }

    /// Bytes of scratch that [`attention`] needs.
    pub fn scratch(&self, isa: Isa, threads: &Threads) -> usize {
        let ((k, v), [scores, narrow, gathered, sums]) = (self.head_bytes(isa), self.parts(isa));
        let worker = bytes_of::<f32>(scores)
            + bytes_of::<bf16>(narrow)
            + bytes_of::<u8>(gathered)
            + bytes_of::<f32>(sums)
            + bytes_of::<f32>(self.pack_floats(isa));
        self.batch * self.kv_heads * (k + v) + threads.count().min(MAX_WORKERS) * worker
    }
}

/// What a worker computes a block in.
struct Worker<'a> {
    scores: &'a mut [f32],
    narrow: &'a mut [bf16],
    sums: &'a mut [f32],
    gathered: Workspace<'a>,
}

impl AttentionArgs<'_> {
    fn shape(&self, out: FloatType) -> AttentionShape {
        let AttentionArgs { batch, kv_heads, kv_len, head_dim, value_dim, .. } = *self;
        AttentionShape {
            batch,
            kv_heads,
            kv_len,
            head_dim,
            value_dim,
            types: [self.k.data.ty(), self.v.data.ty(), out],
        }
    }

    fn check(&self) {
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "key heads must divide query heads");
        if let Some(Mask { values, strides }) = self.mask {
            let sizes = [self.batch, self.heads, self.q_len, self.kv_len];
            let last: usize = sizes.iter().zip(strides).map(|(size, stride)| size.saturating_sub(1) * stride).sum();
            let len = match values {
                MaskValues::Add(values) => values.len(),
                MaskValues::Keep(values) => values.len(),
            };
            assert!(last < len || sizes.contains(&0), "the attention mask is too short");
        }
    }

    /// Packs `Kᵀ` and `V` of one key head.
    fn pack_head(&self, isa: Isa, shape: &AttentionShape, index: usize, out: &mut [u8], floats: &mut [f32]) {
        let (batch, head) = (index / self.kv_heads, index % self.kv_heads);
        let [(k_nr, k_bytes), (v_nr, v_bytes)] = shape.panels(isa);
        let (k_out, v_out) = out.split_at_mut(shape.head_bytes(isa).0);
        let k = DynamicB { data: self.k.head(batch, head), ld: self.k.strides.seq, transposed: true };
        let v = DynamicB { data: self.v.head(batch, head), ld: self.v.strides.seq, transposed: false };
        pack_dynamic(isa, &k, [self.head_dim, self.kv_len], k_nr, &mut k_out[..k_bytes], floats);
        pack_dynamic(isa, &v, [self.kv_len, self.value_dim], v_nr, &mut v_out[..v_bytes], floats);
    }

    /// How many keys query `i` may see.
    fn visible(&self, i: usize) -> usize {
        if self.causal { self.kv_len.min(i + 1) } else { self.kv_len }
    }

    /// Turns a row of products into weights that are not yet normalized, narrowed perhaps, and returns the factor that normalizes.
    fn weigh(&self, isa: Isa, matrix: usize, query: usize, scores: &mut [f32], narrow: Option<&mut [bf16]>) -> f32 {
        let visible = self.visible(query);
        let (seen, hidden) = scores.split_at_mut(visible);
        hidden.fill(0.0);
        let narrow = narrow.map(|narrow| {
            let (seen, hidden) = narrow.split_at_mut(visible);
            hidden.fill(bf16::ZERO);
            seen
        });
        if self.mask.is_none() && self.scale > 0.0 {
            return weigh(isa, Row { scores: seen, scale: self.scale, narrow });
        }
        scale_row(isa, seen, self.scale);
        if let Some(Mask { values, strides: [b, h, q, k] }) = self.mask {
            let at = matrix / self.heads * b + matrix % self.heads * h + query * q;
            match values {
                MaskValues::Add(Floats::F32(values)) => apply_mask(seen, &values[at..], k, |x, m| x + m),
                MaskValues::Add(Floats::F16(values)) => apply_mask(seen, &values[at..], k, |x, m| x + m.to_f32()),
                MaskValues::Add(Floats::Bf16(values)) => apply_mask(seen, &values[at..], k, |x, m| x + m.to_f32()),
                MaskValues::Keep(values) => {
                    apply_mask(seen, &values[at..], k, |x, m| if m == 0 { f32::NEG_INFINITY } else { x });
                }
            }
        }
        weigh(isa, Row { scores: seen, scale: 1.0, narrow })
    }
}

/// Computes attention into `out`.
///
/// # Panics
///
/// If a slice is too short for its shape and strides, output elements overlap, or the scratch is shorter than
/// [`AttentionShape::scratch`].
pub fn attention<T: Float>(
    threads: &Threads,
    isa: Isa,
    args: &AttentionArgs<'_>,
    out: &mut [T],
    scratch: &mut Scratch<'_>,
) {
    args.check();
    let shape = args.shape(T::TYPE);
    let ((k_bytes, v_bytes), workers) = (shape.head_bytes(isa), threads.count().min(MAX_WORKERS));
    let mut scratch = scratch.again();
    let packed = scratch.take::<u8>(args.batch * args.kv_heads * (k_bytes + v_bytes));
    let outer = [(args.batch, args.out_strides.batch), (args.heads, args.out_strides.head)];
    let grid = TileGrid {
        outer: &outer,
        rows: args.q_len,
        cols: args.value_dim,
        row_stride: args.out_strides.seq,
        tile_rows: shape.rows(isa),
        tile_cols: args.value_dim,
    };
    if args.kv_len == 0 {
        let zero = |mut tile: TileMut<'_, T>| (0..tile.rows()).for_each(|r| tile.row(r).fill(T::zeroed()));
        return threads.for_each_tile(out, &grid, |_, tile| zero(tile));
    }
    {
        let mut scratch = scratch.again();
        let mut floats = scratch.parts::<f32>(workers, shape.pack_floats(isa));
        threads.for_each_chunk_with(&mut floats, packed, k_bytes + v_bytes, |floats, i, chunk| {
            args.pack_head(isa, &shape, i, chunk, floats);
        });
    }
    let [scores, narrow, gathered, sums] = shape.parts(isa);
    let worker = |_| Worker {
        scores: scratch.take(scores),
        narrow: scratch.take(narrow),
        sums: scratch.take(sums),
        gathered: Workspace { a: scratch.take(gathered), sums: &mut [] },
    };
    let mut workers: Vec<Worker<'_>> = (0..workers).map(worker).collect();
    let group = args.heads / args.kv_heads;
    let [(k_nr, k_len), (v_nr, v_len)] = shape.panels(isa);
    threads.for_each_tile_with(&mut workers, out, &grid, |worker, at, tile| {
        let kv = at.matrix / args.heads * args.kv_heads + at.matrix % args.heads / group;
        let (k, v) = packed[kv * (k_bytes + v_bytes)..][..k_bytes + v_bytes].split_at(k_bytes);
        let k = Panels::new(k_nr, Floats::of_bytes(shape.types[0], &k[..k_len]), args.head_dim, args.kv_len);
        let v = Panels::new(v_nr, Floats::of_bytes(shape.types[1], &v[..v_len]), args.kv_len, args.value_dim);
        attend(isa, args, at, (k, v), shape.score_stride(), worker, tile);
    });
}

/// One block of query rows of one head.
fn attend<T: Float>(
    isa: Isa,
    args: &AttentionArgs<'_>,
    at: TileAt,
    (k, v): (Panels<'_>, Panels<'_>),
    stride: usize,
    worker: &mut Worker<'_>,
    mut out: TileMut<'_, T>,
) {
    let Worker { scores, narrow, sums, gathered } = worker;
    let (rows, cols) = (out.rows(), out.cols());
    let keys = args.visible(at.row + rows - 1);
    let q = args.q.head(at.matrix / args.heads, at.matrix % args.heads).from(at.row * args.q.strides.seq);
    let q = Operand::new(q, Rows::Strided { lda: args.q.strides.seq }, rows, 1, args.head_dim);
    let none = Epilogue::default();
    multiply_block(isa, &q, 0, &k, 0, TileMut::new(scores, rows, keys, stride), &none, gathered);

    let mut factors = [0f32; MAX_ROWS];
    let mut narrowed = narrow.chunks_exact_mut(stride);
    for (r, factor) in factors[..rows].iter_mut().enumerate() {
        let narrow = narrowed.next().map(|narrow| &mut narrow[..keys]);
        *factor = args.weigh(isa, at.matrix, at.row + r, &mut scores[r * stride..][..keys], narrow);
    }
    let weights = if narrow.is_empty() { Floats::F32(scores) } else { Floats::Bf16(narrow) };
    let weights = Operand::new(weights, Rows::Strided { lda: stride }, rows, 1, keys);
    let v = v.first(keys);
    if let Some(mut out) = out.cast::<f32>() {
        multiply_block(isa, &weights, 0, &v, 0, out.part(0..rows, 0..cols), &none, gathered);
        (0..rows).for_each(|r| scale_row(isa, out.row(r), factors[r]));
        return;
    }
    multiply_block(isa, &weights, 0, &v, 0, TileMut::new(sums, rows, cols, cols), &none, gathered);
    for (r, sums) in sums.chunks_exact_mut(cols.max(1)).take(rows).enumerate() {
        scale_row(isa, sums, factors[r]);
        T::narrow(isa, sums, out.row(r));
    }
}

simd_fn! {
    fn scale_row<F>(xs: &mut [f32], factor: f32) {
        xs.iter_mut().for_each(|x| *x *= factor);
    }
}

/// Combines a row with mask values `stride` apart.
fn apply_mask<M: Copy>(row: &mut [f32], mask: &[M], stride: usize, combine: impl Fn(f32, M) -> f32) {
    match (stride, mask.first()) {
        (0, Some(m)) => row.iter_mut().for_each(|x| *x = combine(*x, *m)),
        (1, _) => row.iter_mut().zip(mask).for_each(|(x, m)| *x = combine(*x, *m)),
        _ => row.iter_mut().zip(mask.iter().step_by(stride.max(1))).for_each(|(x, m)| *x = combine(*x, *m)),
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
