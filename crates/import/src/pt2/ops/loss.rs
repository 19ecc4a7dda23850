//! Losses, which some programs give beside their results.

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, CompareFn, Cumsum, Gather, ReduceFn, Softmax, UnaryFn},
};
use regraft_tensor::DType;

use super::{
    distance::{cosine_of, distance},
    elementwise::{float_arg, promote, to_float},
};
use crate::{
    build::linear_op,
    pt2::{
        args::{Cx, Res, ValueId, unsupported, wrong},
        schema::Argument,
    },
};

/// How losses are joined: 0 not at all, 1 as their mean, 2 as their sum. Some operators say it as a word, or in their name.
fn reduction(cx: &Cx<'_, '_>) -> Res<i64> {
    Ok(match cx.arg("reduction") {
        Some(Argument::String(word)) => match word.as_str() {
            "none" => 0,
            "mean" => 1,
            "sum" => 2,
            other => return wrong(format!("`{other}` is not a reduction")),
        },
        None if cx.node.target.contains("no_reduction") => 0,
        _ => cx.int_or("reduction", 1)?,
    })
}

/// The loss of all elements, as `reduction` says: each, their mean, or their sum.
fn reduced(cx: &mut Cx<'_, '_>, loss: ValueId) -> Res<ValueId> {
    let axes: Vec<usize> = (0..cx.rank(loss)).collect();
    match reduction(cx)? {
        0 => Ok(loss),
        1 => cx.reduce(ReduceFn::Mean, loss, &axes, false),
        2 => cx.reduce(ReduceFn::Sum, loss, &axes, false),
        other => wrong(format!("{other} is not a reduction")),
    }
}

/// Two tensors in the dtype of both.
fn pair(cx: &mut Cx<'_, '_>, a: &str, b: &str) -> Res<(ValueId, ValueId)> {
    let (a, b) = (cx.tensor(a)?, cx.tensor(b)?);
    let dtype = to_float(promote(cx.dtype_of(a), cx.dtype_of(b)));
    Ok((cx.cast(a, dtype)?, cx.cast(b, dtype)?))
}

fn apart(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, target) = pair(cx, "self", "target")?;
    let apart = cx.binary(BinaryFn::Sub, x, target)?;
    cx.unary(UnaryFn::Abs, apart)
}

pub(super) fn mse(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let apart = apart(cx)?;
    let loss = cx.binary(BinaryFn::Mul, apart, apart)?;
    reduced(cx, loss)
}

pub(super) fn l1(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let apart = apart(cx)?;
    reduced(cx, apart)
}

/// Squares up to a bound, a line beyond it: `smooth_l1_loss`, and `huber_loss`, which is that times its bound.
pub(super) fn smooth(cx: &mut Cx<'_, '_>, huber: bool) -> Res<ValueId> {
    let apart = apart(cx)?;
    let bound = cx.float_or(if huber { "delta" } else { "beta" }, 1.0)?;
    if bound == 0.0 {
        return reduced(cx, apart);
    }
    let square = cx.binary(BinaryFn::Mul, apart, apart)?;
    let scale = if huber { bound } else { 1.0 };
    let near = cx.with_literal(BinaryFn::Mul, square, 0.5 * scale / bound)?;
    let far = cx.with_literal(BinaryFn::Sub, apart, 0.5 * bound)?;
    let far = cx.with_literal(BinaryFn::Mul, far, scale)?;
    let inside = cx.compare_with(CompareFn::Lt, apart, bound)?;
    let loss = cx.select(inside, near, far)?;
    reduced(cx, loss)
}

/// `max(x, 0)`.
fn positive(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<ValueId> {
    cx.unary(UnaryFn::Relu, x)
}

/// `log(1 + e^x)`, also for large `x`.
fn softplus(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<ValueId> {
    let (size, high) = (cx.unary(UnaryFn::Abs, x)?, positive(cx, x)?);
    let minus = cx.unary(UnaryFn::Neg, size)?;
    let power = cx.unary(UnaryFn::Exp, minus)?;
    let rest = cx.unary(UnaryFn::Log1p, power)?;
    cx.binary(BinaryFn::Add, high, rest)
}

pub(super) fn binary_cross_entropy(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, target) = pair(cx, "self", "target")?;
    let one = cx.float_like(1.0, x)?;
    let (rest, other) = (cx.binary(BinaryFn::Sub, one, x)?, cx.binary(BinaryFn::Sub, one, target)?);
    let (yes, no) = (cx.unary(UnaryFn::Log, x)?, cx.unary(UnaryFn::Log, rest)?);
    // Logarithms below -100 count as -100.
    let (yes, no) = (cx.with_literal(BinaryFn::Max, yes, -100.0)?, cx.with_literal(BinaryFn::Max, no, -100.0)?);
    let (yes, no) = (cx.binary(BinaryFn::Mul, target, yes)?, cx.binary(BinaryFn::Mul, other, no)?);
    let sum = cx.binary(BinaryFn::Add, yes, no)?;
    let loss = cx.unary(UnaryFn::Neg, sum)?;
    weighted(cx, loss)
}

fn weighted(cx: &mut Cx<'_, '_>, loss: ValueId) -> Res<ValueId> {
    let loss = match cx.optional_tensor("weight")? {
        Some(weight) => cx.binary(BinaryFn::Mul, loss, weight)?,
        None => loss,
    };
    reduced(cx, loss)
}

pub(super) fn binary_cross_entropy_with_logits(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, target) = pair(cx, "self", "target")?;
    let one = cx.float_like(1.0, x)?;
    let other = cx.binary(BinaryFn::Sub, one, target)?;
    let against = cx.binary(BinaryFn::Mul, other, x)?;
    let minus = cx.unary(UnaryFn::Neg, x)?;
    let mut log = softplus(cx, minus)?;
    if let Some(weight) = cx.optional_tensor("pos_weight")? {
        let more = cx.binary(BinaryFn::Sub, weight, one)?;
        let more = cx.binary(BinaryFn::Mul, more, target)?;
        let factor = cx.binary(BinaryFn::Add, more, one)?;
        log = cx.binary(BinaryFn::Mul, factor, log)?;
    }
    let loss = cx.binary(BinaryFn::Add, against, log)?;
    weighted(cx, loss)
}

pub(super) fn kl_div(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, target) = pair(cx, "self", "target")?;
    let loss = if cx.bool_or("log_target", false)? {
        let apart = cx.binary(BinaryFn::Sub, target, x)?;
        let power = cx.unary(UnaryFn::Exp, target)?;
        cx.binary(BinaryFn::Mul, power, apart)?
    } else {
        let log = cx.unary(UnaryFn::Log, target)?;
        let entropy = cx.binary(BinaryFn::Mul, target, log)?;
        let none = cx.compare_with(CompareFn::Eq, target, 0.0)?;
        let zero = cx.float_like(0.0, x)?;
        let entropy = cx.select(none, zero, entropy)?;
        let cross = cx.binary(BinaryFn::Mul, target, x)?;
        cx.binary(BinaryFn::Sub, entropy, cross)?
    };
    reduced(cx, loss)
}

pub(super) fn soft_margin(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, target) = pair(cx, "self", "target")?;
    let product = cx.binary(BinaryFn::Mul, x, target)?;
    let minus = cx.unary(UnaryFn::Neg, product)?;
    let loss = softplus(cx, minus)?;
    reduced(cx, loss)
}

pub(super) fn hinge_embedding(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, target) = pair(cx, "self", "target")?;
    let margin = cx.float_or("margin", 1.0)?;
    let margin = cx.float_like(margin, x)?;
    let room = cx.binary(BinaryFn::Sub, margin, x)?;
    let room = positive(cx, room)?;
    let zero = cx.float_like(0.0, x)?;
    let (like, unlike) = (cx.compare_with(CompareFn::Ne, target, -1.0)?, cx.compare_with(CompareFn::Ne, target, 1.0)?);
    let (a, b) = (cx.select(unlike, room, zero)?, cx.select(like, x, zero)?);
    let loss = cx.binary(BinaryFn::Add, a, b)?;
    reduced(cx, loss)
}

pub(super) fn margin_ranking(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = pair(cx, "input1", "input2")?;
    let target = cx.tensor("target")?;
    let target = cx.cast_like(target, a)?;
    let apart = cx.binary(BinaryFn::Sub, b, a)?;
    let product = cx.binary(BinaryFn::Mul, target, apart)?;
    let margin = cx.number_or("margin", crate::pt2::args::Number::Int(0))?;
    let margin = cx.number_like(&margin, a)?;
    let loss = cx.binary(BinaryFn::Add, product, margin)?;
    let zero = cx.number_like(&crate::pt2::args::Number::Int(0), a)?;
    let loss = cx.binary(BinaryFn::Max, loss, zero)?;
    reduced(cx, loss)
}

pub(super) fn poisson_nll(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, target) = pair(cx, "input", "target")?;
    let mut loss = if cx.bool_or("log_input", true)? {
        let (power, product) = (cx.unary(UnaryFn::Exp, x)?, cx.binary(BinaryFn::Mul, target, x)?);
        cx.binary(BinaryFn::Sub, power, product)?
    } else {
        let eps = cx.float_or("eps", 1e-8)?;
        let safe = cx.with_literal(BinaryFn::Add, x, eps)?;
        let log = cx.unary(UnaryFn::Log, safe)?;
        let product = cx.binary(BinaryFn::Mul, target, log)?;
        cx.binary(BinaryFn::Sub, x, product)?
    };
    if cx.bool_or("full", false)? {
        // Stirling's formula, for targets above 1.
        let log = cx.unary(UnaryFn::Log, target)?;
        let first = cx.binary(BinaryFn::Mul, target, log)?;
        let first = cx.binary(BinaryFn::Sub, first, target)?;
        let turned = cx.with_literal(BinaryFn::Mul, target, 2.0 * std::f64::consts::PI)?;
        let turned = cx.unary(UnaryFn::Log, turned)?;
        let second = cx.with_literal(BinaryFn::Mul, turned, 0.5)?;
        let term = cx.binary(BinaryFn::Add, first, second)?;
        let small = cx.compare_with(CompareFn::Le, target, 1.0)?;
        let zero = cx.float_like(0.0, x)?;
        let term = cx.select(small, zero, term)?;
        loss = cx.binary(BinaryFn::Add, loss, term)?;
    }
    reduced(cx, loss)
}

pub(super) fn triplet_margin(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (anchor, positive_, negative) =
        (float_arg(cx, "anchor")?, float_arg(cx, "positive")?, float_arg(cx, "negative")?);
    let near = distance(cx, anchor, positive_, "eps", 1e-6)?;
    let mut far = distance(cx, anchor, negative, "eps", 1e-6)?;
    if cx.bool_or("swap", false)? {
        let other = distance(cx, positive_, negative, "eps", 1e-6)?;
        far = cx.binary(BinaryFn::Min, far, other)?;
    }
    let apart = cx.binary(BinaryFn::Sub, near, far)?;
    let margin = cx.float_or("margin", 1.0)?;
    let loss = cx.with_literal(BinaryFn::Add, apart, margin)?;
    let loss = positive(cx, loss)?;
    reduced(cx, loss)
}

pub(super) fn cosine_embedding(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b, target) = (float_arg(cx, "input1")?, float_arg(cx, "input2")?, cx.tensor("target")?);
    let axis = cx.rank(target);
    // The lengths are those of the squares and a small number.
    let cosine = cosine_of(cx, a, b, axis, 1e-6)?;
    let one = cx.float_like(1.0, cosine)?;
    let zero = cx.float_like(0.0, cosine)?;
    let like = cx.binary(BinaryFn::Sub, one, cosine)?;
    let margin = cx.float_or("margin", 0.0)?;
    let unlike = cx.with_literal(BinaryFn::Sub, cosine, margin)?;
    let unlike = positive(cx, unlike)?;
    let target = cx.cast(target, DType::F32)?;
    let (same, other) = (cx.compare_with(CompareFn::Eq, target, 1.0)?, cx.compare_with(CompareFn::Eq, target, -1.0)?);
    let (x, y) = (cx.select(same, like, zero)?, cx.select(other, unlike, zero)?);
    let loss = cx.binary(BinaryFn::Add, x, y)?;
    reduced(cx, loss)
}

/// Negative log-likelihoods of class ids: `x: [n, c, ..]` or `[c]` of logarithms.
fn nll(cx: &mut Cx<'_, '_>, x: ValueId, target: ValueId, smoothing: f64) -> Res<ValueId> {
    let axis = usize::from(cx.rank(x) > 1);
    let dtype = cx.dtype_of(x);
    let ignored = cx.int_or("ignore_index", -100)?;
    let none = cx.literal(Scalar::Int(ignored), DType::I64)?;
    let ids = cx.cast(target, DType::I64)?;
    let counts = cx.compare(CompareFn::Ne, ids, none)?;
    let first = cx.literal(Scalar::Int(0), DType::I64)?;
    let ids = cx.select(counts, ids, first)?;
    let column = cx.unsqueeze(ids, axis)?;
    let picked = cx.emit(Gather { axis }, &[x, column])?;
    let picked = cx.squeeze(picked, axis)?;
    let mut loss = cx.unary(UnaryFn::Neg, picked)?;
    let weight = cx.optional_tensor("weight")?;
    let mut weights = cx.cast(counts, dtype)?;
    if let Some(weight) = weight {
        let each = cx.take(weight, 0, ids)?;
        weights = cx.binary(BinaryFn::Mul, each, weights)?;
    }
    // What is ignored may be infinite.
    let zero = cx.float(0.0, dtype)?;
    loss = cx.select(counts, loss, zero)?;
    loss = cx.binary(BinaryFn::Mul, loss, weights)?;
    let mut smooth = None;
    if smoothing > 0.0 {
        let spread = match weight {
            Some(weight) => {
                let rank = cx.rank(x);
                let weight = cx.along(weight, rank, axis)?;
                cx.binary(BinaryFn::Mul, x, weight)?
            }
            None => x,
        };
        let sum = cx.reduce(ReduceFn::Sum, spread, &[axis], false)?;
        let sum = cx.unary(UnaryFn::Neg, sum)?;
        smooth = Some(cx.select(counts, sum, zero)?);
    }
    let axes: Vec<usize> = (0..cx.rank(loss)).collect();
    let classes = cx.size(x, axis)? as f64;
    let reduction = reduction(cx)?;
    let total = |cx: &mut Cx<'_, '_>, loss: ValueId| match reduction {
        0 => Ok(loss),
        2 => cx.reduce(ReduceFn::Sum, loss, &axes, false),
        _ => {
            let sum = cx.reduce(ReduceFn::Sum, loss, &axes, false)?;
            let all = cx.reduce(ReduceFn::Sum, weights, &axes, false)?;
            cx.binary(BinaryFn::Div, sum, all)
        }
    };
    let out = total(cx, loss)?;
    let Some(smooth) = smooth else { return Ok(out) };
    let smooth = total(cx, smooth)?;
    let (main, rest) = (
        cx.with_literal(BinaryFn::Mul, out, 1.0 - smoothing)?,
        cx.with_literal(BinaryFn::Mul, smooth, smoothing / classes)?,
    );
    cx.binary(BinaryFn::Add, main, rest)
}

pub(super) fn nll_loss(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, target) = (cx.tensor("self")?, cx.tensor("target")?);
    nll(cx, x, target, 0.0)
}

/// Cross entropy with class ids, or with probabilities of classes.
pub(super) fn cross_entropy(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    cross_entropy_of(cx, x)
}

/// `linear_cross_entropy` in parts of the batch, of which the gradients are not computed: what training takes.
pub(super) fn linear_cross_entropy(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    for name in ["compute_input_grad", "compute_linear_weight_grad", "compute_linear_bias_grad"] {
        if cx.bool_or(name, false)? {
            return unsupported("gradients beside a loss", "export the model under torch.no_grad()");
        }
    }
    let (x, weight) = (cx.tensor("input")?, cx.tensor("linear_weight")?);
    let bias = cx.optional_tensor("linear_bias")?;
    let logits = cx.emit_opt(linear_op(), vec![Some(x), Some(weight), bias])?;
    Ok(vec![Some(cross_entropy_of(cx, logits)?), None, None, None])
}

fn cross_entropy_of(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<ValueId> {
    let target = cx.tensor("target")?;
    let smoothing = cx.float_or("label_smoothing", 0.0)?;
    let axis = usize::from(cx.rank(x) > 1);
    let logs = cx.emit(Softmax { axis, log: true }, &[x])?;
    if !cx.dtype_of(target).is_float() {
        return nll(cx, logs, target, smoothing);
    }
    let mut target = cx.cast_like(target, logs)?;
    if smoothing > 0.0 {
        let classes = cx.size(x, axis)? as f64;
        target = cx.with_literal(BinaryFn::Mul, target, 1.0 - smoothing)?;
        target = cx.with_literal(BinaryFn::Add, target, smoothing / classes)?;
    }
    let mut product = cx.binary(BinaryFn::Mul, logs, target)?;
    if let Some(weight) = cx.optional_tensor("weight")? {
        let rank = cx.rank(x);
        let weight = cx.along(weight, rank, axis)?;
        product = cx.binary(BinaryFn::Mul, product, weight)?;
    }
    let sum = cx.reduce(ReduceFn::Sum, product, &[axis], false)?;
    let loss = cx.unary(UnaryFn::Neg, sum)?;
    reduced(cx, loss)
}

/// Margins of each class against the one that is right.
pub(super) fn multi_margin(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (mut x, mut target) = (cx.tensor("self")?, cx.tensor("target")?);
    let p = cx.float_or("p", 1.0)?;
    let alone = cx.rank(x) < 2;
    while cx.rank(x) < 2 {
        x = cx.unsqueeze(x, 0)?;
    }
    target = cx.with_axis(target)?;
    let target = cx.cast(target, DType::I64)?;
    let column = cx.unsqueeze(target, 1)?;
    let right = cx.emit(Gather { axis: 1 }, &[x, column])?;
    let apart = cx.binary(BinaryFn::Sub, x, right)?;
    let margin = cx.float_or("margin", 1.0)?;
    let room = cx.with_literal(BinaryFn::Add, apart, margin)?;
    let mut loss = positive(cx, room)?;
    if p == 2.0 {
        loss = cx.binary(BinaryFn::Mul, loss, loss)?;
    }
    if let Some(weight) = cx.optional_tensor("weight")? {
        let weight = cx.take(weight, 0, column)?;
        loss = cx.binary(BinaryFn::Mul, loss, weight)?;
    }
    let Some(classes) = cx.ty(x).shape.get(1).cloned() else { return wrong("expected classes") };
    let class = cx.position(2, 1, classes.clone())?;
    let other = cx.compare(CompareFn::Ne, class, column)?;
    let zero = cx.float_like(0.0, x)?;
    let loss = cx.select(other, loss, zero)?;
    let sum = cx.reduce(ReduceFn::Sum, loss, &[1], false)?;
    let classes = cx.dim_like(&classes, x)?;
    let loss = cx.binary(BinaryFn::Div, sum, classes)?;
    let loss = if alone { cx.reshape(loss, vec![])? } else { loss };
    reduced(cx, loss)
}

/// Margins of each class that is not a target against each that is one; targets end at the first -1.
pub(super) fn multilabel_margin(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (mut x, mut target) = (cx.tensor("self")?, cx.tensor("target")?);
    let alone = cx.rank(x) < 2;
    while cx.rank(x) < 2 {
        x = cx.unsqueeze(x, 0)?;
    }
    while cx.rank(target) < 2 {
        target = cx.unsqueeze(target, 0)?;
    }
    let target = cx.cast(target, DType::I64)?;
    let zero = cx.literal(Scalar::Int(0), DType::I64)?;
    // How many of the targets up to each are not classes.
    let none = cx.compare(CompareFn::Lt, target, zero)?;
    let none = cx.cast(none, DType::I64)?;
    let ended = cx.emit(Cumsum { axis: 1 }, &[none])?;
    let counts = cx.compare(CompareFn::Eq, ended, zero)?;
    let ids = cx.select(counts, target, zero)?;
    let right = cx.emit(Gather { axis: 1 }, &[x, ids])?;
    let Some(classes) = cx.ty(x).shape.get(1).cloned() else { return wrong("expected classes") };
    // [n, targets, classes]: which class is a target, and the margins.
    let class = cx.position(3, 2, classes.clone())?;
    let (column, counted) = (cx.unsqueeze(ids, 2)?, cx.unsqueeze(counts, 2)?);
    let is_target = cx.compare(CompareFn::Eq, class, column)?;
    let is_target = cx.binary(BinaryFn::And, is_target, counted)?;
    let is_target = cx.reduce(ReduceFn::Any, is_target, &[1], true)?;
    let (right, row) = (cx.unsqueeze(right, 2)?, cx.unsqueeze(x, 1)?);
    let apart = cx.binary(BinaryFn::Sub, row, right)?;
    let room = cx.with_literal(BinaryFn::Add, apart, 1.0)?;
    let loss = positive(cx, room)?;
    let other = cx.unary(UnaryFn::Not, is_target)?;
    let compared = cx.binary(BinaryFn::And, other, counted)?;
    let nothing = cx.float_like(0.0, loss)?;
    let loss = cx.select(compared, loss, nothing)?;
    let sum = cx.reduce(ReduceFn::Sum, loss, &[1, 2], false)?;
    let classes = cx.dim_like(&classes, x)?;
    let loss = cx.binary(BinaryFn::Div, sum, classes)?;
    let loss = if alone { cx.reshape(loss, vec![])? } else { loss };
    reduced(cx, loss)
}
