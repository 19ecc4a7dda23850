//! The left operand: rows that are found by a stride or by offsets, checked once.

use std::ops::Range;

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

/// A row stride that is a multiple of this (2 KiB) lets rows collide.
const COLLIDING: usize = 512;

/// A run of steps of `k`: part of the only tap, or some whole taps.
#[derive(Clone, Debug)]
pub(super) struct KBlock {
    /// Which taps.
    pub(super) taps: Range<usize>,
    /// Which floats of each.
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

/// A left operand whose every row and tap is known to lie in its data.
pub(crate) struct Operand<'a> {
    a: &'a [f32],
    rows: Rows<'a>,
    m: usize,
    taps: usize,
    k_tap: usize,
    /// Zeros for taps longer than `ZEROS`.
    long_zeros: Vec<f32>,
}

impl<'a> Operand<'a> {
    /// `m` rows of `taps` taps of `k_tap` floats.
    ///
    /// # Panics
    ///
    /// If a tap reaches beyond `a`, or there is not one offset for each row and tap.
    pub(crate) fn new(a: &'a [f32], rows: Rows<'a>, m: usize, taps: usize, k_tap: usize) -> Self {
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
                let fits = |at: &u32| *at == Rows::ZERO || (*at as usize).saturating_add(k_tap) <= a.len();
                assert!(offsets.iter().all(fits), "an offset reaches beyond A");
                if k_tap > ZEROS.len() {
                    long_zeros = vec![0.0; k_tap];
                }
            }
        }
        Operand { a, rows, m, taps, k_tap, long_zeros }
    }

    /// Number of rows.
    pub(crate) fn m(&self) -> usize {
        self.m
    }

    /// Taps in a row.
    pub(crate) fn taps(&self) -> usize {
        self.taps
    }

    /// Floats in a tap.
    pub(crate) fn k_tap(&self) -> usize {
        self.k_tap
    }

    /// All steps of `k`.
    pub(super) fn whole(&self) -> KBlock {
        KBlock { taps: 0..self.taps, k: 0..self.k_tap, first: 0 }
    }

    /// Cuts `k` into runs of about `most` steps, as equal as taps allow.
    pub(super) fn k_blocks(&self, most: usize) -> impl Iterator<Item = KBlock> + use<> {
        let (taps, k_tap) = (self.taps, self.k_tap);
        let blocks = (taps * k_tap).div_ceil(most).clamp(1, if taps == 1 { usize::MAX } else { taps.max(1) });
        let cut = move |len: usize, i: usize| len * i / blocks;
        (0..blocks).map(move |i| {
            if taps == 1 {
                KBlock { taps: 0..1, k: cut(k_tap, i)..cut(k_tap, i + 1), first: cut(k_tap, i) }
            } else {
                KBlock { taps: cut(taps, i)..cut(taps, i + 1), k: 0..k_tap, first: cut(taps, i) * k_tap }
            }
        })
    }

    /// Whether neighbouring rows fall into so few sets of a first-level cache (64 sets, 8 ways) that those of one tile evict each
    /// other before their lines are used up.
    pub(super) fn rows_collide(&self) -> bool {
        let stride = match self.rows {
            Rows::Strided { lda } => lda,
            Rows::Indirect { offsets } => match (offsets.first(), offsets.get(self.taps)) {
                (Some(a), Some(b)) => a.abs_diff(*b) as usize,
                _ => return false,
            },
        };
        self.m > 1 && stride > 0 && stride.is_multiple_of(COLLIDING)
    }

    /// Copies `block` of `rows` next to each other into `scratch`, at a distance that does not collide, and returns that as an
    /// operand.
    pub(super) fn gather<'s>(&self, rows: Range<usize>, block: &KBlock, scratch: &'s mut Vec<f32>) -> Operand<'s> {
        let (m, k) = (rows.len(), block.len());
        let lda = k.next_multiple_of(COLLIDING) + 16;
        scratch.resize(scratch.len().max(m * lda), 0.0);
        for (row, out) in rows.zip(scratch.chunks_exact_mut(lda)) {
            for (tap, out) in block.taps.clone().zip(out.chunks_exact_mut(block.k.len().max(1))) {
                out.copy_from_slice(&self.tap(row, tap)[block.k.clone()]);
            }
        }
        Operand::new(scratch, Rows::Strided { lda }, m, 1, k)
    }

    /// A tap as a slice.
    fn tap(&self, row: usize, tap: usize) -> &[f32] {
        match self.rows {
            Rows::Strided { lda } => &self.a[row * lda..][..self.k_tap],
            Rows::Indirect { offsets } => match offsets[row * self.taps + tap] {
                Rows::ZERO if self.k_tap > ZEROS.len() => &self.long_zeros,
                Rows::ZERO => &ZEROS[..self.k_tap],
                at => &self.a[at as usize..][..self.k_tap],
            },
        }
    }

    /// The start of a tap: valid for `k_tap` floats if `row < m` and `tap < taps`.
    #[inline(always)]
    pub(super) fn tap_ptr(&self, row: usize, tap: usize) -> *const f32 {
        debug_assert!(row < self.m && tap < self.taps);
        match self.rows {
            Rows::Strided { lda } => self.a.as_ptr().wrapping_add(row * lda),
            Rows::Indirect { offsets } => match offsets[row * self.taps + tap] {
                Rows::ZERO if self.k_tap > ZEROS.len() => self.long_zeros.as_ptr(),
                Rows::ZERO => ZEROS.as_ptr(),
                at => self.a.as_ptr().wrapping_add(at as usize),
            },
        }
    }
}
