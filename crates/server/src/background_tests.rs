//! Requests with adapters that wait while weights are published.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use regraft::{Compiler, Digest, Tensor, Threads};
use safetensors::{Dtype, tensor::TensorView};
use tempfile::TempDir;
use tokio::{runtime::Runtime, task::JoinHandle};

use crate::{
    ModelOptions,
    error::{Kind, Refusal},
    run::{self, Answer},
    served::{InferRequest, Served},
    weights::StageRequest,
};

/// The program `mlp_gelu` with weights that say which they are, and an adapter `style` that adds its scale to each weight of the
/// last layer.
struct Bench {
    served: Arc<Served>,
    runtime: Runtime,
    folder: TempDir,
    marks: HashMap<Digest, f32>,
}

fn write(path: &Path, tensors: &[(&str, &[usize], &[f32])]) {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(.., v)| v.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let view = |((name, shape, _), data): (&(&str, &[usize], &[f32]), _)| {
        ((*name).to_owned(), TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap())
    };
    let views: Vec<_> = tensors.iter().zip(bytes.iter().map(Vec::as_slice)).map(view).collect();
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

impl Bench {
    fn new(options: ModelOptions) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let adapters = folder.path().join("adapters");
        fs::create_dir(&adapters).unwrap();
        write(
            &adapters.join("style.safetensors"),
            &[("4.lora_A.weight", &[1, 12], &[1.0; 12]), ("4.lora_B.weight", &[5, 1], &[1.0; 5])],
        );
        fs::write(adapters.join("adapter_config.json"), r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1.0}"#).unwrap();
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/fixtures/mlp_gelu.pt2");
        let model = Compiler::new().threads(Threads::Count(1)).compile(program).unwrap().into_model().unwrap();
        let weights_root = Some(folder.path().to_owned());
        let options = ModelOptions { adapters: Some(adapters), weights_root, ..options };
        let served = Served::new("m".into(), model, options).unwrap();
        Bench { served, runtime: Runtime::new().unwrap(), folder, marks: HashMap::new() }
    }

    /// Publishes weights with which each output is `mark`, and with the adapter `mark` times `1 + 12 * scale`.
    fn publish(&mut self, mark: f32) {
        let (bias2, bias4) = ([mark; 12], [mark; 5]);
        let zeros = [0.0; 192];
        let file = format!("{mark}.safetensors");
        write(
            &self.folder.path().join(&file),
            &[
                ("0.weight", &[16, 10], &zeros[..160]),
                ("0.bias", &[16], &zeros[..16]),
                ("2.weight", &[12, 16], &zeros),
                ("2.bias", &[12], &bias2),
                ("4.weight", &[5, 12], &zeros[..60]),
                ("4.bias", &[5], &bias4),
            ],
        );
        let request = StageRequest { file: Some(file), ..StageRequest::default() };
        let served = self.served.clone();
        self.runtime.block_on(async {
            let turn = served.turn().await;
            served.stage(turn, request, None).await.unwrap();
            served.publish(None).await.unwrap();
        });
        self.marks.insert(self.served.serving().unwrap().weights, mark);
    }

    fn ask(&self, scale: Option<f64>) -> JoinHandle<Result<Answer, Refusal>> {
        let served = self.served.clone();
        let request = InferRequest {
            inputs: vec![Tensor::from_slice(&[3, 10], &[1f32; 30])],
            timeout: None,
            adapter: scale.map(|scale| ("style".to_owned(), scale)),
        };
        self.runtime.spawn(async move { served.infer(request, Instant::now(), Duration::from_secs(60)).await })
    }

    fn wait_for(&self, request: JoinHandle<Result<Answer, Refusal>>) -> Result<Answer, Refusal> {
        self.runtime.block_on(request).unwrap()
    }

    /// The mark that an answer was computed from, which is that of the weights that it names.
    fn mark_of(&self, answer: &Answer, scale: Option<f64>) -> f32 {
        let mark = self.marks[&answer.label.weights];
        let expected = f64::from(mark) * (1.0 + 12.0 * scale.unwrap_or(0.0));
        for value in answer.outputs[0].bytes.as_chunks().0 {
            let found = f64::from(f32::from_le_bytes(*value));
            assert!((found - expected).abs() < 1e-3 * expected, "{found}, expected {expected}");
        }
        assert_eq!(answer.label.adapters.first().map(|a| a.scale), scale);
        mark
    }

    fn slot_bytes(&self) -> usize {
        self.served.model.slot_memory().in_use
    }

    fn until(&self, holds: impl Fn(&Served) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !holds(&self.served) {
            assert!(Instant::now() < end, "it did not come about");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn however_many_requests_wait_few_variants_are_alive() {
    // Room for a few variants: a slot of one layer is all that each has for itself.
    const ROOM: usize = 4096;
    let mut bench = Bench::new(ModelOptions { adapter_memory: ROOM, ..ModelOptions::default() });
    bench.publish(10.0);
    bench.publish(11.0);
    // Those that serve and those before.
    let two = bench.slot_bytes();
    let mut waiting = Vec::new();
    for round in 0..20 {
        for scale in [0.25, 0.5, 1.0] {
            waiting.push((11.0 + round as f32, scale, bench.ask(Some(scale))));
        }
        bench.until(|served| served.queue.len() == waiting.len());
        bench.publish(12.0 + round as f32);
        assert!(bench.slot_bytes() <= two, "what waits holds no weights");
    }
    // Now they run, while others are published.
    let (most, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let watch = {
        let (served, most, stop) = (bench.served.clone(), most.clone(), stop.clone());
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                most.fetch_max(served.model.slot_memory().in_use, Ordering::Relaxed);
                thread::sleep(Duration::from_micros(100));
            }
        })
    };
    bench.served.start().unwrap();
    for round in 0..20 {
        bench.publish(40.0 + round as f32);
    }
    for (floor, scale, request) in waiting {
        let answer = bench.wait_for(request).unwrap();
        let mark = bench.mark_of(&answer, Some(scale));
        assert!(mark >= floor, "{mark} is older than {floor}");
    }
    stop.store(true, Ordering::Relaxed);
    watch.join().unwrap();
    // Besides those that serve, those before and those that are staged: one that runs, one that is handed over, one that is
    // being made, each with weights that may be no others' and slots of its own; and what is kept.
    let (most, one) = (most.load(Ordering::Relaxed), two / 2);
    assert!(most <= 6 * one + 4 * ROOM, "{most} bytes; a generation has {one}");
    assert!(20 * one > 6 * one + 4 * ROOM, "one generation for each round would be more: {one}");
    bench.served.stop();
}

#[test]
fn requests_without_adapters_do_not_wait_for_variants() {
    let mut bench = Bench::new(ModelOptions::default());
    bench.publish(10.0);
    let styled = bench.ask(Some(0.5));
    bench.until(|served| served.queue.len() == 1);
    // A worker, and nobody who makes variants.
    let served = bench.served.clone();
    let worker = thread::spawn(move || run::work(&served));
    for _ in 0..10 {
        let answer = bench.wait_for(bench.ask(None)).unwrap();
        assert_eq!(bench.mark_of(&answer, None), 10.0);
    }
    assert!(!styled.is_finished());
    bench.served.start().unwrap();
    let answer = bench.wait_for(styled).unwrap();
    assert_eq!(bench.mark_of(&answer, Some(0.5)), 10.0);
    bench.served.stop();
    worker.join().unwrap();
}

#[test]
fn a_variant_that_cannot_be_made_is_told_to_all_that_wait_for_it() {
    let mut bench = Bench::new(ModelOptions { adapter_memory: 0, ..ModelOptions::default() });
    bench.publish(10.0);
    let styled: Vec<_> = (0..5).map(|_| bench.ask(Some(0.5))).collect();
    bench.until(|served| served.queue.len() == 5);
    bench.served.start().unwrap();
    for request in styled {
        let refusal = bench.wait_for(request).unwrap_err();
        assert_eq!((refusal.kind, refusal.help.as_deref()), (Kind::Memory, Some("--adapter-memory sets how many")));
    }
    assert_eq!(bench.mark_of(&bench.wait_for(bench.ask(None)).unwrap(), None), 10.0);
    bench.served.stop();
}

#[test]
fn a_server_that_is_stopped_answers_those_that_wait_for_variants() {
    let mut bench = Bench::new(ModelOptions { workers: 2, ..ModelOptions::default() });
    bench.publish(10.0);
    let styled: Vec<_> = [0.25, 0.5, 1.0].iter().map(|&scale| (scale, bench.ask(Some(scale)))).collect();
    bench.until(|served| served.queue.len() == 3);
    bench.served.start().unwrap();
    bench.served.stop();
    for (scale, request) in styled {
        let answer = bench.wait_for(request).unwrap();
        assert_eq!(bench.mark_of(&answer, Some(scale)), 10.0);
    }
    assert_eq!(bench.wait_for(bench.ask(None)).unwrap_err().kind, Kind::Unavailable);
}
