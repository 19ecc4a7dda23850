//! Determinants of small matrices.

use std::collections::BTreeMap;

use regraft_ir::ops::{BinaryFn, UnaryFn};
use regraft_tensor::{DType, Dim};

use super::{Builder, Res, ValueId, unsupported, wrong};

/// Larger matrices would take many nodes: each minor of the first rows is one.
pub(crate) const LARGEST_BY_MINORS: usize = 6;

/// The determinant of square matrices in the last two axes, by the minors of their first rows, in f64.
pub(crate) fn determinant(g: &mut Builder, x: ValueId) -> Res<ValueId> {
    let Some(first) = g.rank(x).checked_sub(2) else { return wrong("expected a matrix") };
    let n = g.size(x, first)?;
    if g.size(x, first + 1)? != n {
        return wrong(format!("{} is not a square matrix", g.ty(x)));
    }
    if n > LARGEST_BY_MINORS {
        return unsupported(
            format!("the determinant of {n}x{n} matrices"),
            format!("use at most {LARGEST_BY_MINORS} rows"),
        );
    }
    let dtype = g.dtype_of(x);
    let wide = g.cast(x, DType::F64)?;
    // The minors of the rows so far, by the set of their columns.
    let mut minors: BTreeMap<usize, ValueId> = BTreeMap::new();
    for i in 0..n {
        let row = g.slice(wide, first, Dim::from(i), Dim::from(i + 1))?;
        let row = g.squeeze(row, first)?;
        let mut elements = Vec::new();
        for j in 0..n {
            let element = g.slice(row, first, Dim::from(j), Dim::from(j + 1))?;
            elements.push(g.squeeze(element, first)?);
        }
        minors = with_row(g, n, i, &elements, &minors)?;
    }
    let out = match minors.into_values().next() {
        Some(whole) => whole,
        // Of no rows.
        None => {
            let one = g.float(1.0, DType::F64)?;
            let batch = g.shape(x).into_iter().take(first).collect();
            g.expand(one, batch)?
        }
    };
    g.cast(out, dtype)
}

/// The minors of one row more.
fn with_row(
    g: &mut Builder,
    n: usize,
    count: usize,
    row: &[ValueId],
    minors: &BTreeMap<usize, ValueId>,
) -> Res<BTreeMap<usize, ValueId>> {
    let mut next: BTreeMap<usize, ValueId> = BTreeMap::new();
    for set in (0..1usize << n).filter(|set| set.count_ones() as usize == count + 1) {
        let mut sum: Option<ValueId> = None;
        for (column, element) in row.iter().enumerate().filter(|(column, _)| set >> column & 1 == 1) {
            let part = match minors.get(&(set & !(1 << column))) {
                Some(minor) => g.binary(BinaryFn::Mul, *element, *minor)?,
                None => *element,
            };
            let behind = (set >> column >> 1).count_ones();
            sum = Some(match sum {
                Some(sum) if behind % 2 == 1 => g.binary(BinaryFn::Sub, sum, part)?,
                Some(sum) => g.binary(BinaryFn::Add, sum, part)?,
                None if behind % 2 == 1 => g.unary(UnaryFn::Neg, part)?,
                None => part,
            });
        }
        if let Some(sum) = sum {
            next.insert(set, sum);
        }
    }
    Ok(next)
}
