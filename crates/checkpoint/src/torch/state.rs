use std::collections::BTreeMap;

use super::{
    FileProblem, SAVE_STATE,
    pickle::Unpickled,
    value::{Heap, Object, ObjectId, TensorRef, Value},
};

/// The keys under which training scripts keep the state dict in a checkpoint.
const WRAPPERS: [&str; 3] = ["state_dict", "model_state_dict", "model"];

/// The tensors of a state dict, or of the state dict in a checkpoint, by name.
pub(super) fn find<'p>(
    pickle: &'p Unpickled<'p>,
) -> Result<BTreeMap<&'p str, (ObjectId, &'p TensorRef<'p>)>, FileProblem> {
    let Unpickled { heap, top } = pickle;
    let Some(items) = heap.dict(*top) else {
        return Err(FileProblem::new(
            format!("expected a dict of tensors by name, found {}", heap.kind(*top)),
            SAVE_STATE,
        ));
    };
    // The last value of a key counts.
    let inner: BTreeMap<&str, Value<'_>> = items
        .iter()
        .filter_map(|(key, value)| match key {
            Value::Str(key) if WRAPPERS.contains(key) => Some((*key, *value)),
            _ => None,
        })
        .filter(|(_, value)| heap.dict(*value).is_some())
        .collect();
    let mut inner = inner.into_iter();
    match (inner.next(), inner.next()) {
        (None, _) => flat(heap, items),
        (Some((_, state)), None) => flat(heap, heap.dict(state).unwrap_or_default()),
        (Some((a, _)), Some((b, _))) => {
            let problem = format!("it has a state dict under `{a}` and one under `{b}`");
            Err(FileProblem::new(problem, SAVE_STATE))
        }
    }
}

/// The items of a dict that holds tensors by name, and nothing else.
fn flat<'p>(
    heap: &'p Heap<'p>,
    items: &'p [(Value<'p>, Value<'p>)],
) -> Result<BTreeMap<&'p str, (ObjectId, &'p TensorRef<'p>)>, FileProblem> {
    let mut tensors = BTreeMap::new();
    for (key, value) in items {
        let Value::Str(name) = key else {
            let problem = format!("expected the name of a tensor, found {} as a key", heap.kind(*key));
            return Err(FileProblem::new(problem, SAVE_STATE));
        };
        match (value, heap.get(*value)) {
            (Value::Object(id), Some(Object::Tensor(tensor))) => tensors.insert(*name, (*id, &**tensor)),
            (_, Some(Object::Foreign(dtype))) => return Err(FileProblem::dtype(name, dtype)),
            _ => {
                let problem = format!("`{name}`: expected a tensor, found {}", heap.kind(*value));
                return Err(FileProblem::new(problem, SAVE_STATE));
            }
        };
    }
    Ok(tensors)
}
