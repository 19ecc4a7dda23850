//! Parts of an image at a fixed size.

use regraft_ir::ops::{BinaryFn, CompareFn, Index, ReduceFn, UnaryFn};
use regraft_tensor::{DType, Dim};

use super::{Builder, Res, ValueId, unsupported, wrong};

/// How parts are sampled.
pub(crate) struct Rois {
    /// Rows and columns of each result.
    pub(crate) size: [usize; 2],
    /// Samples along each axis of an element of the result.
    pub(crate) samples: usize,
    /// The size of an element of the image in the coordinates of the boxes, inverted.
    pub(crate) scale: f64,
    /// Whether coordinates name the corners of elements, not their middles.
    pub(crate) aligned: bool,
    /// Whether the greatest sample is taken, not the mean.
    pub(crate) greatest: bool,
}

/// The most elements of a result, and samples of each, along an axis.
const MOST: usize = 1 << 12;

/// An axis of the samples: the elements on both sides of each, and their weights, all `[boxes, samples]`.
struct Axis {
    sides: [ValueId; 2],
    weights: [ValueId; 2],
}

/// `torchvision.ops.roi_align`: `[boxes, channels, rows, columns]` of an image `[n, channels, h, w]`, boxes as `[boxes, 4]` with
/// the column first, and `batch` the image of each.
pub(crate) fn roi_align(g: &mut Builder, how: &Rois, image: ValueId, boxes: ValueId, batch: ValueId) -> Res<ValueId> {
    let shape = g.shape(image);
    let ([_, channels, h, w], 2) = (shape.as_slice(), g.rank(boxes)) else { return wrong("expected images and boxes") };
    if how.samples == 0 {
        return unsupported(
            "a number of samples that depends on the sizes of the boxes",
            "set sampling_ratio to 1 or more",
        );
    }
    if how.size.iter().chain([&how.samples]).any(|v| *v == 0 || *v > MOST) {
        return unsupported(format!("parts of {:?} elements", how.size), format!("use 1 to {MOST}"));
    }
    let count = g.ty(boxes).shape.first().cloned().unwrap_or(Dim::new(1));
    let [rows, columns] = how.size;
    let (y, x) = (axis(g, how, boxes, 1, rows, h)?, axis(g, how, boxes, 0, columns, w)?);
    let image = g.permute(image, vec![0, 2, 3, 1])?;
    let batch = g.cast(batch, DType::I64)?;
    let batch = g.along(batch, 3, 0)?;
    let join = if how.greatest { BinaryFn::Max } else { BinaryFn::Add };
    let mut all: Option<ValueId> = None;
    for (row, by_row) in y.sides.iter().zip(&y.weights) {
        for (column, by_column) in x.sides.iter().zip(&x.weights) {
            let (row, column) = (g.unsqueeze(*row, 2)?, g.unsqueeze(*column, 1)?);
            let values = g.emit(Index { axis: 0 }, &[image, batch, row, column])?;
            let (by_row, by_column) = (g.unsqueeze(*by_row, 2)?, g.unsqueeze(*by_column, 1)?);
            let weight = g.binary(BinaryFn::Mul, by_row, by_column)?;
            let weight = g.unsqueeze(weight, 3)?;
            let part = g.binary(BinaryFn::Mul, values, weight)?;
            all = Some(match all {
                Some(all) => g.binary(join, all, part)?,
                None => part,
            });
        }
    }
    let Some(all) = all else { return wrong("expected samples") };
    let [rows, columns, samples] = [rows, columns, how.samples].map(Dim::from);
    let all = g.reshape(all, vec![count, rows, samples.clone(), columns, samples, channels.clone()])?;
    let f = if how.greatest { ReduceFn::Max } else { ReduceFn::Mean };
    let out = g.reduce(f, all, &[2, 4], false)?;
    g.permute(out, vec![0, 3, 1, 2])
}

/// The samples along one axis of `size` elements; `column` is where the boxes have its start, and two further its end.
fn axis(g: &mut Builder, how: &Rois, boxes: ValueId, column: usize, count: usize, size: &Dim) -> Res<Axis> {
    let mut edge = |column: usize| -> Res<ValueId> {
        let edge = g.slice(boxes, 1, Dim::from(column), Dim::from(column + 1))?;
        let edge = g.with_literal(BinaryFn::Mul, edge, how.scale)?;
        g.with_literal(BinaryFn::Sub, edge, if how.aligned { 0.5 } else { 0.0 })
    };
    let (start, end) = (edge(column)?, edge(column + 2)?);
    let mut span = g.binary(BinaryFn::Sub, end, start)?;
    if !how.aligned {
        span = g.with_literal(BinaryFn::Max, span, 1.0)?;
    }
    let bin = g.with_literal(BinaryFn::Div, span, count as f64)?;
    let steps = g.iota(Dim::from(count * how.samples), 0, 1)?;
    let steps = g.cast_like(steps, boxes)?;
    let steps = g.with_literal(BinaryFn::Add, steps, 0.5)?;
    let steps = g.with_literal(BinaryFn::Div, steps, how.samples as f64)?;
    let steps = g.unsqueeze(steps, 0)?;
    let moved = g.binary(BinaryFn::Mul, steps, bin)?;
    let at = g.binary(BinaryFn::Add, start, moved)?;
    // Samples beyond one element outside count nothing, those nearer are of the border.
    let low = g.compare_with(CompareFn::Ge, at, -1.0)?;
    let n = g.dim_like(size, at)?;
    let high = g.compare(CompareFn::Le, at, n)?;
    let inside = g.binary(BinaryFn::And, low, high)?;
    let inside = g.cast_like(inside, at)?;
    let last = g.with_literal(BinaryFn::Sub, n, 1.0)?;
    let at = g.with_literal(BinaryFn::Max, at, 0.0)?;
    let at = g.binary(BinaryFn::Min, at, last)?;
    let first = g.unary(UnaryFn::Floor, at)?;
    let second = g.with_literal(BinaryFn::Add, first, 1.0)?;
    let second = g.binary(BinaryFn::Min, second, last)?;
    let part = g.binary(BinaryFn::Sub, at, first)?;
    let one = g.float_like(1.0, part)?;
    let rest = g.binary(BinaryFn::Sub, one, part)?;
    let weights = [g.binary(BinaryFn::Mul, rest, inside)?, g.binary(BinaryFn::Mul, part, inside)?];
    Ok(Axis { sides: [g.cast(first, DType::I64)?, g.cast(second, DType::I64)?], weights })
}
