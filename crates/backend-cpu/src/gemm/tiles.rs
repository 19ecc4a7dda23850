//! Tiles (AMX): eight registers of 16 rows of 64 bytes, and instructions that multiply two of them and add to a third. What walks
//! along `k` is here; which rows and columns it takes is the business of the kernels.
//!
//! Rust has no stable intrinsics for tiles, so a walk is two blocks of assembly. The first one loads or clears sums and adds to them, the
//! second one stores them. Between the two sums outlive a block: the compiler has no use for tiles that it is not told of, and what
//! runs there, the end of the walk before, does nothing with tiles. The processor does both at once, as neither waits for the other.
//!
//! **State.** Tiles must be configured on the thread that uses them. [`Configured`] does so at the start of a task's part of a product
//! and releases them at its end, never for longer: threads belong to callers too, and another library (oneDNN, say) would find or
//! leave tiles of another shape; a forked child starts without tiles; and a thread with tiles in use costs the system 8 KiB more at
//! each switch. Against the tens of thousands of cycles of a task the two hundred of a configuration are nothing. It is the same for all
//! products, whole tiles: what rows, columns or `k` lack is filled up in memory, because another configuration would clear the sums.
//!
//! Where the processor has no tiles, tests of this crate run walks on a model of them.
#![allow(unsafe_code)]

use std::{arch::asm, marker::PhantomData, mem::offset_of, ptr};

use super::micro::TILE_ROWS as ROWS;
use crate::Isa;

/// Bytes of a row of a tile: so many of a row of `A`, or of a line of a panel.
pub(super) const ROW: usize = 64;

/// Columns of a tile of sums.
pub(super) const COLS: usize = 16;

/// Two tiles of rows, two of columns: a walk has their four sums in registers, which keeps the unit busier than it waits.
pub(super) const WALK_ROWS: usize = 2 * ROWS;

/// Columns of a walk.
pub(super) const WALK_COLS: usize = 2 * COLS;

/// Tiles are configured on this thread until this is dropped.
pub(super) struct Configured {
    /// It may not be dropped on another thread.
    thread: PhantomData<*const ()>,
}

/// A walk along `k`: up to two tiles of rows of `A` times two tiles of columns of a panel. A step is 64 bytes of each row and 16
/// lines of the panel.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Walk {
    /// 16 rows of 64 bytes for each step; the second is not read where `both` is zero.
    pub(super) a: [*const u8; 2],
    /// Bytes between rows.
    pub(super) a_stride: usize,
    /// 16 lines of 128 bytes for each step.
    pub(super) b: *const u8,
    /// Bytes between lines.
    pub(super) b_stride: usize,
    /// Whole steps.
    pub(super) steps: usize,
    /// A last step that is not whole: its rows and its columns, or null.
    pub(super) rest: [*const Pair; 2],
    /// The sums: 16 or 32 rows of 32 numbers of four bytes.
    pub(super) c: *mut u8,
    /// Bytes between rows of sums.
    pub(super) c_stride: usize,
    /// Sums of the same shape that are added to, or null.
    pub(super) before: *const u8,
    /// Bytes between rows of these.
    pub(super) before_stride: usize,
    /// Whether there are two tiles of rows.
    pub(super) both: usize,
    /// What is brought into the second-level cache on the way.
    pub(super) next: *const u8,
    /// Cache lines of it for each step.
    pub(super) lines: usize,
}

/// No last step.
pub(super) const NO_REST: [*const Pair; 2] = [ptr::null(); 2];

/// Two tiles for the last step of a walk, of rows or of columns, filled up with zeros.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub(super) struct Pair([[[u8; ROW]; ROWS]; 2]);

impl Pair {
    /// Nothing but zeros.
    pub(super) const ZEROS: Pair = Pair([[[0; ROW]; ROWS]; 2]);

    /// What is left of the panel behind the whole steps of a walk: `lines`, and of the last line only the first `keep` bytes of every four.
    ///
    /// # Safety
    ///
    /// The lines of `walk` go on for so long.
    pub(super) unsafe fn of_columns(walk: &Walk, lines: usize, keep: usize) -> Pair {
        assert!(lines <= ROWS);
        let (mut pair, start) = (Pair::ZEROS, walk.steps * ROWS * walk.b_stride);
        for (half, tile) in pair.0.iter_mut().enumerate() {
            for (i, line) in tile.iter_mut().take(lines).enumerate() {
                let from = walk.b.wrapping_add(start + i * walk.b_stride + half * ROW);
                // SAFETY: the panel has so many lines more, 128 bytes of each for this walk.
                *line = unsafe { from.cast::<[u8; ROW]>().read_unaligned() };
            }
            if let (Some(last), true) = (lines.checked_sub(1), keep < 4) {
                tile[last].as_chunks_mut::<4>().0.iter_mut().for_each(|four| four[keep..].fill(0));
            }
        }
        pair
    }

    /// Takes what is left of the rows of a walk, `bytes` of each; what it held before was as long.
    ///
    /// # Safety
    ///
    /// The rows of `walk` go on for so long.
    pub(super) unsafe fn set_rows(&mut self, walk: &Walk, bytes: usize) {
        assert!(bytes <= ROW);
        let a_start = walk.steps * ROW;
        for (tile, from) in self.0.iter_mut().zip(walk.a).take(1 + walk.both) {
            let from = from.wrapping_add(a_start);
            // SAFETY: the rows go on for so many bytes.
            unsafe {
                match bytes / PIECE {
                    0 => copy_rows::<0>(tile, from, walk.a_stride, bytes),
                    1 => copy_rows::<1>(tile, from, walk.a_stride, bytes),
                    2 => copy_rows::<2>(tile, from, walk.a_stride, bytes),
                    3 => copy_rows::<3>(tile, from, walk.a_stride, bytes),
                    _ => copy_rows::<4>(tile, from, walk.a_stride, bytes),
                }
            }
        }
    }
}

/// Bytes that are copied at once.
const PIECE: usize = 16;

/// Copies the beginnings of rows, `stride` bytes apart: `bytes` of each, which are `PIECES` whole pieces and perhaps some more. How many
/// pieces there are is known to the compiler, as a call for each row would take longer than the multiplication.
///
/// # Safety
///
/// All of it can be read, and is no more than a row of a tile.
unsafe fn copy_rows<const PIECES: usize>(tile: &mut [[u8; ROW]; ROWS], from: *const u8, stride: usize, bytes: usize) {
    debug_assert!(bytes / PIECE == PIECES && bytes <= ROW);
    for (i, row) in tile.iter_mut().enumerate() {
        let (from, to) = (from.wrapping_add(i * stride), row.as_mut_ptr());
        // SAFETY: by contract; the last piece ends where the bytes do, and overlaps the one before.
        unsafe {
            for piece in 0..PIECES {
                ptr::copy_nonoverlapping(from.add(piece * PIECE), to.add(piece * PIECE), PIECE);
            }
            match bytes % PIECE {
                0 => {}
                more if PIECES == 0 => ptr::copy_nonoverlapping(from, to, more),
                _ => ptr::copy_nonoverlapping(from.add(bytes - PIECE), to.add(bytes - PIECE), PIECE),
            }
        }
    }
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight whole tiles.
static WHOLE: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// A walk with `$multiply` as its instruction, but for the end: sums are left in tiles. These are: 0 and 1 the sums of the upper rows, 2 and
/// 3 those of the lower, 4 and 5 rows of `A`, 6 and 7 columns of the panel.
macro_rules! walk {
    ($multiply:literal, $walk:expr) => {
        asm!(
            // Sums.
            "mov {p}, [{w} + {BEFORE}]",
            "test {p}, {p}",
            "jz 2f",
            "mov {s}, [{w} + {BEFORE_STRIDE}]",
            "mov {q}, {s}",
            "shl {q}, 4",
            "add {q}, {p}",
            "tileloadd tmm0, [{p} + {s}*1]",
            "tileloadd tmm1, [{p} + {s}*1 + 64]",
            "cmp qword ptr [{w} + {BOTH}], 0",
            "je 3f",
            "tileloadd tmm2, [{q} + {s}*1]",
            "tileloadd tmm3, [{q} + {s}*1 + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "mov {p}, [{w} + {A}]",
            "mov {q}, [{w} + {A} + 8]",
            "mov {s}, [{w} + {A_STRIDE}]",
            "mov {b}, [{w} + {B}]",
            "mov {t}, [{w} + {B_STRIDE}]",
            "mov {u}, {t}",
            "shl {u}, 4",
            "mov {next}, [{w} + {NEXT}]",
            "mov {steps}, [{w} + {STEPS}]",
            "test {steps}, {steps}",
            "jz 7f",
            // Whole steps.
            "4:",
            "mov {n}, [{w} + {LINES}]",
            "5:",
            "sub {n}, 1",
            "jc 6f",
            "prefetcht1 [{next}]",
            "add {next}, 64",
            "jmp 5b",
            "6:",
            "tileloadd tmm4, [{p} + {s}*1]",
            "tileloadd tmm6, [{b} + {t}*1]",
            "tileloadd tmm7, [{b} + {t}*1 + 64]",
            concat!($multiply, " tmm0, tmm4, tmm6"),
            concat!($multiply, " tmm1, tmm4, tmm7"),
            "cmp qword ptr [{w} + {BOTH}], 0",
            "je 8f",
            "tileloadd tmm5, [{q} + {s}*1]",
            concat!($multiply, " tmm2, tmm5, tmm6"),
            concat!($multiply, " tmm3, tmm5, tmm7"),
            "add {q}, 64",
            "8:",
            "add {p}, 64",
            "add {b}, {u}",
            "sub {steps}, 1",
            "jnz 4b",
            // The last step.
            "7:",
            "mov {p}, [{w} + {REST}]",
            "test {p}, {p}",
            "jz 9f",
            "mov {q}, [{w} + {REST} + 8]",
            "mov {s}, 64",
            "tileloadd tmm4, [{p} + {s}*1]",
            "tileloadd tmm5, [{p} + {s}*1 + 1024]",
            "tileloadd tmm6, [{q} + {s}*1]",
            "tileloadd tmm7, [{q} + {s}*1 + 1024]",
            concat!($multiply, " tmm0, tmm4, tmm6"),
            concat!($multiply, " tmm1, tmm4, tmm7"),
            concat!($multiply, " tmm2, tmm5, tmm6"),
            concat!($multiply, " tmm3, tmm5, tmm7"),
            "9:",
            w = in(reg) ptr::from_ref::<Walk>($walk),
            p = out(reg) _,
            q = out(reg) _,
            s = out(reg) _,
            b = out(reg) _,
            t = out(reg) _,
            u = out(reg) _,
            n = out(reg) _,
            next = out(reg) _,
            steps = out(reg) _,
            A = const offset_of!(Walk, a),
            A_STRIDE = const offset_of!(Walk, a_stride),
            B = const offset_of!(Walk, b),
            B_STRIDE = const offset_of!(Walk, b_stride),
            STEPS = const offset_of!(Walk, steps),
            REST = const offset_of!(Walk, rest),
            BEFORE = const offset_of!(Walk, before),
            BEFORE_STRIDE = const offset_of!(Walk, before_stride),
            BOTH = const offset_of!(Walk, both),
            NEXT = const offset_of!(Walk, next),
            LINES = const offset_of!(Walk, lines),
            out("tmm0") _,
            out("tmm1") _,
            out("tmm2") _,
            out("tmm3") _,
            out("tmm4") _,
            out("tmm5") _,
            out("tmm6") _,
            out("tmm7") _,
            options(nostack),
        )
    };
}

/// Configures the tiles of this thread.
pub(super) fn configure() -> Configured {
    Isa::Amx.verified();
    #[cfg(test)]
    if !tests::has_tiles() {
        return Configured { thread: PhantomData };
    }
    // SAFETY: the processor has tiles of this shape, and the process may use them. Nothing of Rust is kept in tiles.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(nostack, readonly, preserves_flags)) };
    Configured { thread: PhantomData }
}

impl Drop for Configured {
    fn drop(&mut self) {
        #[cfg(test)]
        if !tests::has_tiles() {
            return;
        }
        // SAFETY: the thread has configured tiles, and its walks are over.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Adds products of pairs of bfloat16; [`store`] stores the sums. Nothing else may be done with tiles before that.
///
/// # Safety
///
/// Tiles are configured on this thread, and the pointers of `walk` are what they are said to be.
pub(super) unsafe fn bf16(walk: &Walk) {
    #[cfg(test)]
    if !tests::has_tiles() {
        return;
    }
    // SAFETY: what is read is what the fields of `walk` say, by contract.
    unsafe { walk!("tdpbf16ps", walk) };
}

/// Stores the sums of [`bf16`], whose walk this was.
///
/// # Safety
///
/// As of [`bf16`].
pub(super) unsafe fn store(walk: &Walk) {
    #[cfg(test)]
    if !tests::has_tiles() {
        // SAFETY: the caller's.
        return unsafe { tests::bf16(walk) };
    }
    // SAFETY: what is written is what the fields of `walk` say, by contract.
    unsafe {
        asm!(
            "mov {p}, [{w} + {C}]",
            "mov {s}, [{w} + {C_STRIDE}]",
            "mov {q}, {s}",
            "shl {q}, 4",
            "add {q}, {p}",
            "tilestored [{p} + {s}*1], tmm0",
            "tilestored [{p} + {s}*1 + 64], tmm1",
            "cmp qword ptr [{w} + {BOTH}], 0",
            "je 2f",
            "tilestored [{q} + {s}*1], tmm2",
            "tilestored [{q} + {s}*1 + 64], tmm3",
            "2:",
            w = in(reg) ptr::from_ref::<Walk>(walk),
            p = out(reg) _,
            q = out(reg) _,
            s = out(reg) _,
            C = const offset_of!(Walk, c),
            C_STRIDE = const offset_of!(Walk, c_stride),
            BOTH = const offset_of!(Walk, both),
            options(nostack),
        )
    };
}

/// Adds products of fours of signed bytes.
///
/// # Safety
///
/// As of [`bf16`].
pub(super) unsafe fn int8(walk: &Walk) {
    #[cfg(test)]
    if !tests::has_tiles() {
        // SAFETY: the caller's.
        return unsafe { tests::int8(walk) };
    }
    // SAFETY: as above.
    unsafe {
        walk!("tdpbssd", walk);
        store(walk);
    }
}

#[cfg(test)]
#[path = "tiles_tests.rs"]
pub(super) mod tests;
