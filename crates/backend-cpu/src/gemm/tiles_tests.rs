//! A model of the unit that multiplies tiles, as its manual describes it.

use super::*;

/// Whether the processor has tiles.
pub(super) fn has_tiles() -> bool {
    Isa::detect() >= Isa::Amx
}

/// Zero for a subnormal number.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

/// `a * b + c` as the unit computes it.
pub(in crate::gemm) fn fused(a: f32, b: f32, c: f32) -> f32 {
    flushed(flushed(a).mul_add(flushed(b), flushed(c)))
}

/// What an instruction adds to a sum for pairs of bfloat16: `(x[even], x[odd])` of `A` and of the panel.
pub(in crate::gemm) fn added(sum: f32, pairs: impl Iterator<Item = ([f32; 2], [f32; 2])>) -> f32 {
    let [even, odd] = pairs.fold([0f32; 2], |acc, (a, b)| std::array::from_fn(|i| fused(a[i], b[i], acc[i])));
    flushed(flushed(sum) + flushed(even + odd))
}

/// The bytes of a row of a tile.
unsafe fn row(from: *const u8, stride: usize, i: usize) -> [u8; ROW] {
    // SAFETY: the caller's.
    unsafe { from.wrapping_add(i * stride).cast::<[u8; ROW]>().read_unaligned() }
}

/// Adds the product of a tile of `A` and one of a panel to a tile of sums.
unsafe fn multiply(
    c: (*mut u8, usize),
    a: (*const u8, usize),
    b: (*const u8, usize),
    add: fn(u32, &[u8; ROW], &[[u8; ROW]; ROWS], usize) -> u32,
) {
    // SAFETY: the caller's.
    unsafe {
        let b: [[u8; ROW]; ROWS] = std::array::from_fn(|i| row(b.0, b.1, i));
        for r in 0..ROWS {
            let a = row(a.0, a.1, r);
            for n in 0..COLS {
                let sum = c.0.wrapping_add(r * c.1 + 4 * n).cast::<u32>();
                sum.write_unaligned(add(sum.read_unaligned(), &a, &b, n));
            }
        }
    }
}

fn four(bytes: &[u8; ROW], at: usize) -> [u8; 4] {
    std::array::from_fn(|i| bytes[4 * at + i])
}

fn add_bf16(sum: u32, a: &[u8; ROW], b: &[[u8; ROW]; ROWS], n: usize) -> u32 {
    let pair = |four: [u8; 4]| [[four[0], four[1]], [four[2], four[3]]].map(|x| half::bf16::from_le_bytes(x).to_f32());
    added(f32::from_bits(sum), (0..ROWS).map(|k| (pair(four(a, k)), pair(four(&b[k], n))))).to_bits()
}

fn add_int8(sum: u32, a: &[u8; ROW], b: &[[u8; ROW]; ROWS], n: usize) -> u32 {
    let product = |k: usize| {
        let (a, b) = (four(a, k), four(&b[k], n));
        (0..4).map(|i| i32::from(a[i] as i8) * i32::from(b[i] as i8)).sum::<i32>()
    };
    (0..ROWS).map(product).fold(sum as i32, i32::wrapping_add) as u32
}

unsafe fn walk(walk: &Walk, add: fn(u32, &[u8; ROW], &[[u8; ROW]; ROWS], usize) -> u32) {
    // SAFETY: the caller's.
    unsafe {
        for (i, a) in walk.a.into_iter().enumerate().take(1 + walk.both) {
            for half in 0..2 {
                let c = walk.c.wrapping_add(i * ROWS * walk.c_stride + half * ROW);
                if walk.accumulate == 0 {
                    (0..ROWS).for_each(|r| c.wrapping_add(r * walk.c_stride).write_bytes(0, ROW));
                }
                for step in 0..walk.steps {
                    let b = walk.b.wrapping_add(step * ROWS * walk.b_stride + half * ROW);
                    let a = a.wrapping_add(step * ROW);
                    multiply((c, walk.c_stride), (a, walk.a_stride), (b, walk.b_stride), add);
                }
                if let Some(rest) = walk.rest.as_ref() {
                    let (a, b) = (rest.a[i].as_ptr().cast(), rest.b[half].as_ptr().cast());
                    multiply((c, walk.c_stride), (a, ROW), (b, ROW), add);
                }
            }
        }
    }
}

/// As [`super::bf16`], in plain Rust.
pub(super) unsafe fn bf16(job: &Walk) {
    // SAFETY: the caller's.
    unsafe { walk(job, add_bf16) };
}

/// As [`super::int8`], in plain Rust.
pub(super) unsafe fn int8(job: &Walk) {
    // SAFETY: the caller's.
    unsafe { walk(job, add_int8) };
}

/// The sums of a walk over `a` and `b`, both of `steps` whole steps, added to `c`.
fn sums(walk: unsafe fn(&Walk), a: &[u8], b: &[u8], c: &[u32], both: bool, accumulate: bool) -> Vec<u32> {
    let (steps, mut c) = (a.len() / WALK_ROWS / ROW, c.to_vec());
    let (a_stride, rows) = (steps * ROW, if both { WALK_ROWS } else { ROWS });
    assert!(b.len() == steps * ROWS * 2 * ROW && c.len() == WALK_ROWS * WALK_COLS && a.len() == WALK_ROWS * a_stride);
    let job = Walk {
        a: [a.as_ptr(), a.as_ptr().wrapping_add((rows - ROWS) * a_stride)],
        a_stride,
        b: b.as_ptr(),
        b_stride: 2 * ROW,
        steps,
        rest: ptr::null(),
        c: c.as_mut_ptr().cast(),
        c_stride: WALK_COLS * 4,
        accumulate: accumulate.into(),
        both: both.into(),
        next: b.as_ptr(),
        lines: 3,
    };
    // SAFETY: the caller has configured tiles; the lengths are those of the walk.
    unsafe { walk(&job) };
    c
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
        let [ours, model] =
            [super::bf16 as unsafe fn(&Walk), bf16].map(|walk| sums(walk, &a, &b, &c, both, accumulate));
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
        rest: ptr::null(),
        c: ptr::null_mut(),
        c_stride: 0,
        accumulate: 0,
        both: 1,
        next: ptr::null(),
        lines: 0,
    };
    // SAFETY: of rows of 80 bytes 16 are left, of 20 lines 4.
    let rest = unsafe { Rest::of(&walk, 10, 3, 2) };
    for tile in &rest.a {
        assert!(tile.iter().all(|row| row[..10] == [1; 10] && row[10..] == [0; 54]));
    }
    for tile in &rest.b {
        assert!(tile[..2].iter().all(|line| *line == [2; ROW]) && tile[3..].iter().all(|line| *line == [0; ROW]));
        assert!(tile[2].as_chunks::<4>().0.iter().all(|four| *four == [2, 2, 0, 0]));
    }
    walk.both = 0;
    // SAFETY: as above.
    let rest = unsafe { Rest::of(&walk, 10, 0, 2) };
    assert!(rest.a[1] == [[0; ROW]; ROWS] && rest.b == [[[0; ROW]; ROWS]; 2]);
}
