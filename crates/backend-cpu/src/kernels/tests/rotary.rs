//! Rotary embeddings: of angles that broadcast, and of heads that lie as projections leave them.

use regraft_backend::KernelId;
use regraft_ir::ops::{Permute, Rotary, Slice};

use super::*;
use crate::kernels::reads_strided;

/// Runs the kernel on heads `[b, h, s, d]` that are seen in `memory`, `[b, s, 3·h·d]`, from its element `first` on.
fn of_heads(isa: Isa, memory: &Tensor, shape: [usize; 4], first: usize, angles: [&Tensor; 2]) -> Tensor {
    let [_, h, s, d] = shape;
    let (kernel, op, size) = (KernelId::new("rotary.rows"), Op::from(Rotary {}), memory.dtype().size());
    let strides = [s * 3 * h * d, d, 3 * h * d, 1];
    let x = Operand { dtype: memory.dtype(), shape: &shape, strides: &strides, slot: None };
    assert!(reads_strided(&kernel, &op, 0, &x), "heads need no copy");
    let angle_strides = contiguous_strides(angles[0].shape());
    let [cos, sin] =
        angles.map(|t| Operand { dtype: t.dtype(), shape: t.shape(), strides: &angle_strides, slot: None });
    let inputs = [x, cos, sin].map(Some);
    let outputs = [ResultType { dtype: memory.dtype(), shape: &shape }];
    let cx = Cx { isa, threads: Threads::new(2).unwrap() };
    let prepared = prepare(&cx, &NodeSpec { kernel: &kernel, op: &op, inputs: &inputs, outputs: &outputs }).unwrap();
    let mut out = AlignedVec::zeroed(shape.iter().product::<usize>() * size);
    let reads = [&memory.bytes()[first * size..], angles[0].bytes(), angles[1].bytes()].map(Some);
    run_on_host(&*prepared, &reads, &mut [out.bytes_mut()]).unwrap();
    Tensor::new(memory.dtype(), shape.to_vec(), out.into()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn angles_broadcast(
        dtype in float(), angles in float(), shape in prop::collection::vec(1usize..6, 0..4), half in 0usize..80,
        ones in 0usize..8, fewer in 0usize..4,
    ) {
        let shape = [shape, vec![2 * half]].concat();
        let own = shape.iter().enumerate().map(|(i, size)| if i + 1 < shape.len() && ones >> i & 1 == 1 { 1 } else { *size });
        let own: Vec<usize> = own.skip(fewer.min(shape.len() - 1)).collect();
        let inputs = [values(dtype, &shape, 1), values(angles, &own, 2), values(angles, &own, 3)].map(Some);
        check(Rotary {}, &inputs, &[], 2.0);
    }

    #[test]
    fn heads_are_read_where_they_lie(
        dtype in float(), b in 1usize..3, h in 1usize..5, s in 1usize..6, half in 1usize..70, part in 0usize..3,
    ) {
        let d = 2 * half;
        let memory = values(dtype, &[b, s, 3 * h * d], 1);
        let angles = [2, 3].map(|seed| values(DType::F32, &[b, 1, s, d], seed));
        let (start, end) = (Dim::from(part * h * d), Dim::from((part + 1) * h * d));
        let heads = Op::from(Slice { axis: 2, start, end, step: 1 }).eval(&[Some(&memory)]).unwrap().remove(0);
        let heads = heads.reshape(&[b, s, h, d]).unwrap();
        let heads = Op::from(Permute { perm: vec![0, 2, 1, 3] }).eval(&[Some(&heads)]).unwrap().remove(0);
        let want = Op::from(Rotary {}).eval(&[Some(&heads), Some(&angles[0]), Some(&angles[1])]).unwrap().remove(0);
        for isa in Isa::available() {
            let got = of_heads(isa, &memory, [b, h, s, d], part * h * d, [&angles[0], &angles[1]]);
            for (got, want) in got.to_f64_vec().into_iter().zip(want.to_f64_vec()) {
                let close = (got - want).abs() <= 2.0 * rounding(dtype) * (1.0 + want.abs());
                assert!(close, "{isa}: {got} for {want}");
            }
        }
    }
}
