//! Deltas between checkpoints, as a user makes and applies them.

use crate::support::{Fixture, Sandbox};

#[test]
fn a_delta_takes_an_engine_to_the_other_weights_bit_for_bit() {
    let (fixture, sandbox) = (Fixture::new("mlp_gelu"), Sandbox::new());
    sandbox.compile(&fixture, "a.rgf", "refittable");
    sandbox.weights("b.safetensors", &fixture.b());
    sandbox.ok(&["refit", "a.rgf", "--weights", "b.safetensors", "-o", "b.rgf"]);
    let facts = sandbox.json(&["delta", "a.rgf", "b.rgf", "-o", "ab.rgd"]);
    assert_eq!((facts["changed"].as_u64(), facts["tensors"].as_u64()), (Some(6), Some(6)));
    sandbox.ok(&["refit", "a.rgf", "--delta", "ab.rgd", "-o", "applied.rgf"]);
    assert_eq!(sandbox.json(&["diff", "b.rgf", "applied.rgf"])["same"], true);
    // Applied again, it changes nothing; elsewhere it is refused.
    sandbox.ok(&["refit", "applied.rgf", "--delta", "ab.rgd", "-o", "again.rgf"]);
    assert_eq!(sandbox.json(&["diff", "b.rgf", "again.rgf"])["same"], true);
    sandbox.ok(&["delta", "b.rgf", "a.rgf", "-o", "ba.rgd"]);
    sandbox.ok(&["refit", "b.rgf", "--delta", "ba.rgd", "-o", "back.rgf"]);
    assert_eq!(sandbox.json(&["diff", "a.rgf", "back.rgf"])["same"], true);
    let mut other = fixture.b();
    other.get_mut("0.bias").unwrap().data[0] ^= 1;
    sandbox.weights("other.safetensors", &other);
    sandbox.ok(&["refit", "a.rgf", "--weights", "other.safetensors", "-o", "other.rgf"]);
    let error = sandbox.fails(&["refit", "other.rgf", "--delta", "ba.rgd", "-o", "none.rgf"], 1);
    assert!(error.contains("made from other weights") && error.contains("0.bias"), "{error}");
    assert!(!sandbox.path("none.rgf").exists());
}
