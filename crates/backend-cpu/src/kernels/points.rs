//! What several index tensors name together: each point is a row, its number made of one index for each axis.

use regraft_backend::{BackendError, DataError, NodeSpec};
use regraft_tensor::{DType, contiguous_strides};

use super::support::{elements, operand, read, unsupported};
use crate::{Isa, nn::moves::Indices};

/// An index operand, broadcast to the shape of the points.
struct IndexOperand {
    dtype: DType,
    /// Distances between neighboring points' indices, for each axis of the points.
    strides: Vec<usize>,
    /// Size of the axis that it indexes.
    size: usize,
}

/// The points of a node. They are numbered in row-major order.
pub(super) struct Points {
    /// Sizes; axes that all operands go through alike are one. There is at least one.
    shape: Vec<usize>,
    operands: Vec<IndexOperand>,
    /// Whether negative indices count from the end.
    wrap: bool,
}

impl Points {
    /// Operands `first ..` as indices of consecutive axes of these sizes, broadcast to `shape`.
    pub(super) fn new(
        node: &NodeSpec<'_>,
        first: usize,
        shape: &[usize],
        sizes: &[usize],
        wrap: bool,
    ) -> Result<Points, BackendError> {
        let operand = |(i, &size): (usize, &usize)| {
            let o = operand(node, first + i)?;
            if !matches!(o.dtype, DType::I64 | DType::I32) || o.shape.len() > shape.len() {
                return Err(unsupported(node, "indices are i64 or i32, and broadcast"));
            }
            let mut strides = vec![0; shape.len() - o.shape.len()];
            let own = contiguous_strides(o.shape);
            strides.extend(o.shape.iter().zip(own).map(|(&size, stride)| if size == 1 { 0 } else { stride }));
            Ok(IndexOperand { dtype: o.dtype, strides, size })
        };
        let operands = sizes.iter().enumerate().map(operand).collect::<Result<_, _>>()?;
        let mut points = Points { shape: shape.to_vec(), operands, wrap };
        points.join_axes();
        Ok(points)
    }

    /// Makes one of neighboring axes that every operand goes through alike.
    fn join_axes(&mut self) {
        for axis in (1..self.shape.len()).rev() {
            let size = self.shape[axis];
            let alike = |o: &IndexOperand| o.strides[axis - 1] == o.strides[axis] * size;
            if self.shape[axis - 1] == 1 || self.operands.iter().all(alike) {
                self.shape[axis - 1] *= size;
                self.shape.remove(axis);
                self.operands.iter_mut().for_each(|o| _ = o.strides.remove(axis - 1));
            } else if size == 1 {
                self.shape.remove(axis);
                self.operands.iter_mut().for_each(|o| _ = o.strides.remove(axis));
            }
        }
        if self.shape.is_empty() {
            self.shape.push(1);
            self.operands.iter_mut().for_each(|o| o.strides.push(0));
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The rows of points `first ..`, as many as `rows` holds; `inputs` starts with the first index operand.
    ///
    /// # Errors
    /// An index that is out of range.
    pub(super) fn rows(
        &self,
        isa: Isa,
        inputs: &[Option<&[u8]>],
        first: usize,
        rows: &mut [usize],
    ) -> Result<(), DataError> {
        let Some((&line, outer)) = self.shape.split_last() else { return Ok(()) };
        let (mut at, mut rows) = (first, rows);
        while !rows.is_empty() && line > 0 {
            let (part, rest) = rows.split_at_mut((line - at % line).min(rows.len()));
            self.line(isa, inputs, (outer, at / line), at % line, part)?;
            (at, rows) = (at + part.len(), rest);
        }
        Ok(())
    }

    /// Rows along the last axis: from point `from` of line `number`, counted over `outer` axes.
    fn line(
        &self,
        isa: Isa,
        inputs: &[Option<&[u8]>],
        (outer, number): (&[usize], usize),
        from: usize,
        rows: &mut [usize],
    ) -> Result<(), DataError> {
        // Indices that are the same all along the line come into a number; the first of the others begins the rows.
        let (mut base, mut begun) = (0, false);
        for (i, operand) in self.operands.iter().enumerate() {
            let size = operand.size;
            let (mut start, mut rest) = (0, number);
            for (size, stride) in outer.iter().zip(&operand.strides).rev() {
                start += rest % size * stride;
                rest /= size;
            }
            let step = operand.strides[outer.len()];
            let wrong = |index| DataError::Index { index, size };
            let indices = match operand.dtype {
                DType::I32 => Indices::I32(elements(read(inputs, i))),
                _ => Indices::I64(elements(read(inputs, i))),
            };
            if step == 0 {
                let at = indices.checked(start, size, self.wrap).map_err(wrong)?;
                match begun {
                    true => rows.iter_mut().for_each(|row| *row = *row * size + at),
                    false => base = base * size + at,
                }
                continue;
            }
            if !begun {
                begun = true;
                let base_of_digits = base.wrapping_mul(size);
                if step == 1 && indices.begin(isa, start + from, size, self.wrap, base_of_digits, rows) {
                    continue;
                }
                rows.fill(base);
            }
            // Those that stand side by side are looked at together; one by one for the first that is wrong.
            if step == 1 && indices.append(isa, start + from, size, self.wrap, rows) {
                continue;
            }
            for (j, row) in rows.iter_mut().enumerate() {
                let at = indices.checked(start + (from + j) * step, size, self.wrap).map_err(wrong)?;
                *row = row.wrapping_mul(size).wrapping_add(at);
            }
        }
        if !begun {
            rows.fill(base);
        }
        Ok(())
    }
}
