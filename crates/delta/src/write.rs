use std::{collections::BTreeSet, io::Write};

use rayon::prelude::*;
use regraft_tensor::Tensor;
use regraft_weights::{Digest, StateDict, on_shared_threads};

use crate::{
    BLOCK, DeltaError, DeltaErrorKind, MAGIC, block,
    header::{Block, Changed, Header, Same},
};

/// What a delta holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Tensors of the second checkpoint.
    pub tensors: usize,
    /// Those that are not in the first one, or differ from it.
    pub changed: usize,
    /// Bytes of the second checkpoint's tensors.
    pub bytes: usize,
    /// Bytes of the tensors that changed.
    pub changed_bytes: usize,
    /// Bytes of the delta.
    pub written: u64,
}

/// A tensor's blocks as they are stored.
type Blocks = Vec<(Block, Vec<u8>)>;

/// The constants that only one of two programs has, or that differ; none where one of the files is not a program.
fn differing_constants(base: &StateDict, new: &StateDict) -> Vec<String> {
    let (Some(base), Some(new)) = (base.constants(), new.constants()) else { return Vec::new() };
    let names: BTreeSet<&String> = base.keys().chain(new.keys()).collect();
    let differ = |name: &&String| match (base.get(*name), new.get(*name)) {
        (Some(one), Some(other)) => !one.bit_equal(other),
        _ => true,
    };
    names.into_iter().filter(differ).cloned().collect()
}

/// Writes what differs from `base` in `new`. The blocks are in memory until all are made: about the size of the delta.
///
/// # Errors
/// When `new` lacks tensors of `base`, both are of programs with other constants, or writing fails.
pub fn write(base: &StateDict, new: &StateDict, mut out: impl Write) -> Result<Summary, DeltaError> {
    let missing: Vec<String> =
        base.iter().filter(|(name, _)| new.get(name).is_none()).map(|(name, _)| name.to_owned()).collect();
    if !missing.is_empty() {
        return Err(DeltaErrorKind::Missing(missing).into());
    }
    let differing = differing_constants(base, new);
    if !differing.is_empty() {
        return Err(DeltaErrorKind::Constants(differing).into());
    }
    let mut header = Header { same: Vec::new(), changed: Vec::new() };
    let mut stored = Vec::new();
    let mut summary = Summary { tensors: new.len(), bytes: new.byte_len(), ..Summary::default() };
    for (name, tensor) in new.iter() {
        let old = base.get(name);
        if old.is_some_and(|old| old.bit_equal(tensor)) {
            let (name, dtype) = (name.to_owned(), tensor.dtype().name().to_owned());
            header.same.push(Same { name, dtype, digest: Digest::of(tensor) });
            continue;
        }
        let against = old.filter(|old| old.dtype() == tensor.dtype() && old.shape() == tensor.shape());
        let blocks = blocks(tensor, against).map_err(DeltaErrorKind::Write)?;
        summary.changed += 1;
        summary.changed_bytes += tensor.bytes().len();
        header.changed.push(Changed {
            name: name.to_owned(),
            dtype: tensor.dtype().name().to_owned(),
            shape: tensor.shape().to_vec(),
            base: against.map(Digest::of),
            result: Digest::of(tensor),
            blocks: blocks.iter().map(|(block, _)| *block).collect(),
        });
        stored.push(blocks);
    }
    let text = serde_json::to_vec(&header).expect("names and numbers can be written as JSON");
    let mut put = |bytes: &[u8]| {
        summary.written += bytes.len() as u64;
        out.write_all(bytes).map_err(DeltaErrorKind::Write)
    };
    put(MAGIC)?;
    put(&(text.len() as u64).to_le_bytes())?;
    put(Digest::of_bytes(&text).as_bytes())?;
    put(&text)?;
    stored.iter().flatten().try_for_each(|(_, bytes)| put(bytes))?;
    out.flush().map_err(DeltaErrorKind::Write)?;
    Ok(summary)
}

fn blocks(tensor: &Tensor, base: Option<&Tensor>) -> std::io::Result<Blocks> {
    let (bytes, width) = (tensor.bytes(), tensor.dtype().size());
    let one = |(index, part): (usize, &[u8])| {
        let at = index * BLOCK;
        block::encode(part, base.map(|base| &base.bytes()[at..at + part.len()]), width)
    };
    on_shared_threads(|| bytes.par_chunks(BLOCK).enumerate().map(one).collect())
}
