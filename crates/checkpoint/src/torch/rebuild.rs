//! What the functions and persistent ids of a state dict stand for.

use super::value::{Global, Heap, Object, Opaque, Storage, TensorRef, Value};
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

/// What `function(*args)` returns, or a class makes of these arguments.
pub(super) fn call<'a>(heap: &Heap<'a>, function: Global<'a>, args: Value<'a>) -> Result<Rebuilt<'a>, String> {
    let opaque = |opaque| Ok(Rebuilt::Object(Object::Opaque(opaque)));
    match function {
        Global::Unknown { module, name } => return opaque(Opaque::Instance { module, name }),
        Global::Known(what) => return opaque(Opaque::Known(what)),
        Global::TensorClass => return opaque(Opaque::Known("a tensor of an old kind")),
        Global::Dict => return Ok(Rebuilt::Object(Object::Dict(items_of(heap, args)))),
        Global::Set => return Ok(Rebuilt::Object(Object::Set)),
        Global::Size
        | Global::Tensor
        | Global::Parameter
        | Global::FromType
        | Global::ForeignTensor
        | Global::Storage(_)
        | Global::DType(_) => {}
    }
    let unexpected = || format!("{function:?} is called with arguments that are not known");
    let args = heap.tuple(args).ok_or_else(unexpected)?;
    match (function, args) {
        (Global::Size, [size]) if heap.tuple(*size).is_some() => Ok(Rebuilt::Value(*size)),
        (Global::Parameter, [tensor, ..]) => match heap.get(*tensor) {
            Some(Object::Tensor(_) | Object::Opaque(_)) => Ok(Rebuilt::Value(*tensor)),
            _ => Err(unexpected()),
        },
        // A tensor with attributes, or of a subclass, which may read its memory in a way of its own.
        (Global::FromType, [Value::Global(function), Value::Global(class), inner, ..]) => match (function, class) {
            (Global::Tensor | Global::Parameter, Global::TensorClass) => call(heap, *function, *inner),
            (_, Global::Unknown { module, name }) => opaque(Opaque::Instance { module, name }),
            _ => opaque(Opaque::Known("a tensor of a subclass")),
        },
        (Global::Tensor, [storage, offset, size, stride, ..]) => match heap.get(*storage) {
            Some(Object::Storage(storage)) => tensor(heap, *storage, [*offset, *size, *stride]).map(Rebuilt::Object),
            Some(Object::Opaque(_)) => Ok(Rebuilt::Value(*storage)),
            _ => Err(unexpected()),
        },
        (Global::ForeignTensor, [storage, ..]) => {
            let Some(Object::Storage(storage)) = heap.get(*storage) else { return Err(unexpected()) };
            let named = args.iter().skip(1).find_map(|arg| match arg {
                Value::Global(Global::DType(dtype)) => Some(*dtype),
                _ => None,
            });
            opaque(Opaque::Tensor(
                storage.dtype.err().filter(|d| !d.contains(' ')).or(named).unwrap_or("an unknown dtype"),
            ))
        }
        _ => Err(unexpected()),
    }
}

/// What a dict is made of: pairs in Python 2, another dict, or nothing, when opcodes follow that set its items.
fn items_of<'a>(heap: &Heap<'a>, args: Value<'a>) -> Vec<(Value<'a>, Value<'a>)> {
    let Some([first, ..]) = heap.tuple(args) else { return Vec::new() };
    let pair = |item: &Value<'a>| match heap.get(*item) {
        Some(Object::List(pair) | Object::Tuple(pair)) => <[Value<'a>; 2]>::try_from(pair.as_slice()).ok(),
        _ => None,
    };
    match heap.get(*first) {
        Some(Object::List(items) | Object::Tuple(items)) => {
            items.iter().filter_map(pair).map(|[key, value]| (key, value)).collect()
        }
        Some(Object::Dict(items)) => items.clone(),
        _ => Vec::new(),
    }
}

/// The storage that the persistent id `('storage', class, key, location, numel)` names, or in old files also the part of it.
pub(super) fn storage<'a>(heap: &Heap<'a>, id: Value<'a>) -> Result<Object<'a>, String> {
    let natural = |value: Value<'a>| natural(value).ok_or("a storage has no natural size");
    match heap.tuple(id) {
        Some([Value::Str("storage"), Value::Global(Global::Storage(dtype)), Value::Str(key), _, numel, view @ ..]) => {
            let whole = Storage { dtype: *dtype, key, numel: natural(*numel)?, start: 0 };
            let part = view.first().and_then(|view| heap.tuple(*view));
            let Some([_, offset, size]) = part else { return Ok(Object::Storage(whole)) };
            let (start, size) = (natural(*offset)?, natural(*size)?);
            if start.checked_add(size).is_none_or(|end| end > whole.numel) {
                return Err(format!("a part of a storage reaches beyond its {} elements", whole.numel));
            }
            Ok(Object::Storage(Storage { start, ..whole }))
        }
        Some([Value::Str("storage"), Value::Global(Global::Unknown { module, name }), ..]) => {
            Ok(Object::Opaque(Opaque::Instance { module, name }))
        }
        // Old files name classes of modules with their source text.
        Some([Value::Str("module"), Value::Global(Global::Unknown { module, name }), ..]) => {
            Ok(Object::Opaque(Opaque::Instance { module, name }))
        }
        _ => Err("expected a storage, found another persistent id".to_owned()),
    }
}

fn tensor<'a>(
    heap: &Heap<'a>,
    storage: Storage<'a>,
    [offset, size, stride]: [Value<'a>; 3],
) -> Result<Object<'a>, String> {
    let Storage { dtype, key, numel, start } = storage;
    let dtype = match dtype {
        Ok(dtype) => dtype,
        Err(name) => return Ok(Object::Opaque(Opaque::Tensor(name))),
    };
    let offset = natural(offset).and_then(|offset| offset.checked_add(start));
    let offset = offset.ok_or("the storage offset of a tensor is not a natural number")?;
    let (shape, strides) = (naturals(heap, size, "size")?, naturals(heap, stride, "stride")?);
    if shape.len() != strides.len() {
        return Err(format!("a tensor has {} sizes and {} strides", shape.len(), strides.len()));
    }
    let view = View { dtype, shape, strides, offset };
    Ok(Object::Tensor(Box::new(TensorRef { key, numel, view })))
}

/// The numbers of a tuple. As tuples can be shared, their length is bounded before they are copied.
fn naturals<'a>(heap: &Heap<'a>, tuple: Value<'a>, what: &str) -> Result<Vec<usize>, String> {
    let wrong = || format!("the {what} of a tensor is not a tuple of at most {MAX_RANK} natural numbers");
    let items = heap.tuple(tuple).filter(|items| items.len() <= MAX_RANK).ok_or_else(wrong)?;
    items.iter().map(|item| natural(*item)).collect::<Option<_>>().ok_or_else(wrong)
}

fn natural(value: Value<'_>) -> Option<usize> {
    match value {
        Value::Int(n) => usize::try_from(n).ok(),
        _ => None,
    }
}
