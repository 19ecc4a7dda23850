//! Linear algebra on the matrices in the last two axes, made of a few ops, in f64.

use regraft_ir::{
    Scalar,
    ops::{
        ArgReduce, ArgReduceFn, BinaryFn, CompareFn, Factor, FactorFn, Gather, Householder, Matmul, ReduceFn,
        SolveTriangular, broadcast,
    },
};
use regraft_tensor::{DType, Dim};

use super::{Builder, Res, ValueId, transposed, unsupported, wrong};

/// Rows exchanged one by one take some nodes each.
const MOST_EXCHANGES: usize = 128;

/// A factorization `P·L·U`.
#[derive(Clone, Copy)]
pub(crate) struct Lu {
    /// `L` and `U` in one matrix.
    pub(crate) packed: ValueId,
    /// The row that each was exchanged with, from 1 on.
    pub(crate) pivots: ValueId,
    /// Which row of the matrix each row of `L·U` is.
    pub(crate) rows: ValueId,
}

/// Which triangle, and what stands on its diagonal.
#[derive(Clone, Copy)]
pub(crate) struct Triangle {
    pub(crate) upper: bool,
    pub(crate) unit: bool,
}

impl Builder {
    /// Batch, rows and columns of matrices.
    pub(crate) fn matrix_shape(&self, x: ValueId) -> Res<(Vec<Dim>, Dim, Dim)> {
        let mut shape = self.shape(x);
        match (shape.pop(), shape.pop()) {
            (Some(n), Some(m)) => Ok((shape, m, n)),
            _ => wrong(format!("expected a matrix, found {}", self.ty(x))),
        }
    }

    /// The last two axes exchanged.
    pub(crate) fn flipped(&mut self, x: ValueId) -> Res<ValueId> {
        let rank = self.rank(x);
        if rank < 2 {
            return wrong(format!("expected a matrix, found {}", self.ty(x)));
        }
        transposed(self, x)
    }

    pub(crate) fn times(&mut self, a: ValueId, b: ValueId) -> Res<ValueId> {
        self.emit(Matmul { transpose_b: false }, &[a, b])
    }

    /// Both with the batch that theirs broadcast to.
    pub(crate) fn same_batch(&mut self, a: ValueId, b: ValueId) -> Res<(ValueId, ValueId)> {
        let ((ba, ma, na), (bb, mb, nb)) = (self.matrix_shape(a)?, self.matrix_shape(b)?);
        let Ok(batch) = broadcast(&ba, &bb) else {
            return wrong(format!("{} and {} do not broadcast", self.ty(a), self.ty(b)));
        };
        let whole = |m: Dim, n: Dim| [&batch[..], &[m, n]].concat();
        Ok((self.expand(a, whole(ma, na))?, self.expand(b, whole(mb, nb))?))
    }

    /// Where the column minus the row compares to `offset`, for `m` rows and `n` columns.
    pub(crate) fn band(&mut self, f: CompareFn, m: &Dim, n: &Dim, offset: i64) -> Res<ValueId> {
        let row = self.iota(m.clone(), offset, 1)?;
        let row = self.unsqueeze(row, 1)?;
        let column = self.iota(n.clone(), 0, 1)?;
        self.compare(f, column, row)
    }

    /// `x` where the column minus the row compares to `offset`, zero elsewhere.
    pub(crate) fn triangle(&mut self, x: ValueId, f: CompareFn, offset: i64) -> Res<ValueId> {
        let (_, m, n) = self.matrix_shape(x)?;
        let keep = self.band(f, &m, &n, offset)?;
        if self.dtype_of(x) == DType::Bool {
            return self.binary(BinaryFn::And, x, keep);
        }
        let zero = self.literal_like(Scalar::Int(0), x)?;
        self.select(keep, x, zero)
    }

    /// Ones where the column minus the row is `offset`, for `m` rows and `n` columns.
    pub(crate) fn ones_on_diagonal(&mut self, m: &Dim, n: &Dim, offset: i64, dtype: DType) -> Res<ValueId> {
        let one = self.band(CompareFn::Eq, m, n, offset)?;
        self.cast(one, dtype)
    }

    /// Ones on the diagonal of `m` rows and `n` columns, for each of a batch.
    pub(crate) fn identity(&mut self, batch: &[Dim], m: &Dim, n: &Dim, dtype: DType) -> Res<ValueId> {
        let one = self.ones_on_diagonal(m, n, 0, dtype)?;
        self.expand(one, [batch, &[m.clone(), n.clone()]].concat())
    }

    /// The main diagonal, as the last axis.
    pub(crate) fn main_diagonal(&mut self, x: ValueId) -> Res<ValueId> {
        let (_, m, n) = self.matrix_shape(x)?;
        let (rank, k) = (self.rank(x), m.min_of(&n));
        let x = self.slice(x, rank - 2, Dim::new(0), k.clone())?;
        let x = self.slice(x, rank - 1, Dim::new(0), k)?;
        let x = self.triangle(x, CompareFn::Eq, 0)?;
        self.reduce(ReduceFn::Sum, x, &[rank - 1], false)
    }

    /// The results of a factorization.
    pub(crate) fn factor<const N: usize>(&mut self, f: FactorFn, x: ValueId, strict: bool) -> Res<[ValueId; N]> {
        let results = self.emit_all(Factor { f, strict }, vec![Some(x)])?;
        results.try_into().or_else(|_| wrong("expected other results"))
    }

    pub(crate) fn lu(&mut self, x: ValueId, strict: bool) -> Res<Lu> {
        let [packed, pivots, rows] = self.factor(FactorFn::Lu, x, strict)?;
        Ok(Lu { packed, pivots, rows })
    }

    /// `x` with `a·x = b`.
    pub(crate) fn substitute(&mut self, a: ValueId, b: ValueId, triangle: Triangle) -> Res<ValueId> {
        self.emit(SolveTriangular { upper: triangle.upper, unit: triangle.unit }, &[a, b])
    }

    /// `x` with `P·L·U·x = b`.
    pub(crate) fn solve_lu(&mut self, lu: Lu, b: ValueId) -> Res<ValueId> {
        let at = self.rank(lu.rows);
        let shape = self.shape(b);
        let rows = self.unsqueeze(lu.rows, at)?;
        let rows = self.expand(rows, shape)?;
        let b = self.emit(Gather { axis: at - 1 }, &[b, rows])?;
        let y = self.substitute(lu.packed, b, Triangle { upper: false, unit: true })?;
        self.substitute(lu.packed, y, Triangle { upper: true, unit: false })
    }

    /// `x` with `(P·L·U)ᵀ·x = b`.
    pub(crate) fn solve_lu_transposed(&mut self, lu: Lu, b: ValueId) -> Res<ValueId> {
        let turned = self.flipped(lu.packed)?;
        let y = self.substitute(turned, b, Triangle { upper: false, unit: false })?;
        let z = self.substitute(turned, y, Triangle { upper: true, unit: true })?;
        let exchange = self.exchange_matrix(lu.rows, self.dtype_of(z))?;
        self.times(exchange, z)
    }

    /// `P`, of which column `i` has its one in row `rows[i]`.
    pub(crate) fn exchange_matrix(&mut self, rows: ValueId, dtype: DType) -> Res<ValueId> {
        let Some(last) = self.rank(rows).checked_sub(1) else { return wrong("expected the order of rows") };
        let Some(m) = self.shape(rows).pop() else { return wrong("expected the order of rows") };
        let column = self.unsqueeze(rows, last)?;
        let row = self.iota(m, 0, 1)?;
        let row = self.unsqueeze(row, 1)?;
        let here = self.compare(CompareFn::Eq, column, row)?;
        self.cast(here, dtype)
    }

    /// Which row each of `m` rows is after exchanges, of which `pivots` says with which row, from 1 on.
    pub(crate) fn exchanged(&mut self, pivots: ValueId, m: &Dim) -> Res<ValueId> {
        let Some(axis) = self.rank(pivots).checked_sub(1) else { return wrong("expected pivots") };
        let count = self.size(pivots, axis)?;
        if count > MOST_EXCHANGES {
            return unsupported(format!("{count} exchanges of rows"), format!("use at most {MOST_EXCHANGES}"));
        }
        let place = self.iota(m.clone(), 0, 1)?;
        let mut shape = self.shape(pivots);
        shape.pop();
        shape.push(m.clone());
        let mut rows = self.expand(place, shape)?;
        let pivots = self.cast(pivots, DType::I64)?;
        let one = self.literal(Scalar::Int(1), DType::I64)?;
        let pivots = self.binary(BinaryFn::Sub, pivots, one)?;
        for j in 0..count {
            let (here, next) = (Dim::from(j), Dim::from(j + 1));
            let other = self.slice(pivots, axis, here.clone(), next.clone())?;
            let mine = self.slice(rows, axis, here.clone(), next)?;
            let theirs = self.emit(Gather { axis }, &[rows, other])?;
            let at_other = self.compare(CompareFn::Eq, place, other)?;
            let swapped = self.select(at_other, mine, rows)?;
            let j = self.literal(Scalar::Int(j as i64), DType::I64)?;
            let at_mine = self.compare(CompareFn::Eq, place, j)?;
            rows = self.select(at_mine, theirs, swapped)?;
        }
        Ok(rows)
    }

    /// 0, or the number of the first zero on the diagonal of `U`, from 1 on, as `i32`.
    pub(crate) fn first_zero(&mut self, packed: ValueId) -> Res<ValueId> {
        let diagonal = self.main_diagonal(packed)?;
        let axis = self.rank(diagonal) - 1;
        if self.ty(diagonal).shape.last().is_some_and(|d| d.is(0)) {
            let mut batch = self.shape(diagonal);
            batch.pop();
            let zero = self.literal(Scalar::Int(0), DType::I32)?;
            return self.expand(zero, batch);
        }
        let zero = self.compare_with(CompareFn::Eq, diagonal, 0.0)?;
        let some = self.reduce(ReduceFn::Any, zero, &[axis], false)?;
        let zero = self.cast(zero, DType::I64)?;
        let first = self.emit(ArgReduce { f: ArgReduceFn::Max, axis, keep: false }, &[zero])?;
        let one = self.literal(Scalar::Int(1), DType::I64)?;
        let first = self.binary(BinaryFn::Add, first, one)?;
        let none = self.literal(Scalar::Int(0), DType::I64)?;
        let first = self.select(some, first, none)?;
        self.cast(first, DType::I32)
    }

    pub(crate) fn inverse(&mut self, x: ValueId, strict: bool) -> Res<(ValueId, Lu)> {
        let (batch, n, m) = self.matrix_shape(x)?;
        let one = self.identity(&batch, &n, &m, self.dtype_of(x))?;
        let lu = self.lu(x, strict)?;
        Ok((self.solve_lu(lu, one)?, lu))
    }

    /// The sign of the determinant of `P·L·U`, and the diagonal of `U`.
    pub(crate) fn sign_and_diagonal(&mut self, lu: Lu) -> Res<(ValueId, ValueId)> {
        let diagonal = self.main_diagonal(lu.packed)?;
        let axis = self.rank(diagonal) - 1;
        let Some(n) = self.shape(diagonal).pop() else { return wrong("expected a matrix") };
        let own = self.iota(n, 1, 1)?;
        let pivots = self.cast(lu.pivots, DType::I64)?;
        let stays = self.compare(CompareFn::Eq, pivots, own)?;
        let (one, minus) = (self.float_like(1.0, diagonal)?, self.float_like(-1.0, diagonal)?);
        let signs = self.select(stays, one, minus)?;
        Ok((self.reduce(ReduceFn::Prod, signs, &[axis], false)?, diagonal))
    }

    /// `Q` of as many columns as `packed` has.
    pub(crate) fn reflected(&mut self, packed: ValueId, tau: ValueId) -> Res<ValueId> {
        self.emit(Householder {}, &[packed, tau])
    }

    /// `left·diag(values)·right`.
    pub(crate) fn with_spectrum(&mut self, left: ValueId, values: ValueId, right: ValueId) -> Res<ValueId> {
        let axis = self.rank(values).saturating_sub(1);
        let row = self.unsqueeze(values, axis)?;
        let scaled = self.binary(BinaryFn::Mul, left, row)?;
        self.times(scaled, right)
    }
}
