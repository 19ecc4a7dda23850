//! What follows from eigenvalues and singular values. The signs of vectors are not those of LAPACK, so vectors are not given out;
//! what does not depend on signs is. Computed in f64 and rounded once.

use regraft_ir::ops::{BinaryFn, CompareFn, FactorFn, ReduceFn, UnaryFn};
use regraft_tensor::{DType, Dim};

use super::linalg::{Results, count_above, named, wide};
use crate::pt2::args::{Cx, Res, ValueId, unsupported, wrong};

/// Eigenvalues and eigenvectors of the symmetric matrix whose lower or upper triangle this is.
fn eigen(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<[ValueId; 2]> {
    let x = match cx.optional_text("UPLO")?.unwrap_or("L") {
        "L" | "l" => x,
        "U" | "u" => cx.flipped(x)?,
        other => return wrong(format!("`{other}` is not a triangle")),
    };
    cx.factor(FactorFn::Eigen, x, false)
}

pub(super) fn eigvalsh(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, dtype) = wide(cx, named(cx, ["self", "A"]))?;
    let [values, _] = eigen(cx, x)?;
    cx.cast(values, dtype)
}

/// `linalg.eigh`, of which the vectors are missing.
pub(super) fn eigh(cx: &mut Cx<'_, '_>) -> Results {
    Ok(vec![Some(eigvalsh(cx)?), None])
}

/// The singular values, descending.
pub(super) fn singular_values(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<ValueId> {
    let [_, values, _] = cx.factor(FactorFn::Singular, x, false)?;
    Ok(values)
}

pub(super) fn svdvals(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, dtype) = wide(cx, named(cx, ["A", "self"]))?;
    let values = singular_values(cx, x)?;
    cx.cast(values, dtype)
}

/// `linalg.svd` and `torch.svd`, of which the vectors are missing, unless there are no singular values.
pub(super) fn svd(cx: &mut Cx<'_, '_>) -> Results {
    let (x, dtype) = wide(cx, named(cx, ["A", "self"]))?;
    let values = svdvals(cx)?;
    let (batch, m, n) = cx.matrix_shape(x)?;
    if (!m.is(0) && !n.is(0)) || !cx.bool_or("compute_uv", true)? {
        return Ok(vec![None, Some(values), None]);
    }
    let inner = cx.node.target.contains("._linalg_svd");
    let full = cx.bool_or("full_matrices", !inner)? && !cx.bool_or("some", !cx.has("A"))?;
    let none = Dim::new(0);
    let (left, right) = if full { (&m, &n) } else { (&none, &none) };
    let u = cx.identity(&batch, &m, left, dtype)?;
    // `torch.svd` gives the right vectors as columns.
    let v = if cx.has("A") { cx.identity(&batch, right, &n, dtype)? } else { cx.identity(&batch, &n, right, dtype)? };
    Ok(vec![Some(u), Some(values), Some(v)])
}

/// The greatest along the last axis; of none it is 0.
fn most(cx: &mut Cx<'_, '_>, values: ValueId) -> Res<ValueId> {
    let mut batch = cx.shape(values);
    if batch.pop().is_some_and(|d| d.is(0)) {
        let zero = cx.float_like(0.0, values)?;
        return cx.expand(zero, batch);
    }
    cx.reduce(ReduceFn::Max, values, &[batch.len()], false)
}

/// An argument that is a number or a tensor, in f64.
fn bound_arg(cx: &mut Cx<'_, '_>, name: &str) -> Res<Option<ValueId>> {
    if !cx.has(name) {
        return Ok(None);
    }
    let operand = cx.operand(name)?;
    super::elementwise::value(cx, &operand, DType::F64).map(Some)
}

/// Below what a singular value counts as 0: the greater of `atol` and `rtol` times the greatest of them.
fn tolerance(cx: &mut Cx<'_, '_>, x: ValueId, values: ValueId, dtype: DType) -> Res<ValueId> {
    let (_, m, n) = cx.matrix_shape(x)?;
    let (Some(m), Some(n)) = (m.as_usize(), n.as_usize()) else {
        return unsupported("the rank of matrices of dynamic sizes", "export these dimensions as static ones");
    };
    let epsilon = if dtype == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
    let usual = cx.float(epsilon * m.max(n) as f64, DType::F64)?;
    let zero = cx.float(0.0, DType::F64)?;
    // `tol` alone is absolute, `rcond` alone is relative.
    let atol = match bound_arg(cx, "atol")? {
        Some(atol) => Some(atol),
        None => bound_arg(cx, "tol")?,
    };
    let rtol = match bound_arg(cx, "rtol")? {
        Some(rtol) => Some(rtol),
        None if cx.node.target.contains("pinverse") => {
            let rcond = cx.float_or("rcond", 1e-15)?;
            Some(cx.float(rcond, DType::F64)?)
        }
        None => bound_arg(cx, "rcond")?,
    };
    let rtol = match (rtol, atol) {
        (Some(rtol), _) => rtol,
        (None, None) => usual,
        (None, Some(atol)) => {
            let stated = cx.compare(CompareFn::Gt, atol, zero)?;
            cx.select(stated, zero, usual)?
        }
    };
    let most = most(cx, values)?;
    let relative = cx.binary(BinaryFn::Mul, most, rtol)?;
    cx.binary(BinaryFn::Max, relative, atol.unwrap_or(zero))
}

/// Sizes of singular values or of eigenvalues.
fn sizes(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<ValueId> {
    if cx.bool_or("hermitian", false)? {
        let [values, _] = cx.factor(FactorFn::Eigen, x, false)?;
        return cx.unary(UnaryFn::Abs, values);
    }
    singular_values(cx, x)
}

pub(super) fn matrix_rank(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, dtype) = wide(cx, named(cx, ["self", "input"]))?;
    let values = sizes(cx, x)?;
    let bound = tolerance(cx, x, values, dtype)?;
    count_above(cx, values, bound)
}

/// The pseudoinverse by singular values, or by eigenvalues.
pub(super) fn pinv(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, dtype) = wide(cx, "self")?;
    let (batch, m, n) = cx.matrix_shape(x)?;
    if m.is(0) || n.is(0) {
        let none = cx.float(0.0, dtype)?;
        return cx.expand(none, [&batch[..], &[n, m]].concat());
    }
    let hermitian = cx.bool_or("hermitian", false)?;
    let (left, values, right) = if hermitian {
        let [values, vectors] = cx.factor(FactorFn::Eigen, x, false)?;
        (vectors, values, cx.flipped(vectors)?)
    } else {
        let [left, values, right] = cx.factor(FactorFn::Singular, x, false)?;
        (left, values, right)
    };
    let size = cx.unary(UnaryFn::Abs, values)?;
    let bound = tolerance(cx, x, size, dtype)?;
    let bound = cx.unsqueeze(bound, batch.len())?;
    let counts = cx.compare(CompareFn::Gt, size, bound)?;
    let one_over = cx.unary(UnaryFn::Reciprocal, values)?;
    let zero = cx.float(0.0, DType::F64)?;
    let inverse = cx.select(counts, one_over, zero)?;
    let (columns, rows) = (cx.flipped(right)?, cx.flipped(left)?);
    let out = cx.with_spectrum(columns, inverse, rows)?;
    cx.cast(out, dtype)
}

/// The square root of a symmetric positive definite matrix.
pub(super) fn matrix_sqrth(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, dtype) = wide(cx, named(cx, ["self", "A"]))?;
    let [values, vectors] = cx.factor(FactorFn::Eigen, x, false)?;
    let roots = cx.unary(UnaryFn::Sqrt, values)?;
    let rows = cx.flipped(vectors)?;
    let out = cx.with_spectrum(vectors, roots, rows)?;
    cx.cast(out, dtype)
}

/// Orthonormal columns times a symmetric matrix: unique where the columns are independent.
pub(super) fn polar(cx: &mut Cx<'_, '_>) -> Results {
    let (x, dtype) = wide(cx, "A")?;
    let [left, values, right] = cx.factor(FactorFn::Singular, x, false)?;
    let u = cx.times(left, right)?;
    let columns = cx.flipped(right)?;
    let h = cx.with_spectrum(columns, values, right)?;
    Ok(vec![Some(cx.cast(u, dtype)?), Some(cx.cast(h, dtype)?)])
}

/// The norms of matrices by singular values, whose two axes are the last.
pub(super) fn norm(cx: &mut Cx<'_, '_>, x: ValueId, ord: &str) -> Res<ValueId> {
    let dtype = cx.dtype_of(x);
    let x = cx.cast(x, DType::F64)?;
    let values = singular_values(cx, x)?;
    let last = cx.rank(values).saturating_sub(1);
    let f = match ord {
        "2" => ReduceFn::Max,
        "-2" => ReduceFn::Min,
        _ => ReduceFn::Sum,
    };
    let out = cx.reduce(f, values, &[last], false)?;
    cx.cast(out, dtype)
}

/// How far the solution of a system grows: the greatest over the least singular value, or norms of the matrix and its inverse.
pub(super) fn cond(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, dtype) = wide(cx, "self")?;
    let ord = if cx.node.target.ends_with("p_str") {
        cx.optional_text("p")?.unwrap_or("fro").to_owned()
    } else {
        super::distance::order_name(cx.float_or("p", 2.0)?)
    };
    let out = if matches!(ord.as_str(), "2" | "-2") {
        let values = singular_values(cx, x)?;
        let last = cx.rank(values).saturating_sub(1);
        let high = cx.reduce(ReduceFn::Max, values, &[last], false)?;
        let low = cx.reduce(ReduceFn::Min, values, &[last], false)?;
        let (a, b) = if ord == "2" { (high, low) } else { (low, high) };
        cx.binary(BinaryFn::Div, a, b)?
    } else {
        let rank = cx.rank(x);
        let (inverse, _) = cx.inverse(x, true)?;
        let axes = [rank - 2, rank - 1];
        let a = super::distance::matrix(cx, x, &ord, axes, false)?;
        let b = super::distance::matrix(cx, inverse, &ord, axes, false)?;
        cx.binary(BinaryFn::Mul, a, b)?
    };
    cx.cast(out, dtype)
}
