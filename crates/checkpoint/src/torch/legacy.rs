//! What `torch.save` wrote before PyTorch 1.6: pickles one after the other, then the storages.

use std::{collections::BTreeMap, ops::Range};

use super::{
    SAVE_STATE, Storages,
    pickle::{self, Persistent, Refusal, Unpickled},
    value::{Heap, Object, Value},
};
use crate::error::FileProblem;

/// The long that such a file begins with, in a pickle of protocol 2.
pub(crate) const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
/// The version of the format.
const PROTOCOL: i64 = 1001;

/// The pickle of the object, and where each storage is.
pub(super) fn read(bytes: &[u8]) -> Result<(Unpickled<'_>, Storages), FileProblem> {
    let mut at = MAGIC.len();
    let protocol = next(bytes, &mut at)?;
    if !matches!(protocol.top, Value::Int(PROTOCOL)) {
        return Err(bad("its version is not 1001"));
    }
    // Sizes of C types; the storages are little-endian on every machine.
    next(bytes, &mut at)?;
    let object = next(bytes, &mut at)?;
    let keys = next(bytes, &mut at)?;
    let dtypes = element_sizes(&object.heap);
    let Some(Object::List(keys)) = keys.heap.get(keys.top) else { return Err(bad("it has no list of its storages")) };
    let mut places = BTreeMap::new();
    for key in keys {
        let Value::Str(key) = key else { return Err(bad("a storage has no name")) };
        let count = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()).map(|count| i64::from_le_bytes(*count));
        let count = count.and_then(|count| usize::try_from(count).ok());
        let count = count.ok_or_else(|| bad(&format!("the storage {key} has no length")))?;
        let start = at + 8;
        // A storage that nothing refers to, or whose tensors cannot be read: its elements are of an unknown size.
        let Some(size) = dtypes.get(*key) else {
            return Err(bad(&format!("the storage {key} is of a dtype that is not known")));
        };
        let end = count.checked_mul(*size).and_then(|len| start.checked_add(len)).filter(|end| *end <= bytes.len());
        at = end.ok_or_else(|| bad(&format!("the storage {key} of {count} elements reaches beyond the end")))?;
        places.insert((*key).to_owned(), start..at);
    }
    Ok((object, Storages::Places(places)))
}

/// Bytes of an element of each storage.
fn element_sizes<'a>(heap: &Heap<'a>) -> BTreeMap<&'a str, usize> {
    let size = |dtype: Result<regraft_tensor::DType, &str>| {
        Some(match dtype {
            Ok(dtype) => dtype.size(),
            Err("complex64") => 8,
            Err("complex128") => 16,
            // Untyped storages count bytes.
            Err("qint8" | "quint8" | "quint4x2" | "quint2x4" | "an unknown dtype") => 1,
            Err("qint32") => 4,
            Err(_) => return None,
        })
    };
    heap.storages().filter_map(|storage| Some((storage.key, size(storage.dtype)?))).collect()
}

fn next<'a>(bytes: &'a [u8], at: &mut usize) -> Result<Unpickled<'a>, FileProblem> {
    let rest = bytes.get(*at..).unwrap_or_default();
    // Storages follow, which are not a part of the limit.
    let (unpickled, len) =
        pickle::read_first(&rest[..rest.len().min(super::MAX_PICKLE_BYTES as usize)], Persistent::Storages).map_err(
            |Refusal { at: inner, why }| {
                FileProblem::new(format!("byte {}: {why}", at.saturating_add(inner)), SAVE_STATE)
            },
        )?;
    *at += len;
    Ok(unpickled)
}

fn bad(why: &str) -> FileProblem {
    FileProblem::new(format!("not a valid file of torch.save before version 1.6: {why}"), SAVE_STATE)
}

/// A range of bytes in a file.
pub(super) type Place = Range<usize>;
