//! Slots are compared with the reference evaluator and with the definition of the formats.

use regraft_backend::{Plain, SlotFormat};
use regraft_ir::{Graph, eval, text};

use super::*;

/// A recipe over sources of the slot's dtype, and how its slot lies.
struct Case {
    graph: Graph,
    panels: Option<Panels>,
}

impl Case {
    fn new(body: &str, panels: Option<Panels>) -> Case {
        let body = body.replace("f32", dtype(panels).name());
        Case { graph: text::parse(&format!("program \"r\" {{\n{body}\n}}")).expect("a program"), panels }
    }

    fn format(&self) -> Box<dyn SlotFormat> {
        match self.panels {
            Some(panels) => Box::new(panels),
            None => Box::new(Plain),
        }
    }

    fn shape(&self) -> Vec<usize> {
        self.graph.ty(self.graph.outputs[0].value).sizes().expect("known sizes")
    }

    /// A slot whose elements are all different.
    fn numbered(&self) -> AlignedVec {
        let dtype = dtype(self.panels);
        let bytes = self.format().byte_len(dtype, &self.shape()).expect("the format takes the slot");
        match dtype.size() {
            2 => AlignedVec::from_slice(&(1..=bytes as u16 / 2).collect::<Vec<u16>>()),
            _ => AlignedVec::from_slice(&(1..=bytes as u32 / 4).collect::<Vec<u32>>()),
        }
    }

    /// Where each source is kept.
    fn places(&self) -> Vec<(Vec<usize>, Option<KeptPlaces>)> {
        let format = self.panels.map_or(regraft_backend::FormatId::PLAIN, Panels::id);
        let gather = GatherPlan::compile(&self.graph, &format);
        let find = |(index, source): (usize, &regraft_ir::Source)| {
            let shape = self.graph.ty(source.value).sizes().expect("known sizes");
            let find = |gather| KeptPlaces::find(gather, self.panels, &self.shape(), index as u32, &shape);
            let places = gather.as_ref().and_then(find);
            (shape, places)
        };
        self.graph.sources.iter().enumerate().map(find).collect()
    }
}

fn dtype(panels: Option<Panels>) -> DType {
    match panels.map(|panels| panels.ty) {
        Some(FloatType::F16) => DType::F16,
        Some(FloatType::Bf16) => DType::BF16,
        Some(FloatType::F32) | None => DType::F32,
    }
}

/// Every source that is found is read back so that the recipe gives the slot's value.
fn check(body: &str, panels: Option<Panels>) {
    let case = Case::new(body, panels);
    let slot = case.numbered();
    let places = case.places();
    let kept: Vec<Kept<'_>> = places
        .iter()
        .map(|(shape, places)| {
            let places = places.as_ref().expect("all of it is moved");
            Kept { slot: slot.bytes(), dtype: dtype(panels), shape, places }
        })
        .collect();
    let sources: Vec<Tensor> = kept.iter().map(|kept| kept.tensor().expect("memory")).collect();
    let given = eval::Bindings { inputs: &[], sources: &sources, states: &[] };
    let value = eval::run(&case.graph, given).expect("it evaluates").outputs.remove(0);
    let want = case.format().unpack(dtype(panels), &case.shape(), slot.bytes()).expect("a slot of the recipe");
    assert!(value.bit_equal(&want), "{body} as {panels:?}");
    for (kept, source) in kept.iter().zip(&sources) {
        assert!(kept.is(source));
        let mut bytes = source.bytes().to_vec();
        for at in [0, bytes.len() / 2, bytes.len() - 1] {
            bytes[at] ^= 1;
            let other = Tensor::new(dtype(panels), source.shape().to_vec(), AlignedVec::copy_of(&bytes).into());
            assert!(!kept.is(&other.expect("as many bytes")), "{body} as {panels:?}: a difference at byte {at}");
            bytes[at] ^= 1;
        }
    }
}

fn panels() -> impl Iterator<Item = Option<Panels>> {
    FloatType::ALL.into_iter().flat_map(|ty| [16, 32, 48, 64].map(|nr| Some(Panels { ty, nr })))
}

#[test]
fn plain_slots_are_read_back() {
    check("source %0 : f32[3, 5] = \"a\" (parameter)\n output %0 = \"w\"", None);
    let joined = "source %0 : f32[7] = \"a\" (parameter)
        source %1 : f32[2] = \"b\" (parameter)
        %2 = concat %0, %1 {axis = 0} : f32[9]
        output %2 = \"w\"";
    check(joined, None);
}

#[test]
fn weights_of_linears_are_read_back_from_panels_of_every_width() {
    for (format, (n, k)) in
        panels().flat_map(|f| [(1, 1), (5, 3), (17, 130), (64, 64), (70, 1), (1, 70)].map(|s| (f, s)))
    {
        let body = format!(
            "source %0 : f32[{n}, {k}] = \"a\" (parameter)
             %1 = permute %0 {{perm = [1, 0]}} : f32[{k}, {n}]
             output %1 = \"w\""
        );
        check(&body, format);
        check(&format!("source %0 : f32[{k}, {n}] = \"a\" (parameter)\n output %0 = \"w\""), format);
    }
}

#[test]
fn joined_weights_are_read_back() {
    let body = "source %0 : f32[20, 9] = \"q\" (parameter)
        source %1 : f32[3, 9] = \"k\" (parameter)
        source %2 : f32[41, 9] = \"v\" (parameter)
        %3 = concat %0, %1, %2 {axis = 0} : f32[64, 9]
        %4 = permute %3 {perm = [1, 0]} : f32[9, 64]
        output %4 = \"w\"";
    panels().for_each(|format| check(body, format));
}

#[test]
fn grouped_convolutions_are_read_back() {
    let body = "source %0 : f32[8, 3, 2, 5] = \"w\" (parameter)
        %1 = reshape %0 {shape = [2, 4, 3, 2, 5]} : f32[2, 4, 3, 2, 5]
        %2 = permute %1 {perm = [0, 3, 4, 2, 1]} : f32[2, 2, 5, 3, 4]
        %3 = reshape %2 {shape = [2, 30, 4]} : f32[2, 30, 4]
        output %3 = \"w\"";
    panels().for_each(|format| check(body, format));
}

#[test]
fn what_is_not_there_or_not_as_it_was_is_not_found() {
    let nothing = |body: &str, panels| Case::new(body, panels).places().iter().all(|(_, places)| places.is_none());
    let panels = Some(Panels { ty: FloatType::F32, nr: 16 });
    let part = "source %0 : f32[6, 4] = \"a\" (parameter)
        %1 = slice %0 {axis = 0, start = 0, end = 5, step = 1} : f32[5, 4]
        output %1 = \"w\"";
    assert!(nothing(part, None) && nothing(part, panels), "a part of the source");
    let scaled = "source %0 : f32[6, 4] = \"a\" (parameter)
        source %1 : f32[4] = \"s\" (parameter)
        %2 = binary %0, %1 {f = mul} : f32[6, 4]
        output %2 = \"w\"";
    assert!(nothing(scaled, panels), "other values");
    let narrow = "source %0 : f16[6, 4] = \"a\" (parameter)
        %1 = cast %0 {dtype = f32} : f32[6, 4]
        output %1 = \"w\"";
    // That the source has the slot's dtype is the recipe's to check.
    assert!(!nothing(narrow, panels));
}

#[test]
fn pieces_must_be_ranges_without_gaps() {
    assert!(covers(vec![(4, 4), (0, 4)], 8) && covers(vec![(0, 6), (2, 6)], 8));
    assert!(!covers(vec![(0, 4), (5, 3)], 8) && !covers(vec![(0, 9)], 8) && !covers(vec![], 8));
    let piece = |k_dims: &[(usize, usize)], n_len, n_stride| Piece {
        source: 0,
        offset: 0,
        k_dims: k_dims.to_vec(),
        n_len,
        n_stride,
        scale: None,
    };
    assert_eq!(range_len(&piece(&[(3, 1)], 5, 3)), Some(15));
    assert_eq!(range_len(&piece(&[(4, 1), (3, 4)], 5, 12)), Some(60));
    assert_eq!(range_len(&piece(&[(3, 2)], 5, 6)), None, "every other element");
    assert_eq!(range_len(&piece(&[(3, 0)], 5, 1)), None, "the same ones again");
}
