//! Attention, and what queries and keys go through before it.

use regraft_ir::ops::*;
use regraft_tensor::{DType, Tensor};

use super::{Case, FLOATS, Random};

pub(super) fn attention(r: &mut Random, all: &mut Vec<Case>, small: bool) {
    let sizes: &[(usize, usize, usize, usize)] = if small {
        &[(1, 5, 9, 16), (2, 33, 40, 40)]
    } else {
        &[
            (1, 5, 9, 16),
            (2, 128, 128, 64),
            (1, 1, 300, 128),
            (2, 70, 77, 40),
            (1, 65, 129, 160),
            (2, 1, 1000, 64),
            (1, 40, 50, 256),
        ]
    };
    for dtype in FLOATS {
        for (i, &(b, s, t, d)) in sizes.iter().enumerate() {
            let (heads, shared) = if i % 2 == 0 { (4, 4) } else { (6, 2) };
            let q = r.floats(dtype, &[b, heads, s, d]);
            let (k, v) = (r.floats(dtype, &[b, shared, t, d]), r.floats(dtype, &[b, shared, t, d]));
            for units in [false, true] {
                if units && dtype == DType::F32 && s > 1 {
                    continue;
                }
                let tag = format!("{b}x{heads}/{shared}x{s}x{t}x{d} {dtype} units {units}");
                let scale = 1.0 / (d as f64).sqrt();
                let plain = |causal, out| Attention { scale, causal, out };
                let qkv = vec![q.clone(), k.clone(), v.clone()];
                let mut add = |name: &str, op: Attention, inputs: Vec<Tensor>, permuted: bool| {
                    // Matrix units do not take f32; one query that sees all keys is split over these.
                    if units && dtype == DType::F32 && op.causal {
                        return;
                    }
                    let mut case = Case::new(format!("attention {name} {tag}"), op, inputs);
                    if permuted {
                        for i in 0..3 {
                            case = case.permuted(i, &[0, 2, 1, 3]);
                        }
                    }
                    case.matrix_units = units;
                    all.push(case);
                };
                add("plain", plain(false, HeadsLayout::Bhsd), qkv.clone(), false);
                add("causal", plain(true, HeadsLayout::Bshd), qkv.clone(), true);
                let mut masked = qkv.clone();
                masked.push(r.bools(&[b, 1, s, t]));
                add("bool mask", plain(false, HeadsLayout::Bshd), masked, false);
                let mut masked = qkv.clone();
                masked.push(r.floats(DType::F32, &[s, t]));
                add("added mask", plain(false, HeadsLayout::Bhsd), masked, true);
            }
        }
    }
}

pub(super) fn rotary(r: &mut Random, all: &mut Vec<Case>, small: bool) {
    let sizes: &[(usize, usize, usize, usize)] =
        if small { &[(1, 4, 1, 16), (2, 3, 5, 6)] } else { &[(1, 32, 1, 64), (2, 8, 70, 128), (2, 3, 5, 6)] };
    for dtype in FLOATS {
        for angles in FLOATS {
            for &(b, h, s, d) in sizes {
                let x = r.floats(dtype, &[b, h, s, d]);
                let mut case = |name: &str, shape: &[usize]| {
                    let inputs = vec![x.clone(), r.floats(angles, shape), r.floats(angles, shape)];
                    Case::new(format!("rotary {name} {b}x{h}x{s}x{d} {dtype} by {angles}"), Rotary {}, inputs)
                };
                all.push(case("of positions", &[s, d]));
                all.push(case("of heads behind positions", &[b, 1, s, d]).permuted(0, &[0, 2, 1, 3]));
                all.push(case("of one position", &[d]));
            }
        }
    }
}
