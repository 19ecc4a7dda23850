//! Attention: `out = softmax(scale * Q Kᵀ + mask) V` for every batch and head.
//!
//! `Kᵀ` and `V` of every key head are packed into panels first; then blocks of query rows run on their own: a block's scores are a
//! matrix product into scratch that stays in the second-level cache, softmax goes over whole rows there, and a second product with
//! `V` writes the output. A row whose keys are all masked gives zeros, as PyTorch's safe softmax does.

use crate::{
    Isa, Threads,
    gemm::{Epilogue, Operand, Panels, Rows, multiply_block, panel_width},
    pack::{MatrixView, pack_panels, panels_len},
    simd::{lanes, math, simd_fn},
    threads::{TileAt, TileGrid, TileMut},
};

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
    pub data: &'a [f32],
    /// Where its elements are.
    pub strides: HeadStrides,
}

impl<'a> HeadTensor<'a> {
    /// The storage from the first position of a head.
    fn head(&self, batch: usize, head: usize) -> &'a [f32] {
        &self.data[(batch * self.strides.batch + head * self.strides.head).min(self.data.len())..]
    }
}

/// What is done to the scores of a query and a key.
#[derive(Clone, Copy, Debug)]
pub enum MaskValues<'a> {
    /// The value is added.
    Add(&'a [f32]),
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
    /// Heads of K and V; divides `heads`, and neighbouring query heads share one.
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

/// How the scratch is cut up.
struct Scratch {
    k_len: usize,
    v_len: usize,
    /// Query rows of a block.
    rows: usize,
    /// Distance between rows of scores.
    score_stride: usize,
}

impl AttentionArgs<'_> {
    fn scratch(&self, isa: Isa) -> Scratch {
        let nr = panel_width(isa);
        Scratch {
            k_len: panels_len(self.head_dim, self.kv_len, nr),
            v_len: panels_len(self.kv_len, self.value_dim, nr),
            rows: (SCORES / self.kv_len.max(1)).clamp(12, MAX_ROWS) / 12 * 12,
            // A multiple of a cache line, but not of the distance at which rows collide in cache.
            score_stride: self.kv_len.next_multiple_of(64) + 16,
        }
    }

    /// Floats of scratch that [`attention`] needs.
    pub fn scratch_len(&self, isa: Isa, threads: &Threads) -> usize {
        let s = self.scratch(isa);
        self.batch * self.kv_heads * (s.k_len + s.v_len) + threads.count() * s.rows * s.score_stride
    }

    fn check(&self, scratch: &[f32], isa: Isa, threads: &Threads) {
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "key heads must divide query heads");
        assert!(scratch.len() >= self.scratch_len(isa, threads), "attention scratch is too short");
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
    fn pack_head(&self, isa: Isa, index: usize, k_out: &mut [f32], v_out: &mut [f32]) {
        let (batch, head) = (index / self.kv_heads, index % self.kv_heads);
        let view = |data, k_dims, n_len, n_stride| MatrixView {
            data,
            offset: 0,
            k_dims,
            n_len,
            n_stride,
            scale: None,
            overlay: None,
        };
        let k = view(self.k.head(batch, head), vec![(self.head_dim, 1)], self.kv_len, self.k.strides.seq);
        let v = view(self.v.head(batch, head), vec![(self.kv_len, self.v.strides.seq)], self.value_dim, 1);
        pack_panels(&Threads::single(), isa, &[k], panel_width(isa), k_out);
        pack_panels(&Threads::single(), isa, &[v], panel_width(isa), v_out);
    }

    /// How many keys query `i` may see.
    fn visible(&self, i: usize) -> usize {
        if self.causal { self.kv_len.min(i + 1) } else { self.kv_len }
    }

    /// Turns a row of products into weights that are not yet normalised, and returns the factor that normalises.
    fn weigh(&self, isa: Isa, matrix: usize, query: usize, scores: &mut [f32]) -> f32 {
        let (seen, hidden) = scores.split_at_mut(self.visible(query));
        hidden.fill(0.0);
        scale_row(isa, seen, self.scale);
        if let Some(Mask { values, strides: [b, h, q, k] }) = self.mask {
            let at = matrix / self.heads * b + matrix % self.heads * h + query * q;
            match values {
                MaskValues::Add(values) => apply_mask(seen, &values[at..], k, |x, m| x + m),
                MaskValues::Keep(values) => {
                    apply_mask(seen, &values[at..], k, |x, m| if m == 0 { f32::NEG_INFINITY } else { x });
                }
            }
        }
        exponentials(isa, seen)
    }
}

/// Computes attention into `out`.
///
/// # Panics
///
/// If a slice is too short for its shape and strides, output elements overlap, or `scratch` is shorter than
/// [`AttentionArgs::scratch_len`].
pub fn attention(threads: &Threads, isa: Isa, args: &AttentionArgs<'_>, out: &mut [f32], scratch: &mut [f32]) {
    args.check(scratch, isa, threads);
    let s = args.scratch(isa);
    let (packed, scores) = scratch.split_at_mut(args.batch * args.kv_heads * (s.k_len + s.v_len));
    threads.for_each_chunk(packed, s.k_len + s.v_len, |i, chunk| {
        let (k, v) = chunk.split_at_mut(s.k_len);
        args.pack_head(isa, i, k, v);
    });
    let outer = [(args.batch, args.out_strides.batch), (args.heads, args.out_strides.head)];
    let grid = TileGrid {
        outer: &outer,
        rows: args.q_len,
        cols: args.value_dim,
        row_stride: args.out_strides.seq,
        tile_rows: s.rows,
        tile_cols: args.value_dim,
    };
    if args.kv_len == 0 {
        return threads.for_each_tile(out, &grid, |_, mut tile| (0..tile.rows()).for_each(|r| tile.row(r).fill(0.0)));
    }
    let (group, nr) = (args.heads / args.kv_heads, panel_width(isa));
    let mut scores: Vec<&mut [f32]> = scores.chunks_exact_mut(s.rows * s.score_stride).take(threads.count()).collect();
    threads.for_each_tile_with(&mut scores, out, &grid, |scores, at, tile| {
        let kv = at.matrix / args.heads * args.kv_heads + at.matrix % args.heads / group;
        let (k, v) = packed[kv * (s.k_len + s.v_len)..][..s.k_len + s.v_len].split_at(s.k_len);
        let k = Panels::new(nr, k, args.head_dim, args.kv_len);
        let v = Panels::new(nr, v, args.kv_len, args.value_dim);
        attend(isa, args, at, (k, v), (scores, s.score_stride), tile);
    });
}

/// One block of query rows of one head.
fn attend(
    isa: Isa,
    args: &AttentionArgs<'_>,
    at: TileAt,
    (k, v): (Panels<'_>, Panels<'_>),
    (scores, stride): (&mut [f32], usize),
    mut out: TileMut<'_, f32>,
) {
    let rows = out.rows();
    let keys = args.visible(at.row + rows - 1);
    let q = args.q.head(at.matrix / args.heads, at.matrix % args.heads);
    let q = &q[(at.row * args.q.strides.seq).min(q.len())..];
    let q = Operand::new(q, Rows::Strided { lda: args.q.strides.seq }, rows, 1, args.head_dim);
    let none = Epilogue::default();
    multiply_block(isa, &q, 0, &k, 0, TileMut::new(scores, rows, keys, stride), &none);

    let mut factors = [0f32; MAX_ROWS];
    for (r, factor) in factors[..rows].iter_mut().enumerate() {
        *factor = args.weigh(isa, at.matrix, at.row + r, &mut scores[r * stride..][..keys]);
    }
    let weights = Operand::new(scores, Rows::Strided { lda: stride }, rows, 1, keys);
    let cols = out.cols();
    multiply_block(isa, &weights, 0, &v.first(keys), 0, out.part(0..rows, 0..cols), &none);
    for (r, factor) in factors[..rows].iter().enumerate() {
        scale_row(isa, out.row(r), *factor);
    }
}

simd_fn! {
    fn scale_row<F>(xs: &mut [f32], factor: f32) {
        xs.iter_mut().for_each(|x| *x *= factor);
    }
}

simd_fn! {
    /// Replaces `x` by `e^(x - max)` and returns one over the sum. If all are minus infinity, everything becomes zero.
    fn exponentials<F>(xs: &mut [f32]) -> f32 {
        let max = lanes::max(xs);
        if max == f32::NEG_INFINITY {
            xs.fill(0.0);
            return 0.0;
        }
        1.0 / lanes::map_sum(xs, |x| math::exp::<F>(x - max))
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
