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
    adapters::{AdapterStore, Opened},
    background::{self, Background},
    batching::{self, Batching},
    error::{Kind, Refusal},
    generations::Generations,
    metrics::{Metrics, Now},
    queue::{Grouping, Job, Queue},
    run::{self, Answer},
    signature::Signature,
    variants::{Scaled, Variants},
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
    /// Where weights are staged.
    pub(crate) background: Background,
    workers: Mutex<Vec<JoinHandle<()>>>,
    maker: Mutex<Option<JoinHandle<()>>>,
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
            background: Background::start(&format!("{name}-weights"))?,
            workers: Mutex::default(),
            maker: Mutex::default(),
            name,
            model,
            options,
        }))
    }

    /// Starts its workers, and the thread that makes variants.
    pub(crate) fn start(self: &Arc<Self>) -> Result<(), ServeError> {
        for number in 0..self.options.workers.max(1) {
            let worker = self.spawn(&number.to_string(), run::work)?;
            self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
        }
        if self.options.adapters.is_some() {
            let background = Background::start(&format!("{}-adapters", self.name))?;
            let maker = self.spawn("variants", move |served| background::make_variants(served, &background))?;
            *self.maker.lock().unwrap_or_else(PoisonError::into_inner) = Some(maker);
        }
        Ok(())
    }

    fn spawn(
        self: &Arc<Self>,
        what: &str,
        work: impl FnOnce(&Served) + Send + 'static,
    ) -> Result<JoinHandle<()>, ServeError> {
        let (served, thread) = (self.clone(), thread::Builder::new().name(format!("{}-{what}", self.name)));
        let failed = |error| ServeError::System { what: "a thread cannot be started", error };
        thread.spawn(move || work(&served)).map_err(failed)
    }

    /// Takes no more requests, and waits for its threads.
    pub(crate) fn stop(&self) {
        self.queue.close();
        let workers = std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        // A panic was told when it happened.
        workers.into_iter().for_each(|worker| _ = worker.join());
        self.queue.finish();
        let maker = self.maker.lock().unwrap_or_else(PoisonError::into_inner).take();
        maker.into_iter().for_each(|maker| _ = maker.join());
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
            let adapter = match request.adapter {
                Some((name, scale)) => Some(Scaled { opened: self.adapter(name).await?, scale }),
                None => None,
            };
            let (answer, receiver) = oneshot::channel();
            let job = Job { inputs: request.inputs, adapter, queued: Instant::now(), deadline, answer };
            self.queue.push(job).map_err(|refusal| match refusal.kind {
                Kind::Overloaded => refusal.retry_after(self.when_less_busy()),
                _ => refusal,
            })?;
            receiver.await.map_err(|_| Refusal::new(Kind::Unavailable, "the server is being stopped"))?
        };
        tokio::time::timeout_at(deadline.into(), work).await.map_err(|_| late())?
    }

    /// The adapter called `name`. Those that are new, or have changed, are read one at a time.
    async fn adapter(self: &Arc<Self>, name: String) -> Result<Opened, Refusal> {
        let (served, wanted) = (self.clone(), name.clone());
        if let Some(known) = blocking(move || served.adapters.known(&wanted)).await? {
            return Ok(known);
        }
        let (served, turn) = (self.clone(), self.adapters.turn().await);
        blocking(move || {
            let opened = served.adapters.get(&name, &served.model);
            drop(turn);
            opened
        })
        .await
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
