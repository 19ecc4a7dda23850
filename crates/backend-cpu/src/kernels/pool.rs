//! Pooling of channels-last images.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, Operand, OperandType};
use regraft_ir::{Op, TensorType, ops::SpatialLayout};

use super::{
    CpuKernel, Cx, Family,
    support::{Types, all_floats, expect_plain, operand, unsupported},
};
use crate::{
    Isa, Scratch,
    gemm::Conv2d,
    nn::{
        pool::{Pooling, pool, pool_scratch},
        reduce::{Reduction, reduce},
    },
    simd::with_floats_mut,
};

const WINDOWS: &str = "pool.windows";
const GLOBAL: &str = "pool.global";

pub(super) const FAMILY: Family = Family { ids: &[WINDOWS, GLOBAL], candidates, reads_strided, prepare };

/// Kernel, stride, padding and dilation of a window, per spatial axis.
struct Window<'a> {
    pooling: Pooling,
    kernel: &'a [usize],
    stride: &'a [usize],
    padding: &'a [usize],
    dilation: Option<&'a [usize]>,
}

fn window(op: &Op) -> Option<(SpatialLayout, Window<'_>)> {
    match op {
        Op::MaxPool(op) => {
            let (kernel, stride, padding) = (&op.kernel, &op.stride, &op.padding);
            let dilation = Some(op.dilation.as_slice());
            Some((op.layout, Window { pooling: Pooling::Max, kernel, stride, padding, dilation }))
        }
        Op::AvgPool(op) if op.divisor.is_none() => {
            let (kernel, stride, padding) = (&op.kernel, &op.stride, &op.padding);
            let pooling = Pooling::Average { include_padding: op.count_include_pad };
            Some((op.layout, Window { pooling, kernel, stride, padding, dilation: None }))
        }
        _ => None,
    }
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    let rank = inputs.first().copied().flatten().map_or(0, |x| x.ty.rank());
    if !all_floats(inputs) || !matches!(rank, 3 | 4) {
        return Vec::new();
    }
    match op {
        // The mean over all positions is a reduction of neighbouring axes in either layout.
        Op::AdaptiveAvgPool(op) if op.size.iter().all(|&s| s == 1) => vec![Candidate::plain(GLOBAL)],
        _ if window(op).is_some_and(|(layout, _)| layout == SpatialLayout::Nhwc) => vec![Candidate::plain(WINDOWS)],
        _ => Vec::new(),
    }
}

fn reads_strided(_: &Op, _: usize, _: &Operand<'_>) -> bool {
    false
}

enum Kind {
    Windows { pooling: Pooling, geometry: Conv2d, channels: usize },
    Global { sizes: [usize; 3] },
}

struct Prepared {
    cx: Cx,
    types: Types,
    kind: Kind,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    expect_plain(node, [0])?;
    let types = Types::expect(node, 0..1)?;
    let (x, out, cx) = (operand(node, 0)?.shape, node.outputs[0].shape, cx.clone());
    if let Op::AdaptiveAvgPool(op) = node.op
        && op.size.iter().all(|&s| s == 1)
    {
        let positions = op.layout.spatial(x).iter().product();
        let channels = x[op.layout.channel_axis(x.len())];
        let sizes = match op.layout {
            SpatialLayout::Nhwc => [x[0], positions, channels],
            SpatialLayout::Nchw => [x[0] * channels, positions, 1],
        };
        return Ok(Box::new(Prepared { cx, types, kind: Kind::Global { sizes } }));
    }
    let Some((SpatialLayout::Nhwc, w)) = window(node.op).filter(|_| matches!(x.len(), 3 | 4)) else {
        return Err(unsupported(node, "it pools no windows of channels-last images"));
    };
    // One-dimensional images are one row high.
    let pair = |values: &[usize], unit: usize| if let [h, w] = *values { [h, w] } else { [unit, values[0]] };
    let layout = SpatialLayout::Nhwc;
    let geometry = Conv2d {
        batch: x[0],
        input: pair(layout.spatial(x), 1),
        output: pair(layout.spatial(out), 1),
        kernel: pair(w.kernel, 1),
        stride: pair(w.stride, 1),
        dilation: w.dilation.map_or([1, 1], |d| pair(d, 1)),
        padding: pair(w.padding, 0),
    };
    let kind = Kind::Windows { pooling: w.pooling, geometry, channels: x[x.len() - 1] };
    Ok(Box::new(Prepared { cx, types, kind }))
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        match &self.kind {
            Kind::Windows { geometry, channels, .. } => {
                pool_scratch(&self.cx.threads, geometry, *channels, [self.types.of(0), self.types.out()])
            }
            Kind::Global { .. } => 0,
        }
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let (threads, isa, x) = (&self.cx.threads, self.cx.isa, self.types.read(inputs, 0));
        with_floats_mut!(self.types.out(), &mut *outputs[0], out => match &self.kind {
            _ if out.is_empty() => {}
            Kind::Windows { pooling, geometry, channels } => {
                let image = x.first(geometry.batch * geometry.input[0] * geometry.input[1] * channels);
                pool(threads, isa, *pooling, geometry, *channels, image, out, &mut Scratch::new(scratch));
            }
            Kind::Global { sizes } => {
                reduce(threads, isa, Reduction::Mean, x.first(sizes.iter().product()), *sizes, out);
            }
        });
        Ok(())
    }
}
