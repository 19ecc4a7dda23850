//! The text form of a program: [`print()`] and [`parse()`] are each other's inverse.
//!
//! ```text
//! program "mlp" {
//!   dims   s0 in 1..=64 (opt 8)
//!   input  %0 : f32[s0, 16] = "x"
//!   source %1 : f32[32, 16] = "fc.weight" (parameter)
//!   %2 = linear %0, %1 {act = relu} : f32[s0, 32]  // fc
//!   output %2 = "y"
//! }
//! ```

mod parse;
mod print;

pub use parse::parse;
pub use print::print;
