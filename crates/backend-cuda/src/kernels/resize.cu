// Resampling over up to three spatial axes. TX TO: element types. LINEAR, NHWC: 0 or 1.
// Positions are rounded as PyTorch's 2-D kernels round them.
struct Axes { i64 in[3]; i64 out[3]; i64 in_stride[3]; i64 in_image; i64 in_channel; i64 channels; float scale[3]; i32 aligned; };

extern "C" __global__ void __launch_bounds__(256) resize(const TX* x, TO* out, i64 count, const Axes w) {
    AWAIT();
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < count; i += (i64)gridDim.x * 256) {
        i64 rest = i, c, first[3], second[3], image;
        float weight[3];
        if (NHWC) { c = rest % w.channels; rest /= w.channels; }
#pragma unroll
        for (int a = 2; a >= 0; a--) {
            i64 p = rest % w.out[a];
            rest /= w.out[a];
            if (LINEAR && w.in[a] == w.out[a]) { first[a] = second[a] = p; weight[a] = 0.f; continue; }
            float at = LINEAR && !w.aligned ? fmaxf(__fsub_rn(__fmul_rn(w.scale[a], (float)p + 0.5f), 0.5f), 0.f)
                                            : __fmul_rn(w.scale[a], (float)p);
            i64 low = (i64)floorf(at);
            first[a] = low < w.in[a] - 1 ? low : w.in[a] - 1;
            second[a] = first[a] + 1 < w.in[a] ? first[a] + 1 : w.in[a] - 1;
            weight[a] = LINEAR ? fminf(fmaxf(at - (float)first[a], 0.f), 1.f) : 0.f;
        }
        if (!NHWC) { c = rest % w.channels; rest /= w.channels; }
        image = rest;
        const TX* from = x + image * w.in_image + c * w.in_channel;
        if (!LINEAR) {
            // The element as it is: also integers.
            TX v = from[first[0] * w.in_stride[0] + first[1] * w.in_stride[1] + first[2] * w.in_stride[2]];
            put(out[i], get(v));
            continue;
        }
        float sum = 0.f;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float part = 1.f;
            i64 at = 0;
#pragma unroll
            for (int a = 0; a < 3; a++) {
                bool far = k >> a & 1;
                part *= far ? weight[a] : 1.f - weight[a];
                at += (far ? second[a] : first[a]) * w.in_stride[a];
            }
            if (part != 0.f) sum += part * get(from[at]);
        }
        put(out[i], sum);
    }
}
