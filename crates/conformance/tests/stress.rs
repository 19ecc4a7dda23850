//! Real threads under load: runs, refits, adapters, roll-backs and variants at once. Every output must be that of exactly one
//! generation. `scripts/race.sh` runs this under a race detector.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use regraft::{
    Adapter, Model, Refit, RuntimeErrorKind, StateDict, Tensor,
    adapter::{AdapterLayer, Factors, Update},
};
use regraft_backend_cpu::CpuDevice;
use regraft_conformance::{Case, FULL, own_weights};

/// Rounds of each writing thread, unless `REGRAFT_STRESS` says otherwise.
const ROUNDS: usize = 40;

fn rounds() -> usize {
    std::env::var("REGRAFT_STRESS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS)
}

/// What a generation may hold, and so what its runs give.
struct Marked {
    weights: [StateDict; 2],
    adapter: Arc<Adapter>,
    /// Outputs of A, B, A with the adapter, B with the adapter.
    outputs: Vec<Vec<Tensor>>,
}

impl Marked {
    fn new(model: &Model, weights: [StateDict; 2], inputs: &[Tensor]) -> Marked {
        let adapter = Arc::new(lora(model));
        let mut outputs = Vec::new();
        for with in [vec![], vec![(adapter.clone(), 0.5)]] {
            for weights in &weights {
                let options = FULL;
                let refit = Refit::new().weights(weights, &options).adapters(&with).expect("one adapter");
                refit.run(model).expect("the weights fit");
                outputs.push(model.run(inputs).expect("it runs"));
            }
        }
        Marked { weights, adapter, outputs }
    }

    /// Which of the four outputs these are.
    fn of(&self, outputs: &[Tensor]) -> usize {
        let same = |known: &&Vec<Tensor>| known.iter().zip(outputs).all(|(a, b)| a.bit_equal(b));
        let found: Vec<usize> = (0..4).filter(|i| same(&&self.outputs[*i])).collect();
        assert_eq!(found.len(), 1, "an output of exactly one generation");
        found[0]
    }
}

/// A LoRA on every matrix.
fn lora(model: &Model) -> Adapter {
    let matrices = model.refit_map().sources.iter().enumerate().filter(|(_, s)| s.shape.len() == 2);
    let layer = |(source, info): (usize, &regraft::SourceInfo)| {
        let numbers = |len: usize| (0..len).map(|i| (i % 7) as f32 * 0.1 - 0.3).collect::<Vec<_>>();
        let (rows, cols) = (info.shape[0], info.shape[1]);
        let up = Tensor::from_slice(&[rows, 2], &numbers(rows * 2));
        let down = Tensor::from_slice(&[2, cols], &numbers(2 * cols));
        AdapterLayer { source, update: Update::LowRank { factors: Factors { up, down }, scale: 1.0, magnitude: None } }
    };
    Adapter::new("stress", matrices.map(layer).collect())
}

/// Runs until told to stop, and at least once.
fn run(model: &Model, inputs: &[Tensor], marked: &Marked, done: &AtomicBool) {
    loop {
        marked.of(&model.run(inputs).expect("no run fails while others write"));
        if done.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Refits back and forth, with and without the adapter, in steps that may be overtaken, and rolls back at times.
fn refit(model: &Model, marked: &Marked, seed: usize) {
    for round in 0..rounds() {
        let (weights, options) = (&marked.weights[(round + seed) % 2], FULL);
        let with = if (round / 2 + seed).is_multiple_of(2) { vec![(marked.adapter.clone(), 0.5)] } else { vec![] };
        let refit = Refit::new().weights(weights, &options).adapters(&with).expect("one adapter");
        match refit.stage(model).expect("the weights fit").publish() {
            Ok(_) => {}
            Err(error) => assert!(matches!(error.kind(), RuntimeErrorKind::Stale), "{error}"),
        }
        if round % 5 == seed
            && let Err(error) = model.rollback()
        {
            assert!(matches!(error.kind(), RuntimeErrorKind::NoPrevious), "{error}");
        }
    }
}

/// Makes variants, runs them by name and drops them, while what they were forked from changes.
fn vary(model: &Model, inputs: &[Tensor], marked: &Marked) {
    for round in 0..rounds() {
        let variant = model.fork();
        variant.adapters().clear().expect("a fork is refitted like any model");
        variant.refit(&marked.weights[round % 2], &FULL).expect("the weights fit");
        model.add_variant("v", variant).expect("a fork of this model");
        let user = model.variants().get("v").expect("it was added");
        let outputs = thread::scope(|scope| {
            let runner = scope.spawn(|| user.run(inputs).expect("it runs on whatever its name means"));
            model.variants().remove("v");
            runner.join().expect("it runs")
        });
        assert_eq!(marked.of(&outputs), round % 2, "a variant's runs are its own");
    }
}

#[test]
fn r_18_v_2_runs_refits_and_variants_at_once() {
    let case = Case::open("mlp_gelu");
    let engine = case.compile();
    let weights = [own_weights(&engine), case.weights_b()];
    // On one thread each, so that what meets is runs and refits, and no pools of threads.
    let model = regraft::model(engine, regraft_conformance::around(CpuDevice::new(Some(1))))
        .expect("it was compiled for this machine");
    model.set_keep_previous(true);
    let inputs = case.tensors("input");
    let marked = Marked::new(&model, weights, &inputs);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let runners: Vec<_> = (0..2).map(|_| scope.spawn(|| run(&model, &inputs, &marked, &done))).collect();
        let writers = [0, 1].map(|seed| {
            scope.spawn({
                let (model, marked) = (&model, &marked);
                move || refit(model, marked, seed)
            })
        });
        let varying = scope.spawn(|| vary(&model, &inputs, &marked));
        let written: Vec<_> = writers.into_iter().chain([varying]).map(|thread| thread.join()).collect();
        done.store(true, Ordering::Relaxed);
        for thread in written.into_iter().chain(runners.into_iter().map(|thread| thread.join())) {
            thread.expect("no thread saw anything wrong");
        }
    });
}
