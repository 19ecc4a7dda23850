//! Reading and writing at computed positions, and orders.

use regraft_ir::ops::{IndexPut, PutFn, Sort};

use super::{Builder, Res, ValueId, wrong};

/// Where `scatter` writes: for each axis the position, all of which broadcast to the shape of `index`.
pub(crate) fn coordinates(g: &mut Builder, index: ValueId, axis: usize) -> Res<Vec<ValueId>> {
    let (rank, shape) = (g.rank(index), g.shape(index));
    let mut list = Vec::with_capacity(rank);
    for (i, len) in shape.into_iter().enumerate() {
        list.push(if i == axis { index } else { g.position(rank, i, len)? });
    }
    Ok(list)
}

/// `values` written to `x` at positions of consecutive axes.
pub(crate) fn put(g: &mut Builder, f: PutFn, x: ValueId, values: ValueId, axis: usize, at: &[ValueId]) -> Res<ValueId> {
    let operands: Vec<ValueId> = [x, values].into_iter().chain(at.iter().copied()).collect();
    g.emit(IndexPut { axis, f }, &operands)
}

/// Values and positions in order along an axis; a number is in order.
pub(crate) fn sorted(g: &mut Builder, x: ValueId, axis: usize, descending: bool) -> Res<(ValueId, ValueId)> {
    first_sorted(g, x, axis, descending, None)
}

/// As [`sorted`]; of more than `keep` only the first stay.
pub(crate) fn first_sorted(
    g: &mut Builder,
    x: ValueId,
    axis: usize,
    descending: bool,
    keep: Option<usize>,
) -> Res<(ValueId, ValueId)> {
    let row = g.with_axis(x)?;
    let results = g.emit_all(Sort { axis, descending, keep }, vec![Some(row)])?;
    let [values, positions] = results.as_slice() else { return wrong("expected values and positions") };
    let (values, positions) = (*values, *positions);
    if g.rank(x) > 0 { Ok((values, positions)) } else { Ok((g.squeeze(values, 0)?, g.squeeze(positions, 0)?)) }
}
