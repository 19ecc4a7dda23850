//! A model of the unit that multiplies tiles, as its manual describes it.

use super::*;

/// Whether the processor has tiles.
pub(super) fn has_tiles() -> bool {
    Isa::detect() >= Isa::Amx
}

/// Zero for a subnormal number.
#[inline(always)]
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x }
}

/// `a * b + c` as the unit computes it.
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    flushed(flushed(a).mul_add(flushed(b), flushed(c)))
}

/// What an instruction makes of a sum and pairs of bfloat16, those of even and odd steps of a row and a column.
pub(in crate::gemm) fn added(sum: f32, pairs: impl Iterator<Item = ([f32; 2], [f32; 2])>) -> f32 {
    let [even, odd] = pairs.fold([0f32; 2], |acc, (a, b)| std::array::from_fn(|i| fused(a[i], b[i], acc[i])));
    flushed(flushed(sum) + flushed(even + odd))
}

/// A row of a tile.
type Row = [u8; ROW];

/// The same of pairs, for all sums of a row.
#[inline(always)]
fn add_pairs(sums: &mut [u32; COLS], a: &Row, b: &[Row; ROWS]) {
    let number = |bytes: &[u8]| f32::from_bits(u32::from(bytes[0]) << 16 | u32::from(bytes[1]) << 24);
    let mut acc = [[0f32; COLS]; 2];
    for (a, b) in a.as_chunks::<4>().0.iter().zip(b) {
        for (half, acc) in acc.iter_mut().enumerate() {
            let a = number(&a[2 * half..]);
            let b: [f32; COLS] = std::array::from_fn(|n| number(&b[4 * n + 2 * half..]));
            acc.iter_mut().zip(b).for_each(|(acc, b)| *acc = fused(a, b, *acc));
        }
    }
    for (n, sum) in sums.iter_mut().enumerate() {
        *sum = flushed(flushed(f32::from_bits(*sum)) + flushed(acc[0][n] + acc[1][n])).to_bits();
    }
}

/// Adds products of fours of signed bytes.
#[inline(always)]
fn add_fours(sums: &mut [u32; COLS], a: &Row, b: &[Row; ROWS]) {
    for (a, b) in a.as_chunks::<4>().0.iter().zip(b) {
        for (sum, b) in sums.iter_mut().zip(b.as_chunks::<4>().0) {
            let product: i32 = a.iter().zip(b).map(|(a, b)| i32::from(*a as i8) * i32::from(*b as i8)).sum();
            *sum = sum.wrapping_add(product as u32);
        }
    }
}

/// The bytes of a row of a tile.
#[inline(always)]
unsafe fn row(from: *const u8, stride: usize, i: usize) -> Row {
    // SAFETY: the caller's.
    unsafe { from.wrapping_add(i * stride).cast::<Row>().read_unaligned() }
}

#[inline(always)]
unsafe fn walk(walk: &Walk, add: impl Fn(&mut [u32; COLS], &Row, &[Row; ROWS])) {
    let multiply = |c: *mut u8, a: (*const u8, usize), b: (*const u8, usize)| {
        // SAFETY: the caller's.
        unsafe {
            let b: [Row; ROWS] = std::array::from_fn(|i| row(b.0, b.1, i));
            for r in 0..ROWS {
                let to = c.wrapping_add(r * walk.c_stride).cast::<[u32; COLS]>();
                let mut sums = to.read_unaligned();
                add(&mut sums, &row(a.0, a.1, r), &b);
                to.write_unaligned(sums);
            }
        }
    };
    for (i, a) in walk.a.into_iter().enumerate().take(1 + walk.both) {
        for half in 0..2 {
            let c = walk.c.wrapping_add(i * ROWS * walk.c_stride + half * ROW);
            let before = walk.before.wrapping_add(i * ROWS * walk.before_stride + half * ROW);
            for r in 0..ROWS {
                // SAFETY: the caller's.
                unsafe {
                    let row = if walk.before.is_null() { [0; ROW] } else { row(before, walk.before_stride, r) };
                    c.wrapping_add(r * walk.c_stride).cast::<Row>().write_unaligned(row);
                }
            }
            for step in 0..walk.steps {
                let b = walk.b.wrapping_add(step * ROWS * walk.b_stride + half * ROW);
                multiply(c, (a.wrapping_add(step * ROW), walk.a_stride), (b, walk.b_stride));
            }
            // SAFETY: the caller's.
            if let [Some(rows), Some(columns)] = walk.rest.map(|pair| unsafe { pair.as_ref() }) {
                multiply(c, (rows.0[i].as_ptr().cast(), ROW), (columns.0[half].as_ptr().cast(), ROW));
            }
        }
    }
}

/// As [`super::bf16`], in plain Rust. Only a machine with AVX-512 stands in for one with tiles.
#[target_feature(enable = "avx512f,fma")]
pub(super) unsafe fn bf16(job: &Walk) {
    // SAFETY: the caller's.
    unsafe { walk(job, add_pairs) };
}

/// As [`super::int8`], in plain Rust.
#[target_feature(enable = "avx512f,fma")]
pub(super) unsafe fn int8(job: &Walk) {
    // SAFETY: the caller's.
    unsafe { walk(job, add_fours) };
}

/// The sums of a walk over `a` and `b`, both of `steps` whole steps, added to `c`.
fn sums(walk: unsafe fn(&Walk), a: &[u8], b: &[u8], c: &[u32], both: bool, accumulate: bool) -> Vec<u32> {
    let (steps, from, mut c) = (a.len() / WALK_ROWS / ROW, c, c.to_vec());
    let (a_stride, rows) = (steps * ROW, if both { WALK_ROWS } else { ROWS });
    assert!(b.len() == steps * ROWS * 2 * ROW && c.len() == WALK_ROWS * WALK_COLS && a.len() == WALK_ROWS * a_stride);
    let job = Walk {
        a: [a.as_ptr(), a.as_ptr().wrapping_add((rows - ROWS) * a_stride)],
        a_stride,
        b: b.as_ptr(),
        b_stride: 2 * ROW,
        steps,
        rest: NO_REST,
        c: c.as_mut_ptr().cast(),
        c_stride: WALK_COLS * 4,
        before: if accumulate { from.as_ptr().cast() } else { ptr::null() },
        before_stride: WALK_COLS * 4,
        both: both.into(),
        next: b.as_ptr(),
        lines: 3,
    };
    // SAFETY: the caller has configured tiles; the lengths are those of the walk.
    unsafe { walk(&job) };
    c
}

/// A walk of bfloat16 by the processor.
unsafe fn processor(walk: &Walk) {
    // SAFETY: the caller's.
    unsafe {
        super::bf16(walk);
        store(walk);
    }
}

/// Numbers without a pattern.
fn scrambled(len: usize, seed: u32) -> impl Iterator<Item = u32> {
    let mut x = seed | 1;
    (0..len).map(move |_| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x
    })
}

/// What the processor computes is what the model does, bit for bit: also of numbers that are subnormal, infinite or none.
#[test]
fn the_processor_does_as_the_model() {
    if !has_tiles() {
        eprintln!("skipped: this machine has no AMX");
        return;
    }
    let _configured = configure();
    for (seed, (both, accumulate)) in
        (1..200).zip([(true, true), (true, false), (false, true), (false, false)].into_iter().cycle())
    {
        let steps = seed as usize % 5;
        // Exponents about that of one, and for every third walk any.
        let half = |x: u32| if seed % 3 == 0 { x as u16 } else { (x as u16 & 0x83ff) | 0x3c00 };
        let halves = |len, seed| scrambled(len / 2, seed).flat_map(|x| half(x).to_le_bytes()).collect::<Vec<u8>>();
        let (a, b) = (halves(WALK_ROWS * ROW * steps, seed), halves(ROWS * 2 * ROW * steps, seed + 1000));
        let c: Vec<u32> = scrambled(WALK_ROWS * WALK_COLS, seed + 2000)
            .map(|x| if seed % 3 == 0 { x } else { (x & 0x83ff_ffff) | 0x3c00_0000 })
            .collect();
        let [ours, model] = [processor as unsafe fn(&Walk), bf16].map(|walk| sums(walk, &a, &b, &c, both, accumulate));
        for (i, (ours, model)) in ours.iter().zip(&model).enumerate() {
            let (x, y) = (f32::from_bits(*ours), f32::from_bits(*model));
            assert!(ours == model || (x.is_nan() && y.is_nan()), "walk {seed}, sum {i}: {x:e} for {y:e}");
        }
        let [ours, model] =
            [super::int8 as unsafe fn(&Walk), int8].map(|walk| sums(walk, &a, &b, &c, both, accumulate));
        assert!(ours == model, "walk {seed}: other sums of bytes");
    }
}

/// A rest is what is left of rows and lines, and zeros.
#[test]
fn a_rest_is_filled_up_with_zeros() {
    let (a, b) = (vec![1u8; WALK_ROWS * 80], vec![2u8; 20 * 256]);
    let mut walk = Walk {
        a: [a.as_ptr(), a.as_ptr().wrapping_add(ROWS * 80)],
        a_stride: 80,
        b: b.as_ptr(),
        b_stride: 256,
        steps: 1,
        rest: NO_REST,
        c: ptr::null_mut(),
        c_stride: 0,
        before: ptr::null(),
        before_stride: 0,
        both: 1,
        next: ptr::null(),
        lines: 0,
    };
    // SAFETY: of rows of 80 bytes 16 are left, of 20 lines 4.
    let (mut rows, columns) = unsafe { (Pair::ZEROS, Pair::of_columns(&walk, 3, 2)) };
    // SAFETY: as above.
    unsafe { rows.set_rows(&walk, 10) };
    for tile in &rows.0 {
        assert!(tile.iter().all(|row| row[..10] == [1; 10] && row[10..] == [0; 54]));
    }
    for tile in &columns.0 {
        assert!(tile[..2].iter().all(|line| *line == [2; ROW]) && tile[3..].iter().all(|line| *line == [0; ROW]));
        assert!(tile[2].as_chunks::<4>().0.iter().all(|four| *four == [2, 2, 0, 0]));
    }
    walk.both = 0;
    // SAFETY: as above.
    let (mut rows, columns) = unsafe { (Pair::ZEROS, Pair::of_columns(&walk, 0, 2)) };
    // SAFETY: as above.
    unsafe { rows.set_rows(&walk, 10) };
    assert!(rows.0[1] == [[0; ROW]; ROWS] && columns.0 == [[[0; ROW]; ROWS]; 2]);
}
