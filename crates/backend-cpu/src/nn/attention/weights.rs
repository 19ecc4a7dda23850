//! From scores to weights: `e^(scale * score - max)`, which is normalized behind the product with `V`.

use half::bf16;

use crate::simd::{MOST_LANES, Several, Vectors, functions::exp_of_difference, lanes, vector_fn};

/// What rows of weights are made of and written to.
pub(super) struct Row<'a> {
    /// Scores, and then the weights, unless these are narrowed.
    pub(super) scores: &'a mut [f32],
    /// A factor of the scores, more than zero.
    pub(super) scale: f32,
    /// Where weights are rounded to, if they are.
    pub(super) narrow: Option<&'a mut [bf16]>,
}

/// Computes the weights of a row, and returns one over their sum. If all scores are minus infinity, everything becomes zero.
pub(super) fn weigh(isa: crate::Isa, row: Row<'_>) -> f32 {
    let mut max = f32::NEG_INFINITY;
    greatest(isa, row.scores, &mut max);
    if max == f32::NEG_INFINITY {
        row.scores.fill(0.0);
        if let Some(narrow) = row.narrow {
            narrow.fill(bf16::ZERO);
        }
        return 0.0;
    }
    let (shift, mut sum) = (-max * row.scale, 0.0);
    exponentials(isa, row, shift, &mut sum);
    1.0 / sum
}

vector_fn! {
    /// The greatest score.
    fn greatest<S>(simd, scores: &[f32], max: &mut f32) {
        let several = Several::<S, 4>(simd);
        let mut all = several.splat(f32::NEG_INFINITY);
        let mut chunks = scores.chunks_exact(<Several<S, 4> as Vectors>::LANES);
        for scores in &mut chunks {
            all = several.greater(all, several.load(scores));
        }
        let first = simd.greater(simd.greater(all[0], all[1]), simd.greater(all[2], all[3]));
        let mut each = [f32::NEG_INFINITY; MOST_LANES];
        simd.store(first, &mut each);
        for score in each.iter().chain(chunks.remainder()) {
            *max = lanes::greater(*max, *score);
        }
    }
}

vector_fn! {
    product:
    /// Replaces scores by `e^(scale * score + shift)`, or rounds these to where they are narrowed, and finds their sum.
    fn exponentials<S>(simd, row: Row<'_>, shift: f32, sum: &mut f32) {
        *sum = match row.narrow {
            None => exponentials_of::<S, false>(simd, row.scores, row.scale, shift, &mut []),
            Some(narrow) => exponentials_of::<S, true>(simd, row.scores, row.scale, shift, narrow),
        };
    }
}

#[inline(always)]
fn exponentials_of<S: Vectors, const NARROW: bool>(
    simd: S,
    scores: &mut [f32],
    scale: f32,
    shift: f32,
    narrow: &mut [bf16],
) -> f32 {
    let several = Several::<S, 4>(simd);
    let (lanes, factor, addend) = (<Several<S, 4> as Vectors>::LANES, several.splat(scale), several.splat(shift));
    let mut sums = several.splat(0.0);
    let mut chunks = scores.chunks_exact_mut(lanes);
    let mut narrow = narrow.chunks_mut(lanes);
    for scores in &mut chunks {
        let x = several.mul_add(several.load(scores), factor, addend);
        let weights = exp_of_difference(several, x);
        sums = several.add(sums, weights);
        if NARROW {
            several.store_bf16(weights, narrow.next().expect("as many as scores"));
        } else {
            several.store(weights, scores);
        }
    }
    let mut total = simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3]));
    let mut narrow = narrow.next().unwrap_or(&mut []).chunks_mut(S::LANES);
    for scores in chunks.into_remainder().chunks_mut(S::LANES) {
        let x = simd.mul_add(simd.load_some(scores), factor[0], addend[0]);
        simd.store_some(exp_of_difference(simd, x), scores);
        // Without the lanes behind the end.
        let weights = simd.load_some(scores);
        total = simd.add(total, weights);
        if NARROW {
            simd.store_bf16(weights, narrow.next().expect("as many as scores"));
        }
    }
    let mut lanes = [0f32; MOST_LANES];
    simd.store(total, &mut lanes);
    lanes.iter().sum()
}
