//! Matrix products in tiles (AMX) next to those by vectors, shapes of BERT, ViT and ResNet-50, on one thread and on all.
//!
//! `cargo run --release -p regraft-backend-cpu --example products [threads]`
//!
//! All ways to compute a product are interleaved, forwards and backwards, and each line has their medians in GFLOP/s; so a machine that is
//! slower for a while is unfair to none. "cold" reads weights from memory, as a model does that is larger than the caches; what is not
//! cold multiplies the same weights again and again.

use std::time::{Duration, Instant};

use half::bf16;
use regraft_backend_cpu::{
    Isa, Scratch, Threads,
    gemm::{
        ConvRows, Epilogue, GemmArgs, GemmShape, INT8_STEPS, INT8_WIDTH, Int8Args, Rows, Window3, gemm, int8_product,
        int8_scratch, panel_widths_of,
    },
    pack::panel_elements,
    simd::{Float, FloatType, Floats},
};
use regraft_tensor::AlignedVec;

/// Rounds there and back.
const ROUNDS: usize = 12;

/// The least time of a sample.
const SAMPLE: Duration = Duration::from_micros(300);

/// Bytes of weights that are read in turn where they are to come from memory.
const COLD: usize = 256 << 20;

/// A product: its name, rows, `k`, columns, and the side of the image for a convolution of 3 x 3.
struct Shape(&'static str, usize, usize, usize, Option<usize>);

const SHAPES: &[Shape] = &[
    Shape("BERT base", 128, 768, 768, None),
    Shape("BERT base", 128, 768, 3072, None),
    Shape("BERT base", 128, 3072, 768, None),
    Shape("ViT base", 197, 768, 768, None),
    Shape("ViT base", 197, 768, 3072, None),
    Shape("ViT base", 197, 3072, 768, None),
    Shape("1 x 1", 3136, 64, 256, None),
    Shape("1 x 1", 784, 512, 128, None),
    Shape("1 x 1", 196, 1024, 256, None),
    Shape("1 x 1", 49, 512, 2048, None),
    Shape("3 x 3", 3136, 64, 64, Some(56)),
    Shape("3 x 3", 784, 128, 128, Some(28)),
    Shape("3 x 3", 196, 256, 256, Some(14)),
    Shape("3 x 3", 49, 512, 512, Some(7)),
    Shape("square", 1024, 1024, 1024, None),
    Shape("one row", 1, 768, 3072, None),
    Shape("16 rows", 16, 768, 3072, None),
];

/// A way to compute a product.
enum Way {
    Floats { isa: Isa, nr: usize, ty: FloatType },
    Bytes { isa: Isa },
}

impl Way {
    fn name(&self) -> String {
        match self {
            Way::Floats { isa, nr, ty } => format!("{ty:?} {isa} n{nr}").to_lowercase(),
            Way::Bytes { isa } => format!("int8 {isa}"),
        }
    }
}

fn ways() -> Vec<Way> {
    let best: Vec<Isa> = Isa::available().into_iter().filter(|isa| *isa >= Isa::Avx512Bf16).collect();
    let floats = |isa: Isa, ty| panel_widths_of(isa, ty).take(2).map(move |nr| Way::Floats { isa, nr, ty });
    let mut all: Vec<Way> = floats(Isa::detect(), FloatType::F32).take(1).collect();
    all.extend(best.iter().flat_map(|isa| floats(*isa, FloatType::Bf16)));
    all.extend(best.iter().map(|isa| Way::Bytes { isa: *isa }));
    all
}

/// Numbers without a pattern, in memory that is aligned as the runtime's is.
fn numbers<T: Float>(len: usize) -> AlignedVec {
    let mut data = AlignedVec::zeroed(len * size_of::<T>());
    let wide: Vec<f32> = (0..1009).map(|i| (i * 7919 % 1009) as f32 / 500.0 - 1.0).collect();
    for (i, part) in bytemuck::cast_slice_mut::<_, T>(data.bytes_mut()).chunks_mut(997).enumerate() {
        T::narrow(Isa::detect(), &wide[i % 13..][..part.len()], part);
    }
    data
}

/// A product that can be run.
struct Run<'a> {
    threads: &'a Threads,
    shape: &'a Shape,
    offsets: &'a [u32],
    a: AlignedVec,
    b: AlignedVec,
    /// Bytes of one matrix of weights in `b`.
    each: usize,
    next: usize,
    c: AlignedVec,
    scratch: AlignedVec,
    samples: Vec<f64>,
    repeat: u32,
}

impl<'a> Run<'a> {
    fn new(threads: &'a Threads, shape: &'a Shape, offsets: &'a [u32], way: &Way, cold: bool) -> Self {
        let Shape(_, m, k, n, _) = *shape;
        let (taps, k_all) = (taps(shape), k * taps(shape));
        let pool = |each: usize| if cold { (COLD / each).max(1) } else { 1 };
        let (a, b, each, scratch, out) = match *way {
            Way::Floats { isa, nr, ty } => {
                let gemm = GemmShape { m, n, k_tap: k, taps, nr, a: ty, b: ty, c: ty };
                let len = panel_elements(ty, k_all, n, nr);
                let (a, b) = match ty {
                    FloatType::Bf16 => (numbers::<bf16>(m * k), numbers::<bf16>(len * pool(2 * len))),
                    _ => (numbers::<f32>(m * k), numbers::<f32>(len * pool(4 * len))),
                };
                (a, b, len * ty.size(), gemm.scratch(isa, threads), ty.size())
            }
            Way::Bytes { .. } => {
                let each = n.div_ceil(INT8_WIDTH) * k.next_multiple_of(INT8_STEPS) * INT8_WIDTH;
                // Any bytes are weights.
                (numbers::<bf16>(m * k), numbers::<bf16>(each * pool(each) / 2), each, int8_scratch(threads, m, k), 2)
            }
        };
        let (c, scratch) = (AlignedVec::zeroed(m * n * out), AlignedVec::zeroed(scratch));
        Run { threads, shape, offsets, a, b, each, next: 0, c, scratch, samples: Vec::new(), repeat: 1 }
    }

    fn once(&mut self, way: &Way, scales: &[f32]) {
        let Shape(_, m, k, n, image) = *self.shape;
        let count = self.b.bytes().len() / self.each;
        let b = &self.b.bytes()[self.next % count * self.each..][..self.each];
        self.next += 1;
        let (threads, epilogue, scratch) =
            (self.threads, Epilogue::default(), &mut Scratch::new(self.scratch.bytes_mut()));
        let rows = if image.is_some() { Rows::Indirect { offsets: self.offsets } } else { Rows::Strided { lda: k } };
        let (a, c) = (self.a.bytes(), self.c.bytes_mut());
        match *way {
            Way::Floats { isa, nr, ty } => {
                let (a, b, taps) = (Floats::of_bytes(ty, a), Floats::of_bytes(ty, b), taps(self.shape));
                macro_rules! run {
                    ($T:ty) => {{
                        let c: &mut [$T] = bytemuck::cast_slice_mut(c);
                        gemm(
                            threads,
                            isa,
                            GemmArgs { m, n, k_tap: k, taps, a, rows, b, nr, c, ldc: n, epilogue },
                            scratch,
                        );
                    }};
                }
                if ty == FloatType::Bf16 { run!(bf16) } else { run!(f32) }
            }
            Way::Bytes { isa } => {
                let (a, b) = (Floats::of_bytes(FloatType::Bf16, a), bytemuck::cast_slice(b));
                let args = Int8Args { m, n, k, a, lda: k, b, scales, epilogue };
                int8_product::<bf16>(threads, isa, &args, bytemuck::cast_slice_mut(c), scratch);
            }
        }
    }

    /// Nanoseconds of a run, the mean of a sample.
    fn sample(&mut self, way: &Way, scales: &[f32]) -> f64 {
        let start = Instant::now();
        (0..self.repeat).for_each(|_| self.once(way, scales));
        start.elapsed().as_nanos() as f64 / f64::from(self.repeat)
    }

    fn median(mut self) -> f64 {
        self.samples.sort_by(f64::total_cmp);
        self.samples[self.samples.len() / 2]
    }
}

fn taps(shape: &Shape) -> usize {
    if shape.4.is_some() { 9 } else { 1 }
}

/// Median nanoseconds of each way, interleaved.
fn measure(threads: &Threads, shape: &Shape, ways: &[&Way], cold: bool) -> Vec<f64> {
    let Shape(_, _, k, n, image) = *shape;
    let mut offsets: Vec<u32> = Vec::new();
    if let Some(side) = image {
        let (image, one) = ([1, side, side], [1; 3]);
        let (kernel, padding) = ([1, 3, 3], [0, 1, 1]);
        let window = Window3 { batch: 1, input: image, output: image, kernel, stride: one, dilation: one, padding };
        let rows = ConvRows::new(&window, k).expect("offsets of a small image fit");
        if let Rows::Indirect { offsets: of_the_image } = rows.rows(&rows.parts()[0]) {
            offsets.extend_from_slice(of_the_image);
        }
    }
    let scales = vec![0.01; n];
    let mut runs: Vec<Run<'_>> = ways.iter().map(|way| Run::new(threads, shape, &offsets, way, cold)).collect();
    threads.install(|| {
        for (run, way) in runs.iter_mut().zip(ways) {
            run.once(way, &scales);
            let estimate = run.sample(way, &scales).min(run.sample(way, &scales));
            run.repeat = (SAMPLE.as_nanos() as f64 / estimate.max(1.0)).ceil().clamp(1.0, 1000.0) as u32;
        }
        for _ in 0..ROUNDS {
            for turn in (0..ways.len()).chain((0..ways.len()).rev()) {
                let time = runs[turn].sample(ways[turn], &scales);
                runs[turn].samples.push(time);
            }
        }
    });
    runs.into_iter().map(Run::median).collect()
}

fn main() {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(all);
    let counts = if wanted > 1 { vec![1, wanted] } else { vec![1] };
    let ways = ways();
    println!("GFLOP/s, medians of {} interleaved samples; best here: {}", 2 * ROUNDS, Isa::detect());
    for (count, cold) in counts.into_iter().flat_map(|count| [(count, false), (count, true)]) {
        let threads = Threads::new(count).expect("threads");
        println!("\n{count} threads{}", if cold { ", cold" } else { "" });
        for shape in SHAPES.iter().filter(|shape| !cold || shape.2 * shape.3 >= 1 << 19) {
            let Shape(name, m, k, n, image) = *shape;
            // Images are not multiplied by bytes.
            let takes = |way: &&Way| image.is_none() || matches!(way, Way::Floats { .. });
            let ways: Vec<&Way> = ways.iter().filter(takes).collect();
            let times = measure(&threads, shape, &ways, cold);
            println!("{name} {m} x {} x {n}", k * taps(shape));
            for (way, ns) in ways.iter().zip(&times) {
                let rate = (2 * m * k * taps(shape) * n) as f64 / ns;
                println!("    {:<24}{rate:>10.1}{:>12.1} us", way.name(), ns / 1e3);
            }
        }
    }
}
