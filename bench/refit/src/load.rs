//! Latencies of a load that runs on one thread, while refits are staged on another core and while they are not.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use regraft::{Compiler, DType, DeviceName, Model, RefitOptions, StateDict, Tensor, Threads};

use crate::{
    Result,
    times::{quantile, time},
};

/// Runs with and without refits are interleaved in blocks of this length, so that other load of the machine affects both.
const TURN: Duration = Duration::from_secs(4);

/// Latencies in milliseconds.
pub(crate) struct Figures {
    quiet: Vec<f64>,
    refitted: Vec<f64>,
    refits: usize,
    refit_ms: f64,
    every: Duration,
}

impl Figures {
    pub(crate) fn text(&self) -> String {
        let line = |what: &str, values: &[f64]| {
            let at = |share| quantile(values, share);
            format!("{what}: {} runs, median {:.2} ms, p99 {:.2} ms", values.len(), at(0.5), at(0.99))
        };
        let (quiet, refitted) = (quantile(&self.quiet, 0.99), quantile(&self.refitted, 0.99));
        format!(
            "{}\n{}, {} refits of {:.1} ms\np99 with refits ÷ without: {:.3}",
            line("without refits", &self.quiet),
            line(&format!("with a refit every {} ms", self.every.as_millis()), &self.refitted),
            self.refits,
            self.refit_ms,
            refitted / quiet
        )
    }
}

pub(crate) fn measure(program: &Path, device: DeviceName, seconds: u64, every: Duration) -> Result<Figures> {
    let compiled = Compiler::new().device(device).compile(program)?;
    // Runs on one thread of the CPU leave the others to refits.
    let threads = if device == DeviceName::Cpu { Threads::Count(1) } else { Threads::Auto };
    let model = regraft::model(compiled.engine, regraft::device(device, threads)?)?;
    let inputs = inputs(&model);
    let weights = [shifted(&model, 0.0), shifted(&model, 1e-3)];
    for weights in &weights {
        model.refit(weights, &RefitOptions::default())?;
    }
    let mut session = model.session();
    session.run(&inputs)?;
    let refitting = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicBool::new(false));
    let refitter = {
        let (model, refitting, done) = (model.clone(), refitting.clone(), done.clone());
        thread::spawn(move || refit_regularly(&model, &weights, every, &refitting, &done))
    };
    let mut figures = Figures { quiet: Vec::new(), refitted: Vec::new(), refits: 0, refit_ms: 0.0, every };
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(seconds) {
        let with_refits = start.elapsed().as_millis() / TURN.as_millis() % 2 == 1;
        refitting.store(with_refits, Ordering::SeqCst);
        let (ms, outputs) = time(|| session.run(&inputs));
        outputs?;
        if with_refits { &mut figures.refitted } else { &mut figures.quiet }.push(ms);
    }
    done.store(true, Ordering::SeqCst);
    let times = refitter.join().map_err(|_| "the refitting thread panicked")?;
    figures.refits = times.len();
    figures.refit_ms = quantile(&times, 0.5);
    Ok(figures)
}

fn refit_regularly(
    model: &Model,
    weights: &[StateDict; 2],
    every: Duration,
    on: &AtomicBool,
    done: &AtomicBool,
) -> Vec<f64> {
    let mut times = Vec::new();
    while !done.load(Ordering::SeqCst) {
        if on.load(Ordering::SeqCst) {
            match model.refit(&weights[times.len() % 2], &RefitOptions::default()) {
                Ok(report) => times.push(report.phases_ms.total()),
                Err(_) => return times,
            }
            thread::sleep(every);
        } else {
            thread::sleep(Duration::from_millis(20));
        }
    }
    times
}

/// All weights, floats moved by `by`.
fn shifted(model: &Model, by: f64) -> StateDict {
    let Some(generation) = model.generation() else { return StateDict::new() };
    let shift = |tensor: &Tensor| match tensor.dtype().is_float() {
        true => {
            let values: Vec<f64> = tensor.to_f64_vec().into_iter().map(|v| v + by).collect();
            Tensor::from_f64(tensor.dtype(), tensor.shape(), &values)
        }
        false => tensor.clone(),
    };
    (model.refit_map().sources.iter().zip(&generation.sources))
        .filter_map(|(info, content)| Some((info.name.clone(), shift(&content.tensor().ok()??))))
        .collect()
}

/// Inputs of the sizes that the program was exported with; ids and masks are ones.
fn inputs(model: &Model) -> Vec<Tensor> {
    let graph = &model.plan().graph;
    let opts: Vec<i64> = graph.symbols.iter().map(|s| s.opt).collect();
    let input = |input: &regraft::ir::Input| {
        let ty = graph.ty(input.value);
        let shape: Vec<usize> = ty.shape.iter().map(|d| d.eval(&opts).unwrap_or(1) as usize).collect();
        let count = shape.iter().product::<usize>();
        match ty.dtype.is_float() {
            true => {
                let values: Vec<f64> = (0..count).map(|i| (i * 7919 % 10007) as f64 * 2e-4 - 1.0).collect();
                Tensor::from_f64(ty.dtype, &shape, &values)
            }
            false if ty.dtype == DType::Bool => Tensor::from_bools(&shape, &vec![true; count]),
            false => Tensor::from_i64(ty.dtype, &shape, &vec![1; count]),
        }
    };
    graph.inputs.iter().map(input).collect()
}
