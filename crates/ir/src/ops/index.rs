//! Reading elements at computed positions. An index out of range is an error of the run.

use regraft_tensor::{DType, Dim, Tensor, contiguous_strides, for_each_index};

use super::{
    OpDef, Operands,
    support::{broadcast_i64, broadcast_types, check_axis, input, pick, sizes},
};
use crate::{EvalError, OpError, TensorType, attrs};

attrs! {
    /// Rows of a table: `weight: [rows, ...]`, `ids: i64 or i32 [..]`, giving `[.., ...]`:
    /// `torch.nn.functional.embedding`, and `index_select` on axis 0.
    pub struct Embedding {}
}

attrs! {
    /// `out[i][j][k] = x[i][index[i][j][k]][k]` for axis 1 of three: `torch.gather`.
    pub struct Gather {
        /// The axis.
        pub axis: usize,
    }
}

attrs! {
    /// `torch.Tensor.__getitem__` with index tensors on consecutive axes: the index operands broadcast to one shape, which
    /// takes the place of axes `axis .. axis + number of indices`. Negative indices count from the end.
    pub struct Index {
        /// The first indexed axis.
        pub axis: usize,
    }
}

pub(super) fn expect_index(operands: &Operands<'_>, i: usize) -> Result<(), OpError> {
    operands.expect_dtype(i, |d| matches!(d, DType::I64 | DType::I32), "i64 or i32")
}

/// An index that must lie in `0..size`.
pub(super) fn checked(index: i64, size: usize) -> Result<usize, EvalError> {
    usize::try_from(index).ok().filter(|&i| i < size).ok_or(EvalError::Index { index, size })
}

impl OpDef for Embedding {
    const OPERANDS: &'static [&'static str] = &["weight", "ids"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_rank(0, 1..)?;
        expect_index(operands, 1)?;
        let weight = operands.get(0);
        let shape = [&operands.get(1).shape, &weight.shape[1..]].concat();
        Ok(vec![TensorType::new(weight.dtype, shape)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (weight, shape) = (input(inputs, 0), sizes(&types[0]));
        Tensor::byte_len(weight.dtype(), &shape)?;
        let row: usize = weight.shape()[1..].iter().product();
        let ids = input(inputs, 1).to_i64_vec().into_iter().map(|id| checked(id, weight.shape()[0]));
        let ids = ids.collect::<Result<Vec<_>, _>>()?;
        Ok(vec![pick(weight, &shape, ids.into_iter().flat_map(|id| id * row..(id + 1) * row))])
    }
}

impl OpDef for Gather {
    const OPERANDS: &'static [&'static str] = &["x", "index"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        expect_index(operands, 1)?;
        let (x, index) = (operands.get(0), operands.get(1));
        check_axis("axis", self.axis, x.rank())?;
        operands.expect_rank(1, x.rank()..=x.rank())?;
        let larger =
            |i: usize| matches!((index.shape[i].as_const(), x.shape[i].as_const()), (Some(a), Some(b)) if a > b);
        if (0..x.rank()).any(|i| i != self.axis && larger(i)) {
            return Err(OpError::Shape(format!("index {index} is larger than {x} beside axis {}", self.axis)));
        }
        Ok(vec![TensorType::new(x.dtype, index.shape.clone())])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], _: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, index) = (input(inputs, 0), input(inputs, 1));
        let mut strides = contiguous_strides(x.shape());
        let step = std::mem::replace(&mut strides[self.axis], 0);
        let mut bases = Vec::with_capacity(index.numel());
        for_each_index(index.shape(), &strides, |at| bases.push(at));
        let along = index.to_i64_vec().into_iter().map(|i| checked(i, x.shape()[self.axis]));
        let positions = bases.into_iter().zip(along).map(|(base, i)| Ok(base + i? * step));
        Ok(vec![pick(x, index.shape(), positions.collect::<Result<Vec<_>, EvalError>>()?)])
    }
}

impl OpDef for Index {
    const OPERANDS: &'static [&'static str] = &["x", "index..."];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        let x = operands.get(0);
        let indexed = operands.all().count() - 1;
        check_axis("axis", self.axis + indexed - 1, x.rank())?;
        (1..=indexed).try_for_each(|i| expect_index(operands, i))?;
        let points: Vec<Dim> = broadcast_types(operands.all().skip(1))?;
        let shape = [&x.shape[..self.axis], &points, &x.shape[self.axis + indexed..]].concat();
        Ok(vec![TensorType::new(x.dtype, shape)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, shape) = (input(inputs, 0), sizes(&types[0]));
        Tensor::byte_len(x.dtype(), &shape)?;
        let end = self.axis + inputs.len() - 1;
        let points = &shape[self.axis..shape.len() - (x.shape().len() - end)];
        let mut rows = vec![0; points.iter().product()];
        for (i, &size) in x.shape()[self.axis..end].iter().enumerate() {
            for (row, index) in rows.iter_mut().zip(broadcast_i64(input(inputs, i + 1), points)) {
                let wrapped = if index < 0 { index + size as i64 } else { index };
                *row = *row * size + checked(wrapped, size).map_err(|_| EvalError::Index { index, size })?;
            }
        }
        let outer: usize = x.shape()[..self.axis].iter().product();
        let indexed: usize = x.shape()[self.axis..end].iter().product();
        let inner: usize = x.shape()[end..].iter().product();
        let starts = (0..outer).flat_map(|o| rows.iter().map(move |row| (o * indexed + row) * inner));
        Ok(vec![pick(x, &shape, starts.flat_map(|start| start..start + inner))])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;

    fn eval(op: impl Into<Op>, inputs: &[&Tensor]) -> Result<(Vec<usize>, Vec<i64>), EvalError> {
        let out = op.into().eval(&inputs.iter().map(|&t| Some(t)).collect::<Vec<_>>())?.remove(0);
        Ok((out.shape().to_vec(), out.to_i64_vec()))
    }

    #[test]
    fn embedding_refuses_ids_outside_of_the_table() {
        let table = Tensor::from_slice(&[2, 2], &[1i32, 2, 3, 4]);
        let ids = Tensor::from_slice(&[1, 3], &[1i64, 0, 1]);
        assert_eq!(eval(Embedding {}, &[&table, &ids]).expect("in range"), (vec![1, 3, 2], vec![3, 4, 1, 2, 3, 4]));
        for id in [2i64, -1] {
            let error = eval(Embedding {}, &[&table, &Tensor::from_slice(&[], &[id])]);
            assert!(matches!(error, Err(EvalError::Index { index, size: 2 }) if index == id));
        }
    }

    #[test]
    fn gather_takes_a_smaller_index() {
        let x = Tensor::from_slice(&[2, 3], &[1i64, 2, 3, 4, 5, 6]);
        let index = Tensor::from_slice(&[1, 4], &[2i64, 0, 2, 1]);
        assert_eq!(eval(Gather { axis: 1 }, &[&x, &index]).expect("in range"), (vec![1, 4], vec![3, 1, 3, 2]));
        let index = Tensor::from_slice(&[3, 2], &[1i64, 0, 0, 1, 1, 1]);
        assert_eq!(eval(Gather { axis: 0 }, &[&x, &index]).expect("in range"), (vec![3, 2], vec![4, 2, 1, 5, 4, 5]));
        assert!(matches!(eval(Gather { axis: 1 }, &[&x, &index]), Err(EvalError::Op(OpError::Shape(_)))));
    }

    #[test]
    fn indices_broadcast_and_wrap() {
        let x = Tensor::from_slice(&[2, 2, 3], &(0i64..12).collect::<Vec<_>>());
        let rows = Tensor::from_slice(&[2, 1], &[0i64, 1]);
        let columns = Tensor::from_slice(&[2], &[-1i32, 0]);
        let all = eval(Index { axis: 1 }, &[&x, &rows, &columns]).expect("in range");
        assert_eq!(all, (vec![2, 2, 2], vec![2, 0, 5, 3, 8, 6, 11, 9]));
        let some = eval(Index { axis: 0 }, &[&x, &rows, &columns]).expect("in range");
        assert_eq!(some, (vec![2, 2, 3], vec![3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]));
        let error = eval(Index { axis: 2 }, &[&x, &Tensor::from_slice(&[1], &[-4i64])]);
        assert!(matches!(error, Err(EvalError::Index { index: -4, size: 3 })));
        assert!(matches!(eval(Index { axis: 2 }, &[&x, &rows, &columns]), Err(EvalError::Op(OpError::Attr { .. }))));
    }
}
