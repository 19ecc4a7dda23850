// What all kernels share. Nothing is included: NVRTC ships no headers for half types.
typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef short i16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;
typedef float f32;
typedef double f64;
struct f16 { u16 bits; };
struct bf16 { u16 bits; };
struct b8 { u8 bits; };

#define DEVICE static __device__ __forceinline__
// Every kernel has it before it reads or writes anything but constants: where the device can, blocks are launched while the kernels before still run. Nothing that those write
// may be read, and nothing that they read may be written, before they are over.
#if __CUDA_ARCH__ >= 900
#define AWAIT() asm volatile("griddepcontrol.wait;\n\tgriddepcontrol.launch_dependents;" ::: "memory")
#else
#define AWAIT()
#endif
#define NEG_INF __int_as_float(0xff800000)
#define POS_INF __int_as_float(0x7f800000)

// Stored elements to what is computed in: floats in f32, f64 in f64, integers in i64.
DEVICE float get(float v) { return v; }
DEVICE double get(double v) { return v; }
DEVICE float get(f16 v) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v.bits)); return r; }
DEVICE float get(bf16 v) { return __uint_as_float((u32)v.bits << 16); }
DEVICE i64 get(i64 v) { return v; }
DEVICE i64 get(i32 v) { return v; }
DEVICE i64 get(i16 v) { return v; }
DEVICE i64 get(i8 v) { return v; }
DEVICE i64 get(u8 v) { return v; }
DEVICE bool get(b8 v) { return v.bits != 0; }

// And back, rounded once. Floats become integers by truncation.
DEVICE i64 whole(double v) { return v != v ? 0 : (i64)v; }
DEVICE void put(float& to, float v) { to = v; }
DEVICE void put(float& to, double v) { to = (float)v; }
DEVICE void put(double& to, double v) { to = v; }
DEVICE void put(f16& to, float v) { u16 r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v)); to.bits = r; }
DEVICE void put(f16& to, double v) { put(to, (float)v); }
DEVICE void put(bf16& to, float v) { u16 r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v)); to.bits = r; }
DEVICE void put(bf16& to, double v) { put(to, (float)v); }
DEVICE void put(i64& to, i64 v) { to = v; }
DEVICE void put(i32& to, i64 v) { to = (i32)v; }
DEVICE void put(i16& to, i64 v) { to = (i16)v; }
DEVICE void put(i8& to, i64 v) { to = (i8)v; }
DEVICE void put(u8& to, i64 v) { to = (u8)v; }
DEVICE void put(b8& to, bool v) { to.bits = v ? 1 : 0; }

// Several neighbors at once, where they lie at an address that allows it.
template <typename T, int N> struct alignas(sizeof(T) * N > 16 ? 16 : sizeof(T) * N) Pack { T v[N]; };
template <typename T, int N> DEVICE Pack<T, N> read(const T* from) {
    Pack<T, N> pack;
    if (((u64)from & (alignof(Pack<T, N>) - 1)) == 0) return *(const Pack<T, N>*)from;
#pragma unroll
    for (int i = 0; i < N; i++) pack.v[i] = from[i];
    return pack;
}
template <typename T, int N> DEVICE void write(T* to, const Pack<T, N>& pack) {
    if (((u64)to & (alignof(Pack<T, N>) - 1)) == 0) { *(Pack<T, N>*)to = pack; return; }
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = pack.v[i];
}

// Elementary functions; the names are those of the IR.
DEVICE float f_neg(float x) { return -x; }
DEVICE float f_abs(float x) { return fabsf(x); }
DEVICE float f_sign(float x) { return x > 0.f ? 1.f : x < 0.f ? -1.f : 0.f; }
DEVICE float f_exp(float x) { return expf(x); }
DEVICE float f_log(float x) { return logf(x); }
DEVICE float f_log1p(float x) { return log1pf(x); }
DEVICE float f_expm1(float x) { return expm1f(x); }
DEVICE float f_sqrt(float x) { return sqrtf(x); }
DEVICE float f_rsqrt(float x) { return 1.f / sqrtf(x); }
DEVICE float f_reciprocal(float x) { return 1.f / x; }
DEVICE float f_sin(float x) { return sinf(x); }
DEVICE float f_cos(float x) { return cosf(x); }
DEVICE float f_tanh(float x) { return tanhf(x); }
DEVICE float f_tan(float x) { return tanf(x); }
DEVICE float f_asin(float x) { return asinf(x); }
DEVICE float f_acos(float x) { return acosf(x); }
DEVICE float f_atan(float x) { return atanf(x); }
DEVICE float f_sinh(float x) { return sinhf(x); }
DEVICE float f_cosh(float x) { return coshf(x); }
DEVICE float f_asinh(float x) { return asinhf(x); }
DEVICE float f_acosh(float x) { return acoshf(x); }
DEVICE float f_atanh(float x) { return atanhf(x); }
DEVICE float f_erfc(float x) { return erfcf(x); }
DEVICE float f_erfcx(float x) { return erfcxf(x); }
DEVICE float f_erfinv(float x) { return erfinvf(x); }
DEVICE float f_ndtri(float x) { return normcdfinvf(x); }
DEVICE float f_lgamma(float x) { return lgammaf(x); }
DEVICE float f_erf(float x) { return erff(x); }
DEVICE float f_sigmoid(float x) { return 1.f / (1.f + expf(-x)); }
DEVICE float f_softplus(float x) { return x > 20.f ? x : log1pf(expf(x)); }
DEVICE float f_relu(float x) { return x < 0.f ? 0.f : x; }
DEVICE float f_relu6(float x) { return x < 0.f ? 0.f : x > 6.f ? 6.f : x; }
DEVICE float f_gelu(float x) { return 0.5f * x * (1.f + erff(x * 0.70710678118654752f)); }
DEVICE float f_gelu_tanh(float x) { return 0.5f * x * (1.f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x))); }
DEVICE float f_silu(float x) { return x / (1.f + expf(-x)); }
DEVICE float f_hardswish(float x) { return x * f_relu6(x + 3.f) / 6.f; }
DEVICE float f_hardsigmoid(float x) { return f_relu6(x + 3.f) / 6.f; }
DEVICE float f_floor(float x) { return floorf(x); }
DEVICE float f_ceil(float x) { return ceilf(x); }
DEVICE float f_round(float x) { return rintf(x); }
DEVICE float f_trunc(float x) { return truncf(x); }
DEVICE float f_none(float x) { return x; }
DEVICE float f_max(float a, float b) { return a != a ? a : b != b ? b : fmaxf(a, b); }
DEVICE float f_min(float a, float b) { return a != a ? a : b != b ? b : fminf(a, b); }

// The first value out of range that is found, with the size of its axis; read by the host at the fence.
struct Report { i64* at; i64 node; };
DEVICE void out_of_range(const Report& report, i64 index, i64 size) {
    i64* at = report.at;
    if (at && atomicCAS((u64*)at, 0ull, 1ull) == 0ull) { at[1] = index; at[2] = size; at[3] = report.node; }
}

// Sums and maxima over a warp and a block, in a fixed order.
template <typename T> DEVICE T warp_sum(T v) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    return v;
}
DEVICE float warp_max(float v) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) v = f_max(v, __shfl_xor_sync(~0u, v, o));
    return v;
}
DEVICE float block_sum(float v) {
    __shared__ float parts[32];
    v = warp_sum(v);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = v;
    __syncthreads();
    int warps = (blockDim.x + 31) >> 5;
    return warp_sum((threadIdx.x & 31) < warps ? parts[threadIdx.x & 31] : 0.f);
}
DEVICE float block_max(float v) {
    __shared__ float parts[32];
    v = warp_max(v);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = v;
    __syncthreads();
    int warps = (blockDim.x + 31) >> 5;
    return warp_max((threadIdx.x & 31) < warps ? parts[threadIdx.x & 31] : NEG_INF);
}

// Integers: wrap, and division by zero gives 0, as the reference does.
DEVICE i64 i_add(i64 a, i64 b) { return (i64)((u64)a + (u64)b); }
DEVICE i64 i_sub(i64 a, i64 b) { return (i64)((u64)a - (u64)b); }
DEVICE i64 i_mul(i64 a, i64 b) { return (i64)((u64)a * (u64)b); }
DEVICE i64 i_trunc_div(i64 a, i64 b) { return b == 0 ? 0 : b == -1 ? i_sub(0, a) : a / b; }
DEVICE i64 i_floor_div(i64 a, i64 b) {
    if (b == 0) return 0;
    if (b == -1) return i_sub(0, a);
    i64 q = a / b;
    return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}
DEVICE i64 i_rem(i64 a, i64 b) {
    if (b == 0 || b == -1) return 0;
    i64 r = a % b;
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
DEVICE i64 i_pow(i64 a, i64 b) {
    if (b < 0) return a == 1 ? 1 : a == -1 ? ((b & 1) ? -1 : 1) : 0;
    i64 r = 1;
    for (; b; b >>= 1) { if (b & 1) r = i_mul(r, a); a = i_mul(a, a); }
    return r;
}
// From the exact remainder: the rounded quotient may be one too high.
DEVICE float f_floor_div(float a, float b) {
    if (b == 0.f) return a / b;
    float r = fmodf(a, b), q = (a - r) / b;
    if (r != 0.f && (b < 0.f) != (r < 0.f)) q -= 1.f;
    if (q == 0.f) return copysignf(0.f, a / b);
    float f = floorf(q);
    return q - f > 0.5f ? f + 1.f : f;
}
DEVICE float f_rem(float a, float b) { float r = fmodf(a, b); return r != 0.f && (r < 0.f) != (b < 0.f) ? r + b : r; }
// A value as a narrower type holds it.
template <typename T, typename V> DEVICE V held(V v) { T t; put(t, v); return get(t); }
