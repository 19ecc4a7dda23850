//! Elements in other places: flips, padding, nearest neighbors; and literals.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, OperandType};
use regraft_ir::{
    Op, TensorType,
    ops::{Pad, PadMode, Resize, ResizeMode},
};
use regraft_tensor::{DType, contiguous_strides};

use super::{
    CpuKernel, Cx, Family,
    create::bits,
    support::{
        Seen, Why, elements, elements_mut, expect_plain, never_strided, operand, plain, read, unsupported, with_size,
    },
};
use crate::{
    Isa,
    nn::moves::{AxisMap, FILL, Remap, remap},
};

const FLIP: &str = "flip.runs";
const PAD: &str = "pad.runs";
const NEAREST: &str = "resize.nearest";

pub(super) const FAMILY: Family =
    Family { ids: &[FLIP, PAD, NEAREST], candidates, reads_strided: never_strided, prepare };

fn accept(node: &Seen<'_>) -> Result<&'static str, Why> {
    match node.op {
        Op::Flip(_) => Ok(FLIP),
        Op::Pad(_) => Ok(PAD),
        Op::Resize(op) if op.mode == ResizeMode::Nearest => Ok(NEAREST),
        _ => Err(Why("it moves nothing")),
    }
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)))
}

struct Prepared {
    cx: Cx,
    /// Bytes of an element.
    size: usize,
    plan: Remap,
    /// The bytes of elements that no source fills.
    fill: u64,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, [0])?;
    let (x, out) = (operand(node, 0)?, node.outputs[0].shape);
    let sources = |axis: usize| -> Result<Vec<usize>, BackendError> {
        let (from, to) = (x.shape[axis], out[axis]);
        Ok(match node.op {
            Op::Flip(op) if op.axes.contains(&axis) => (0..from).rev().collect(),
            Op::Pad(op) => padded(op, axis, from, to),
            Op::Resize(op) if op.mode == ResizeMode::Nearest => nearest(op, axis, from, to, x.dtype),
            Op::Flip(_) => (0..from).collect(),
            _ => return Err(unsupported(node, "it moves nothing")),
        })
    };
    let strides = contiguous_strides(x.shape);
    let axis = |(axis, &stride): (usize, &usize)| Ok(AxisMap { stride, sources: sources(axis)? });
    let axes = strides.iter().enumerate().map(axis).collect::<Result<Vec<_>, BackendError>>()?;
    let fill = if let Op::Pad(op) = node.op { bits(op.value, x.dtype) } else { 0 };
    Ok(Box::new(Prepared { cx: cx.clone(), size: x.dtype.size(), plan: Remap::new(axes), fill }))
}

/// The places that an axis of padded elements reads.
fn padded(op: &Pad, axis: usize, from: usize, to: usize) -> Vec<usize> {
    let last = from as i64 - 1;
    let source = |i: usize| {
        let at = (i as i64).saturating_sub(op.before[axis]);
        let at = match op.mode {
            PadMode::Constant => at,
            PadMode::Replicate => at.clamp(0, last.max(0)),
            PadMode::Reflect if at < 0 => -at,
            PadMode::Reflect if at > last => 2 * last - at,
            PadMode::Reflect => at,
        };
        if (0..=last).contains(&at) { at as usize } else { FILL }
    };
    (0..to).map(source).collect()
}

/// The places that an axis of nearest neighbors reads.
fn nearest(op: &Resize, axis: usize, from: usize, to: usize, dtype: DType) -> Vec<usize> {
    match axis.checked_sub(op.layout.first_spatial()).filter(|i| *i < op.size.len()) {
        Some(i) => op.taps(i, from, to, dtype).into_iter().map(|(place, _)| place).collect(),
        None => (0..from).collect(),
    }
}

impl CpuKernel for Prepared {
    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], _: &mut [u8]) -> Result<(), DataError> {
        let (x, out) = (read(inputs, 0), &mut *outputs[0]);
        with_size!(self.size, T => {
            remap::<T>(&self.cx.threads, self.cx.isa, &self.plan, elements(x), self.fill as T, elements_mut(out));
        });
        Ok(())
    }
}
