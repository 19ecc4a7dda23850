//! Weights of a file in a form that is not read: quantized, or of a dtype or kind that tensors here do not have.

use std::collections::BTreeMap;

use crate::{Rename, StateDict, naming};

/// Weights of a file that are there in another form: what each is, in words, by its name without what wrappers add, from its
/// last byte to the first.
pub(crate) struct StoredOtherwise(BTreeMap<Vec<u8>, String>);

impl StoredOtherwise {
    /// What may be the source of this name: it has that name, perhaps behind something else.
    pub(crate) fn of(&self, own: &str) -> Option<&str> {
        if self.0.is_empty() {
            return None;
        }
        let mut end = reversed(own);
        let whole = self.0.get(&end);
        let behind = || {
            end.push(b'.');
            self.0.range(end.clone()..).next().filter(|(name, _)| name.starts_with(&end)).map(|(_, what)| what)
        };
        whole.or_else(behind).map(String::as_str)
    }
}

fn reversed(name: &str) -> Vec<u8> {
    naming::without_holders(name).bytes().rev().collect()
}

/// Names of what tools write in place of a weight, and of what lies beside it: both ends, and the weight's.
const PACKED: [(&str, &str, &str); 7] = [
    // GPTQ, AWQ, EETQ and the like.
    (".qweight", ".scales", ".weight"),
    (".qweight", ".weight_scales", ".weight"),
    // compressed-tensors.
    (".weight_packed", ".weight_scale", ".weight"),
    // HQQ.
    (".W_q", ".scale", ".weight"),
    // quanto.
    (".weight._data", ".weight._scale", ".weight"),
    // AQLM.
    (".codes", ".codebooks", ".weight"),
    // Four bits with a shared exponent, of the experts of a layer.
    ("_blocks", "_scales", ""),
];

/// What `weights` has in another form: what its reader left out, and what names without a source say.
pub(crate) fn otherwise(weights: &StateDict, unplaced: &[&str], renames: &[Rename]) -> StoredOtherwise {
    let renamed = |name: &str| renames.iter().find_map(|rename| rename.apply(name)).unwrap_or_else(|| name.to_owned());
    let skipped = weights.skipped().iter().map(|(name, what)| (name.clone(), what.clone()));
    let packed = unplaced.iter().filter_map(|name| {
        let of = |(end, beside, weight): &(&str, &str, &str)| {
            let stem = name.strip_suffix(end)?;
            let scale = format!("{stem}{beside}");
            let has_scale = weights.get(&scale).is_some() || weights.skipped().contains_key(&scale);
            has_scale.then(|| (format!("{stem}{weight}"), format!("{name} (quantized)")))
        };
        PACKED.iter().find_map(of)
    });
    StoredOtherwise(packed.chain(skipped).map(|(name, what)| (reversed(&renamed(&name)), what)).collect())
}

/// What quantized the weights of a file, by the names that it has beside them and that are not sources.
pub(crate) fn format_of(unplaced: &[&str]) -> Option<&'static str> {
    let last = |name: &'static str| unplaced.iter().any(|other| other.rsplit('.').next() == Some(name));
    let ends = |end: &'static str| unplaced.iter().any(|other| other.ends_with(end));
    match () {
        () if unplaced.iter().any(|name| name.contains(".quant_state.bitsandbytes__")) => Some("bitsandbytes (4 bits)"),
        () if last("SCB") => Some("bitsandbytes (8 bits)"),
        () if last("qweight") && last("g_idx") => Some("GPTQ"),
        () if last("qweight") && last("qzeros") => Some("AWQ or GPTQ"),
        () if last("qweight") => Some("qweight and its scales"),
        () if last("weight_packed") => Some("compressed-tensors"),
        () if last("W_q") => Some("HQQ"),
        () if ends(".weight._data") => Some("quanto"),
        () if last("codes") && last("codebooks") => Some("AQLM"),
        () if last("weight_scale") || last("weight_scale_inv") => Some("scales beside narrow weights"),
        () if ends("_blocks") && ends("_scales") => Some("MXFP4"),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use regraft_tensor::Tensor;

    use super::*;

    #[test]
    fn weights_in_few_bits_are_told_by_what_lies_beside_them() {
        assert_eq!(
            format_of(&["fc.weight.absmax", "fc.weight.quant_state.bitsandbytes__nf4"]),
            Some("bitsandbytes (4 bits)")
        );
        assert_eq!(format_of(&["fc.SCB"]), Some("bitsandbytes (8 bits)"));
        assert_eq!(format_of(&["fc.qweight", "fc.qzeros", "fc.scales"]), Some("AWQ or GPTQ"));
        assert_eq!(format_of(&["fc.qweight", "fc.qzeros", "fc.scales", "fc.g_idx"]), Some("GPTQ"));
        assert_eq!(format_of(&["fc.weight_scale"]), Some("scales beside narrow weights"));
        assert_eq!(format_of(&["experts.up_proj_blocks", "experts.up_proj_scales"]), Some("MXFP4"));
        assert_eq!(format_of(&["fc.scales", "fc.weight_g"]), None);
    }

    #[test]
    fn packed_weights_stand_for_those_that_they_were() {
        let names =
            ["model.fc.qweight", "model.fc.scales", "up.codes", "m.W_q", "m.scale", "e.up_blocks", "e.up_scales"];
        let one = |name: &str| (name.to_owned(), Tensor::from_slice(&[1], &[0f32]));
        let mut weights: StateDict = names.iter().map(|name| one(name)).collect();
        weights.skip("narrow.weight", "a tensor of float8_e4m3fn");
        let found = otherwise(&weights, &names, &[Rename::new("m", "n")]);
        let has = |own: &str| found.of(own).is_some();
        for own in ["fc.weight", "model.fc.weight", "n.weight", "e.up", "narrow.weight"] {
            assert!(has(own), "{own}");
        }
        for own in ["fc.bias", "up.weight", "c.weight", "weight.fc"] {
            assert!(!has(own), "{own}");
        }
    }
}
