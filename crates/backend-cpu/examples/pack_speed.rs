//! Packing weights next to a plain parallel copy of the same bytes, both into buffers already touched: once with everything
//! in the last-level cache, once cycling through so many buffers that all comes from memory, as in the refit of a model.
//!
//! `cargo run --release -p regraft-backend-cpu --example pack_speed`

use std::time::Instant;

use regraft_backend_cpu::{
    Isa, Threads,
    pack::{MatrixView, pack_panels, panels_len},
};

/// Best of many runs, in milliseconds; run `i` is given `i`.
fn best(mut run: impl FnMut(usize)) -> f64 {
    let mut time = |i| {
        let start = Instant::now();
        run(i);
        start.elapsed().as_secs_f64() * 1e3
    };
    (0..60).map(&mut time).fold(f64::INFINITY, f64::min)
}

fn copy(threads: &Threads, from: &[f32], to: &mut [f32]) {
    let chunk = to.len().div_ceil(threads.count());
    threads.for_each_chunk(to, chunk, |i, to| to.copy_from_slice(&from[i * chunk..][..to.len()]));
}

/// A cache line, so that outputs are aligned as the runtime's buffers are.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// One problem: `pieces` views, made by `view` from equal shares of a source buffer.
struct Problem {
    name: &'static str,
    k: usize,
    n: usize,
    pieces: usize,
    view: fn(&[f32]) -> MatrixView<'_>,
}

impl Problem {
    fn report(&self, isa: Isa, count: usize, buffers: usize) {
        let nr = if isa >= Isa::Avx512 { 32 } else { 16 };
        let threads = Threads::new(count).expect("threads");
        let sources: Vec<Vec<f32>> = (0..buffers).map(|b| vec![b as f32; self.k * self.n]).collect();
        let len = panels_len(self.k, self.n, nr);
        let mut outs: Vec<Vec<Line>> = vec![vec![Line([1.0; 16]); len / 16]; buffers];
        let mut outs: Vec<&mut [f32]> = outs.iter_mut().map(|lines| bytemuck::cast_slice_mut(lines)).collect();
        threads.install(|| {
            let copied = best(|i| copy(&threads, &sources[i % buffers], outs[i % buffers]));
            let packed = best(|i| {
                let source = &sources[i % buffers];
                let views: Vec<_> = source.chunks(source.len() / self.pieces).map(self.view).collect();
                pack_panels(&threads, isa, &views, nr, outs[i % buffers]);
            });
            let rate = (2 * 4 * self.k * self.n) as f64 / packed / 1e6;
            let place = if buffers == 1 { "cache" } else { "memory" };
            println!(
                "{:<20} {isa:<9} {count} thr  {place:<6} pack {packed:6.3} ms ({rate:5.1} GB/s)  copy {copied:6.3} ms  x{:.2}",
                self.name,
                packed / copied
            );
        });
    }
}

fn main() {
    let problems = [
        Problem { name: "linear 3072x768", k: 768, n: 3072, pieces: 1, view: |d| MatrixView::linear(d, 3072, 768) },
        Problem { name: "linear 768x3072", k: 3072, n: 768, pieces: 1, view: |d| MatrixView::linear(d, 768, 3072) },
        Problem { name: "qkv 3 x 768x768", k: 768, n: 2304, pieces: 3, view: |d| MatrixView::linear(d, 768, 768) },
        Problem {
            name: "row-major 768x3072",
            k: 768,
            n: 3072,
            pieces: 1,
            view: |d| MatrixView::row_major(d, 768, 3072),
        },
        Problem {
            name: "conv 512x512x3x3",
            k: 4608,
            n: 512,
            pieces: 1,
            view: |d| MatrixView::conv2d(d, [512, 512, 3, 3]),
        },
    ];
    for problem in &problems {
        for isa in Isa::available() {
            for (count, buffers) in [(1, 1), (2, 1), (1, 10), (2, 10)] {
                problem.report(isa, count, buffers);
            }
        }
    }
}
