//! Branches and loops, as far as they are known.

use regraft_tensor::Dim;

use crate::{
    build::Known,
    onnx::{
        args::{Bound, Cx, Res, ValueId, unsupported, wrong},
        proto::Graph,
    },
};

/// More rounds of a loop than are unrolled.
const MOST_ROUNDS: i64 = 1024;

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
    if cx.version < 9 {
        return scan_of_batches(cx);
    }
    let body = cx.graph_attr("body")?;
    let scanned = cx.natural("num_scan_inputs", 1)?;
    let Some(kept) = cx.count().checked_sub(scanned) else { return wrong("expected operands") };
    let Some(scans) = body.outputs.len().checked_sub(kept) else { return wrong("its graph gives too few values") };
    let (in_axes, in_back) = (numbers(cx, "scan_input_axes", scanned)?, numbers(cx, "scan_input_directions", scanned)?);
    let (out_axes, out_back) = (numbers(cx, "scan_output_axes", scans)?, numbers(cx, "scan_output_directions", scans)?);
    let state = (0..kept).map(|i| cx.bound(i)).collect::<Res<Vec<_>>>()?;
    let mut operands = Vec::new();
    for ((i, axis), back) in (kept..).zip(in_axes).zip(in_back) {
        let x = cx.plain(i)?;
        let axis = cx.axis_of(axis, cx.rank(x))?;
        operands.push(Scanned { x, axis, back: back != 0 });
    }
    let (mut out, columns) = rounds_of(cx, body, state, &operands, scans)?;
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

/// An attribute of `n` numbers, which are 0 when it is not there.
fn numbers(cx: &Cx<'_, '_>, name: &str, n: usize) -> Res<Vec<i64>> {
    let list = cx.optional_ints_attr(name)?.unwrap_or_else(|| vec![0; n]);
    if list.len() == n { Ok(list) } else { wrong(format!("expected {n} numbers as `{name}`")) }
}

/// An operand that a loop runs over.
struct Scanned {
    x: ValueId,
    axis: usize,
    back: bool,
}

/// Runs the graph of a scan once for each element of the scanned axes: what is kept at the end, and what each round gives, with an
/// axis of size 1 in front.
fn rounds_of<'p>(
    cx: &mut Cx<'_, 'p>,
    body: &'p Graph<'p>,
    mut state: Vec<Bound>,
    operands: &[Scanned],
    scans: usize,
) -> Res<(Vec<Bound>, Vec<Vec<ValueId>>)> {
    let sizes = operands.iter().map(|o| cx.size(o.x, o.axis)).collect::<Res<Vec<_>>>()?;
    let rounds = sizes.first().copied().unwrap_or(0);
    if sizes.iter().any(|size| *size != rounds) || rounds == 0 || rounds as i64 > MOST_ROUNDS {
        return unsupported(format!("a scan of {rounds} rounds"), format!("use 1 to {MOST_ROUNDS}, the same for all"));
    }
    let kept = state.len();
    let mut columns: Vec<Vec<ValueId>> = vec![Vec::new(); scans];
    for round in 0..rounds {
        let mut inputs = state;
        for Scanned { x, axis, back } in operands {
            let at = if *back { rounds - 1 - round } else { round };
            let row = cx.slice(*x, *axis, Dim::from(at), Dim::from(at + 1))?;
            inputs.push(Bound::Value(cx.squeeze(row, *axis)?));
        }
        let mut results = cx.t.inner(body, inputs)?.into_iter();
        state = results.by_ref().take(kept).collect();
        stack(cx, &mut columns, results)?;
    }
    Ok((state, columns))
}

/// Before opset 9 each operand has an axis of examples in front, which are scanned one by one.
fn scan_of_batches(cx: &mut Cx<'_, '_>) -> Res<Vec<Bound>> {
    let body = cx.graph_attr("body")?;
    let scanned = cx.natural("num_scan_inputs", 1)?;
    let Some(kept) = cx.count().checked_sub(1 + scanned) else { return wrong("expected operands") };
    let Some(scans) = body.outputs.len().checked_sub(kept) else { return wrong("its graph gives too few values") };
    if cx.has(0) {
        return unsupported("a scan with `sequence_lens`", "export the model with opset 9 or later");
    }
    let back = numbers(cx, "directions", scanned)?;
    let all = (1..=kept + scanned).map(|i| cx.plain(i)).collect::<Res<Vec<_>>>()?;
    let examples = match all.first() {
        Some(first) => cx.size(*first, 0)?,
        None => return wrong("expected operands"),
    };
    if examples == 0 || examples as i64 > MOST_ROUNDS {
        return unsupported(format!("a scan of {examples} examples"), format!("use 1 to {MOST_ROUNDS}"));
    }
    let mut results: Vec<Vec<ValueId>> = vec![Vec::new(); kept + scans];
    for example in 0..examples {
        let mut rows = Vec::new();
        for x in &all {
            let row = cx.slice(*x, 0, Dim::from(example), Dim::from(example + 1))?;
            rows.push(cx.squeeze(row, 0)?);
        }
        let operands: Vec<Scanned> = rows
            .split_off(kept)
            .into_iter()
            .zip(&back)
            .map(|(x, back)| Scanned { x, axis: 0, back: *back != 0 })
            .collect();
        let state = rows.into_iter().map(Bound::Value).collect();
        let (state, columns) = rounds_of(cx, body, state, &operands, scans)?;
        let mut values = Vec::new();
        for column in columns {
            values.push(Bound::Value(cx.concat(&column, 0)?));
        }
        stack(cx, &mut results, state.into_iter().chain(values))?;
    }
    let mut out = Vec::new();
    for rows in results {
        out.push(Bound::Value(cx.concat(&rows, 0)?));
    }
    Ok(out)
}
