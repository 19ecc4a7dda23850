//! A model that is served: its queue and workers, its weights, its adapters, its figures.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use regraft::{Model, Tensor};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::{
    ModelOptions, ServeError,
    adapters::AdapterStore,
    batching::{self, Batching},
    error::{Kind, Refusal},
    generations::Generations,
    metrics::{Metrics, Now},
    queue::{Grouping, Job, Queue},
    run::{self, Answer},
    signature::Signature,
    variants::Variants,
    weights::{WeightsState, blocking},
};

/// The one version that each model has: what changes are its weights, and these have generations.
pub(crate) const VERSION: &str = "1";

/// A model with everything that serves it.
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) model: Model,
    pub(crate) options: ModelOptions,
    pub(crate) signature: Signature,
    pub(crate) batching: Batching,
    pub(crate) queue: Queue,
    pub(crate) generations: Generations,
    pub(crate) weights: WeightsState,
    pub(crate) variants: Variants,
    pub(crate) adapters: AdapterStore,
    pub(crate) metrics: Metrics,
    /// The most bytes of weights in a body.
    pub(crate) max_upload: u64,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

/// A request to run the model.
pub(crate) struct InferRequest {
    /// In the program's order.
    pub(crate) inputs: Vec<Tensor>,
    /// How long it may take.
    pub(crate) timeout: Option<Duration>,
    pub(crate) adapter: Option<(String, f64)>,
}

impl Served {
    pub(crate) fn new(name: String, model: Model, options: ModelOptions) -> Result<Arc<Served>, ServeError> {
        let failed = |why: String| ServeError::Model { model: name.clone(), why };
        model.set_keep_previous(options.keep_previous);
        let generations = Generations::new();
        if let Some(first) = model.generation() {
            model.check_file().map_err(|e| failed(Refusal::from(e).to_line()))?;
            generations.add(&model, &first, Vec::new()).map_err(|refusal| failed(refusal.to_line()))?;
        }
        let batching = batching::find(&model, options.max_batch)
            .map_err(|why| ServeError::Batching { model: name.clone(), why })?;
        let grouping = Grouping { rows: batching.rows, wait: options.batch_wait };
        let sources = model.refit_map().sources.iter();
        let bytes = sources.map(|info| info.shape.iter().product::<usize>().saturating_mul(info.dtype.size()));
        let bytes = bytes.fold(0usize, usize::saturating_add) as u64;
        Ok(Arc::new(Served {
            signature: Signature::of(&model),
            batching,
            queue: Queue::new(options.queue.max(1), grouping),
            generations,
            weights: WeightsState::default(),
            variants: Variants::new(options.adapter_memory),
            adapters: AdapterStore::new(options.adapters.clone()),
            metrics: Metrics::new(),
            // A file may hold wider floats than the engine, and some more: f64 for f16 is 4 times the bytes.
            max_upload: options.max_upload.unwrap_or(bytes.saturating_mul(4).saturating_add(16 << 20)),
            workers: Mutex::default(),
            name,
            model,
            options,
        }))
    }

    /// Starts its workers.
    pub(crate) fn start(self: &Arc<Self>) -> Result<(), ServeError> {
        for number in 0..self.options.workers.max(1) {
            let served = self.clone();
            let worker = thread::Builder::new().name(format!("{}-{number}", self.name));
            let worker = worker.spawn(move || run::work(&served));
            let worker = worker.map_err(|error| ServeError::System { what: "a thread cannot be started", error })?;
            self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
        }
        Ok(())
    }

    /// Takes no more requests, and waits for its workers.
    pub(crate) fn stop(&self) {
        self.queue.close();
        let workers = std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        for worker in workers {
            // A panic was told when it happened.
            let _ = worker.join();
        }
    }

    /// Whether it has weights.
    pub(crate) fn is_ready(&self) -> bool {
        self.model.generation().is_some()
    }

    /// Runs a request that arrived at `begin`, within `limit` or the time that it asks for.
    pub(crate) async fn infer(
        self: &Arc<Self>,
        request: InferRequest,
        begin: Instant,
        limit: Duration,
    ) -> Result<Answer, Refusal> {
        let deadline = begin + request.timeout.map_or(limit, |asked| asked.min(limit));
        let late = || Refusal::new(Kind::Deadline, "the request was not done by its deadline");
        let work = async {
            let variant = match request.adapter {
                Some((name, scale)) => {
                    let served = self.clone();
                    let find = move || {
                        let Served { model, generations, adapters, variants, .. } = &*served;
                        variants.get(model, generations, adapters, (&name, scale))
                    };
                    Some(blocking(find).await?)
                }
                None => None,
            };
            let (answer, receiver) = oneshot::channel();
            let job = Job { inputs: request.inputs, variant, queued: Instant::now(), deadline, answer };
            self.queue.push(job).map_err(|refusal| match refusal.kind {
                Kind::Overloaded => refusal.retry_after(self.when_less_busy()),
                _ => refusal,
            })?;
            receiver.await.map_err(|_| Refusal::new(Kind::Unavailable, "the server is being stopped"))?
        };
        tokio::time::timeout_at(deadline.into(), work).await.map_err(|_| late())?
    }

    /// When half of those that wait will have run.
    fn when_less_busy(&self) -> Duration {
        let runs = self.queue.len() / 2 / self.batching.rows.max(1) + 1;
        self.metrics.mean_run().saturating_mul(u32::try_from(runs).unwrap_or(u32::MAX))
    }

    pub(crate) fn now(&self) -> Now {
        let memory = self.model.slot_memory();
        Now {
            queued: self.queue.len(),
            generation: self.serving().map_or(0, |label| label.number),
            slots_in_use: memory.in_use,
            slots_free: memory.free,
            variants: self.variants.size(),
        }
    }

    /// What the protocol calls the metadata of a model.
    pub(crate) fn metadata(&self) -> Value {
        let [inputs, outputs] = self.signature.to_json();
        json!({
            "name": self.name, "versions": [VERSION], "platform": "regraft_rgf", "inputs": inputs, "outputs": outputs,
        })
    }

    /// Everything that the inspector shows.
    pub(crate) fn overview(&self) -> Value {
        let mut status = self.status();
        status["metrics"] = self.metrics.to_json();
        status["queued"] = self.queue.len().into();
        status["target"] = self.model.device().codegen().target().to_string().into();
        let memory: Vec<Value> =
            self.model.variant_memory().iter().map(|m| json!({"bytes": m.bytes, "shared": m.shared})).collect();
        status["memory"] = memory.into();
        status
    }
}
