//! Linear layers with weights of small integers.

use regraft_ir::ops::{QuantLinear, Quantize, WeightFormat};

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn layers(
        dtype in float(), m in prop::sample::select(vec![1, 2, 5, 6, 7, 13, 100]), n in 1usize..140, runs in 1usize..5, rest in 0usize..32,
        bias: bool, residual: bool,
    ) {
        for format in [WeightFormat::Int8, WeightFormat::Int4] {
            let k = 32 * runs + if format == WeightFormat::Int8 { rest } else { 0 };
            let weight = values(DType::F32, &[n, k], 2);
            let parts = Op::from(Quantize { format }).eval(&[Some(&weight)]).expect("it takes the weight");
            let inputs = [
                Some(values(dtype, &[m, k], 1)), Some(parts[0].clone()), Some(parts[1].clone()),
                bias.then(|| values(dtype, &[n], 3)), residual.then(|| values(dtype, &[m, n], 4)),
            ];
            check(QuantLinear { format, act: Activation::Gelu, act_first: true }, &inputs, &[1, 2], 4.0);
        }
    }
}
