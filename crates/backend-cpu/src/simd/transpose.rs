//! Moving matrices: 16 rows become lines of 16 lanes in registers, and lines are copied past the caches.

use std::ops::Range;

use super::Isa;

/// Steps `(j, l)`, one after the other: the `j` count upwards by one.
#[derive(Clone, Copy)]
pub(crate) struct Steps<'a> {
    each: &'a [(usize, usize)],
    /// No `l` is larger.
    last_line: usize,
}

impl<'a> Steps<'a> {
    /// # Panics
    ///
    /// If the steps are not of that form.
    pub(crate) fn new(each: &'a [(usize, usize)]) -> Self {
        assert!(each.is_sorted_by(|a, b| a.0 + 1 == b.0), "steps count upwards by one");
        Steps { each, last_line: last_line(each) }
    }

    /// The steps.
    pub(crate) fn each(self) -> &'a [(usize, usize)] {
        self.each
    }

    /// The first steps, a multiple of 16 of them and as many as there are, and the others.
    pub(crate) fn split_blocks(self) -> (Self, &'a [(usize, usize)]) {
        let (blocks, rest) = self.each.split_at(self.each.len() / 16 * 16);
        (Steps { each: blocks, ..self }, rest)
    }
}

/// Steps in any order, cut where their `j` do not count upwards by one: found once for all strips that are moved by them.
pub(crate) struct Runs {
    each: Vec<(usize, usize)>,
    runs: Vec<Range<usize>>,
    last_line: usize,
}

impl Runs {
    pub(crate) fn new(each: Vec<(usize, usize)>) -> Self {
        let mut end = 0;
        let lengths = each.chunk_by(|a, b| a.0 + 1 == b.0).map(<[_]>::len);
        let run = |len| {
            end += len;
            end - len..end
        };
        let runs = lengths.map(run).collect();
        Runs { last_line: last_line(&each), each, runs }
    }

    /// All steps.
    pub(crate) fn each(&self) -> &[(usize, usize)] {
        &self.each
    }

    /// The runs of the steps `range`.
    pub(crate) fn within(&self, range: Range<usize>) -> impl Iterator<Item = Steps<'_>> {
        let parts = self.runs.iter().map(move |run| run.start.max(range.start)..run.end.min(range.end));
        let parts = parts.filter(|part| !part.is_empty());
        parts.map(move |part| Steps { each: &self.each[part], last_line: self.last_line })
    }
}

fn last_line(steps: &[(usize, usize)]) -> usize {
    steps.iter().map(|(_, line)| *line).max().unwrap_or(0)
}

/// Where 16 rows are read from and their transposed lines go to.
pub(crate) struct Strip<'a> {
    /// Element `j` of row `i` is `src[i * row_stride + j]`.
    pub(crate) src: &'a [f32],
    /// Distance between the 16 rows.
    pub(crate) row_stride: usize,
    /// What is added to the elements, before they are scaled.
    pub(crate) product: Option<Product<'a>>,
    /// A factor for each row.
    pub(crate) scale: Option<&'a [f32; 16]>,
    /// Line `l` is the 16 floats at `dst[l * line_stride]`.
    pub(crate) dst: &'a mut [f32],
    /// Distance between lines.
    pub(crate) line_stride: usize,
    /// Write past the caches: right for an output larger than they are, which then need not be read before it is written.
    pub(crate) stream: bool,
}

/// A product of two thin matrices, in the place of the 16 rows: element `j` of row `i` is the sum of
/// `up[r][i] * down[r * cols + j]` over `r`, in that order.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    /// For each step of the rank the factors of the 16 rows.
    pub(crate) up: &'a [[f32; 16]],
    /// For each step of the rank a row of `cols` factors.
    pub(crate) down: &'a [f32],
    /// Distance between the rows of `down`.
    pub(crate) cols: usize,
}

/// Writes element `j` of all 16 rows to line `l` for every step `(j, l)`. There must be a multiple of 16 of them.
///
/// # Panics
///
/// If there is not, or the lines of the steps, or of those that they are a part of, reach beyond the slices.
pub(crate) fn transpose_strip(isa: Isa, strip: Strip<'_>, Steps { each: steps, last_line }: Steps<'_>) {
    assert!(steps.len().is_multiple_of(16));
    let Some((last, _)) = steps.last() else { return };
    assert!(15 * strip.row_stride + last < strip.src.len());
    assert!(last_line * strip.line_stride + 16 <= strip.dst.len());
    assert!(strip.product.is_none_or(|p| p.up.len().saturating_sub(1) * p.cols + last < p.down.len()));
    match isa.verified() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => {
            // SAFETY: `verified` has found AVX-512 here; rows and lines are in bounds by the assertions, and `Steps` are
            // contiguous.
            unsafe { x86::avx512(strip, steps) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            // SAFETY: as above, with AVX2 and FMA.
            unsafe { x86::avx2(strip, steps) }
        }
        _ => portable(strip, steps),
    }
}

/// How many steps ahead the cache is warned: short pieces of long rows are not a stream that hardware would follow.
#[cfg(target_arch = "x86_64")]
const LINES_AHEAD: usize = 16;

/// Copies `width` floats from `src[j]` to `dst[l * line_stride]` for every step `(j, l)`, past the caches where whole aligned
/// lines allow it. For outputs larger than the caches.
///
/// # Panics
///
/// If a step reaches beyond the slices.
pub(crate) fn copy_lines_streaming(
    isa: Isa,
    src: &[f32],
    width: usize,
    dst: &mut [f32],
    line_stride: usize,
    steps: &[(usize, usize)],
) {
    let aligned = dst.as_ptr().addr().is_multiple_of(64);
    let whole = aligned && width.is_multiple_of(16) && line_stride.is_multiple_of(16);
    match isa.verified() {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2 if whole => {
            for (i, (j, l)) in steps.iter().enumerate() {
                let (from, to) = (&src[*j..][..width], &mut dst[l * line_stride..][..width]);
                let ahead = steps.get(i + LINES_AHEAD).map_or(from, |(j, _)| &src[*j..]);
                // SAFETY: `verified` has found at least AVX2; both are `width` floats, and `to` is whole lines.
                unsafe { x86::copy_line(from, to, ahead.as_ptr()) }
            }
            x86::fence();
        }
        _ => steps.iter().for_each(|(j, l)| dst[l * line_stride..][..width].copy_from_slice(&src[*j..][..width])),
    }
}

fn portable(strip: Strip<'_>, steps: &[(usize, usize)]) {
    for block in steps.chunks_exact(16) {
        let mut lines = [[0.0; 16]; 16];
        for i in 0..16 {
            let row: &[f32] = &strip.src[i * strip.row_stride + block[0].0..][..16];
            lines.iter_mut().zip(row).for_each(|(line, x)| line[i] = *x);
        }
        if let Some(product) = strip.product {
            for (line, (j, _)) in lines.iter_mut().zip(block) {
                let down = product.down.iter().skip(*j).step_by(product.cols);
                let mut sums = [0.0; 16];
                for (up, by) in product.up.iter().zip(down) {
                    sums.iter_mut().zip(up).for_each(|(sum, up)| *sum += up * by);
                }
                line.iter_mut().zip(sums).for_each(|(x, sum)| *x += sum);
            }
        }
        for (line, (_, l)) in lines.iter_mut().zip(block) {
            if let Some(scale) = strip.scale {
                line.iter_mut().zip(scale).for_each(|(x, s)| *x *= s);
            }
            strip.dst[l * strip.line_stride..][..16].copy_from_slice(line);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{arch::x86_64::*, array, mem::MaybeUninit};

    use super::{Product, Strip};

    /// Floats of a row that are read in one go. Rows are often a power of two apart, so that lines of different rows evict
    /// each other from the first-level cache; reading a stretch of one row at a time uses each line up at once.
    const STRETCH: usize = 64;

    /// A float that is written before it is read: setting it to zero first would cost narrow matrices a second pass.
    type Later = MaybeUninit<f32>;

    /// Stretches of 16 rows, side by side.
    #[repr(C, align(64))]
    struct Stretches([[Later; STRETCH]; 16]);

    /// A product for each step of a stretch.
    #[repr(C, align(64))]
    struct Sums([[Later; 16]; STRETCH]);

    fn buffers() -> (Stretches, Sums) {
        (Stretches([[Later::uninit(); STRETCH]; 16]), Sums([[Later::uninit(); 16]; STRETCH]))
    }

    /// Whether every line may be written with streaming stores, which want whole aligned cache lines.
    fn streams(strip: &Strip<'_>) -> bool {
        strip.stream && strip.dst.as_ptr().addr().is_multiple_of(64) && strip.line_stride.is_multiple_of(16)
    }

    /// Copies stretch `at` of the 16 rows next to each other and warns the cache of the one that follows: the next one of
    /// these rows or, after the last, the first one of the 16 rows after them, which are mostly packed next.
    #[inline(always)]
    fn gather(strip: &Strip<'_>, steps: &[(usize, usize)], at: usize, stretches: &mut Stretches) {
        let here = &steps[at..steps.len().min(at + STRETCH)];
        let first = here[0].0;
        let next = steps.get(at + STRETCH).map_or(16 * strip.row_stride + steps[0].0, |(j, _)| *j);
        for (i, stretch) in stretches.0.iter_mut().enumerate() {
            let row = &strip.src[i * strip.row_stride + first..][..here.len()];
            let ahead = strip.src.as_ptr().wrapping_add(i * strip.row_stride + next);
            for line in (0..STRETCH).step_by(16) {
                // SAFETY: prefetching has no effect but on caches, whatever the address.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(line).cast()) };
            }
            // Arrays, whose length the compiler knows: slices of 16 become calls of `memcpy`.
            for (to, from) in stretch.as_chunks_mut::<16>().0.iter_mut().zip(row.as_chunks::<16>().0) {
                // SAFETY: both are arrays of 16 floats.
                unsafe { to.as_mut_ptr().cast::<[f32; 16]>().write(*from) };
            }
        }
    }

    /// Copies `src` to `dst` and fetches as much from `ahead`.
    ///
    /// # Safety
    ///
    /// Needs AVX2, and slices of one length; `dst` must be whole cache lines.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn copy_line(src: &[f32], dst: &mut [f32], ahead: *const f32) {
        for at in (0..dst.len()).step_by(16) {
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(at).cast());
        }
        for at in (0..dst.len()).step_by(8) {
            // SAFETY: both slices hold 8 floats from `at`, a multiple of 8; `dst` starts on a cache line.
            unsafe { _mm256_stream_ps(dst.as_mut_ptr().add(at), _mm256_loadu_ps(src.as_ptr().add(at))) };
        }
    }

    /// Orders the streaming stores before it with what publishes the buffer.
    pub(super) fn fence() {
        // SAFETY: every x86-64 processor has SSE, and a fence touches no memory.
        unsafe { _mm_sfence() }
    }

    /// # Safety
    ///
    /// Needs AVX-512F and what [`transpose_strip`](super::transpose_strip) asserts.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512(strip: Strip<'_>, steps: &[(usize, usize)]) {
        let stream = streams(&strip);
        // SAFETY: an array of 16 floats.
        let scale = strip.scale.map(|s| unsafe { _mm512_loadu_ps(s.as_ptr()) });
        let (mut stretches, mut sums) = buffers();
        for at in (0..steps.len()).step_by(STRETCH) {
            gather(&strip, steps, at, &mut stretches);
            let steps = &steps[at..steps.len().min(at + STRETCH)];
            if let Some(product) = &strip.product {
                // SAFETY: the columns of these steps are in `down` by contract.
                unsafe { sums512(product, steps[0].0, &mut sums.0[..steps.len()]) };
            }
            for (b, block) in steps.as_chunks::<16>().0.iter().enumerate() {
                // SAFETY: block `b` lies within a stretch, since there are at most `STRETCH` steps, of which all were gathered.
                let rows = array::from_fn(|i| unsafe { _mm512_load_ps(stretches.0[i].as_ptr().add(16 * b).cast()) });
                // A loop of its own for each thing that is done: such the compiler unrolls, and keeps the lines in registers.
                let mut lines = transpose16(rows);
                if strip.product.is_some() {
                    for (line, sum) in lines.iter_mut().zip(&sums.0[16 * b..]) {
                        // SAFETY: a sum is an aligned line of 16 floats, written above where there is a product.
                        *line = _mm512_add_ps(*line, unsafe { _mm512_load_ps(sum.as_ptr().cast()) });
                    }
                }
                if let Some(scale) = scale {
                    for line in &mut lines {
                        *line = _mm512_mul_ps(*line, scale);
                    }
                }
                for (line, (_, l)) in lines.iter().zip(block) {
                    let to = strip.dst.as_mut_ptr().wrapping_add(l * strip.line_stride);
                    // SAFETY: line `l` is in bounds by contract, and aligned if `stream`.
                    unsafe { if stream { _mm512_stream_ps(to, *line) } else { _mm512_storeu_ps(to, *line) } }
                }
            }
        }
        if stream {
            fence();
        }
    }

    /// Writes elements `first ..` of a product, one line for each; eight at a time, as many independent sums as hide the
    /// latency of a multiply-add.
    ///
    /// # Safety
    ///
    /// Needs AVX-512F; every row of `down` must reach beyond `first` by a multiple of 8 lines, which there are.
    #[target_feature(enable = "avx512f")]
    unsafe fn sums512(product: &Product<'_>, first: usize, lines: &mut [[Later; 16]]) {
        for (group, lines) in lines.chunks_exact_mut(8).enumerate() {
            let mut sums = [_mm512_setzero_ps(); 8];
            let mut down = product.down.as_ptr().wrapping_add(first + 8 * group);
            for up in product.up {
                // SAFETY: an array of 16 floats.
                let up = unsafe { _mm512_loadu_ps(up.as_ptr()) };
                for (j, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: in bounds by contract.
                    let by = _mm512_set1_ps(unsafe { *down.add(j) });
                    *sum = _mm512_fmadd_ps(up, by, *sum);
                }
                down = down.wrapping_add(product.cols);
            }
            for (line, sum) in lines.iter_mut().zip(sums) {
                // SAFETY: an array of 16 floats.
                unsafe { _mm512_storeu_ps(line.as_mut_ptr().cast(), sum) };
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transpose16(r: [__m512; 16]) -> [__m512; 16] {
        // Interleave pairs of rows, then pairs of pairs: u[4 g + c] holds, in each 128-bit quarter q, column 4 q + c of
        // rows 4 g .. 4 g + 4.
        let t: [__m512; 16] = array::from_fn(|i| {
            let (a, b) = (r[i & !1], r[i | 1]);
            if i & 1 == 0 { _mm512_unpacklo_ps(a, b) } else { _mm512_unpackhi_ps(a, b) }
        });
        let u: [__m512; 16] = array::from_fn(|i| {
            let (group, c) = (i & !3, i & 3);
            let (a, b) = (_mm512_castps_pd(t[group + c / 2]), _mm512_castps_pd(t[group + 2 + c / 2]));
            _mm512_castpd_ps(if c & 1 == 0 { _mm512_unpacklo_pd(a, b) } else { _mm512_unpackhi_pd(a, b) })
        });
        // Then transpose the 4 x 4 quarters of u[c], u[4 + c], u[8 + c], u[12 + c].
        const EVEN: i32 = 0b10_00_10_00;
        const ODD: i32 = 0b11_01_11_01;
        let quarters: [[__m512; 4]; 4] = array::from_fn(|c| {
            let even =
                (_mm512_shuffle_f32x4::<EVEN>(u[c], u[4 + c]), _mm512_shuffle_f32x4::<EVEN>(u[8 + c], u[12 + c]));
            let odd = (_mm512_shuffle_f32x4::<ODD>(u[c], u[4 + c]), _mm512_shuffle_f32x4::<ODD>(u[8 + c], u[12 + c]));
            [
                _mm512_shuffle_f32x4::<EVEN>(even.0, even.1),
                _mm512_shuffle_f32x4::<EVEN>(odd.0, odd.1),
                _mm512_shuffle_f32x4::<ODD>(even.0, even.1),
                _mm512_shuffle_f32x4::<ODD>(odd.0, odd.1),
            ]
        });
        array::from_fn(|j| quarters[j & 3][j >> 2])
    }

    /// # Safety
    ///
    /// Needs AVX2 with FMA and what [`transpose_strip`](super::transpose_strip) asserts.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(strip: Strip<'_>, steps: &[(usize, usize)]) {
        let stream = streams(&strip);
        // SAFETY: an array of 16 floats, read in halves.
        let scale = strip.scale.map(|s| unsafe { [_mm256_loadu_ps(s.as_ptr()), _mm256_loadu_ps(s.as_ptr().add(8))] });
        let (mut stretches, mut sums) = buffers();
        for at in (0..steps.len()).step_by(STRETCH) {
            gather(&strip, steps, at, &mut stretches);
            let steps = &steps[at..steps.len().min(at + STRETCH)];
            if let Some(product) = &strip.product {
                // SAFETY: the columns of these steps are in `down` by contract.
                unsafe { sums256(product, steps[0].0, &mut sums.0[..steps.len()]) };
            }
            for (b, block) in steps.chunks_exact(8).enumerate() {
                let [left, right]: [[__m256; 8]; 2] = array::from_fn(|h| {
                    // SAFETY: block `b` lies within a stretch, since there are at most `STRETCH` steps, of which all were
                    // gathered.
                    let row = |i: usize| unsafe { _mm256_load_ps(stretches.0[8 * h + i].as_ptr().add(8 * b).cast()) };
                    transpose8(array::from_fn(row))
                });
                for (j, (_, l)) in block.iter().enumerate() {
                    for (h, half) in [left[j], right[j]].into_iter().enumerate() {
                        let sum = &sums.0[8 * b + j][8 * h..];
                        // SAFETY: half of a sum is 8 aligned floats, written above where there is a product.
                        let plus = |half| unsafe { _mm256_add_ps(half, _mm256_load_ps(sum.as_ptr().cast())) };
                        let half = if strip.product.is_some() { plus(half) } else { half };
                        let half = scale.map_or(half, |s| _mm256_mul_ps(half, s[h]));
                        let to = strip.dst.as_mut_ptr().wrapping_add(l * strip.line_stride + 8 * h);
                        // SAFETY: line `l` is in bounds by contract, and aligned if `stream`.
                        unsafe { if stream { _mm256_stream_ps(to, half) } else { _mm256_storeu_ps(to, half) } }
                    }
                }
            }
        }
        if stream {
            fence();
        }
    }

    /// As [`sums512`], four at a time in two halves.
    ///
    /// # Safety
    ///
    /// Needs AVX2 with FMA; every row of `down` must reach beyond `first` by a multiple of 4 lines, which there are.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn sums256(product: &Product<'_>, first: usize, lines: &mut [[Later; 16]]) {
        for (group, lines) in lines.chunks_exact_mut(4).enumerate() {
            let mut sums = [[_mm256_setzero_ps(); 2]; 4];
            let mut down = product.down.as_ptr().wrapping_add(first + 4 * group);
            for up in product.up {
                // SAFETY: an array of 16 floats, read in halves.
                let up = unsafe { [_mm256_loadu_ps(up.as_ptr()), _mm256_loadu_ps(up.as_ptr().add(8))] };
                for (j, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: in bounds by contract.
                    let by = _mm256_set1_ps(unsafe { *down.add(j) });
                    *sums = [_mm256_fmadd_ps(up[0], by, sums[0]), _mm256_fmadd_ps(up[1], by, sums[1])];
                }
                down = down.wrapping_add(product.cols);
            }
            for (line, [left, right]) in lines.iter_mut().zip(sums) {
                // SAFETY: an array of 16 floats, written in halves.
                unsafe {
                    _mm256_storeu_ps(line.as_mut_ptr().cast(), left);
                    _mm256_storeu_ps(line.as_mut_ptr().add(8).cast(), right);
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
        let half = |a: __m256, b: __m256, c: __m256, d: __m256| {
            let (ab, ab_hi) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd, cd_hi) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            [
                _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd),
                _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd),
                _mm256_shuffle_ps::<0b01_00_01_00>(ab_hi, cd_hi),
                _mm256_shuffle_ps::<0b11_10_11_10>(ab_hi, cd_hi),
            ]
        };
        let top = half(r[0], r[1], r[2], r[3]);
        let bottom = half(r[4], r[5], r[6], r[7]);
        array::from_fn(|c| {
            let (a, b) = (top[c & 3], bottom[c & 3]);
            if c < 4 { _mm256_permute2f128_ps::<0x20>(a, b) } else { _mm256_permute2f128_ps::<0x31>(a, b) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_isa_copies() {
        #[repr(align(64))]
        struct Aligned([f32; 64]);
        let src: [f32; 64] = std::array::from_fn(|i| i as f32);
        for (isa, width) in Isa::available().into_iter().flat_map(|isa| [(isa, 0), (isa, 16), (isa, 7)]) {
            let mut dst = Aligned([-1.0; 64]);
            copy_lines_streaming(isa, &src, width, &mut dst.0, 32, &[(3, 1), (40, 0)]);
            assert_eq!(dst.0[..width], src[40..][..width]);
            assert_eq!(dst.0[32..][..width], src[3..][..width]);
            assert!(dst.0[width..32].iter().chain(&dst.0[32 + width..]).all(|x| *x == -1.0));
        }
    }

    #[test]
    fn steps_are_cut_where_they_leap() {
        let runs = Runs::new(vec![(3, 0), (4, 9), (5, 2), (7, 1), (8, 4), (0, 3)]);
        let within = |range| runs.within(range).map(|run| (run.each().to_vec(), run.last_line)).collect::<Vec<_>>();
        assert_eq!(within(0..6), [(vec![(3, 0), (4, 9), (5, 2)], 9), (vec![(7, 1), (8, 4)], 9), (vec![(0, 3)], 9)]);
        assert_eq!(within(2..4), [(vec![(5, 2)], 9), (vec![(7, 1)], 9)]);
        assert!(within(3..3).is_empty() && Runs::new(vec![]).within(0..0).next().is_none());
    }

    #[test]
    #[should_panic(expected = "count upwards")]
    fn steps_that_leap_are_refused() {
        Steps::new(&[(0, 0), (2, 1)]);
    }

    #[test]
    fn every_isa_transposes() {
        let steps: Vec<(usize, usize)> = (0..32).map(|i| (3 + i, i * 5 % 32)).collect();
        let factors: [f32; 16] = std::array::from_fn(|i| i as f32 + 1.0);
        let up: [[f32; 16]; 3] = std::array::from_fn(|r| std::array::from_fn(|i| (r * 16 + i) as f32));
        let down: [f32; 3 * 40] = std::array::from_fn(|i| (i % 7) as f32 - 3.0);
        let sum = |i: usize, j: usize| (0..3).map(|r| up[r][i] * down[r * 40 + j]).sum::<f32>();
        for (isa, row_stride) in Isa::available().into_iter().flat_map(|isa| [(isa, 16), (isa, 35), (isa, 0)]) {
            let cases = [(None, 20, false), (Some(&factors), 20, true), (None, 32, true)];
            for ((scale, line_stride, stream), adds) in cases.into_iter().flat_map(|c| [(c, false), (c, true)]) {
                let src: Vec<f32> = (0..15 * row_stride + 35).map(|i| i as f32).collect();
                let mut dst = vec![0.0; 32 * line_stride];
                let product = adds.then_some(Product { up: &up, down: &down, cols: 40 });
                let strip = Strip { src: &src, row_stride, product, scale, dst: &mut dst, line_stride, stream };
                transpose_strip(isa, strip, Steps::new(&steps));
                for (j, l) in &steps {
                    for i in 0..16 {
                        let added = if adds { sum(i, *j) } else { 0.0 };
                        let want = (src[i * row_stride + j] + added) * scale.map_or(1.0, |s| s[i]);
                        assert_eq!(dst[l * line_stride + i], want, "{isa} stride {row_stride} at {i}, {j}");
                    }
                }
            }
        }
    }
}
