//! Pooling of channels-last images.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, Operand, OperandType};
use regraft_ir::{Op, TensorType, ops::SpatialLayout};
use regraft_tensor::DType;

use super::{
    CpuKernel, Cx, Family,
    support::{all_are, elements, elements_mut, expect_f32, expect_plain, operand, read, unsupported},
};
use crate::{
    Isa,
    gemm::Conv2d,
    nn::{
        pool::{Pooling, pool},
        reduce::{Reduction, reduce},
    },
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
    if !all_are(inputs, DType::F32) || !matches!(rank, 3 | 4) {
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

enum Prepared {
    Windows { cx: Cx, pooling: Pooling, geometry: Conv2d, channels: usize },
    Global { cx: Cx, sizes: [usize; 3] },
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    expect_plain(node, [0])?;
    expect_f32(node, [0])?;
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
        return Ok(Box::new(Prepared::Global { cx, sizes }));
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
    Ok(Box::new(Prepared::Windows { cx, pooling: w.pooling, geometry, channels: x[x.len() - 1] }))
}

impl CpuKernel for Prepared {
    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], _: &mut [u8]) -> Result<(), DataError> {
        let (x, out) = (elements(read(inputs, 0)), elements_mut(outputs[0]));
        if out.is_empty() {
            return Ok(());
        }
        match self {
            Prepared::Windows { cx, pooling, geometry, channels } => {
                let image = &x[..geometry.batch * geometry.input[0] * geometry.input[1] * channels];
                pool(&cx.threads, cx.isa, *pooling, geometry, *channels, image, out);
            }
            Prepared::Global { cx, sizes } => {
                let x = &x[..sizes.iter().product()];
                reduce(&cx.threads, cx.isa, Reduction::Mean, x, *sizes, out);
            }
        }
        Ok(())
    }
}
