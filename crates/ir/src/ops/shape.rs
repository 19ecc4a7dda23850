//! Ops that move elements and compute nothing.

use regraft_tensor::{Dim, Tensor, contiguous_strides, for_each_index};

use super::{
    OpDef, Operands,
    support::{around, broadcast_positions, check_axis, differ, input, join, pick, sizes},
};
use crate::{EvalError, OpError, Scalar, TensorType, attrs, word_enum};

attrs! {
    /// The same elements in row-major order under another shape, whose number of elements is the same.
    pub struct Reshape {
        /// The shape of the result.
        pub shape: Vec<Dim>,
    }
}

attrs! {
    /// Axis `i` of the result is axis `perm[i]` of `x`: `torch.permute`.
    pub struct Permute {
        /// The order of the axes.
        pub perm: Vec<usize>,
    }
}

attrs! {
    /// Axes of size 1 repeated, new axes in front: `torch.Tensor.expand` with all sizes spelled out.
    pub struct Expand {
        /// The shape of the result.
        pub shape: Vec<Dim>,
    }
}

attrs! {
    /// `x[start:end:step]` along one axis. Bounds are within the axis: importers clamp them.
    pub struct Slice {
        /// The axis.
        pub axis: usize,
        /// First index.
        pub start: Dim = Dim::new(0),
        /// One past the last index.
        pub end: Dim,
        /// Distance of neighbors, positive.
        pub step: usize = 1,
    }
}

attrs! {
    /// Operands joined along an axis: `torch.cat`.
    pub struct Concat {
        /// The axis.
        pub axis: usize,
    }
}

word_enum! {
    /// What stands in the elements that padding adds.
    pub enum PadMode {
        /// A literal
        Constant = "constant",
        /// The values mirrored at the edge, which is not repeated
        Reflect = "reflect",
        /// The value at the edge
        Replicate = "replicate",
    }
}

attrs! {
    /// Elements added before and after each axis: `torch.nn.functional.pad`; a negative number cuts elements off
    /// (constant mode only).
    pub struct Pad {
        /// Elements added in front, per axis.
        pub before: Vec<i64>,
        /// Elements added behind, per axis.
        pub after: Vec<i64>,
        /// The literal of constant mode.
        pub value: Scalar = Scalar::Float(0.0),
        /// What is added.
        pub mode: PadMode = PadMode::Constant,
    }
}

attrs! {
    /// The elements in reverse order along some axes: `torch.flip`.
    pub struct Flip {
        /// The axes.
        pub axes: Vec<usize>,
    }
}

/// The shape with its one `-1` replaced by what is left of `numel`.
///
/// # Errors
/// When there are several, or the sizes do not divide.
pub fn infer_reshape(from: &[Dim], to: &[Dim]) -> Result<Vec<Dim>, OpError> {
    let product = |dims: &mut dyn Iterator<Item = &Dim>| dims.product::<Dim>();
    let wild: Vec<usize> = (0..to.len()).filter(|&i| to[i].is(-1)).collect();
    let total = product(&mut from.iter());
    match wild.as_slice() {
        [] => Ok(to.to_vec()),
        &[at] => {
            let rest = product(&mut to.iter().filter(|d| !d.is(-1)));
            let mut shape = to.to_vec();
            shape[at] = if total.is(0) && rest.is(0) { Dim::new(0) } else { total.floor_div(&rest) };
            Ok(shape)
        }
        _ => Err(OpError::Attr { name: "shape", why: format!("{to:?} leaves more than one size open") }),
    }
}

impl OpDef for Reshape {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        let ty = TensorType::new(operands.get(0).dtype, self.shape.clone());
        if self.shape.iter().any(|d| d.as_const().is_some_and(|v| v < 0))
            || differ(&ty.numel(), &operands.get(0).numel())
        {
            return Err(OpError::Shape(format!("{} cannot become {ty}", operands.get(0))));
        }
        Ok(vec![ty])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        Ok(vec![input(inputs, 0).reshape(&sizes(&types[0]))?])
    }
}

impl OpDef for Permute {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        let x = operands.get(0);
        let mut sorted = self.perm.clone();
        sorted.sort_unstable();
        if sorted.into_iter().ne(0..x.rank()) {
            return Err(OpError::Attr {
                name: "perm",
                why: format!("{:?} is not an order of the axes of {x}", self.perm),
            });
        }
        Ok(vec![TensorType::new(x.dtype, self.perm.iter().map(|&i| x.shape[i].clone()).collect::<Vec<_>>())])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, shape) = (input(inputs, 0), sizes(&types[0]));
        let strides = contiguous_strides(x.shape());
        let strides: Vec<usize> = self.perm.iter().map(|&i| strides[i]).collect();
        let mut positions = Vec::with_capacity(x.numel());
        for_each_index(&shape, &strides, |at| positions.push(at));
        Ok(vec![pick(x, &shape, positions)])
    }
}

impl OpDef for Expand {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        let x = operands.get(0);
        let fits = self.shape.len() >= x.rank()
            && (x.shape.iter().rev().zip(self.shape.iter().rev())).all(|(from, to)| from.is(1) || !differ(from, to));
        if !fits {
            return Err(OpError::Shape(format!("{x} does not expand to {:?}", self.shape)));
        }
        Ok(vec![TensorType::new(x.dtype, self.shape.clone())])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, shape) = (input(inputs, 0), sizes(&types[0]));
        Tensor::byte_len(x.dtype(), &shape)?;
        Ok(vec![pick(x, &shape, broadcast_positions(x.shape(), &shape))])
    }
}

impl OpDef for Slice {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        let x = operands.get(0);
        check_axis("axis", self.axis, x.rank())?;
        if self.step == 0 {
            return Err(OpError::Attr { name: "step", why: "must be positive".into() });
        }
        let len = &self.end - &self.start;
        let bad = |a: &Dim, b: &Dim| matches!((a.as_const(), b.as_const()), (Some(a), Some(b)) if a > b);
        if bad(&Dim::new(0), &self.start) || bad(&Dim::new(0), &len) || bad(&self.end, &x.shape[self.axis]) {
            return Err(OpError::Shape(format!("{}..{} of axis {} of {x}", self.start, self.end, self.axis)));
        }
        let mut shape = x.shape.clone();
        let step = self.step as i64;
        shape[self.axis] = (&len + &Dim::new(step - 1)).floor_div(&Dim::new(step));
        Ok(vec![TensorType::new(x.dtype, shape)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, shape) = (input(inputs, 0), sizes(&types[0]));
        let start = self.start.eval(&[])? as usize;
        let (outer, size, inner) = around(x.shape(), self.axis);
        let picked = (0..shape[self.axis]).map(|i| start + i * self.step).collect::<Vec<_>>();
        let positions = (0..outer).flat_map(|o| {
            picked.iter().flat_map(move |at| (0..inner).map(move |i| (o * size + at) * inner + i)).collect::<Vec<_>>()
        });
        Ok(vec![pick(x, &shape, positions)])
    }
}

impl OpDef for Concat {
    const OPERANDS: &'static [&'static str] = &["x..."];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        let first = operands.get(0);
        check_axis("axis", self.axis, first.rank())?;
        let mut shape = first.shape.clone();
        let mut size = Dim::new(0);
        for t in operands.all() {
            let fits = t.rank() == first.rank()
                && t.dtype == first.dtype
                && (0..t.rank()).all(|i| i == self.axis || !differ(&t.shape[i], &shape[i]));
            if !fits {
                return Err(OpError::Shape(format!("{t} cannot be joined to {first} along axis {}", self.axis)));
            }
            for (i, dim) in shape.iter_mut().enumerate().filter(|(i, _)| *i != self.axis) {
                *dim = join(dim, &t.shape[i]);
            }
            size = &size + &t.shape[self.axis];
        }
        shape[self.axis] = size;
        Ok(vec![TensorType::new(first.dtype, shape)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let shape = sizes(&types[0]);
        let size = types[0].dtype.size();
        let (outer, _, _) = around(&shape, self.axis);
        let mut bytes = Vec::with_capacity(Tensor::byte_len(types[0].dtype, &shape)?);
        for o in 0..outer {
            for t in inputs.iter().flatten() {
                let (_, axis, inner) = around(t.shape(), self.axis);
                let run = axis * inner * size;
                bytes.extend_from_slice(&t.bytes()[o * run..(o + 1) * run]);
            }
        }
        Ok(vec![Tensor::new(types[0].dtype, shape, regraft_tensor::AlignedVec::copy_of(&bytes).into())?])
    }
}

impl OpDef for Pad {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        let x = operands.get(0);
        let cuts = self.before.iter().chain(&self.after).any(|&p| p < 0) && self.mode != PadMode::Constant;
        if self.before.len() != x.rank() || self.after.len() != x.rank() || cuts {
            let why = format!("{:?} and {:?} around {x}", self.before, self.after);
            return Err(OpError::Attr { name: "before", why });
        }
        let grow = |i: usize| &(&x.shape[i] + &Dim::new(self.before[i])) + &Dim::new(self.after[i]);
        let shape: Vec<Dim> = (0..x.rank()).map(grow).collect();
        if shape.iter().any(|d| d.as_const().is_some_and(|v| v < 0)) {
            return Err(OpError::Shape(format!("the result would have shape {shape:?}")));
        }
        Ok(vec![TensorType::new(x.dtype, shape)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, shape) = (input(inputs, 0), sizes(&types[0]));
        let count = Tensor::byte_len(x.dtype(), &shape)? / x.dtype().size();
        let fill = Tensor::from_f64(x.dtype(), &[1], &[self.value.as_f64()]);
        let strides = contiguous_strides(x.shape());
        let out_strides = contiguous_strides(&shape);
        let mut bytes = Vec::with_capacity(count * x.dtype().size());
        for at in 0..count {
            let source = (0..shape.len()).try_fold(0, |sum, i| {
                let index = ((at / out_strides[i] % shape[i]) as i64).saturating_sub(self.before[i]);
                self.source_index(index, x.shape()[i]).map(|index| sum + index * strides[i])
            });
            let size = x.dtype().size();
            bytes.extend_from_slice(source.map_or(fill.bytes(), |s| &x.bytes()[s * size..(s + 1) * size]));
        }
        Ok(vec![Tensor::new(x.dtype(), shape, regraft_tensor::AlignedVec::copy_of(&bytes).into())?])
    }
}

impl Pad {
    fn source_index(&self, index: i64, size: usize) -> Option<usize> {
        let last = size as i64 - 1;
        let index = match self.mode {
            PadMode::Constant => index,
            // Of an empty axis there is no edge, and nothing is found below.
            PadMode::Replicate => index.max(0).min(last),
            PadMode::Reflect => {
                if index < 0 {
                    -index
                } else if index > last {
                    2 * last - index
                } else {
                    index
                }
            }
        };
        (0..=last).contains(&index).then_some(index as usize)
    }
}

impl OpDef for Flip {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        let x = operands.get(0);
        self.axes.iter().try_for_each(|&a| check_axis("axes", a, x.rank()))?;
        Ok(vec![x.clone()])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], _: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let x = input(inputs, 0);
        let (shape, strides) = (x.shape(), contiguous_strides(x.shape()));
        let flipped = |at: usize| -> usize {
            let axis = |i: usize| {
                let index = at / strides[i] % shape[i];
                strides[i] * if self.axes.contains(&i) { shape[i] - 1 - index } else { index }
            };
            (0..shape.len()).map(axis).sum()
        };
        Ok(vec![pick(x, shape, (0..x.numel()).map(flipped))])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;

    #[test]
    fn memory_that_there_is_not_is_an_error() {
        let one = Tensor::from_slice(&[1], &[1.0f32]);
        let expand = |size: i64| Op::from(Expand { shape: vec![Dim::new(size)] }).eval(&[Some(&one)]);
        assert_eq!(expand(3).expect("it fits")[0].to_f64_vec(), [1.0; 3]);
        let refused = |size| expand(size).expect_err("there is no such memory").to_string();
        assert_eq!(refused(1 << 50), format!("the system has no {} bytes of memory", 32 * (1u64 << 50) + 8));
        assert_eq!(refused(1 << 62), format!("a tensor of shape [{}] is too large for memory", 1u64 << 62));
    }
}
