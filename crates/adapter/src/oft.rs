//! From the tensors of OFT and BOFT to rotations: PEFT rotates a module's inputs, LyCORIS and kohya's scripts its outputs.

use regraft_ir::Role;
use regraft_tensor::{DType, Tensor};

use crate::{
    MagnitudeAxis, Update,
    dialect::Part,
    layer::{Layer, Outcome, Weight, incomplete, shape, unsupported},
    matrix,
    rotation::{Rotation, Turn, cayley, cayley_series},
};

/// The parts of rotations.
pub(super) const ROTATION: &[Part] =
    &[Part::OftR, Part::OftEmbeddingR, Part::BoftR, Part::BoftS, Part::OftBlocks, Part::Rescale];

impl Layer<'_, '_> {
    /// The rotation of a module's weight.
    pub(super) fn rotated(&self, weight: Weight<'_>) -> Outcome<Update> {
        let key = self.first_key();
        let inputs = match weight.role {
            Role::Linear | Role::Conv | Role::Table => MagnitudeAxis::Columns,
            Role::LinearInOut => MagnitudeAxis::Rows,
            Role::ConvTranspose => {
                return Err(unsupported(key, "OFT of a transposed convolution, which no tool defines"));
            }
            Role::Other => {
                let why =
                    "whether the weight is stored as [in, out], neither the program nor the class of its module says";
                return Err(unsupported(key, why));
            }
        };
        let outputs = match inputs {
            MagnitudeAxis::Columns => MagnitudeAxis::Rows,
            MagnitudeAxis::Rows => MagnitudeAxis::Columns,
        };
        let rotation = if self.given(Part::OftBlocks).is_some() || self.given(Part::Rescale).is_some() {
            self.of_outputs(outputs, weight)?
        } else if self.given(Part::BoftR).is_some() || self.given(Part::BoftS).is_some() {
            self.butterfly(inputs, outputs, weight)?
        } else {
            self.of_inputs(inputs, weight)?
        };
        match rotation.is_of(weight.rows, weight.cols) {
            true => Ok(Update::Rotated(rotation)),
            false => {
                let why = format!("gives no rotation of {}", weight.info.type_text());
                Err(unsupported(key, &why))
            }
        }
    }

    /// PEFT's OFT: `[blocks, size * (size - 1) / 2]`, the upper triangles of skew-symmetric matrices.
    fn of_inputs(&self, inputs: MagnitudeAxis, weight: Weight<'_>) -> Outcome<Rotation> {
        let is_table = weight.role == Role::Table;
        let (key, given) = match is_table {
            true => self.part(Part::OftEmbeddingR, Part::OftR)?,
            false => self.part(Part::OftR, Part::OftEmbeddingR)?,
        };
        if weight.role == Role::Conv && weight.info.shape.iter().skip(2).any(|taps| *taps != 1) {
            let why = "OFT of a convolution with a kernel: PEFT turns patches of its input and adds them where they overlap, \
                       which no weight does";
            return Err(unsupported(key, why));
        }
        let says = |name: &str| self.config.flag(name).ok_or_else(|| self.unsaid(key, name));
        let (by_series, is_shared) = (says("use_cayley_neumann")?, says("block_share")?);
        let is_constrained = says("coft")?;
        let terms = match by_series {
            true => self
                .config
                .number("num_cayley_neumann_terms")
                .ok_or_else(|| self.unsaid(key, "num_cayley_neumann_terms"))?,
            false => 0.0,
        };
        let [count, elements] = *given.shape() else { return Err(shape(key, "[blocks, elements]", given)) };
        let size = side_of_triangle(elements).ok_or_else(|| shape(key, "the upper triangles of matrices", given))?;
        let lines = weight.lines(inputs);
        let is_whole =
            if is_shared { count == 1 && lines.is_multiple_of(size) } else { count.checked_mul(size) == Some(lines) };
        if !is_whole {
            return Err(shape(key, &format!("blocks for {lines} inputs"), given));
        }
        let mut triangles = numbers(key, given)?;
        if is_constrained {
            let eps = self.config.number("eps").ok_or_else(|| self.unsaid(key, "eps"))?;
            triangles.chunks_exact_mut(elements.max(1)).for_each(|block| constrain(block, eps / (count as f64).sqrt()));
        }
        let mut blocks = Vec::with_capacity(count * size * size);
        for block in 0..count {
            let q = skew(&triangles[block * elements..][..elements], size);
            let turn = match by_series {
                true => cayley_series(&q, size, terms.clamp(0.0, 1e3) as usize),
                false => cayley(&q.iter().map(|q| -q).collect::<Vec<_>>(), size),
            };
            // The rows of an embedding are turned after they were read.
            blocks.extend(if is_table { transposed(&turn, size) } else { turn });
        }
        let blocks = as_blocks(&blocks, [count, size, size]);
        Ok(Rotation { axis: inputs, turns: vec![Turn { places: vec![], blocks }], scales: None })
    }

    /// PEFT's BOFT: `[factors, blocks, size, size]`, of which the skew-symmetric part counts, and a scale per output.
    fn butterfly(&self, inputs: MagnitudeAxis, outputs: MagnitudeAxis, weight: Weight<'_>) -> Outcome<Rotation> {
        let (key, given) = self.part(Part::BoftR, Part::BoftS)?;
        let (scales_key, scales) = self.part(Part::BoftS, Part::BoftR)?;
        let [factors, count, size, again] = *given.shape() else {
            return Err(shape(key, "[factors, blocks, size, size]", given));
        };
        let lines = weight.lines(inputs);
        let is_whole = size == again && size > 0 && factors > 0 && count.checked_mul(size) == Some(lines);
        // The butterflies of more than one factor cut blocks in halves.
        if !is_whole
            || factors > 32
            || (factors > 1 && (!size.is_multiple_of(2) || !count.is_multiple_of(1 << (factors - 1))))
        {
            return Err(shape(key, &format!("blocks for {lines} inputs"), given));
        }
        let values = numbers(key, given)?;
        let mut turns = Vec::with_capacity(factors);
        for (i, values) in values.chunks_exact(count * size * size).enumerate() {
            let halves = |q: Vec<f64>| q.iter().map(|q| -0.5 * q).collect::<Vec<_>>();
            let blocks: Vec<f64> = values
                .chunks_exact(size * size)
                .flat_map(|block| cayley(&halves(skew_part(block, size)), size))
                .collect();
            let places = if factors == 1 { vec![] } else { butterfly_places(lines, count >> i, size / 2) };
            turns.push(Turn { places, blocks: as_blocks(&blocks, [count, size, size]) });
        }
        let scales = matrix::flat(scales_key, scales, 1)?;
        if scales.numel() != weight.lines(outputs) {
            return Err(shape(scales_key, &format!("{} scales", weight.lines(outputs)), &scales));
        }
        Ok(Rotation { axis: inputs, turns, scales: Some((outputs, scales)) })
    }

    /// LyCORIS's and kohya's: `[blocks, size, size]` (OFT) or `[factors, blocks, size, size]` (BOFT), and an alpha that says how
    /// far they may turn.
    fn of_outputs(&self, outputs: MagnitudeAxis, weight: Weight<'_>) -> Outcome<Rotation> {
        let (key, given) = self.part(Part::OftBlocks, Part::Rescale)?;
        let lines = weight.lines(outputs);
        let (factors, count, size) = match *given.shape() {
            [count, size, again] if size == again => (1, count, size),
            [factors, count, size, again] if size == again => (factors, count, size),
            _ => return Err(shape(key, "[blocks, size, size]", given)),
        };
        if size == 0 || factors == 0 || count.checked_mul(size) != Some(lines) || factors > 32 {
            return Err(shape(key, &format!("blocks for {lines} outputs"), given));
        }
        let (_, alpha) = self.part(Part::Alpha, Part::OftBlocks)?;
        let limit = match alpha.to_f64_vec().as_slice() {
            [alpha] if alpha.is_finite() => alpha * lines as f64,
            _ => return Err(shape(key, "one finite number as its alpha", alpha)),
        };
        let is_butterfly = given.shape().len() == 4;
        let values = numbers(key, given)?;
        let mut skews: Vec<f64> = values.chunks_exact(size * size).flat_map(|block| skew_part(block, size)).collect();
        let norm = skews.iter().map(|q| q * q).sum::<f64>().sqrt() + 1e-8;
        if limit > 0.0 && norm > limit {
            skews.iter_mut().for_each(|q| *q *= limit / norm);
        }
        let mut turns = Vec::with_capacity(factors);
        for (i, skews) in skews.chunks_exact(count * size * size).enumerate() {
            let turned = skews.chunks_exact(size * size).map(|q| cayley(q, size));
            // What OFT has the transposed of, BOFT has not.
            let blocks: Vec<f64> = turned.flat_map(|r| if is_butterfly { r } else { transposed(&r, size) }).collect();
            let places = match is_butterfly {
                true => interleaved(lines, size, i).ok_or_else(|| shape(key, "butterflies", given))?,
                false => vec![],
            };
            turns.push(Turn { places, blocks: as_blocks(&blocks, [count, size, size]) });
        }
        let scales = match self.given(Part::Rescale) {
            Some((key, scales)) if scales.numel() == lines => Some((outputs, matrix::flat(key, scales, 1)?)),
            Some((key, scales)) => return Err(shape(key, &format!("{lines} scales"), scales)),
            None => None,
        };
        Ok(Rotation { axis: outputs, turns, scales })
    }

    fn unsaid(&self, key: &str, name: &str) -> crate::AdapterProblem {
        match self.config.peft_type {
            Some(_) => unsupported(
                key,
                &format!("its configuration does not say `{name}`: save the adapter with a newer PEFT"),
            ),
            None => incomplete(key, "adapter_config.json, which says how it turns"),
        }
    }
}

/// The size of the matrices whose upper triangles have so many elements.
fn side_of_triangle(elements: usize) -> Option<usize> {
    let near = (elements.checked_mul(2)? as f64).sqrt() as usize;
    (near.saturating_sub(1)..=near + 2)
        .find(|side| *side > 0 && side.checked_mul(side - 1).is_some_and(|twice| twice / 2 == elements))
}

fn numbers(key: &str, tensor: &Tensor) -> Outcome<Vec<f64>> {
    if !tensor.dtype().is_float() {
        return Err(shape(key, "floats", tensor));
    }
    Ok(tensor.to_f64_vec())
}

/// The skew-symmetric matrix with this upper triangle, row by row.
fn skew(triangle: &[f64], size: usize) -> Vec<f64> {
    let mut matrix = vec![0.0; size * size];
    let places = (0..size).flat_map(|row| (row + 1..size).map(move |column| (row, column)));
    for ((row, column), value) in places.zip(triangle) {
        matrix[row * size + column] = *value;
        matrix[column * size + row] = -value;
    }
    matrix
}

/// `a - a^T`
fn skew_part(matrix: &[f64], size: usize) -> Vec<f64> {
    transposed(matrix, size).iter().zip(matrix).map(|(b, a)| a - b).collect()
}

fn transposed(matrix: &[f64], size: usize) -> Vec<f64> {
    (0..size * size).map(|e| matrix[e % size * size + e / size]).collect()
}

/// COFT: a matrix with this upper triangle is no larger than `eps`.
fn constrain(triangle: &mut [f64], eps: f64) {
    let norm = (2.0 * triangle.iter().map(|q| q * q).sum::<f64>()).sqrt();
    if norm > eps {
        triangle.iter_mut().for_each(|q| *q *= eps / norm);
    }
}

fn as_blocks(values: &[f64], shape: [usize; 3]) -> Tensor {
    Tensor::from_f64(DType::F32, &shape, values)
}

/// Where PEFT's butterflies of `blocks` blocks put each line: in each, halves of `half` lines with even numbers come first.
fn butterfly_places(lines: usize, blocks: usize, half: usize) -> Vec<usize> {
    let each = lines / blocks;
    let halves = each / half;
    let evens = halves.div_ceil(2);
    let source = |slot: usize| if slot < evens { 2 * slot } else { 2 * (slot - evens) + 1 };
    (0..lines).map(|line| line / each * each + source(line % each / half) * half + line % half).collect()
}

/// Where LyCORIS's butterflies put each line at factor number `factor`: pairs that are `2^factor * size / 2` apart side by side.
fn interleaved(lines: usize, size: usize, factor: usize) -> Option<Vec<usize>> {
    let apart = (size / 2)
        .checked_shl(u32::try_from(factor).ok()?)
        .filter(|apart| *apart > 0 && lines.is_multiple_of(2 * apart))?;
    let place = |line: usize| {
        let (group, rest) = (line / (2 * apart), line % (2 * apart));
        group * 2 * apart + rest % apart * 2 + rest / apart
    };
    Some((0..lines).map(place).collect())
}
