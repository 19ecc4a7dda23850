//! Whether this process may multiply tiles.
//!
//! Tiles are 8 KiB of registers for each thread, which Linux keeps from a process until it asks for them. A process asks once, for all
//! its threads and for children that it forks, and cannot give them back. What changes by it is the room that the system needs to
//! deliver a signal: it refuses while a thread has an alternate stack too small for that, and later refuses such stacks. So nothing
//! asks before a device of this backend is made, and nothing fails when the answer is no: kernels without tiles are used then.

use std::arch::x86_64::{__cpuid_count, CpuidResult};

/// Whether the processor multiplies tiles and the system lets this process use them; asks for that.
pub(super) fn is_usable() -> bool {
    has_instructions() && has_tiles() && is_permitted()
}

#[allow(unused_unsafe, reason = "the function is safe in newer versions of Rust")]
fn cpuid(leaf: u32, part: u32) -> CpuidResult {
    // SAFETY: x86-64 has the instruction.
    unsafe { __cpuid_count(leaf, part) }
}

/// AMX-TILE, AMX-BF16 and AMX-INT8.
fn has_instructions() -> bool {
    let wanted = 1 << 22 | 1 << 24 | 1 << 25;
    cpuid(0, 0).eax >= 0x1d && cpuid(7, 0).edx & wanted == wanted
}

/// Whether tiles are what the kernels configure: eight of 16 rows of 64 bytes, in palette 1.
fn has_tiles() -> bool {
    if cpuid(0x1d, 0).eax < 1 {
        return false;
    }
    let palette = cpuid(0x1d, 1);
    let (tile_bytes, row_bytes, names, rows) =
        (palette.eax >> 16, palette.ebx & 0xffff, palette.ebx >> 16, palette.ecx & 0xffff);
    tile_bytes == 1024 && row_bytes == 64 && names == 8 && rows == 16
}

/// Asks the system for the state of tiles.
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and touches no memory of ours; kernels that do not know it return an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}
