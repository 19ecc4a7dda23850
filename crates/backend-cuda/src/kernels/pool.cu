// Pools over up to three spatial axes, of images in either layout. TX TO: element types.
// KIND 0: maximum, 1: mean over windows, 2: mean over windows that cover the axes.
struct Window { i64 in[3]; i64 out[3]; i64 kernel[3]; i64 stride[3]; i64 padding[3]; i64 dilation[3]; i64 in_stride[3];
                i64 in_image; i64 in_channel; i64 channels; i64 divisor; i64 include_pad; };

extern "C" __global__ void __launch_bounds__(256) pool(const TX* x, TO* out, i64 count, const Window w) {
    AWAIT();
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < count; i += (i64)gridDim.x * 256) {
        i64 rest = i, c, p[3], image;
        if (NHWC) { c = rest % w.channels; rest /= w.channels; }
#pragma unroll
        for (int a = 2; a >= 0; a--) { p[a] = rest % w.out[a]; rest /= w.out[a]; }
        if (!NHWC) { c = rest % w.channels; rest /= w.channels; }
        image = rest;
        i64 first[3], end[3], step[3], padded = 1;
#pragma unroll
        for (int a = 0; a < 3; a++) {
            if (KIND == 2) {
                first[a] = p[a] * w.in[a] / w.out[a];
                end[a] = ((p[a] + 1) * w.in[a] + w.out[a] - 1) / w.out[a];
                step[a] = 1;
            } else {
                i64 begin = p[a] * w.stride[a] - w.padding[a], reach = begin + (w.kernel[a] - 1) * w.dilation[a] + 1;
                step[a] = w.dilation[a];
                if (KIND == 1) {
                    i64 padded_end = begin + w.kernel[a] < w.in[a] + w.padding[a] ? begin + w.kernel[a] : w.in[a] + w.padding[a];
                    padded *= padded_end - begin;
                }
                first[a] = begin < 0 ? begin + (-begin + step[a] - 1) / step[a] * step[a] : begin;
                end[a] = reach < w.in[a] ? reach : w.in[a];
            }
        }
        const TX* from = x + image * w.in_image + c * w.in_channel;
        float acc = KIND == 0 ? NEG_INF : 0.f;
        i64 taps = 0;
        for (i64 a = first[0]; a < end[0]; a += step[0])
            for (i64 b = first[1]; b < end[1]; b += step[1])
                for (i64 d = first[2]; d < end[2]; d += step[2]) {
                    float v = get(from[a * w.in_stride[0] + b * w.in_stride[1] + d * w.in_stride[2]]);
                    if (KIND == 0) acc = f_max(acc, v); else acc += v;
                    taps++;
                }
        if (KIND == 1) acc /= (float)(w.divisor > 0 ? w.divisor : w.include_pad ? padded : taps);
        if (KIND == 2) acc /= (float)taps;
        put(out[i], acc);
    }
}
