//! Sequences of tensors and values that may be missing: whether and how many there are is known while a model is read.

use regraft_ir::Scalar;
use regraft_tensor::{DType, Dim};

use crate::onnx::args::{Bound, Cx, Res, ValueId, unsupported, wrong};

/// More tensors than a sequence has.
const MOST: usize = 1024;

/// What it reads, which may be no tensor.
pub(super) fn identity(cx: &mut Cx<'_, '_>) -> Res<Vec<Bound>> {
    Ok(vec![cx.bound(0)?])
}

fn tensors(cx: &Cx<'_, '_>, i: usize) -> Res<Vec<ValueId>> {
    match cx.bound(i)? {
        Bound::Sequence(list) => Ok(list),
        _ => wrong("expected a sequence of tensors"),
    }
}

/// A position in a sequence of `len` tensors.
fn place(cx: &mut Cx<'_, '_>, i: usize, len: usize) -> Res<usize> {
    let at = cx.int(i)?;
    cx.axis_of(at, len)
}

pub(super) fn sequence(cx: &mut Cx<'_, '_>) -> Res<Vec<Bound>> {
    cx.ignore("dtype");
    let list = (0..cx.count()).map(|i| cx.plain(i)).collect::<Res<Vec<_>>>()?;
    Ok(vec![Bound::Sequence(list)])
}

pub(super) fn sequence_at(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let list = tensors(cx, 0)?;
    let at = place(cx, 1, list.len())?;
    list.get(at).copied().map_or_else(|| wrong("expected tensors"), Ok)
}

pub(super) fn sequence_length(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let len = tensors(cx, 0)?.len();
    cx.dim_value(&Dim::from(len), DType::I64)
}

pub(super) fn sequence_insert(cx: &mut Cx<'_, '_>) -> Res<Vec<Bound>> {
    let (mut list, value) = (tensors(cx, 0)?, cx.plain(1)?);
    let at = if cx.has(2) { place(cx, 2, list.len() + 1)? } else { list.len() };
    list.insert(at, value);
    if list.len() > MOST {
        wrong(format!("a sequence of more than {MOST} tensors"))
    } else {
        Ok(vec![Bound::Sequence(list)])
    }
}

pub(super) fn sequence_erase(cx: &mut Cx<'_, '_>) -> Res<Vec<Bound>> {
    let mut list = tensors(cx, 0)?;
    let last = list.len().saturating_sub(1);
    let at = if cx.has(1) { place(cx, 1, list.len())? } else { last };
    if at < list.len() {
        list.remove(at);
    }
    Ok(vec![Bound::Sequence(list)])
}

pub(super) fn concat_from_sequence(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut list = tensors(cx, 0)?;
    let new = cx.flag("new_axis", false)?;
    let Some(first) = list.first() else { return wrong("expected tensors") };
    let rank = cx.rank(*first) + usize::from(new);
    let axis = cx.axis_attr("axis", 0, rank)?;
    if new {
        for value in &mut list {
            *value = cx.unsqueeze(*value, axis)?;
        }
    }
    cx.concat(&list, axis)
}

pub(super) fn split_to_sequence(cx: &mut Cx<'_, '_>) -> Res<Vec<Bound>> {
    let x = cx.plain(0)?;
    let axis = cx.axis_attr("axis", 0, cx.rank(x))?;
    let total = cx.size(x, axis)?;
    let keep = cx.flag("keepdims", true)?;
    let alone = !cx.has(1);
    let most = |parts: usize| match parts {
        0..=MOST => Ok(parts),
        parts => unsupported(format!("a sequence of {parts} tensors"), format!("use at most {MOST}")),
    };
    let lengths: Vec<usize> = if alone {
        vec![1; most(total)?]
    } else {
        let number = cx.plain(1)?;
        let given = cx.ints(1)?;
        match given.as_slice() {
            [per] if cx.rank(number) == 0 => {
                let per = usize::try_from(*per).ok().filter(|p| *p > 0);
                let Some(per) = per else { return wrong("parts without elements") };
                (0..most(total.div_ceil(per))?).map(|i| per.min(total - i * per)).collect()
            }
            list => list.iter().filter_map(|l| usize::try_from(*l).ok()).collect(),
        }
    };
    let sum = lengths.iter().try_fold(0usize, |sum, length| sum.checked_add(*length));
    if lengths.len() > MOST || sum != Some(total) {
        return wrong(format!("parts of {lengths:?} of an axis of {total}"));
    }
    let (mut list, mut start) = (Vec::new(), 0);
    for length in lengths {
        let part = cx.slice(x, axis, Dim::from(start), Dim::from(start + length))?;
        list.push(if alone && !keep { cx.squeeze(part, axis)? } else { part });
        start += length;
    }
    Ok(vec![Bound::Sequence(list)])
}

/// A graph that is run on each tensor of a sequence, and on those of others at the same place.
pub(super) fn sequence_map(cx: &mut Cx<'_, '_>) -> Res<Vec<Bound>> {
    let body = cx.graph_attr("body")?;
    let first = tensors(cx, 0)?;
    let operands = (0..cx.count()).map(|i| cx.bound(i)).collect::<Res<Vec<_>>>()?;
    let mut results: Vec<Vec<ValueId>> = vec![Vec::new(); body.outputs.len()];
    for i in 0..first.len() {
        let mut inputs = Vec::with_capacity(operands.len());
        for operand in &operands {
            inputs.push(match operand {
                Bound::Sequence(list) => match list.get(i) {
                    Some(value) if list.len() == first.len() => Bound::Value(*value),
                    _ => return wrong(format!("sequences of {} and {} tensors", first.len(), list.len())),
                },
                other => other.clone(),
            });
        }
        for (list, result) in results.iter_mut().zip(cx.t.inner(body, inputs)?) {
            match result {
                Bound::Value(value) => list.push(value),
                _ => return unsupported("a sequence of something else than tensors", "use tensors"),
            }
        }
    }
    Ok(results.into_iter().map(Bound::Sequence).collect())
}

// ---- values that may be missing ----

/// A value that is there is itself.
pub(super) fn optional(cx: &mut Cx<'_, '_>) -> Res<Vec<Bound>> {
    cx.ignore("type");
    Ok(vec![if cx.has(0) { cx.bound(0)? } else { Bound::Nothing }])
}

pub(super) fn optional_has_element(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let there = cx.has(0) && !matches!(cx.bound(0)?, Bound::Nothing);
    cx.literal(Scalar::Int(i64::from(there)), DType::Bool)
}

pub(super) fn optional_get_element(cx: &mut Cx<'_, '_>) -> Res<Vec<Bound>> {
    match cx.bound(0)? {
        Bound::Nothing => wrong("it reads an optional value that is not there"),
        there => Ok(vec![there]),
    }
}
