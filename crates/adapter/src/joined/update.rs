//! Updates of some rows of a weight, and of a weight whose rows have updates of their own.

use regraft_tensor::{AlignedVec, DType, Tensor};

use crate::{Factors, Magnitude, MagnitudeAxis, Rotation, Update};

/// What an update does to these rows, in this order.
pub(super) fn of_rows(update: &Update, rows: &[usize]) -> Result<Update, &'static str> {
    let norms = |magnitude: &Option<Magnitude>| match magnitude {
        None => Ok(None),
        Some(Magnitude { axis: MagnitudeAxis::Rows, values }) => {
            Ok(Some(Magnitude { axis: MagnitudeAxis::Rows, values: picked(&column(values), rows) }))
        }
        Some(_) => Err("the norms of its inputs are those of all its rows, which the engine has in several modules"),
    };
    let of = |factors: &Factors| Factors { up: picked(&factors.up, rows), down: factors.down.clone() };
    Ok(match update {
        Update::LowRank { factors, scale, magnitude } => {
            Update::LowRank { factors: of(factors), scale: *scale, magnitude: norms(magnitude)? }
        }
        Update::Hadamard { first, second, scale, magnitude } => {
            Update::Hadamard { first: of(first), second: of(second), scale: *scale, magnitude: norms(magnitude)? }
        }
        Update::Kronecker { left, right, magnitude: None, .. } => {
            let (all, cols) = (left.shape()[0] * right.shape()[0], left.shape()[1] * right.shape()[1]);
            Update::Full { delta: picked(&as_floats(&update.delta(all, cols).0, cols), rows), scale: 1.0 }
        }
        Update::Full { delta, scale } => Update::Full { delta: picked(delta, rows), scale: *scale },
        Update::Replace { values } => Update::Replace { values: picked(values, rows) },
        Update::Scaled { axis: MagnitudeAxis::Rows, factors } => {
            Update::Scaled { axis: MagnitudeAxis::Rows, factors: picked(&column(factors), rows) }
        }
        Update::Scaled { axis: MagnitudeAxis::Columns, .. } => update.clone(),
        Update::Rotated(rotation) if rotation.axis == MagnitudeAxis::Columns => {
            let scales = rotation.scales.as_ref().map(|(axis, scales)| match axis {
                MagnitudeAxis::Rows => (*axis, picked(&column(scales), rows)),
                MagnitudeAxis::Columns => (*axis, scales.clone()),
            });
            Update::Rotated(Rotation { scales, ..rotation.clone() })
        }
        Update::Kronecker { .. } | Update::Rows { .. } | Update::Decomposed { .. } | Update::Rotated(_) => {
            return Err(
                "it mixes rows that the engine has in several modules: merge this layer with the tool that made it",
            );
        }
    })
}

/// The update of a weight of `of` rows of which these have one: where each begins, its rows, and what is done to them.
pub(super) fn of_parts(parts: &[(usize, usize, Update)], of: usize) -> Result<Update, &'static str> {
    let is = |which: fn(&Update) -> bool| parts.iter().all(|(_, _, update)| which(update));
    if is(|update| matches!(update, Update::Replace { .. })) {
        return Ok(replaced(parts));
    }
    if is(|update| matches!(update, Update::Scaled { axis: MagnitudeAxis::Rows, .. })) {
        let mut factors = vec![1f32; of];
        for (at, rows, update) in parts {
            let Update::Scaled { factors: own, .. } = update else { continue };
            factors[*at..at + rows].copy_from_slice(floats(own));
        }
        return Ok(Update::Scaled { axis: MagnitudeAxis::Rows, factors: Tensor::from_slice(&[of, 1], &factors) });
    }
    if parts.iter().any(|(_, _, update)| update.is_rewrite()) {
        return Err(
            "the engine has its module joined with others, whose rows it would change too: merge this layer with \
                    the tool that made it",
        );
    }
    let is_low_rank = is(|update| match update {
        Update::LowRank { factors, .. } => [&factors.up, &factors.down].into_iter().all(is_finite),
        _ => false,
    });
    let has_norms = parts.iter().any(|(_, _, update)| update.magnitude().is_some());
    match (is_low_rank, has_norms) {
        (true, _) => low_rank(parts, of),
        (false, false) => Ok(full(parts, of)),
        (false, true) => Err(NORMS),
    }
}

const NORMS: &str = "the engine has its module joined with others, and DoRA is only read for such where all of them have low \
                     rank and norms of their own: merge this layer with the tool that made it";

/// The products side by side: the ranks add up.
fn low_rank(parts: &[(usize, usize, Update)], of: usize) -> Result<Update, &'static str> {
    let each = || {
        parts.iter().filter_map(|(at, rows, update)| match update {
            Update::LowRank { factors, scale, magnitude } => Some((*at, *rows, factors, *scale, magnitude.as_ref())),
            _ => None,
        })
    };
    let first_scale = each().next().map_or(1.0, |(_, _, _, scale, _)| scale);
    let is_one_scale = each().all(|(_, _, _, scale, _)| scale.to_bits() == first_scale.to_bits());
    let rank: usize = each().map(|(_, _, factors, _, _)| factors.down.shape()[0]).sum();
    let (mut up, mut down, mut before) = (vec![0f32; of * rank], Vec::new(), 0);
    for (at, rows, factors, scale, _) in each() {
        let own = factors.down.shape()[0];
        for (row, values) in floats(&factors.up).chunks_exact(own.max(1)).take(rows).enumerate() {
            let place = &mut up[(at + row) * rank + before..][..own];
            let scaled = |value: &f32| if is_one_scale { *value } else { (f64::from(*value) * scale) as f32 };
            place.iter_mut().zip(values).for_each(|(place, value)| *place = scaled(value));
        }
        down.extend_from_slice(floats(&factors.down));
        before += own;
    }
    let cols = down.len() / rank.max(1);
    let norms: Vec<f32> = each()
        .filter_map(|(_, _, _, _, magnitude)| magnitude)
        .flat_map(|norms| floats(&norms.values))
        .copied()
        .collect();
    let magnitude = match (norms.is_empty(), norms.len() == of) {
        (true, _) => None,
        (false, true) => Some(Magnitude { axis: MagnitudeAxis::Rows, values: Tensor::from_slice(&[of, 1], &norms) }),
        (false, false) => return Err(NORMS),
    };
    let factors = Factors { up: Tensor::from_slice(&[of, rank], &up), down: Tensor::from_slice(&[rank, cols], &down) };
    Ok(Update::LowRank { factors, scale: if is_one_scale { first_scale } else { 1.0 }, magnitude })
}

/// What is added to each row.
fn full(parts: &[(usize, usize, Update)], of: usize) -> Update {
    let cols = parts.first().map_or(1, |(_, rows, update)| update.size(*rows, 1).1);
    let mut delta = vec![0f32; of * cols];
    for (at, rows, update) in parts {
        let own = update.delta(*rows, cols).0;
        delta[at * cols..][..rows * cols].iter_mut().zip(own).for_each(|(place, value)| *place = value as f32);
    }
    Update::Full { delta: Tensor::from_slice(&[of, cols], &delta), scale: 1.0 }
}

/// The rows of all parts, which take the place of the weight's.
fn replaced(parts: &[(usize, usize, Update)]) -> Update {
    let dtypes: Vec<DType> = parts.iter().filter_map(|(_, _, update)| Some(values_of(update)?.dtype())).collect();
    let dtype = match dtypes.as_slice() {
        [first, rest @ ..] if rest.iter().all(|other| other == first) => *first,
        _ => DType::F64,
    };
    let (mut bytes, mut rows, mut cols) = (Vec::new(), Vec::new(), 1);
    for (at, len, update) in parts {
        let Some(values) = values_of(update) else { continue };
        cols = values.numel() / len.max(&1);
        bytes.extend_from_slice(values.cast(dtype).bytes());
        rows.extend(*at..at + len);
    }
    let values = Tensor::new(dtype, vec![rows.len(), cols], AlignedVec::copy_of(&bytes).into());
    Update::Rows { rows, values: values.expect("rows of one width") }
}

fn values_of(update: &Update) -> Option<&Tensor> {
    match update {
        Update::Replace { values } => Some(values),
        _ => None,
    }
}

/// These rows of a matrix.
fn picked(matrix: &Tensor, rows: &[usize]) -> Tensor {
    let all = matrix.shape().first().copied().unwrap_or(1);
    let width = matrix.numel() / all.max(1);
    let bytes = width * matrix.dtype().size();
    let mut data = Vec::with_capacity(rows.len() * bytes);
    rows.iter().for_each(|row| data.extend_from_slice(&matrix.bytes()[row * bytes..][..bytes]));
    let shape = vec![rows.len(), width];
    Tensor::new(matrix.dtype(), shape, AlignedVec::copy_of(&data).into()).expect("as many bytes as its rows have")
}

/// The values below one another.
fn column(tensor: &Tensor) -> Tensor {
    let data = AlignedVec::copy_of(tensor.bytes());
    Tensor::new(tensor.dtype(), vec![tensor.numel(), 1], data.into()).expect("as many elements")
}

fn as_floats(values: &[f64], cols: usize) -> Tensor {
    Tensor::from_f64(DType::F32, &[values.len() / cols.max(1), cols], values)
}

fn floats(tensor: &Tensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("factors are f32")
}

fn is_finite(tensor: &Tensor) -> bool {
    floats(tensor).iter().all(|value| value.is_finite())
}
