//! Packing into `panels_f32`: one pass over memory, parallel by panel.

use std::ops::Range;

use super::{
    overlay::{Lines, TILE_COLS, TILE_ROWS, merge_tile},
    view::{MatrixView, SourceElement},
};
use regraft_backend::adapter::Overlay;

use crate::{
    Isa, Threads,
    simd::{Floats, Product, Runs, Steps, Strip, copy_lines_streaming, transpose_strip},
};

/// Lanes that are moved together: one cache line of floats.
pub(crate) const LANES: usize = 16;

/// Panels that one task packs when rows of the source are contiguous along `N`: together they read whole stretches of a row.
const PANELS_PER_TASK: usize = 8;

/// Rows of `K` that are packed before moving on to the next panel of a task; keeps their pages in the TLB.
const K_BLOCK: usize = 128;

/// Floats that a task should at least pack.
const GRAIN: usize = 16 * 1024;

/// Outputs of so many floats (1 MiB) are written past the caches: a weight that large will not be read from them.
const STREAM_FROM: usize = 1 << 18;

/// The number of floats in `panels_f32<nr>[k, n]`.
pub fn panels_len(k: usize, n: usize, nr: usize) -> usize {
    n.div_ceil(nr) * nr * k
}

/// Packs `pieces`, concatenated along `N`, as `panels_f32<nr>` into `out`, which is overwritten wholly.
///
/// # Panics
///
/// If the pieces differ in `K`, a view reaches beyond its data, `nr` is not a multiple of 16, or `out` is not
/// [`panels_len`] long.
pub fn pack_panels<T: SourceElement>(
    threads: &Threads,
    isa: Isa,
    pieces: &[MatrixView<'_, T>],
    nr: usize,
    out: &mut [f32],
) {
    let stream = out.len() >= STREAM_FROM;
    let packer = PanelPacker::new(isa, pieces, nr, stream);
    let (k, n) = (packer.k(), packer.n);
    assert_eq!(out.len(), panels_len(k, n, nr), "the output length of a packing");
    if out.is_empty() {
        return;
    }
    let along_n = pieces.iter().all(|p| p.n_stride == 1);
    let fair = n.div_ceil(nr).div_ceil(threads.count());
    let per_task = if along_n { PANELS_PER_TASK } else { 1 }.max(GRAIN / (k * nr)).min(fair);
    let k_block = if along_n { K_BLOCK } else { k };
    threads.for_each_chunk(out, per_task * k * nr, |task, chunk| {
        for k0 in (0..k).step_by(k_block) {
            for (i, panel) in chunk.chunks_exact_mut(k * nr).enumerate() {
                packer.panel((task * per_task + i) * nr, k0..k.min(k0 + k_block), panel);
            }
        }
    });
}

/// A matrix of bfloat16 whose pairs of steps are words, which can be moved as such.
pub(super) fn words_of<'a, T: SourceElement>(view: &MatrixView<'a, T>) -> Option<MatrixView<'a, f32>> {
    let Some(Floats::Bf16(data)) = T::floats(view.data) else { return None };
    let (&(size, stride), outer) = view.k_dims.split_last()?;
    let even = |x: usize| x.is_multiple_of(2);
    let whole = stride == 1 && even(size) && outer.iter().all(|(_, stride)| even(*stride));
    if !whole || !even(view.offset) || !even(view.n_stride) || view.scale.is_some() || view.overlay.is_some() {
        return None;
    }
    let data = bytemuck::try_cast_slice(&data[..data.len() / 2 * 2]).ok()?;
    let halved = outer.iter().map(|(size, stride)| (*size, stride / 2)).chain([(size / 2, 1)]).collect();
    let (offset, n_stride) = (view.offset / 2, view.n_stride / 2);
    Some(MatrixView { data, offset, k_dims: halved, n_len: view.n_len, n_stride, scale: None, overlay: None })
}

struct Piece<'a, T> {
    view: &'a MatrixView<'a, T>,
    /// Source offset and `k` of every step.
    order: Runs,
}

impl<'a, T: SourceElement> Piece<'a, T> {
    fn new(view: &'a MatrixView<'a, T>) -> Self {
        Piece { view, order: Runs::new(view.k_order()) }
    }
}

pub(super) struct PanelPacker<'a, T> {
    isa: Isa,
    nr: usize,
    n: usize,
    stream: bool,
    pieces: Vec<Piece<'a, T>>,
}

/// Columns of a piece and the lane of the panel that the first goes to.
struct Columns {
    columns: Range<usize>,
    lane: usize,
}

impl<'a, T: SourceElement> PanelPacker<'a, T> {
    /// Panics unless the pieces fit together and lie in their data.
    pub(super) fn new(isa: Isa, pieces: &'a [MatrixView<'a, T>], nr: usize, stream: bool) -> Self {
        let n = pieces.iter().map(|p| p.n_len).sum();
        let k = pieces.first().map_or(0, MatrixView::k_len);
        assert!(nr > 0 && nr.is_multiple_of(LANES), "nr = {nr} is not a multiple of {LANES}");
        assert!(pieces.iter().all(|p| p.k_len() == k), "the pieces differ in K");
        assert!(pieces.iter().all(MatrixView::is_in_bounds), "a matrix view reaches beyond its data");
        PanelPacker { isa, nr, n, stream, pieces: pieces.iter().map(Piece::new).collect() }
    }

    /// Rows of the matrix.
    pub(super) fn k(&self) -> usize {
        self.pieces.first().map_or(0, |piece| piece.order.each().len())
    }

    /// Columns of the matrix.
    pub(super) fn n(&self) -> usize {
        self.n
    }

    /// Packs steps `steps` of the panel whose first column is `first`.
    pub(super) fn panel(&self, first: usize, steps: Range<usize>, panel: &mut [f32]) {
        let end = self.n.min(first + self.nr);
        let mut piece_start = 0;
        for piece in &self.pieces {
            let piece_end = piece_start + piece.view.n_len;
            let (from, to) = (first.max(piece_start), end.min(piece_end));
            if from < to {
                let columns = from - piece_start..to - piece_start;
                self.strip(piece, &Columns { columns, lane: from - first }, steps.clone(), panel);
            }
            piece_start = piece_end;
        }
        let used = end - first;
        if used < self.nr {
            panel[steps.start * self.nr..steps.end * self.nr]
                .chunks_exact_mut(self.nr)
                .for_each(|row| row[used..].fill(0.0));
        }
    }

    fn strip(&self, piece: &Piece<'_, T>, strip: &Columns, steps: Range<usize>, panel: &mut [f32]) {
        if piece.view.n_stride == 1 {
            return self.along_n(piece.view, strip, &piece.order.each()[steps], panel);
        }
        for start in strip.columns.clone().step_by(LANES) {
            let columns = start..strip.columns.end.min(start + LANES);
            let lane = strip.lane + start - strip.columns.start;
            let strip = Columns { columns, lane };
            piece.order.within(steps.clone()).for_each(|run| self.along_k(piece.view, &strip, run, panel));
        }
    }

    /// The columns stand side by side in the source: copies of short rows.
    fn along_n(&self, view: &MatrixView<'_, T>, strip: &Columns, order: &[(usize, usize)], panel: &mut [f32]) {
        if let Some(overlay) = view.overlay {
            return self.along_n_overlaid(view, overlay, strip, order, panel);
        }
        let width = strip.columns.len();
        let first = view.offset + strip.columns.start;
        let scale = view.scale.map(|s| &s[strip.columns.clone()]);
        if let (Some(src), None, true) = (T::as_f32(view.data), scale, self.stream) {
            let dst = &mut panel[strip.lane..];
            return copy_lines_streaming(self.isa, &src[first..], width, dst, self.nr, order);
        }
        for (at, k) in order {
            let from = &view.data[first + at..][..width];
            let to = &mut panel[k * self.nr + strip.lane..][..width];
            match (T::as_f32(from), scale) {
                (Some(from), None) => to.copy_from_slice(from),
                (_, None) => to.iter_mut().zip(from).for_each(|(y, x)| *y = x.to_f32()),
                (_, Some(s)) => to.iter_mut().zip(from).zip(s).for_each(|((y, x), s)| *y = x.to_f32() * s),
            }
        }
    }

    /// Rows of `K` are rows of the source: tiles of 16 of them, each as wide as the strip.
    fn along_n_overlaid(
        &self,
        view: &MatrixView<'_, T>,
        overlay: &Overlay,
        strip: &Columns,
        order: &[(usize, usize)],
        panel: &mut [f32],
    ) {
        let first = view.offset + strip.columns.start;
        let mut tile = [[0.0; TILE_COLS]; TILE_ROWS];
        for part in strip.columns.clone().step_by(TILE_COLS) {
            let width = TILE_COLS.min(strip.columns.end - part);
            let (lane, scale) = (strip.lane + part - strip.columns.start, view.scale.map(|s| &s[part..part + width]));
            let from = first + part - strip.columns.start;
            for steps in order.chunks(TILE_ROWS) {
                let rows: [usize; TILE_ROWS] =
                    std::array::from_fn(|i| steps.get(i).map_or(0, |(at, _)| (from + at) / overlay.cols));
                let lines = Lines { rows: &rows[..steps.len()], col: from % overlay.cols, len: width };
                merge_tile(self.isa, overlay, view.data, lines, &mut tile);
                for (line, (_, k)) in tile.iter().zip(steps) {
                    let to = &mut panel[k * self.nr + lane..][..width];
                    match scale {
                        None => to.copy_from_slice(&line[..width]),
                        Some(s) => to.iter_mut().zip(line).zip(s).for_each(|((y, x), s)| *y = x * s),
                    }
                }
            }
        }
    }

    /// At most 16 columns, each in a row of the source.
    fn along_k_overlaid(
        &self,
        view: &MatrixView<'_, T>,
        overlay: &Overlay,
        strip: &Columns,
        run: Steps<'_>,
        panel: &mut [f32],
    ) {
        let first = view.offset + strip.columns.start * view.n_stride;
        let rows: [usize; TILE_ROWS] = std::array::from_fn(|i| (first + i * view.n_stride) / overlay.cols);
        let rows = &rows[..strip.columns.len()];
        let product = overlay.plain().filter(|_| rows.len() == LANES);
        let rest = match (product, T::as_f32(view.data)) {
            (Some(product), Some(data)) => {
                let (blocks, rest) = run.split_blocks();
                let (rank, values) = (product.rank(), product.values());
                let up: Vec<[f32; LANES]> =
                    (0..rank).map(|r| std::array::from_fn(|i| values.up[rows[i] * rank + r])).collect();
                let down = &values.down[first % overlay.cols..];
                let product = Product { up: &up, down, cols: overlay.cols };
                let scale = view.scale.and_then(|s| s[strip.columns.start..].first_chunk());
                let (src, row_stride) = (&data[first..], view.n_stride);
                let (dst, line_stride, stream) = (&mut panel[strip.lane..], self.nr, self.stream);
                let strip = Strip { src, row_stride, product: Some(product), scale, dst, line_stride, stream };
                transpose_strip(self.isa, strip, blocks);
                rest
            }
            _ => run.each(),
        };
        for steps in rest.chunks(TILE_COLS) {
            self.tile_along_k(view, overlay, (rows, first), (strip, steps), panel);
        }
    }

    /// A tile of rows of the source, which is packed in place of the source.
    fn tile_along_k(
        &self,
        view: &MatrixView<'_, T>,
        overlay: &Overlay,
        (rows, first): (&[usize], usize),
        (strip, steps): (&Columns, &[(usize, usize)]),
        panel: &mut [f32],
    ) {
        let mut tile = [[0.0; TILE_COLS]; TILE_ROWS];
        let lines = Lines { rows, col: (first + steps[0].0) % overlay.cols, len: steps.len() };
        merge_tile(self.isa, overlay, view.data, lines, &mut tile);
        let merged = MatrixView {
            data: tile.as_flattened(),
            offset: 0,
            k_dims: vec![],
            n_len: rows.len(),
            n_stride: TILE_COLS,
            scale: view.scale.map(|s| &s[strip.columns.clone()]),
            overlay: None,
        };
        let mut inside = [(0, 0); TILE_COLS];
        inside.iter_mut().zip(steps).enumerate().for_each(|(j, (to, (_, k)))| *to = (j, *k));
        let columns = Columns { columns: 0..rows.len(), lane: strip.lane };
        self.columns(&merged, &columns, Steps::new(&inside[..steps.len()]), panel);
    }

    /// At most 16 columns of any stride, over a stretch of `K` that is contiguous: blocks of it are transposed in registers, the
    /// rest goes by element.
    fn along_k(&self, view: &MatrixView<'_, T>, strip: &Columns, run: Steps<'_>, panel: &mut [f32]) {
        if let Some(overlay) = view.overlay {
            return self.along_k_overlaid(view, overlay, strip, run, panel);
        }
        self.columns(view, strip, run, panel);
    }

    fn columns<E: SourceElement>(&self, view: &MatrixView<'_, E>, strip: &Columns, run: Steps<'_>, panel: &mut [f32]) {
        if strip.columns.len() < LANES {
            return self.by_element(view, strip, run.each(), panel);
        }
        let (blocks, rest) = run.split_blocks();
        if !blocks.each().is_empty() {
            self.transpose(view, strip, blocks, panel);
        }
        self.by_element(view, strip, rest, panel);
    }

    fn transpose<E: SourceElement>(
        &self,
        view: &MatrixView<'_, E>,
        strip: &Columns,
        blocks: Steps<'_>,
        panel: &mut [f32],
    ) {
        let scale: Option<&[f32; LANES]> = view.scale.and_then(|s| s[strip.columns.start..].first_chunk());
        let data = &view.data[view.offset + strip.columns.start * view.n_stride..];
        let (dst, line_stride) = (&mut panel[strip.lane..], self.nr);
        if let Some(src) = E::as_f32(data) {
            let strip =
                Strip { src, row_stride: view.n_stride, product: None, scale, dst, line_stride, stream: self.stream };
            return transpose_strip(self.isa, strip, blocks);
        }
        for steps in blocks.each().as_chunks::<LANES>().0 {
            let mut rows = [[0.0; LANES]; LANES];
            for (i, row) in rows.iter_mut().enumerate() {
                let from = &data[i * view.n_stride + steps[0].0..][..LANES];
                row.iter_mut().zip(from).for_each(|(y, x)| *y = x.to_f32());
            }
            let steps = std::array::from_fn::<_, LANES, _>(|j| (j, steps[j].1));
            let strip = Strip {
                src: rows.as_flattened(),
                row_stride: LANES,
                product: None,
                scale,
                dst: &mut *dst,
                line_stride,
                stream: self.stream,
            };
            transpose_strip(self.isa, strip, Steps::new(&steps));
        }
    }

    fn by_element<E: SourceElement>(
        &self,
        view: &MatrixView<'_, E>,
        strip: &Columns,
        steps: &[(usize, usize)],
        panel: &mut [f32],
    ) {
        let first = view.offset + strip.columns.start * view.n_stride;
        let scale = view.scale.map(|s| &s[strip.columns.clone()]);
        // Line by line: a few rows are read at once, and no line is written to twice.
        for (at, k) in steps {
            let from = &view.data[first + at..];
            let line = &mut panel[k * self.nr + strip.lane..][..strip.columns.len()];
            let elements = line.iter_mut().enumerate().map(|(i, y)| (y, from[i * view.n_stride].to_f32()));
            match scale {
                None => elements.for_each(|(y, x)| *y = x),
                Some(scale) => elements.zip(scale).for_each(|((y, x), s)| *y = x * s),
            }
        }
    }
}

#[cfg(test)]
#[path = "panels_tests.rs"]
mod tests;
