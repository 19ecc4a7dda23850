//! GFLOP/s of the matrix product with `B` packed ahead, for each element type and width of panels.
//!
//! `cargo run --release -p regraft-backend-cpu --example gemm_speed [part of a label, as "1 thr"]`

use std::time::Instant;

use regraft_backend_cpu::{
    Isa, Scratch, Threads,
    gemm::{Epilogue, GemmArgs, GemmShape, Rows, gemm, panel_widths_of},
    pack::panel_elements,
    simd::{Float, Floats},
};

const SHAPES: [(usize, usize, usize); 15] = [
    (3136, 64, 256),
    (784, 128, 512),
    (12544, 16, 64),
    (3136, 24, 72),
    (196, 112, 672),
    (49, 960, 160),
    (1, 768, 3072),
    (4, 768, 768),
    (16, 768, 768),
    (128, 768, 768),
    (128, 768, 3072),
    (128, 3072, 768),
    (512, 1024, 1024),
    (512, 4096, 1024),
    (3136, 576, 64),
];

/// A cache line, so that buffers are aligned as the runtime's are.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Ones, or what looks like them.
fn buffer<T: Float>(isa: Isa, len: usize) -> Vec<Line> {
    let mut lines = vec![Line([0.0; 16]); (len * size_of::<T>()).div_ceil(64)];
    T::narrow(isa, &vec![1.0; len], &mut bytemuck::cast_slice_mut(&mut lines)[..len]);
    lines
}

/// GFLOP/s of the best run within about a quarter of a second.
fn measure<T: Float>(threads: &Threads, isa: Isa, nr: usize, (m, k, n): (usize, usize, usize)) -> f64 {
    let (a, b) = (buffer::<T>(isa, m * k), buffer::<T>(isa, panel_elements(T::TYPE, k, n, nr)));
    let mut c = buffer::<T>(isa, m * n);
    let (a, b): (&[T], &[T]) = (bytemuck::cast_slice(&a), bytemuck::cast_slice(&b));
    let bias = vec![1.0; n];
    let ty = T::TYPE;
    let shape = GemmShape { m, n, k_tap: k, taps: 1, nr, a: ty, b: ty, c: ty };
    let mut scratch = vec![Line([0.0; 16]); shape.scratch(isa, threads).div_ceil(64)];
    threads.install(|| {
        let (began, mut best) = (Instant::now(), f64::INFINITY);
        while began.elapsed().as_millis() < 250 {
            let epilogue = Epilogue { bias: Some(Floats::F32(&bias)), ..Epilogue::default() };
            let start = Instant::now();
            let c: &mut [T] = &mut bytemuck::cast_slice_mut(&mut c)[..m * n];
            let (rows, a, b) = (Rows::Strided { lda: k }, T::floats(&a[..m * k]), T::floats(b));
            let args = GemmArgs { m, n, k_tap: k, taps: 1, a, rows, b, nr, c, ldc: n, epilogue };
            gemm(threads, isa, args, &mut Scratch::new(bytemuck::cast_slice_mut(&mut scratch)));
            best = best.min(start.elapsed().as_secs_f64());
        }
        (2 * m * n * k) as f64 / best / 1e9
    })
}

fn report<T: Float>(isa: Isa) {
    for (nr, count) in panel_widths_of(isa, T::TYPE).flat_map(|nr| [(nr, 1), (nr, 2)]) {
        let label = format!("{isa} {:?} n{nr}, {count} thr", T::TYPE);
        if std::env::args().nth(1).is_some_and(|wanted| !label.contains(&wanted)) {
            continue;
        }
        let threads = Threads::new(count).expect("threads");
        let row = SHAPES.map(|shape| format!("{:>14.1}", measure::<T>(&threads, isa, nr, shape)));
        println!("{label:<28}{}", row.concat());
    }
}

fn main() {
    let header: Vec<String> = SHAPES.iter().map(|(m, k, n)| format!("{m},{k},{n}")).collect();
    println!("{:<28}{}", "GFLOP/s (m,k,n)", header.iter().map(|h| format!("{h:>14}")).collect::<String>());
    for isa in Isa::available() {
        report::<f32>(isa);
        report::<half::f16>(isa);
        report::<half::bf16>(isa);
    }
}
