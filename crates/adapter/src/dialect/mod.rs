//! How the files of different tools name the tensors of an adapter.

mod diffusers;
mod kohya;
mod ldm;
mod peft;

pub(super) use ldm::LdmNames;

/// Components of pipelines, as keys name them.
pub(super) const COMPONENTS: [&str; 6] =
    ["unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "diffusion_model"];

/// What one tensor is in the update of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// LoRA: the factor next to the input, `[r, in, ...]`.
    Down,
    /// LoRA: the factor next to the output, `[out, r, ...]`.
    Up,
    /// LoCon: the kernel between factors without one, `[r, r, kh, kw]`.
    Mid,
    /// LoRA: what is added to the bias.
    UpBias,
    /// LoRA of an embedding, `[r, num]`.
    EmbeddingDown,
    /// LoRA of an embedding, `[dim, r]`.
    EmbeddingUp,
    /// PEFT's magnitudes: one per output.
    Magnitude,
    /// LyCORIS's magnitudes: one per output or one per input, by shape.
    DoraScale,
    /// The scale is this over the rank.
    Alpha,
    /// LoHa.
    HadaW1A,
    /// LoHa.
    HadaW1B,
    /// LoHa.
    HadaW2A,
    /// LoHa.
    HadaW2B,
    /// LoHa: the kernel of the first product.
    HadaT1,
    /// LoHa: the kernel of the second product.
    HadaT2,
    /// LoKr: the outer factor.
    LokrW1,
    /// LoKr: the outer factor is a product.
    LokrW1A,
    /// LoKr: the outer factor is a product.
    LokrW1B,
    /// LoKr: the inner factor.
    LokrW2,
    /// LoKr: the inner factor is a product.
    LokrW2A,
    /// LoKr: the inner factor is a product.
    LokrW2B,
    /// LoKr: the kernel of the inner factor.
    LokrT2,
    /// AdaLoRA: the singular values, `[r, 1]`.
    Singular,
    /// OFT of PEFT: upper triangles of the skew-symmetric matrices of rotations.
    OftR,
    /// The same, of an embedding.
    OftEmbeddingR,
    /// BOFT of PEFT: matrices of rotations.
    BoftR,
    /// BOFT of PEFT: a scale per output.
    BoftS,
    /// OFT and BOFT of LyCORIS.
    OftBlocks,
    /// OFT and BOFT of LyCORIS: a scale per output.
    Rescale,
    /// IA3: what outputs or inputs are scaled by.
    Ia3,
    /// LyCORIS's IA3: whether it is inputs that are scaled.
    OnInput,
    /// The weight as it was trained, in place of the model's.
    Weight,
    /// The bias as it was trained.
    Bias,
    /// PEFT's copy of the weight that an adapter is on.
    BaseWeight,
    /// Rows of an embedding as they were trained.
    Tokens,
    /// What is added to the weight.
    Diff,
    /// What is added to the bias.
    DiffBias,
}

impl Part {
    /// Its name in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Part::Down => "lora_A (or lora_down)",
            Part::Up => "lora_B (or lora_up)",
            Part::Mid => "lora_mid",
            Part::UpBias => "lora_B.bias",
            Part::EmbeddingDown => "lora_embedding_A",
            Part::EmbeddingUp => "lora_embedding_B",
            Part::Magnitude => "lora_magnitude_vector",
            Part::DoraScale => "dora_scale",
            Part::Alpha => "alpha",
            Part::HadaW1A => "hada_w1_a",
            Part::HadaW1B => "hada_w1_b",
            Part::HadaW2A => "hada_w2_a",
            Part::HadaW2B => "hada_w2_b",
            Part::HadaT1 => "hada_t1",
            Part::HadaT2 => "hada_t2",
            Part::LokrW1 => "lokr_w1",
            Part::LokrW1A => "lokr_w1_a",
            Part::LokrW1B => "lokr_w1_b",
            Part::LokrW2 => "lokr_w2",
            Part::LokrW2A => "lokr_w2_a",
            Part::LokrW2B => "lokr_w2_b",
            Part::LokrT2 => "lokr_t2",
            Part::Singular => "lora_E",
            Part::OftR => "oft_R",
            Part::OftEmbeddingR => "oft_embedding_R",
            Part::BoftR => "boft_R",
            Part::BoftS => "boft_s",
            Part::OftBlocks => "oft_blocks",
            Part::Rescale => "rescale",
            Part::Ia3 => "ia3_l",
            Part::OnInput => "on_input",
            Part::Weight => "weight",
            Part::Bias => "bias",
            Part::BaseWeight => "base_layer.weight",
            Part::Tokens => "trainable_tokens_delta",
            Part::Diff => "diff",
            Part::DiffBias => "diff_b",
        }
    }

    /// Whether the alpha of the module scales it.
    pub(super) fn is_scaled(self) -> bool {
        matches!(
            self,
            Part::Down
                | Part::EmbeddingDown
                | Part::UpBias
                | Part::HadaW1A
                | Part::LokrW1A
                | Part::LokrW1B
                | Part::LokrW2A
                | Part::LokrW2B
        )
    }

    /// The parts of LoHa and LoKr, which all dialects name alike.
    fn of_lycoris(name: &str) -> Option<Part> {
        Some(match name {
            "hada_w1_a" => Part::HadaW1A,
            "hada_w1_b" => Part::HadaW1B,
            "hada_w2_a" => Part::HadaW2A,
            "hada_w2_b" => Part::HadaW2B,
            "hada_t1" => Part::HadaT1,
            "hada_t2" => Part::HadaT2,
            "lokr_w1" => Part::LokrW1,
            "lokr_w1_a" => Part::LokrW1A,
            "lokr_w1_b" => Part::LokrW1B,
            "lokr_w2" => Part::LokrW2,
            "lokr_w2_a" => Part::LokrW2A,
            "lokr_w2_b" => Part::LokrW2B,
            "lokr_t2" => Part::LokrT2,
            _ => return None,
        })
    }
}

/// The module that a key is about, as its dialect names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ModuleName {
    /// Its component in a pipeline, when the key says.
    pub(super) component: Option<&'static str>,
    /// Its name in the component.
    pub(super) path: String,
    /// Whether underscores stand for dots, too.
    pub(super) flat: bool,
}

impl ModuleName {
    /// What stands between the segments of its path.
    pub(super) fn separator(&self) -> char {
        if self.flat { '_' } else { '.' }
    }

    /// Whether the tool that wrote these keys of the module keeps the scale elsewhere: PEFT does. Pipelines of diffusers mean 1
    /// where nothing is said, as do files in kohya's naming without an alpha, and those with the names of a model's own code.
    pub(super) fn needs_scale<'k>(&self, mut keys: impl Iterator<Item = &'k str>, is_of_own_code: bool) -> bool {
        let is_pefts = |key: &str| [".lora_A", ".lora_B", ".lora_embedding_"].iter().any(|s| key.contains(s));
        self.component.is_none() && keys.any(|key| peft::is(key) || (is_pefts(key) && !is_of_own_code))
    }

    /// A dotted name, whose component is taken off.
    fn dotted(path: &str) -> ModuleName {
        let path = &unwrapped(path);
        let split = path.split_once('.');
        let component = split.and_then(|(first, _)| COMPONENTS.into_iter().find(|c| *c == first));
        let path = match (component, split) {
            (Some(_), Some((_, rest))) => rest,
            _ => path,
        };
        ModuleName { component, path: path.into(), flat: false }
    }
}

/// A name without the segments of wrappers that PyTorch puts around parts of a model.
fn unwrapped(path: &str) -> String {
    const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
    path.split('.').filter(|segment| !WRAPPERS.contains(segment)).collect::<Vec<_>>().join(".")
}

/// A key, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// A part of a module's update.
    Part(ModuleName, Part),
    /// What the adapter was trained beside, and does nothing.
    Nothing,
    /// A form that is known and cannot be applied: why.
    Refused(&'static str),
    /// A form of no dialect.
    Unknown,
}

/// Who named the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// PEFT's `save_pretrained`.
    Peft,
    /// diffusers' `save_lora_weights` and its older forms; also PEFT's names without their first segments.
    Diffusers,
    /// kohya's scripts, LyCORIS and ComfyUI.
    Kohya,
}

impl Dialect {
    /// The dialect of most keys. Keys of another one do not match then, and are reported.
    pub(super) fn of<'a>(keys: impl Iterator<Item = &'a str>) -> Dialect {
        let (mut peft, mut kohya, mut all) = (0, 0, 0);
        for key in keys {
            peft += usize::from(peft::is(key));
            kohya += usize::from(kohya::is(key));
            all += 1;
        }
        let diffusers = all - peft - kohya;
        match () {
            () if peft > 0 && peft >= kohya && peft >= diffusers => Dialect::Peft,
            () if kohya > 0 && kohya >= diffusers => Dialect::Kohya,
            () => Dialect::Diffusers,
        }
    }

    /// Takes a key apart.
    pub(super) fn read(self, key: &str) -> Key {
        let mixed = "named in another dialect than most keys: give one adapter at a time";
        match self {
            Dialect::Peft if peft::is(key) => peft::read(key),
            Dialect::Kohya if kohya::is(key) => kohya::read(key),
            Dialect::Diffusers if !peft::is(key) && !kohya::is(key) => diffusers::read(key),
            _ if peft::is(key) || kohya::is(key) || diffusers::read(key) != Key::Unknown => Key::Refused(mixed),
            _ => Key::Unknown,
        }
    }
}
