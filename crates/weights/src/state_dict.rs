use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use regraft_tensor::{Buffer, DType, MappedFile, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::{WeightsError, WeightsErrorKind};

/// Named tensors: what a refit or a bind is given.
#[derive(Clone, Debug, Default)]
pub struct StateDict {
    tensors: BTreeMap<String, Tensor>,
}

/// The part of a `model.safetensors.index.json` that matters.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl StateDict {
    /// No tensors.
    pub fn new() -> Self {
        StateDict::default()
    }

    /// Adds a tensor; replaces one of the same name.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.tensors.insert(name.into(), tensor);
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// All tensors in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Bytes of all tensors.
    pub fn byte_len(&self) -> usize {
        self.tensors.values().map(|t| t.bytes().len()).sum()
    }

    /// Reads a `.safetensors` file, or the shards that a `.safetensors.index.json` names, by mapping.
    ///
    /// # Errors
    /// When a file cannot be read, is no safetensors file or holds a dtype that Regraft does not know.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let mut dict = StateDict::new();
        if path.extension().is_some_and(|e| e == "json") {
            for shard in shards(path)? {
                dict.read_safetensors(&shard)?;
            }
        } else {
            dict.read_safetensors(path)?;
        }
        Ok(dict)
    }

    fn read_safetensors(&mut self, path: &Path) -> Result<(), WeightsError> {
        let file = MappedFile::open(path).map_err(|e| match e.kind() {
            regraft_tensor::ErrorKind::Io { error, .. } => file_error(path, error.to_string()),
            _ => file_error(path, e.to_string()),
        })?;
        let bytes = file.bytes();
        let parsed = SafeTensors::deserialize(bytes).map_err(|e| {
            let zip = bytes.starts_with(b"PK");
            let advice = if zip {
                "; it looks like a zip archive (.pt or .pt2): save the state dict as .safetensors"
            } else {
                ""
            };
            file_error(path, format!("no valid safetensors file ({e}){advice}"))
        })?;
        for (name, view) in parsed.iter() {
            let dtype = dtype_of(view.dtype()).ok_or_else(|| {
                file_error(path, format!("`{name}` has dtype {:?}, which is not supported", view.dtype()))
            })?;
            let start = view.data().as_ptr().addr() - bytes.as_ptr().addr();
            let buffer = Buffer::mapped(&file, start..start + view.data().len());
            let tensor = buffer.and_then(|b| Tensor::new(dtype, view.shape().to_vec(), b).ok());
            let tensor = tensor.ok_or_else(|| file_error(path, format!("`{name}` does not lie inside the file")))?;
            self.insert(name, tensor.aligned());
        }
        Ok(())
    }
}

impl FromIterator<(String, Tensor)> for StateDict {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(iter: I) -> Self {
        StateDict { tensors: iter.into_iter().collect() }
    }
}

/// The shard files that an index names, beside it.
fn shards(index: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    let text = std::fs::read_to_string(index).map_err(|e| file_error(index, e.to_string()))?;
    let parsed: ShardIndex =
        serde_json::from_str(&text).map_err(|e| file_error(index, format!("no valid safetensors index: {e}")))?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    let folder = index.parent().unwrap_or(Path::new(""));
    let shard = |name: String| {
        // An index from outside must not reach files elsewhere.
        if name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(file_error(index, format!("the shard name `{name}` is no plain file name")));
        }
        Ok(folder.join(name))
    };
    names.into_iter().map(shard).collect()
}

fn file_error(path: &Path, why: impl Into<String>) -> WeightsError {
    WeightsErrorKind::File { path: path.to_path_buf(), why: why.into() }.into()
}

fn dtype_of(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        _ => return None,
    })
}
