//! Convolutions of 3 x 3 by Winograd's algorithm, the transformed filters packed ahead.

use regraft_backend::{BackendError, Candidate, DataError, KernelId, NodeSpec, OperandType, WeightLayout};
use regraft_ir::{
    Op, TensorType,
    ops::{Conv, SpatialLayout, WinogradFilter},
};

use super::{
    CpuKernel, Cx, Family,
    conv::{matrix_of, windows_of},
    support::{
        Seen, Types, Why, elements, elements_mut, expect_panels, expect_plain, never_strided, operand, read,
        unsupported,
    },
};
use crate::{
    Isa, Scratch,
    format::Panels,
    gemm::{Epilogue, Residual, Window3, panel_widths_for},
    nn::winograd::{LEAST_CHANNELS, WinogradArgs, winograd, winograd_scratch},
    simd::{FloatType, Floats},
};

const TILES_OF_TWO: &str = "conv.winograd2";
const TILES_OF_FOUR: &str = "conv.winograd4";

pub(super) const FAMILY: Family =
    Family { ids: &[TILES_OF_TWO, TILES_OF_FOUR], candidates, reads_strided: never_strided, prepare };

/// Flat channels-last images of f32, windows of 3 x 3 at stride 1; the sizes of the weight.
fn accept<'a>(node: &Seen<'a>) -> Result<(&'a Conv, Vec<usize>), Why> {
    let Op::Conv(op) = node.op else { return Err(Why("it is not a convolution")) };
    let (ty, weight) = node.weight(1)?;
    let is_dense = op.groups == 1 && op.stride == [1, 1] && op.dilation == [1, 1];
    if op.layout != SpatialLayout::Nhwc || !is_dense || weight.len() != 4 || weight[2..] != [3, 3] {
        return Err(Why("windows must be 3 x 3 at stride 1, of channels-last images"));
    }
    if ty != FloatType::F32 || weight[0] < LEAST_CHANNELS || weight[1] < LEAST_CHANNELS {
        return Err(Why("there must be some channels, of f32"));
    }
    Ok((op, weight))
}

/// Multiplications in whose time a number of the pixels or of the products is transformed.
const TRANSFORM: f64 = 4.0;

/// Multiplications in whose time a transformed filter is fetched. Those of a product over windows are fetched meanwhile.
const FETCH: f64 = 12.0;

/// About how many multiplications this takes as long as, for images of so many pixels.
fn cost(tile: usize, batch: usize, [height, width]: [usize; 2], [out, channels]: [f64; 2]) -> f64 {
    let tiles = batch as f64 * height.div_ceil(tile) as f64 * width.div_ceil(tile) as f64;
    let numbers = ((tile + 2) * (tile + 2)) as f64;
    numbers * (tiles * (channels * out + TRANSFORM * (channels + out)) + FETCH * channels * out)
}

/// The tiles to take for results of this type, best first: those that are faster than a product over windows.
fn tiles(result: &TensorType, weight: &[usize]) -> Vec<usize> {
    let Some(&[batch, height, width, _]) = result.sizes().as_deref() else { return Vec::new() };
    let [out, channels] = [weight[0] as f64, weight[1] as f64];
    let direct = 9.0 * channels * out * (batch as f64 * height as f64 * width as f64);
    let mut tiles = [2, 4].map(|tile| (cost(tile, batch, [height, width], [out, channels]), tile));
    tiles.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    tiles.into_iter().filter(|(cost, _)| *cost < direct).map(|(_, tile)| tile).collect()
}

fn candidates(isa: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], outputs: &[&TensorType]) -> Vec<Candidate> {
    let Ok((_, weight)) = accept(&Seen::of_types(op, inputs)) else { return Vec::new() };
    let all_f32 = inputs.iter().flatten().all(|input| FloatType::of(input.ty.dtype) == Some(FloatType::F32));
    let [result] = outputs else { return Vec::new() };
    if !all_f32 {
        return Vec::new();
    }
    let packed = |tile: usize, nr: usize| {
        let kernel = KernelId::new(if tile == 2 { TILES_OF_TWO } else { TILES_OF_FOUR });
        let mut prepare = matrix_of(&weight, 1);
        prepare.push(WinogradFilter { tile }.into());
        let weights = vec![WeightLayout { operand: 1, prepare, format: Panels { ty: FloatType::F32, nr }.id() }];
        Candidate { kernel, weights }
    };
    let widths = panel_widths_for(isa, FloatType::F32, weight[0]);
    let tiles = tiles(result, &weight);
    tiles.into_iter().flat_map(|tile| widths.iter().map(move |nr| (tile, *nr))).map(|(t, nr)| packed(t, nr)).collect()
}

struct Prepared {
    cx: Cx,
    op: Conv,
    tile: usize,
    window: Window3,
    /// Channels of the image and of the result.
    channels: [usize; 2],
    nr: usize,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let (op, weight) = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    let tile = if node.kernel.0 == TILES_OF_TWO { 2 } else { 4 };
    let channels = [weight[1], weight[0]];
    let numbers = (tile + 2) * (tile + 2);
    let Panels { nr, .. } = expect_panels(node, cx.isa, 1, &[numbers, channels[0], channels[1]])?;
    expect_plain(node, [0, 2, 3])?;
    let types = Types::expect(node, 0..4)?;
    let operands = (0..4).filter(|i| node.inputs.get(*i).is_some_and(Option::is_some));
    if types.out() != FloatType::F32 || operands.into_iter().any(|i| types.of(i) != FloatType::F32) {
        return Err(unsupported(node, "all operands must be f32"));
    }
    let window = windows_of(op, operand(node, 0)?.shape, &weight[2..], node.outputs[0].shape);
    Ok(Box::new(Prepared { cx: cx.clone(), op: op.clone(), tile, window, channels, nr }))
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        winograd_scratch(&self.cx.threads, self.tile, &self.window, self.channels[0], self.nr)
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let (window, [channels, columns]) = (self.window, self.channels);
        let optional = |index: usize| inputs.get(index).copied().flatten().map(elements::<f32>);
        let residual = optional(3).map(|data| &data[..window.pixels() * columns]);
        let args = WinogradArgs {
            tile: self.tile,
            window,
            channels: self.channels,
            image: &elements::<f32>(read(inputs, 0))[..window.batch * window.pixels_in() * channels],
            filters: elements(read(inputs, 1)),
            nr: self.nr,
            epilogue: Epilogue {
                bias: optional(2).map(|bias| Floats::F32(&bias[..columns])),
                residual: residual.map(|data| Residual { data: Floats::F32(data), ld: columns }),
                activation: self.op.act,
                act_before_residual: self.op.act_first,
            },
        };
        winograd(&self.cx.threads, self.cx.isa, &args, elements_mut(&mut *outputs[0]), &mut Scratch::new(scratch));
        Ok(())
    }
}
