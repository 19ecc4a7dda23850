//! GFLOP/s of the matrix product with `B` packed ahead, for each width of panels.
//!
//! `cargo run --release -p regraft-backend-cpu --example gemm_speed`

use std::time::Instant;

use regraft_backend_cpu::{
    Isa, Threads,
    gemm::{Epilogue, GemmArgs, Rows, gemm, panel_widths},
    pack::panels_len,
};

const SHAPES: [(usize, usize, usize); 9] = [
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

fn buffer(len: usize) -> Vec<Line> {
    vec![Line([0.5; 16]); len.div_ceil(16)]
}

/// GFLOP/s of the best run within about a quarter of a second.
fn measure(threads: &Threads, isa: Isa, nr: usize, (m, k, n): (usize, usize, usize)) -> f64 {
    let (a, b, mut c) = (buffer(m * k), buffer(panels_len(k, n, nr)), buffer(m * n));
    let (a, b) = (bytemuck::cast_slice(&a), bytemuck::cast_slice(&b));
    let bias = vec![1.0; n];
    threads.install(|| {
        let (began, mut best) = (Instant::now(), f64::INFINITY);
        while began.elapsed().as_millis() < 250 {
            let epilogue = Epilogue { bias: Some(&bias), ..Epilogue::default() };
            let start = Instant::now();
            let c = bytemuck::cast_slice_mut(&mut c);
            let rows = Rows::Strided { lda: k };
            gemm(threads, isa, GemmArgs { m, n, k_tap: k, taps: 1, a, rows, b, nr, c, ldc: n, epilogue });
            best = best.min(start.elapsed().as_secs_f64());
        }
        (2 * m * n * k) as f64 / best / 1e9
    })
}

fn main() {
    let header: Vec<String> = SHAPES.iter().map(|(m, k, n)| format!("{m},{k},{n}")).collect();
    println!("{:<20}{}", "GFLOP/s (m,k,n)", header.iter().map(|h| format!("{h:>14}")).collect::<String>());
    for isa in Isa::available() {
        for (nr, count) in panel_widths(isa).flat_map(|nr| [(nr, 1), (nr, 2)]) {
            let threads = Threads::new(count).expect("threads");
            let row = SHAPES.map(|shape| format!("{:>14.1}", measure(&threads, isa, nr, shape)));
            println!("{:<20}{}", format!("{isa} n{nr}, {count} thr"), row.concat());
        }
    }
}
