//! Products by cuBLASLt, convolutions by cuDNN, graphs.

use regraft_backend_cuda::{
    CudaError,
    cudnn::{ConvProblem, Dnn},
    driver::{Event, Executable, Region, Updated},
    gemm::{Activation, Algorithm, Blas, Matrix, Operands, Product, WORKSPACE},
};
use regraft_ir::{
    Op,
    ops::{self, Conv, SpatialLayout},
};
use regraft_tensor::{DType, Tensor};

use crate::{
    Gpu,
    common::{Given, Random},
    distance, tensor, tolerance,
};

pub(crate) fn check(gpu: &mut Gpu, small: bool) {
    match Blas::open(&gpu.lookup, &gpu.context) {
        Ok(blas) => {
            println!("cuBLASLt {} at {}", blas.version(), blas.path().display());
            products(gpu, &blas, small);
            let outcome = graphs(gpu, &blas);
            if let Ok(text) = &outcome {
                println!("graphs: {text}");
            }
            gpu.outcome("graphs", outcome);
        }
        Err(error) => gpu.outcome("cuBLASLt", Err(error.to_string())),
    }
    match Dnn::open(&gpu.lookup, &gpu.context) {
        Ok(dnn) => {
            println!("cuDNN {} at {}", dnn.version(), dnn.path().display());
            convolutions(gpu, &dnn);
        }
        Err(error) => gpu.outcome("cuDNN", Err(error.to_string())),
    }
}

/// A product of row-major matrices, the weight `[n, k]`.
pub(crate) fn linear(m: usize, n: usize, k: usize, dtype: DType) -> Product {
    Product {
        m,
        n,
        k,
        batch: 1,
        x: Matrix { leading: k, turned: false, batch_stride: 0 },
        w: Matrix { leading: k, turned: true, batch_stride: 0 },
        out_leading: n,
        out_batch_stride: 0,
        dtype,
        out: dtype,
        bias: false,
        residual: false,
        act: Activation::None,
        tf32: false,
    }
}

fn products(gpu: &mut Gpu, blas: &Blas, small: bool) {
    let mut r = Random(33);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for (m, n, k) in [(5, 16, 24), (64, 96, 80), (if small { 3 } else { 130 }, 48, 200), (7, 5, 3)] {
            for act in [Activation::None, Activation::Relu, Activation::GeluTanh] {
                for (bias, residual) in [(false, false), (true, false), (true, true), (false, true)] {
                    let product = Product { bias, residual, act, ..linear(m, n, k, dtype) };
                    let outcome = run_product(gpu, blas, &product, &mut r);
                    gpu.outcome(&format!("product {product:?}"), outcome);
                }
            }
        }
        let batched = Product {
            batch: 6,
            x: Matrix { leading: 40, turned: false, batch_stride: 24 * 40 },
            w: Matrix { leading: 32, turned: false, batch_stride: 40 * 32 },
            out_batch_stride: 24 * 32,
            ..linear(24, 32, 40, dtype)
        };
        let outcome = run_product(gpu, blas, &batched, &mut r);
        gpu.outcome(&format!("batched product {dtype}"), outcome);
        let shared = Product { x: Matrix { batch_stride: 0, ..batched.x }, ..batched };
        let outcome = run_product(gpu, blas, &shared, &mut r);
        gpu.outcome(&format!("product with a shared matrix {dtype}"), outcome);
    }
    let product = linear(64, 64, 64, DType::F16);
    let wide = Product { out: DType::F32, ..product };
    let outcome = run_product(gpu, blas, &wide, &mut r);
    gpu.outcome("product of halves to f32", outcome);
}

fn run_product(gpu: &Gpu, blas: &Blas, p: &Product, r: &mut Random) -> Result<String, String> {
    let say = |e: CudaError| e.to_string();
    let x = r.floats(p.dtype, &[p.x.batch_stride.max(p.m * p.k) * p.batch]);
    let w = r.floats(p.dtype, &[p.w.batch_stride.max(p.n * p.k) * p.batch]);
    let bias = r.floats(p.out, &[p.n]);
    let residual = r.floats(p.out, &[p.batch * p.m * p.n]);
    let (vx, vw, vb, vr) = (x.to_f64_vec(), w.to_f64_vec(), bias.to_f64_vec(), residual.to_f64_vec());
    let at = |m: &Matrix, b: usize, i: usize, j: usize| {
        b * m.batch_stride + if m.turned { j * m.leading + i } else { i * m.leading + j }
    };
    let mut want = Vec::new();
    for b in 0..p.batch {
        for i in 0..p.m {
            for j in 0..p.n {
                let mut sum: f64 = (0..p.k).map(|l| vx[at(&p.x, b, i, l)] * vw[at(&p.w, b, l, j)]).sum();
                sum += if p.bias { vb[j] } else { 0.0 };
                sum += if p.residual { vr[(b * p.m + i) * p.n + j] } else { 0.0 };
                want.push(match p.act {
                    Activation::None => sum,
                    Activation::Relu => sum.max(0.0),
                    Activation::GeluTanh => ops::UnaryFn::GeluTanh.apply_f64(sum),
                });
            }
        }
    }
    let shape = [p.batch * p.m * p.n];
    let want = Tensor::from_f64(p.out, &shape, &want);
    let candidates = blas.candidates(p, 32).map_err(say)?;
    let pinned = Algorithm::from_text(&candidates[0].to_text()).and_then(|a| blas.check(p, &a));
    let pinned = pinned.ok_or("an algorithm is not taken back from its text")?;
    let regions = [&x, &w, &bias, &residual].map(|t| gpu.upload(t.bytes()));
    let [x, w, bias, residual] = regions;
    let (x, w) = (x.map_err(say)?, w.map_err(say)?);
    let (bias, residual) = (bias.map_err(say)?, residual.map_err(say)?);
    let workspace = gpu.poisoned(WORKSPACE).map_err(say)?;
    let mut worst = 0.0f64;
    for algorithm in [&pinned, candidates.last().expect("there is one")] {
        let out = gpu.poisoned(shape[0] * p.out.size()).map_err(say)?;
        let operands = Operands {
            x: x.span(),
            w: w.span(),
            bias: p.bias.then_some(bias.span()),
            residual: p.residual.then_some(residual.span()),
            out: out.span(),
            workspace: Some(workspace.span()),
        };
        blas.launch(&gpu.stream, p, algorithm, operands).map_err(say)?;
        let found = tensor(p.out, &shape, &gpu.download(&out).map_err(say)?);
        worst = worst.max(distance(&found, &want));
    }
    let most = tolerance(p.dtype) * if p.act == Activation::GeluTanh { 40.0 } else { 1.5 };
    if worst <= most { Ok(format!("{worst:.1e}")) } else { Err(format!("off by {worst:.2e}, most {most:.0e}")) }
}

fn convolutions(gpu: &mut Gpu, dnn: &Dnn) {
    let mut r = Random(71);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for layout in [SpatialLayout::Nhwc, SpatialLayout::Nchw] {
            for (groups, kernel, stride) in [(1, 3, 1), (1, 1, 1), (1, 7, 2), (2, 3, 2)] {
                for (act, bias, residual, act_first) in [
                    (ops::Activation::None, false, false, false),
                    (ops::Activation::Relu, true, false, false),
                    (ops::Activation::Relu, true, true, false),
                    (ops::Activation::Silu, true, true, true),
                    (ops::Activation::Relu6, true, false, false),
                ] {
                    let op = Conv {
                        stride: vec![stride; 2],
                        padding: vec![kernel / 2; 2],
                        dilation: vec![1; 2],
                        groups,
                        layout,
                        act,
                        act_first,
                    };
                    let outcome = run_conv(gpu, dnn, op.clone(), dtype, kernel, bias, residual, &mut r);
                    match outcome.transpose() {
                        Some(outcome) => gpu.outcome(&format!("cuDNN {dtype} {op:?}"), outcome),
                        None => gpu.refused += 1,
                    }
                }
            }
        }
    }
}

/// `None` when cuDNN has no algorithm: engines run such a convolution on a kernel of our own.
#[allow(clippy::too_many_arguments)]
fn run_conv(
    gpu: &Gpu,
    dnn: &Dnn,
    op: Conv,
    dtype: DType,
    kernel: usize,
    bias: bool,
    residual: bool,
    r: &mut Random,
) -> Result<Option<String>, String> {
    let say = |e: CudaError| e.to_string();
    let layout = op.layout;
    let x = r.floats(dtype, &layout.shape(&2, &16, &[12, 9]));
    let w = r.floats(dtype, &[24, 16 / op.groups, kernel, kernel]);
    let b = r.floats(dtype, &[24]);
    let plain = Op::from(Conv { act: ops::Activation::None, act_first: false, ..op.clone() });
    let out_shape = plain.eval(&[Some(&x), Some(&w)]).map_err(|e| e.to_string())?[0].shape().to_vec();
    let res = r.floats(dtype, &out_shape);
    let mut inputs = vec![Some(&x), Some(&w), bias.then_some(&b), residual.then_some(&res)];
    while inputs.last().is_some_and(Option::is_none) {
        inputs.pop();
    }
    let want = Op::from(op.clone()).eval(&inputs).map_err(|e| e.to_string())?.remove(0);
    let memory = match layout {
        SpatialLayout::Nchw => w.clone(),
        SpatialLayout::Nhwc => Given { memory: w.clone(), perm: Some(vec![0, 2, 3, 1]) }.value(),
    };
    let problem = ConvProblem {
        op,
        dtype,
        x: x.shape().to_vec(),
        weight: w.shape().to_vec(),
        out: out_shape.clone(),
        bias,
        residual,
        tf32: false,
    };
    let plans = match dnn.conv_plans(&problem, 2) {
        Err(CudaError::NoAlgorithm { .. }) => return Ok(None),
        plans => plans.map_err(say)?,
    };
    let regions = [&x, &memory, &b, &res].map(|t| gpu.upload(t.bytes()));
    let regions = regions.into_iter().collect::<Result<Vec<Region>, _>>().map_err(say)?;
    let mut worst = 0.0f64;
    for plan in &plans {
        let out = gpu.poisoned(want.bytes().len()).map_err(say)?;
        let workspace = gpu.poisoned(plan.workspace()).map_err(say)?;
        let there = [true, true, bias, residual];
        let operands = [0, 1, 2, 3].map(|i| there[i].then(|| regions[i].span()));
        plan.launch(&gpu.stream, operands, out.span(), Some(workspace.span())).map_err(say)?;
        let found = tensor(dtype, &out_shape, &gpu.download(&out).map_err(say)?);
        worst = worst.max(distance(&found, &want));
    }
    let most = tolerance(dtype) * 1.5;
    if worst <= most {
        Ok(Some(format!("{worst:.1e}")))
    } else {
        Err(format!("off by {worst:.2e} in one of {}", plans.len()))
    }
}

/// Captures products, updates the executable to other weights, and looks at what it computes.
fn graphs(gpu: &Gpu, blas: &Blas) -> Result<String, String> {
    let say = |e: CudaError| e.to_string();
    let p = linear(64, 64, 64, DType::F16);
    let mut r = Random(3);
    let x = gpu.upload(r.floats(DType::F16, &[64, 64]).bytes()).map_err(say)?;
    let weights = [0, 1].map(|_| gpu.upload(r.floats(DType::F16, &[64, 64]).bytes()));
    let [a, b] = weights;
    let (a, b) = (a.map_err(say)?, b.map_err(say)?);
    let algorithm = blas.candidates(&p, 1).map_err(say)?.remove(0);
    let workspace = gpu.poisoned(WORKSPACE).map_err(say)?;
    let outs: Vec<Region> = (0..100).map(|_| gpu.poisoned(64 * 64 * 2)).collect::<Result<_, _>>().map_err(say)?;
    let all = |w: &Region| -> Result<(), CudaError> {
        for out in &outs {
            let operands = Operands {
                x: x.span(),
                w: w.span(),
                bias: None,
                residual: None,
                out: out.span(),
                workspace: Some(workspace.span()),
            };
            blas.launch(&gpu.stream, &p, &algorithm, operands)?;
        }
        Ok(())
    };
    all(&a).map_err(say)?;
    let want_a = gpu.download(&outs[99]).map_err(say)?;
    all(&b).map_err(say)?;
    let want_b = gpu.download(&outs[99]).map_err(say)?;
    let start = std::time::Instant::now();
    let first = gpu.stream.capture(|| all(&a)).map_err(say)?;
    let captured = start.elapsed().as_micros();
    let mut executable: Executable = first.instantiate().map_err(say)?;
    executable.upload(&gpu.stream).map_err(say)?;
    let read = |executable: &Executable| {
        executable.launch(&gpu.stream)?;
        gpu.download(&outs[99])
    };
    if read(&executable).map_err(say)? != want_a {
        return Err("the graph computes something else".into());
    }
    let second = gpu.stream.capture(|| all(&b)).map_err(say)?;
    let start = std::time::Instant::now();
    let updated = executable.update(&second).map_err(say)?;
    let took = start.elapsed().as_micros();
    if updated != Updated::Done || read(&executable).map_err(say)? != want_b {
        return Err(format!("after the update ({updated:?}) the graph computes something else"));
    }
    let shorter = gpu.stream.capture(|| gpu.stream.fill(&outs[0], 0)).map_err(say)?;
    if executable.update(&shorter).map_err(say)? != Updated::Differs || read(&executable).map_err(say)? != want_b {
        return Err("an update with another graph".into());
    }
    let event = Event::new(&gpu.context).map_err(say)?;
    gpu.stream.record(&event).map_err(say)?;
    event.wait().map_err(say)?;
    if !event.is_done().map_err(say)? {
        return Err("an event that was waited for is not done".into());
    }
    Ok(format!("100 products: capture {captured} µs, update {took} µs"))
}
