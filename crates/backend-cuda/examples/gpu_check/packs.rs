//! Grouped packing, merging and comparing.

use regraft_backend_cuda::{
    CudaError,
    driver::{Args, Launch},
    kernels::pack::{Axis, Layout, Merge, Pair, Places, Table, source},
};
use regraft_tensor::{DType, Tensor};

use crate::{Gpu, common::Random, distance, tensor, tolerance};

fn launch(
    gpu: &Gpu,
    entry: &str,
    table: &Table,
    flags: Option<&regraft_backend_cuda::driver::Region>,
    blocks: u32,
) -> Result<(), CudaError> {
    let jobs = gpu.upload(&table.bytes)?;
    let function = gpu.kernels.module(&source())?.function(entry, 0)?;
    let mut args = Args::new();
    args.region(&jobs).i32(table.jobs as i32).i64(table.pieces as i64);
    if let Some(flags) = flags {
        args.region(flags);
    }
    let grid = [(table.pieces as u32).min(blocks), 1, 1];
    function.launch(&gpu.stream, Launch { grid, block: 256, shared: 0 }, &mut args)?;
    gpu.stream.synchronize()
}

pub(crate) fn check(gpu: &mut Gpu) {
    for blocks in [2, 100_000] {
        let outcome = moves(gpu, blocks);
        gpu.outcome("pack", outcome);
        let outcome = wide_moves(gpu, blocks);
        gpu.outcome("pack, wide words", outcome);
        let outcome = merges(gpu, blocks);
        gpu.outcome("merge", outcome);
        let outcome = compares(gpu, blocks);
        gpu.outcome("differ", outcome);
    }
}

/// Casts, transposes and scales of several matrices in one launch.
fn moves(gpu: &Gpu, blocks: u32) -> Result<String, String> {
    let say = |e: CudaError| e.to_string();
    let mut r = Random(91);
    let (mut table, mut wants, mut keep) = (Table::default(), Vec::new(), Vec::new());
    let floats = [DType::F32, DType::F16, DType::BF16];
    for from in floats {
        for to in floats {
            for (turned, scaled) in [(false, false), (true, false), (false, true)] {
                let (rows, cols) = (r.between(1, 90), r.between(1, 30) * if r.below(2) == 0 { 4 } else { 1 });
                let x = r.floats(from, &[rows, cols]);
                let scale = r.floats(DType::F32, &[rows]);
                let values = x.to_f64_vec();
                let s = scale.to_f64_vec();
                let (out_shape, want): ([usize; 2], Vec<f64>) = if turned {
                    ([cols, rows], (0..rows * cols).map(|i| values[i % rows * cols + i / rows]).collect())
                } else {
                    let by = |i: usize| if scaled { (s[i / cols] as f32 * values[i] as f32) as f64 } else { values[i] };
                    ([rows, cols], (0..rows * cols).map(by).collect())
                };
                let region = gpu.upload(x.bytes()).map_err(say)?;
                let scales = gpu.upload(scale.bytes()).map_err(say)?;
                let out = gpu.poisoned(rows * cols * to.size()).map_err(say)?;
                let axes = if turned {
                    vec![Axis { size: cols, from: 1, to: rows, by: 0 }, Axis { size: rows, from: cols, to: 1, by: 0 }]
                } else {
                    vec![Axis { size: rows, from: cols, to: cols, by: 1 }, Axis { size: cols, from: 1, to: 1, by: 0 }]
                };
                let layout = Layout::new((from, to), scaled, &axes).map_err(|e| e.to_string())?;
                let scale = if scaled { scales.address() } else { 0 };
                table.push(&layout, Places { source: region.address(), target: out.address(), scale });
                wants.push((out, to, out_shape, Tensor::from_f64(to, &out_shape, &want)));
                keep.push((region, scales));
            }
        }
    }
    launch(gpu, "pack", &table, None, blocks).map_err(say)?;
    for (i, (out, dtype, shape, want)) in wants.iter().enumerate() {
        let found = tensor(*dtype, shape, &gpu.download(out).map_err(say)?);
        if !found.bit_equal(want) {
            return Err(format!("job {i}: {dtype}{shape:?} off by {:.1e}", distance(&found, want)));
        }
    }
    Ok(format!("{} jobs", table.jobs))
}

/// Runs, and channels that go last, from and to addresses that wide words may have and others, of lengths that are many pieces and that
/// are none.
fn wide_moves(gpu: &Gpu, blocks: u32) -> Result<String, String> {
    let say = |e: CudaError| e.to_string();
    let mut r = Random(47);
    let (mut table, mut wants, mut keep) = (Table::default(), Vec::new(), Vec::new());
    for dtype in [DType::U8, DType::F16, DType::F32, DType::I64] {
        let size = dtype.size();
        for skew in [0, 1] {
            let mut add = |axes: &[Axis], order: &dyn Fn(usize) -> usize, len: usize| -> Result<(), String> {
                let bytes: Vec<u8> = (0..(len + skew) * size).map(|_| r.next() as u8).collect();
                let source = gpu.upload(&bytes).map_err(say)?;
                let out = gpu.upload(&vec![0xa5; (len + skew) * size]).map_err(say)?;
                let layout = Layout::new((dtype, dtype), false, axes).map_err(|e| e.to_string())?;
                let first = (skew * size) as u64;
                table.push(
                    &layout,
                    Places { source: source.address() + first, target: out.address() + first, scale: 0 },
                );
                let mut want = vec![0xa5; (len + skew) * size];
                for i in 0..len {
                    let (from, to) = ((skew + i) * size, (skew + order(i)) * size);
                    want[to..to + size].copy_from_slice(&bytes[from..from + size]);
                }
                wants.push((out, want, format!("{dtype}, skew {skew}, {axes:?}")));
                keep.push(source);
                Ok(())
            };
            for len in [1, 7, 8, 31, 4096, 16_384, 100_003] {
                add(&[Axis { size: len, from: 1, to: 1, by: 0 }], &|i| i, len)?;
            }
            for (out, channels, window) in [(3, 8, 9), (5, 320, 9), (2, 36, 9), (7, 64, 4), (1, 1280, 16), (2, 4096, 2)]
            {
                let axes = [
                    Axis { size: out, from: channels * window, to: channels * window, by: 0 },
                    Axis { size: window, from: 1, to: channels, by: 0 },
                    Axis { size: channels, from: window, to: 1, by: 0 },
                ];
                let order = |i: usize| {
                    let (row, i) = (i / (channels * window), i % (channels * window));
                    row * channels * window + i % window * channels + i / window
                };
                add(&axes, &order, out * channels * window)?;
            }
        }
    }
    launch(gpu, "pack", &table, None, blocks).map_err(say)?;
    for (out, want, says) in &wants {
        if gpu.download(out).map_err(say)? != *want {
            return Err(says.clone());
        }
    }
    Ok(format!("{} jobs", table.jobs))
}

/// `W + up·down` of several matrices in one launch.
fn merges(gpu: &Gpu, blocks: u32) -> Result<String, String> {
    let say = |e: CudaError| e.to_string();
    let mut r = Random(17);
    let (mut jobs, mut wants, mut keep) = (Vec::new(), Vec::new(), Vec::new());
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for (rank, scale) in [(1, 1.0), (4, 0.3), (16, 1.0), (33, -2.0)] {
            let (rows, cols) = (r.between(1, 150), r.between(1, 150));
            let w = r.floats(dtype, &[rows, cols]);
            let (up, down) = (r.floats(DType::F32, &[rows, rank]), r.floats(DType::F32, &[rank, cols]));
            let (a, b, v) = (up.to_f64_vec(), down.to_f64_vec(), w.to_f64_vec());
            let sum = |i: usize| {
                (0..rank).map(|q| a[i / cols * rank + q] * scale * b[q * cols + i % cols]).sum::<f64>() + v[i]
            };
            let merged = Tensor::from_f64(dtype, &[rows, cols], &(0..rows * cols).map(sum).collect::<Vec<_>>());
            let regions = [&w, &up, &down].map(|t| gpu.upload(t.bytes()));
            let [w, up, down] = regions;
            let (w, up, down) = (w.map_err(say)?, up.map_err(say)?, down.map_err(say)?);
            let out = gpu.poisoned(rows * cols * dtype.size()).map_err(say)?;
            jobs.push(Merge {
                source: w.address(),
                target: out.address(),
                up: up.address(),
                down: down.address(),
                dtype,
                rows,
                cols,
                rank,
                scale,
            });
            wants.push((out, [rows, cols], merged));
            keep.push((w, up, down));
        }
    }
    let table = Table::merges(&jobs).map_err(|e| e.to_string())?;
    launch(gpu, "merge", &table, None, blocks).map_err(say)?;
    for (i, (out, shape, want)) in wants.iter().enumerate() {
        let found = tensor(jobs[i].dtype, shape, &gpu.download(out).map_err(say)?);
        let off = distance(&found, want);
        if off.is_nan() || off > tolerance(jobs[i].dtype) {
            return Err(format!("job {i}: {:?} off by {off:.1e}", jobs[i]));
        }
    }
    Ok(format!("{} jobs", jobs.len()))
}

fn compares(gpu: &Gpu, blocks: u32) -> Result<String, String> {
    let say = |e: CudaError| e.to_string();
    let mut r = Random(5);
    let (mut pairs, mut wants, mut keep) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..40 {
        let n = if i % 5 == 0 { r.between(0, 40) } else { r.between(1, 200_000) };
        let a: Vec<u8> = (0..n).map(|_| r.next() as u8).collect();
        let mut b = a.clone();
        let other = i % 2 == 1 && n > 0;
        if other {
            let at = r.below(n);
            b[at] ^= 1;
        }
        let (x, y) = (gpu.upload(&a).map_err(say)?, gpu.upload(&b).map_err(say)?);
        pairs.push(Pair { first: x.address(), second: y.address(), bytes: n });
        wants.push(other);
        keep.push((x, y));
    }
    let flags = gpu.upload(&vec![0; pairs.len() * 4]).map_err(say)?;
    launch(gpu, "differ", &Table::pairs(&pairs), Some(&flags), blocks).map_err(say)?;
    let bytes = gpu.download(&flags).map_err(say)?;
    let found: Vec<bool> = bytes.chunks(4).map(|c| c[0] != 0).collect();
    if found == wants { Ok("40 pairs".into()) } else { Err(format!("{found:?} for {wants:?}")) }
}
