//! One file per pass.

pub mod attention_layout;
pub mod canonicalize;
pub mod channels_last;
pub mod common_subexpressions;
pub mod fold_batch_norm;
pub mod fuse_elementwise;
pub mod fuse_epilogue;
pub mod join_linears;
pub mod pair_convs;
pub mod recompose_activations;
pub mod recompose_attention;
pub mod recompose_rotary;
