//! What `torch.save` wrote before PyTorch 0.1.10: a tar file of `sys_info`, `pickle`, `storages` and `tensors`.

use std::collections::BTreeMap;

use regraft_tensor::DType;

use super::{
    MAX_PICKLE_BYTES, SAVE_STATE, Storages,
    legacy::Place,
    pickle::{self, Persistent, Refusal, Unpickled},
    value::{Global, Object, TensorRef, Value},
};
use crate::{View, error::FileProblem};

const BLOCK: usize = 512;
/// More axes than any tensor has.
const MAX_RANK: usize = 64;

/// Whether the file is a tar file.
pub(crate) fn is_tar(bytes: &[u8]) -> bool {
    bytes.get(257..262) == Some(b"ustar")
}

/// The tensors of such a file by their numbers, the pickle that names them, and where storages are.
pub(super) struct Tar<'a> {
    pickle: &'a [u8],
    pub(super) storages: Storages,
    tensors: BTreeMap<u64, TensorRef<'a>>,
}

/// Storages by their numbers: where each is, and the text that tensors know it by.
type Parts<'a> = BTreeMap<u64, (DType, &'a str, usize, usize)>;

impl<'a> Tar<'a> {
    /// Reads all but the pickle. `names` is memory for the names of storages.
    pub(super) fn read(bytes: &'a [u8], names: &'a [String]) -> Result<Tar<'a>, FileProblem> {
        let entries = entries(bytes)?;
        let entry = |name: &str| entries.get(name).cloned().ok_or_else(|| bad(&format!("it has no `{name}`")));
        let (places, parts) = storages(bytes, entry("storages")?, names)?;
        let tensors = tensors(bytes, entry("tensors")?, &parts)?;
        let pickle = bytes.get(entry("pickle")?).unwrap_or_default();
        Ok(Tar { pickle, storages: Storages::Places(places), tensors })
    }

    /// What the pickle holds.
    pub(super) fn unpickle(&self) -> Result<Unpickled<'_>, FileProblem> {
        if self.pickle.len() as u64 > MAX_PICKLE_BYTES {
            return Err(bad("its pickle is too large"));
        }
        let refused = |Refusal { at, why }| FileProblem::new(format!("pickle: byte {at}: {why}"), SAVE_STATE);
        Ok(pickle::read_first(self.pickle, Persistent::Numbered(&self.tensors)).map_err(refused)?.0)
    }
}

/// How many storages there may be: enough names are made for them.
pub(super) fn storage_names(bytes: &[u8]) -> Result<Vec<String>, FileProblem> {
    let place = entries(bytes)?.remove("storages").ok_or_else(|| bad("it has no `storages`"))?;
    let (count, _) = number(bytes.get(place).unwrap_or_default())?;
    // Each takes dozens of bytes.
    if count > bytes.len() / 16 {
        return Err(bad("it has more storages than bytes for them"));
    }
    Ok((0..count).map(|i| i.to_string()).collect())
}

/// The files in the archive.
fn entries(bytes: &[u8]) -> Result<BTreeMap<String, Place>, FileProblem> {
    let mut entries = BTreeMap::new();
    let mut at = 0usize;
    while let Some(header) = bytes.get(at..at + BLOCK).filter(|header| header[0] != 0) {
        let name = header[..100].split(|byte| *byte == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).trim_start_matches("./").to_owned();
        let digits = header[124..136].iter().map(|b| char::from(*b)).filter(char::is_ascii_digit).collect::<String>();
        let size = usize::from_str_radix(&digits, 8).map_err(|_| bad("an entry has no size"))?;
        let start = at + BLOCK;
        let end = start.checked_add(size).filter(|end| *end <= bytes.len());
        let end = end.ok_or_else(|| bad(&format!("`{name}` reaches beyond the end")))?;
        // Plain files: headers of other kinds describe the next entry.
        if matches!(header[156], 0 | b'0') {
            entries.insert(name, start..end);
        }
        at = end.checked_next_multiple_of(BLOCK).ok_or_else(|| bad("an entry is too large"))?;
    }
    Ok(entries)
}

fn storages<'a>(
    bytes: &'a [u8],
    entry: Place,
    names: &'a [String],
) -> Result<(BTreeMap<String, Place>, Parts<'a>), FileProblem> {
    let (mut at, end) = (entry.start, entry.end);
    let (count, len) = number(&bytes[entry])?;
    at += len;
    let (mut places, mut parts) = (BTreeMap::new(), Parts::new());
    for name in names.iter().take(count) {
        let (args, len) = unpickle(&bytes[at..end])?;
        at += len;
        let (key, dtype) = match args.heap.tuple(args.top) {
            Some([key, _, Value::Global(Global::Storage(Ok(dtype)))]) => (natural(*key), *dtype),
            _ => return Err(bad("a storage is not described by number, place and class")),
        };
        let count = i64_at(bytes, at, end)?;
        let numel = usize::try_from(count).map_err(|_| bad("a storage has a negative length"))?;
        let start = at + 8;
        let stop = numel.checked_mul(dtype.size()).and_then(|len| start.checked_add(len)).filter(|stop| *stop <= end);
        at = stop.ok_or_else(|| bad("a storage reaches beyond the end"))?;
        places.insert(name.clone(), start..at);
        parts.insert(key.ok_or_else(|| bad("a storage has no number"))?, (dtype, name, numel, 0));
    }
    let (views, _) = unpickle(&bytes[at..end])?;
    let Some(Object::List(views_list)) = views.heap.get(views.top) else { return Err(bad("it lists no views")) };
    for view in views_list {
        let numbers = views.heap.tuple(*view).map(|view| view.iter().map(|v| natural(*v)).collect::<Option<Vec<_>>>());
        let Some(Some(numbers)) = numbers else { return Err(bad("a view is not described by numbers")) };
        let [target, root, offset, size] = numbers[..] else { return Err(bad("a view has other than four numbers")) };
        let (dtype, name, numel, start) = *parts.get(&root).ok_or_else(|| bad("a view is of no storage"))?;
        let within = offset.checked_add(size).is_some_and(|end| end <= numel as u64);
        let begin = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(start)).filter(|_| within);
        parts.insert(target, (dtype, name, numel, begin.ok_or_else(|| bad("a view leaves its storage"))?));
    }
    Ok((places, parts))
}

fn tensors<'a>(bytes: &'a [u8], entry: Place, parts: &Parts<'a>) -> Result<BTreeMap<u64, TensorRef<'a>>, FileProblem> {
    let (mut at, end) = (entry.start, entry.end);
    let (count, len) = number(&bytes[entry])?;
    at += len;
    let mut tensors = BTreeMap::new();
    for _ in 0..count {
        let (args, len) = unpickle(&bytes[at..end])?;
        at += len;
        let (key, storage) = match args.heap.tuple(args.top) {
            Some([key, storage, _]) => (natural(*key), natural(*storage)),
            _ => return Err(bad("a tensor is not described by number, storage and class")),
        };
        let key = key.ok_or_else(|| bad("a tensor has no number"))?;
        let rank = bytes.get(at..end).and_then(|rest| rest.first_chunk::<4>()).map(|rank| u32::from_le_bytes(*rank));
        let rank = rank.and_then(|rank| usize::try_from(rank).ok()).filter(|rank| *rank <= MAX_RANK);
        let rank = rank.ok_or_else(|| bad("a tensor has no number of axes"))?;
        // The number of axes was written in eight bytes, and read in four.
        at += 8;
        let mut next = || {
            let value = i64_at(bytes, at, end)?;
            at += 8;
            usize::try_from(value).map_err(|_| bad("a tensor has a negative size"))
        };
        let shape = (0..rank).map(|_| next()).collect::<Result<Vec<_>, _>>()?;
        let strides = (0..rank).map(|_| next()).collect::<Result<Vec<_>, _>>()?;
        let offset = next()?;
        let Some((dtype, name, numel, start)) = storage.and_then(|storage| parts.get(&storage)).copied() else {
            return Err(bad("a tensor is of no storage"));
        };
        let offset = offset.checked_add(start).ok_or_else(|| bad("a tensor leaves its storage"))?;
        tensors.insert(key, TensorRef { key: name, numel, view: View { dtype, shape, strides, offset } });
    }
    Ok(tensors)
}

fn unpickle(bytes: &[u8]) -> Result<(Unpickled<'_>, usize), FileProblem> {
    let part = &bytes[..bytes.len().min(MAX_PICKLE_BYTES as usize)];
    pickle::read_first(part, Persistent::Storages).map_err(|Refusal { why, .. }| bad(&why))
}

/// A number in a pickle of its own, and the length of that.
fn number(bytes: &[u8]) -> Result<(usize, usize), FileProblem> {
    let (unpickled, len) = unpickle(bytes)?;
    let count = natural(unpickled.top).and_then(|count| usize::try_from(count).ok());
    Ok((count.ok_or_else(|| bad("expected a number of storages or tensors"))?, len))
}

fn natural(value: Value<'_>) -> Option<u64> {
    match value {
        Value::Int(n) => u64::try_from(n).ok(),
        Value::BigInt(bits) => Some(bits),
        _ => None,
    }
}

fn i64_at(bytes: &[u8], at: usize, end: usize) -> Result<i64, FileProblem> {
    let rest = bytes.get(at..end).and_then(|rest| rest.first_chunk::<8>());
    rest.map(|bytes| i64::from_le_bytes(*bytes)).ok_or_else(|| bad("it ends too early"))
}

fn bad(why: &str) -> FileProblem {
    FileProblem::new(format!("no valid tar file of torch.save: {why}"), SAVE_STATE)
}
