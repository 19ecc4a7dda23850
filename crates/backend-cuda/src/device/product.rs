//! Linears and matrix products by cuBLASLt.

use regraft_backend::Operand;
use regraft_ir::ops::Matmul;
use regraft_tensor::DType;

use super::Cx;
use crate::{
    CudaError, Memory,
    driver::Stream,
    gemm::{Activation, Algorithm, Blas, Matrix, Operands, Product},
    kernels::Why,
};

/// A product, or several of one shape at other places of the same operands.
pub(super) struct Products {
    blas: Blas,
    product: Product,
    /// For operands at multiples of 16 bytes.
    aligned: Algorithm,
    /// For operands anywhere.
    anywhere: Algorithm,
    /// First elements of `x`, `w` and the result for each.
    places: Vec<[usize; 3]>,
}

impl Products {
    pub(super) fn new(cx: &Cx, product: Product, places: Vec<[usize; 3]>) -> Result<Products, CudaError> {
        let first = |found: Vec<Algorithm>| found.into_iter().next();
        let none = || CudaError::NoAlgorithm { library: "cuBLASLt", problem: format!("{product:?}") };
        let aligned = first(cx.blas.candidates(&product, 8)?).ok_or_else(none)?;
        let anywhere = first(cx.blas.candidates_aligned(&product, 1, product.dtype.size() as u32)?).ok_or_else(none)?;
        Ok(Products { blas: cx.blas.clone(), product, aligned, anywhere, places })
    }

    /// Bytes of scratch memory.
    pub(super) fn workspace(&self) -> usize {
        self.aligned.workspace.max(self.anywhere.workspace)
    }

    pub(super) fn launch(&self, stream: &Stream, memory: &Memory<'_>) -> Result<(), CudaError> {
        let missing = CudaError::Region { found: 0, needed: 1 };
        let operand = |i: usize| memory.inputs.get(i).copied().flatten();
        let (x, w) = (operand(0).ok_or(missing.clone())?, operand(1).ok_or(missing.clone())?);
        let out = memory.outputs.first().copied().ok_or(missing)?;
        let (size, out_size) = (self.product.dtype.size(), self.product.out.size());
        let tail = |span: crate::driver::Span, at: usize| span.part(at, span.len().saturating_sub(at));
        for &[at_x, at_w, at_out] in &self.places {
            let operands = Operands {
                x: tail(x, at_x * size)?,
                w: tail(w, at_w * size)?,
                bias: if self.product.bias { operand(2) } else { None },
                residual: if self.product.residual { operand(3) } else { None },
                out: tail(out, at_out * out_size)?,
                workspace: memory.scratch,
            };
            let all = [Some(operands.x), Some(operands.w), operands.bias, operands.residual, Some(operands.out)];
            let aligned = all.iter().flatten().all(|span| span.address() % 16 == 0);
            let algorithm = if aligned { &self.aligned } else { &self.anywhere };
            self.blas.launch(stream, &self.product, algorithm, operands)?;
        }
        Ok(())
    }
}

/// Rows of the same distance: their number and that distance, in elements.
pub(super) fn uniform_rows(operand: &Operand<'_>) -> Option<(usize, usize)> {
    let (&k, lead) = operand.shape.split_last()?;
    let (&inner, steps) = operand.strides.split_last()?;
    if inner != 1 && k > 1 {
        return None;
    }
    let mut rows = 1;
    let mut distance = None;
    for (&size, &stride) in lead.iter().zip(steps).rev() {
        if size == 1 {
            continue;
        }
        match distance {
            None => distance = Some(stride),
            Some(d) if stride == d * rows => {}
            Some(_) => return None,
        }
        rows *= size;
    }
    Some((rows, distance.unwrap_or(k)))
}

/// How the last two axes of an operand lie in memory.
fn matrix(operand: &Operand<'_>) -> Option<(usize, bool)> {
    let rank = operand.shape.len();
    let (rows, cols) = (operand.shape[rank - 2], operand.shape[rank - 1]);
    let (down, across) = (operand.strides[rank - 2], operand.strides[rank - 1]);
    if (across == 1 || cols <= 1) && (down >= cols || rows <= 1) {
        return Some((if rows <= 1 { cols } else { down }, false));
    }
    ((down == 1 || rows <= 1) && (across >= rows || cols <= 1)).then_some((if cols <= 1 { rows } else { across }, true))
}

/// Whether the library reads the operand of a matrix product as it lies.
pub(super) fn reads(operand: &Operand<'_>) -> bool {
    operand.shape.len() >= 2 && matrix(operand).is_some_and(|(leading, _)| leading > 0)
}

/// A matrix product over broadcast batches, and where each of its parts begins.
pub(super) fn matmul(
    op: &Matmul,
    a: &Operand<'_>,
    b: &Operand<'_>,
    shape: &[usize],
    out: DType,
    tf32: bool,
) -> Result<(Product, Vec<[usize; 3]>), Why> {
    let rank = shape.len();
    let (m, n, k) = (shape[rank - 2], shape[rank - 1], a.shape[a.shape.len() - 1]);
    let lies = |o: &Operand<'_>| matrix(o).ok_or_else(|| Why("its strides are not those of a matrix".into()));
    let ((x_leading, x_turned), (mut w_leading, mut w_turned)) = (lies(a)?, lies(b)?);
    if op.transpose_b {
        w_turned = !w_turned;
    }
    if k <= 1 && op.transpose_b {
        // One column: [n, 1] is as well [1, n].
        (w_leading, w_turned) = (if b.strides[b.strides.len() - 2] == 1 { n } else { w_leading.max(1) }, true);
    }
    // Steps of each operand and the result along the batch axes, joined where they step alike.
    let mut axes: Vec<(usize, [usize; 3])> = Vec::new();
    let own = regraft_tensor::contiguous_strides(shape);
    for axis in 0..rank - 2 {
        let step = |o: &Operand<'_>| {
            let at = (axis + o.shape.len()).checked_sub(rank)?;
            (o.shape[at] != 1).then(|| o.strides[at])
        };
        let size = shape[axis];
        if size == 1 {
            continue;
        }
        let steps = [step(a).unwrap_or(0), step(b).unwrap_or(0), own[axis]];
        match axes.last_mut() {
            Some((count, last)) if (0..3).all(|i| last[i] == steps[i] * size) => {
                (*count, *last) = (*count * size, steps);
            }
            _ => axes.push((size, steps)),
        }
    }
    let (batch, steps) = axes.pop().unwrap_or((1, [0, 0, m * n]));
    let mut places = vec![[0; 3]];
    for (count, steps) in axes {
        let at = |place: &[usize; 3], i: usize| [0, 1, 2].map(|o| place[o] + i * steps[o]);
        places = places.iter().flat_map(|place| (0..count).map(move |i| at(place, i))).collect();
        if places.len() > 4096 {
            return Err(Why("more products than are worth launching one by one".into()));
        }
    }
    let product = Product {
        m,
        n,
        k,
        batch,
        x: Matrix { leading: x_leading.max(1), turned: x_turned, batch_stride: steps[0] },
        w: Matrix { leading: w_leading.max(1), turned: w_turned, batch_stride: steps[1] },
        out_leading: n,
        out_batch_stride: steps[2],
        dtype: a.dtype,
        out,
        bias: false,
        residual: false,
        act: Activation::None,
        tf32,
    };
    Ok((product, places))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operand<'a>(shape: &'a [usize], strides: &'a [usize]) -> Operand<'a> {
        Operand { dtype: DType::F32, shape, strides, slot: None }
    }

    #[test]
    fn batches_that_step_alike_are_one() {
        let op = Matmul { transpose_b: false };
        let a = operand(&[2, 3, 4, 5], &[60, 20, 5, 1]);
        let b = operand(&[2, 3, 5, 6], &[90, 30, 6, 1]);
        let (product, places) = matmul(&op, &a, &b, &[2, 3, 4, 6], DType::F32, false).expect("it fits");
        assert_eq!((product.batch, places), (6, vec![[0, 0, 0]]));
        // Heads beside each other in memory: [b, s, h, d] seen as [b, h, s, d].
        let a = operand(&[2, 3, 4, 5], &[60, 5, 15, 1]);
        let (product, places) = matmul(&op, &a, &b, &[2, 3, 4, 6], DType::F32, false).expect("it fits");
        assert_eq!((product.batch, product.x.leading, places), (3, 15, vec![[0, 0, 0], [60, 90, 72]]));
        let shared = operand(&[5, 6], &[6, 1]);
        let (product, places) =
            matmul(&op, &operand(&[6, 4, 5], &[20, 5, 1]), &shared, &[6, 4, 6], DType::F32, false).expect("it fits");
        assert_eq!((product.batch, product.w.batch_stride, places.len()), (6, 0, 1));
    }

    #[test]
    fn rows_of_one_distance() {
        assert_eq!(uniform_rows(&operand(&[2, 3, 4], &[36, 12, 1])), Some((6, 12)));
        assert_eq!(uniform_rows(&operand(&[2, 3, 4], &[40, 12, 1])), None);
        assert_eq!(uniform_rows(&operand(&[4], &[1])), Some((1, 4)));
        assert_eq!(uniform_rows(&operand(&[2, 4], &[1, 2])), None);
    }
}
