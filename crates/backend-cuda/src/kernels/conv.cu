// Convolution over up to three spatial axes as a matrix product whose left matrix is gathered on the way.
// TX TW TB TR TO: element types. HAS_BIAS, HAS_RESIDUAL, ACT_FIRST: 0 or 1. ACT: a function.
// Weights are [out][taps][channels of a group] in the order that their strides say.
struct Conv { i64 in[3], out[3], stride[3], padding[3], dilation[3], kernel[3];
              i64 in_image, in_channel, in_stride[3]; i64 out_image, out_channel, out_stride[3];
              i64 w_out, w_channel, w_stride[3]; i64 images, group_in, group_out; };

extern "C" __global__ void __launch_bounds__(256)
conv(const TX* x, const TW* weight, const TB* bias, const TR* residual, TO* out, const Conv c) {
    AWAIT();
    __shared__ float left[16][65], right[16][65];
    i64 group = blockIdx.z, pixels = c.out[0] * c.out[1] * c.out[2], rows = c.images * pixels;
    i64 depth = c.kernel[0] * c.kernel[1] * c.kernel[2] * c.group_in;
    i64 row0 = (i64)blockIdx.x * 64, col0 = (i64)blockIdx.y * 64;
    int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    float acc[4][4] = {};
    for (i64 k0 = 0; k0 < depth; k0 += 16) {
        i64 k = k0 + tx;
        i64 channel = k % c.group_in, tap = k / c.group_in;
        i64 t2 = tap % c.kernel[2], t1 = tap / c.kernel[2] % c.kernel[1], t0 = tap / c.kernel[2] / c.kernel[1];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            i64 row = row0 + ty + i * 16, rest = row % pixels;
            float value = 0.f;
            if (row < rows && k < depth) {
                i64 p2 = rest % c.out[2], p1 = rest / c.out[2] % c.out[1], p0 = rest / c.out[2] / c.out[1];
                i64 a0 = p0 * c.stride[0] + t0 * c.dilation[0] - c.padding[0];
                i64 a1 = p1 * c.stride[1] + t1 * c.dilation[1] - c.padding[1];
                i64 a2 = p2 * c.stride[2] + t2 * c.dilation[2] - c.padding[2];
                if (a0 >= 0 && a0 < c.in[0] && a1 >= 0 && a1 < c.in[1] && a2 >= 0 && a2 < c.in[2])
                    value = get(x[row / pixels * c.in_image + (group * c.group_in + channel) * c.in_channel +
                                  a0 * c.in_stride[0] + a1 * c.in_stride[1] + a2 * c.in_stride[2]]);
            }
            left[tx][ty + i * 16] = value;
            i64 col = col0 + ty + i * 16;
            right[tx][ty + i * 16] = col < c.group_out && k < depth
                ? get(weight[(group * c.group_out + col) * c.w_out + channel * c.w_channel +
                             t0 * c.w_stride[0] + t1 * c.w_stride[1] + t2 * c.w_stride[2]]) : 0.f;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 16; k++) {
            float a[4], b[4];
#pragma unroll
            for (int i = 0; i < 4; i++) { a[i] = left[k][ty * 4 + i]; b[i] = right[k][tx + i * 16]; }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) acc[i][j] += a[i] * b[j];
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            i64 row = row0 + ty * 4 + i, col = col0 + tx + j * 16;
            if (row >= rows || col >= c.group_out) continue;
            i64 rest = row % pixels, channel = group * c.group_out + col;
            i64 p2 = rest % c.out[2], p1 = rest / c.out[2] % c.out[1], p0 = rest / c.out[2] / c.out[1];
            i64 at = row / pixels * c.out_image + channel * c.out_channel +
                     p0 * c.out_stride[0] + p1 * c.out_stride[1] + p2 * c.out_stride[2];
            float y = acc[i][j];
            if (HAS_BIAS) y += get(bias[channel]);
            if (HAS_RESIDUAL && !ACT_FIRST) y += get(residual[at]);
            y = ACT(y);
            if (HAS_RESIDUAL && ACT_FIRST) y += get(residual[at]);
            put(out[at], y);
        }
}

// Few channels in each group: one thread an output.
extern "C" __global__ void __launch_bounds__(256)
conv_direct(const TX* x, const TW* weight, const TB* bias, const TR* residual, TO* out, const Conv c) {
    AWAIT();
    i64 pixels = c.out[0] * c.out[1] * c.out[2], channels = c.group_out * gridDim.z;
    i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
    if (i >= c.images * pixels * c.group_out) return;
    i64 channel = blockIdx.z * c.group_out + i % c.group_out, row = i / c.group_out, rest = row % pixels;
    i64 p2 = rest % c.out[2], p1 = rest / c.out[2] % c.out[1], p0 = rest / c.out[2] / c.out[1];
    const TX* from = x + row / pixels * c.in_image + (i64)blockIdx.z * c.group_in * c.in_channel;
    const TW* w = weight + channel * c.w_out;
    float acc = 0.f;
    for (i64 t0 = 0; t0 < c.kernel[0]; t0++)
        for (i64 t1 = 0; t1 < c.kernel[1]; t1++)
            for (i64 t2 = 0; t2 < c.kernel[2]; t2++) {
                i64 a0 = p0 * c.stride[0] + t0 * c.dilation[0] - c.padding[0];
                i64 a1 = p1 * c.stride[1] + t1 * c.dilation[1] - c.padding[1];
                i64 a2 = p2 * c.stride[2] + t2 * c.dilation[2] - c.padding[2];
                if (a0 < 0 || a0 >= c.in[0] || a1 < 0 || a1 >= c.in[1] || a2 < 0 || a2 >= c.in[2]) continue;
                const TX* pixel = from + a0 * c.in_stride[0] + a1 * c.in_stride[1] + a2 * c.in_stride[2];
                const TW* tap = w + t0 * c.w_stride[0] + t1 * c.w_stride[1] + t2 * c.w_stride[2];
                for (i64 k = 0; k < c.group_in; k++) acc += get(pixel[k * c.in_channel]) * get(tap[k * c.w_channel]);
            }
    (void)channels;
    i64 at = row / pixels * c.out_image + channel * c.out_channel +
             p0 * c.out_stride[0] + p1 * c.out_stride[1] + p2 * c.out_stride[2];
    if (HAS_BIAS) acc += get(bias[channel]);
    if (HAS_RESIDUAL && !ACT_FIRST) acc += get(residual[at]);
    acc = ACT(acc);
    if (HAS_RESIDUAL && ACT_FIRST) acc += get(residual[at]);
    put(out[at], acc);
}
