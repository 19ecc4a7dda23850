//! Losses of classes.

use regraft_ir::ops::{BinaryFn, CompareFn, Gather, ReduceFn, Softmax, UnaryFn};
use regraft_tensor::DType;

use crate::onnx::args::{Cx, Res, ValueId, wrong};

/// `-weight·x[target]`, of logarithms of probabilities along axis 1.
fn likelihood(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<ValueId> {
    let target = cx.plain(1)?;
    let target = cx.cast(target, DType::I64)?;
    let weights = cx.optional(2)?;
    let ignored = cx.optional_int_attr("ignore_index")?;
    let (mut safe, mut hidden) = (target, None);
    if let Some(ignored) = ignored {
        let ignored = cx.literal(regraft_ir::Scalar::Int(ignored), DType::I64)?;
        let hit = cx.compare(CompareFn::Eq, target, ignored)?;
        let first = cx.literal(regraft_ir::Scalar::Int(0), DType::I64)?;
        safe = cx.select(hit, first, target)?;
        hidden = Some(hit);
    }
    let index = cx.unsqueeze(safe, 1)?;
    let picked = cx.emit(Gather { axis: 1 }, &[x, index])?;
    let picked = cx.squeeze(picked, 1)?;
    let mut loss = cx.unary(UnaryFn::Neg, picked)?;
    let mut weight = match weights {
        Some(weights) => Some(cx.take(weights, 0, safe)?),
        None if hidden.is_some() => {
            let one = cx.float_like(1.0, loss)?;
            let shape = cx.shape(loss);
            Some(cx.expand(one, shape)?)
        }
        None => None,
    };
    if let (Some(hit), Some(all)) = (hidden, weight) {
        let zero = cx.float_like(0.0, all)?;
        weight = Some(cx.select(hit, zero, all)?);
        // What is ignored may be infinite.
        loss = cx.select(hit, zero, loss)?;
    }
    if let Some(weight) = weight {
        loss = cx.binary(BinaryFn::Mul, loss, weight)?;
    }
    let axes: Vec<usize> = (0..cx.rank(loss)).collect();
    match (cx.text("reduction", "mean")?, weight) {
        ("none", _) => Ok(loss),
        ("sum", _) => cx.reduce(ReduceFn::Sum, loss, &axes, false),
        ("mean", None) => cx.reduce(ReduceFn::Mean, loss, &axes, false),
        ("mean", Some(weight)) => {
            let sum = cx.reduce(ReduceFn::Sum, loss, &axes, false)?;
            let all = cx.reduce(ReduceFn::Sum, weight, &axes, false)?;
            cx.binary(BinaryFn::Div, sum, all)
        }
        (other, _) => wrong(format!("`{other}` is not a reduction")),
    }
}

pub(super) fn negative_log_likelihood(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    likelihood(cx, x)
}

pub(super) fn softmax_cross_entropy(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let x = cx.input(0)?;
    let logs = cx.emit(Softmax { axis: 1, log: true }, &[x])?;
    Ok(vec![Some(likelihood(cx, logs)?), Some(logs)])
}
