//! Linear algebra on the matrices in the last two axes. What LAPACK leaves open, the signs of eigenvectors and singular vectors, is
//! open here too; everything else is what its routines give, up to rounding.

use regraft_tensor::{DType, Dim, Tensor};

use self::factors::{cholesky, eigen, householder, lu, reflections, singular, substitute};
use super::{
    OpDef, Operands,
    support::{differ, input, sizes},
};
use crate::{EvalError, OpError, TensorType, attrs, word_enum};

mod factors;

word_enum! {
    /// A factorization of `x: [.., m, n]`, with `k = min(m, n)`.
    pub enum FactorFn {
        /// `P·L·U` with partial pivoting: `L` and `U` in one matrix `[.., m, n]`, the row that each was exchanged with (`i32`,
        /// from 1 on, `[.., k]`), and which row of `x` each row of `L·U` is (`i64`, `[.., m]`); `getrf`
        Lu = "lu",
        /// `L·Lᵀ` of a symmetric matrix, of which the lower triangle is read: `L`, and 0 or the order of the first leading
        /// minor that is not positive (`i32`, `[..]`); `potrf`
        Cholesky = "cholesky",
        /// `Q·R` by Householder's reflections: `R` above their vectors, and their factors `[.., k]`; `geqrf`
        Qr = "qr",
        /// Eigenvalues, ascending, and eigenvectors as columns of a symmetric matrix, of which the lower triangle is read
        Eigen = "eigen",
        /// Singular values, descending, between the left singular vectors as columns and the right ones as rows: `[.., m, k]`,
        /// `[.., k]`, `[.., k, n]`. Left vectors of singular value 0, right ones where `m < n`, are zero
        Singular = "singular",
    }
}

attrs! {
    /// A factorization of matrices, computed in f64: `torch.linalg.lu_factor`, `cholesky`, `eigh`, `svd` and `torch.geqrf`.
    pub struct Factor {
        /// Which.
        pub f: FactorFn,
        /// Whether a matrix that is singular, or for `cholesky` not positive definite, is an error of the run.
        pub strict: bool = false,
    }
}

attrs! {
    /// `x` with `a·x = b` for triangular `a: [.., n, n]` and `b: [.., n, k]`: `torch.linalg.solve_triangular`. The other triangle is
    /// not read.
    pub struct SolveTriangular {
        /// Whether `a` is an upper triangle.
        pub upper: bool = false,
        /// Whether the diagonal of `a` counts as ones.
        pub unit: bool = false,
    }
}

attrs! {
    /// The first `n` columns of the product of the reflections `I - tau·v·vᵀ`, whose vectors `v` are below the diagonal of
    /// `x: [.., m, n]` with ones on it, for `tau: [.., k]`: `torch.linalg.householder_product`.
    pub struct Householder {}
}

/// The matrices of a value: how many, and their sizes.
fn matrices(shape: &[usize]) -> (usize, usize, usize) {
    let (batch, matrix) = shape.split_at(shape.len() - 2);
    (batch.iter().product(), matrix[0], matrix[1])
}

/// How often to compute: not at all where all results are empty.
fn rounds(batch: usize, types: &[TensorType]) -> usize {
    if types.iter().all(|t| sizes(t).contains(&0)) { 0 } else { batch }
}

fn expect_square(x: &TensorType) -> Result<(), OpError> {
    let n = x.rank();
    if differ(&x.shape[n - 1], &x.shape[n - 2]) {
        return Err(OpError::Shape(format!("expected square matrices, found {x}")));
    }
    Ok(())
}

/// Results of all matrices, one behind another.
struct Gathered(Vec<Vec<f64>>);

impl Gathered {
    fn new(types: &[TensorType]) -> Self {
        Gathered(types.iter().map(|t| Vec::with_capacity(sizes(t).iter().product())).collect())
    }

    fn push(&mut self, results: impl IntoIterator<Item = Vec<f64>>) {
        self.0.iter_mut().zip(results).for_each(|(all, one)| all.extend(one));
    }

    fn tensors(self, types: &[TensorType]) -> Vec<Tensor> {
        types.iter().zip(self.0).map(|(t, values)| Tensor::from_f64(t.dtype, &sizes(t), &values)).collect()
    }
}

impl OpDef for Factor {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_dtype(0, DType::is_float, "a float")?;
        operands.expect_rank(0, 2..)?;
        let x = operands.get(0);
        let (batch, matrix) = x.shape.split_at(x.rank() - 2);
        let (m, n) = (&matrix[0], &matrix[1]);
        let k = m.min_of(n);
        let of = |dtype: DType, tail: &[&Dim]| {
            TensorType::new(dtype, batch.iter().chain(tail.iter().copied()).cloned().collect::<Vec<Dim>>())
        };
        Ok(match self.f {
            FactorFn::Lu => vec![x.clone(), of(DType::I32, &[&k]), of(DType::I64, &[m])],
            FactorFn::Cholesky => {
                expect_square(x)?;
                vec![x.clone(), of(DType::I32, &[])]
            }
            FactorFn::Qr => vec![x.clone(), of(x.dtype, &[&k])],
            FactorFn::Eigen => {
                expect_square(x)?;
                vec![of(x.dtype, &[n]), x.clone()]
            }
            FactorFn::Singular => vec![of(x.dtype, &[m, &k]), of(x.dtype, &[&k]), of(x.dtype, &[&k, n])],
        })
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let x = input(inputs, 0);
        let (batch, m, n) = matrices(x.shape());
        let values = x.to_f64_vec();
        let mut all = Gathered::new(types);
        for i in 0..rounds(batch, types) {
            let mut a = values[i * m * n..][..m * n].to_vec();
            match self.f {
                FactorFn::Lu => {
                    let (pivots, rows) = lu(&mut a, m, n);
                    if self.strict && (0..m.min(n)).any(|j| a[j * n + j] == 0.0) {
                        return Err(EvalError::Matrix("a matrix is singular"));
                    }
                    all.push([a, pivots, rows]);
                }
                FactorFn::Cholesky => {
                    let info = cholesky(&mut a, n);
                    if self.strict && info > 0 {
                        return Err(EvalError::Matrix("a matrix is not positive definite"));
                    }
                    all.push([a, vec![info as f64]]);
                }
                FactorFn::Qr => {
                    let tau = reflections(&mut a, m, n);
                    all.push([a, tau]);
                }
                FactorFn::Eigen => all.push(eigen(a, n)),
                FactorFn::Singular => all.push(singular(&a, m, n)),
            }
        }
        Ok(all.tensors(types))
    }
}

impl OpDef for SolveTriangular {
    const OPERANDS: &'static [&'static str] = &["a", "b"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_dtype(0, DType::is_float, "a float")?;
        operands.expect_same_dtype([1])?;
        operands.expect_rank(0, 2..)?;
        let (a, b) = (operands.get(0), operands.get(1));
        expect_square(a)?;
        operands.expect_rank(1, a.rank()..=a.rank())?;
        let mut shape = a.shape.clone();
        shape[a.rank() - 1] = b.shape[a.rank() - 1].clone();
        operands.expect_shape(1, &shape)?;
        Ok(vec![b.clone()])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (a, b) = (input(inputs, 0), input(inputs, 1));
        let (batch, n, columns) = matrices(b.shape());
        let (va, mut x) = (a.to_f64_vec(), b.to_f64_vec());
        for i in 0..rounds(batch, types) {
            let a = &va[i * n * n..][..n * n];
            substitute(a, &mut x[i * n * columns..][..n * columns], n, self.upper, self.unit);
        }
        Ok(vec![Tensor::from_f64(types[0].dtype, b.shape(), &x)])
    }
}

impl OpDef for Householder {
    const OPERANDS: &'static [&'static str] = &["x", "tau"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_dtype(0, DType::is_float, "a float")?;
        operands.expect_same_dtype([1])?;
        operands.expect_rank(0, 2..)?;
        let (x, tau) = (operands.get(0), operands.get(1));
        let last = x.rank() - 1;
        operands.expect_rank(1, last..=last)?;
        let mut shape = x.shape[..last].to_vec();
        shape[last - 1] = tau.shape[last - 1].clone();
        operands.expect_shape(1, &shape)?;
        let more = |a: &Dim, b: &Dim| matches!((a.as_const(), b.as_const()), (Some(a), Some(b)) if a > b);
        if more(&x.shape[last], &x.shape[last - 1]) || more(&tau.shape[last - 1], &x.shape[last]) {
            return Err(OpError::Shape(format!("expected no more columns than rows, and no more factors: {x}, {tau}")));
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, tau) = (input(inputs, 0), input(inputs, 1));
        let (batch, m, n) = matrices(x.shape());
        let count = tau.shape()[tau.shape().len() - 1];
        let (values, factors) = (x.to_f64_vec(), tau.to_f64_vec());
        let mut all = Gathered::new(types);
        for i in 0..rounds(batch, types) {
            all.push([householder(&values[i * m * n..][..m * n], m, n, &factors[i * count..][..count])]);
        }
        Ok(all.tensors(types))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;

    fn factor(f: FactorFn, x: &Tensor) -> Vec<Tensor> {
        Op::from(Factor { f, strict: false }).eval(&[Some(x)]).expect("x fits")
    }

    fn matrix(m: usize, n: usize, values: &[f64]) -> Tensor {
        Tensor::from_slice(&[m, n], values)
    }

    fn close(found: &Tensor, expected: &[f64]) {
        let found = found.to_f64_vec();
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}, expected {expected:?}");
    }

    #[test]
    fn lu_has_torchs_pivots() {
        // torch.linalg.lu_factor
        let x = matrix(3, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0]);
        let out = factor(FactorFn::Lu, &x);
        close(&out[0], &[7.0, 8.0, 10.0, 1.0 / 7.0, 6.0 / 7.0, 11.0 / 7.0, 4.0 / 7.0, 0.5, -0.5]);
        assert_eq!((out[1].to_i64_vec(), out[2].to_i64_vec()), (vec![3, 3, 3], vec![2, 0, 1]));
        let singular = matrix(2, 2, &[1.0, 2.0, 2.0, 4.0]);
        let strict = Op::from(Factor { f: FactorFn::Lu, strict: true });
        assert!(matches!(strict.eval(&[Some(&singular)]), Err(EvalError::Matrix(_))));
        assert!(strict.eval(&[Some(&x)]).is_ok());
    }

    #[test]
    fn cholesky_says_where_it_ends() {
        let out = factor(FactorFn::Cholesky, &matrix(2, 2, &[4.0, 9.0, 2.0, 5.0]));
        close(&out[0], &[2.0, 0.0, 1.0, 2.0]);
        assert_eq!(out[1].to_i64_vec(), [0]);
        let out = factor(FactorFn::Cholesky, &matrix(2, 2, &[1.0, 0.0, 2.0, 1.0]));
        assert_eq!(out[1].to_i64_vec(), [2]);
    }

    #[test]
    fn reflections_are_those_of_lapack() {
        // torch.geqrf, and torch.linalg.qr for the product.
        let out = factor(FactorFn::Qr, &matrix(3, 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        let r = [-35f64.sqrt(), -44.0 / 35f64.sqrt(), (24.0f64 / 35.0).sqrt()];
        let found = out[0].to_f64_vec();
        close(&matrix(1, 3, &[found[0], found[1], found[3]]), &r);
        let q = Op::from(Householder {}).eval(&[Some(&out[0]), Some(&out[1])]).expect("they fit").remove(0);
        let q = q.to_f64_vec();
        let product: Vec<f64> = (0..3).flat_map(|i| [q[2 * i] * r[0], q[2 * i] * r[1] + q[2 * i + 1] * r[2]]).collect();
        close(&matrix(3, 2, &product), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn eigenvalues_ascend_and_singular_values_descend() {
        let out = factor(FactorFn::Eigen, &matrix(2, 2, &[2.0, 77.0, 1.0, 2.0]));
        close(&out[0], &[1.0, 3.0]);
        let x = matrix(2, 3, &[3.0, 2.0, 2.0, 2.0, 3.0, -2.0]);
        let out = factor(FactorFn::Singular, &x);
        close(&out[1], &[5.0, 3.0]);
        let (u, s, v) = (out[0].to_f64_vec(), out[1].to_f64_vec(), out[2].to_f64_vec());
        let back: Vec<f64> =
            (0..6).map(|at| (0..2).map(|k| u[at / 3 * 2 + k] * s[k] * v[k * 3 + at % 3]).sum()).collect();
        close(&matrix(2, 3, &back), &x.to_f64_vec());
        let none = factor(FactorFn::Singular, &matrix(2, 2, &[f64::NAN; 4]));
        assert!(none[1].to_f64_vec().iter().all(|v| v.is_nan()));
    }

    #[test]
    fn triangles_are_solved_and_batches_may_be_empty() {
        let a = matrix(2, 2, &[2.0, 9.0, 1.0, 4.0]);
        let b = matrix(2, 1, &[2.0, 9.0]);
        let solve = |upper, unit| {
            let op = Op::from(SolveTriangular { upper, unit });
            op.eval(&[Some(&a), Some(&b)]).expect("they fit")[0].to_f64_vec()
        };
        assert_eq!((solve(false, false), solve(true, true)), (vec![1.0, 2.0], vec![-79.0, 9.0]));
        let empty = Tensor::from_slice::<f32>(&[0, 3, 2], &[]);
        assert_eq!(factor(FactorFn::Lu, &empty)[2].shape(), [0, 3]);
        let flat = Tensor::from_slice::<f32>(&[3, 0], &[]);
        assert_eq!(factor(FactorFn::Lu, &flat)[2].to_i64_vec(), [0, 1, 2]);
        let many = Tensor::from_slice::<f32>(&[1 << 40, 0, 0], &[]);
        assert_eq!(factor(FactorFn::Eigen, &many)[0].shape(), [1 << 40, 0]);
        let wide = TensorType::of_sizes(DType::F32, &[2, 3]);
        assert!(matches!(
            Op::from(Factor { f: FactorFn::Eigen, strict: false }).infer(&[Some(&wide)]),
            Err(OpError::Shape(_))
        ));
    }
}
