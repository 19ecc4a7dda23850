//! The Rust of the guides, compiled as tests.

#[doc = include_str!("../../../docs/guides/rust.md")]
struct Rust;

#[doc = include_str!("../../../docs/guides/generations.md")]
struct Generations;

#[doc = include_str!("../../../docs/guides/engine-cache.md")]
struct EngineCache;
