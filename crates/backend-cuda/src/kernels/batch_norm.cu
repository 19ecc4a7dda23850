// Batch norm by given statistics. TX TM TV TW TB TO: element types. HAS_WEIGHT, HAS_BIAS: 0 or 1.
extern "C" __global__ void __launch_bounds__(256)
batch_norm(const TX* x, const TM* mean, const TV* var, const TW* weight, const TB* bias, TO* out,
           i64 count, i64 channels, i64 inner, float eps) {
    AWAIT();
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < count; i += (i64)gridDim.x * 256) {
        i64 c = i / inner % channels;
        float y = (get(x[i]) - get(mean[c])) / sqrtf(get(var[c]) + eps);
        if (HAS_WEIGHT) y *= get(weight[c]);
        if (HAS_BIAS) y += get(bias[c]);
        put(out[i], y);
    }
}
