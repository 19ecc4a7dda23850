//! Convolution of 3 x 3 by Winograd's minimal filtering: a tile of results takes `reach²` multiplications for each pair of channels, where
//! `reach = tile + 2`, instead of `9 tile²`. From Lavin and Gray, 2015, <https://arxiv.org/abs/1509.09308>.
//!
//! For a block of tiles, whose intermediate values stay in cache: the pixels that a tile meets are transformed, channel by channel; each of
//! the `reach²` numbers of all tiles and channels is a matrix that is multiplied by its matrix of the transformed filters; the products
//! are transformed to pixels of the result, and then finished as those of other products are.

use super::workers;
use crate::{
    Isa, Scratch, Threads,
    gemm::{Epilogue, Operand, PanelProduct, Panels, Rows, Window3},
    scratch::bytes_of,
    simd::{Floats, Vectors, vector_fn},
    threads::{TileGrid, TileMut},
};

/// A convolution of channels-last images with windows of 3 x 3 at stride 1.
#[derive(Clone, Copy, Debug)]
pub struct WinogradArgs<'a> {
    /// Pixels along each side of a tile: 2 or 4.
    pub tile: usize,
    /// Where windows are.
    pub window: Window3,
    /// Channels of the image and of the result.
    pub channels: [usize; 2],
    /// The images.
    pub image: &'a [f32],
    /// `[reach², channels, channels of the result]`, each matrix in panels of `nr` columns.
    pub filters: &'a [f32],
    /// Columns of a panel.
    pub nr: usize,
    /// What is done to the results before they are stored.
    pub epilogue: Epilogue<'a>,
}

/// Floats of transformed pixels that stay in a second-level cache next to the filters that pass by.
const PIXELS: usize = 64 * 1024;

/// Tiles that a block should have: fewer leave the arithmetic units waiting for filters.
const TILES: usize = 12;

/// The fewest channels: those of the widest register.
pub const LEAST_CHANNELS: usize = 16;

/// Tiles of an image, in blocks of whole rows of them.
#[derive(Clone, Copy)]
struct Blocks {
    tile: usize,
    /// Columns and rows of tiles.
    across: usize,
    down: usize,
    /// Rows of tiles in a block; the last one of an image may have fewer.
    rows: usize,
    /// Floats between the transformed pixels of two tiles: an odd number of cache lines, so that they do not collide.
    pixel_stride: usize,
    /// Floats between the products of two tiles.
    product_stride: usize,
}

impl Blocks {
    fn new(tile: usize, window: &Window3, channels: usize, nr: usize) -> Blocks {
        const LINE: usize = 16;
        let [_, height, width] = window.output;
        let (across, down, numbers) = (width.div_ceil(tile), height.div_ceil(tile), (tile + 2) * (tile + 2));
        let pixel_stride = (numbers * channels).next_multiple_of(2 * LINE) + LINE;
        let tiles = (PIXELS / pixel_stride).max(TILES);
        let rows = (tiles / across.max(1)).clamp(1, down.max(1));
        // Blocks of about the same size.
        let rows = down.div_ceil(down.div_ceil(rows).max(1));
        Blocks { tile, across, down, rows, pixel_stride, product_stride: numbers * nr + LINE }
    }

    fn reach(&self) -> usize {
        self.tile + 2
    }

    /// Tiles of a block.
    fn tiles(&self) -> usize {
        self.rows * self.across
    }

    /// Blocks of an image.
    fn per_image(&self) -> usize {
        self.down.div_ceil(self.rows.max(1))
    }
}

/// Bytes of scratch that [`winograd`] needs.
pub fn winograd_scratch(threads: &Threads, tile: usize, window: &Window3, channels: usize, nr: usize) -> usize {
    let blocks = Blocks::new(tile, window, channels, nr);
    let each = [blocks.pixel_stride, blocks.product_stride].map(|stride| bytes_of::<f32>(blocks.tiles() * stride));
    bytes_of::<f32>(channels) + workers(threads) * each.iter().sum::<usize>()
}

/// Memory of one task.
struct Work<'a> {
    pixels: &'a mut [f32],
    products: &'a mut [f32],
}

/// What all tasks read.
struct Shared<'a> {
    isa: Isa,
    args: &'a WinogradArgs<'a>,
    blocks: Blocks,
    /// What windows meet outside of the image.
    zeros: &'a [f32],
    product: PanelProduct,
    filters: Vec<Panels<'a>>,
}

/// Some rows of tiles of one image.
#[derive(Clone, Copy)]
struct Block {
    image: usize,
    /// The first row of tiles.
    first: usize,
    rows: usize,
}

/// Computes the convolution into `out`. Images have one plane.
///
/// # Panics
///
/// If the window is another, there are fewer channels than [`LEAST_CHANNELS`], a slice has the wrong length, or the scratch is shorter
/// than [`winograd_scratch`].
pub fn winograd(threads: &Threads, isa: Isa, args: &WinogradArgs<'_>, out: &mut [f32], scratch: &mut Scratch<'_>) {
    let WinogradArgs { tile, window, channels: [channels, columns], .. } = *args;
    assert!(window.kernel == [1, 3, 3] && window.stride == [1; 3] && window.dilation == [1; 3]);
    assert!(channels >= LEAST_CHANNELS && matches!(tile, 2 | 4));
    assert!(args.image.len() == window.batch * window.pixels_in() * channels && out.len() == window.pixels() * columns);
    args.epilogue.check(window.pixels(), columns);
    if out.is_empty() {
        return;
    }
    let blocks = Blocks::new(tile, &window, channels, args.nr);
    let matrix = columns.next_multiple_of(args.nr) * channels;
    let numbers = blocks.reach() * blocks.reach();
    let filters = args.filters[..numbers * matrix].chunks_exact(matrix);
    let filters = filters.map(|matrix| Panels::new(args.nr, Floats::F32(matrix), channels, columns)).collect();
    let mut scratch = scratch.again();
    let zeros: &mut [f32] = scratch.take(channels);
    zeros.fill(0.0);
    let shared = Shared { isa, args, blocks, zeros, product: PanelProduct::new(isa, args.nr), filters };
    let mut works: Vec<Work<'_>> = (0..workers(threads))
        .map(|_| Work {
            pixels: scratch.take(blocks.tiles() * blocks.pixel_stride),
            products: scratch.take(blocks.tiles() * blocks.product_stride),
        })
        .collect();
    let image = window.pixels_out() * columns;
    let chunk = (blocks.rows * tile * window.output[2] * columns).min(image);
    // Blocks of several images are alike where each is an image.
    let together = if blocks.per_image() == 1 { window.batch } else { 1 };
    for (first, out) in out.chunks_mut(together * image).enumerate() {
        let block = |i: usize| {
            let (image, i) = (first * together + i / blocks.per_image(), i % blocks.per_image());
            Block { image, first: i * blocks.rows, rows: blocks.rows.min(blocks.down - i * blocks.rows) }
        };
        if together * blocks.per_image() >= threads.count() {
            threads.for_each_chunk_with(&mut works, out, chunk, |work, i, out| {
                let block = block(i);
                shared.transform_pixels(
                    &block,
                    0,
                    &mut work.pixels[..block.rows * blocks.across * blocks.pixel_stride],
                );
                let pixels = out.len() / columns;
                shared.multiply(
                    &block,
                    work.pixels,
                    0,
                    &mut TileMut::new(out, pixels, columns, columns),
                    work.products,
                );
            });
            continue;
        }
        for (i, out) in out.chunks_mut(chunk).enumerate() {
            shared.split(threads, &block(i), out, &mut works);
        }
    }
}

impl Shared<'_> {
    /// Computes a block on all threads.
    fn split(&self, threads: &Threads, block: &Block, out: &mut [f32], works: &mut [Work<'_>]) {
        let (tiles, columns) = (block.rows * self.blocks.across, self.args.channels[1]);
        let (pixels, mut products): (Vec<_>, Vec<_>) =
            works.iter_mut().map(|work| (&mut *work.pixels, &mut *work.products)).unzip();
        let pixels = pixels.into_iter().next().expect("there is a worker");
        let pixels = &mut pixels[..tiles * self.blocks.pixel_stride];
        let per_task = threads.per_task(tiles, 1);
        threads.for_each_chunk(pixels, per_task * self.blocks.pixel_stride, |task, pixels| {
            self.transform_pixels(block, task * per_task, pixels);
        });
        let panels = columns.div_ceil(self.args.nr);
        let (rows, tile_cols) = (out.len() / columns, threads.per_task(panels, 1) * self.args.nr);
        let grid = TileGrid { outer: &[], rows, cols: columns, row_stride: columns, tile_rows: rows, tile_cols };
        threads.for_each_tile_with(&mut products, out, &grid, |products, at, mut tile| {
            self.multiply(block, pixels, at.col, &mut tile, products);
        });
    }

    /// Transforms what some tiles of a block meet, the first of them number `first`.
    fn transform_pixels(&self, block: &Block, first: usize, out: &mut [f32]) {
        let Blocks { tile, across, pixel_stride, .. } = self.blocks;
        for (i, out) in out.chunks_exact_mut(pixel_stride).enumerate() {
            let (row, column) = ((first + i) / across, (first + i) % across);
            let corner = [(block.first + row) * tile, column * tile];
            match tile {
                2 => self.transform_tile::<4>(block.image, corner, out),
                _ => self.transform_tile::<6>(block.image, corner, out),
            }
        }
    }

    /// Transforms what a tile meets, whose first pixel is `corner`.
    fn transform_tile<const N: usize>(&self, image: usize, corner: [usize; 2], out: &mut [f32]) {
        let (window, channels) = (&self.args.window, self.args.channels[0]);
        let [_, height, width] = window.input;
        let pixels: [[&[f32]; N]; N] = std::array::from_fn(|y| {
            let line = window.source(1, corner[0], y);
            std::array::from_fn(|x| match (line, window.source(2, corner[1], x)) {
                (Some(y), Some(x)) => &self.args.image[((image * height + y) * width + x) * channels..][..channels],
                _ => self.zeros,
            })
        });
        transform_pixels(self.isa, channels, pixels.as_flattened(), out);
    }

    /// Multiplies the transformed pixels of a block by panels of the filters, from column `first` on, and sets `out` to the results.
    fn multiply(&self, block: &Block, pixels: &[f32], first: usize, out: &mut TileMut<'_, f32>, products: &mut [f32]) {
        let Blocks { tile, across, pixel_stride, product_stride, .. } = self.blocks;
        let ([channels, _], nr, tiles) = (self.args.channels, self.args.nr, block.rows * across);
        let operand = |number: usize| {
            let rows = Rows::Strided { lda: pixel_stride };
            Operand::new(Floats::F32(&pixels[number * channels..]), rows, tiles, 1, channels)
        };
        let operands: Vec<Operand<'_>> = (0..self.filters.len()).map(operand).collect();
        let [_, height, width] = self.args.window.output;
        let from = (block.image * height + block.first * tile) * width;
        for at in (0..out.cols()).step_by(nr) {
            let (columns, panel) = (at..out.cols().min(at + nr), (first + at) / nr);
            for (number, a) in operands.iter().enumerate() {
                let to = TileMut::new(&mut products[number * nr..], tiles, nr, product_stride);
                self.product.run(a, &self.filters[number], panel, self.filters.get(number + 1), to);
            }
            let (rows, place) = (out.rows(), Place { across, stride: product_stride, nr, width });
            let mut part = out.part(0..rows, columns);
            match tile {
                2 => results_of_two(self.isa, &products[..tiles * product_stride], place, &mut part),
                _ => results_of_four(self.isa, &products[..tiles * product_stride], place, &mut part),
            }
            self.args.epilogue.apply(self.isa, from, first + at, &mut part);
        }
    }
}

/// The transforms along one axis of tiles of `M` pixels and what they are computed from, `N`.
trait Minimal<const N: usize, const M: usize> {
    /// `Bᵀ` of pixels.
    fn pixels<S: Vectors>(simd: S, d: [S::V; N]) -> [S::V; N];
    /// `Aᵀ` of products.
    fn results<S: Vectors>(simd: S, m: [S::V; N]) -> [S::V; M];
}

/// `a + by * b`.
#[inline(always)]
fn plus<S: Vectors>(simd: S, a: S::V, by: f32, b: S::V) -> S::V {
    simd.mul_add(b, simd.splat(by), a)
}

/// Tiles of two pixels, interpolated at 0, 1, -1 and infinity.
struct Two;

impl Minimal<4, 2> for Two {
    #[inline(always)]
    fn pixels<S: Vectors>(simd: S, [a, b, c, d]: [S::V; 4]) -> [S::V; 4] {
        [plus(simd, a, -1.0, c), simd.add(b, c), plus(simd, c, -1.0, b), plus(simd, b, -1.0, d)]
    }

    #[inline(always)]
    fn results<S: Vectors>(simd: S, [a, b, c, d]: [S::V; 4]) -> [S::V; 2] {
        let (sum, difference) = (simd.add(b, c), plus(simd, b, -1.0, c));
        [simd.add(a, sum), plus(simd, difference, -1.0, d)]
    }
}

/// Tiles of four pixels, interpolated at 0, 1, -1, 2, -2 and infinity.
struct Four;

impl Minimal<6, 4> for Four {
    #[inline(always)]
    fn pixels<S: Vectors>(simd: S, [a, b, c, d, e, f]: [S::V; 6]) -> [S::V; 6] {
        let (near, near_odd) = (plus(simd, e, -4.0, c), plus(simd, d, -4.0, b));
        let (far, far_odd) = (plus(simd, e, -1.0, c), plus(simd, d, -1.0, b));
        [
            plus(simd, plus(simd, e, -5.0, c), 4.0, a),
            simd.add(near, near_odd),
            plus(simd, near, -1.0, near_odd),
            plus(simd, far, 2.0, far_odd),
            plus(simd, far, -2.0, far_odd),
            plus(simd, plus(simd, f, -5.0, d), 4.0, b),
        ]
    }

    #[inline(always)]
    fn results<S: Vectors>(simd: S, [a, b, c, d, e, f]: [S::V; 6]) -> [S::V; 4] {
        let (near, near_odd) = (simd.add(b, c), plus(simd, b, -1.0, c));
        let (far, far_odd) = (simd.add(d, e), plus(simd, d, -1.0, e));
        [
            simd.add(simd.add(a, near), far),
            plus(simd, near_odd, 2.0, far_odd),
            plus(simd, near, 4.0, far),
            simd.add(plus(simd, near_odd, 8.0, far_odd), f),
        ]
    }
}

vector_fn! {
    /// `Bᵀ d B` of the pixels `d` that a tile meets, line by line; of each number all channels are next to each other.
    fn transform_pixels<S>(simd, channels: usize, pixels: &[&[f32]], out: &mut [f32]) {
        for first in (0..channels).step_by(S::LANES) {
            // The last register begins where it fits, and computes some channels twice.
            let first = first.min(channels - S::LANES);
            match pixels.len() {
                16 => transform_register::<S, Two, 4, 2>(simd, (channels, first), pixels, out),
                _ => transform_register::<S, Four, 6, 4>(simd, (channels, first), pixels, out),
            }
        }
    }
}

#[inline(always)]
fn transform_register<S: Vectors, T: Minimal<N, M>, const N: usize, const M: usize>(
    simd: S,
    (channels, first): (usize, usize),
    pixels: &[&[f32]],
    out: &mut [f32],
) {
    let pixels = &pixels[..N * N];
    let mut columns = [[simd.splat(0.0); N]; N];
    for (x, column) in columns.iter_mut().enumerate() {
        let mut d = [simd.splat(0.0); N];
        for (y, d) in d.iter_mut().enumerate() {
            *d = simd.load(&pixels[y * N + x][first..]);
        }
        *column = T::pixels(simd, d);
    }
    let out = &mut out[first..];
    for y in 0..N {
        let mut d = [simd.splat(0.0); N];
        for (d, column) in d.iter_mut().zip(&columns) {
            *d = column[y];
        }
        for (x, value) in T::pixels(simd, d).into_iter().enumerate() {
            simd.store(value, &mut out[(y * N + x) * channels..]);
        }
    }
}

/// Where products and pixels of the result are.
#[derive(Clone, Copy)]
struct Place {
    /// Tiles in a row of them.
    across: usize,
    /// Floats between the products of two tiles.
    stride: usize,
    /// Floats between two products of a tile.
    nr: usize,
    /// Pixels in a line of the result.
    width: usize,
}

vector_fn! {
    /// As [`results_of_four`], for tiles of two pixels.
    fn results_of_two<S>(simd, products: &[f32], place: Place, out: &mut TileMut<'_, f32>) {
        results::<S, Two, 4, 2>(simd, products, place, out);
    }
}

vector_fn! {
    /// `Aᵀ m A` of the products of some rows of tiles, for one panel: the pixels of the result are the rows of `out`.
    fn results_of_four<S>(simd, products: &[f32], place: Place, out: &mut TileMut<'_, f32>) {
        results::<S, Four, 6, 4>(simd, products, place, out);
    }
}

#[inline(always)]
fn results<S: Vectors, T: Minimal<N, M>, const N: usize, const M: usize>(
    simd: S,
    products: &[f32],
    place: Place,
    out: &mut TileMut<'_, f32>,
) {
    let (lines, columns) = (out.rows() / place.width, out.cols());
    for (tile, products) in products.chunks_exact(place.stride).enumerate() {
        let (y, x) = (tile / place.across * M, tile % place.across * M);
        for first in (0..columns).step_by(S::LANES) {
            let products = &products[first..];
            let mut across = [[simd.splat(0.0); M]; N];
            for (line, across) in across.iter_mut().enumerate() {
                let mut m = [simd.splat(0.0); N];
                for (i, m) in m.iter_mut().enumerate() {
                    *m = simd.load(&products[(line * N + i) * place.nr..]);
                }
                *across = T::results(simd, m);
            }
            for column in 0..M.min(place.width - x) {
                let mut m = [simd.splat(0.0); N];
                for (m, across) in m.iter_mut().zip(&across) {
                    *m = across[column];
                }
                for (line, value) in T::results(simd, m).into_iter().enumerate().take(lines - y) {
                    let pixel = out.row((y + line) * place.width + x + column);
                    let end = columns.min(first + S::LANES);
                    simd.store_some(value, &mut pixel[first..end]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{gemm::conv::testing::met, nn::testing::numbers, scratch::testing::with_scratch};

    /// The transformed filters of `[9 channels, columns]`, in panels.
    fn packed(tile: usize, filters: &[f32], [channels, columns]: [usize; 2], nr: usize) -> Vec<f32> {
        let op = regraft_ir::ops::WinogradFilter { tile };
        let matrix = columns.next_multiple_of(nr) * channels;
        let mut out = vec![0.0; op.reach() * op.reach() * matrix];
        for (c, column) in (0..channels).flat_map(|c| (0..columns).map(move |column| (c, column))) {
            let filter = std::array::from_fn(|tap| [filters[(tap * channels + c) * columns + column]]);
            let place = (column / nr * channels + c) * nr + column % nr;
            op.transform(&filter, |number, [value]| out[number * matrix + place] = value);
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn shapes(
            tile in prop::sample::select(vec![2usize, 4]), batch in 1usize..4, size in prop::array::uniform2(1usize..30),
            padding in 0usize..3, channels in 16usize..60, columns in 1usize..70, wide: bool, bias: bool,
        ) {
            prop_assume!(size.iter().all(|size| size + 2 * padding >= 3));
            let output = [1, size[0] + 2 * padding - 2, size[1] + 2 * padding - 2];
            let window = Window3 {
                batch, input: [1, size[0], size[1]], output, kernel: [1, 3, 3], stride: [1; 3], dilation: [1; 3],
                padding: [0, padding, padding],
            };
            let image = numbers(batch * window.pixels_in() * channels, 1);
            let filters = numbers(9 * channels * columns, 2);
            let (bias_data, residual) = (numbers(columns, 3), numbers(window.pixels() * columns, 4));
            for (isa, threads) in Isa::available().into_iter().flat_map(|isa| [1, 3].map(|threads| (isa, threads))) {
                let widths: Vec<usize> = crate::gemm::panel_widths(isa).collect();
                let nr = widths[usize::from(wide) * (widths.len() - 1)];
                let packed = packed(tile, &filters, [channels, columns], nr);
                let epilogue = Epilogue {
                    bias: bias.then_some(Floats::F32(&bias_data)),
                    residual: Some(crate::gemm::Residual { data: Floats::F32(&residual), ld: columns }),
                    ..Epilogue::default()
                };
                let args = WinogradArgs {
                    tile, window, channels: [channels, columns], image: &image, filters: &packed, nr, epilogue,
                };
                let threads = Threads::new(threads).unwrap();
                let mut out = vec![f32::NAN; window.pixels() * columns];
                with_scratch(winograd_scratch(&threads, tile, &window, channels, nr), |scratch| {
                    winograd(&threads, isa, &args, &mut out, scratch);
                });
                let wanted: Vec<f64> = (0..out.len()).map(|at| {
                    let (column, pixel) = (at % columns, at / columns);
                    let start = f64::from(residual[at]) + if bias { f64::from(bias_data[column]) } else { 0.0 };
                    let taps = met(&window, pixel).into_iter().flat_map(|tap| (0..channels).map(move |c| (tap, c)));
                    taps.fold(start, |sum, ((tap, source), c)| {
                        let weight = filters[(tap * channels + c) * columns + column];
                        sum + f64::from(image[source * channels + c]) * f64::from(weight)
                    })
                }).collect();
                // Errors are those of sums of all that is met, also where these cancel.
                let size = (wanted.iter().map(|want| want * want).sum::<f64>() / wanted.len() as f64).sqrt();
                for (got, want) in out.iter().zip(&wanted) {
                    let error = (f64::from(*got) - want).abs() / size;
                    prop_assert!(error < 1e-4, "{isa}, {} threads: {got} for {want}, of about {size}", threads.count());
                }
            }
        }
    }
}
