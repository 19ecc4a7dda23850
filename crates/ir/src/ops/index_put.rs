//! Writing elements at computed positions. An index out of range is an error of the run.

use regraft_tensor::{AlignedVec, DType, Dim, Tensor};

use super::{
    OpDef, Operands,
    elementwise::BinaryFn,
    index::{checked, expect_index},
    support::{broadcast, broadcast_f64, broadcast_i64, broadcast_positions, broadcast_types, check_axis, input},
};
use crate::{EvalError, OpError, TensorType, attrs, word_enum};

word_enum! {
    /// How a written value meets what is there.
    pub enum PutFn {
        /// It takes its place; of several for one element the last stays
        Set = "set",
        /// Sum
        Add = "add",
        /// Product
        Mul = "mul",
        /// The greater
        Max = "max",
        /// The lesser
        Min = "min",
    }
}

attrs! {
    /// `x` after `x[:, i, j] = values` (axis 1, two indices): index tensors on consecutive axes as for `index`, and `values`
    /// broadcast to the shape of what `index` would read. Negative indices count from the end. Values are written in
    /// row-major order. `torch.index_put`, `scatter`, `index_add`, `index_copy` and `index_fill`.
    pub struct IndexPut {
        /// The first indexed axis.
        pub axis: usize,
        /// How values are written.
        pub f: PutFn = PutFn::Set,
    }
}

impl PutFn {
    fn joining(self) -> Option<BinaryFn> {
        Some(match self {
            PutFn::Set => return None,
            PutFn::Add => BinaryFn::Add,
            PutFn::Mul => BinaryFn::Mul,
            PutFn::Max => BinaryFn::Max,
            PutFn::Min => BinaryFn::Min,
        })
    }
}

impl IndexPut {
    /// For each written element, in row-major order, where it goes; and the shape of what is written.
    fn targets(&self, inputs: &[Option<&Tensor>]) -> Result<(Vec<usize>, Vec<usize>), EvalError> {
        let (x, indices) = (input(inputs, 0).shape(), inputs.get(2..).unwrap_or_default());
        let end = self.axis + indices.len();
        let shapes: Vec<TensorType> =
            indices.iter().flatten().map(|t| TensorType::of_sizes(t.dtype(), t.shape())).collect();
        let points = broadcast_types(shapes.iter())?;
        let points: Vec<usize> = points.iter().filter_map(Dim::as_usize).collect();
        let shape = [&x[..self.axis], &points, &x[end..]].concat();
        Tensor::byte_len(DType::I64, &shape)?;
        let mut rows = vec![0; points.iter().product()];
        for (i, &size) in x[self.axis..end].iter().enumerate() {
            for (row, index) in rows.iter_mut().zip(broadcast_i64(input(inputs, i + 2), &points)) {
                let wrapped = if index < 0 { index + size as i64 } else { index };
                *row = *row * size + checked(wrapped, size).map_err(|_| EvalError::Index { index, size })?;
            }
        }
        let outer: usize = x[..self.axis].iter().product();
        let indexed: usize = x[self.axis..end].iter().product();
        let inner: usize = x[end..].iter().product();
        let starts = (0..outer).flat_map(|o| rows.iter().map(move |row| (o * indexed + row) * inner));
        Ok((starts.flat_map(|start| start..start + inner).collect(), shape))
    }
}

impl OpDef for IndexPut {
    const OPERANDS: &'static [&'static str] = &["x", "values", "indices..."];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        let x = operands.get(0);
        operands.expect_same_dtype([1])?;
        let indexed = operands.all().count() - 2;
        check_axis("axis", self.axis + indexed - 1, x.rank())?;
        (2..2 + indexed).try_for_each(|i| expect_index(operands, i))?;
        let points: Vec<Dim> = broadcast_types(operands.all().skip(2))?;
        let shape = [&x.shape[..self.axis], &points, &x.shape[self.axis + indexed..]].concat();
        let values = operands.get(1);
        let wide = broadcast(&values.shape, &shape)?;
        if wide.len() != shape.len() {
            return Err(OpError::Shape(format!("values {values} do not fit into {shape:?}, which is written to")));
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], _: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, values) = (input(inputs, 0), input(inputs, 1));
        let (targets, shape) = self.targets(inputs)?;
        let fits = broadcast(
            &TensorType::of_sizes(x.dtype(), values.shape()).shape,
            &TensorType::of_sizes(x.dtype(), &shape).shape,
        )?;
        if fits.iter().filter_map(Dim::as_usize).ne(shape.iter().copied()) {
            return Err(
                OpError::Shape(format!("values of shape {:?} do not fit into {shape:?}", values.shape())).into()
            );
        }
        let Some(f) = self.f.joining() else { return Ok(vec![put(x, values, &targets, &shape)]) };
        Ok(vec![if x.dtype().is_float() {
            let mut out = x.to_f64_vec();
            let new = broadcast_f64(values, &shape);
            targets.iter().zip(new).for_each(|(&at, v)| out[at] = f.apply_f64(out[at], v));
            Tensor::from_f64(x.dtype(), x.shape(), &out)
        } else {
            let mut out = x.to_i64_vec();
            let new = broadcast_i64(values, &shape);
            targets.iter().zip(new).for_each(|(&at, v)| out[at] = f.apply_int(x.dtype(), out[at], v));
            Tensor::from_i64(x.dtype(), x.shape(), &out)
        }])
    }
}

/// `x` with the bytes of `values` in the places of `targets`.
fn put(x: &Tensor, values: &Tensor, targets: &[usize], shape: &[usize]) -> Tensor {
    let size = x.dtype().size();
    let (mut bytes, new) = (x.bytes().to_vec(), values.bytes());
    let from = broadcast_positions(values.shape(), shape);
    for (&to, from) in targets.iter().zip(from) {
        bytes[to * size..(to + 1) * size].copy_from_slice(&new[from * size..(from + 1) * size]);
    }
    Tensor::new(x.dtype(), x.shape().to_vec(), AlignedVec::copy_of(&bytes).into()).expect("as many bytes as x has")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;

    fn put(f: PutFn, axis: usize, inputs: &[&Tensor]) -> Result<Vec<i64>, EvalError> {
        let op = Op::from(IndexPut { axis, f });
        Ok(op.eval(&inputs.iter().map(|&t| Some(t)).collect::<Vec<_>>())?.remove(0).to_i64_vec())
    }

    #[test]
    fn values_broadcast_and_the_last_stays() {
        let x = Tensor::from_slice(&[2, 3], &[0i64; 6]);
        let (value, index) = (Tensor::from_slice(&[2, 1], &[7i64, 8]), Tensor::from_slice(&[2], &[-1i64, 0]));
        assert_eq!(put(PutFn::Set, 1, &[&x, &value, &index]).expect("fits"), [7, 0, 7, 8, 0, 8]);
        let (values, twice) = (Tensor::from_slice(&[2, 1], &[5i64, 6]), Tensor::from_slice(&[2], &[1i64, 1]));
        assert_eq!(put(PutFn::Set, 0, &[&x, &values, &twice]).expect("fits"), [0, 0, 0, 6, 6, 6]);
        let columns = Tensor::from_slice(&[2], &[0i32, 2]);
        let one = Tensor::from_slice(&[], &[9i64]);
        assert_eq!(put(PutFn::Set, 0, &[&x, &one, &twice, &columns]).expect("fits"), [0, 0, 0, 9, 0, 9]);
    }

    #[test]
    fn values_for_one_element_are_joined() {
        let x = Tensor::from_slice(&[3], &[1i64, 2, 3]);
        let (values, index) = (Tensor::from_slice(&[3], &[5i64, 6, 7]), Tensor::from_slice(&[3], &[1i64, 1, 2]));
        let all = |f| put(f, 0, &[&x, &values, &index]).expect("fits");
        assert_eq!((all(PutFn::Add), all(PutFn::Mul)), (vec![1, 13, 10], vec![1, 60, 21]));
        assert_eq!((all(PutFn::Max), all(PutFn::Min)), (vec![1, 6, 7], vec![1, 2, 3]));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = Tensor::from_slice(&[2, 2], &[0i64; 4]);
        let (values, index) = (Tensor::from_slice(&[3], &[5i64, 6, 7]), Tensor::from_slice(&[1], &[0i64]));
        assert!(matches!(put(PutFn::Set, 0, &[&x, &values, &index]), Err(EvalError::Op(OpError::Shape(_)))));
        let far = Tensor::from_slice(&[1], &[2i64]);
        let one = Tensor::from_slice(&[], &[1i64]);
        assert!(matches!(put(PutFn::Add, 0, &[&x, &one, &far]), Err(EvalError::Index { index: 2, size: 2 })));
        assert!(matches!(put(PutFn::Set, 1, &[&x, &one, &index, &index]), Err(EvalError::Op(OpError::Attr { .. }))));
        let deep = Tensor::from_slice(&[1, 1, 1, 1], &[1i64]);
        assert!(matches!(put(PutFn::Set, 0, &[&x, &deep, &index]), Err(EvalError::Op(OpError::Shape(_)))));
    }
}
