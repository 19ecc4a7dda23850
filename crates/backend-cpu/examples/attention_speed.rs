//! Milliseconds of attention, 12 heads of 64, in the layout of a fused QKV projection.
//!
//! `cargo run --release -p regraft-backend-cpu --example attention_speed`

use std::time::Instant;

use regraft_backend_cpu::{
    Isa, Scratch, Threads,
    nn::attention::{AttentionArgs, AttentionShape, HeadStrides, HeadTensor, attention},
    simd::Float,
};
use regraft_tensor::AlignedVec;

const HEADS: usize = 12;
const DIM: usize = 64;

/// Best time within half a second, in milliseconds.
fn measure<T: Float>(threads: &Threads, isa: Isa, batch: usize, seq: usize, causal: bool) -> f64 {
    let width = HEADS * DIM;
    let qkv: Vec<T> = {
        let wide: Vec<f32> = (0..batch * seq * 3 * width).map(|i| (i * 7919 % 1009) as f32 / 500.0 - 1.0).collect();
        let mut narrow = vec![T::zeroed(); wide.len()];
        T::narrow(isa, &wide, &mut narrow);
        narrow
    };
    let strides = HeadStrides { batch: seq * 3 * width, head: DIM, seq: 3 * width };
    let part = |i: usize| HeadTensor { data: T::floats(&qkv[i * width..]), strides };
    let args = AttentionArgs {
        batch,
        heads: HEADS,
        kv_heads: HEADS,
        q_len: seq,
        kv_len: seq,
        head_dim: DIM,
        value_dim: DIM,
        scale: 0.125,
        causal,
        mask: None,
        q: part(0),
        k: part(1),
        v: part(2),
        out_strides: HeadStrides { batch: seq * width, head: DIM, seq: width },
    };
    let shape =
        AttentionShape { batch, kv_heads: HEADS, kv_len: seq, head_dim: DIM, value_dim: DIM, types: [T::TYPE; 3] };
    let mut scratch = AlignedVec::zeroed(shape.scratch(isa, threads));
    let mut out = vec![T::zeroed(); batch * seq * width];
    threads.install(|| {
        let (began, mut best) = (Instant::now(), f64::INFINITY);
        while began.elapsed().as_millis() < 500 {
            let start = Instant::now();
            attention(threads, isa, &args, &mut out, &mut Scratch::new(scratch.bytes_mut()));
            best = best.min(start.elapsed().as_secs_f64() * 1e3);
        }
        best
    })
}

fn main() {
    for (batch, seq, causal) in [(8, 128, false), (8, 512, false), (8, 512, true), (1, 128, false), (1, 1024, true)] {
        let flops = (4 * batch * HEADS * seq * seq * DIM) as f64;
        for isa in Isa::available() {
            for count in [1, 2] {
                let threads = Threads::new(count).expect("threads");
                let times = [
                    measure::<f32>(&threads, isa, batch, seq, causal),
                    measure::<half::f16>(&threads, isa, batch, seq, causal),
                    measure::<half::bf16>(&threads, isa, batch, seq, causal),
                ];
                let rates = times.map(|ms| format!("{ms:8.3} ms {:6.1} GFLOP/s", flops / ms / 1e6)).join("  ");
                println!(
                    "batch {batch} seq {seq:<4} causal {causal:<5} {isa:<11} {count} thr  f32, f16, bf16: {rates}"
                );
            }
        }
    }
}
