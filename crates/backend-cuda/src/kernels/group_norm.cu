// Group norm in two launches: partial mean and squared deviation of each group, then the elements.
// TX TW TB TO: element types. HAS_WEIGHT, HAS_BIAS: 0 or 1. NHWC: channels last. ACT: a function applied last.
DEVICE i64 place(i64 image, i64 channel, i64 pixel, i64 channels, i64 pixels) {
    return NHWC ? (image * pixels + pixel) * channels + channel : (image * channels + channel) * pixels + pixel;
}

// Block (group, part): a part of the pixels of one group. `partial` holds {count, mean, deviation} of each.
extern "C" __global__ void __launch_bounds__(256)
group_norm_stats(const TX* x, float* partial, i64 channels, i64 pixels, int groups, int parts) {
    AWAIT();
    i64 image = blockIdx.x / groups, group = blockIdx.x % groups;
    i64 width = channels / groups;
    i64 first = pixels * blockIdx.y / parts, end = pixels * (blockIdx.y + 1) / parts;
    i64 count = (end - first) * width;
    float n = 0.f, mean = 0.f, dev = 0.f, sum = 0.f;
    for (i64 e = threadIdx.x; e < count; e += 256) {
        i64 c = NHWC ? e % width : e / (end - first), p = NHWC ? e / width : e % (end - first);
        sum += get(x[place(image, group * width + c, first + p, channels, pixels)]);
    }
    mean = count > 0 ? block_sum(sum) / count : 0.f;
    for (i64 e = threadIdx.x; e < count; e += 256) {
        i64 c = NHWC ? e % width : e / (end - first), p = NHWC ? e / width : e % (end - first);
        float d = get(x[place(image, group * width + c, first + p, channels, pixels)]) - mean;
        dev += d * d;
    }
    dev = block_sum(dev);
    n = (float)count;
    if (threadIdx.x == 0) {
        float* to = partial + ((i64)blockIdx.x * parts + blockIdx.y) * 3;
        to[0] = n; to[1] = mean; to[2] = dev;
    }
}

extern "C" __global__ void __launch_bounds__(256)
group_norm_apply(const TX* x, const TW* weight, const TB* bias, const float* partial, TO* out,
                 i64 channels, i64 pixels, int groups, int parts, float eps) {
    AWAIT();
    // Block (image, part): all channels of some pixels; the statistics of the image's groups first.
    extern __shared__ float stats[];
    i64 image = blockIdx.x, width = channels / groups;
    for (int g = threadIdx.x; g < groups; g += 256) {
        float n = 0.f, mean = 0.f, dev = 0.f;
        const float* from = partial + (image * groups + g) * parts * 3;
        for (int p = 0; p < parts; p++) join(n, mean, dev, from[p * 3], from[p * 3 + 1], from[p * 3 + 2]);
        stats[2 * g] = mean;
        stats[2 * g + 1] = 1.f / sqrtf(dev / n + eps);
    }
    __syncthreads();
    i64 total = channels * pixels, first = total * blockIdx.y / gridDim.y, end = total * (blockIdx.y + 1) / gridDim.y;
    for (i64 e = first + threadIdx.x; e < end; e += 256) {
        i64 c = NHWC ? e % channels : e / pixels;
        int g = (int)(c / width);
        float y = (get(x[image * total + e]) - stats[2 * g]) * stats[2 * g + 1];
        if (HAS_WEIGHT) y *= get(weight[c]);
        if (HAS_BIAS) y += get(bias[c]);
        put(out[image * total + e], ACT(y));
    }
}
