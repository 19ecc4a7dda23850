use std::collections::BTreeMap;

use regraft_tensor::Tensor;

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
}

impl FromIterator<(String, Tensor)> for StateDict {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(iter: I) -> Self {
        StateDict { tensors: iter.into_iter().collect(), metadata: BTreeMap::new() }
    }
}
