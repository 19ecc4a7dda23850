//! Convolutions of single pixels together with the depthwise ones behind them.

use regraft_backend::{BackendError, Candidate, DataError, KernelId, NodeSpec, OperandType, WeightLayout};
use regraft_ir::{Op, TensorType, ops::ConvPair};
use regraft_tensor::{DType, Dim};

use super::{
    CpuKernel, Cx, Family,
    conv::{matrix_of, windows_of},
    depthwise::{format, taps_of},
    support::{
        Seen, Types, Why, elements, elements_mut, expect_packed, expect_panels, expect_plain, never_strided, operand,
        read, unsupported,
    },
};
use crate::{
    Isa, Scratch,
    format::Panels,
    gemm::{Window3, panel_widths_for},
    nn::{
        conv_pair::{PairArgs, conv_pair, conv_pair_scratch, plan},
        depthwise::{Plan, tap_stride},
    },
    simd::FloatType,
};

const BANDS: &str = "conv_pair.bands";

/// Bytes of an image from which on it pays not to write it: smaller ones stay in the second-level cache.
const LARGE: usize = 1 << 20;

/// Columns that the panels of the first convolution should have.
const LEAST_WIDTH: usize = 32;

pub(super) const FAMILY: Family = Family { ids: &[BANDS], candidates, reads_strided: never_strided, prepare };

/// Whether two convolutions with this image between them are better computed as one.
pub(crate) fn pairs(between: &TensorType) -> bool {
    let image: Option<Vec<usize>> = between.shape[1..].iter().map(Dim::as_usize).collect();
    let large = |image: Vec<usize>| image.iter().product::<usize>() * size_of::<f32>() >= LARGE;
    between.dtype == DType::F32 && between.rank() == 4 && image.is_some_and(large)
}

/// Flat images of f32 with weights that can be packed ahead; the sizes of both.
fn accept<'a>(node: &Seen<'a>) -> Result<(&'a ConvPair, [Vec<usize>; 2]), Why> {
    let Op::ConvPair(op) = node.op else { return Err(Why("it is not a pair of convolutions")) };
    let ((first, pointwise), (second, depthwise)) = (node.weight(1)?, node.weight(3)?);
    if first != FloatType::F32 || second != FloatType::F32 || pointwise.len() != 4 {
        return Err(Why("images must be flat and of f32"));
    }
    Ok((op, [pointwise, depthwise]))
}

fn candidates(isa: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    let Ok((_, [pointwise, depthwise])) = accept(&Seen::of_types(op, inputs)) else { return Vec::new() };
    let packed = |nr| {
        let (matrix, panels) = (matrix_of(&pointwise, 1), Panels { ty: FloatType::F32, nr }.id());
        let (taps, lines) = (taps_of(&depthwise), format(FloatType::F32, depthwise[0]));
        let weights = vec![
            WeightLayout { operand: 1, prepare: matrix, format: panels },
            WeightLayout { operand: 3, prepare: taps, format: lines },
        ];
        Candidate { kernel: KernelId::new(BANDS), weights }
    };
    // Narrow panels are multiplied by a line of pixels in less time than it takes to begin.
    let mut widths = panel_widths_for(isa, FloatType::F32, pointwise[0]);
    widths.sort_by_key(|nr| *nr < LEAST_WIDTH);
    widths.into_iter().map(packed).collect()
}

struct Prepared {
    cx: Cx,
    op: ConvPair,
    window: Window3,
    plan: Plan,
    channels: [usize; 2],
    nr: usize,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let (op, [pointwise, depthwise]) = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    let channels = [pointwise[1], pointwise[0]];
    let Panels { nr, .. } = expect_panels(node, cx.isa, 1, &channels)?;
    let taps = depthwise[2..].iter().product();
    expect_packed(node, 3, &format(FloatType::F32, channels[1]), &[taps, channels[1]])?;
    expect_plain(node, [0, 2, 4])?;
    Types::expect(node, 0..5)?;
    let mut between = operand(node, 0)?.shape.to_vec();
    between[3] = channels[1];
    let window = windows_of(&op.depthwise(channels[1]), &between, &depthwise[2..], node.outputs[0].shape);
    let plan = plan(&window, channels[1], nr);
    Ok(Box::new(Prepared { cx: cx.clone(), op: op.clone(), window, plan, channels, nr }))
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        conv_pair_scratch(&self.cx.threads, &self.window, self.nr)
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let (window, [channels, between]) = (self.window, self.channels);
        let floats = |index| elements::<f32>(read(inputs, index));
        let bias = |index: usize| inputs.get(index).copied().flatten().map(|bytes| &elements::<f32>(bytes)[..between]);
        let args = PairArgs {
            window,
            plan: &self.plan,
            channels: self.channels,
            image: &floats(0)[..window.batch * window.pixels_in() * channels],
            pointwise: floats(1),
            nr: self.nr,
            inner_bias: bias(2),
            inner_activation: self.op.inner_act,
            weight: &floats(3)[..window.taps() * tap_stride(between)],
            bias: bias(4),
            activation: self.op.act,
        };
        let out = elements_mut::<f32>(&mut *outputs[0]);
        if !out.is_empty() {
            conv_pair(&self.cx.threads, self.cx.isa, &args, out, &mut Scratch::new(scratch));
        }
        Ok(())
    }
}
