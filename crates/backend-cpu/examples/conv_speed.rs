//! Milliseconds of a convolution of 3 x 3 as a product over windows and by Winograd's algorithm, by turns.
//!
//! `cargo run --release -p regraft-backend-cpu --example conv_speed [threads] [part of a shape, as "56x56"]`

use std::time::Instant;

use regraft_backend_cpu::{
    Isa, Scratch, Threads,
    gemm::{ConvRows, Epilogue, GemmArgs, GemmShape, Window3, gemm, panel_widths},
    nn::winograd::{WinogradArgs, winograd, winograd_scratch},
    simd::{FloatType, Floats},
};

/// Height and width, channels of the image and of the result.
const SHAPES: [[usize; 3]; 12] = [
    [112, 32, 32],
    [56, 64, 64],
    [28, 128, 128],
    [14, 256, 256],
    [7, 512, 512],
    [224, 64, 64],
    [64, 160, 160],
    [64, 320, 320],
    [32, 320, 320],
    [32, 640, 640],
    [16, 640, 640],
    [8, 640, 640],
];

/// A cache line, so that buffers are aligned as the runtime's are.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

fn buffer(len: usize) -> Vec<Line> {
    vec![Line([1.0; 16]); len.div_ceil(16)]
}

/// One way to compute it.
enum Way {
    Windows(usize),
    Winograd(usize, usize),
}

struct Layer {
    window: Window3,
    rows: ConvRows,
    channels: [usize; 2],
    image: Vec<Line>,
    out: Vec<Line>,
    filters: Vec<Line>,
    scratch: Vec<Line>,
}

impl Layer {
    fn new([size, channels, columns]: [usize; 3]) -> Layer {
        let window = Window3 {
            batch: 1,
            input: [1, size, size],
            output: [1, size, size],
            kernel: [1, 3, 3],
            stride: [1; 3],
            dilation: [1; 3],
            padding: [0, 1, 1],
        };
        let (image, out) = (buffer(size * size * channels), buffer(size * size * columns));
        let filters = buffer(36 * channels * (columns + 64));
        let rows = ConvRows::new(&window, channels).expect("offsets");
        Layer { window, rows, channels: [channels, columns], image, out, filters, scratch: Vec::new() }
    }

    fn run(&mut self, threads: &Threads, isa: Isa, way: &Way) {
        let ([channels, columns], pixels) = (self.channels, self.window.pixels());
        let image: &[f32] = bytemuck::cast_slice(&self.image);
        let out: &mut [f32] = &mut bytemuck::cast_slice_mut(&mut self.out)[..pixels * columns];
        let filters: &[f32] = bytemuck::cast_slice(&self.filters);
        match *way {
            Way::Windows(nr) => {
                let ty = FloatType::F32;
                let shape = GemmShape { m: pixels, n: columns, k_tap: channels, taps: 9, nr, a: ty, b: ty, c: ty };
                self.scratch.resize(shape.scratch(isa, threads).div_ceil(64), Line([0.0; 16]));
                let args = GemmArgs {
                    m: pixels,
                    n: columns,
                    k_tap: channels,
                    taps: 9,
                    a: Floats::F32(&image[..pixels * channels]),
                    rows: self.rows.rows(&self.rows.parts()[0]),
                    b: Floats::F32(filters),
                    nr,
                    c: out,
                    ldc: columns,
                    epilogue: Epilogue::default(),
                };
                gemm(threads, isa, args, &mut Scratch::new(bytemuck::cast_slice_mut(&mut self.scratch)));
            }
            Way::Winograd(tile, nr) => {
                let bytes = winograd_scratch(threads, tile, &self.window, channels, nr);
                self.scratch.resize(bytes.div_ceil(64), Line([0.0; 16]));
                let args = WinogradArgs {
                    tile,
                    window: self.window,
                    channels: self.channels,
                    image: &image[..pixels * channels],
                    filters,
                    nr,
                    epilogue: Epilogue::default(),
                };
                winograd(threads, isa, &args, out, &mut Scratch::new(bytemuck::cast_slice_mut(&mut self.scratch)));
            }
        }
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let count = args.next().map_or(1, |count| count.parse().expect("a number of threads"));
    let wanted = args.next().unwrap_or_default();
    let (isa, threads) = (Isa::detect(), Threads::new(count).expect("threads"));
    let widths: Vec<usize> = panel_widths(isa).collect();
    let ways: Vec<Way> = (widths.iter().map(|nr| Way::Windows(*nr)))
        .chain([2, 4].into_iter().flat_map(|tile| widths.iter().map(move |nr| Way::Winograd(tile, *nr))))
        .collect();
    print!("{:<16}", format!("{isa}, {count} thr, ms"));
    for way in &ways {
        let label = match way {
            Way::Windows(nr) => format!("windows n{nr}"),
            Way::Winograd(tile, nr) => format!("tiles of {tile} n{nr}"),
        };
        print!("{label:>16}");
    }
    println!();
    for shape @ [size, channels, columns] in SHAPES {
        let label = format!("{size}x{size} {channels}-{columns}");
        if !label.contains(&wanted) {
            continue;
        }
        let mut layer = Layer::new(shape);
        let mut best = vec![f64::INFINITY; ways.len()];
        threads.install(|| {
            let began = Instant::now();
            while began.elapsed().as_millis() < 1500 {
                for (way, best) in ways.iter().zip(&mut best) {
                    for _ in 0..3 {
                        let start = Instant::now();
                        layer.run(&threads, isa, way);
                        *best = best.min(start.elapsed().as_secs_f64());
                    }
                }
            }
        });
        println!("{label:<16}{}", best.iter().map(|s| format!("{:>16.3}", s * 1e3)).collect::<String>());
    }
}
