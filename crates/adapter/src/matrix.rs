//! Tensors of adapter files as f32 matrices.

use regraft_tensor::{AlignedVec, DType, Tensor};

use crate::{AdapterProblem, Factors, layer::shape};

type Outcome<T> = Result<T, AdapterProblem>;

/// The tensor in f32 as `rows` and all else: a copy, so that writing over its file later changes no adapter.
pub(super) fn flat(key: &str, tensor: &Tensor, rows: usize) -> Outcome<Tensor> {
    if !tensor.dtype().is_float() {
        return Err(shape(key, "floats", tensor));
    }
    match tensor.numel().checked_div(rows) {
        Some(cols) if rows * cols == tensor.numel() && cols > 0 => {
            Ok(Tensor::from_slice(&[rows, cols], floats(&tensor.cast(DType::F32).aligned())))
        }
        _ => Err(shape(key, &format!("a matrix of {rows} rows"), tensor)),
    }
}

/// The matrix, when it is of this shape.
pub(super) fn expect(key: &str, matrix: Tensor, wanted: [usize; 2]) -> Outcome<Tensor> {
    if matrix.shape() == wanted { Ok(matrix) } else { Err(shape(key, &format!("f32{wanted:?}"), &matrix)) }
}

/// The matrix with rows and columns exchanged.
pub(super) fn transposed(matrix: &Tensor) -> Tensor {
    let (rows, cols) = size(matrix);
    let values = floats(matrix);
    let moved = (0..rows * cols).map(|e| values[e % rows * cols + e / rows]).collect();
    from(moved, [cols, rows])
}

/// The factors with a value between each column of the first and row of the second.
pub(super) fn scaled_inside(factors: &Factors, values: &Tensor) -> Factors {
    let (rank, cols) = size(&factors.down);
    let (down, values) = (floats(&factors.down), floats(values));
    let scaled: Vec<f32> = (0..rank * cols).map(|e| down[e] * values[e / cols]).collect();
    Factors { up: factors.up.clone(), down: Tensor::from_slice(&[rank, cols], &scaled) }
}

/// One more than each value.
pub(super) fn one_more(matrix: &Tensor) -> Tensor {
    let values: Vec<f32> = floats(matrix).iter().map(|v| v + 1.0).collect();
    Tensor::from_slice(matrix.shape(), &values)
}

/// Each value `times` times in a row.
pub(super) fn repeated(matrix: &Tensor, times: usize) -> Tensor {
    let values: Vec<f32> = floats(matrix).iter().flat_map(|v| std::iter::repeat_n(*v, times)).collect();
    Tensor::from_slice(&[1, values.len()], &values)
}

/// The tensor in its own dtype as a matrix of as many elements: a copy, as in [`flat`].
pub(super) fn as_it_is(tensor: &Tensor, shape: [usize; 2]) -> Tensor {
    let data = AlignedVec::copy_of(tensor.bytes());
    Tensor::new(tensor.dtype(), shape.to_vec(), data.into()).expect("as many elements as the tensor has")
}

/// `a @ b`, at most `limit` elements of it, with sums in f64.
pub(super) fn product(key: &str, a: &Tensor, b: &Tensor, limit: usize) -> Outcome<Tensor> {
    let ((rows, inner), (inner_b, cols)) = (size(a), size(b));
    if inner != inner_b || rows.checked_mul(cols).is_none_or(|n| n > limit) {
        let expected = format!("a factor for {b:?}", b = b.shape());
        return Err(shape(key, &expected, a));
    }
    let (left, right) = (floats(a), floats(b));
    let at =
        |i: usize, j: usize| (0..inner).map(|r| f64::from(left[i * inner + r]) * f64::from(right[r * cols + j])).sum();
    let values = (0..rows * cols).map(|e| -> f64 { at(e / cols, e % cols) }).map(|v| v as f32).collect();
    Ok(from(values, [rows, cols]))
}

/// Ranks up to this are taken for weights of any size.
const USUAL_RANK: usize = 1024;

/// The factor `[i, in * kernel]` that a kernel `[i, j, kernel...]` makes of a factor `[j, in]`, for a weight of `rows` and
/// `cols`.
pub(super) fn tucker(
    key: &str,
    kernel: &Tensor,
    (down_key, down): (&str, &Tensor),
    (rows, cols): (usize, usize),
) -> Outcome<Tensor> {
    let [up_rank, down_rank, taps @ ..] = kernel.shape() else {
        return Err(shape(key, "a kernel [rank, rank, ...]", kernel));
    };
    if kernel.numel() == 0 {
        return Err(shape(key, "a kernel that is not empty", kernel));
    }
    let (up_rank, down_rank, taps) = (*up_rank, *down_rank, taps.iter().product::<usize>());
    let down = flat(down_key, down, down_rank)?;
    let inputs = down.shape()[1];
    let fits = inputs.checked_mul(taps) == Some(cols) && up_rank <= rows.max(USUAL_RANK);
    if !fits || !kernel.dtype().is_float() {
        return Err(shape(key, &format!("a kernel between ranks of {down_rank}, for {cols} columns"), kernel));
    }
    let (kernel, down) = (kernel.cast(DType::F32).aligned(), floats(&down).to_vec());
    let kernel = floats(&kernel);
    let mut values = vec![0f32; up_rank * cols];
    for (i, row) in values.chunks_exact_mut(cols).enumerate() {
        for (e, value) in row.iter_mut().enumerate() {
            let (input, tap) = (e / taps, e % taps);
            let term =
                |j: usize| f64::from(kernel[(i * down_rank + j) * taps + tap]) * f64::from(down[j * inputs + input]);
            *value = (0..down_rank).map(term).sum::<f64>() as f32;
        }
    }
    Ok(from(values, [up_rank, cols]))
}

fn size(matrix: &Tensor) -> (usize, usize) {
    (matrix.shape()[0], matrix.shape()[1])
}

fn floats(matrix: &Tensor) -> &[f32] {
    matrix.as_slice().expect("matrices are f32")
}

fn from(values: Vec<f32>, shape: [usize; 2]) -> Tensor {
    Tensor::from_slice(&shape, &values)
}
