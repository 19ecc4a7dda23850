// Resampling over up to three spatial axes. TX TO: element types. TAPS: elements along an axis that a new one is made of, 1 (the
// nearest), 2 or 4. NHWC: 0 or 1. Positions are rounded as PyTorch's 2-D kernels round them.
struct Axes { i64 in[3]; i64 out[3]; i64 in_stride[3]; i64 in_image; i64 in_channel; i64 channels; float scale[3]; i32 aligned; };

// Weights of the elements around a position that is t behind the second of them.
__device__ void cubic(float t, float* weight) {
    const float a = -0.75f;
    float distance[4] = {t + 1.f, t, 1.f - t, 2.f - t};
#pragma unroll
    for (int k = 0; k < 4; k++) {
        float d = distance[k];
        weight[k] = k == 1 || k == 2 ? ((a + 2.f) * d - (a + 3.f)) * d * d + 1.f : ((a * d - 5.f * a) * d + 8.f * a) * d - 4.f * a;
    }
}

extern "C" __global__ void __launch_bounds__(256) resize(const TX* x, TO* out, i64 count, const Axes w) {
    AWAIT();
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < count; i += (i64)gridDim.x * 256) {
        i64 rest = i, c, place[3][TAPS], image;
        float weight[3][TAPS];
        if (NHWC) { c = rest % w.channels; rest /= w.channels; }
#pragma unroll
        for (int a = 2; a >= 0; a--) {
            i64 p = rest % w.out[a], last = w.in[a] - 1;
            rest /= w.out[a];
            float at = TAPS > 1 && !w.aligned ? __fsub_rn(__fmul_rn(w.scale[a], (float)p + 0.5f), 0.5f)
                                              : __fmul_rn(w.scale[a], (float)p);
            if (TAPS == 2 && w.in[a] == w.out[a]) at = (float)p;
            if (TAPS < 4) at = fmaxf(at, 0.f);
            i64 low = (i64)floorf(at);
            if (TAPS < 4 && low > last) low = last;
#pragma unroll
            for (int k = 0; k < TAPS; k++) {
                i64 tap = low + k - (TAPS == 4);
                place[a][k] = (tap < 0 ? 0 : tap > last ? last : tap) * w.in_stride[a];
            }
            if (TAPS == 4) cubic(at - (float)low, weight[a]);
            if (TAPS == 2) {
                float second = fminf(fmaxf(at - (float)low, 0.f), 1.f);
                weight[a][0] = 1.f - second;
                weight[a][TAPS - 1] = second;
            }
        }
        if (!NHWC) { c = rest % w.channels; rest /= w.channels; }
        image = rest;
        const TX* from = x + image * w.in_image + c * w.in_channel;
        if (TAPS == 1) {
            // The element as it is: also integers.
            TX v = from[place[0][0] + place[1][0] + place[2][0]];
            put(out[i], get(v));
            continue;
        }
        float sum = 0.f;
#pragma unroll
        for (int k = 0; k < TAPS * TAPS * TAPS; k++) {
            int k0 = k % TAPS, k1 = k / TAPS % TAPS, k2 = k / (TAPS * TAPS);
            float part = weight[0][k0] * weight[1][k1] * weight[2][k2];
            if (part != 0.f) sum += part * get(from[place[0][k0] + place[1][k1] + place[2][k2]]);
        }
        put(out[i], sum);
    }
}
