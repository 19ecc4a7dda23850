//! Times of the kernels that matter, by events over graph replays: medians.

use regraft_backend_cuda::{
    CudaError, Memory,
    cudnn::{ConvProblem, Dnn},
    driver::{Args, Event, Launch, Region},
    gemm::{Blas, Operands, Product, WORKSPACE},
    kernels::{
        Node, Spec, attention,
        conv::WeightOrder,
        elementwise,
        elementwise::View,
        norm,
        pack::{Axis, Layout, Merge, Places, Table, source},
        specs,
    },
};
use regraft_ir::ops::{self, Attention, Conv, FusedFn, FusedStep, HeadsLayout, SpatialLayout, UnaryFn};
use regraft_tensor::{DType, contiguous_strides};

use crate::{Gpu, common::Random, libraries::linear};

/// Microseconds of `work`, 20 of which are captured in a graph.
fn time(gpu: &Gpu, mut work: impl FnMut() -> Result<(), CudaError>) -> Result<f64, CudaError> {
    work()?;
    gpu.stream.synchronize()?;
    let graph = gpu.stream.capture(|| (0..20).try_for_each(|_| work()))?;
    let executable = graph.instantiate()?;
    executable.launch(&gpu.stream)?;
    let mut times = Vec::new();
    for _ in 0..15 {
        let (start, end) = (Event::timed(&gpu.context)?, Event::timed(&gpu.context)?);
        gpu.stream.record(&start)?;
        executable.launch(&gpu.stream)?;
        gpu.stream.record(&end)?;
        end.wait()?;
        times.push(f64::from(end.milliseconds_since(&start)?) * 1e3 / 20.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn random(gpu: &Gpu, dtype: DType, n: usize) -> Result<Region, CudaError> {
    // Large buffers repeat a block of random numbers.
    let block = Random(11).floats(dtype, &[n.min(1 << 16)]);
    let bytes: Vec<u8> = block.bytes().iter().copied().cycle().take(n * dtype.size()).collect();
    gpu.upload(&bytes)
}

pub(crate) fn measure(gpu: &mut Gpu) {
    for (name, result) in [
        ("copies", copies(gpu)),
        ("rows", rows(gpu)),
        ("attention", heads(gpu)),
        ("products", products(gpu)),
        ("few rows", few_rows(gpu)),
        ("convolutions", convolutions(gpu)),
        ("packing", packing(gpu)),
    ] {
        if let Err(error) = result {
            println!("FAILED measuring {name}: {error}");
            gpu.failed += 1;
        }
    }
}

fn run(
    gpu: &Gpu,
    name: &str,
    spec: &Spec,
    inputs: &[Option<Region>],
    out: &Region,
    bytes: usize,
    flops: f64,
) -> Result<(), CudaError> {
    let step = gpu.kernels.step(spec)?;
    let scratch = gpu.poisoned(spec.scratch)?;
    let outputs = [out.span()];
    let inputs: Vec<_> = inputs.iter().map(|r| r.as_ref().map(Region::span)).collect();
    let memory = Memory { inputs: &inputs, outputs: &outputs, scratch: Some(scratch.span()), report: None };
    let us = time(gpu, || step.launch(&gpu.stream, &memory))?;
    println!("{name:<52} {us:>9.2} µs {:>8.0} GB/s {:>8.1} TFLOP/s", bytes as f64 / us / 1e3, flops / us / 1e6);
    Ok(())
}

fn copies(gpu: &Gpu) -> Result<(), CudaError> {
    let n = 256 << 20;
    let (a, b) = (gpu.poisoned(n)?, gpu.poisoned(n)?);
    let us = time(gpu, || gpu.stream.copy(&a, &b))?;
    println!("{:<52} {us:>9.2} µs {:>8.0} GB/s", "device copy of 256 MB (read + write)", 2.0 * n as f64 / us / 1e3);
    Ok(())
}

fn rows(gpu: &Gpu) -> Result<(), CudaError> {
    let dtype = DType::F16;
    for (m, n) in [(1024, 768), (1024, 3072), (1576, 1024), (8192, 320)] {
        let (x, w, out) = (random(gpu, dtype, m * n)?, random(gpu, dtype, n)?, gpu.poisoned(m * n * 2)?);
        let (shape, strides) = ([m, n], [n, 1]);
        let view = View { dtype, shape: &shape, strides: &strides };
        let fit = |r: Result<Spec, _>| {
            r.map_err(|e: regraft_backend_cuda::kernels::Why| CudaError::NoAlgorithm {
                library: "kernels",
                problem: e.to_string(),
            })
        };
        let spec = fit(norm::rows(&view, Some(dtype), Some(dtype), 1, 1e-5, false, dtype))?;
        let inputs = [Some(x.clone()), Some(w.clone()), Some(w.clone())];
        run(gpu, &format!("layer norm {m}x{n} f16"), &spec, &inputs, &out, m * n * 4, 0.0)?;
        let steps = [FusedStep { f: FusedFn::Unary(UnaryFn::Gelu), args: vec![0] }];
        let spec = fit(elementwise::chain(&steps, &[view], &[m, n]))?;
        run(gpu, &format!("gelu {m}x{n} f16"), &spec, &inputs, &out, m * n * 4, 0.0)?;
        let spec = fit(norm::softmax(&view, 1, false, dtype))?;
        run(gpu, &format!("softmax {m}x{n} f16"), &spec, &inputs, &out, m * n * 4, 0.0)?;
    }
    for (hw, c) in [(4096, 320), (1024, 640), (256, 1280), (4096, 960)] {
        let shape = [2, hw, c];
        let (x, w, out) = (random(gpu, dtype, 2 * hw * c)?, random(gpu, dtype, c)?, gpu.poisoned(2 * hw * c * 2)?);
        let strides = contiguous_strides(&shape);
        let view = View { dtype, shape: &shape, strides: &strides };
        let specs = norm::groups(&view, Some(dtype), Some(dtype), 32, 1e-5, true, "silu", dtype)
            .map_err(|e| CudaError::NoAlgorithm { library: "kernels", problem: e.to_string() })?;
        let steps = specs.iter().map(|s| gpu.kernels.step(s)).collect::<Result<Vec<_>, _>>()?;
        let scratch = gpu.poisoned(specs[0].scratch)?;
        let (inputs, outputs) = ([&x, &w, &w].map(|r| Some(r.span())), [out.span()]);
        let memory = Memory { inputs: &inputs, outputs: &outputs, scratch: Some(scratch.span()), report: None };
        let us = time(gpu, || steps.iter().try_for_each(|s| s.launch(&gpu.stream, &memory)))?;
        println!(
            "{:<52} {us:>9.2} µs {:>8.0} GB/s",
            format!("group norm + silu 2x{hw}x{c} f16 nhwc"),
            (6 * 2 * hw * c) as f64 / us / 1e3
        );
    }
    Ok(())
}

fn heads(gpu: &Gpu) -> Result<(), CudaError> {
    for (b, h, s, t, d) in [
        (8, 12, 128, 128, 64),
        (8, 16, 197, 197, 64),
        (2, 8, 4096, 4096, 40),
        (2, 8, 1024, 1024, 80),
        (2, 8, 4096, 77, 40),
        (1, 32, 1, 1024, 64),
    ] {
        let dtype = DType::F16;
        let (q, k, v) = (
            random(gpu, dtype, b * h * s * d)?,
            random(gpu, dtype, b * h * t * d)?,
            random(gpu, dtype, b * h * t * d)?,
        );
        let out = gpu.poisoned(b * h * s * d * 2)?;
        // As projections leave it: [b, s, h, d] seen as [b, h, s, d].
        let (qs, ks) = ([b, h, s, d], [b, h, t, d]);
        let strides = |s: usize| [s * h * d, d, h * d, 1];
        let (qt, kt) = (strides(s), strides(t));
        let view = |shape, strides| View { dtype, shape, strides };
        let op = Attention { scale: 0.125, causal: false, out: HeadsLayout::Bshd };
        let spec = attention::attention(
            &op,
            &view(&qs, &qt),
            &view(&ks, &kt),
            &view(&ks, &kt),
            None,
            &[b, s, h, d],
            dtype,
            true,
        )
        .map_err(|e| CudaError::NoAlgorithm { library: "kernels", problem: e.to_string() })?;
        let bytes = 2 * (2 * b * h * s * d + 2 * b * h * t * d);
        let flops = 4.0 * (b * h * s * t * d) as f64;
        run(
            gpu,
            &format!("attention {b}x{h}x{s}x{t}x{d} f16"),
            &spec,
            &[Some(q), Some(k), Some(v)],
            &out,
            bytes,
            flops,
        )?;
    }
    Ok(())
}

fn products(gpu: &Gpu) -> Result<(), CudaError> {
    let blas = Blas::open(&gpu.lookup, &gpu.context)?;
    let workspace = gpu.poisoned(WORKSPACE)?;
    for (m, n, k, dtype) in [
        (1024, 2304, 768, DType::F16),
        (1024, 768, 768, DType::F16),
        (1024, 3072, 768, DType::F16),
        (1024, 768, 3072, DType::F16),
        (1576, 4096, 1024, DType::F16),
        (8192, 8192, 8192, DType::F16),
        (1024, 768, 768, DType::F32),
    ] {
        let (x, w, bias) = (random(gpu, dtype, m * k)?, random(gpu, dtype, n * k)?, random(gpu, dtype, n)?);
        let out = gpu.poisoned(m * n * dtype.size())?;
        let p = Product { bias: true, ..linear(m, n, k, dtype) };
        let candidates = blas.candidates(&p, 32)?;
        let mut times = Vec::new();
        for algorithm in &candidates {
            let operands = Operands {
                x: x.span(),
                w: w.span(),
                bias: Some(bias.span()),
                residual: None,
                out: out.span(),
                workspace: Some(workspace.span()),
            };
            times.push(time(gpu, || blas.launch(&gpu.stream, &p, algorithm, operands))?);
        }
        let best = times.iter().copied().fold(f64::INFINITY, f64::min);
        let flops = 2.0 * (m * n * k) as f64;
        println!(
            "{:<52} {:>9.2} µs first, best of {} {best:.2} µs {:>8.1} TFLOP/s",
            format!("product {m}x{n}x{k} {dtype}"),
            times[0],
            times.len(),
            flops / best / 1e6
        );
    }
    Ok(())
}

fn few_rows(gpu: &Gpu) -> Result<(), CudaError> {
    let dtype = DType::BF16;
    for (m, n, k) in [(1, 2048, 2048), (1, 16384, 2048), (1, 2048, 8192), (1, 128_256, 2048), (4, 8192, 2048)] {
        let (x, w) = (random(gpu, dtype, m * k)?, random(gpu, dtype, n * k)?);
        let out = gpu.poisoned(m * n * 2)?;
        let epilogue = regraft_backend_cuda::kernels::conv::Epilogue {
            bias: None,
            residual: None,
            act: ops::Activation::None,
            act_first: false,
        };
        let spec = regraft_backend_cuda::kernels::conv::matvec(dtype, dtype, (m, n, k), epilogue, dtype)
            .map_err(|e| CudaError::NoAlgorithm { library: "kernels", problem: e.to_string() })?;
        run(gpu, &format!("matvec {m}x{n}x{k} bf16"), &spec, &[Some(x), Some(w)], &out, n * k * 2, 0.0)?;
    }
    Ok(())
}

fn convolutions(gpu: &Gpu) -> Result<(), CudaError> {
    let dnn = Dnn::open(&gpu.lookup, &gpu.context)?;
    let dtype = DType::F16;
    for (n, c, hw, out, kernel, stride) in [
        (8, 8, 224, 64, 7, 2),
        (8, 64, 56, 64, 3, 1),
        (8, 64, 56, 256, 1, 1),
        (8, 256, 14, 256, 3, 1),
        (8, 512, 7, 512, 3, 1),
        (2, 320, 64, 320, 3, 1),
        (2, 1280, 16, 1280, 3, 1),
    ] {
        let op = Conv {
            stride: vec![stride; 2],
            padding: vec![kernel / 2; 2],
            dilation: vec![1; 2],
            groups: 1,
            layout: SpatialLayout::Nhwc,
            act: ops::Activation::Relu,
            act_first: false,
        };
        let to = (hw + 2 * (kernel / 2) - kernel) / stride + 1;
        let problem = ConvProblem {
            op: op.clone(),
            dtype,
            x: vec![n, hw, hw, c],
            weight: vec![out, c, kernel, kernel],
            out: vec![n, to, to, out],
            bias: true,
            residual: false,
            tf32: false,
        };
        let (x, w) = (random(gpu, dtype, n * hw * hw * c)?, random(gpu, dtype, out * c * kernel * kernel)?);
        let (bias, y) = (random(gpu, dtype, out)?, gpu.poisoned(n * to * to * out * 2)?);
        let start = std::time::Instant::now();
        let plans = dnn.conv_plans(&problem, 6)?;
        let made = start.elapsed().as_millis();
        let mut times = Vec::new();
        for plan in &plans {
            let scratch = gpu.poisoned(plan.workspace())?;
            let operands = [Some(x.span()), Some(w.span()), Some(bias.span()), None];
            times.push(time(gpu, || plan.launch(&gpu.stream, operands, y.span(), Some(scratch.span())))?);
        }
        let best = times.iter().copied().fold(f64::INFINITY, f64::min);
        let flops = 2.0 * (n * to * to * out * c * kernel * kernel) as f64;
        println!(
            "{:<52} {:>9.2} µs first, best of {} {best:.2} µs {:>8.1} TFLOP/s, plans in {made} ms",
            format!("cuDNN {n}x{hw}x{hw}x{c} to {out} {kernel}x{kernel}/{stride} f16"),
            times[0],
            times.len(),
            flops / best / 1e6
        );
        let (xs, ws) = ([n, hw, hw, c], [out, c, kernel, kernel]);
        let (xt, wt) = (contiguous_strides(&xs), contiguous_strides(&ws));
        let node = Node {
            op: &op.into(),
            inputs: &[
                Some(View { dtype, shape: &xs, strides: &xt }),
                Some(View { dtype, shape: &ws, strides: &wt }),
                Some(View { dtype, shape: &[out], strides: &[1] }),
            ],
            outputs: &[(dtype, &[n, to, to, out])],
            weight_order: WeightOrder::ChannelsLast,
            matrix_units: true,
        };
        let spec =
            specs(&node).map_err(|e| CudaError::NoAlgorithm { library: "kernels", problem: e.to_string() })?.remove(0);
        run(gpu, "  our own", &spec, &[Some(x), Some(w), Some(bias)], &y, 0, flops)?;
    }
    Ok(())
}

fn packing(gpu: &Gpu) -> Result<(), CudaError> {
    // The weights of the UNet's attention projections, about: 128 matrices of 1.46 MB.
    let (rows, cols, count) = (960, 760, 128);
    let dtype = DType::F16;
    let function = |name: &str| gpu.kernels.module(&source())?.function(name, 0);
    let sources = random(gpu, dtype, rows * cols * count)?;
    let target = gpu.poisoned(rows * cols * count * 2)?;
    let at = |r: &Region, i: usize| r.address() + (i * rows * cols * 2) as u64;
    let fit =
        |e: regraft_backend_cuda::kernels::Why| CudaError::NoAlgorithm { library: "kernels", problem: e.to_string() };
    let us = time(gpu, || gpu.stream.copy(&sources, &target))?;
    println!("{:<52} {us:>9.2} µs", "copy of 187 MB");
    let launch = |name: &str, table: &Table, says: &str| -> Result<(), CudaError> {
        let jobs = gpu.upload(&table.bytes)?;
        let function = function(name)?;
        let grid = [table.pieces as u32, 1, 1];
        let us = time(gpu, || {
            let mut args = Args::new();
            args.region(&jobs).i32(table.jobs as i32).i64(table.pieces as i64);
            function.launch(&gpu.stream, Launch { grid, block: 256, shared: 0 }, &mut args)
        })?;
        println!("{says:<52} {us:>9.2} µs");
        Ok(())
    };
    let packs = |from: DType, axes: &[Axis]| -> Result<Table, CudaError> {
        let (layout, mut table) = (Layout::new((from, dtype), false, axes).map_err(fit)?, Table::default());
        for i in 0..count {
            table.push(&layout, Places { source: at(&sources, i), target: at(&target, i), scale: 0 });
        }
        Ok(table)
    };
    let axis = |size, from, to| Axis { size, from, to, by: 0 };
    let run = [axis(rows * cols, 1, 1)];
    launch("pack", &packs(DType::F16, &run)?, "grouped copy of 128 matrices, 187 MB")?;
    launch("pack", &packs(DType::BF16, &run)?, "grouped cast bf16 to f16")?;
    let transposed = [axis(cols, 1, rows), axis(rows, cols, 1)];
    launch("pack", &packs(DType::F16, &transposed)?, "grouped transpose")?;
    // 253 x 320 windows of 9, about as large.
    let channels_last = [axis(253, 2880, 2880), axis(9, 1, 320), axis(320, 9, 1)];
    launch("pack", &packs(DType::F16, &channels_last)?, "grouped channels last")?;
    let (up, down) = (random(gpu, DType::F32, rows * 16)?, random(gpu, DType::F32, cols * 16)?);
    let merges: Vec<Merge> = (0..count)
        .map(|i| Merge {
            source: at(&sources, i),
            target: at(&target, i),
            up: up.address(),
            down: down.address(),
            dtype,
            rows,
            cols,
            rank: 16,
            scale: 1.0,
        })
        .collect();
    launch("merge", &Table::merges(&merges).map_err(fit)?, "merge of 128 low-rank products, r = 16")
}
