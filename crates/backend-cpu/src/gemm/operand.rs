//! The left operand: rows that are found by a stride or by offsets, checked once.

use std::{array, ops::Range};

use super::micro::{LINE, TILE_ROWS};
use crate::{
    Isa,
    simd::{FloatType, Floats},
};

/// How the rows of `A` are found.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// Row `i` starts at `i * lda`. One tap.
    Strided {
        /// Distance between rows.
        lda: usize,
    },
    /// Tap `t` of row `i` starts at `offsets[i * taps + t]`; [`Rows::ZERO`] stands for zeros.
    Indirect {
        /// One offset for each row and tap.
        offsets: &'a [u32],
    },
}

impl Rows<'_> {
    /// The offset of a tap that reads zeros.
    pub const ZERO: u32 = u32::MAX;
}

/// What taps in the padding read. Longer taps get a row of their own.
static ZEROS: [f32; 4096] = [0.0; 4096];

/// Bytes of [`ZEROS`].
const ZERO_BYTES: usize = size_of::<[f32; 4096]>();

/// A row stride of a multiple of so many bytes lets rows collide.
const COLLIDING: usize = 2048;

/// Where `k` may be cut into runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Steps before the next panel's turn: what is read of `A` and of the panel then fits into the second-level cache, or for tiles,
    /// which read faster, much of it into the first-level cache.
    pub(super) most: usize,
    /// Runs start at multiples of this, a power of two.
    pub(super) at: usize,
}

impl Cut {
    /// For kernels that take steps one by one.
    pub(super) const ANYWHERE: Cut = Cut { most: 1024, at: 1 };
    /// For pairs of bfloat16.
    pub(super) const PAIRS: Cut = Cut { most: 1024, at: 2 };
    /// For tiles of pairs.
    pub(super) const TILES: Cut = Cut { most: 640, at: 32 };
}

/// A run of steps of `k`: part of the only tap, or some whole taps.
#[derive(Clone, Debug)]
pub(super) struct KBlock {
    /// Which taps.
    pub(super) taps: Range<usize>,
    /// Which elements of each.
    pub(super) k: Range<usize>,
    /// The steps before.
    pub(super) first: usize,
}

impl KBlock {
    /// How many steps.
    pub(super) fn len(&self) -> usize {
        self.taps.len() * self.k.len()
    }
}

/// Cuts `k` into runs of about as many steps as `cut` says, as equal as taps allow. Of several taps they are whole taps.
pub(super) fn k_blocks(taps: usize, k_tap: usize, cut: Cut) -> impl Iterator<Item = KBlock> {
    let blocks = (taps * k_tap).div_ceil(cut.most).clamp(1, if taps == 1 { usize::MAX } else { taps.max(1) });
    // As a power of two, it is a multiple of what it has in common with the length of a tap.
    let at = if taps == 1 { cut.at } else { cut.at >> k_tap.trailing_zeros().min(cut.at.trailing_zeros()) };
    let cut = move |len: usize, i: usize| {
        let even = len * i / blocks;
        if i < blocks { even / at * at } else { even }
    };
    let blocks = (0..blocks).map(move |i| {
        if taps == 1 {
            KBlock { taps: 0..1, k: cut(k_tap, i)..cut(k_tap, i + 1), first: cut(k_tap, i) }
        } else {
            KBlock { taps: cut(taps, i)..cut(taps, i + 1), k: 0..k_tap, first: cut(taps, i) * k_tap }
        }
    });
    // Rounding can leave the first of very few with none.
    blocks.filter(move |block| block.len() > 0 || taps * k_tap == 0)
}

/// Distance between rows that were copied next to each other: it does not collide.
fn gathered_stride(k: usize, size: usize) -> usize {
    (k * size).next_multiple_of(COLLIDING) / size + 64 / size
}

/// A left operand whose every row and tap is known to lie in its data.
pub(crate) struct Operand<'a> {
    a: Floats<'a>,
    bytes: &'a [u8],
    size: usize,
    rows: Rows<'a>,
    m: usize,
    taps: usize,
    k_tap: usize,
    /// Zeros for taps longer than `ZEROS`.
    long_zeros: Vec<f32>,
}

impl<'a> Operand<'a> {
    /// `m` rows of `taps` taps of `k_tap` elements.
    ///
    /// # Panics
    ///
    /// If a tap reaches beyond `a`, or there is not one offset for each row and tap.
    pub(crate) fn new(a: Floats<'a>, rows: Rows<'a>, m: usize, taps: usize, k_tap: usize) -> Self {
        let mut long_zeros = Vec::new();
        match rows {
            _ if m == 0 || taps * k_tap == 0 => {}
            Rows::Strided { lda } => {
                assert_eq!(taps, 1, "strided rows have one tap");
                let end = (m - 1).checked_mul(lda).and_then(|last| last.checked_add(k_tap));
                assert!(end.is_some_and(|end| end <= a.len()), "A is too short for {m} rows of {k_tap}, {lda} apart");
            }
            Rows::Indirect { offsets } => {
                assert_eq!(Some(offsets.len()), m.checked_mul(taps), "one offset for each row and tap");
                // One more than the largest offset: that of zeros wraps around. This is cheaper than to look at each.
                let beyond = offsets.iter().fold(0, |most: u32, at| most.max(at.wrapping_add(1)));
                let fits = beyond == 0 || (beyond as usize - 1).saturating_add(k_tap) <= a.len();
                assert!(fits, "an offset reaches beyond A");
                if k_tap * size_of::<f32>() > ZERO_BYTES {
                    long_zeros = vec![0.0; k_tap];
                }
            }
        }
        Operand { a, bytes: a.bytes(), size: a.ty().size(), rows, m, taps, k_tap, long_zeros }
    }

    /// Element type.
    pub(crate) fn ty(&self) -> FloatType {
        self.a.ty()
    }

    /// Number of rows.
    pub(crate) fn m(&self) -> usize {
        self.m
    }

    /// Taps in a row.
    pub(crate) fn taps(&self) -> usize {
        self.taps
    }

    /// Elements in a tap.
    pub(crate) fn k_tap(&self) -> usize {
        self.k_tap
    }

    /// All steps of `k`.
    pub(super) fn whole(&self) -> KBlock {
        KBlock { taps: 0..self.taps, k: 0..self.k_tap, first: 0 }
    }

    /// Elements between rows, if all are equally far apart.
    pub(super) fn stride(&self) -> Option<usize> {
        match self.rows {
            Rows::Strided { lda } => Some(lda),
            Rows::Indirect { .. } => None,
        }
    }

    /// Whether neighboring rows fall into so few sets of a first-level cache (64 sets, 8 ways) that those of one tile evict each
    /// other before their lines are used up.
    pub(super) fn rows_collide(&self) -> bool {
        let stride = match self.rows {
            Rows::Strided { lda } => lda,
            Rows::Indirect { offsets } => match (offsets.first(), offsets.get(self.taps)) {
                (Some(a), Some(b)) => a.abs_diff(*b) as usize,
                _ => return false,
            },
        };
        self.m > 1 && stride > 0 && (stride * self.size).is_multiple_of(COLLIDING)
    }

    /// Copies `block` of `rows` next to each other into `scratch`, in their own type if that is `ty` and otherwise as f32, at a
    /// distance that does not collide, and returns that as an operand: of `least` rows, where there are fewer. The last of those hold
    /// anything.
    ///
    /// # Panics
    ///
    /// If `scratch` is shorter than [`gathered_bytes`].
    pub(super) fn gather<'s>(
        &self,
        isa: Isa,
        rows: Range<usize>,
        block: &KBlock,
        ty: FloatType,
        least: usize,
        scratch: &'s mut [u8],
    ) -> Operand<'s> {
        let (m, k) = (rows.len().max(least), block.len());
        let lda = gathered_stride(k, ty.size());
        let scratch = &mut scratch[..m * lda * ty.size()];
        if ty == self.ty() {
            let width = block.k.len() * self.size;
            for (row, out) in rows.zip(scratch.chunks_exact_mut(lda * self.size)) {
                for (i, tap) in block.taps.clone().enumerate() {
                    copy(&self.bytes_from(row, tap)[block.k.start * self.size..], &mut out[i * width..], width);
                }
            }
        } else {
            assert_eq!(ty, FloatType::F32, "what is converted is widened");
            let floats: &mut [f32] = if scratch.is_empty() { &mut [] } else { bytemuck::cast_slice_mut(scratch) };
            for (row, out) in rows.zip(floats.chunks_exact_mut(lda)) {
                for (tap, out) in block.taps.clone().zip(out.chunks_exact_mut(block.k.len().max(1))) {
                    // A row without elements has chunks all the same.
                    let out = &mut out[..block.k.len()];
                    match self.tap_start(row, tap) {
                        Some(at) => self.a.load(isa, at + block.k.start, out),
                        None => out.fill(0.0),
                    }
                }
            }
        }
        Operand::new(Floats::of_bytes(ty, scratch), Rows::Strided { lda }, m, 1, k)
    }

    /// The first element of a tap, unless it reads zeros.
    #[inline(always)]
    fn tap_start(&self, row: usize, tap: usize) -> Option<usize> {
        match self.rows {
            Rows::Strided { lda } => Some(row * lda),
            Rows::Indirect { offsets } => match offsets[row * self.taps + tap] {
                Rows::ZERO => None,
                at => Some(at as usize),
            },
        }
    }

    /// What taps in the padding read.
    fn zeros(&self) -> &[u8] {
        if self.long_zeros.is_empty() { bytemuck::cast_slice(&ZEROS) } else { bytemuck::cast_slice(&self.long_zeros) }
    }

    /// The bytes of a tap, and what stands behind them.
    #[inline(always)]
    fn bytes_from(&self, row: usize, tap: usize) -> &[u8] {
        match self.tap_start(row, tap) {
            Some(at) => &self.bytes[at * self.size..],
            None => self.zeros(),
        }
    }

    /// The start of a tap: valid for `k_tap` elements of the operand's type if `row < m` and `tap < taps`.
    #[inline(always)]
    pub(super) fn tap_ptr(&self, row: usize, tap: usize) -> *const u8 {
        debug_assert!(row < self.m && tap < self.taps);
        match self.tap_start(row, tap) {
            Some(at) => self.bytes.as_ptr().wrapping_add(at * self.size),
            None => self.zeros().as_ptr(),
        }
    }

    /// The starts of a tap of `N` rows from `row` on, as by [`Operand::tap_ptr`].
    #[inline(always)]
    pub(super) fn tap_ptrs<const N: usize>(&self, row: usize, tap: usize) -> [*const u8; N] {
        match self.rows {
            Rows::Strided { lda } => {
                let (first, step) = (self.tap_ptr(row, tap), lda * self.size);
                array::from_fn(|r| first.wrapping_add(r * step))
            }
            Rows::Indirect { .. } => array::from_fn(|r| self.tap_ptr(row + r, tap)),
        }
    }
}

/// Copies the first `width` bytes, and where there is room the rest of the last cache line, too: most taps are a few lines, for which a call or
/// a choice of lengths would take longer than the copy. What is copied too far is overwritten by the next tap, or lies between rows.
#[inline(always)]
fn copy(from: &[u8], to: &mut [u8], width: usize) {
    let whole = width.next_multiple_of(LINE);
    match (from.get(..whole), to.get_mut(..whole)) {
        (Some(from), Some(to)) => {
            let ((from, _), (to, _)) = (from.as_chunks::<LINE>(), to.as_chunks_mut::<LINE>());
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
        _ => to[..width].copy_from_slice(&from[..width]),
    }
}

/// Bytes that [`Operand::gather`] needs for `rows` rows of runs of `k`, whatever their type and the kernel.
pub(crate) fn gathered_bytes(rows: usize, taps: usize, k_tap: usize) -> usize {
    let blocks = [Cut::ANYWHERE, Cut::PAIRS, Cut::TILES].into_iter().flat_map(|cut| k_blocks(taps, k_tap, cut));
    let longest = blocks.map(|block| block.len()).max().unwrap_or(0);
    rows.max(TILE_ROWS) * gathered_stride(longest, size_of::<f32>()) * size_of::<f32>()
}
