// Transposed convolution, one thread an output; images are [n, c, spatial...]. TX TW TB TO: element types.
struct Conv { i64 in[3], out[3], stride[3], padding[3], dilation[3], kernel[3]; i64 images, channels_in, group_in, group_out, groups; };

extern "C" __global__ void __launch_bounds__(256)
conv_transpose(const TX* x, const TW* weight, const TB* bias, TO* out, const Conv c) {
    AWAIT();
    i64 pixels = c.out[0] * c.out[1] * c.out[2], in_pixels = c.in[0] * c.in[1] * c.in[2];
    i64 taps = c.kernel[0] * c.kernel[1] * c.kernel[2], channels = c.group_out * c.groups;
    i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
    if (i >= c.images * channels * pixels) return;
    i64 p2 = i % c.out[2], p1 = i / c.out[2] % c.out[1], p0 = i % pixels / c.out[2] / c.out[1];
    i64 channel = i / pixels % channels, image = i / pixels / channels, group = channel / c.group_out;
    float acc = 0.f;
    for (i64 t = 0; t < taps; t++) {
        i64 t2 = t % c.kernel[2], t1 = t / c.kernel[2] % c.kernel[1], t0 = t / c.kernel[2] / c.kernel[1];
        i64 a0 = p0 + c.padding[0] - t0 * c.dilation[0], a1 = p1 + c.padding[1] - t1 * c.dilation[1],
            a2 = p2 + c.padding[2] - t2 * c.dilation[2];
        if (a0 < 0 || a1 < 0 || a2 < 0 || a0 % c.stride[0] || a1 % c.stride[1] || a2 % c.stride[2]) continue;
        a0 /= c.stride[0]; a1 /= c.stride[1]; a2 /= c.stride[2];
        if (a0 >= c.in[0] || a1 >= c.in[1] || a2 >= c.in[2]) continue;
        for (i64 k = 0; k < c.group_in; k++) {
            i64 from = group * c.group_in + k;
            acc += get(x[(image * c.channels_in + from) * in_pixels + (a0 * c.in[1] + a1) * c.in[2] + a2]) *
                   get(weight[(from * c.group_out + channel % c.group_out) * taps + t]);
        }
    }
    if (HAS_BIAS) acc += get(bias[channel]);
    put(out[i], acc);
}
