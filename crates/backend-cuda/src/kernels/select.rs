//! The kernels of our own for a node with known sizes.

use regraft_ir::{Op, ops::PutFn};
use regraft_tensor::{DType, broadcast_shape, contiguous_strides};

use super::{
    attention,
    conv::{self, Epilogue, WeightOrder},
    elementwise::{self, View},
    index, movement, norm,
    pool::{self, PoolKind, Windows},
    reduce, rotary,
    spec::{Spec, Why},
};

/// A node, as kernels see it.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// The op; no symbols are left in its attributes.
    pub op: &'a Op,
    /// Operands.
    pub inputs: &'a [Option<View<'a>>],
    /// Types and sizes of the results, which are row-major.
    pub outputs: &'a [(DType, &'a [usize])],
    /// Order of a convolution's weight in memory.
    pub weight_order: WeightOrder,
    /// Whether attention may use matrix units.
    pub matrix_units: bool,
}

impl<'a> Node<'a> {
    fn operand(&self, i: usize) -> Result<&View<'a>, Why> {
        self.inputs.get(i).and_then(Option::as_ref).ok_or_else(|| Why::new(format!("operand {i} is missing")))
    }

    fn maybe(&self, i: usize) -> Option<DType> {
        self.inputs.get(i).and_then(Option::as_ref).map(|v| v.dtype)
    }

    /// Operand `i`, which must lie in one piece.
    fn whole(&self, i: usize) -> Result<&View<'a>, Why> {
        let view = self.operand(i)?;
        let own = contiguous_strides(view.shape);
        let fits = view.shape.iter().zip(view.strides.iter().zip(&own)).all(|(&n, (a, b))| n <= 1 || a == b);
        if fits { Ok(view) } else { Err(Why::new(format!("operand {i} does not lie in one piece"))) }
    }

    fn present(&self) -> Result<Vec<View<'a>>, Why> {
        (0..self.inputs.len()).map(|i| self.operand(i).copied()).collect()
    }
}

/// Whether operand `index` may have these strides.
pub fn reads_strided(op: &Op, index: usize, strides: &[usize]) -> bool {
    match op {
        Op::Fused(_)
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare(_)
        | Op::Select(_)
        | Op::Cast(_)
        | Op::Concat(_)
        | Op::Reduce(_)
        | Op::ArgReduce(_) => true,
        Op::Attention(_) => index < 4,
        Op::Rotary(_) => strides.last() == Some(&1),
        _ => false,
    }
}

/// The launches that compute the node.
///
/// # Errors
/// Why no kernel of our own takes it.
pub fn specs(node: &Node<'_>) -> Result<Vec<Spec>, Why> {
    let &(out, shape) = node.outputs.first().ok_or_else(|| Why::new("no result"))?;
    // Whole numbers are computed in i64, which holds no u64, and what only moves them is not worth another list.
    let mut dtypes =
        node.inputs.iter().flatten().map(|view| view.dtype).chain(node.outputs.iter().map(|(dtype, _)| *dtype));
    if dtypes.any(DType::is_wide_unsigned) {
        return Err(Why::new("unsigned integers of more than 8 bits"));
    }
    if let Some(steps) = elementwise::chain_of(node.op, node.inputs.len()) {
        return Ok(vec![elementwise::chain(&steps, &node.present()?, shape)?]);
    }
    let one = |spec: Spec| Ok(vec![spec]);
    match node.op {
        Op::LayerNorm(op) => {
            let (w, b) = (node.maybe(1), node.maybe(2));
            one(norm::rows(node.whole(0)?, w, b, op.axes, op.eps, false, out)?)
        }
        Op::RmsNorm(op) => one(norm::rows(node.whole(0)?, node.maybe(1), None, op.axes, op.eps, true, out)?),
        Op::GroupNorm(op) => {
            let nhwc = op.layout == regraft_ir::ops::SpatialLayout::Nhwc;
            norm::groups(node.whole(0)?, node.maybe(1), node.maybe(2), op.groups, op.eps, nhwc, "none", out)
        }
        Op::BatchNorm(op) => {
            let nhwc = op.layout == regraft_ir::ops::SpatialLayout::Nhwc;
            let others = [1, 2, 3, 4].map(|i| node.maybe(i));
            one(norm::batch(node.whole(0)?, others, op.eps, nhwc, out)?)
        }
        Op::Rotary(_) => one(rotary::rotary(node.operand(0)?, [node.operand(1)?, node.operand(2)?], out)?),
        Op::Softmax(op) => one(norm::softmax(node.whole(0)?, op.axis, op.log, out)?),
        Op::Reduce(op) => one(reduce::reduce(node.operand(0)?, op.f, &op.axes, out)?),
        Op::ArgReduce(op) => one(reduce::arg_reduce(node.operand(0)?, op.f, op.axis)?),
        Op::Cumsum(op) => one(reduce::cumsum(node.whole(0)?, op.axis, out)?),
        Op::Embedding(_) => one(index::embedding(node.whole(0)?, node.whole(1)?)?),
        Op::Gather(op) => one(index::gather(node.whole(0)?, node.whole(1)?, op.axis)?),
        Op::Index(op) => indexed(node, op.axis, shape),
        Op::IndexPut(op) if op.f == PutFn::Set => {
            let indices = (2..node.inputs.len()).map(|i| node.whole(i).copied()).collect::<Result<Vec<_>, _>>()?;
            let shapes: Vec<&[usize]> = indices.iter().map(|view| view.shape).collect();
            let points = broadcast_shape(&shapes).ok_or_else(|| Why::new("indices that do not broadcast"))?;
            one(index::put(node.whole(0)?, node.whole(1)?, &indices, op.axis, &points)?)
        }
        Op::Concat(op) => movement::concat(&node.present()?, op.axis, shape),
        Op::Pad(op) => one(movement::pad(node.whole(0)?, &op.before, op.mode, op.value, shape)?),
        Op::Flip(op) => one(movement::flip(node.whole(0)?, &op.axes)?),
        Op::Full(op) => one(movement::full(op.value, op.dtype, shape.iter().product())),
        Op::Iota(op) => {
            let number = |d: &regraft_tensor::Dim| d.as_const().ok_or_else(|| Why::new("an open size"));
            one(movement::iota(number(&op.start)?, number(&op.step)?, op.dtype, shape.iter().product())?)
        }
        Op::SizeOf(op) => {
            let value = op.value.as_const().ok_or_else(|| Why::new("an open size"))?;
            one(movement::full(regraft_ir::Scalar::Int(value), DType::I64, 1))
        }
        Op::MaxPool(op) => {
            let windows = Windows {
                kernel: &op.kernel,
                stride: &op.stride,
                padding: &op.padding,
                dilation: &op.dilation,
                ..Windows::default()
            };
            one(pool::pool(node.whole(0)?, PoolKind::Max, &windows, op.layout, shape, out)?)
        }
        Op::AvgPool(op) => {
            let windows = Windows {
                kernel: &op.kernel,
                stride: &op.stride,
                padding: &op.padding,
                dilation: &[],
                divisor: op.divisor,
                include_pad: op.count_include_pad,
            };
            one(pool::pool(node.whole(0)?, PoolKind::Mean, &windows, op.layout, shape, out)?)
        }
        Op::AdaptiveAvgPool(op) => {
            one(pool::pool(node.whole(0)?, PoolKind::Adaptive, &Windows::default(), op.layout, shape, out)?)
        }
        Op::Resize(op) => one(pool::resize(node.whole(0)?, op, shape, out)?),
        Op::Conv(op) => {
            let (x, w) = (node.whole(0)?, node.whole(1)?);
            let epilogue =
                Epilogue { bias: node.maybe(2), residual: node.maybe(3), act: op.act, act_first: op.act_first };
            if node.maybe(3).is_some() {
                node.whole(3)?;
            }
            one(conv::conv(op, x, (w.dtype, w.shape), node.weight_order, epilogue, shape, out)?)
        }
        Op::ConvTranspose(op) => {
            let (x, w) = (node.whole(0)?, node.whole(1)?);
            one(conv::conv_transpose(op, x, (w.dtype, w.shape), node.maybe(2), shape, out)?)
        }
        Op::Linear(op) => {
            let (x, w) = (node.whole(0)?, node.whole(1)?);
            let (n, k) = (w.shape[0], w.shape[1]);
            let m = x.shape[..x.shape.len() - 1].iter().product();
            let epilogue =
                Epilogue { bias: node.maybe(2), residual: node.maybe(3), act: op.act, act_first: op.act_first };
            one(conv::matvec(x.dtype, w.dtype, (m, n, k), epilogue, out)?)
        }
        Op::Attention(op) => {
            let mask = node.inputs.get(3).and_then(Option::as_ref);
            let (q, k, v) = (node.operand(0)?, node.operand(1)?, node.operand(2)?);
            if node.matrix_units
                && let Ok(specs) = attention::decode(op, q, k, v, mask, shape, out)
            {
                return Ok(specs);
            }
            one(attention::attention(op, q, k, v, mask, shape, out, node.matrix_units)?)
        }
        other => Err(Why::new(format!("no kernel for {}", other.name()))),
    }
}

fn indexed(node: &Node<'_>, axis: usize, shape: &[usize]) -> Result<Vec<Spec>, Why> {
    let x = node.whole(0)?;
    let indices = (1..node.inputs.len()).map(|i| node.whole(i).copied()).collect::<Result<Vec<_>, _>>()?;
    let rest = x.shape.len() - axis - indices.len();
    let points = &shape[axis..shape.len() - rest];
    Ok(vec![index::index(x, &indices, axis, points)?])
}
