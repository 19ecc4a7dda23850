//! Where the weights are in a checkpoint: training scripts keep them beside optimizers, settings and counters.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    SAVE_STATE,
    pickle::Unpickled,
    value::{Heap, Object, ObjectId, TensorRef, Value},
};
use crate::{OpenOptions, error::FileProblem};

/// Keys that hold no weights, whatever tensors are below them.
const NOT_WEIGHTS: [&str; 16] = [
    "optimizer",
    "optimizers",
    "optimizer_state",
    "optimizer_states",
    "optimizer_state_dict",
    "optim",
    "lr_scheduler",
    "lr_schedulers",
    "scheduler",
    "scheduler_state_dict",
    "scaler",
    "callbacks",
    "loops",
    "hyper_parameters",
    "rng_state",
    "rng_states",
];
/// Keys under which weights are kept, so that tensors beside them are none.
const WEIGHTS: [&str; 34] = [
    "state_dict",
    "model_state_dict",
    "model_state",
    "model_states",
    "model",
    "model_dict",
    "module",
    "net",
    "network",
    "net_state_dict",
    "weights",
    "params",
    "params_ema",
    "parameters",
    "ema",
    "ema_model",
    "ema_state_dict",
    "model_ema",
    "model_ema_state_dict",
    "state_dict_ema",
    "generator",
    "discriminator",
    "generator_state_dict",
    "gen",
    "g_ema",
    "netG",
    "netD",
    "G",
    "D",
    "teacher",
    "student",
    "encoder",
    "decoder",
    "backbone",
];
/// Dicts inside of dicts that are looked into.
const MAX_DEPTH: usize = 6;
/// More places that were not read are not listed.
const MAX_SKIPPED: usize = 100;

/// The tensors of a state dict, and what else stands there.
#[derive(Debug, Default)]
pub(super) struct State<'p> {
    pub(super) tensors: BTreeMap<String, (ObjectId, &'p TensorRef<'p>)>,
    /// What was not read, by its place.
    pub(super) skipped: BTreeMap<String, String>,
}

/// A dict that holds tensors by name.
struct Candidate<'p> {
    path: Vec<&'p str>,
    items: &'p [(Value<'p>, Value<'p>)],
}

/// The state dict of a file, or the one in a checkpoint that the options choose.
pub(super) fn find<'p>(pickle: &'p Unpickled<'p>, options: &OpenOptions) -> Result<State<'p>, FileProblem> {
    let Unpickled { heap, top } = pickle;
    if heap.dict(*top).is_none() {
        let problem = format!("expected a dict of tensors by name, found {}", heap.kind(*top));
        return Err(FileProblem::new(problem, SAVE_STATE));
    }
    let mut search = Search { heap, seen: BTreeSet::new(), found: Vec::new() };
    search.look_into(*top, &mut Vec::new());
    let mut found = search.found;
    if let Some(key) = &options.key {
        let keys = found.iter().map(Candidate::key).collect();
        if let Some((path, value)) = at(heap, *top, key) {
            let mut search = Search { heap, seen: BTreeSet::new(), found: Vec::new() };
            search.look_into(value, &mut path.clone());
            found = search.found;
        } else if let [one] = found.as_slice() {
            return flat(heap, *top, one)?.part(key);
        } else {
            return Err(FileProblem::NoKey { key: key.clone(), keys });
        }
        if found.is_empty() {
            return Err(FileProblem::NoKey { key: key.clone(), keys });
        }
    }
    match found.as_slice() {
        [] => nothing(heap, *top),
        [one] => flat(heap, *top, one),
        several => Err(FileProblem::Several { keys: several.iter().map(Candidate::key).collect() }),
    }
}

impl Candidate<'_> {
    fn key(&self) -> String {
        self.path.join(".")
    }
}

impl<'p> State<'p> {
    /// The tensors whose names begin with `key`, without it.
    fn part(self, key: &str) -> Result<State<'p>, FileProblem> {
        let keys = crate::prefixes(self.tensors.keys().map(String::as_str));
        let inner = |(name, tensor): (String, _)| Some((crate::without_prefix(&name, key)?.to_owned(), tensor));
        let tensors: BTreeMap<_, _> = self.tensors.into_iter().filter_map(inner).collect();
        match tensors.is_empty() {
            true => Err(FileProblem::NoKey { key: key.to_owned(), keys }),
            false => Ok(State { tensors, skipped: self.skipped }),
        }
    }
}

struct Search<'p> {
    heap: &'p Heap<'p>,
    /// Dicts that were looked into: one may stand in many places.
    seen: BTreeSet<ObjectId>,
    found: Vec<Candidate<'p>>,
}

impl<'p> Search<'p> {
    fn look_into(&mut self, value: Value<'p>, path: &mut Vec<&'p str>) {
        let (Value::Object(id), Some(items)) = (value, self.heap.dict(value)) else { return };
        if path.len() > MAX_DEPTH || is_optimizer(items) || !self.seen.insert(id) {
            return;
        }
        let before = self.found.len();
        let last: BTreeMap<&str, Value<'p>> = by_name(items).collect();
        let mut has_weights_key = false;
        for (key, inner) in last.iter().filter(|(key, _)| !NOT_WEIGHTS.contains(key)) {
            let count = self.found.len();
            path.push(*key);
            self.look_into(*inner, path);
            path.pop();
            has_weights_key |= self.found.len() > count && WEIGHTS.contains(key);
        }
        let has_tensors = last.values().any(|value| matches!(self.heap.get(*value), Some(Object::Tensor(_))));
        if has_tensors && !has_weights_key {
            // A state dict, and nothing inside of it is another one.
            self.found.truncate(before);
            self.found.push(Candidate { path: path.clone(), items });
        }
    }
}

/// The items whose keys are text; the last value of a key counts.
fn by_name<'p>(items: &'p [(Value<'p>, Value<'p>)]) -> impl Iterator<Item = (&'p str, Value<'p>)> {
    items.iter().filter_map(|(key, value)| match key {
        Value::Str(key) => Some((*key, *value)),
        _ => None,
    })
}

fn is_optimizer(items: &[(Value<'_>, Value<'_>)]) -> bool {
    let has = |wanted: &str| items.iter().any(|(key, _)| matches!(key, Value::Str(key) if *key == wanted));
    has("param_groups") && has("state")
}

/// The value at a path of keys, joined by dots, which keys may have themselves.
fn at<'p>(heap: &'p Heap<'p>, top: Value<'p>, path: &str) -> Option<(Vec<&'p str>, Value<'p>)> {
    let (mut keys, mut value, mut rest) = (Vec::new(), top, path);
    while !rest.is_empty() {
        let items = heap.dict(value)?;
        let fitting = by_name(items).filter(|(key, _)| *key == rest || crate::without_prefix(rest, key).is_some());
        let (key, inner) = fitting.max_by_key(|(key, _)| key.len())?;
        heap.dict(inner)?;
        rest = crate::without_prefix(rest, key).unwrap_or_default();
        keys.push(key);
        value = inner;
    }
    Some((keys, value))
}

/// The tensors of a state dict.
fn flat<'p>(heap: &'p Heap<'p>, top: Value<'p>, found: &Candidate<'p>) -> Result<State<'p>, FileProblem> {
    let mut state = State::default();
    for (name, value) in by_name(found.items) {
        state.skipped.remove(name);
        match (value, heap.get(value)) {
            (Value::Object(id), Some(Object::Tensor(tensor))) => {
                state.tensors.insert(name.to_owned(), (id, &**tensor));
            }
            _ => {
                state.tensors.remove(name);
                state.skip(name.to_owned(), heap.kind(value));
            }
        }
    }
    let others = found.items.iter().filter(|(key, _)| !matches!(key, Value::Str(_))).count();
    if others > 0 {
        state.skip("other keys".to_owned(), format!("{others} values whose keys are not text"));
    }
    // Beside it: settings and counters are not news, and objects of Python are.
    if !found.path.is_empty() {
        for (name, value) in heap.dict(top).into_iter().flat_map(by_name) {
            if matches!(heap.get(value), Some(Object::Opaque(_))) {
                state.skip(name.to_owned(), heap.kind(value));
            }
        }
    }
    Ok(state)
}

impl State<'_> {
    fn skip(&mut self, place: String, what: String) {
        if self.skipped.len() < MAX_SKIPPED {
            self.skipped.insert(place, what);
        }
    }
}

/// A dict without tensors: fine where it is empty, or all that it has is of dtypes that are not read.
fn nothing<'p>(heap: &'p Heap<'p>, top: Value<'p>) -> Result<State<'p>, FileProblem> {
    let items = heap.dict(top).unwrap_or_default();
    let Some((key, value)) = items.first() else { return Ok(State::default()) };
    let problem = match key {
        Value::Str(name) => format!("it holds no tensors by name that can be read: `{name}` is {}", heap.kind(*value)),
        _ => format!("it holds no tensors by name: it has {} as a key", heap.kind(*key)),
    };
    Err(FileProblem::new(problem, SAVE_STATE))
}
