//! Layer, RMS and group normalisation.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, Operand, OperandType};
use regraft_ir::{Op, TensorType, ops::SpatialLayout};
use regraft_tensor::DType;

use super::{
    CpuKernel, Cx, Family,
    support::{
        all_are, elements, elements_mut, expect_f32, expect_plain, operand, optional, optional_f32, read, unsupported,
    },
};
use crate::{
    Isa,
    nn::norm::{GroupNorm, RowNorm, group_norm, layer_norm, rms_norm},
};

const LAYER: &str = "layer_norm.rows";
const RMS: &str = "rms_norm.rows";
const GROUP: &str = "group_norm.groups";

pub(super) const FAMILY: Family = Family { ids: &[LAYER, RMS, GROUP], candidates, reads_strided, prepare };

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    if !all_are(inputs, DType::F32) {
        return Vec::new();
    }
    match op {
        Op::LayerNorm(_) => vec![Candidate::plain(LAYER)],
        Op::RmsNorm(_) => vec![Candidate::plain(RMS)],
        Op::GroupNorm(_) => vec![Candidate::plain(GROUP)],
        _ => Vec::new(),
    }
}

fn reads_strided(_: &Op, _: usize, _: &Operand<'_>) -> bool {
    false
}

enum Kind {
    Layer,
    Rms,
    Group { batch: usize, channels: usize, positions: usize, groups: usize, channels_last: bool },
}

struct Prepared {
    cx: Cx,
    kind: Kind,
    numel: usize,
    cols: usize,
    eps: f32,
    /// Operands of weight and bias.
    affine: (Option<usize>, Option<usize>),
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    expect_plain(node, 0..node.inputs.len())?;
    expect_f32(node, 0..node.inputs.len())?;
    let x = operand(node, 0)?;
    let rank = x.shape.len();
    let trailing = |axes: usize| x.shape[rank - axes..].iter().product();
    let (kind, cols, eps) = match node.op {
        Op::LayerNorm(op) => (Kind::Layer, trailing(op.axes), op.eps),
        Op::RmsNorm(op) => (Kind::Rms, trailing(op.axes), op.eps),
        Op::GroupNorm(op) => {
            let channels = x.shape[op.layout.channel_axis(rank)];
            let positions = op.layout.spatial(x.shape).iter().product();
            let channels_last = op.layout == SpatialLayout::Nhwc;
            (Kind::Group { batch: x.shape[0], channels, positions, groups: op.groups, channels_last }, channels, op.eps)
        }
        _ => return Err(unsupported(node, "it is no normalisation")),
    };
    let given = |i: usize| optional(node, i).map(|_| i);
    let numel = x.shape.iter().product();
    Ok(Box::new(Prepared { cx: cx.clone(), kind, numel, cols, eps: eps as f32, affine: (given(1), given(2)) }))
}

impl CpuKernel for Prepared {
    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], _: &mut [u8]) -> Result<(), DataError> {
        if self.numel == 0 {
            return Ok(());
        }
        let (threads, isa, eps, cols) = (&self.cx.threads, self.cx.isa, self.eps, self.cols);
        let x = &elements(read(inputs, 0))[..self.numel];
        let affine = |i: Option<usize>| i.and_then(|i| optional_f32(inputs, i)).map(|w| &w[..cols]);
        let (weight, bias) = (affine(self.affine.0), affine(self.affine.1));
        let rows = RowNorm { x, residual: None, cols, weight, bias, eps };
        let out = elements_mut(outputs[0]);
        match self.kind {
            Kind::Layer => layer_norm(threads, isa, &rows, out),
            Kind::Rms => rms_norm(threads, isa, &rows, out),
            Kind::Group { batch, channels, positions, groups, channels_last } => {
                let norm = GroupNorm { x, batch, channels, positions, groups, channels_last, weight, bias, eps };
                group_norm(threads, isa, &norm, out);
            }
        }
        Ok(())
    }
}
