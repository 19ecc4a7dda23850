//! Branches, loops and sequences, as far as they are known.

use regraft_tensor::Dim;

use crate::{
    build::Known,
    onnx::args::{Bound, Cx, Res, ValueId, unsupported, wrong},
};

/// More rounds of a loop than are unrolled.
const MOST_ROUNDS: i64 = 1024;

/// What it reads, which may be no tensor.
pub(super) fn identity(cx: &mut Cx<'_, '_>) -> Res<Vec<Bound>> {
    Ok(vec![cx.bound(0)?])
}

/// A condition that is known.
fn truth(cx: &mut Cx<'_, '_>, value: ValueId) -> Option<bool> {
    match cx.known(value)? {
        Known::Dims { dims, .. } => Some(dims.first()?.as_const()? != 0),
        Known::Tensor(_) => None,
    }
}

/// A branch whose condition is known, or both where they give tensors of the same types.
pub(super) fn branch(cx: &mut Cx<'_, '_>) -> Res<Vec<Bound>> {
    let cond = cx.plain(0)?;
    let (then, otherwise) = (cx.graph_attr("then_branch")?, cx.graph_attr("else_branch")?);
    match truth(cx, cond) {
        Some(true) => return cx.t.inner(then, vec![]),
        Some(false) => return cx.t.inner(otherwise, vec![]),
        None => {}
    }
    let (a, b) = (cx.t.inner(then, vec![])?, cx.t.inner(otherwise, vec![])?);
    let cond = cx.reshape(cond, vec![])?;
    let mut out = Vec::new();
    for pair in a.into_iter().zip(b) {
        match pair {
            (Bound::Value(a), Bound::Value(b)) if cx.ty(a) == cx.ty(b) => {
                out.push(Bound::Value(cx.select(cond, a, b)?));
            }
            _ => {
                return unsupported(
                    "a branch whose condition is computed and whose results differ in type",
                    "give both branches results of the same shape, or make the condition a constant",
                );
            }
        }
    }
    Ok(out)
}

/// A loop whose rounds are counted beforehand.
pub(super) fn repeat(cx: &mut Cx<'_, '_>) -> Res<Vec<Bound>> {
    let body = cx.graph_attr("body")?;
    let most = if cx.has(0) { Some(cx.int(0)?) } else { None };
    let mut cond = if cx.has(1) { Some(cx.plain(1)?) } else { None };
    let mut state = (2..cx.count()).map(|i| cx.bound(i)).collect::<Res<Vec<_>>>()?;
    let kept = state.len();
    let Some(scans) = body.outputs.len().checked_sub(kept + 1) else { return wrong("its graph gives too few values") };
    let mut columns: Vec<Vec<ValueId>> = vec![Vec::new(); scans];
    let mut round = 0;
    while most.is_none_or(|most| round < most) {
        match cond.map(|c| truth(cx, c)) {
            None | Some(Some(true)) => {}
            Some(Some(false)) => break,
            Some(None) => {
                return unsupported("a loop whose end is computed from data", "use a fixed number of rounds");
            }
        }
        if round >= MOST_ROUNDS {
            return unsupported(format!("a loop of more than {MOST_ROUNDS} rounds"), "use fewer rounds");
        }
        let number = cx.dim_value(&Dim::new(round), regraft_tensor::DType::I64)?;
        let on = match cond {
            Some(cond) => cond,
            None => cx.literal(regraft_ir::Scalar::Int(1), regraft_tensor::DType::Bool)?,
        };
        let inputs = [Bound::Value(number), Bound::Value(on)].into_iter().chain(state).collect();
        let mut results = cx.t.inner(body, inputs)?.into_iter();
        cond = match results.next() {
            Some(Bound::Value(cond)) => Some(cond),
            _ => return wrong("its graph gives no condition"),
        };
        state = results.by_ref().take(kept).collect();
        stack(cx, &mut columns, results)?;
        round += 1;
    }
    if columns.iter().any(Vec::is_empty) && scans > 0 {
        return unsupported("results of a loop without rounds", "use at least one round");
    }
    let mut out = state;
    for column in columns {
        out.push(Bound::Value(cx.concat(&column, 0)?));
    }
    Ok(out)
}

/// Appends what one round gives, each with an axis of size 1 in front.
fn stack(cx: &mut Cx<'_, '_>, columns: &mut [Vec<ValueId>], results: impl Iterator<Item = Bound>) -> Res<()> {
    for (column, result) in columns.iter_mut().zip(results) {
        match result {
            Bound::Value(value) => column.push(cx.unsqueeze(value, 0)?),
            _ => return unsupported("a loop that collects something else than tensors", "use tensors"),
        }
    }
    Ok(())
}

/// A loop over an axis of its operands.
pub(super) fn scan(cx: &mut Cx<'_, '_>) -> Res<Vec<Bound>> {
    let body = cx.graph_attr("body")?;
    let scanned = cx.natural("num_scan_inputs", 1)?;
    let Some(kept) = cx.count().checked_sub(scanned) else { return wrong("expected operands") };
    let Some(scans) = body.outputs.len().checked_sub(kept) else { return wrong("its graph gives too few values") };
    let list = |cx: &Cx<'_, '_>, name: &str, n: usize| -> Res<Vec<i64>> {
        let list = cx.optional_ints_attr(name)?.unwrap_or_else(|| vec![0; n]);
        if list.len() == n { Ok(list) } else { wrong(format!("expected {n} numbers as `{name}`")) }
    };
    let (in_axes, in_back) = (list(cx, "scan_input_axes", scanned)?, list(cx, "scan_input_directions", scanned)?);
    let (out_axes, out_back) = (list(cx, "scan_output_axes", scans)?, list(cx, "scan_output_directions", scans)?);
    let mut state = (0..kept).map(|i| cx.bound(i)).collect::<Res<Vec<_>>>()?;
    let mut operands = Vec::new();
    for ((i, axis), back) in (kept..).zip(in_axes).zip(in_back) {
        let x = cx.plain(i)?;
        let axis = cx.axis_of(axis, cx.rank(x))?;
        operands.push((x, axis, cx.size(x, axis)?, back != 0));
    }
    let rounds = operands.first().map_or(0, |o| o.2);
    if operands.iter().any(|o| o.2 != rounds) || rounds == 0 || rounds as i64 > MOST_ROUNDS {
        return unsupported(format!("a scan of {rounds} rounds"), format!("use 1 to {MOST_ROUNDS}, the same for all"));
    }
    let mut columns: Vec<Vec<ValueId>> = vec![Vec::new(); scans];
    for round in 0..rounds {
        let mut inputs = state;
        for (x, axis, size, back) in &operands {
            let at = if *back { size - 1 - round } else { round };
            let row = cx.slice(*x, *axis, Dim::from(at), Dim::from(at + 1))?;
            inputs.push(Bound::Value(cx.squeeze(row, *axis)?));
        }
        let mut results = cx.t.inner(body, inputs)?.into_iter();
        state = results.by_ref().take(kept).collect();
        stack(cx, &mut columns, results)?;
    }
    let mut out = state;
    for ((mut column, axis), back) in columns.into_iter().zip(out_axes).zip(out_back) {
        if back != 0 {
            column.reverse();
        }
        let value = cx.concat(&column, 0)?;
        let rank = cx.rank(value);
        let axis = cx.axis_of(axis, rank)?;
        let mut perm: Vec<usize> = (1..rank).collect();
        perm.insert(axis.min(perm.len()), 0);
        out.push(Bound::Value(cx.permute(value, perm)?));
    }
    Ok(out)
}

// ---- sequences ----

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
    cx.dim_value(&Dim::from(len), regraft_tensor::DType::I64)
}

pub(super) fn sequence_insert(cx: &mut Cx<'_, '_>) -> Res<Vec<Bound>> {
    let (mut list, value) = (tensors(cx, 0)?, cx.plain(1)?);
    let at = if cx.has(2) { place(cx, 2, list.len() + 1)? } else { list.len() };
    list.insert(at, value);
    if list.len() > 4096 { wrong("a sequence of more than 4096 tensors") } else { Ok(vec![Bound::Sequence(list)]) }
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
    let lengths: Vec<usize> = if alone {
        vec![1; total]
    } else {
        let number = cx.plain(1)?;
        let given = cx.ints(1)?;
        match given.as_slice() {
            [per] if cx.rank(number) == 0 => {
                let per = usize::try_from(*per).ok().filter(|p| *p > 0);
                let Some(per) = per else { return wrong("parts without elements") };
                (0..total.div_ceil(per)).map(|i| per.min(total - i * per)).collect()
            }
            list => list.iter().filter_map(|l| usize::try_from(*l).ok()).collect(),
        }
    };
    if lengths.len() > 4096 || lengths.iter().sum::<usize>() != total {
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
