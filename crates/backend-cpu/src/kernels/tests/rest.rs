//! Kernels of ops that few models have, and of forms that they rarely take.

use regraft_ir::ops::{
    AdaptiveAvgPool, AvgPool, BatchNorm, ConvPair, ConvTranspose, Cumulate, CumulateFn, Full, IndexPut, Iota, MaxPool,
    PutFn, SizeOf, Sort,
};

use super::*;

fn any() -> impl Strategy<Value = DType> {
    prop::sample::select(DType::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn transposed_convolutions(
        dtype in float(), spatial in 1usize..4, groups in prop::sample::select(vec![(1, 3, 5), (2, 2, 3), (3, 1, 1), (1, 4, 18)]),
        size in 1usize..6, wide in 1usize..40, kernel in 1usize..5, stride in 1usize..4, padding in 0usize..3, dilation in 1usize..3,
        extra in 0usize..2, bias: bool, known: bool,
    ) {
        let (groups, ic, oc) = groups;
        prop_assume!((size.min(wide) - 1) * stride + dilation * (kernel - 1) + 1 + extra > 2 * padding);
        let op = ConvTranspose {
            stride: vec![stride; spatial], padding: vec![padding; spatial], output_padding: vec![extra; spatial],
            dilation: vec![dilation; spatial], groups,
        };
        // Lines of one axis may be so long that they are cut.
        let wide = if spatial == 1 { 8 * wide } else { wide };
        let image = [vec![2, groups * ic], vec![size; spatial - 1], vec![wide]].concat();
        let weight = [vec![groups * ic, oc], vec![kernel; spatial]].concat();
        let inputs = [
            Some(values(dtype, &image, 1)), Some(values(dtype, &weight, 2)), bias.then(|| values(dtype, &[groups * oc], 3)),
        ];
        check(op, &inputs, if known { &[1] } else { &[] }, 2.0);
    }

    #[test]
    fn pairs_of_convolutions(
        size in prop::array::uniform2(1usize..19), channels in (1usize..20, 1usize..80), kernel in prop::array::uniform2(1usize..6),
        stride in 1usize..3, dilation in 1usize..3, padding in 0usize..3, biases: [bool; 2], act in prop::sample::select(Activation::ALL),
    ) {
        prop_assume!((0..2).all(|i| size[i] + 2 * padding > dilation * (kernel[i] - 1)));
        let op = ConvPair {
            stride: vec![stride; 2], padding: vec![padding; 2], dilation: vec![dilation; 2], inner_act: act, act: Activation::Relu,
        };
        let (outer, between) = channels;
        let bias = |i: usize| biases[i].then(|| values(DType::F32, &[between], 3 + i));
        let inputs = [
            Some(values(DType::F32, &[2, size[0], size[1], outer], 1)), Some(values(DType::F32, &[between, outer, 1, 1], 2)), bias(0),
            Some(values(DType::F32, &[between, 1, kernel[0], kernel[1]], 5)), bias(1),
        ];
        check(op, &inputs, &[1, 3], 2.0);
    }

    #[test]
    fn kernels_of_whole_steps(
        dtype in float(), channels in prop::array::uniform2(1usize..20), axes in prop::collection::vec((1usize..5, 1usize..4, 1usize..3), 1..4),
        cut in 0usize..9, extra in 0usize..3, wide in 1usize..90, bias: bool,
    ) {
        let stride: Vec<usize> = axes.iter().map(|axis| axis.1).collect();
        let kernel: Vec<usize> = axes.iter().map(|(_, stride, taps)| stride * taps).collect();
        let mut image: Vec<usize> = axes.iter().map(|axis| axis.0).collect();
        image[axes.len() - 1] = if axes.len() == 3 { wide % 20 + 1 } else { wide };
        let padding: Vec<usize> = kernel.iter().zip(&image).zip(&stride)
            .map(|((kernel, size), stride)| (cut % kernel).min(((size - 1) * stride + kernel - 1) / 2)).collect();
        let spatial = axes.len();
        let op = ConvTranspose {
            stride, padding, output_padding: vec![extra; spatial], dilation: vec![1; spatial], groups: 1,
        };
        let image = [vec![2, channels[0]], image].concat();
        let inputs = [
            Some(values(dtype, &image, 1)), Some(values(dtype, &[channels.to_vec(), kernel].concat(), 2)),
            bias.then(|| values(dtype, &[channels[1]], 3)),
        ];
        check(op, &inputs, &[1], 2.0);
    }

    #[test]
    fn pools_of_every_form(
        dtype in float(), spatial in 1usize..4, channels in 1usize..5, size in 3usize..7, kernel in 1usize..4, stride in 1usize..3,
        padding in 0usize..2, dilation in 1usize..3, last: bool, ceil: bool, count_include_pad: bool,
        divisor in prop::option::of(1usize..9), to in 1usize..9,
    ) {
        let layout = if last { SpatialLayout::Nhwc } else { SpatialLayout::Nchw };
        let x = [Some(values(dtype, &layout.shape(&2, &channels, &vec![size; spatial]), 1))];
        let padding = if 2 * padding > kernel { 0 } else { padding };
        let list = |value: usize| vec![value; spatial];
        let (kernel, stride, padding) = (list(kernel), list(stride), list(padding));
        if dilation * (kernel[0] - 1) < size {
            check(MaxPool {
                kernel: kernel.clone(), stride: stride.clone(), padding: padding.clone(), dilation: list(dilation), ceil, layout,
            }, &x, &[], 1.0);
        }
        check(AvgPool { kernel, stride, padding, ceil, count_include_pad, divisor, layout }, &x, &[], 2.0);
        check(AdaptiveAvgPool { size: list(to), layout }, &x, &[], 2.0);
        check(AdaptiveAvgPool { size: list(1), layout }, &x, &[], 2.0);
    }

    #[test]
    fn batch_norms(dtype in float(), channels in 1usize..40, spatial in prop::collection::vec(1usize..6, 0..3), last: bool, affine: bool) {
        let layout = if last { SpatialLayout::Nhwc } else { SpatialLayout::Nchw };
        let of = |seed: usize| Some(values(dtype, &[channels], seed));
        let variance = Tensor::from_f64(dtype, &[channels], &(1..=channels).map(|i| i as f64 / 8.0).collect::<Vec<_>>());
        let affine = |seed: usize| of(seed).filter(|_| affine);
        let x = Some(values(dtype, &layout.shape(&3, &channels, &spatial), 1));
        check(BatchNorm { eps: 1e-3, layout }, &[x, of(2), Some(variance), affine(3), affine(4)], &[], 4.0);
    }

    #[test]
    fn reductions_of_any_axes(dtype in number(), shape in prop::collection::vec(1usize..6, 4), axes in 0usize..16, keep: bool) {
        let axes: Vec<usize> = (0..4).filter(|i| axes >> i & 1 == 1).collect();
        let x = [Some(values(dtype, &shape, 1))];
        for f in [ReduceFn::Sum, ReduceFn::Mean, ReduceFn::Max, ReduceFn::Prod, ReduceFn::Any, ReduceFn::All] {
            if f != ReduceFn::Mean || dtype.is_float() {
                check(Reduce { f, axes: axes.clone(), keep }, &x, &[], 20.0);
            }
        }
    }

    #[test]
    fn what_runs_along_an_axis(dtype in any(), shape in prop::collection::vec(1usize..9, 3), wide in 1usize..400, axis in 0usize..3) {
        let shape = [shape[0], shape[1], if axis == 2 { shape[2] } else { wide }];
        let x = [Some(values(dtype, &shape, 1))];
        for f in [CumulateFn::Prod, CumulateFn::LogSumExp, CumulateFn::ArgMax, CumulateFn::ArgMin] {
            let takes = match f {
                CumulateFn::Prod => dtype != DType::Bool,
                CumulateFn::LogSumExp => dtype.is_float(),
                _ => true,
            };
            if takes {
                check(Cumulate { f, axis }, &x, &[], 1.0);
            }
        }
    }

    #[test]
    fn sorted(dtype in any(), shape in prop::collection::vec(1usize..9, 2), long in 1usize..300, axis in 0usize..3, descending: bool) {
        let mut shape = shape;
        shape.insert(axis, long);
        let x = [Some(values(dtype, &shape, 1))];
        check(Sort { axis, descending, keep: None }, &x, &[], 0.0);
        check(Sort { axis, descending, keep: Some(long / 3) }, &x, &[], 0.0);
    }

    #[test]
    fn written_by_index(
        dtype in any(), index in prop::sample::select(vec![DType::I64, DType::I32]), f in prop::sample::select(PutFn::ALL.to_vec()),
        sizes in prop::collection::vec(1usize..5, 3), wide in 1usize..300, axis in 0usize..3, several: bool, points in 1usize..6,
        broadcast in 0usize..3,
    ) {
        let shape = [sizes[0], sizes[1], if axis == 2 { sizes[2] } else { wide }];
        let indices = if several && axis < 2 { 2 } else { 1 };
        let at = |seed: usize, shape: &[usize], size: usize| {
            let count: usize = shape.iter().product();
            let at = |i: usize| ((i * 7 + seed) % (2 * size)) as i64 - size as i64;
            Some(Tensor::from_i64(index, shape, &(0..count).map(at).collect::<Vec<_>>()))
        };
        let mut inputs = vec![Some(values(dtype, &shape, 1)), None, at(1, &[points, 1], shape[axis])];
        let mut written = [&shape[..axis], &[points, 1], &shape[axis + indices..]].concat();
        if indices == 2 {
            inputs.push(at(2, &[3], shape[axis + 1]));
            written[axis + 1] = 3;
        }
        let values_shape = match broadcast {
            0 => written.clone(),
            1 => vec![],
            _ => written.iter().enumerate().map(|(i, size)| if i % 2 == 0 { 1 } else { *size }).collect(),
        };
        inputs[1] = Some(values(dtype, &values_shape, 5));
        check(IndexPut { axis, f }, &inputs, &[], 2.0);
    }

    #[test]
    fn few_of_many(dtype in any(), long in 1usize..3000, keep in 1usize..40, outer in 1usize..3, inner in 1usize..3, descending: bool) {
        let x = [Some(values(dtype, &[outer, long, inner], 1))];
        check(Sort { axis: 1, descending, keep: Some(keep.min(long)) }, &x, &[], 0.0);
    }

    #[test]
    fn scattered(
        dtype in any(), index in prop::sample::select(vec![DType::I64, DType::I32]), f in prop::sample::select(PutFn::ALL.to_vec()),
        sizes in prop::array::uniform3(1usize..7), wide in 1usize..300, to in prop::array::uniform3(1usize..9),
    ) {
        let shape = [sizes[0], sizes[1], if sizes[2] == 1 { wide } else { sizes[2] }];
        // As `scatter` along the last axis is expressed: the place in each axis before, and an index in the last.
        let numbers = |shape: &[usize], at: &dyn Fn(usize) -> i64| {
            let count: usize = shape.iter().product();
            Some(Tensor::from_i64(index, shape, &(0..count).map(at).collect::<Vec<_>>()))
        };
        let x = [shape[0] + to[0], shape[1] + to[1], to[2]];
        let last = |i: usize| (i * 7919 % (2 * to[2])) as i64 - to[2] as i64;
        let inputs = [
            Some(values(dtype, &x, 1)), Some(values(dtype, &shape, 2)), numbers(&[shape[0], 1, 1], &|i| i as i64),
            numbers(&[shape[1], 1], &|i| i as i64), numbers(&shape, &last),
        ];
        check(IndexPut { axis: 0, f }, &inputs, &[], 2.0);
    }

    #[test]
    fn made_of_nothing(dtype in any(), shape in prop::collection::vec(0i64..9, 0..3), value in -3i64..200, step in -3i64..4, len in 0i64..70_000) {
        let dims: Vec<Dim> = shape.iter().map(|d| Dim::new(*d)).collect();
        check(Full { value: Scalar::Int(value), dtype, shape: dims.clone() }, &[], &[], 0.0);
        if dtype.is_float() {
            check(Full { value: Scalar::Float(0.3), dtype, shape: dims }, &[], &[], 0.0);
        }
        if dtype != DType::Bool {
            check(Iota { len: Dim::new(len), start: Dim::new(value), step: Dim::new(step), dtype }, &[], &[], 0.0);
        }
        check(SizeOf { value: Dim::new(value) }, &[], &[], 0.0);
    }
}

#[test]
fn sorted_with_nan_and_zeros() {
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        let x = [f64::NAN, 1.0, -0.0, 0.0, f64::INFINITY, f64::NEG_INFINITY, -1.0, f64::NAN, 0.0, -0.0];
        let x = [Some(Tensor::from_f64(dtype, &[10], &x))];
        for descending in [false, true] {
            check(Sort { axis: 0, descending, keep: None }, &x, &[], 0.0);
        }
        for f in [CumulateFn::ArgMax, CumulateFn::ArgMin, CumulateFn::LogSumExp] {
            check(Cumulate { f, axis: 0 }, &x, &[], 1.0);
        }
    }
}
