//! Slots of filters for Winograd's algorithm: the matrix of the filters is packed as that of any convolution, then transformed panel by
//! panel.

use regraft_backend::{BackendError, Given, SlotLayout};
use regraft_ir::{Op, ops::WinogradFilter};
use regraft_tensor::AlignedVec;
use regraft_weights::{Recipe, RefitMap};

use super::{
    PackCx,
    recipe::{SlotRecipe, up_to},
};
use crate::{
    format::Panels,
    pack::LANES,
    simd::simd_fn,
    threads::{TileGrid, TileMut},
};

/// A recipe that ends in transformed filters.
#[derive(Debug)]
pub(super) struct Filters {
    op: WinogradFilter,
    /// The filters before they are transformed, `[9 channels, out]`, in panels as wide.
    matrix: Box<SlotRecipe>,
    panels: Panels,
    /// Channels and columns.
    sizes: [usize; 2],
}

impl Filters {
    /// Recognizes `winograd_filter matrix`, to be packed in `panels`.
    pub(super) fn find(
        map: &RefitMap,
        recipe: &Recipe,
        layout: &SlotLayout,
        panels: Option<Panels>,
    ) -> Result<Option<Filters>, BackendError> {
        let graph = &recipe.graph;
        let [output] = graph.outputs.as_slice() else { return Ok(None) };
        let made_by = graph.producer(output.value).map(|id| graph.node(id));
        let (Some(node), Some(panels), &[_, channels, columns]) = (made_by, panels, layout.shape.as_slice()) else {
            return Ok(None);
        };
        let Op::WinogradFilter(op) = &node.op else { return Ok(None) };
        let Some(before) = up_to(graph, node.input(0)) else { return Ok(None) };
        let matrix = Recipe { graph: before, ..recipe.clone() };
        let shape = matrix.shape();
        let matrix = Box::new(SlotRecipe::new(map, &matrix, &SlotLayout { shape, ..layout.clone() })?);
        Ok(Some(Filters { op: op.clone(), matrix, panels, sizes: [channels, columns] }))
    }

    pub(super) fn is_one_pass(&self, given: &[Given<'_>]) -> bool {
        self.matrix.is_one_pass(given)
    }

    /// Fills the slot.
    pub(super) fn fill(&self, cx: &PackCx, given: &[Given<'_>], out: &mut [u8]) -> Result<(), String> {
        let ([channels, columns], nr) = (self.sizes, self.panels.nr);
        let bytes = self.panels.matrix_bytes(9 * channels, columns);
        let mut matrix = AlignedVec::try_zeroed(bytes).map_err(|e| e.to_string())?;
        self.matrix.run(cx, given, matrix.bytes_mut())?;
        let filters: &[f32] = bytemuck::try_cast_slice(matrix.bytes()).map_err(|_| "filters are not aligned")?;
        let out: &mut [f32] = bytemuck::try_cast_slice_mut(out).map_err(|_| "the slot is not aligned")?;
        let (numbers, row, panel) = (self.op.reach() * self.op.reach(), filters.len() / 9, channels * nr);
        if out.len() != numbers * row {
            return Err("the filters do not make up the slot".into());
        }
        let grid =
            TileGrid { outer: &[], rows: numbers, cols: row, row_stride: row, tile_rows: numbers, tile_cols: panel };
        cx.threads.for_each_tile(out, &grid, |at, mut out| {
            let filters = &filters[9 * at.col..][..9 * panel];
            transform_panel(cx.isa, &self.op, filters, &mut out);
        });
        Ok(())
    }
}

simd_fn! {
    /// Transforms a panel of filters, `[9 channels, nr]`; row `i` of `out` is what comes of number `i`, `[channels, nr]`.
    fn transform_panel<F>(op: &WinogradFilter, filters: &[f32], out: &mut TileMut<'_, f32>) {
        let row = filters.len() / 9;
        for at in (0..row).step_by(LANES) {
            let mut taps = [[0f32; LANES]; 9];
            for (tap, from) in taps.iter_mut().zip(filters.chunks_exact(row)) {
                *tap = *from[at..].first_chunk().expect("panels are whole vectors wide");
            }
            op.transform(&taps, |number, values| out.row(number)[at..at + LANES].copy_from_slice(&values));
        }
    }
}
