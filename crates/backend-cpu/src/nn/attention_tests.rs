use proptest::prelude::*;

use super::*;
use crate::{
    nn::testing::{Compute, Numbers, assert_close, in_every_type, numbers},
    scratch::testing::with_scratch,
};

/// Position first: `[batch, seq, heads, dim]`, as a fused projection leaves it.
fn interleaved(heads: usize, seq: usize, dim: usize) -> HeadStrides {
    HeadStrides { batch: seq * heads * dim, head: dim, seq: heads * dim }
}

fn value(floats: Floats<'_>, at: usize) -> f64 {
    let mut value = [0.0];
    floats.load(Isa::Portable, at, &mut value);
    f64::from(value[0])
}

struct Attend<'a>(AttentionArgs<'a>);

impl Compute for Attend<'_> {
    fn run<T: Float>(&self, threads: &Threads, isa: Isa, out: &mut [T], scratch: &mut Scratch<'_>) {
        attention(threads, isa, &self.0, out, scratch);
    }
    fn scratch(&self, threads: &Threads, isa: Isa, out: FloatType) -> usize {
        self.0.shape(out).scratch(isa, threads)
    }
}

fn naive(args: &AttentionArgs<'_>, batch: usize, head: usize, query: usize) -> Vec<f64> {
    let kv = head / (args.heads / args.kv_heads);
    let at = |t: &HeadTensor<'_>, h: usize, i: usize, d: usize| {
        value(t.data, batch * t.strides.batch + h * t.strides.head + i * t.strides.seq + d)
    };
    let score = |key: usize| -> f64 {
        let dot: f64 = (0..args.head_dim).map(|d| at(&args.q, head, query, d) * at(&args.k, kv, key, d)).sum();
        let masked = match args.mask {
            Some(Mask { values, strides: [b, h, q, k] }) => {
                let at = batch * b + head * h + query * q + key * k;
                match values {
                    MaskValues::Add(m) => value(m, at),
                    MaskValues::Keep(m) if m[at] == 0 => f64::NEG_INFINITY,
                    MaskValues::Keep(_) => 0.0,
                }
            }
            None => 0.0,
        };
        if args.causal && key > query { f64::NEG_INFINITY } else { dot * f64::from(args.scale) + masked }
    };
    let scores: Vec<f64> = (0..args.kv_len).map(score).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> =
        scores.iter().map(|s| if max == f64::NEG_INFINITY { 0.0 } else { (s - max).exp() }).collect();
    let sum: f64 = weights.iter().sum();
    let of_dim = |d: usize| -> f64 { weights.iter().enumerate().map(|(key, w)| w * at(&args.v, kv, key, d)).sum() };
    (0..args.value_dim).map(|d| if sum > 0.0 { of_dim(d) / sum } else { 0.0 }).collect()
}

fn check(args: &AttentionArgs<'_>) {
    let len = args.batch * args.heads * args.q_len * args.value_dim;
    // Weights are rounded to bfloat16 where values are.
    let weights = if args.v.data.ty() == FloatType::Bf16 { 2f64.powi(-8) } else { 0.0 };
    in_every_type(len, &Attend(*args), |out, rounding| {
        for (b, h, i) in (0..args.batch)
            .flat_map(|b| (0..args.heads).map(move |h| (b, h)))
            .flat_map(|(b, h)| (0..args.q_len).map(move |i| (b, h, i)))
        {
            let start = b * args.out_strides.batch + h * args.out_strides.head + i * args.out_strides.seq;
            for (got, want) in out[start..].iter().zip(naive(args, b, h, i)) {
                assert_close(*got, want, 1e-5 + rounding + weights);
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn shapes_and_masks(
        batch in 1usize..3, kv_heads in 1usize..3, group in 1usize..3, q_len in 1usize..40, kv_len in 1usize..70,
        head_dim in 1usize..40, value_dim in 1usize..40, causal: bool, mask in 0usize..5,
        types in prop::array::uniform4(prop::sample::select(&FloatType::ALL[..])),
    ) {
        let heads = kv_heads * group;
        let q = Numbers::new(types[0], &numbers(batch * heads * q_len * head_dim, 1));
        let k = Numbers::new(types[1], &numbers(batch * kv_heads * kv_len * head_dim, 2));
        let v = Numbers::new(types[2], &numbers(batch * kv_heads * kv_len * value_dim, 3));
        let add = Numbers::new(types[3], &numbers(batch * heads * q_len * kv_len, 4));
        let keep: Vec<u8> = numbers(batch * heads * q_len * kv_len, 5).iter().map(|x| u8::from(*x > 0.2)).collect();
        let full = [heads * q_len * kv_len, q_len * kv_len, kv_len, 1];
        let mask = [
            None,
            Some(Mask { values: MaskValues::Add(add.floats()), strides: full }),
            Some(Mask { values: MaskValues::Keep(&keep), strides: full }),
            Some(Mask { values: MaskValues::Keep(&keep), strides: [kv_len, 0, 0, 1] }),
            Some(Mask { values: MaskValues::Add(add.floats()), strides: [1, 0, 2, 0] }),
        ][mask];
        // A shared mask of a few values still has to be long enough.
        prop_assume!(mask.is_none_or(|m| m.strides != [1, 0, 2, 0] || batch + 2 * q_len <= add.floats().len()));
        check(&AttentionArgs {
            batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim, scale: 1.7, causal, mask,
            q: HeadTensor { data: q.floats(), strides: interleaved(heads, q_len, head_dim) },
            k: HeadTensor { data: k.floats(), strides: interleaved(kv_heads, kv_len, head_dim) },
            v: HeadTensor { data: v.floats(), strides: interleaved(kv_heads, kv_len, value_dim) },
            out_strides: interleaved(heads, q_len, value_dim),
        });
    }
}

#[test]
fn many_blocks_and_panels() {
    let (heads, seq, dim) = (2, 300, 64);
    let data = numbers(3 * heads * seq * dim, 1);
    let all = FloatType::ALL.map(|ty| Numbers::new(ty, &data));
    // Q, K and V side by side in one row, as a fused projection leaves them.
    let strides = HeadStrides { batch: 0, head: dim, seq: 3 * heads * dim };
    for (data, causal) in all.iter().zip([true, false, true]) {
        let part = |i: usize| HeadTensor { data: data.floats().from(i * heads * dim), strides };
        check(&AttentionArgs {
            batch: 1,
            heads,
            kv_heads: heads,
            q_len: seq,
            kv_len: seq,
            head_dim: dim,
            value_dim: dim,
            scale: 0.125,
            causal,
            mask: None,
            q: part(0),
            k: part(1),
            v: part(2),
            out_strides: interleaved(heads, seq, dim),
        });
    }
}

#[test]
fn nan_is_not_taken_for_a_mask() {
    let strides = HeadStrides { batch: 0, head: 0, seq: 1 };
    let args = AttentionArgs {
        batch: 1,
        heads: 1,
        kv_heads: 1,
        q_len: 1,
        kv_len: 2,
        head_dim: 1,
        value_dim: 1,
        scale: 1.0,
        causal: false,
        mask: None,
        q: HeadTensor { data: Floats::F32(&[f32::NAN]), strides },
        k: HeadTensor { data: Floats::F32(&[1.0, 2.0]), strides },
        v: HeadTensor { data: Floats::F32(&[1.0, 2.0]), strides },
        out_strides: strides,
    };
    let (threads, mut out) = (Threads::single(), [0.0]);
    with_scratch(args.shape(FloatType::F32).scratch(Isa::Portable, &threads), |scratch| {
        attention(&threads, Isa::Portable, &args, &mut out, scratch);
    });
    assert!(f32::is_nan(out[0]));
}
