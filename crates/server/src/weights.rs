//! The weights of a model, changed over the network: stage, publish, roll back.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use regraft::{AdapterOptions, Digest, OpenOptions, Pace, Refit, RefitOptions, RefitReport, Rename, Staged, StateDict};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    adapters::Opened,
    error::{Kind, Refusal},
    files,
    generations::{Label, ServedAdapter},
    served::Served,
    upload::Upload,
};

/// What is to be staged, as the body or the query of a request says it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StageRequest {
    /// A weight file below the folder of weights.
    pub(crate) file: Option<String>,
    /// Which part of it.
    pub(crate) key: Option<String>,
    /// The adapters from now on, of the folder of adapters.
    pub(crate) adapters: Option<Vec<AdapterRequest>>,
    /// What the body is.
    pub(crate) kind: BodyKind,
    /// Of an adapter in the body: its name, its scale, and the alpha that it was trained with where it does not say.
    pub(crate) name: Option<String>,
    pub(crate) scale: Option<f64>,
    pub(crate) alpha: Option<f64>,
    pub(crate) partial: bool,
    pub(crate) ignore_unknown: bool,
    pub(crate) reject_non_finite: bool,
    /// `FROM=TO`.
    pub(crate) renames: Vec<String>,
    /// What the digest of the result must be.
    pub(crate) digest: Option<String>,
}

/// What a body of tensors is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BodyKind {
    #[default]
    Weights,
    Adapter,
    /// What changes in the weights that serve.
    Delta,
}

/// An adapter to be served.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AdapterRequest {
    pub(crate) name: String,
    #[serde(default = "one")]
    pub(crate) scale: f64,
}

fn one() -> f64 {
    1.0
}

/// What waits to be published.
struct Waiting {
    staged: Staged,
    label: Arc<Label>,
    /// Of what was sent and how it was to be read.
    request: Digest,
}

/// What was done, for those who look.
struct Event {
    what: &'static str,
    when: SystemTime,
    label: Arc<Label>,
    report: Option<RefitReport>,
}

/// Events that are kept.
const HISTORY: usize = 16;

/// The staged generation of a model, and what was done before.
#[derive(Default)]
pub(crate) struct WeightsState {
    waiting: Mutex<Option<Waiting>>,
    history: Mutex<VecDeque<Event>>,
    /// Held while something is staged: two stages at a time would take the memory of both.
    staging: Arc<tokio::sync::Mutex<()>>,
}

/// The turn of a request that stages: held from before its body is read until it is done, even if the client no longer waits.
pub(crate) struct Turn(#[expect(dead_code, reason = "held")] tokio::sync::OwnedMutexGuard<()>);

/// The contents of a request to stage, read.
struct Order {
    weights: Option<StateDict>,
    options: RefitOptions,
    adapters: Option<Vec<(Opened, f64)>>,
    request: Digest,
}

impl Served {
    /// Waits until no other request stages.
    pub(crate) async fn turn(&self) -> Turn {
        Turn(self.weights.staging.clone().lock_owned().await)
    }

    /// Stages weights.
    pub(crate) async fn stage(
        self: &Arc<Self>,
        turn: Turn,
        request: StageRequest,
        body: Option<Upload>,
    ) -> Result<Value, Refusal> {
        let served = self.clone();
        let work = move || {
            let outcome = served.stage_now(&request, body);
            if outcome.is_err() {
                served.metrics.staged(None);
            }
            drop(turn);
            outcome
        };
        self.background.run(work).await
    }

    fn stage_now(&self, request: &StageRequest, body: Option<Upload>) -> Result<Value, Refusal> {
        let order = self.order(request, body)?;
        if let Some(waiting) = &*self.waiting()
            && waiting.request == order.request
            && waiting.staged.is_current()
        {
            return Ok(staged_json(&waiting.label, waiting.staged.report(), true));
        }
        // Its memory is needed for the new one.
        drop(self.waiting().take());
        let mut refit = Refit::new().pace(Pace::Background);
        if let Some(weights) = &order.weights {
            refit = refit.weights(weights, &order.options);
        }
        let adapters = match &order.adapters {
            Some(adapters) => {
                let given: Vec<_> = adapters.iter().map(|(opened, scale)| (opened.adapter.clone(), *scale)).collect();
                refit = refit.adapters(&given)?;
                let served = |(opened, scale): &(Opened, f64)| ServedAdapter {
                    name: opened.adapter.name.clone(),
                    scale: *scale,
                    digest: opened.digest,
                };
                adapters.iter().map(served).collect()
            }
            None => self.serving().map(|label| label.adapters.clone()).unwrap_or_default(),
        };
        let staged = refit.stage(&self.model)?;
        let label = self.generations.add(&self.model, staged.generation(), adapters)?;
        if let Some(expected) = request.digest.as_ref().filter(|digest| **digest != label.digest.to_string()) {
            let why = format!("the weights have the digest {}, expected {expected}; nothing was staged", label.digest);
            return Err(Refusal::new(Kind::Misfit, why));
        }
        let report = staged.report().clone();
        self.metrics.staged(Some(&report));
        self.remember("staged", &label, Some(report.clone()));
        let answer = staged_json(&label, &report, false);
        *self.waiting() = Some(Waiting { staged, label, request: order.request });
        Ok(answer)
    }

    /// Reads what a request names.
    fn order(&self, request: &StageRequest, body: Option<Upload>) -> Result<Order, Refusal> {
        let options = RefitOptions::new()
            .partial(request.partial || request.kind == BodyKind::Delta)
            .ignore_unknown(request.ignore_unknown)
            .reject_non_finite(request.reject_non_finite)
            .renames(renames(&request.renames)?);
        let mut adapters = request.adapters.as_ref().map(|given| self.adapters_of(given)).transpose()?;
        let weights = match (&request.file, body) {
            (Some(_), Some(_)) => return Err(Refusal::bad("both `file` and a body bring weights; send one of them")),
            (Some(file), None) if request.kind == BodyKind::Delta => {
                let path = files::below(self.options.weights_root.as_deref(), file)?;
                Some(self.changes(&path)?)
            }
            (None, Some(upload)) if request.kind == BodyKind::Delta => Some(self.changes(upload.path())?),
            (Some(file), None) => {
                let path = files::below(self.options.weights_root.as_deref(), file)?;
                Some(regraft::open_weights_with(&path, &OpenOptions::new().key(request.key.clone()))?)
            }
            (None, Some(upload)) => Some(upload.open()?),
            (None, None) if adapters.is_some() => None,
            (None, None) => {
                return Err(Refusal::bad("there is nothing to stage")
                    .help("send safetensors in the body, or JSON with `file`, `adapters` or both"));
            }
        };
        let mut text = format!("{:?}\n", (&options, &request.key));
        if let Some(weights) = &weights {
            text.push_str(&format!("{}\n", digest_of(weights)));
        }
        let weights = match request.kind {
            BodyKind::Weights | BodyKind::Delta => weights,
            BodyKind::Adapter if request.file.is_none() && adapters.is_none() => {
                adapters = weights.map(|weights| self.adapter_in_body(request, &weights)).transpose()?;
                None
            }
            BodyKind::Adapter => return Err(Refusal::bad("an adapter in the body is staged alone")),
        };
        for (opened, scale) in adapters.iter().flatten() {
            text.push_str(&format!("{}\0{}\0{:016x}\n", opened.adapter.name, opened.digest, scale.to_bits()));
        }
        text.push_str(if adapters.is_some() { "adapters" } else { "" });
        Ok(Order { weights, options, adapters, request: Digest::of_bytes(text.as_bytes()) })
    }

    /// What a delta changes in the weights that serve.
    fn changes(&self, path: &Path) -> Result<StateDict, Refusal> {
        let delta = regraft::delta::Delta::open(path).map_err(regraft::Error::from)?;
        Ok(regraft::apply_delta(&delta, &self.model)?)
    }

    fn adapters_of(&self, given: &[AdapterRequest]) -> Result<Vec<(Opened, f64)>, Refusal> {
        let open = |one: &AdapterRequest| Ok((self.adapters.get(&one.name, &self.model)?, finite(one.scale)?));
        given.iter().map(open).collect()
    }

    fn adapter_in_body(&self, request: &StageRequest, weights: &StateDict) -> Result<Vec<(Opened, f64)>, Refusal> {
        let name = request.name.as_deref().unwrap_or("adapter");
        if !files::is_plain_name(name) {
            return Err(Refusal::bad("an adapter's name has letters, digits, `.`, `_` and `-` only"));
        }
        let options = AdapterOptions::new().alpha(request.alpha);
        let opened = Opened::from_weights(name, weights, options, &self.model)?;
        Ok(vec![(opened, finite(request.scale.unwrap_or(1.0))?)])
    }

    /// Makes what was staged serve. `expected` is the digest that it must have; one that serves already is not an error, so that a
    /// request can be sent again.
    pub(crate) async fn publish(self: &Arc<Self>, expected: Option<String>) -> Result<Value, Refusal> {
        let served = self.clone();
        blocking(move || served.publish_now(expected.as_deref())).await
    }

    fn publish_now(&self, expected: Option<&str>) -> Result<Value, Refusal> {
        let is_expected = |label: &Label| expected.is_none_or(|digest| label.digest.to_string() == digest);
        let mut waiting = self.waiting();
        match waiting.take_if(|waiting| is_expected(&waiting.label)) {
            Some(Waiting { staged, label, .. }) => {
                let report = staged.publish()?;
                drop(waiting);
                self.renew_variants();
                self.metrics.published(&report);
                self.remember("published", &label, Some(report.clone()));
                Ok(json!({"serving": label.to_json(), "already": false, "report": report}))
            }
            None => {
                let serving = self.serving().filter(|label| expected.is_some() && is_expected(label));
                let Some(label) = serving else {
                    let why = match &*waiting {
                        Some(waiting) => format!("what is staged has the digest {}", waiting.label.digest),
                        None => "nothing is staged".to_owned(),
                    };
                    return Err(Refusal::new(Kind::Conflict, why).help("stage the weights first"));
                };
                Ok(json!({"serving": label.to_json(), "already": true}))
            }
        }
    }

    /// Makes the generation before serve again. `expected` is the digest that it must have.
    pub(crate) async fn rollback(self: &Arc<Self>, expected: Option<String>) -> Result<Value, Refusal> {
        let served = self.clone();
        blocking(move || {
            let serves = |label: &Label| expected.as_ref().is_some_and(|digest| *digest == label.digest.to_string());
            if let Some(label) = served.serving().filter(|label| serves(label)) {
                return Ok(json!({"serving": label.to_json(), "already": true}));
            }
            served.model.rollback()?;
            served.renew_variants();
            served.metrics.rolled_back();
            let label = served.serving().ok_or_else(|| Refusal::new(Kind::Internal, "nothing serves"))?;
            served.remember("rolled back", &label, None);
            Ok(json!({"serving": label.to_json(), "already": false}))
        })
        .await
    }

    /// Lets go of variants of weights that serve no longer. What requests asked for since the publication before is made again at
    /// once: they will ask again, and would wait.
    fn renew_variants(&self) {
        self.queue.make_ahead(self.variants.retire(&self.model));
    }

    /// Lets go of what is staged.
    pub(crate) fn discard(&self) -> Value {
        let waiting = self.waiting().take();
        json!({"discarded": waiting.map(|waiting| waiting.label.to_json())})
    }

    /// What serves, what is staged, and what was done.
    pub(crate) fn status(&self) -> Value {
        let staged = self.waiting().as_ref().map(|waiting| waiting.label.to_json());
        let memory = self.model.slot_memory();
        let history: Vec<Value> = self.history().iter().map(Event::to_json).collect();
        json!({
            "model": self.name, "mode": self.model.mode().to_string(),
            "serving": self.serving().map(|label| label.to_json()), "staged": staged,
            "variants": self.variants.to_json(), "adapters": self.adapters.names(),
            "sources": self.model.refit_map().sources.len(), "slots": self.model.plan().slots.len(),
            "slot_bytes": {"in_use": memory.in_use, "free": memory.free, "limit": memory.limit},
            "batching": {"rows": self.batching.rows, "bit_equal": self.batching.bit_equal},
            "history": history,
        })
    }

    /// The label of what serves.
    pub(crate) fn serving(&self) -> Option<Arc<Label>> {
        self.model.generation().map(|generation| self.generations.label(&generation))
    }

    fn remember(&self, what: &'static str, label: &Arc<Label>, report: Option<RefitReport>) {
        let mut history = self.history();
        history.push_front(Event { what, when: SystemTime::now(), label: label.clone(), report });
        history.truncate(HISTORY);
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.weights.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn history(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.weights.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Event {
    /// Counts in place of names: a history is read at a glance, and again each second.
    fn to_json(&self) -> Value {
        let when = self.when.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let report = self.report.as_ref().map(|report| {
            json!({
                "applied": report.applied.len(), "unchanged": report.unchanged.len(), "kept": report.kept.len(),
                "slots": report.recomputed_slots.len(), "shared_slots": report.shared_slots.len(),
                "bytes": report.bytes, "phases_ms": report.phases_ms,
            })
        });
        json!({"what": self.what, "when": when, "generation": self.label.to_json(), "report": report})
    }
}

/// The digest of named tensors.
fn digest_of(weights: &StateDict) -> Digest {
    let mut text = String::new();
    for (name, tensor) in weights.iter() {
        text.push_str(&format!("{name}\0{}\n", Digest::of(tensor)));
    }
    Digest::of_bytes(text.as_bytes())
}

fn staged_json(label: &Label, report: &RefitReport, already: bool) -> Value {
    json!({"staged": label.to_json(), "already": already, "report": report})
}

fn finite(scale: f64) -> Result<f64, Refusal> {
    if scale.is_finite() { Ok(scale) } else { Err(Refusal::bad("a scale must be a finite number")) }
}

fn renames(given: &[String]) -> Result<Vec<Rename>, Refusal> {
    let parse = |text: &String| text.parse::<Rename>().map_err(|why| Refusal::bad(format!("`renames`: {why}")));
    given.iter().map(parse).collect()
}

/// Does long work on a thread where it delays no request.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let bug = || Refusal::new(Kind::Internal, "the work panicked: this is a bug in regraft");
    tokio::task::spawn_blocking(work).await.map_err(|_| bug())?
}
