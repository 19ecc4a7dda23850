//! Adapters: updates of sources that are applied on the way to the slots, always from the pristine sources.
//!
//! Every kind of adapter file comes down to a few forms of [`Update`], each over a source seen as a matrix: rows are its first
//! axis, columns all others, row-major. Factors that a file stores in other orders (embeddings, transposed weights,
//! convolutions with a middle factor) are brought into this form when the file is read.
//!
//! ```no_run
//! # use regraft_adapter::{Adapter, AdapterOptions};
//! # use regraft_weights::RefitMap;
//! # fn f(map: &RefitMap) -> Result<(), Box<dyn std::error::Error>> {
//! let path = std::path::Path::new("style.safetensors");
//! let style = Adapter::open(path, &AdapterOptions::new(), map, regraft_checkpoint::open)?;
//! println!("{} changes {} sources", style.name, style.layers.len());
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod component;
mod config;
mod dialect;
mod error;
mod joined;
mod layer;
mod matrix;
mod metadata;
mod oft;
mod overlay;
mod parameter;
mod problem;
mod read;
mod reference;
mod resolve;
mod rewrite;
mod rotation;
mod set;
mod several;

use regraft_tensor::Tensor;
use regraft_weights::{Digest, RefitMap, SourceInfo};

pub use self::{
    config::{AdapterConfig, Patterns},
    error::{AdapterError, AdapterErrorKind},
    overlay::{Delta, LowRank, LowRankValues, Matrix, Norms, Overlay, Term},
    problem::AdapterProblem,
    read::{AdapterOptions, read_config},
    rotation::{Rotation, Turn},
    set::AdapterSet,
    several::together,
};

/// An adapter, matched to the sources of one engine.
///
/// ```
/// # fn f(adapter: &regraft_adapter::Adapter) {
/// println!("{} changes {} sources", adapter.name, adapter.layers.len());
/// for source in adapter.sources() {
///     println!("{source}");
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Its name in reports.
    pub name: String,
    /// The updates in their order: for each use of a source at most one that replaces it, then at most one that is added.
    pub layers: Vec<AdapterLayer>,
    /// Keys of its file for other models of a pipeline, such as a text encoder.
    pub foreign_keys: Vec<String>,
    /// Name of the use and shape of the source of each layer, where it was read for an engine.
    made_for: Vec<(String, Vec<usize>)>,
    /// How many values of each layer are infinite or not a number.
    non_finite: Vec<usize>,
}

impl Adapter {
    /// An adapter made in memory, by sources of the engine that it is for.
    pub fn new(name: impl Into<String>, layers: Vec<AdapterLayer>) -> Self {
        let non_finite = layers.iter().map(|layer| layer.update.non_finite()).collect();
        Adapter { name: name.into(), layers, foreign_keys: Vec::new(), made_for: Vec::new(), non_finite }
    }

    /// How many of its values are infinite or not a number: of all layers together, and of each.
    pub fn non_finite(&self) -> (usize, &[usize]) {
        (self.non_finite.iter().sum(), &self.non_finite)
    }

    /// The names of the sources that it is for, where it was read for an engine; where one is tied, as its module calls it.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.made_for.iter().map(|(name, _)| name.as_str())
    }

    /// A digest of its effect: the sources that it changes, its values, and the scales of its configuration. The name is not
    /// part of it.
    pub fn digest(&self) -> Digest {
        let mut text = String::new();
        for (i, layer) in self.layers.iter().enumerate() {
            match self.made_for.get(i) {
                Some((name, shape)) => text.push_str(&format!("{name}\0{shape:?}")),
                None => text.push_str(&format!("{}", layer.source)),
            }
            text.push_str(&format!("\0{}\n", layer.update.digest()));
        }
        Digest::of_bytes(text.as_bytes())
    }

    /// Layers that do not fit the sources of `map`: for another engine, or of another size.
    pub fn mismatches(&self, map: &RefitMap) -> Vec<AdapterProblem> {
        let mut problems = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let made_for = self.made_for.get(i);
            let key = made_for.map_or_else(|| format!("layer {i}"), |(name, _)| name.clone());
            let found = map.source_of(layer.source).and_then(|source| map.sources.get(source));
            let name_here = map.use_name(layer.source);
            let is_same =
                |info: &SourceInfo| made_for.is_none_or(|(name, shape)| name == name_here && *shape == info.shape);
            let Some(info) = found.filter(|info| is_same(info)) else {
                let why = "the adapter was made for another engine; read it for this one".into();
                problems.push(AdapterProblem::Unsupported { key, why });
                continue;
            };
            let expected = (info.shape.first().copied().unwrap_or(1), info.shape.iter().skip(1).product());
            let size = layer.update.size(expected.0, expected.1);
            if size != expected {
                let (expected, found) =
                    (format!("{} x {}", expected.0, expected.1), format!("{} x {}", size.0, size.1));
                problems.push(AdapterProblem::Shape { key, expected, found });
            }
        }
        problems
    }
}

/// The update of one source, as one module uses it.
#[derive(Clone, Debug)]
pub struct AdapterLayer {
    /// Number of the source in the [`RefitMap`]; where it is tied, of the use that is meant.
    pub source: usize,
    /// What is done to it.
    pub update: Update,
}

/// An update of a source `W`, seen as a matrix of `rows x cols`. All tensors are f32 matrices. `scale` is the file's own
/// factor, such as `alpha / rank`; the caller's scale multiplies it.
#[derive(Clone, Debug)]
pub enum Update {
    /// LoRA: `scale * up @ down`.
    LowRank {
        /// The factors.
        factors: Factors,
        /// The file's factor.
        scale: f64,
        /// DoRA: the updated matrix is scaled to these norms.
        magnitude: Option<Magnitude>,
    },
    /// LoHa: `scale * (first.up @ first.down) * (second.up @ second.down)`, the outer product by element.
    Hadamard {
        /// The first product.
        first: Factors,
        /// The second product.
        second: Factors,
        /// The file's factor.
        scale: f64,
        /// DoRA: the updated matrix is scaled to these norms.
        magnitude: Option<Magnitude>,
    },
    /// LoKr: `scale * kron(left, right)`: element `[i, j]` is `left[i / c, j / d] * right[i % c, j % d]` with `right` of
    /// `c x d`.
    Kronecker {
        /// The outer factor.
        left: Tensor,
        /// The inner factor.
        right: Tensor,
        /// The file's factor.
        scale: f64,
        /// DoRA: the updated matrix is scaled to these norms.
        magnitude: Option<Magnitude>,
    },
    /// A full-weight delta: `scale * delta`.
    Full {
        /// `rows x cols`.
        delta: Tensor,
        /// The file's factor.
        scale: f64,
    },
    /// The tensor as it was trained takes the source's place, whatever the scale.
    Replace {
        /// `rows x cols`, of any float.
        values: Tensor,
    },
    /// Some rows as they were trained take the place of the source's, whatever the scale.
    Rows {
        /// Which.
        rows: Vec<usize>,
        /// `rows.len() x cols`, of any float.
        values: Tensor,
    },
    /// IA3: rows or columns are multiplied; by `1 + scale * (factor - 1)` where the caller scales it.
    Scaled {
        /// What has a factor of its own.
        axis: MagnitudeAxis,
        /// One factor per row or column, f32.
        factors: Tensor,
    },
    /// DoRA with a norm per input of a convolution with a kernel: `norms * (W + delta) / norm(W + delta)`.
    Decomposed {
        /// `rows x cols`, with the file's factor.
        delta: Tensor,
        /// Columns of one input.
        taps: usize,
        /// One norm per input, f32.
        norms: Tensor,
    },
    /// OFT, BOFT: rows or columns are mixed.
    Rotated(Rotation),
}

impl Update {
    /// Rows and columns of what it is for; a matrix of `rows x cols` has those where it does not matter.
    fn size(&self, rows: usize, cols: usize) -> (usize, usize) {
        let of = |tensor: &Tensor, axis: usize| tensor.shape().get(axis).copied().unwrap_or(1);
        match self {
            Update::LowRank { factors, .. } | Update::Hadamard { first: factors, .. } => {
                (of(&factors.up, 0), of(&factors.down, 1))
            }
            Update::Kronecker { left, right, .. } => (of(left, 0) * of(right, 0), of(left, 1) * of(right, 1)),
            Update::Full { delta: whole, .. } | Update::Replace { values: whole } => (of(whole, 0), of(whole, 1)),
            Update::Rows { rows: which, values } if of(values, 0) != which.len() => (usize::MAX, of(values, 1)),
            Update::Rows { rows: which, values } => {
                (which.iter().map(|row| row + 1).max().unwrap_or(0).max(rows), of(values, 1))
            }
            Update::Scaled { axis: MagnitudeAxis::Rows, factors } => (factors.numel(), cols),
            Update::Scaled { axis: MagnitudeAxis::Columns, factors } => (rows, factors.numel()),
            Update::Decomposed { delta, taps, norms } if norms.numel() * taps == of(delta, 1) => {
                (of(delta, 0), of(delta, 1))
            }
            Update::Decomposed { .. } => (usize::MAX, cols),
            Update::Rotated(rotation) if rotation.is_of(rows, cols) => (rows, cols),
            Update::Rotated(_) => (usize::MAX, cols),
        }
    }
}

impl Update {
    /// Whether both are the same, bit for bit.
    pub fn is_same(&self, other: &Update) -> bool {
        let (ours, theirs) = (self.tensors(), other.tensors());
        let same_tensors = ours.len() == theirs.len() && ours.iter().zip(&theirs).all(|(a, b)| a.bit_equal(b));
        std::mem::discriminant(self) == std::mem::discriminant(other)
            && self.file_scale().to_bits() == other.file_scale().to_bits()
            && self.magnitude().map(|m| m.axis) == other.magnitude().map(|m| m.axis)
            && self.places() == other.places()
            && self.shape() == other.shape()
            && same_tensors
    }

    /// A digest of what makes two of them the same.
    fn digest(&self) -> Digest {
        let kind = match self {
            Update::LowRank { .. } => "low rank",
            Update::Hadamard { .. } => "hadamard",
            Update::Kronecker { .. } => "kronecker",
            Update::Full { .. } => "full",
            Update::Replace { .. } => "replace",
            Update::Rows { .. } => "rows",
            Update::Scaled { .. } => "scaled",
            Update::Decomposed { .. } => "decomposed",
            Update::Rotated(_) => "rotated",
        };
        let (scale, axis, places) = (self.file_scale().to_bits(), self.magnitude().map(|m| m.axis), self.places());
        let mut text = format!("{kind}\0{scale:016x}\0{axis:?}\0{places:?}\0{:?}\n", self.shape());
        for tensor in self.tensors() {
            text.push_str(&format!("{}\n", Digest::of(tensor)));
        }
        Digest::of_bytes(text.as_bytes())
    }

    /// How many of its values are infinite or not a number.
    fn non_finite(&self) -> usize {
        self.tensors().into_iter().map(regraft_weights::non_finite).sum()
    }

    fn tensors(&self) -> Vec<&Tensor> {
        let mut tensors = match self {
            Update::LowRank { factors, .. } => vec![&factors.up, &factors.down],
            Update::Hadamard { first, second, .. } => vec![&first.up, &first.down, &second.up, &second.down],
            Update::Kronecker { left, right, .. } => vec![left, right],
            Update::Full { delta, .. } => vec![delta],
            Update::Replace { values } | Update::Rows { values, .. } => vec![values],
            Update::Scaled { factors, .. } => vec![factors],
            Update::Decomposed { delta, norms, .. } => vec![delta, norms],
            Update::Rotated(rotation) => rotation.tensors().collect(),
        };
        tensors.extend(self.magnitude().map(|magnitude| &magnitude.values));
        tensors
    }

    /// Which rows, or which axis.
    fn places(&self) -> (Vec<&[usize]>, Option<MagnitudeAxis>) {
        match self {
            Update::Rows { rows, .. } => (vec![rows], None),
            Update::Scaled { axis, .. } => (vec![], Some(*axis)),
            Update::Rotated(rotation) => {
                (rotation.turns.iter().map(|turn| turn.places.as_slice()).collect(), Some(rotation.axis))
            }
            _ => (vec![], None),
        }
    }

    /// Columns of one input, and which axis a rotation scales.
    fn shape(&self) -> (Option<usize>, Option<MagnitudeAxis>) {
        match self {
            Update::Decomposed { taps, .. } => (Some(*taps), None),
            Update::Rotated(rotation) => (None, rotation.scales.as_ref().map(|(axis, _)| *axis)),
            _ => (None, None),
        }
    }

    fn file_scale(&self) -> f64 {
        match self {
            Update::LowRank { scale, .. }
            | Update::Hadamard { scale, .. }
            | Update::Kronecker { scale, .. }
            | Update::Full { scale, .. } => *scale,
            Update::Replace { .. }
            | Update::Rows { .. }
            | Update::Scaled { .. }
            | Update::Decomposed { .. }
            | Update::Rotated(_) => 1.0,
        }
    }

    fn magnitude(&self) -> Option<&Magnitude> {
        match self {
            Update::LowRank { magnitude, .. }
            | Update::Hadamard { magnitude, .. }
            | Update::Kronecker { magnitude, .. } => magnitude.as_ref(),
            Update::Full { .. }
            | Update::Replace { .. }
            | Update::Rows { .. }
            | Update::Scaled { .. }
            | Update::Decomposed { .. }
            | Update::Rotated(_) => None,
        }
    }
}

/// `up @ down`, of `rows x rank` and `rank x cols`.
#[derive(Clone, Debug)]
pub struct Factors {
    /// `rows x rank`.
    pub up: Tensor,
    /// `rank x cols`.
    pub down: Tensor,
}

/// DoRA's magnitudes: `W' = magnitude * (W + delta) / norm(W + delta)`, with the norm taken along `axis`.
#[derive(Clone, Debug)]
pub struct Magnitude {
    /// What has a norm of its own.
    pub axis: MagnitudeAxis,
    /// One norm per row or column, f32.
    pub values: Tensor,
}

/// What has a norm of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MagnitudeAxis {
    /// Each row.
    Rows,
    /// Each column.
    Columns,
}
