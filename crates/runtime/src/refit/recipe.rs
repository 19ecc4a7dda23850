//! Runs one recipe: one pass over memory where it is of that form, else the reference evaluator, node by node.

use std::{collections::BTreeMap, sync::Arc};

use regraft_adapter::{AdapterSet, Overlay};
use regraft_backend::{BackendError, PieceData, SlotLayout};
use regraft_ir::{Graph, eval};
use regraft_tensor::{AlignedVec, DType, Tensor};
use regraft_weights::{GatherPlan, PackFormat, Piece, Program, Recipe};

use super::Parts;
use crate::{RuntimeError, RuntimeErrorKind, generation::SourceContent};

/// A source of the recipe at hand.
struct Given<'a> {
    /// As it was given: perhaps a float of another width than the engine's.
    tensor: &'a Tensor,
    dtype: DType,
    overlay: Option<&'a Overlay>,
}

/// Fills slot `slot`.
pub(super) fn run(
    parts: &Parts<'_>,
    slot: usize,
    sources: &[Arc<SourceContent>],
    overlays: &BTreeMap<usize, Overlay>,
    out: &mut [u8],
) -> Result<(), RuntimeError> {
    let recipe = &parts.map.recipes[slot];
    let given = (recipe.sources.iter())
        .map(|&s| given(parts, s as usize, sources, overlays).ok_or_else(|| missing(parts, s as usize)))
        .collect::<Result<Vec<_>, _>>()?;
    let done = run_recipe(parts, recipe, &parts.plan.slots[slot], &given, out);
    done.map_err(|why| RuntimeErrorKind::Recipe { slot: recipe.slot.clone(), why }.into())
}

/// Whether [`run`] makes the slot in one pass over memory.
pub(super) fn is_one_pass(
    parts: &Parts<'_>,
    slot: usize,
    sources: &[Arc<SourceContent>],
    overlays: &BTreeMap<usize, Overlay>,
) -> bool {
    let recipe = &parts.map.recipes[slot];
    let given = recipe.sources.iter().map(|&s| given(parts, s as usize, sources, overlays));
    let Some(given) = given.collect::<Option<Vec<_>>>() else { return false };
    match &recipe.gather {
        Some(GatherPlan::Copy { .. }) => given.iter().all(|g| g.tensor.dtype() == g.dtype),
        Some(GatherPlan::Vector(_)) => true,
        Some(GatherPlan::Panels { matrices, .. }) => !given.iter().zip(merge_first(matrices, &given)).any(|(_, m)| m),
        None => false,
    }
}

fn given<'a>(
    parts: &Parts<'_>,
    source: usize,
    sources: &'a [Arc<SourceContent>],
    overlays: &'a BTreeMap<usize, Overlay>,
) -> Option<Given<'a>> {
    let tensor = sources[source].held()?;
    Some(Given { tensor, dtype: parts.map.sources[source].dtype, overlay: overlays.get(&source) })
}

pub(super) fn missing(parts: &Parts<'_>, source: usize) -> RuntimeError {
    failed(parts, source, "its tensor is not at hand".into())
}

fn failed(parts: &Parts<'_>, source: usize, why: String) -> RuntimeError {
    RuntimeErrorKind::Source { name: parts.map.sources[source].name.clone(), why }.into()
}

fn run_recipe(
    parts: &Parts<'_>,
    recipe: &Recipe,
    layout: &SlotLayout,
    given: &[Given<'_>],
    out: &mut [u8],
) -> Result<(), String> {
    match &recipe.gather {
        Some(GatherPlan::Copy { runs }) => copy(parts, runs, given, out),
        Some(GatherPlan::Vector(program)) => pack_value(parts, layout, &compute(parts, program, given)?, out),
        Some(GatherPlan::Panels { matrices, scales }) => pack(parts, layout, matrices, scales, given, out),
        None => {
            let tensors = given.iter().map(|g| whole(parts, g)).collect::<Result<Vec<_>, _>>()?;
            pack_value(parts, layout, &evaluate(&recipe.graph, &tensors)?, out)
        }
    }
}

/// A source with its overlay applied, in the engine's dtype: a temporary of its full size, unless there is nothing to do.
fn whole(parts: &Parts<'_>, given: &Given<'_>) -> Result<Tensor, String> {
    let tensor = given.tensor.cast(given.dtype);
    match given.overlay {
        None => Ok(tensor),
        Some(overlay) => apply(parts, &tensor, overlay).map_err(|e| e.to_string()),
    }
}

/// A tensor in the engine's dtype with an overlay applied.
fn apply(parts: &Parts<'_>, tensor: &Tensor, overlay: &Overlay) -> Result<Tensor, BackendError> {
    let mut data = AlignedVec::zeroed(tensor.bytes().len());
    parts.backend.merge(overlay, tensor, 0, data.bytes_mut())?;
    Ok(Tensor::new(tensor.dtype(), tensor.shape().to_vec(), data.into()).expect("as many bytes as the tensor has"))
}

/// What `adapters` do to a source, with everything filled in; `tensor` gives the source in the engine's dtype.
pub(super) fn overlay(
    parts: &Parts<'_>,
    source: usize,
    adapters: &AdapterSet,
    tensor: impl FnOnce() -> Result<Tensor, RuntimeError>,
) -> Result<Option<Overlay>, RuntimeError> {
    let Some(mut overlay) = adapters.overlay(source, &parts.map.sources[source]) else { return Ok(None) };
    if overlay.has_norms() {
        let filled = parts.backend.fill_norms(&mut overlay, &tensor()?);
        filled.map_err(|e| failed(parts, source, e.to_string()))?;
    }
    Ok(Some(overlay))
}

/// A source in the engine's dtype with `adapters` applied.
pub(super) fn merged(
    parts: &Parts<'_>,
    source: usize,
    tensor: &Tensor,
    adapters: &AdapterSet,
) -> Result<Tensor, RuntimeError> {
    match overlay(parts, source, adapters, || Ok(tensor.clone()))? {
        None => Ok(tensor.clone()),
        Some(overlay) => apply(parts, tensor, &overlay).map_err(|e| failed(parts, source, e.to_string())),
    }
}

/// Runs of sources, one after the other; adapters are applied on the way.
fn copy(parts: &Parts<'_>, runs: &[(u32, usize, usize)], given: &[Given<'_>], out: &mut [u8]) -> Result<(), String> {
    let mut rest = out;
    for &(source, start, len) in runs {
        let given = &given[source as usize];
        let size = given.dtype.size();
        let outside = "a run lies outside of its source";
        let end = start.checked_add(len).filter(|end| *end <= given.tensor.numel()).ok_or(outside)?;
        let (to, after) = rest.split_at_mut_checked(len * size).ok_or("the runs are longer than the slot")?;
        let tensor = given.tensor.cast(given.dtype);
        match given.overlay {
            None => parts.backend.copy_staged(&tensor.bytes()[start * size..end * size], to),
            Some(overlay) => parts.backend.merge(overlay, &tensor, start, to).map_err(|e| e.to_string())?,
        }
        rest = after;
    }
    if rest.is_empty() { Ok(()) } else { Err("the runs are shorter than the slot".into()) }
}

/// Packs views of the sources. Sources of another dtype are converted on the way, and adapters applied, where the views
/// allow it; otherwise they are brought into form first.
fn pack(
    parts: &Parts<'_>,
    layout: &SlotLayout,
    matrices: &[Vec<Piece>],
    scales: &[Program],
    given: &[Given<'_>],
    out: &mut [u8],
) -> Result<(), String> {
    let scales = scales.iter().map(|program| compute(parts, program, given)).collect::<Result<Vec<_>, _>>()?;
    let tensors = (given.iter().zip(merge_first(matrices, given)))
        .map(|(g, first)| if first { whole(parts, g).map(|t| (t, None)) } else { Ok((g.tensor.clone(), g.overlay)) })
        .collect::<Result<Vec<_>, _>>()?;
    let piece = |piece| piece_data(piece, &tensors, &scales);
    let matrices = matrices.iter().map(|row| row.iter().map(piece).collect()).collect::<Option<Vec<_>>>();
    let matrices = matrices.ok_or("a piece lies outside of its source")?;
    parts.backend.pack(layout, &matrices, out).map_err(|e| e.to_string())
}

/// For each source whether it must be brought into form before it is packed: its overlay meets parts of rows, or it is of
/// another dtype and packing cannot round to the engine's, or meets others beside it.
fn merge_first(matrices: &[Vec<Piece>], given: &[Given<'_>]) -> Vec<bool> {
    let pieces = || matrices.iter().flatten();
    let mut dtypes = pieces().map(|p| given[p.source as usize].tensor.dtype());
    let one_dtype = dtypes.next().is_none_or(|first| dtypes.all(|d| d == first));
    let no_overlays = given.iter().all(|g| g.overlay.is_none());
    let of = |source: usize| pieces().filter(move |p| p.source as usize == source);
    let first = |(source, given): (usize, &Given<'_>)| {
        let converted = given.tensor.dtype() != given.dtype;
        let on_the_way = given.dtype == DType::F32 && one_dtype && no_overlays;
        let tiled = given.overlay.is_none_or(|overlay| of(source).all(|p| p.tiles(overlay.cols)));
        of(source).next().is_some() && ((converted && !on_the_way) || !tiled)
    };
    given.iter().enumerate().map(first).collect()
}

/// The value of a part of a recipe.
fn compute(parts: &Parts<'_>, program: &Program, given: &[Given<'_>]) -> Result<Tensor, String> {
    let sources = program.sources.iter().map(|&s| whole(parts, &given[s as usize])).collect::<Result<Vec<_>, _>>()?;
    let floats = sources.iter().map(Tensor::as_slice::<f32>).collect::<Option<Vec<_>>>();
    match program.vector.as_ref().zip(floats).and_then(|(vector, floats)| vector.run(&floats)) {
        Some(values) => Ok(Tensor::from_slice(&[values.len()], &values)),
        None => evaluate(&program.graph, &sources),
    }
}

fn evaluate(graph: &Graph, sources: &[Tensor]) -> Result<Tensor, String> {
    let given = eval::Bindings { inputs: &[], sources, states: &[] };
    let mut results = eval::run(graph, given).map_err(|e| e.to_string())?;
    results.outputs.pop().ok_or_else(|| "the recipe yields nothing".into())
}

/// Packs the value of an evaluated recipe.
fn pack_value(parts: &Parts<'_>, layout: &SlotLayout, value: &Tensor, out: &mut [u8]) -> Result<(), String> {
    match layout.format {
        PackFormat::Plain if value.bytes().len() != out.len() => Err("the value does not fill the slot".into()),
        PackFormat::Plain => {
            parts.backend.copy_staged(value.bytes(), out);
            Ok(())
        }
        PackFormat::PanelsF32 { .. } => {
            let [.., k, n] = layout.shape.as_slice() else { return Err("a matrix has two axes".into()) };
            let rows = [(*k, *n)];
            parts.backend.pack(layout, &matrices_of(value, &rows), out).map_err(|e| e.to_string())
        }
    }
}

fn piece_data<'a>(
    piece: &'a Piece,
    tensors: &'a [(Tensor, Option<&'a Overlay>)],
    scales: &'a [Tensor],
) -> Option<PieceData<'a>> {
    let (tensor, overlay) = tensors.get(piece.source as usize)?;
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
        overlay: *overlay,
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
        overlay: None,
    };
    (0..value.numel() / (k * n).max(1)).map(|i| vec![piece(i)]).collect()
}
