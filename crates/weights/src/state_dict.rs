use std::{collections::BTreeMap, path::Path};

use regraft_tensor::Tensor;

use crate::{WeightsError, files};

/// Named tensors: what a refit or a bind is given.
#[derive(Clone, Debug, Default)]
pub struct StateDict {
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
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

    /// Adds all tensors and metadata of `other`; they replace those of the same name.
    pub fn append(&mut self, mut other: StateDict) {
        self.tensors.append(&mut other.tensors);
        self.metadata.append(&mut other.metadata);
    }

    /// What a file says beside its tensors, such as how an adapter was trained: text by name.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Adds what a file says beside its tensors.
    pub fn add_metadata(&mut self, entries: impl IntoIterator<Item = (String, String)>) {
        self.metadata.extend(entries);
    }

    /// Reads a weight file, by mapping where its bytes are stored as they are: `.safetensors`, a state dict that
    /// `torch.save` wrote (`.pt`, `.pth`, `.bin`; nothing in it is executed), the initialisers of an `.onnx`, or the shards
    /// that an `.index.json` names. What a file is, its content tells.
    ///
    /// # Errors
    /// When the file cannot be read, is of no such format, is damaged or holds a dtype that Regraft does not know.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let mut dict = StateDict::new();
        files::read(path, &mut dict)?;
        Ok(dict)
    }
}

impl FromIterator<(String, Tensor)> for StateDict {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(iter: I) -> Self {
        StateDict { tensors: iter.into_iter().collect(), metadata: BTreeMap::new() }
    }
}
