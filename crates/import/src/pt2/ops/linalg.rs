//! Linear systems: factorizations, solutions, inverses and determinants of large matrices. Computed in f64 and rounded once.

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, CompareFn, FactorFn, ReduceFn, UnaryFn},
};
use regraft_tensor::{DType, Dim};

use crate::{
    build::{Lu, Triangle},
    pt2::args::{Cx, Res, ValueId, unsupported, wrong},
};

/// Several results, all of them computed.
pub(super) type Results = Res<Vec<Option<ValueId>>>;

/// A float in f64, and its own dtype.
pub(super) fn wide(cx: &mut Cx<'_, '_>, name: &str) -> Res<(ValueId, DType)> {
    let x = cx.tensor(name)?;
    let dtype = cx.dtype_of(x);
    if !dtype.is_float() || cx.rank(x) < 2 {
        return wrong(format!("expected matrices of floats, found {}", cx.ty(x)));
    }
    Ok((cx.cast(x, DType::F64)?, dtype))
}

/// The first argument that there is of these names.
pub(super) fn named<'a>(cx: &Cx<'_, '_>, names: [&'a str; 2]) -> &'a str {
    let [first, second] = names;
    if cx.has(first) { first } else { second }
}

fn some(values: impl IntoIterator<Item = ValueId>) -> Results {
    Ok(values.into_iter().map(Some).collect())
}

// Solutions.

/// The right side as matrices, and whether it was vectors.
fn right_side(cx: &mut Cx<'_, '_>, a: ValueId, b: ValueId) -> Res<(ValueId, bool)> {
    let (mut rows, b_shape) = (cx.shape(a), cx.shape(b));
    rows.pop();
    let vectors = b_shape.len() == 1 || b_shape == rows;
    let b = cx.cast(b, DType::F64)?;
    Ok(if vectors { (cx.unsqueeze(b, b_shape.len())?, true) } else { (b, false) })
}

/// `x` with `A·x = B`, or with `x·A = B`, and the factors of `A`.
fn solved(cx: &mut Cx<'_, '_>, strict: bool) -> Res<(ValueId, Lu, DType)> {
    let (mut a, dtype) = wide(cx, "A")?;
    let b = cx.tensor("B")?;
    let (mut b, vectors) = right_side(cx, a, b)?;
    let left = cx.bool_or("left", true)?;
    if !left {
        a = cx.flipped(a)?;
        b = if vectors { b } else { cx.flipped(b)? };
    }
    // Factors of the matrix as it was given say whether it is singular, once for all that it broadcasts to.
    let alone = cx.lu(a, strict)?;
    let (many, b) = cx.same_batch(a, b)?;
    let lu = if many == a { alone } else { cx.lu(many, false)? };
    let mut x = cx.solve_lu(lu, b)?;
    if vectors {
        let last = cx.rank(x).saturating_sub(1);
        x = cx.squeeze(x, last)?;
    } else if !left {
        x = cx.flipped(x)?;
    }
    Ok((cx.cast(x, dtype)?, alone, dtype))
}

pub(super) fn solve(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    Ok(solved(cx, true)?.0)
}

/// With what says whether the matrix is singular; `_linalg_solve_ex` gives the factors, too.
pub(super) fn solve_ex(cx: &mut Cx<'_, '_>) -> Results {
    let strict = cx.bool_or("check_errors", false)?;
    let (x, lu, dtype) = solved(cx, strict)?;
    let info = cx.first_zero(lu.packed)?;
    if !cx.node.target.contains("_linalg_solve_ex") {
        return some([x, info]);
    }
    let packed = cx.cast(lu.packed, dtype)?;
    some([x, packed, lu.pivots, info])
}

pub(super) fn inverse(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, dtype) = wide(cx, named(cx, ["A", "self"]))?;
    let (x, _) = cx.inverse(a, true)?;
    cx.cast(x, dtype)
}

pub(super) fn inverse_ex(cx: &mut Cx<'_, '_>) -> Results {
    let (a, dtype) = wide(cx, "A")?;
    let strict = cx.bool_or("check_errors", false)?;
    let (x, lu) = cx.inverse(a, strict)?;
    let info = cx.first_zero(lu.packed)?;
    some([cx.cast(x, dtype)?, info])
}

/// Of a triangle, on the left or on the right.
pub(super) fn solve_triangular(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (mut a, dtype) = wide(cx, named(cx, ["self", "A"]))?;
    let (mut b, _) = wide(cx, "B")?;
    let mut upper = cx.bool_or("upper", false)?;
    let (left, unit) = (cx.bool_or("left", true)?, cx.bool_or("unitriangular", false)?);
    if !left {
        (a, b, upper) = (cx.flipped(a)?, cx.flipped(b)?, !upper);
    }
    let (a, b) = cx.same_batch(a, b)?;
    let x = cx.substitute(a, b, Triangle { upper, unit })?;
    let x = if left { x } else { cx.flipped(x)? };
    cx.cast(x, dtype)
}

pub(super) fn triangular_solve(cx: &mut Cx<'_, '_>) -> Results {
    let ((b, dtype), (a, _)) = (wide(cx, "self")?, wide(cx, "A")?);
    let (upper, unit) = (cx.bool_or("upper", true)?, cx.bool_or("unitriangular", false)?);
    let transpose = cx.bool_or("transpose", false)?;
    let (given, b) = cx.same_batch(a, b)?;
    let a = if transpose { cx.flipped(given)? } else { given };
    let x = cx.substitute(a, b, Triangle { upper: upper != transpose, unit })?;
    some([cx.cast(x, dtype)?, cx.cast(given, dtype)?])
}

/// Factors that are given: `LU` and the exchanges of rows.
fn given_factors(cx: &mut Cx<'_, '_>, packed: ValueId, pivots: ValueId) -> Res<Lu> {
    let (_, m, _) = cx.matrix_shape(packed)?;
    Ok(Lu { packed, pivots, rows: cx.exchanged(pivots, &m)? })
}

/// `lu_solve`, `linalg.lu_solve`.
pub(super) fn lu_solve(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let old = cx.has("LU_data");
    let (packed, dtype) = wide(cx, if old { "LU_data" } else { "LU" })?;
    let pivots = cx.tensor(if old { "LU_pivots" } else { "pivots" })?;
    let (mut b, _) = wide(cx, if old { "self" } else { "B" })?;
    let (left, adjoint) = (cx.bool_or("left", true)?, cx.bool_or("adjoint", false)?);
    if !left {
        b = cx.flipped(b)?;
    }
    let (packed, b) = cx.same_batch(packed, b)?;
    let (mut shape, _, _) = cx.matrix_shape(packed)?;
    shape.extend(cx.shape(pivots).pop());
    let pivots = cx.expand(pivots, shape)?;
    let lu = given_factors(cx, packed, pivots)?;
    let x = if left == adjoint { cx.solve_lu_transposed(lu, b)? } else { cx.solve_lu(lu, b)? };
    let x = if left { x } else { cx.flipped(x)? };
    cx.cast(x, dtype)
}

// Factors.

fn without_pivots(cx: &Cx<'_, '_>) -> Res<()> {
    if cx.bool_or("pivot", true)? {
        return Ok(());
    }
    unsupported("an LU factorization without exchanges of rows", "leave pivot=True")
}

/// `lu_factor`, which a singular matrix ends, and the form that says so.
pub(super) fn lu_factor(cx: &mut Cx<'_, '_>, strict: bool) -> Results {
    without_pivots(cx)?;
    let (a, dtype) = wide(cx, named(cx, ["A", "self"]))?;
    let strict = cx.bool_or("check_errors", strict)?;
    let lu = cx.lu(a, strict)?;
    let info = cx.first_zero(lu.packed)?;
    some([cx.cast(lu.packed, dtype)?, lu.pivots, info])
}

/// `P`, `L` and `U` of packed factors.
fn unpacked(cx: &mut Cx<'_, '_>, lu: Lu, dtype: DType) -> Results {
    let (batch, m, n) = cx.matrix_shape(lu.packed)?;
    let (rank, k) = (batch.len() + 2, m.min_of(&n));
    let p = cx.exchange_matrix(lu.rows, dtype)?;
    let packed = cx.cast(lu.packed, dtype)?;
    let low = cx.slice(packed, rank - 1, Dim::new(0), k.clone())?;
    let low = cx.triangle(low, CompareFn::Lt, 0)?;
    let one = cx.identity(&batch, &m, &k, dtype)?;
    let low = cx.binary(BinaryFn::Add, low, one)?;
    let high = cx.slice(packed, rank - 2, Dim::new(0), k)?;
    let high = cx.triangle(high, CompareFn::Ge, 0)?;
    some([p, low, high])
}

pub(super) fn lu(cx: &mut Cx<'_, '_>) -> Results {
    without_pivots(cx)?;
    let (a, dtype) = wide(cx, "A")?;
    let lu = cx.lu(a, false)?;
    unpacked(cx, lu, dtype)
}

pub(super) fn lu_unpack(cx: &mut Cx<'_, '_>) -> Results {
    let (data, pivots) = (cx.bool_or("unpack_data", true)?, cx.bool_or("unpack_pivots", true)?);
    let (packed, dtype) = wide(cx, "LU_data")?;
    let exchanges = cx.tensor("LU_pivots")?;
    let lu = given_factors(cx, packed, exchanges)?;
    let [p, l, u] = unpacked(cx, lu, dtype)?.try_into().or_else(|_| wrong("expected three factors"))?;
    Ok(vec![p.filter(|_| pivots), l.filter(|_| data), u.filter(|_| data)])
}

/// The lower factor of a symmetric matrix, or the upper one, and where it ends.
fn cholesky_of(cx: &mut Cx<'_, '_>, name: &str, strict: bool) -> Res<(ValueId, ValueId)> {
    let (mut x, dtype) = wide(cx, name)?;
    let upper = cx.bool_or("upper", false)?;
    if upper {
        x = cx.flipped(x)?;
    }
    let [mut factor, info] = cx.factor(FactorFn::Cholesky, x, strict)?;
    if upper {
        factor = cx.flipped(factor)?;
    }
    Ok((cx.cast(factor, dtype)?, info))
}

pub(super) fn cholesky(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    Ok(cholesky_of(cx, "self", true)?.0)
}

pub(super) fn cholesky_ex(cx: &mut Cx<'_, '_>) -> Results {
    let strict = cx.bool_or("check_errors", false)?;
    let (factor, info) = cholesky_of(cx, "self", strict)?;
    some([factor, info])
}

/// `x` with `L·Lᵀ·x = b`.
fn by_cholesky(cx: &mut Cx<'_, '_>, factor: ValueId, b: ValueId) -> Res<ValueId> {
    let upper = cx.bool_or("upper", false)?;
    let (factor, b) = cx.same_batch(factor, b)?;
    let turned = cx.flipped(factor)?;
    let (low, high) = if upper { (turned, factor) } else { (factor, turned) };
    let y = cx.substitute(low, b, Triangle { upper: false, unit: false })?;
    cx.substitute(high, y, Triangle { upper: true, unit: false })
}

pub(super) fn cholesky_solve(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let ((b, dtype), (factor, _)) = (wide(cx, "self")?, wide(cx, "input2")?);
    let x = by_cholesky(cx, factor, b)?;
    cx.cast(x, dtype)
}

pub(super) fn cholesky_inverse(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (factor, dtype) = wide(cx, "self")?;
    let (batch, m, n) = cx.matrix_shape(factor)?;
    let one = cx.identity(&batch, &m, &n, DType::F64)?;
    let x = by_cholesky(cx, factor, one)?;
    cx.cast(x, dtype)
}

pub(super) fn geqrf(cx: &mut Cx<'_, '_>) -> Results {
    let (x, dtype) = wide(cx, "self")?;
    let [packed, tau] = cx.factor(FactorFn::Qr, x, false)?;
    some([cx.cast(packed, dtype)?, cx.cast(tau, dtype)?])
}

/// `packed` with columns of zeros behind, or without those behind, so that it has `count`.
fn with_columns(cx: &mut Cx<'_, '_>, packed: ValueId, count: &Dim) -> Res<ValueId> {
    let (batch, m, n) = cx.matrix_shape(packed)?;
    let axis = batch.len() + 1;
    if cx.surely_le(count, &n) {
        return cx.slice(packed, axis, Dim::new(0), count.clone());
    }
    if !cx.surely_le(&n, count) {
        return unsupported(format!("a factorization of {m}x{n} matrices"), "export these dimensions as static ones");
    }
    let zero = cx.float_like(0.0, packed)?;
    let zeros = cx.expand(zero, [&batch[..], &[m, count - &n]].concat())?;
    cx.concat(&[packed, zeros], axis)
}

/// `torch.linalg.qr`, and `torch.qr`.
pub(super) fn qr(cx: &mut Cx<'_, '_>) -> Results {
    let (x, dtype) = wide(cx, named(cx, ["A", "self"]))?;
    let default = if cx.bool_or("some", true)? { "reduced" } else { "complete" };
    let mode = cx.optional_text("mode")?.unwrap_or(default);
    let (batch, m, n) = cx.matrix_shape(x)?;
    let [packed, tau] = cx.factor(FactorFn::Qr, x, false)?;
    let k = m.min_of(&n);
    let (columns, rows) = match mode {
        "reduced" => (Some(k.clone()), k),
        "complete" => (Some(m.clone()), m),
        "r" => (None, k),
        other => return wrong(format!("`{other}` is not a mode of a QR factorization")),
    };
    let q = match columns {
        Some(columns) => {
            let vectors = with_columns(cx, packed, &columns)?;
            cx.reflected(vectors, tau)?
        }
        None => {
            let none = cx.float(0.0, DType::F64)?;
            cx.expand(none, vec![Dim::new(0)])?
        }
    };
    let r = cx.slice(packed, batch.len(), Dim::new(0), rows)?;
    let r = cx.triangle(r, CompareFn::Ge, 0)?;
    some([cx.cast(q, dtype)?, cx.cast(r, dtype)?])
}

pub(super) fn householder_product(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, dtype) = wide(cx, named(cx, ["input", "self"]))?;
    let tau = cx.tensor(named(cx, ["tau", "input2"]))?;
    let tau = cx.cast(tau, DType::F64)?;
    let out = cx.reflected(x, tau)?;
    cx.cast(out, dtype)
}

/// A product with the whole `Q` of reflections.
pub(super) fn ormqr(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let ((x, dtype), (other, _)) = (wide(cx, "self")?, wide(cx, "input3")?);
    let tau = cx.tensor("input2")?;
    let tau = cx.cast(tau, DType::F64)?;
    let (_, m, _) = cx.matrix_shape(x)?;
    let vectors = with_columns(cx, x, &m)?;
    let mut q = cx.reflected(vectors, tau)?;
    if cx.bool_or("transpose", false)? {
        q = cx.flipped(q)?;
    }
    let out = if cx.bool_or("left", true)? { cx.times(q, other)? } else { cx.times(other, q)? };
    cx.cast(out, dtype)
}

// Determinants, powers and tensors as matrices.

/// The sign of the determinant and the logarithm of its size, of matrices of any size.
pub(super) fn sign_and_log(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<[ValueId; 2]> {
    let lu = cx.lu(x, false)?;
    let (sign, diagonal) = cx.sign_and_diagonal(lu)?;
    let axis = cx.rank(diagonal).saturating_sub(1);
    let signs = cx.unary(UnaryFn::Sign, diagonal)?;
    let signs = cx.reduce(ReduceFn::Prod, signs, &[axis], false)?;
    let sign = cx.binary(BinaryFn::Mul, sign, signs)?;
    let size = cx.unary(UnaryFn::Abs, diagonal)?;
    let logs = cx.unary(UnaryFn::Log, size)?;
    Ok([sign, cx.reduce(ReduceFn::Sum, logs, &[axis], false)?])
}

pub(super) fn determinant(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<ValueId> {
    let lu = cx.lu(x, false)?;
    let (sign, diagonal) = cx.sign_and_diagonal(lu)?;
    let axis = cx.rank(diagonal).saturating_sub(1);
    let product = cx.reduce(ReduceFn::Prod, diagonal, &[axis], false)?;
    cx.binary(BinaryFn::Mul, sign, product)
}

pub(super) fn matrix_power(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (mut x, dtype) = wide(cx, "self")?;
    let n = cx.int("n")?;
    if n < 0 {
        x = cx.inverse(x, true)?.0;
    }
    let (mut left, mut square, mut out) = (n.unsigned_abs(), x, None);
    while left > 0 {
        if left % 2 == 1 {
            out = Some(match out {
                Some(out) => cx.times(out, square)?,
                None => square,
            });
        }
        left /= 2;
        if left > 0 {
            square = cx.times(square, square)?;
        }
    }
    let out = match out {
        Some(out) => out,
        None => {
            let (batch, m, n) = cx.matrix_shape(x)?;
            cx.identity(&batch, &m, &n, DType::F64)?
        }
    };
    cx.cast(out, dtype)
}

/// The inverse of a tensor as a matrix of its first `ind` axes by the others.
pub(super) fn tensorinv(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let (dtype, shape) = (cx.dtype_of(x), cx.shape(x));
    let ind = cx.int_or("ind", 2)?;
    let Some(ind) = usize::try_from(ind).ok().filter(|i| *i > 0 && *i <= shape.len()) else {
        return wrong(format!("{ind} axes of {} for rows", cx.ty(x)));
    };
    let (rows, columns) = shape.split_at(ind);
    let x = cx.cast(x, DType::F64)?;
    let x = cx.reshape(x, vec![rows.iter().product(), columns.iter().product()])?;
    let (x, _) = cx.inverse(x, true)?;
    let x = cx.reshape(x, [columns, rows].concat())?;
    cx.cast(x, dtype)
}

/// The solution of a system whose matrix is a tensor.
pub(super) fn tensorsolve(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (mut a, b) = (cx.tensor("self")?, cx.tensor("other")?);
    let (dtype, rank) = (cx.dtype_of(a), cx.rank(a));
    let moved = cx.ints("dims")?.into_iter().map(|d| cx.axis(d, rank)).collect::<Res<Vec<_>>>()?;
    if !moved.is_empty() {
        let mut perm: Vec<usize> = (0..rank).filter(|i| !moved.contains(i)).collect();
        perm.extend(moved);
        a = cx.permute(a, perm)?;
    }
    let unknowns = cx.shape(a).get(cx.rank(b)..).unwrap_or_default().to_vec();
    let (a, b) = (cx.cast(a, DType::F64)?, cx.cast(b, DType::F64)?);
    let n = cx.ty(b).numel();
    let (a, b) = (cx.reshape(a, vec![n.clone(), unknowns.iter().product()])?, cx.reshape(b, vec![n, Dim::new(1)])?);
    let lu = cx.lu(a, true)?;
    let x = cx.solve_lu(lu, b)?;
    let x = cx.reshape(x, unknowns)?;
    cx.cast(x, dtype)
}

/// How many of `values` are above `bound`, as `i64`.
pub(super) fn count_above(cx: &mut Cx<'_, '_>, values: ValueId, bound: ValueId) -> Res<ValueId> {
    let axis = cx.rank(values).saturating_sub(1);
    let bound = cx.unsqueeze(bound, axis)?;
    let above = cx.compare(CompareFn::Gt, values, bound)?;
    let one = cx.cast(above, DType::I64)?;
    if cx.ty(values).shape.last().is_some_and(|d| d.is(0)) {
        let none = cx.literal(Scalar::Int(0), DType::I64)?;
        let mut batch = cx.shape(values);
        batch.pop();
        return cx.expand(none, batch);
    }
    cx.reduce(ReduceFn::Sum, one, &[axis], false)
}
