//! Every kernel, in every dtype it takes and on every instruction set, against the reference evaluator.

mod quantized;
mod rest;
mod rotary;

use proptest::prelude::*;
use regraft_backend::{Codegen, NodeSpec, Operand, OperandType, ResultType, SlotLayout};
use regraft_ir::{
    Op, Scalar, TensorType,
    ops::{
        Activation, AdaptiveAvgPool, ArgReduce, ArgReduceFn, Attention, AvgPool, Concat, Conv, Cumsum, Embedding, Flip,
        Gather, GroupNorm, HeadsLayout, Index, LayerNorm, Linear, Lstm, Matmul, MaxPool, Pad, PadMode, Reduce,
        ReduceFn, Resize, ResizeMode, RmsNorm, Softmax, SpatialLayout,
    },
};
use regraft_tensor::{AlignedVec, DType, Dim, Tensor, contiguous_strides};

use super::{Cx, prepare, run_on_host};
use crate::{CpuCodegen, Isa, Threads};

/// Numbers between -1 and 1 without a pattern; integers between -50 and 50, bools.
fn values(dtype: DType, shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product();
    let number = |i: usize| ((i * 31 + seed * 17) * 7919 % 2003) as f64 / 1001.0 - 1.0;
    let scale = |x: f64| match dtype {
        DType::Bool => f64::from(x > 0.2),
        DType::U8 | DType::U16 | DType::U32 | DType::U64 => (x + 1.0) * 50.0,
        d if d.is_float() => x,
        _ => x * 50.0,
    };
    Tensor::from_f64(dtype, shape, &(0..count).map(|i| scale(number(i))).collect::<Vec<_>>())
}

/// What rounding to a dtype may change, relatively; results in f32 carry errors of sums.
fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-12,
        DType::F32 => 1e-5,
        DType::F16 => 2f64.powi(-11) + 1e-5,
        DType::BF16 => 2f64.powi(-8) + 1e-5,
        _ => 0.0,
    }
}

/// A slot as the format's definition has it.
fn packed(format: &dyn regraft_backend::SlotFormat, value: &Tensor) -> AlignedVec {
    let (dtype, size) = (value.dtype(), value.dtype().size());
    let mut slot = AlignedVec::zeroed(format.byte_len(dtype, value.shape()).expect("the format takes the weight"));
    for (index, element) in value.bytes().chunks_exact(size).enumerate() {
        let at = format.place(dtype, value.shape(), index);
        slot.bytes_mut()[at..at + size].copy_from_slice(element);
    }
    slot
}

/// Runs `op` by every candidate and compares with the reference, to `slack` times what rounding may change. `known` says which
/// operands are known from sources.
#[track_caller]
fn check(op: impl Into<Op>, inputs: &[Option<Tensor>], known: &[usize], slack: f64) {
    let op = op.into();
    let refs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
    let want = op.eval(&refs).expect("the reference takes it");
    let types: Vec<Option<TensorType>> =
        inputs.iter().map(|t| t.as_ref().map(|t| TensorType::of_sizes(t.dtype(), t.shape()))).collect();
    let out_types: Vec<TensorType> = want.iter().map(|t| TensorType::of_sizes(t.dtype(), t.shape())).collect();
    for isa in Isa::available() {
        let codegen = CpuCodegen::new(isa);
        let operands: Vec<Option<OperandType<'_>>> = (types.iter().enumerate())
            .map(|(i, ty)| ty.as_ref().map(|ty| OperandType { ty, known: known.contains(&i) }))
            .collect();
        let candidates = codegen.candidates(&op, &operands, &out_types.iter().collect::<Vec<_>>());
        assert!(!candidates.is_empty(), "no kernel runs {} of {types:?}", op.name());
        for candidate in &candidates {
            let slots: Vec<(usize, AlignedVec, SlotLayout)> = (candidate.weights.iter())
                .map(|weight| {
                    let value = inputs[weight.operand].clone().expect("a weight is there");
                    let value =
                        weight.prepare.iter().fold(value, |value, op| op.eval(&[Some(&value)]).unwrap().remove(0));
                    let format = codegen.format(&weight.format).expect("a format of the target");
                    let slot = packed(&*format, &value);
                    let (shape, format) = (value.shape().to_vec(), weight.format.clone());
                    let layout = SlotLayout { shape, format, bytes: slot.len() };
                    (weight.operand, slot, layout)
                })
                .collect();
            let strides: Vec<Vec<usize>> =
                inputs.iter().map(|t| t.as_ref().map_or(vec![], |t| contiguous_strides(t.shape()))).collect();
            let slot = |i: usize| slots.iter().find(|slot| slot.0 == i);
            let specs: Vec<Option<Operand<'_>>> = (inputs.iter().enumerate())
                .map(|(i, t)| {
                    let t = t.as_ref()?;
                    let slot = slot(i).map(|slot| &slot.2);
                    Some(Operand { dtype: t.dtype(), shape: t.shape(), strides: &strides[i], slot })
                })
                .collect();
            let results: Vec<ResultType<'_>> =
                want.iter().map(|t| ResultType { dtype: t.dtype(), shape: t.shape() }).collect();
            let bytes: Vec<Option<&[u8]>> = (inputs.iter().enumerate())
                .map(|(i, t)| slot(i).map_or_else(|| t.as_ref().map(Tensor::bytes), |slot| Some(slot.1.bytes())))
                .collect();
            let run = |threads: usize| -> Vec<Tensor> {
                let cx = Cx { isa, threads: Threads::new(threads).unwrap() };
                let node = NodeSpec { kernel: &candidate.kernel, op: &op, inputs: &specs, outputs: &results };
                let kernel = prepare(&cx, &node).unwrap_or_else(|e| panic!("{isa} {}: {e}", candidate.kernel));
                let mut memory: Vec<AlignedVec> = want.iter().map(|t| AlignedVec::zeroed(t.bytes().len())).collect();
                let mut outputs: Vec<&mut [u8]> = memory.iter_mut().map(AlignedVec::bytes_mut).collect();
                run_on_host(&*kernel, &bytes, &mut outputs).expect("no index is out of range");
                let tensor = |(memory, want): (AlignedVec, &Tensor)| {
                    Tensor::new(want.dtype(), want.shape().to_vec(), memory.into()).unwrap()
                };
                memory.into_iter().zip(&want).map(tensor).collect()
            };
            let (one, two) = (run(1), run(2));
            for ((one, two), want) in one.iter().zip(&two).zip(&want) {
                assert!(one.bit_equal(two), "{isa} {}: threads disagree", candidate.kernel);
                let tolerance = slack * rounding(want.dtype());
                for (i, (got, want)) in one.to_f64_vec().into_iter().zip(want.to_f64_vec()).enumerate() {
                    let same = got == want || (got.is_nan() && want.is_nan());
                    let close = (got - want).abs() <= tolerance * (1.0 + want.abs());
                    assert!(same || close, "{isa} {} {types:?}: {got} for {want} at {i}", candidate.kernel);
                }
            }
        }
    }
}

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const INTEGERS: [DType; 5] = [DType::I64, DType::I32, DType::I16, DType::I8, DType::U8];

fn float() -> impl Strategy<Value = DType> {
    prop::sample::select(&FLOATS[..])
}

fn number() -> impl Strategy<Value = DType> {
    prop::sample::select(vec![
        DType::F64,
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::I64,
        DType::I32,
        DType::I16,
        DType::I8,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn linear_layers(dtype in float(), m in 1usize..20, n in 1usize..70, k in 1usize..50, bias: bool, residual: bool) {
        let inputs = [
            Some(values(dtype, &[m, k], 1)), Some(values(dtype, &[n, k], 2)), bias.then(|| values(dtype, &[n], 3)),
            residual.then(|| values(dtype, &[m, n], 4)),
        ];
        check(Linear { act: Activation::Gelu, act_first: true }, &inputs, &[1], 2.0);
        let computed = &inputs[..3];
        check(Linear { act: Activation::None, act_first: false }, computed, &[], 2.0);
    }

    #[test]
    fn products(dtype in float(), batch in 1usize..4, m in 1usize..9, n in 1usize..40, k in 0usize..40, transpose_b: bool) {
        let b = if transpose_b { [batch, n, k] } else { [batch, k, n] };
        check(Matmul { transpose_b }, &[Some(values(dtype, &[batch, m, k], 1)), Some(values(dtype, &b, 2))], &[], 2.0);
    }

    #[test]
    fn products_of_doubles(
        batch in 1usize..4, m in 1usize..15, n in 1usize..40, k in 0usize..40, transpose_b: bool, shared: bool, bias: bool, residual: bool,
        act_first: bool,
    ) {
        let of = |shape: &[usize], seed: usize| Some(values(DType::F64, shape, seed));
        let b = if transpose_b { [n, k] } else { [k, n] };
        let b = if shared { b.to_vec() } else { [vec![batch], b.to_vec()].concat() };
        check(Matmul { transpose_b }, &[of(&[batch, m, k], 1), of(&b, 2)], &[], 20.0);
        let k = k.max(1);
        let inputs = [
            of(&[batch, m, k], 1), of(&[n, k], 2), of(&[n], 3).filter(|_| bias), of(&[batch, m, n], 4).filter(|_| residual),
        ];
        check(Linear { act: Activation::Gelu, act_first }, &inputs, &[1], 20.0);
    }

    #[test]
    fn convolutions(
        dtype in float(), spatial in 1usize..4, groups in prop::sample::select(vec![(1, 3, 5), (2, 2, 3), (4, 1, 1)]),
        size in 4usize..7, kernel in 1usize..4, stride in 1usize..3, dilation in 1usize..3, padding in 0usize..2, last: bool,
        known: bool, residual: bool,
    ) {
        let (groups, ic, oc) = groups;
        prop_assume!(size + 2 * padding > dilation * (kernel - 1));
        let last = last && known;
        let layout = if last { SpatialLayout::Nhwc } else { SpatialLayout::Nchw };
        let conv = Conv {
            stride: vec![stride; spatial], padding: vec![padding; spatial], dilation: vec![dilation; spatial], groups, layout,
            act: Activation::Relu, act_first: false,
        };
        let to = (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
        let image = layout.shape(&2, &(groups * ic), &vec![size; spatial]);
        let weight = [vec![groups * oc, ic], vec![kernel; spatial]].concat();
        let inputs = [
            Some(values(dtype, &image, 1)), Some(values(dtype, &weight, 2)), Some(values(dtype, &[groups * oc], 3)),
            residual.then(|| values(dtype, &layout.shape(&2, &(groups * oc), &vec![to; spatial]), 4)),
        ];
        check(conv, &inputs, if known { &[1] } else { &[] }, 2.0);
    }

    #[test]
    fn attention(dtype in float(), q_len in 1usize..20, kv_len in 1usize..30, dim in 1usize..20, causal: bool, mask in 0usize..3) {
        let masks = [None, Some(values(dtype, &[1, 1, q_len, kv_len], 4)), Some(values(DType::Bool, &[q_len, kv_len], 5))];
        let mask = masks[mask].clone();
        let inputs = [
            Some(values(dtype, &[2, 2, q_len, dim], 1)), Some(values(dtype, &[2, 2, kv_len, dim], 2)),
            Some(values(dtype, &[2, 2, kv_len, dim], 3)), mask,
        ];
        check(Attention { scale: 0.5, causal, out: HeadsLayout::Bshd }, &inputs, &[], 4.0);
    }

    #[test]
    fn norms(dtype in float(), rows in 1usize..9, cols in 1usize..40, last: bool) {
        let affine = |n: usize| [Some(values(dtype, &[n], 2)), Some(values(dtype, &[n], 3))];
        let x = Some(values(dtype, &[rows, cols], 1));
        let [w, b] = affine(cols);
        check(LayerNorm { axes: 1, eps: 1e-3 }, &[x.clone(), w.clone(), b], &[], 10.0);
        check(RmsNorm { axes: 1, eps: 1e-3 }, &[x, w], &[], 10.0);
        let layout = if last { SpatialLayout::Nhwc } else { SpatialLayout::Nchw };
        let x = Some(values(dtype, &layout.shape(&2, &6, &[rows, cols]), 1));
        let [w, b] = affine(6);
        check(GroupNorm { groups: 3, eps: 1e-3, layout }, &[x, w, b], &[], 10.0);
    }

    #[test]
    fn softmax(dtype in float(), shape in prop::collection::vec(1usize..9, 3), axis in 0usize..3, log: bool) {
        check(Softmax { axis, log }, &[Some(values(dtype, &shape, 1))], &[], 2.0);
    }

    #[test]
    fn pools(dtype in float(), channels in 1usize..9, size in 4usize..8, kernel in 2usize..4, stride in 1usize..3, padding in 0usize..2) {
        let layout = SpatialLayout::Nhwc;
        let x = [Some(values(dtype, &[2, size, size, channels], 1))];
        let (kernel, stride, padding) = (vec![kernel; 2], vec![stride; 2], vec![padding; 2]);
        check(MaxPool {
            kernel: kernel.clone(), stride: stride.clone(), padding: padding.clone(), dilation: vec![1; 2], ceil: false, layout,
        }, &x, &[], 1.0);
        check(AvgPool { kernel, stride, padding, ceil: true, count_include_pad: true, divisor: None, layout }, &x, &[], 1.0);
        check(AdaptiveAvgPool { size: vec![1, 1], layout }, &x, &[], 2.0);
    }

    #[test]
    fn resampling(dtype in float(), spatial in 1usize..4, size in 1usize..6, to in 1i64..9, align_corners: bool, last: bool) {
        let layout = if last { SpatialLayout::Nhwc } else { SpatialLayout::Nchw };
        let x = [Some(values(dtype, &layout.shape(&2, &3, &vec![size; spatial]), 1))];
        for mode in ResizeMode::ALL.iter().copied() {
            let op = Resize { mode, size: vec![Dim::new(to); spatial], align_corners, scales: None, layout };
            check(op, &x, &[], 2.0);
        }
    }

    #[test]
    fn reductions(dtype in number(), shape in prop::collection::vec(1usize..9, 3), first in 0usize..3, count in 1usize..4) {
        let axes: Vec<usize> = (first..(first + count).min(3)).collect();
        let x = [Some(values(dtype, &shape, 1))];
        for f in [ReduceFn::Sum, ReduceFn::Mean, ReduceFn::Max, ReduceFn::Min, ReduceFn::Prod, ReduceFn::Any, ReduceFn::All] {
            if f != ReduceFn::Mean || dtype.is_float() {
                check(Reduce { f, axes: axes.clone(), keep: false }, &x, &[], 20.0);
            }
        }
        for f in [ArgReduceFn::Max, ArgReduceFn::Min] {
            check(ArgReduce { f, axis: first, keep: true }, &x, &[], 0.0);
        }
        check(Cumsum { axis: first }, &x, &[], 1.0);
    }

    #[test]
    fn indexing(dtype in number(), index in prop::sample::select(vec![DType::I64, DType::I32]), rows in 1usize..6, points in 1usize..9) {
        let ids = |size: usize, shape: &[usize], seed: usize| {
            let count: usize = shape.iter().product();
            let at = |i: usize| ((i * 7 + seed) % size) as i64;
            Some(Tensor::from_i64(index, shape, &(0..count).map(at).collect::<Vec<_>>()))
        };
        let table = Some(values(dtype, &[rows, 5], 1));
        check(Embedding {}, &[table.clone(), ids(rows, &[2, points], 1)], &[], 0.0);
        check(Gather { axis: 0 }, &[table.clone(), ids(rows, &[points, 4], 2)], &[], 0.0);
        check(Gather { axis: 1 }, &[table, ids(5, &[rows, points], 3)], &[], 0.0);
        let x = Some(values(dtype, &[2, rows, 4, 3], 1));
        check(Index { axis: 1 }, &[x.clone(), ids(rows, &[points, 1], 1), ids(4, &[2], 2)], &[], 0.0);
        check(Index { axis: 3 }, &[x, ids(3, &[points], 1)], &[], 0.0);
    }

    #[test]
    fn moves(dtype in number(), shape in prop::collection::vec(2usize..7, 3), axes in 0usize..8, by in prop::collection::vec(-1i64..4, 6)) {
        let x = [Some(values(dtype, &shape, 1))];
        check(Flip { axes: (0..3).filter(|i| axes >> i & 1 == 1).collect() }, &x, &[], 0.0);
        let (before, after) = (by[..3].to_vec(), by[3..].to_vec());
        let value = Scalar::Float(3.0);
        check(Pad { before, after, value, mode: PadMode::Constant }, &x, &[], 0.0);
        let inside = |by: &[i64]| by.iter().zip(&shape).map(|(b, s)| (*b).clamp(0, *s as i64 - 1)).collect::<Vec<_>>();
        for mode in [PadMode::Reflect, PadMode::Replicate] {
            check(Pad { before: inside(&by[..3]), after: inside(&by[3..]), value, mode }, &x, &[], 0.0);
        }
        check(Concat { axis: 1 }, &[x[0].clone(), x[0].clone()], &[], 0.0);
    }

    #[test]
    fn lstm(dtype in float(), time in 1usize..5, batch in 1usize..4, hidden in 1usize..20, reverse: bool, bias: bool) {
        let inputs = [
            Some(values(dtype, &[time, batch, 4 * hidden], 1)), Some(values(dtype, &[batch, hidden], 2)),
            Some(values(dtype, &[batch, hidden], 3)), Some(values(dtype, &[4 * hidden, hidden], 4)),
            bias.then(|| values(dtype, &[4 * hidden], 5)),
        ];
        check(Lstm { reverse }, &inputs, &[], 2.0);
    }
}

/// The reference rounds after every step, and so does this where a step stands alone.
mod elementwise {
    use regraft_ir::ops::{BinaryFn, CompareFn, Fused, FusedFn, FusedStep, UnaryFn};

    use super::*;

    fn one(f: FusedFn, args: &[u32]) -> Fused {
        Fused { steps: vec![FusedStep { f, args: args.to_vec() }] }
    }

    fn takes(f: FusedFn, inputs: &[Option<Tensor>]) -> bool {
        let dtypes: Vec<DType> = inputs.iter().flatten().map(Tensor::dtype).collect();
        let args: Vec<u32> = (0..dtypes.len() as u32).collect();
        one(f, &args).dtypes(&dtypes).is_ok()
    }

    fn all() -> impl Iterator<Item = DType> {
        FLOATS.into_iter().chain(INTEGERS).chain([DType::F64, DType::Bool])
    }

    #[test]
    fn functions_of_one_value() {
        for (dtype, f) in all().flat_map(|d| UnaryFn::ALL.iter().map(move |f| (d, *f))) {
            let x = [Some(values(dtype, &[3, 700], 1))];
            if takes(FusedFn::Unary(f), &x) {
                check(one(FusedFn::Unary(f), &[0]), &x, &[], 2.0);
            }
        }
    }

    #[test]
    fn functions_of_two_values() {
        for (dtype, f) in all().flat_map(|d| BinaryFn::ALL.iter().map(move |f| (d, *f))) {
            let inputs = [Some(values(dtype, &[4, 300], 1)), Some(values(dtype, &[1, 300], 2))];
            if takes(FusedFn::Binary(f), &inputs) {
                check(one(FusedFn::Binary(f), &[0, 1]), &inputs, &[], 2.0);
            }
        }
    }

    #[test]
    fn comparisons_selections_and_casts() {
        for dtype in all() {
            let (a, b) = (values(dtype, &[4, 300], 1), values(dtype, &[4, 1], 2));
            for f in CompareFn::ALL {
                check(one(FusedFn::Compare(*f), &[0, 1]), &[Some(a.clone()), Some(b.clone())], &[], 0.0);
            }
            let inputs = [Some(values(DType::Bool, &[4, 300], 3)), Some(a.clone()), Some(b)];
            check(one(FusedFn::Select, &[0, 1, 2]), &inputs, &[], 0.0);
            for to in all() {
                check(one(FusedFn::Cast(to), &[0]), &[Some(a.clone())], &[], 0.0);
            }
        }
    }
}
