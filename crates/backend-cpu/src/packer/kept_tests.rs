//! Slots are compared with the reference evaluator and with the definition of the formats.

use std::sync::Arc;

use regraft_ir::{eval, text};
use regraft_tensor::{AlignedVec, DType, Tensor};

use super::*;

/// A slot of this recipe whose elements are all different.
fn numbered(recipe: &Recipe) -> Arc<Slot> {
    let values: Vec<u32> = (1..=recipe.byte_len() as u32 / 4).collect();
    Arc::new(Slot::mapped(AlignedVec::from_slice(&values).into()))
}

fn recipe(body: &str, format: PackFormat) -> Recipe {
    let graph = text::parse(&format!("program \"r\" {{\n{body}\n}}")).expect("a program");
    let sources = (0..graph.sources.len() as u32).map(|i| 10 + i).collect();
    Recipe::new("w", graph, sources, format, 0)
}

fn sources_of(recipe: &Recipe) -> Vec<(u32, Vec<usize>)> {
    let shape = |value| recipe.graph.ty(value).sizes().expect("known sizes");
    recipe.graph.sources.iter().zip(&recipe.sources).map(|(s, &index)| (index, shape(s.value))).collect()
}

/// Every source that is found is read back so that the recipe gives the slot's value.
fn check(body: &str, format: PackFormat) {
    let recipe = recipe(body, format);
    let slot = numbered(&recipe);
    let find = |(index, shape): &(u32, Vec<usize>)| InSlot::find(&recipe, *index, DType::F32, shape, &slot);
    let places: Vec<InSlot> = sources_of(&recipe).iter().map(|s| find(s).expect("all of it is moved")).collect();
    let sources: Vec<Tensor> = places.iter().map(InSlot::tensor).collect();
    let given = eval::Bindings { inputs: &[], sources: &sources, states: &[] };
    let value = eval::run(&recipe.graph, given).expect("it evaluates").outputs.remove(0);
    let want = format.unpack(DType::F32, &recipe.shape(), slot.bytes()).expect("a slot of the recipe");
    assert!(value.bit_equal(&want), "{body} as {format}");
    for (place, source) in places.iter().zip(&sources) {
        assert!(place.is(source));
        let mut bytes = source.bytes().to_vec();
        for at in [0, bytes.len() / 2, bytes.len() - 1] {
            bytes[at] ^= 1;
            let other = Tensor::new(DType::F32, source.shape().to_vec(), AlignedVec::copy_of(&bytes).into());
            assert!(!place.is(&other.expect("as many bytes")), "{body} as {format}: a difference at byte {at}");
            bytes[at] ^= 1;
        }
    }
}

fn panels() -> impl Iterator<Item = PackFormat> {
    [16, 32, 48, 64].into_iter().map(|nr| PackFormat::PanelsF32 { nr })
}

#[test]
fn plain_slots_are_read_back() {
    check("source %0 : f32[3, 5] = \"a\" (parameter)\n output %0 = \"w\"", PackFormat::Plain);
    let joined = "source %0 : f32[7] = \"a\" (parameter)
        source %1 : f32[2] = \"b\" (parameter)
        %2 = concat %0, %1 {axis = 0} : f32[9]
        output %2 = \"w\"";
    check(joined, PackFormat::Plain);
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
    let nothing = |body: &str, format| {
        let recipe = recipe(body, format);
        let slot = numbered(&recipe);
        let found =
            |(index, shape): &(u32, Vec<usize>)| InSlot::find(&recipe, *index, DType::F32, shape, &slot).is_some();
        sources_of(&recipe).iter().filter(|s| found(s)).count() == 0
    };
    let panels = PackFormat::PanelsF32 { nr: 16 };
    let part = "source %0 : f32[6, 4] = \"a\" (parameter)
        %1 = slice %0 {axis = 0, start = 0, end = 5, step = 1} : f32[5, 4]
        output %1 = \"w\"";
    assert!(nothing(part, PackFormat::Plain) && nothing(part, panels), "a part of the source");
    let scaled = "source %0 : f32[6, 4] = \"a\" (parameter)
        source %1 : f32[4] = \"s\" (parameter)
        %2 = binary %0, %1 {f = mul} : f32[6, 4]
        output %2 = \"w\"";
    assert!(nothing(scaled, panels), "other values");
    let narrow = "source %0 : f16[6, 4] = \"a\" (parameter)
        %1 = cast %0 {dtype = f32} : f32[6, 4]
        output %1 = \"w\"";
    let recipe = recipe(narrow, panels);
    assert!(InSlot::find(&recipe, 10, DType::F16, &[6, 4], &numbered(&recipe)).is_none(), "another dtype");
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
