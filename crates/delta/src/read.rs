use std::path::{Path, PathBuf};

use rayon::prelude::*;
use regraft_tensor::{AlignedVec, DType, MappedFile, Tensor};
use regraft_weights::{Digest, StateDict, on_shared_threads};

use crate::{
    BLOCK, DeltaError, DeltaErrorKind, DeltaProblem, MAGIC, block,
    header::{Changed, Header},
};

/// Weights that a delta is applied to.
pub trait Base {
    /// The tensor called `name`, in `dtype` where it is kept as another float; `None` when there is none.
    ///
    /// # Errors
    /// Why it cannot be read, in words.
    fn tensor(&self, name: &str, dtype: DType) -> Result<Option<Tensor>, String>;

    /// The shape of the tensor called `name`; `None` when there is none.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;
}

impl Base for StateDict {
    fn tensor(&self, name: &str, _: DType) -> Result<Option<Tensor>, String> {
        Ok(self.get(name).cloned())
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.get(name).map(|tensor| tensor.shape().to_vec())
    }
}

/// A delta, mapped from its file.
#[derive(Debug)]
pub struct Delta {
    path: PathBuf,
    file: MappedFile,
    header: Header,
    /// Where the blocks begin.
    start: usize,
    digest: Digest,
}

/// Magic, length of the header, its digest.
const FIXED: usize = 8 + 8 + 32;

impl Delta {
    /// Opens a file, and checks everything but the contents of blocks.
    ///
    /// # Errors
    /// When it cannot be read, is not a delta or is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Delta, DeltaError> {
        let path = path.as_ref();
        let failed = |why: String| DeltaErrorKind::Read { path: path.to_owned(), why };
        let file = MappedFile::open(path).map_err(|error| failed(error.to_string()))?;
        let damaged = |why: &str| DeltaErrorKind::Damaged { path: path.to_owned(), why: why.to_owned() };
        let (header, start, digest) = read_header(file.bytes()).map_err(|why| damaged(&why))?;
        Ok(Delta { path: path.to_owned(), file, header, start, digest })
    }

    /// Whether the file at `path` begins as a delta does.
    pub fn is_one(path: impl AsRef<Path>) -> bool {
        MappedFile::open(path.as_ref()).is_ok_and(|file| file.bytes().starts_with(MAGIC))
    }

    /// Tells it from all other deltas: the digest of its header, which has those of all results.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// How many tensors it changes.
    pub fn changed(&self) -> usize {
        self.header.changed.len()
    }

    /// The tensors that change. `base` must have every tensor of the delta, and those that the delta was made from bit for bit;
    /// or it is the result already, and gives its own.
    ///
    /// # Errors
    /// Every tensor of `base` that is not the delta's, at once, before anything is computed; a damaged block.
    pub fn apply(&self, base: &impl Base) -> Result<StateDict, DeltaError> {
        if let Some(results) = self.check(base)? {
            return Ok(results);
        }
        let mut at = self.start;
        let mut all = StateDict::new();
        for changed in &self.header.changed {
            let len: usize = changed.blocks.iter().map(|block| block.len as usize).sum();
            let tensor = self.tensor(changed, &self.file.bytes()[at..at + len], base)?;
            all.insert(&changed.name, tensor);
            at += len;
        }
        Ok(all)
    }

    /// Checks all tensors of `base`; gives those that change where all of them have changed already.
    fn check(&self, base: &impl Base) -> Result<Option<StateDict>, DeltaError> {
        const DIFFERS: &str = "differs from the weights that the delta was made from";
        let mut problems = Vec::new();
        let mut problem = |name: &str, what: String| problems.push(DeltaProblem { name: name.to_owned(), what });
        let tensor = |name: &str, dtype| base.tensor(name, dtype).map_err(|why| unreadable(name, why));
        for same in &self.header.same {
            let dtype =
                DType::from_name(&same.dtype).ok_or_else(|| self.damaged(format!("no dtype {}", same.dtype)))?;
            match tensor(&same.name, dtype)?.map(|tensor| Digest::of(&tensor)) {
                None => problem(&same.name, "missing".into()),
                Some(found) if found != same.digest => problem(&same.name, DIFFERS.into()),
                Some(_) => {}
            }
        }
        let mut results = StateDict::new();
        for changed in &self.header.changed {
            let (dtype, _) = changed.check().map_err(|why| self.damaged(why))?;
            match base.shape(&changed.name) {
                None => problem(&changed.name, "missing".into()),
                Some(shape) if shape != changed.shape => {
                    problem(&changed.name, format!("expected the shape {:?}, found {shape:?}", changed.shape));
                }
                Some(_) => {
                    let found = tensor(&changed.name, dtype)?;
                    let digest = found.as_ref().map(Digest::of);
                    if digest == Some(changed.result) {
                        if let Some(tensor) = found {
                            results.insert(&changed.name, tensor);
                        }
                    } else if changed.base.is_some() && digest != changed.base {
                        problem(&changed.name, DIFFERS.into());
                    }
                }
            }
        }
        // Weights of which a part is the result are neither.
        if results.len() < self.header.changed.len() {
            results.iter().for_each(|(name, _)| problem(name, "is as after the delta, and others are not".into()));
        }
        if !problems.is_empty() {
            return Err(DeltaErrorKind::Base(problems).into());
        }
        Ok((results.len() == self.header.changed.len()).then_some(results))
    }

    fn tensor(&self, changed: &Changed, stored: &[u8], base: &impl Base) -> Result<Tensor, DeltaError> {
        let (dtype, bytes) = changed.check().map_err(|why| self.damaged(why))?;
        let old = match changed.base {
            None => None,
            Some(_) => {
                let tensor = base.tensor(&changed.name, dtype).map_err(|why| unreadable(&changed.name, why))?;
                tensor.filter(|tensor| tensor.bytes().len() == bytes)
            }
        };
        let mut data = AlignedVec::try_zeroed(bytes).map_err(|_| DeltaErrorKind::Memory(changed.name.clone()))?;
        let mut at = 0;
        let parts: Vec<_> = (changed.blocks.iter())
            .map(|block| {
                at += block.len as usize;
                (*block, &stored[at - block.len as usize..at])
            })
            .collect();
        let one = |(index, (out, (block, stored))): (usize, (&mut [u8], &(crate::header::Block, &[u8])))| {
            let place = index * BLOCK;
            let old = old.as_ref().map(|old| &old.bytes()[place..place + out.len()]);
            block::decode(*block, stored, old, dtype.size(), out)
        };
        let done = on_shared_threads(|| {
            data.bytes_mut().par_chunks_mut(BLOCK).zip(&parts).enumerate().map(one).all(|d| d.is_some())
        });
        let tensor = Tensor::new(dtype, changed.shape.clone(), data.into());
        let tensor = tensor.map_err(|error| self.damaged(error.to_string()))?;
        if !done || Digest::of(&tensor) != changed.result {
            return Err(self.damaged(format!("`{}` does not come out as it should", changed.name)).into());
        }
        Ok(tensor)
    }

    fn damaged(&self, why: String) -> DeltaErrorKind {
        DeltaErrorKind::Damaged { path: self.path.clone(), why }
    }
}

fn unreadable(name: &str, why: String) -> DeltaError {
    DeltaErrorKind::Unreadable { name: name.to_owned(), why }.into()
}

/// The header, where the blocks begin, and the digest; otherwise what is wrong.
fn read_header(bytes: &[u8]) -> Result<(Header, usize, Digest), String> {
    let cut = || "it is cut off".to_owned();
    if !bytes.starts_with(MAGIC) {
        return Err("it does not begin as one".into());
    }
    let len = bytes.get(8..16).and_then(|len| len.try_into().ok()).map(u64::from_le_bytes).ok_or_else(cut)?;
    let digest: [u8; 32] = bytes.get(16..FIXED).and_then(|digest| digest.try_into().ok()).ok_or_else(cut)?;
    let digest = Digest::from_bytes(digest);
    let end = usize::try_from(len).ok().and_then(|len| FIXED.checked_add(len)).ok_or_else(cut)?;
    let text = bytes.get(FIXED..end).ok_or_else(cut)?;
    if Digest::of_bytes(text) != digest {
        return Err("its header has another digest".into());
    }
    let header: Header = serde_json::from_slice(text).map_err(|error| format!("its header: {error}"))?;
    let mut at = end;
    for changed in &header.changed {
        changed.check()?;
        for block in &changed.blocks {
            at = at.checked_add(block.len as usize).ok_or_else(cut)?;
        }
    }
    let mut names: Vec<&str> = header
        .changed
        .iter()
        .map(|c| c.name.as_str())
        .chain(header.same.iter().map(|same| same.name.as_str()))
        .collect();
    names.sort_unstable();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("it has two tensors of one name".into());
    }
    if at != bytes.len() {
        return Err(format!("its blocks take {at} bytes, and it has {}", bytes.len()));
    }
    Ok((header, end, digest))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::write;

    fn weights(step: f32) -> StateDict {
        let large: Vec<f32> = (0..600_000).map(|i| (i as f32 * 0.37).sin() + step * (i % 3) as f32).collect();
        let mut all = StateDict::new();
        all.insert("large", Tensor::from_slice(&[600, 1000], &large));
        all.insert("same", Tensor::from_slice(&[3], &[1f32, 2.0, 3.0]));
        all.insert("half", Tensor::from_f64(DType::BF16, &[2], &[f64::from(step), 1.0]));
        all.insert("ids", Tensor::from_slice(&[2], &[7i64, (step * 1e6) as i64]));
        all
    }

    fn made(base: &StateDict, new: &StateDict) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.rgd");
        let mut bytes = Vec::new();
        let summary = write(base, new, &mut bytes).unwrap();
        assert_eq!(summary.written, bytes.len() as u64);
        fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn what_changed_comes_out_bit_for_bit() {
        let (base, new) = (weights(0.0), weights(1e-4));
        let (_dir, path) = made(&base, &new);
        assert!(fs::metadata(&path).unwrap().len() < new.byte_len() as u64 * 3 / 4);
        let delta = Delta::open(&path).unwrap();
        let changed = delta.apply(&base).unwrap();
        assert_eq!((changed.len(), delta.changed()), (3, 3));
        assert!(changed.iter().all(|(name, tensor)| new.get(name).unwrap().bit_equal(tensor)));
        // What is the result already stays it.
        let again = delta.apply(&new).unwrap();
        assert!(again.len() == 3 && again.iter().all(|(name, tensor)| new.get(name).unwrap().bit_equal(tensor)));
    }

    #[test]
    fn other_weights_are_refused_with_every_problem() {
        let (base, new) = (weights(0.0), weights(1e-4));
        let (_dir, path) = made(&base, &new);
        let delta = Delta::open(&path).unwrap();
        let mut other = weights(0.5);
        other.insert("same", Tensor::from_slice(&[3], &[1f32, 2.0, 4.0]));
        let error = delta.apply(&other).unwrap_err();
        let DeltaErrorKind::Base(problems) = error.kind() else { panic!("{error}") };
        let mut names: Vec<&str> = problems.iter().map(|p| p.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["half", "ids", "large", "same"]);
        assert!(
            matches!(delta.apply(&StateDict::new()).unwrap_err().kind(), DeltaErrorKind::Base(all) if all.len() == 4)
        );
        let lacking = [("same", Tensor::from_slice(&[1], &[1f32]))].map(|(n, t)| (n.to_owned(), t));
        let error = write(&base, &lacking.into_iter().collect(), Vec::new()).unwrap_err();
        assert!(matches!(error.kind(), DeltaErrorKind::Missing(names) if names.len() == 3));
    }

    #[test]
    fn constants_of_programs_are_not_lost() {
        let of_program = |values: &[(&str, f32)]| {
            let mut weights = weights(0.0);
            let tensor = |(name, value): &(&str, f32)| ((*name).to_owned(), Tensor::from_slice(&[1], &[*value]));
            weights.set_constants(values.iter().map(tensor).collect());
            weights
        };
        let base = of_program(&[("a", 1.0), ("b", 2.0)]);
        let error = write(&base, &of_program(&[("a", 1.5), ("c", 2.0)]), Vec::new()).unwrap_err();
        assert!(matches!(error.kind(), DeltaErrorKind::Constants(names) if names == &["a", "b", "c"]), "{error}");
        for new in [of_program(&[("a", 1.0), ("b", 2.0)]), weights(1e-4)] {
            write(&base, &new, Vec::new()).unwrap();
        }
    }

    #[test]
    fn damage_is_found_wherever_it_is() {
        let (base, new) = (weights(0.0), weights(1e-4));
        let (_dir, path) = made(&base, &new);
        let bytes = fs::read(&path).unwrap();
        let step = bytes.len() / 150;
        for at in (0..64).chain((64..bytes.len()).step_by(step.max(1))) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            fs::write(&path, &damaged).unwrap();
            // A bit that means nothing to the decompressor may change nothing.
            if let Ok(changed) = Delta::open(&path).and_then(|delta| delta.apply(&base)) {
                assert!(changed.iter().all(|(name, tensor)| new.get(name).unwrap().bit_equal(tensor)), "byte {at}");
            }
            fs::write(&path, &bytes[..at]).unwrap();
            assert!(Delta::open(&path).is_err(), "cut at {at}");
        }
    }
}
