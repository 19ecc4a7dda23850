//! Runs recipes into fresh buffers, all at once, on the threads of refits.

use std::sync::{Arc, Mutex, PoisonError};

use regraft_backend::{PieceData, SlotLayout};
use regraft_ir::{Graph, eval};
use regraft_tensor::{AlignedVec, Tensor};
use regraft_weights::{GatherPlan, PackFormat, Piece, Recipe, SlotPool};

use super::{Parts, Slots};
use crate::{RuntimeError, RuntimeErrorKind};

/// Makes all slots.
pub(crate) fn make_all(
    parts: &Parts<'_>,
    sources: &[Option<Tensor>],
    pool: &Arc<SlotPool>,
) -> Result<Slots, RuntimeError> {
    let all: Vec<usize> = (0..parts.map.recipes.len()).collect();
    make(parts, sources, &all, pool)
}

/// Makes the slots in `which`.
pub(super) fn make(
    parts: &Parts<'_>,
    sources: &[Option<Tensor>],
    which: &[usize],
    pool: &Arc<SlotPool>,
) -> Result<Slots, RuntimeError> {
    // The largest first: the threads finish together.
    let mut order: Vec<usize> = (0..which.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(parts.plan.slot_bytes(which[i])));
    let results: Vec<Mutex<Option<Result<AlignedVec, RuntimeError>>>> =
        which.iter().map(|_| Mutex::new(None)).collect();
    parts.backend.for_each_staged(which.len(), &|task| {
        let i = order[task];
        let made = make_one(parts, sources, which[i], pool);
        *results[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
    });
    let mut slots = Vec::with_capacity(which.len());
    let mut failure = None;
    for result in results {
        match result.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(Ok(data)) => slots.push(pool.slot(data)),
            Some(Err(error)) => failure = Some(error),
            None => unreachable!("every task stores a result"),
        }
    }
    failure.map_or(Ok(slots), Err)
}

fn make_one(
    parts: &Parts<'_>,
    sources: &[Option<Tensor>],
    slot: usize,
    pool: &SlotPool,
) -> Result<AlignedVec, RuntimeError> {
    let recipe = &parts.map.recipes[slot];
    let layout = &parts.plan.slots[slot];
    let failed = |why: String| RuntimeErrorKind::Recipe { slot: recipe.slot.clone(), why };
    let tensors: Vec<Tensor> = recipe
        .sources
        .iter()
        .map(|&s| sources[s as usize].clone())
        .collect::<Option<_>>()
        .ok_or_else(|| failed("a source is missing".into()))?;
    let mut out = pool.take(parts.plan.slot_bytes(slot));
    let done = run_recipe(parts, recipe, layout, &tensors, out.bytes_mut());
    match done {
        Ok(()) => Ok(out),
        Err(why) => {
            pool.give_back(out);
            Err(failed(why).into())
        }
    }
}

/// One pass over memory where the recipe is of that form, else the reference evaluator, node by node.
fn run_recipe(
    parts: &Parts<'_>,
    recipe: &Recipe,
    layout: &SlotLayout,
    sources: &[Tensor],
    out: &mut [u8],
) -> Result<(), String> {
    match &recipe.gather {
        Some(GatherPlan::Copy { runs }) => copy(parts, runs, sources, out),
        Some(GatherPlan::Panels { matrices, scales }) => {
            let scales = scales.iter().map(|g| evaluate(g, sources)).collect::<Result<Vec<_>, _>>()?;
            let matrices = matrices.iter().map(|row| pieces(row, sources, &scales)).collect::<Option<Vec<_>>>();
            let matrices = matrices.ok_or("a piece lies outside of its source")?;
            parts.backend.pack(layout, &matrices, out).map_err(|e| e.to_string())
        }
        None => {
            let value = evaluate(&recipe.graph, sources)?;
            match layout.format {
                PackFormat::Plain if value.bytes().len() != out.len() => Err("the value does not fill the slot".into()),
                PackFormat::Plain => {
                    parts.backend.copy_staged(value.bytes(), out);
                    Ok(())
                }
                PackFormat::PanelsF32 { .. } => {
                    let [.., k, n] = layout.shape.as_slice() else { return Err("a matrix has two axes".into()) };
                    let rows = [(*k, *n)];
                    parts.backend.pack(layout, &matrices_of(&value, &rows), out).map_err(|e| e.to_string())
                }
            }
        }
    }
}

fn copy(parts: &Parts<'_>, runs: &[(u32, usize, usize)], sources: &[Tensor], out: &mut [u8]) -> Result<(), String> {
    let mut rest = out;
    for &(source, start, len) in runs {
        let tensor = &sources[source as usize];
        let size = tensor.dtype().size();
        let outside = "a run lies outside of its source";
        let first = start.checked_mul(size).ok_or(outside)?;
        let from = tensor.bytes().get(first..first.saturating_add(len.saturating_mul(size))).ok_or(outside)?;
        let (to, after) = rest.split_at_mut_checked(from.len()).ok_or("the runs are longer than the slot")?;
        parts.backend.copy_staged(from, to);
        rest = after;
    }
    if rest.is_empty() { Ok(()) } else { Err("the runs are shorter than the slot".into()) }
}

fn evaluate(graph: &Graph, sources: &[Tensor]) -> Result<Tensor, String> {
    let given = eval::Bindings { inputs: &[], sources, states: &[] };
    let mut results = eval::run(graph, given).map_err(|e| e.to_string())?;
    results.outputs.pop().ok_or_else(|| "the recipe yields nothing".into())
}

fn pieces<'a>(row: &'a [Piece], sources: &'a [Tensor], scales: &'a [Tensor]) -> Option<Vec<PieceData<'a>>> {
    row.iter().map(|piece| piece_data(piece, sources, scales)).collect()
}

fn piece_data<'a>(piece: &'a Piece, sources: &'a [Tensor], scales: &'a [Tensor]) -> Option<PieceData<'a>> {
    let tensor = sources.get(piece.source as usize)?;
    let scale = match piece.scale {
        None => None,
        Some((index, at)) => Some(scales.get(index as usize)?.as_slice::<f32>()?.get(at..at + piece.n_len)?),
    };
    Some(PieceData {
        dtype: tensor.dtype(),
        data: tensor.bytes(),
        offset: piece.offset,
        k_dims: &piece.k_dims,
        n_len: piece.n_len,
        n_stride: piece.n_stride,
        scale,
    })
}

/// A row-major value `[.., k, n]` as one piece per matrix; `rows` is `k` with its stride `n`.
fn matrices_of<'a>(value: &'a Tensor, rows: &'a [(usize, usize); 1]) -> Vec<Vec<PieceData<'a>>> {
    let [(k, n)] = *rows;
    let piece = |i: usize| PieceData {
        dtype: value.dtype(),
        data: value.bytes(),
        offset: i * k * n,
        k_dims: rows,
        n_len: n,
        n_stride: 1,
        scale: None,
    };
    (0..value.numel() / (k * n).max(1)).map(|i| vec![piece(i)]).collect()
}
