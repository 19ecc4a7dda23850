use std::collections::BTreeMap;

use regraft_tensor::Tensor;

/// Named tensors: the weights for a refit or a bind.
///
/// ```
/// use regraft_tensor::Tensor;
/// # use regraft_weights::StateDict;
///
/// let bias = Tensor::from_slice(&[2], &[0.5f32, 1.0]);
/// let weights: StateDict = [("fc.bias".to_owned(), bias)].into_iter().collect();
/// for (name, tensor) in &weights {
///     println!("{name}: {}{:?}", tensor.dtype(), tensor.shape());
/// }
/// assert!(weights.get("fc.bias").is_some());
/// ```
#[derive(Clone, Debug, Default)]
pub struct StateDict {
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
    skipped: BTreeMap<String, String>,
    constants: Option<BTreeMap<String, Tensor>>,
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
        self.tensors.values().map(Tensor::byte_count).sum()
    }

    /// Adds all tensors and metadata of `other`; they replace those of the same name.
    pub fn append(&mut self, mut other: StateDict) {
        self.tensors.append(&mut other.tensors);
        self.metadata.append(&mut other.metadata);
        self.skipped.append(&mut other.skipped);
        if let Some(constants) = other.constants {
            self.constants.get_or_insert_default().extend(constants);
        }
    }

    /// The tensors in the nodes of a program, by name, if the file is one; `None` otherwise. They are not weights,
    /// but another value of one of them gives other results: a refit takes those that it can, and refuses the others.
    pub fn constants(&self) -> Option<&BTreeMap<String, Tensor>> {
        self.constants.as_ref()
    }

    /// Sets the tensors in the nodes of the program that the weights belong to.
    pub fn set_constants(&mut self, constants: BTreeMap<String, Tensor>) {
        self.constants = Some(constants);
    }

    /// Metadata of the file, such as how an adapter was trained: text by name.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Adds metadata of a file.
    pub fn add_metadata(&mut self, entries: impl IntoIterator<Item = (String, String)>) {
        self.metadata.extend(entries);
    }

    /// Objects of the file that were not read, by their place: a description, such as "a tensor of complex64".
    pub fn skipped(&self) -> &BTreeMap<String, String> {
        &self.skipped
    }

    /// Records that the object at `place` was not read.
    pub fn skip(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.skipped.insert(place.into(), what.into());
    }

    fn without_tensors(&self) -> StateDict {
        StateDict {
            tensors: BTreeMap::new(),
            metadata: self.metadata.clone(),
            skipped: self.skipped.clone(),
            constants: self.constants.clone(),
        }
    }

    /// The tensors for which `keep` returns a name, under that name, with the file's metadata.
    #[must_use]
    pub fn renamed(&self, mut keep: impl FnMut(&str) -> Option<String>) -> StateDict {
        let tensors = self.tensors.iter().filter_map(|(name, tensor)| Some((keep(name)?, tensor.clone()))).collect();
        StateDict { tensors, ..self.without_tensors() }
    }
}

impl<'a> IntoIterator for &'a StateDict {
    type Item = (&'a str, &'a Tensor);
    type IntoIter = Box<dyn Iterator<Item = Self::Item> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

impl IntoIterator for StateDict {
    type Item = (String, Tensor);
    type IntoIter = std::collections::btree_map::IntoIter<String, Tensor>;

    fn into_iter(self) -> Self::IntoIter {
        self.tensors.into_iter()
    }
}

impl<N: Into<String>> Extend<(N, Tensor)> for StateDict {
    fn extend<I: IntoIterator<Item = (N, Tensor)>>(&mut self, iter: I) {
        self.tensors.extend(iter.into_iter().map(|(name, tensor)| (name.into(), tensor)));
    }
}

impl FromIterator<(String, Tensor)> for StateDict {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(iter: I) -> Self {
        StateDict { tensors: iter.into_iter().collect(), ..StateDict::default() }
    }
}
