//! Engine files whose digests are right and whose contents are not are refused.

#![allow(clippy::unwrap_used, reason = "a test")]

use regraft_backend::{FormatId, SlotLayout, Target};
use regraft_engine::{Engine, EngineErrorKind, Plan};
use regraft_ir::{Graph, Role, SourceKind, TensorType};
use regraft_tensor::{AlignedVec, Buffer, DType};
use regraft_weights::{Recipe, RefitMap, SourceInfo};

/// A stripped engine with `count` slots, each of which is a source of `len` elements.
fn engine(count: usize, len: usize) -> Engine {
    let ty = TensorType::of_sizes(DType::F32, &[len]);
    let mut plan = Plan::default();
    let mut map = RefitMap::default();
    for i in 0..count {
        let name = format!("w{i}");
        let mut recipe = Graph::default();
        let value = recipe.add_source(&name, SourceKind::Parameter, ty.clone());
        recipe.add_output("slot", value);
        let (sources, format) = (vec![i as u32], FormatId::PLAIN);
        let (slot, uses) = (name.clone(), sources.clone());
        map.recipes.push(Recipe { slot, graph: recipe, sources, uses, format, layout_ops: 0 });
        plan.graph.add_source(&name, SourceKind::Constant, ty.clone());
        plan.slots.push(SlotLayout { shape: vec![len], format: FormatId::PLAIN, bytes: len.saturating_mul(4) });
        let (aliases, kind) = (vec![], SourceKind::Parameter);
        map.sources.push(SourceInfo {
            name,
            aliases,
            kind,
            dtype: DType::F32,
            shape: vec![len],
            role: Role::Other,
            folded: None,
        });
    }
    let target = Target { backend: "cpu".into(), arch: "any".into(), level: "any".into(), features: vec![] };
    Engine::new(target, plan, map)
}

/// Why the file of `engine` is refused.
fn refusal(engine: &Engine) -> Option<String> {
    let bytes = AlignedVec::copy_of(&engine.to_bytes().unwrap());
    match Engine::from_bytes("e.rgf", Buffer::from(bytes)) {
        Ok(_) => None,
        Err(error) => {
            assert!(matches!(error.kind, EngineErrorKind::Malformed(_)), "{error}");
            Some(error.to_string())
        }
    }
}

#[test]
fn weights_that_no_memory_holds_are_refused() {
    // The most elements that one tensor may have.
    let most = isize::MAX as usize / 4;
    assert_eq!(refusal(&engine(3, 5)), None);
    assert_eq!(refusal(&engine(1, most)), None);
    // Sums that are negative as 64 bits, and sums that wrap around.
    for count in [2, 3, 5] {
        let mut engine = engine(count, most);
        assert!(refusal(&engine).unwrap().contains("its slots are larger than any memory"));
        engine.plan = Plan::default();
        engine.refit_map.recipes.clear();
        assert!(refusal(&engine).unwrap().contains("its sources are larger than any memory"));
    }
}
