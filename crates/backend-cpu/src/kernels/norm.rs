//! Layer, RMS, group and batch normalization.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, OperandType};
use regraft_ir::{Op, TensorType, ops::SpatialLayout};

use super::{
    CpuKernel, Cx, Family,
    support::{Seen, Types, Why, expect_plain, never_strided, operand, plain, unsupported},
};
use crate::{
    Isa, Scratch,
    nn::{
        batch_norm::{BatchNorm, batch_norm},
        group_norm::{GroupNorm, GroupShape, group_norm},
        norm::{RowNorm, layer_norm, rms_norm},
    },
    simd::with_floats_mut,
};

const LAYER: &str = "layer_norm.rows";
const RMS: &str = "rms_norm.rows";
const GROUP: &str = "group_norm.groups";
const BATCH: &str = "batch_norm.channels";

pub(super) const FAMILY: Family =
    Family { ids: &[LAYER, RMS, GROUP, BATCH], candidates, reads_strided: never_strided, prepare };

/// Floats of any kind.
fn accept(node: &Seen<'_>) -> Result<&'static str, Why> {
    node.all_floats()?;
    match node.op {
        Op::LayerNorm(_) => Ok(LAYER),
        Op::RmsNorm(_) => Ok(RMS),
        Op::GroupNorm(_) => Ok(GROUP),
        Op::BatchNorm(_) => Ok(BATCH),
        _ => Err(Why("it is not a normalization")),
    }
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)))
}

enum Kind {
    Layer,
    Rms,
    Group(GroupShape),
    /// Elements of a channel that stand side by side.
    Batch {
        positions: usize,
    },
}

struct Prepared {
    cx: Cx,
    types: Types,
    kind: Kind,
    numel: usize,
    cols: usize,
    eps: f32,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, 0..node.inputs.len())?;
    let types = Types::expect(node, 0..node.inputs.len())?;
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
            let shape = GroupShape { batch: x.shape[0], channels, positions, groups: op.groups, channels_last };
            (Kind::Group(shape), channels, op.eps)
        }
        Op::BatchNorm(op) => {
            let axis = op.layout.channel_axis(rank);
            (Kind::Batch { positions: x.shape[axis + 1..].iter().product() }, x.shape[axis], op.eps)
        }
        _ => return Err(unsupported(node, "it is not a normalization")),
    };
    let numel = x.shape.iter().product();
    Ok(Box::new(Prepared { cx: cx.clone(), types, kind, numel, cols, eps: eps as f32 }))
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        let (threads, out) = (&self.cx.threads, self.types.out());
        match self.kind {
            Kind::Layer | Kind::Rms => RowNorm::scratch(threads, self.cols, out),
            Kind::Group(shape) => shape.scratch(threads, self.types.of(0), out),
            Kind::Batch { .. } => BatchNorm::scratch(self.cols),
        }
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        if self.numel == 0 {
            return Ok(());
        }
        let (threads, isa, eps, cols) = (&self.cx.threads, self.cx.isa, self.eps, self.cols);
        let x = self.types.read(inputs, 0).first(self.numel);
        let affine = |i: usize| self.types.optional(inputs, i).map(|w| w.first(cols));
        let (weight, bias) = (affine(1), affine(2));
        let rows = RowNorm { x, residual: None, cols, weight, bias, eps };
        let scratch = &mut Scratch::new(scratch);
        with_floats_mut!(self.types.out(), &mut *outputs[0], out => match self.kind {
            Kind::Layer => layer_norm(threads, isa, &rows, out, scratch),
            Kind::Rms => rms_norm(threads, isa, &rows, out, scratch),
            Kind::Group(shape) => {
                group_norm(threads, isa, &GroupNorm { x, shape, weight, bias, eps }, out, scratch);
            }
            Kind::Batch { positions } => {
                let (mean, variance) = (self.types.read(inputs, 1).first(cols), self.types.read(inputs, 2).first(cols));
                let (weight, bias) = (affine(3), affine(4));
                let norm = BatchNorm { x, channels: cols, positions, mean, variance, weight, bias, eps };
                batch_norm(threads, isa, &norm, out, scratch);
            }
        });
        Ok(())
    }
}
