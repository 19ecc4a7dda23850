//! What the functions and persistent ids of a state dict stand for.

use super::value::{Global, Heap, Object, Storage, TensorRef, Value};
use crate::View;

/// More axes than any tensor has.
const MAX_RANK: usize = 64;

/// What a call returns.
#[derive(Debug)]
pub(super) enum Rebuilt<'a> {
    /// A value that was there before.
    Value(Value<'a>),
    Object(Object<'a>),
}

/// What `function(*args)` returns.
pub(super) fn call<'a>(heap: &Heap<'a>, function: Global, args: Value<'a>) -> Result<Rebuilt<'a>, String> {
    let unexpected = || format!("{function:?} is called with arguments that are not known");
    let args = heap.tuple(args).ok_or_else(unexpected)?;
    match (function, args) {
        (Global::OrderedDict, []) => Ok(Rebuilt::Object(Object::Dict(Vec::new()))),
        (Global::Size, [size]) if heap.tuple(*size).is_some() => Ok(Rebuilt::Value(*size)),
        (Global::Parameter, [tensor, _, _]) => match heap.get(*tensor) {
            Some(Object::Tensor(_) | Object::Foreign(_)) => Ok(Rebuilt::Value(*tensor)),
            _ => Err(unexpected()),
        },
        (
            Global::Tensor,
            [storage, offset, size, stride, _, _] | [storage, offset, size, stride, _, _, Value::None],
        ) => {
            let Some(Object::Storage(storage)) = heap.get(*storage) else { return Err(unexpected()) };
            tensor(heap, *storage, [*offset, *size, *stride]).map(Rebuilt::Object)
        }
        (Global::ForeignTensor, [storage, ..]) => {
            let Some(Object::Storage(storage)) = heap.get(*storage) else { return Err(unexpected()) };
            let named = args.iter().skip(1).find_map(|arg| match arg {
                Value::Global(Global::Foreign(dtype)) => Some(*dtype),
                _ => None,
            });
            Ok(Rebuilt::Object(Object::Foreign(named.or(storage.dtype.err()).unwrap_or("unknown"))))
        }
        _ => Err(unexpected()),
    }
}

/// The storage that the persistent id `('storage', class, key, location, numel)` names.
pub(super) fn storage<'a>(heap: &Heap<'a>, id: Value<'a>) -> Result<Storage<'a>, String> {
    match heap.tuple(id) {
        Some([Value::Str("storage"), Value::Global(Global::Storage(dtype)), Value::Str(key), _, numel]) => {
            Ok(Storage { dtype: *dtype, key, numel: natural(*numel).ok_or("a storage has no natural size")? })
        }
        _ => Err("expected a storage, found another persistent id".to_owned()),
    }
}

fn tensor<'a>(
    heap: &Heap<'a>,
    storage: Storage<'a>,
    [offset, size, stride]: [Value<'a>; 3],
) -> Result<Object<'a>, String> {
    let Storage { dtype, key, numel } = storage;
    let dtype = match dtype {
        Ok(dtype) => dtype,
        Err(name) => return Ok(Object::Foreign(name)),
    };
    let offset = natural(offset).ok_or("the storage offset of a tensor is no natural number")?;
    let (shape, strides) = (naturals(heap, size, "size")?, naturals(heap, stride, "stride")?);
    if shape.len() != strides.len() {
        return Err(format!("a tensor has {} sizes and {} strides", shape.len(), strides.len()));
    }
    let view = View { dtype, shape, strides, offset };
    Ok(Object::Tensor(Box::new(TensorRef { key, numel, view })))
}

/// The numbers of a tuple. As tuples can be shared, their length is bounded before they are copied.
fn naturals<'a>(heap: &Heap<'a>, tuple: Value<'a>, what: &str) -> Result<Vec<usize>, String> {
    let wrong = || format!("the {what} of a tensor is no tuple of at most {MAX_RANK} natural numbers");
    let items = heap.tuple(tuple).filter(|items| items.len() <= MAX_RANK).ok_or_else(wrong)?;
    items.iter().map(|item| natural(*item)).collect::<Option<_>>().ok_or_else(wrong)
}

fn natural(value: Value<'_>) -> Option<usize> {
    match value {
        Value::Int(n) => usize::try_from(n).ok(),
        _ => None,
    }
}
