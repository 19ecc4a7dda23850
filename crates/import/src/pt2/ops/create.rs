//! Tensors made from numbers.

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, Full, Iota},
};
use regraft_tensor::{DType, Dim};

use crate::pt2::args::{Cx, Number, Res, ValueId, unsupported, wrong};

fn filled(cx: &mut Cx<'_, '_>, number: &Number, dtype: DType, shape: Vec<Dim>) -> Res<ValueId> {
    match number.scalar() {
        Some(scalar) => {
            let value = match scalar {
                Scalar::Float(v) if dtype == DType::Bool => Scalar::Int(i64::from(v != 0.0)),
                Scalar::Float(v) if !dtype.is_float() => Scalar::Int(v as i64),
                Scalar::Int(v) if dtype == DType::Bool => Scalar::Int(i64::from(v != 0)),
                Scalar::Int(v) if dtype.is_float() => Scalar::Float(v as f64),
                other => other,
            };
            let shape = cx.refine(0, shape);
            cx.emit(Full { value, dtype, shape }, &[])
        }
        None => {
            let v = cx.number_value(number, dtype)?;
            cx.expand(v, shape)
        }
    }
}

/// The dtype asked for, that of `self`, or the one the program says.
fn dtype(cx: &mut Cx<'_, '_>, default: DType) -> Res<DType> {
    if let Some(dtype) = cx.dtype("dtype")? {
        return Ok(dtype);
    }
    if cx.has("self") {
        let x = cx.tensor("self")?;
        return Ok(cx.dtype_of(x));
    }
    Ok(cx.result_dtype().unwrap_or(default))
}

/// A shape that a program gives cannot be larger than what its types say.
fn by_size(cx: &mut Cx<'_, '_>, number: &Number) -> Res<ValueId> {
    let dtype = dtype(cx, number.dtype())?;
    let shape = cx.dims("size")?;
    filled(cx, number, dtype, shape)
}

fn like(cx: &mut Cx<'_, '_>, number: &Number) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let (dtype, shape) = (dtype(cx, number.dtype())?, cx.shape(x));
    filled(cx, number, dtype, shape)
}

pub(super) fn full(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let number = cx.number("fill_value")?;
    by_size(cx, &number)
}

pub(super) fn zeros(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    by_size(cx, &Number::Float(0.0))
}

pub(super) fn ones(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    by_size(cx, &Number::Float(1.0))
}

pub(super) fn full_like(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let number = cx.number("fill_value")?;
    like(cx, &number)
}

pub(super) fn zeros_like(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    like(cx, &Number::Float(0.0))
}

pub(super) fn ones_like(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    like(cx, &Number::Float(1.0))
}

pub(super) fn fill(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let (dtype, shape) = (cx.dtype_of(x), cx.shape(x));
    let value = cx.operand("value")?;
    let value = super::elementwise::value(cx, &value, dtype)?;
    cx.expand(value, shape)
}

pub(super) fn scalar_tensor(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let number = cx.number("s")?;
    let dtype = dtype(cx, DType::F32)?;
    cx.number_value(&number, dtype)
}

/// `start + i·step` for `i < len`.
fn ramp(cx: &mut Cx<'_, '_>, start: &Number, step: &Number, len: Dim, dtype: DType) -> Res<ValueId> {
    let dim = |n: &Number| match n {
        Number::Int(v) => Some(Dim::new(*v)),
        Number::Bool(v) => Some(Dim::new(i64::from(*v))),
        Number::Dim(d) => Some(d.clone()),
        Number::Float(v) if v.fract() == 0.0 && v.abs() < 9e15 => Some(Dim::new(*v as i64)),
        Number::Float(_) => None,
    };
    if let (Some(start), Some(step)) = (dim(start), dim(step)) {
        // Whole numbers up to 2^24 are exact in f32; in the half types they are not.
        let inner = if matches!(dtype, DType::F16 | DType::BF16) { DType::F32 } else { dtype };
        let v = cx.emit(Iota { len, start, step, dtype: inner }, &[])?;
        return cx.cast(v, dtype);
    }
    if len.is(0) {
        let none = cx.literal(Scalar::Int(0), dtype)?;
        return cx.expand(none, vec![len]);
    }
    if !dtype.is_float() {
        return unsupported("a range of integers with a step that is not an integer", "cast a range of floats");
    }
    let (Some(start), Some(step)) = (start.as_f64(), step.as_f64()) else {
        return unsupported("a range of floats that depends on sizes", "make the dimension static");
    };
    let inner = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let count = cx.emit(Iota { len, start: Dim::new(0), step: Dim::new(1), dtype: inner }, &[])?;
    let scaled = if step == 1.0 { count } else { cx.with_literal(BinaryFn::Mul, count, step)? };
    let moved = if start == 0.0 { scaled } else { cx.with_literal(BinaryFn::Add, scaled, start)? };
    cx.cast(moved, dtype)
}

pub(super) fn arange(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let start = cx.number_or("start", Number::Int(0))?;
    let step = cx.number_or("step", Number::Int(1))?;
    let end = cx.number("end")?;
    let float = [&start, &step, &end].iter().any(|n| matches!(n, Number::Float(_)));
    let default = if float { DType::F32 } else { DType::I64 };
    let dtype = match cx.dtype("dtype")? {
        Some(dtype) => dtype,
        None => cx.result_dtype().unwrap_or(default),
    };
    let len = match cx.result(0).and_then(|t| t.shape.first()) {
        Some(len) => len.clone(),
        None => match (start.as_f64(), end.as_f64(), step.as_f64()) {
            (Some(start), Some(end), Some(step)) if step != 0.0 => Dim::new(((end - start) / step).ceil() as i64),
            _ => return wrong("expected a range of known length"),
        },
    };
    ramp(cx, &start, &step, len, dtype)
}

pub(super) fn linspace(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (Some(start), Some(end)) = (cx.number("start")?.as_f64(), cx.number("end")?.as_f64()) else {
        return unsupported("linspace() between sizes", "make the dimension static");
    };
    let steps = cx.int("steps")?;
    let dtype = match cx.dtype("dtype")? {
        Some(dtype) => dtype,
        None => cx.result_dtype().unwrap_or(DType::F32),
    };
    // PyTorch truncates both ends of a range of integers, and then each of its elements.
    let (start, end) = if dtype.is_float() { (start, end) } else { (start.trunc(), end.trunc()) };
    let step = if steps > 1 { (end - start) / (steps - 1) as f64 } else { 0.0 };
    ramp(cx, &Number::Float(start), &Number::Float(step), Dim::new(steps), dtype)
}

pub(super) fn eye(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let n = cx.dim("n")?;
    let m = cx.optional_dim("m")?.unwrap_or_else(|| n.clone());
    let dtype = dtype(cx, DType::F32)?;
    cx.ones_on_diagonal(&n, &m, 0, dtype)
}
