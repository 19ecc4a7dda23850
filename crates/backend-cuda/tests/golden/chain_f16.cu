

struct Shape { i64 groups, size[2], stride[3][2]; };
extern "C" __global__ void __launch_bounds__(256) elementwise(const f16* a0, const f16* a1, f16* out, const Shape s) {
    AWAIT();
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < s.groups; i += (i64)gridDim.x * 256) {
        u32 rest = (u32)i;
        i64 at0 = 0;
        i64 at1 = 0;
        i64 at2 = 0;
        { u32 n = (u32)s.size[1]; i64 k = rest % n; rest /= n;
          at0 += k * 8 * s.stride[0][1]; at1 += k * 8 * s.stride[1][1]; at2 += k * 8 * s.stride[2][1]; }
        { i64 k = rest;
          at0 += k * s.stride[0][0]; at1 += k * s.stride[1][0]; at2 += k * s.stride[2][0]; }
        Pack<f16, 8> p0 = read<f16, 8>(a0 + at0);
        Pack<f16, 8> p1 = read<f16, 8>(a1 + at1);
        Pack<f16, 8> to;
#pragma unroll
        for (int e = 0; e < 8; e++) {
            auto v0 = get(p0.v[e]);
            auto v1 = get(p1.v[e]);
            float v2 = v0 + v1;
            float v3 = f_gelu(v2);
            put(to.v[e], v3);
        }
        write<f16, 8>(out + at2, to);
    }
}
