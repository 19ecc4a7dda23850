//! Milliseconds of attention, 12 heads of 64, in the layout of a fused QKV projection.
//!
//! `cargo run --release -p regraft-backend-cpu --example attention_speed`

use std::time::Instant;

use regraft_backend_cpu::{
    Isa, Threads,
    nn::attention::{AttentionArgs, HeadStrides, HeadTensor, attention},
};

const HEADS: usize = 12;
const DIM: usize = 64;

/// Best time within half a second, in milliseconds.
fn measure(threads: &Threads, isa: Isa, batch: usize, seq: usize, causal: bool) -> f64 {
    let width = HEADS * DIM;
    let qkv: Vec<f32> = (0..batch * seq * 3 * width).map(|i| (i * 7919 % 1009) as f32 / 500.0 - 1.0).collect();
    let strides = HeadStrides { batch: seq * 3 * width, head: DIM, seq: 3 * width };
    let part = |i: usize| HeadTensor { data: &qkv[i * width..], strides };
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
    let mut scratch = vec![0.0; args.scratch_len(isa, threads)];
    let mut out = vec![0.0; batch * seq * width];
    threads.install(|| {
        let (began, mut best) = (Instant::now(), f64::INFINITY);
        while began.elapsed().as_millis() < 500 {
            let start = Instant::now();
            attention(threads, isa, &args, &mut out, &mut scratch);
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
                let ms = measure(&Threads::new(count).expect("threads"), isa, batch, seq, causal);
                let rate = flops / ms / 1e6;
                println!(
                    "batch {batch} seq {seq:<4} causal {causal:<5} {isa:<9} {count} thr {ms:8.3} ms  {rate:6.1} GFLOP/s"
                );
            }
        }
    }
}
