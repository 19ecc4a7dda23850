//! Runs one recipe: one pass over memory where it is of that form, else the reference evaluator, node by node.

use std::{borrow::Cow, sync::OnceLock};

use regraft_backend::{BackendError, Given, SlotFormat, SlotLayout, adapter::Overlay};
use regraft_ir::{Graph, ValueId, eval};
use regraft_tensor::{AlignedVec, DType, Tensor};
use regraft_weights::{Computation, GatherPlan, Piece, Recipe, RefitMap};

use super::{
    PackCx,
    kept::{Kept, KeptPlaces},
    rounded::Rounded,
    winograd::Filters,
};
use crate::{
    Scratch,
    format::{BytePanels, Panels},
    pack::{LANES, MatrixView, SourceElement, for_float, pack_half_panels, pack_panels, pack_scratch},
    simd::FloatType,
};

/// A recipe with its slot's layout, compiled for this device.
#[derive(Debug)]
pub(super) struct SlotRecipe {
    graph: Graph,
    gather: Option<GatherPlan>,
    /// How the slot is a part of a weight that is rounded to small integers.
    rounded: Option<Rounded>,
    /// How the slot holds transformed filters.
    filters: Option<Filters>,
    /// Panels of bytes.
    bytes: Option<BytePanels>,
    /// Panels of floats; for a plain slot there are neither.
    panels: Option<Panels>,
    shape: Vec<usize>,
    dtype: DType,
    /// Dtype and shape of each source, as the program has it.
    sources: Vec<(DType, Vec<usize>)>,
    /// Where each source is kept in the slot, found when it is first asked for.
    places: Vec<OnceLock<Option<KeptPlaces>>>,
}

/// An available source: as it was given, with the program's dtype.
#[derive(Clone, Copy)]
struct Source<'a> {
    tensor: &'a Tensor,
    dtype: DType,
    overlay: Option<&'a Overlay>,
}

impl SlotRecipe {
    pub(super) fn new(map: &RefitMap, recipe: &Recipe, layout: &SlotLayout) -> Result<Self, BackendError> {
        let (dtype, format) = (recipe.dtype(), &layout.format);
        let panels = if format.is_plain() { None } else { Panels::parse(format) };
        let refuse = || BackendError::Format { format: format.clone(), ty: format!("{dtype}{:?}", layout.shape) };
        let fits = |panels: Panels| panels.nr.is_multiple_of(LANES) && FloatType::of(dtype) == Some(panels.ty);
        let bytes = BytePanels::parse(format).filter(|bytes| bytes.byte_len(dtype, &layout.shape).is_some());
        if !format.is_plain() && !panels.is_some_and(fits) && bytes.is_none() {
            return Err(refuse());
        }
        let source = |&index: &u32| {
            let info = &map.sources[index as usize];
            (info.dtype, info.shape.clone())
        };
        Ok(SlotRecipe {
            graph: recipe.graph.clone(),
            gather: if bytes.is_some() { None } else { GatherPlan::compile(&recipe.graph, format) },
            rounded: Rounded::find(&recipe.graph),
            filters: Filters::find(map, recipe, layout, panels)?,
            bytes,
            panels,
            shape: layout.shape.clone(),
            dtype,
            sources: recipe.sources.iter().map(source).collect(),
            places: recipe.sources.iter().map(|_| OnceLock::new()).collect(),
        })
    }

    /// Fills the slot.
    pub(super) fn run(&self, cx: &PackCx, given: &[Given<'_>], out: &mut [u8]) -> Result<(), String> {
        if let Some(filters) = &self.filters {
            return filters.fill(cx, given, out);
        }
        let sources = self.sources(given);
        if let Some(rounded) = &self.rounded {
            let tensors = sources.iter().map(|source| whole(cx, source)).collect::<Result<Vec<_>, _>>()?;
            let weight = evaluate(&rounded.weight, &tensors)?;
            return rounded.fill(cx, &weight, self.bytes, out);
        }
        match (&self.gather, self.panels) {
            (Some(GatherPlan::Copy { runs }), _) => copy_runs(cx, runs, &sources, out),
            (Some(GatherPlan::Vector(program)), _) => self.pack_value(cx, &compute(cx, program, &sources)?, out),
            (Some(GatherPlan::Matrices { matrices, scales }), Some(panels)) => {
                self.pack_views(cx, panels, matrices, scales, &sources, out)
            }
            (None | Some(GatherPlan::Matrices { .. }), _) => {
                let tensors = sources.iter().map(|source| whole(cx, source)).collect::<Result<Vec<_>, _>>()?;
                self.pack_value(cx, &evaluate(&self.graph, &tensors)?, out)
            }
        }
    }

    /// Whether [`SlotRecipe::run`] makes the slot in one pass over memory.
    pub(super) fn is_one_pass(&self, given: &[Given<'_>]) -> bool {
        if let Some(filters) = &self.filters {
            return filters.is_one_pass(given);
        }
        let sources = self.sources(given);
        match &self.gather {
            Some(GatherPlan::Copy { .. }) => sources.iter().all(|s| s.tensor.dtype() == s.dtype),
            Some(GatherPlan::Vector(_)) => true,
            Some(GatherPlan::Matrices { matrices, .. }) => !merge_first(matrices, &sources).contains(&true),
            None => false,
        }
    }

    /// Whether the slot keeps all of a source bit for bit.
    pub(super) fn keeps(&self, source: usize) -> bool {
        self.places(source).is_some()
    }

    /// A source that the slot of these bytes keeps.
    pub(super) fn kept<'a>(&'a self, source: usize, slot: &'a [u8]) -> Option<Kept<'a>> {
        let (dtype, shape) = self.sources.get(source)?;
        Some(Kept { slot, dtype: *dtype, shape, places: self.places(source)? })
    }

    fn places(&self, source: usize) -> Option<&KeptPlaces> {
        let (dtype, shape) = self.sources.get(source)?;
        let find = || {
            let gather = self.gather.as_ref().filter(|_| self.dtype == *dtype)?;
            KeptPlaces::find(gather, self.panels, &self.shape, source as u32, shape)
        };
        self.places[source].get_or_init(find).as_ref()
    }

    fn sources<'a>(&self, given: &[Given<'a>]) -> Vec<Source<'a>> {
        let source = |(given, (dtype, _)): (&Given<'a>, &(DType, Vec<usize>))| Source {
            tensor: given.tensor,
            dtype: *dtype,
            overlay: given.overlay,
        };
        given.iter().zip(&self.sources).map(source).collect()
    }

    /// Packs views of the sources. Sources of another dtype are converted on the way, and adapters applied, where the views
    /// allow it; otherwise they are brought into form first.
    fn pack_views(
        &self,
        cx: &PackCx,
        panels: Panels,
        matrices: &[Vec<Piece>],
        scales: &[Computation],
        sources: &[Source<'_>],
        out: &mut [u8],
    ) -> Result<(), String> {
        let scales = scales.iter().map(|program| compute(cx, program, sources)).collect::<Result<Vec<_>, _>>()?;
        let tensors = (sources.iter().zip(merge_first(matrices, sources)))
            .map(|(s, first)| match first {
                true => whole(cx, s).map(|t| (Cow::Owned(t), None)),
                false => Ok((Cow::Borrowed(s.tensor), s.overlay)),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let dtype = match matrices.iter().flatten().next() {
            Some(piece) => tensors.get(piece.source as usize).ok_or("a source is not there")?.0.dtype(),
            None => DType::F32,
        };
        let packed = for_float!(dtype, T => {
            let view = |piece| view::<T>(piece, &tensors, &scales);
            let views = matrices.iter().map(|row| row.iter().map(view).collect()).collect::<Option<Vec<_>>>();
            let views = views.ok_or("a piece lies outside of its source, or is of another dtype")?;
            self.pack_matrices(cx, panels, &views, out)
        });
        packed.ok_or("sources of panels are floats")?
    }

    /// Packs the value of an evaluated recipe.
    fn pack_value(&self, cx: &PackCx, value: &Tensor, out: &mut [u8]) -> Result<(), String> {
        if let (Some(panels), [k, n]) = (self.bytes, self.shape.as_slice()) {
            out.fill(0);
            for (index, byte) in value.bytes().iter().enumerate().take(k * n) {
                out[panels.place(value.dtype(), &self.shape, index)] = *byte;
            }
            return Ok(());
        }
        let Some(panels) = self.panels else {
            if value.bytes().len() != out.len() {
                return Err("the value does not fill the slot".into());
            }
            cx.copy(value.bytes(), out);
            return Ok(());
        };
        let [.., k, n] = *self.shape.as_slice() else { return Err("a matrix has two axes".into()) };
        let packed = for_float!(value.dtype(), T => {
            let data: &[T] = bytemuck::try_cast_slice(value.bytes()).map_err(|_| "the value is not aligned")?;
            let matrices: Vec<_> =
                data.chunks_exact((k * n).max(1)).map(|data| vec![MatrixView::row_major(data, k, n)]).collect();
            self.pack_matrices(cx, panels, &matrices, out)
        });
        packed.ok_or("values of panels are floats")?
    }

    fn pack_matrices<T: SourceElement + 'static>(
        &self,
        cx: &PackCx,
        panels: Panels,
        matrices: &[Vec<MatrixView<'_, T>>],
        out: &mut [u8],
    ) -> Result<(), String> {
        let [lead @ .., k, n] = self.shape.as_slice() else { return Err("a matrix has two axes".into()) };
        let each = panels.matrix_bytes(*k, *n);
        if matrices.len() != lead.iter().product::<usize>() || matrices.len() * each != out.len() {
            return Err("the matrices do not make up the slot".into());
        }
        let mut scratch = match panels.ty {
            FloatType::F32 => AlignedVec::default(),
            FloatType::F16 | FloatType::Bf16 => {
                AlignedVec::try_zeroed(pack_scratch(&cx.threads, *k, panels.nr)).map_err(|e| e.to_string())?
            }
        };
        for (pieces, out) in matrices.iter().zip(out.chunks_exact_mut(each.max(1))) {
            let fits = pieces.iter().all(|p| p.k_len() == *k && p.is_in_bounds());
            if !fits || pieces.iter().map(|p| p.n_len).sum::<usize>() != *n {
                return Err("the pieces do not make up the matrix".into());
            }
            let unaligned = |_| "the slot is not aligned";
            let (threads, isa, nr, scratch) = (&cx.threads, cx.isa, panels.nr, &mut Scratch::new(scratch.bytes_mut()));
            match panels.ty {
                FloatType::F32 => {
                    pack_panels(threads, isa, pieces, nr, bytemuck::try_cast_slice_mut(out).map_err(unaligned)?);
                }
                FloatType::F16 => {
                    let out = bytemuck::try_cast_slice_mut::<_, half::f16>(out).map_err(unaligned)?;
                    pack_half_panels(threads, isa, pieces, nr, out, scratch);
                }
                FloatType::Bf16 => {
                    let out = bytemuck::try_cast_slice_mut::<_, half::bf16>(out).map_err(unaligned)?;
                    pack_half_panels(threads, isa, pieces, nr, out, scratch);
                }
            }
        }
        Ok(())
    }
}

/// The part of a recipe that computes `value`, if it reads all sources: they keep their numbers then.
pub(super) fn up_to(recipe: &Graph, value: ValueId) -> Option<Graph> {
    let mut part = recipe.clone();
    part.outputs[0].value = value;
    part.compact().ok()?;
    (part.sources.len() == recipe.sources.len()).then_some(part)
}

/// A source with its overlay applied, in the program's dtype: a temporary of its full size, unless there is nothing to do.
fn whole(cx: &PackCx, source: &Source<'_>) -> Result<Tensor, String> {
    let tensor = source.tensor.cast(source.dtype);
    let Some(overlay) = source.overlay else { return Ok(tensor) };
    let mut data = AlignedVec::try_zeroed(tensor.bytes().len()).map_err(|e| e.to_string())?;
    cx.merge(overlay, &tensor, 0, data.bytes_mut())?;
    Ok(Tensor::new(tensor.dtype(), tensor.shape().to_vec(), data.into()).expect("as many bytes as the tensor has"))
}

/// Runs of sources, one after the other; adapters are applied on the way.
fn copy_runs(cx: &PackCx, runs: &[(u32, usize, usize)], sources: &[Source<'_>], out: &mut [u8]) -> Result<(), String> {
    let mut rest = out;
    for &(source, start, len) in runs {
        let source = &sources[source as usize];
        let size = source.dtype.size();
        let outside = "a run lies outside of its source";
        let end = start.checked_add(len).filter(|end| *end <= source.tensor.numel()).ok_or(outside)?;
        let (to, after) = rest.split_at_mut_checked(len * size).ok_or("the runs are longer than the slot")?;
        let tensor = source.tensor.cast(source.dtype);
        match source.overlay {
            None => cx.copy(&tensor.bytes()[start * size..end * size], to),
            Some(overlay) => cx.merge(overlay, &tensor, start, to)?,
        }
        rest = after;
    }
    if rest.is_empty() { Ok(()) } else { Err("the runs are shorter than the slot".into()) }
}

/// For each source whether it must be brought into form before it is packed: its overlay meets parts of rows, or it is of
/// another dtype and packing cannot round to the program's, or meets others beside it.
fn merge_first(matrices: &[Vec<Piece>], sources: &[Source<'_>]) -> Vec<bool> {
    if sources.iter().all(|s| s.overlay.is_none() && s.tensor.dtype() == s.dtype) {
        return vec![false; sources.len()];
    }
    let pieces = || matrices.iter().flatten();
    let mut dtypes = pieces().map(|p| sources[p.source as usize].tensor.dtype());
    let one_dtype = dtypes.next().is_none_or(|first| dtypes.all(|d| d == first));
    let no_overlays = sources.iter().all(|s| s.overlay.is_none());
    let of = |index: usize| pieces().filter(move |p| p.source as usize == index);
    let first = |(index, source): (usize, &Source<'_>)| {
        let converted = source.tensor.dtype() != source.dtype;
        let on_the_way = source.dtype == DType::F32 && one_dtype && no_overlays;
        let tiled = source.overlay.is_none_or(|overlay| of(index).all(|p| p.tiles(overlay.cols)));
        of(index).next().is_some() && ((converted && !on_the_way) || !tiled)
    };
    sources.iter().enumerate().map(first).collect()
}

/// The value of a part of a recipe.
fn compute(cx: &PackCx, program: &Computation, sources: &[Source<'_>]) -> Result<Tensor, String> {
    let sources = program.sources.iter().map(|&s| whole(cx, &sources[s as usize])).collect::<Result<Vec<_>, _>>()?;
    program.value(&sources)
}

fn evaluate(graph: &Graph, sources: &[Tensor]) -> Result<Tensor, String> {
    let given = eval::Bindings { inputs: &[], sources, states: &[] };
    let mut results = eval::run(graph, given).map_err(|e| e.to_string())?;
    results.outputs.pop().ok_or_else(|| "the recipe yields nothing".into())
}

/// The matrix that a piece is, over the given tensors and scales.
fn view<'a, T: SourceElement>(
    piece: &Piece,
    tensors: &'a [(Cow<'_, Tensor>, Option<&'a Overlay>)],
    scales: &'a [Tensor],
) -> Option<MatrixView<'a, T>> {
    let (tensor, overlay) = tensors.get(piece.source as usize)?;
    let scale = match piece.scale {
        None => None,
        Some((index, at)) => Some(scales.get(index as usize)?.as_slice::<f32>()?.get(at..at + piece.n_len)?),
    };
    Some(MatrixView {
        data: bytemuck::try_cast_slice(tensor.bytes()).ok().filter(|_| tensor.dtype() == T::DTYPE)?,
        offset: piece.offset,
        k_dims: piece.k_dims.clone(),
        n_len: piece.n_len,
        n_stride: piece.n_stride,
        scale,
        overlay: *overlay,
    })
}
