//! Checks everything of this crate on a device, against the reference evaluator: `gpu_check [kernels|small|all|time]`. `kernels` and
//! `small` are small sizes; the first leaves NVIDIA's libraries out.
//!
//! `scripts/gpu/check.sh` runs it on a machine with a GPU. It needs nothing but the driver and NVIDIA's libraries there.
#![allow(missing_docs)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod libraries;
mod packs;
mod slots;
mod speed;

use std::{collections::HashSet, process::ExitCode, time::Instant};

use common::{Case, Given};
use regraft_backend_cuda::{
    CudaError, Kernels, Memory,
    driver::{Buffer, Context, Driver, Priority, Region, Span, Stream},
    library::{LibraryKind, Lookup},
    nvrtc::{Compiler, CubinCache},
};
use regraft_tensor::{DType, Tensor};

/// A device with everything opened.
pub struct Gpu {
    pub lookup: Lookup,
    pub context: Context,
    pub stream: Stream,
    pub kernels: Kernels,
    pub failed: usize,
    pub passed: usize,
    /// What a library has no algorithm for.
    pub refused: usize,
}

impl Gpu {
    pub fn upload(&self, bytes: &[u8]) -> Result<Region, CudaError> {
        let region = Buffer::new(&self.context, bytes.len())?.region();
        self.stream.upload_slice(bytes, &region)?;
        Ok(region)
    }

    /// Memory that is poisoned, so that what is not written shows.
    pub fn poisoned(&self, len: usize) -> Result<Region, CudaError> {
        let region = Buffer::new(&self.context, len)?.region();
        self.stream.fill(&region, 0xff)?;
        Ok(region)
    }

    pub fn download(&self, region: &Region) -> Result<Vec<u8>, CudaError> {
        let mut bytes = vec![0; region.len()];
        self.stream.download_slice(region, &mut bytes)?;
        Ok(bytes)
    }

    pub fn outcome(&mut self, name: &str, outcome: Result<String, String>) {
        match outcome {
            Ok(_) => self.passed += 1,
            Err(why) => {
                self.failed += 1;
                println!("FAILED {name}: {why}");
            }
        }
    }
}

/// The relative distance of two tensors; infinite when they differ in a NaN.
pub fn distance(found: &Tensor, want: &Tensor) -> f64 {
    let (found, want) = (found.to_f64_vec(), want.to_f64_vec());
    let (mut off, mut size) = (0.0, 0.0);
    for (f, w) in found.iter().zip(&want) {
        if f.is_nan() != w.is_nan() || (w.is_infinite() && f != w) || (f.is_infinite() && f != w) {
            return f64::INFINITY;
        }
        if w.is_finite() {
            off += (f - w) * (f - w);
            size += w * w;
        }
    }
    if size == 0.0 { off.sqrt() } else { (off / size).sqrt() }
}

pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1.5e-3,
        DType::BF16 => 1e-2,
        d if d.is_float() => 3e-6,
        _ => 0.0,
    }
}

pub fn tensor(dtype: DType, shape: &[usize], bytes: &[u8]) -> Tensor {
    Tensor::new(dtype, shape.to_vec(), regraft_tensor::AlignedVec::copy_of(bytes).into()).expect("the sizes fit")
}

fn run_case(gpu: &Gpu, case: &Case) -> Result<f64, String> {
    let say = |e: CudaError| e.to_string();
    let inputs: Vec<Option<Region>> = case
        .inputs
        .iter()
        .map(|g| g.as_ref().map(|g: &Given| gpu.upload(ordered(case, g).bytes())).transpose())
        .collect::<Result<_, _>>()
        .map_err(say)?;
    let types = case.outputs();
    let outputs: Vec<Region> = types
        .iter()
        .map(|(d, s)| gpu.poisoned(s.iter().product::<usize>() * d.size()))
        .collect::<Result<_, _>>()
        .map_err(say)?;
    let specs = case.specs();
    let scratch = specs.iter().map(|s| s.scratch).max().unwrap_or(0);
    let scratch = gpu.poisoned(scratch).map_err(say)?;
    let report = gpu.upload(&[0; 32]).map_err(say)?;
    for spec in &specs {
        let step = gpu.kernels.step(spec).map_err(say)?;
        let spans: Vec<Option<Span>> = inputs.iter().map(|r| r.as_ref().map(Region::span)).collect();
        let results: Vec<Span> = outputs.iter().map(Region::span).collect();
        let memory = Memory {
            inputs: &spans,
            outputs: &results,
            scratch: Some(scratch.span()),
            report: Some((report.span(), 5)),
        };
        step.launch(&gpu.stream, &memory).map_err(say)?;
    }
    gpu.stream.synchronize().map_err(say)?;
    if gpu.download(&report).map_err(say)? != [0; 32] {
        return Err("an index was reported out of range".into());
    }
    let mut worst = 0.0f64;
    for ((region, (dtype, shape)), want) in outputs.iter().zip(&types).zip(case.want()) {
        let found = tensor(*dtype, shape, &gpu.download(region).map_err(say)?);
        let off = distance(&found, &want);
        let most = tolerance(*dtype).max(case_tolerance(case, *dtype));
        if off.is_nan() || off > most {
            let (f, w) = (found.to_f64_vec(), want.to_f64_vec());
            let at = f
                .iter()
                .zip(&w)
                .position(|(f, w)| (f - w).abs() > 1e-3 * w.abs().max(1e-3) || f.is_nan() != w.is_nan());
            let at = at.unwrap_or(0);
            return Err(format!(
                "off by {off:.2e} (most {most:.0e}); element {at} of {}: {} for {}",
                f.len(),
                f[at],
                w[at]
            ));
        }
        worst = worst.max(off);
    }
    Ok(worst)
}

/// What the tolerance of a type is too narrow for: chains round between steps in the reference, and not in the kernel.
fn case_tolerance(case: &Case, dtype: DType) -> f64 {
    match case.op {
        regraft_ir::Op::Fused(_) if dtype.is_float() => tolerance(dtype) * 2.0,
        // A sum near zero of large numbers.
        regraft_ir::Op::Reduce(_) if dtype == DType::F32 => 2e-5,
        _ => 0.0,
    }
}

/// The memory of an operand; weights of convolutions in the order that the case says.
fn ordered(case: &Case, given: &Given) -> Tensor {
    let is_weight = matches!(case.op, regraft_ir::Op::Conv(_))
        && case.order == regraft_backend_cuda::kernels::conv::WeightOrder::ChannelsLast
        && case.inputs[1]
            .as_ref()
            .is_some_and(|w| w.memory.shape() == given.memory.shape() && w.memory.bytes() == given.memory.bytes());
    if !is_weight {
        return given.memory.clone();
    }
    let rank = given.memory.shape().len();
    let perm: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    Given { memory: given.memory.clone(), perm: Some(perm) }.value()
}

fn check_kernels(gpu: &mut Gpu, small: bool, seeds: u64) {
    let mut families: Vec<(String, usize, f64)> = Vec::new();
    for seed in 1..=seeds {
        let cases = common::cases(seed * 7919, small);
        let mut seen = HashSet::new();
        let sources: Vec<_> =
            cases.iter().flat_map(|c| c.specs()).map(|s| s.source).filter(|s| seen.insert(s.clone())).collect();
        let start = Instant::now();
        if let Err(error) = gpu.kernels.warm(&sources) {
            println!("FAILED compiling: {error}");
            gpu.failed += 1;
            return;
        }
        println!("compiled {} sources in {:.2} s", sources.len(), start.elapsed().as_secs_f64());
        for case in &cases {
            let outcome = run_case(gpu, case);
            if let Ok(off) = outcome {
                let family = case.op.name().to_owned();
                match families.iter_mut().find(|f| f.0 == family) {
                    Some(f) => (f.1, f.2) = (f.1 + 1, f.2.max(off)),
                    None => families.push((family, 1, off)),
                }
            }
            gpu.outcome(&case.name, outcome.map(|o| format!("{o:.1e}")));
        }
    }
    println!("{:<20} {:>6} {:>12}", "op", "cases", "worst error");
    for (family, count, worst) in families {
        println!("{family:<20} {count:>6} {worst:>12.2e}");
    }
}

fn open() -> Result<Gpu, CudaError> {
    let lookup = Lookup::from_environment();
    for kind in LibraryKind::ALL {
        println!("{kind}: {:?}", lookup.candidates(kind));
    }
    let driver = Driver::open(&lookup)?;
    println!("driver {} with {} devices", driver.version(), driver.device_count()?);
    let start = Instant::now();
    let context = Context::open(&driver, 0)?;
    println!("{:?} in {:.0} ms", context.info(), start.elapsed().as_secs_f64() * 1e3);
    let compiler = Compiler::open(&lookup)?;
    println!("NVRTC {} at {}", compiler.version(), compiler.path().display());
    let stream = Stream::new(&context, Priority::High)?;
    let folder = std::env::temp_dir().join("regraft-cubins");
    let kernels = Kernels::new(&context, compiler, CubinCache::new(folder));
    Ok(Gpu { lookup, context, stream, kernels, failed: 0, passed: 0, refused: 0 })
}

fn main() -> ExitCode {
    let mode = std::env::args().nth(1).unwrap_or_else(|| "all".into());
    let mut gpu = match open() {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("FAILED to open: {error}");
            return ExitCode::FAILURE;
        }
    };
    let small = mode == "small" || mode == "kernels";
    if mode != "time" {
        check_kernels(&mut gpu, small, if small { 1 } else { 2 });
        packs::check(&mut gpu);
        slots::check(&mut gpu);
    }
    if mode != "time" && mode != "kernels" {
        libraries::check(&mut gpu, small);
    }
    if !small {
        speed::measure(&mut gpu);
    }
    println!("{} passed, {} failed, {} refused by a library", gpu.passed, gpu.failed, gpu.refused);
    if gpu.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
