//! Random chains against the reference evaluator.

use proptest::prelude::*;
use regraft_backend::{KernelId, NodeSpec, Operand, ResultType};
use regraft_ir::{
    Op, Scalar,
    ops::{BinaryFn, CompareFn, Fused, FusedFn, FusedStep, UnaryFn},
};
use regraft_tensor::{DType, Tensor, contiguous_strides};

use crate::{
    Isa, Threads,
    kernels::{Cx, prepare, run_on_host},
};

/// Runs `op` as a kernel on contiguous operands.
fn run(isa: Isa, op: &Op, inputs: &[Tensor], out_shape: &[usize], out: DType) -> Vec<u8> {
    let kernel = KernelId::new(super::FUSED);
    let strides: Vec<_> = inputs.iter().map(|t| contiguous_strides(t.shape())).collect();
    let operands: Vec<_> = (inputs.iter().zip(&strides))
        .map(|(t, strides)| Some(Operand { dtype: t.dtype(), shape: t.shape(), strides, slot: None }))
        .collect();
    let outputs = [ResultType { dtype: out, shape: out_shape }];
    let cx = Cx { isa, threads: Threads::new(2).unwrap() };
    let node = NodeSpec { kernel: &kernel, op, inputs: &operands, outputs: &outputs };
    let prepared = prepare(&cx, &node).unwrap();
    let mut bytes = regraft_tensor::AlignedVec::zeroed(out_shape.iter().product::<usize>() * out.size());
    let reads: Vec<_> = inputs.iter().map(|t| Some(t.bytes())).collect();
    run_on_host(&*prepared, &reads, &mut [bytes.bytes_mut()]).unwrap();
    bytes.bytes().to_vec()
}

fn step(f: FusedFn, args: &[u32]) -> FusedStep {
    FusedStep { f, args: args.to_vec() }
}

fn values(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product();
    let data: Vec<f32> = (0..count).map(|i| ((i * 31 + seed * 17) * 7919 % 2003) as f32 / 500.0 - 2.0).collect();
    Tensor::from_slice(shape, &data)
}

fn assert_close(got: &[u8], want: &Tensor) {
    let got: Vec<f32> = bytemuck::pod_collect_to_vec(got);
    for (got, want) in got.iter().zip(want.to_f64_vec()) {
        let got = f64::from(*got);
        let same = got == want || (got.is_nan() && want.is_nan());
        assert!(same || (got - want).abs() <= 1e-6 * (1.0 + want.abs()), "{got} for {want}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn chains_equal_the_reference(
        shape in proptest::collection::vec(1usize..40, 1..4),
        broadcast in proptest::collection::vec(any::<bool>(), 3),
        f in 0..UnaryFn::ALL.len(),
        g in 0..BinaryFn::ALL.len(),
    ) {
        let (f, g) = (UnaryFn::ALL[f], BinaryFn::ALL[g]);
        prop_assume!(f != UnaryFn::Not && !matches!(g, BinaryFn::And | BinaryFn::Or | BinaryFn::Xor));
        prop_assume!(!matches!(g, BinaryFn::Shl | BinaryFn::Shr | BinaryFn::Gcd));
        // Where the function jumps or blows up, one rounding before it makes any difference after it.
        prop_assume!(!matches!(g, BinaryFn::FloorDiv | BinaryFn::TruncDiv | BinaryFn::Rem | BinaryFn::Fmod | BinaryFn::Pow));
        let small: Vec<usize> = shape.iter().zip(broadcast).map(|(&d, b)| if b { 1 } else { d }).collect();
        let (a, b) = (values(&shape, 1), values(&small, 2));
        let fused: Op = Fused { steps: vec![step(FusedFn::Binary(g), &[0, 1]), step(FusedFn::Unary(f), &[0]), step(FusedFn::Binary(BinaryFn::Add), &[2, 3])] }.into();
        let want = fused.eval(&[Some(&a), Some(&b)]).unwrap().remove(0);
        for isa in Isa::available() {
            assert_close(&run(isa, &fused, &[a.clone(), b.clone()], &shape, DType::F32), &want);
        }
    }

    #[test]
    fn two_steps_in_one_loop_round_as_one_by_one(
        shape in proptest::collection::vec(1usize..40, 1..4),
        broadcast in proptest::collection::vec(any::<[bool; 2]>(), 3),
        f in proptest::sample::select(vec![BinaryFn::Add, BinaryFn::Sub, BinaryFn::Mul]),
        g in proptest::sample::select(vec![BinaryFn::Add, BinaryFn::Sub, BinaryFn::Mul]),
        turned: bool,
        again: bool,
    ) {
        let small = |i: usize| shape.iter().zip(&broadcast).map(|(&d, b)| if b[i] { 1 } else { d }).collect::<Vec<_>>();
        let inputs = [values(&shape, 1), values(&small(0), 2), values(&small(1), 3)];
        let mut steps = vec![
            step(FusedFn::Binary(f), &[0, 1]),
            step(FusedFn::Binary(g), if turned { &[2, 3] } else { &[3, 2] }),
        ];
        // Then the first result is used by two.
        steps.extend(again.then(|| step(FusedFn::Binary(f), &[3, 4])));
        let fused: Op = Fused { steps }.into();
        let want = fused.eval(&inputs.each_ref().map(Some)).unwrap().remove(0);
        for isa in Isa::available() {
            prop_assert_eq!(run(isa, &fused, &inputs, &shape, DType::F32), want.bytes());
        }
    }

    #[test]
    fn halves_are_widened_and_narrowed_where_they_are(
        rows in 1usize..4,
        cols in proptest::sample::select(vec![1, 7, 300, 9000]),
        half in proptest::sample::select(vec![DType::F16, DType::BF16]),
        broadcast: bool,
    ) {
        let narrow = |shape: [usize; 2], seed| Tensor::from_f64(half, &shape, &values(&shape, seed).to_f64_vec());
        let (a, b) = (narrow([rows, cols], 1), narrow([rows, if broadcast { 1 } else { cols }], 2));
        let steps = vec![
            step(FusedFn::Cast(DType::F32), &[0]),
            step(FusedFn::Cast(DType::F32), &[1]),
            step(FusedFn::Literal(Scalar::Float(0.25), DType::F32), &[]),
            step(FusedFn::Binary(BinaryFn::Mul), &[2, 3]),
            step(FusedFn::Binary(BinaryFn::Add), &[5, 4]),
            step(FusedFn::Cast(half), &[6]),
        ];
        let single = [BinaryFn::Add, BinaryFn::Sub, BinaryFn::Mul].map(|f| vec![step(FusedFn::Binary(f), &[0, 1])]);
        for steps in single.into_iter().chain([steps]) {
            let fused: Op = Fused { steps }.into();
            let want = fused.eval(&[Some(&a), Some(&b)]).unwrap().remove(0);
            for isa in Isa::available() {
                prop_assert_eq!(run(isa, &fused, &[a.clone(), b.clone()], &[rows, cols], half), want.bytes());
            }
        }
    }
}

#[test]
fn masks_are_computed_in_their_own_dtypes() {
    let (i, j) = (
        Tensor::from_slice(&[1, 300], &(0..300i64).collect::<Vec<_>>()),
        Tensor::from_slice(&[5, 1], &[0i64, 10, 299, -1, 300]),
    );
    let steps = vec![
        step(FusedFn::Compare(CompareFn::Le), &[0, 1]),
        step(FusedFn::Literal(Scalar::Float(0.0), DType::F32), &[]),
        step(FusedFn::Literal(Scalar::Float(f64::NEG_INFINITY), DType::F32), &[]),
        step(FusedFn::Select, &[2, 3, 4]),
    ];
    let fused: Op = Fused { steps }.into();
    let want = fused.eval(&[Some(&i), Some(&j)]).unwrap().remove(0);
    for isa in Isa::available() {
        assert_eq!(run(isa, &fused, &[i.clone(), j.clone()], &[5, 300], DType::F32), want.bytes());
    }
}
