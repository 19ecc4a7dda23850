//! Transposed convolutions.
//!
//! A weight that is known ahead, and whose kernel is whole steps long, is packed for a product over steps (`conv_transpose.panels`).
//! All others are sorted by the places within a step in every run (`conv_transpose.phases`).

use regraft_backend::{BackendError, Candidate, DataError, KernelId, NodeSpec, OperandType, WeightLayout};
use regraft_ir::{
    Op, TensorType,
    ops::{ConvTranspose, Permute, Reshape},
};
use regraft_tensor::Dim;

use super::{
    CpuKernel, Cx, Family,
    support::{Seen, Types, Why, expect_panels, expect_plain, never_strided, operand, plain, three, unsupported},
};
use crate::{
    Isa, Scratch,
    format::Panels,
    gemm::{Window3, panel_widths_of},
    nn::{
        subpixel::{Subpixel, SubpixelArgs, subpixel},
        transposed::{Transposed, TransposedArgs, transposed},
    },
    simd::{FloatType, with_floats_mut},
};

const PANELS: &str = "conv_transpose.panels";
const PHASES: &str = "conv_transpose.phases";

pub(super) const FAMILY: Family = Family { ids: &[PANELS, PHASES], candidates, reads_strided: never_strided, prepare };

/// The most phases: each has lists of its own.
const MOST_PHASES: usize = 1 << 12;

/// How a node is run.
enum Spec<'a> {
    /// By a packed weight of this type and these sizes.
    Panels(&'a ConvTranspose, FloatType, Vec<usize>),
    /// By a weight as it is.
    Phases(&'a ConvTranspose),
}

/// Any of floats, with strides that a model has.
fn accept<'a>(node: &Seen<'a>) -> Result<Spec<'a>, Why> {
    let Op::ConvTranspose(op) = node.op else { return Err(Why("it is not a transposed convolution")) };
    node.all_floats()?;
    if let Some((ty, weight)) = node.weight(1).ok().filter(|(_, weight)| has_whole_steps(op, &weight[2..])) {
        return Ok(Spec::Panels(op, ty, weight));
    }
    if op.stride.iter().fold(1, |phases: usize, stride| phases.saturating_mul(*stride)) > MOST_PHASES {
        return Err(Why("its strides are too large"));
    }
    Ok(Spec::Phases(op))
}

/// Whether a kernel without gaps is a whole number of steps long along each axis, and reaches beyond what is cut off.
fn has_whole_steps(op: &ConvTranspose, kernel: &[usize]) -> bool {
    let along = |(axis, &size): (usize, &usize)| {
        let gaps = size > 1 && op.dilation[axis] > 1;
        size.is_multiple_of(op.stride[axis]) && op.padding[axis] < size && !gaps
    };
    op.groups == 1 && kernel.iter().enumerate().all(along)
}

fn candidates(isa: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    match accept(&Seen::of_types(op, inputs)) {
        Ok(Spec::Panels(op, ty, weight)) => {
            let packed = |nr| {
                let (prepare, format) = (matrices_of(op, &weight), Panels { ty, nr }.id());
                let weights = vec![WeightLayout { operand: 1, prepare, format }];
                Candidate { kernel: KernelId::new(PANELS), weights }
            };
            panel_widths_of(isa, ty).map(packed).collect()
        }
        Ok(Spec::Phases(_)) => plain(Ok(PHASES)),
        Err(why) => plain(Err(why)),
    }
}

/// Sizes of a packed weight: matrices, and rows and columns of each.
fn packed_shape(op: &ConvTranspose, weight: &[usize]) -> [usize; 3] {
    let stride = three(&op.stride, 1);
    let taps: usize = weight[2..].iter().zip(&op.stride).map(|(size, stride)| size / stride).product();
    [stride[0] * stride[1], taps * weight[0], stride[2] * weight[1]]
}

/// The ops that make `[places along the slower axes, taps · in, places along the last axis · out]` of a weight `[in, out, kernel...]`:
/// element `tap · stride + place` of an axis belongs to that tap and that place.
fn matrices_of(op: &ConvTranspose, weight: &[usize]) -> Vec<Op> {
    let dims = |sizes: &[usize]| sizes.iter().map(|&d| Dim::from(d)).collect::<Vec<_>>();
    let (axes, mut split) = (op.stride.len(), weight[..2].to_vec());
    split.extend(weight[2..].iter().zip(&op.stride).flat_map(|(size, stride)| [size / stride, *stride]));
    let (taps, places) = ((0..axes).map(|axis| 2 + 2 * axis), (0..axes).map(|axis| 3 + 2 * axis));
    let perm = places.clone().take(axes - 1).chain(taps).chain([0]).chain(places.skip(axes - 1)).chain([1]).collect();
    vec![
        Reshape { shape: dims(&split) }.into(),
        Permute { perm }.into(),
        Reshape { shape: dims(&packed_shape(op, weight)) }.into(),
    ]
}

enum Plan {
    Panels(Subpixel),
    Phases(Transposed),
}

struct Prepared {
    cx: Cx,
    types: Types,
    plan: Plan,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let spec = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    let types = Types::expect(node, 0..3)?;
    let (x, w, out) = (operand(node, 0)?.shape, operand(node, 1)?.shape, node.outputs[0].shape);
    let window = |op: &ConvTranspose| Window3 {
        batch: x[0],
        input: three(&x[2..], 1),
        output: three(&out[2..], 1),
        kernel: three(&w[2..], 1),
        stride: three(&op.stride, 1),
        dilation: three(&op.dilation, 1),
        padding: three(&op.padding, 0),
    };
    let channels = [x[1], out[1]];
    let plan = match spec {
        Spec::Panels(op, ty, weight) => {
            let format = expect_panels(node, cx.isa, 1, &packed_shape(op, &weight))?;
            expect_plain(node, [0, 2])?;
            let plan = Subpixel::new(&window(op), channels, [types.of(0), ty], format.nr);
            Plan::Panels(plan.ok_or_else(|| unsupported(node, "the image is too large"))?)
        }
        Spec::Phases(op) => {
            expect_plain(node, 0..3)?;
            Plan::Phases(Transposed::new(window(op), channels, op.groups))
        }
    };
    Ok(Box::new(Prepared { cx: cx.clone(), types, plan }))
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        match &self.plan {
            Plan::Panels(plan) => plan.scratch(&self.cx.threads),
            Plan::Phases(plan) => plan.scratch(self.cx.isa, &self.cx.threads),
        }
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let (threads, isa, scratch) = (&self.cx.threads, self.cx.isa, &mut Scratch::new(scratch));
        let (image, weight) = (self.types.read(inputs, 0), self.types.read(inputs, 1));
        let bias = self.types.optional(inputs, 2);
        with_floats_mut!(self.types.out(), &mut *outputs[0], out => match &self.plan {
            _ if out.is_empty() => {}
            Plan::Panels(plan) => subpixel(threads, isa, plan, &SubpixelArgs { image, weight, bias }, out, scratch),
            Plan::Phases(plan) => transposed(threads, isa, plan, &TransposedArgs { image, weight, bias }, out, scratch),
        });
        Ok(())
    }
}
