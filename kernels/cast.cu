// Copies that change the type of the elements, their order, or both.
//
//   cast_<from>_<to>         dst(i, j) = scale · src(i, j)                     one sweep
//   transpose_<from>_<to>    dst(j, i) = scale · src(i, j)                     one sweep, through 32 × 32 tiles
//   subtract_<arith>_<to>    w(i, j) -= p(i, j)                                one sweep
//   split_f32_<half>         x = p_0 + 2^-s p_1 + 2^-2s p_2, p_i halves        for products on tensor cores
//
// Cost: bytes read + bytes written at the speed of memory; split reads 4 and writes 6 bytes for each element. Figures:
// benches/NOTES.md.
#include "dtype.cuh"

// Copies `lines` lines of `width` elements; line i begins at src + i·lds and dst + i·ldd. A thread takes as many
// elements at a time as the narrower of the two types has in 16 bytes. Launch: 256 threads, grid (min(ceil(width /
// 1024), 2^20), min(lines, 65535)).
template <class E, class F>
__device__ __forceinline__ void cast(const E* __restrict__ src, F* __restrict__ dst, Arithmetic<F> scale, i64 lines,
                                     i64 width, i64 lds, i64 ldd) {
    constexpr int FROM = 16 / sizeof(E), TO = 16 / sizeof(F), UNIT = FROM > TO ? FROM : TO;
    const bool wide_from = aligned(src, lds), wide_to = aligned(dst, ldd);
    for (i64 i = blockIdx.y; i < lines; i += gridDim.y)
#pragma unroll 1
        for (i64 j = (static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x) * UNIT; j < width;
             j += static_cast<i64>(gridDim.x) * blockDim.x * UNIT) {
            const E* const from = src + i * lds + j;
            F* const to = dst + i * ldd + j;
            if (j + UNIT <= width) {
                Arithmetic<E> x[UNIT];
#pragma unroll
                for (int k = 0; k < UNIT; k += FROM) load<FROM>(from + k, x + k, wide_from);
#pragma unroll
                for (int k = 0; k < UNIT; k += TO) {
                    Arithmetic<F> y[TO];
#pragma unroll
                    for (int t = 0; t < TO; ++t) y[t] = before_narrowing<F>(x[k + t] * scale);
                    store<TO>(to + k, y, wide_to);
                }
            } else {
                for (int k = 0; j + k < width; ++k) to[k] = Narrow<F>::from(widen(from[k]) * scale);
            }
        }
}
#define CAST(NAME, E, F)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256, 1)                                                            \
        NAME(const E* src, F* dst, Arithmetic<F> scale, i64 lines, i64 width, i64 lds, i64 ldd) {                   \
        cast<E, F>(src, dst, scale, lines, width, lds, ldd);                                                        \
    }                                                                                                               \
    KERNEL(NAME)
CAST(cast_f16_f32, f16, float)
CAST(cast_bf16_f32, bf16, float)
CAST(cast_f32_f32, float, float)
CAST(cast_f64_f32, double, float)
CAST(cast_f16_f64, f16, double)
CAST(cast_bf16_f64, bf16, double)
CAST(cast_f32_f64, float, double)
CAST(cast_f64_f64, double, double)
CAST(cast_f32_f16, float, f16)
CAST(cast_f32_bf16, float, bf16)
CAST(cast_f64_f16, double, f16)
CAST(cast_f64_bf16, double, bf16)

// Transposes: the `lines` lines of `width` elements of src become the columns of dst. Each block has one tile; tiles
// are counted row by row. Launch: 32 × 8 threads, ceil(width / 32)·ceil(lines / 32) blocks, 32·33·sizeof(arithmetic of
// F) bytes.
template <class E, class F>
__device__ __forceinline__ void transpose(const E* __restrict__ src, F* __restrict__ dst, Arithmetic<F> scale,
                                          i64 lines, i64 width, i64 lds, i64 ldd) {
    using A = Arithmetic<F>;
    DYNAMIC_SHARED(A, tile);  // 32 lines of 33 elements, so that a column lies in 32 banks
    const i64 across = (width + 31) / 32, left = blockIdx.x % across * 32, top = blockIdx.x / across * 32;
    for (int k = threadIdx.y; k < 32; k += 8)
        if (top + k < lines && left + threadIdx.x < width)
            tile[k * 33 + threadIdx.x] = before_narrowing<F>(widen(src[(top + k) * lds + left + threadIdx.x]) * scale);
    __syncthreads();
    for (int k = threadIdx.y; k < 32; k += 8)
        if (left + k < width && top + threadIdx.x < lines)
            dst[(left + k) * ldd + top + threadIdx.x] = Narrow<F>::from(tile[threadIdx.x * 33 + k]);
}
#define TRANSPOSE(NAME, E, F)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        NAME(const E* src, F* dst, Arithmetic<F> scale, i64 lines, i64 width, i64 lds, i64 ldd) {                   \
        transpose<E, F>(src, dst, scale, lines, width, lds, ldd);                                                   \
    }                                                                                                               \
    KERNEL(NAME)
TRANSPOSE(transpose_f16_f16, f16, f16)
TRANSPOSE(transpose_bf16_bf16, bf16, bf16)
TRANSPOSE(transpose_f32_f32, float, float)
TRANSPOSE(transpose_f64_f64, double, double)
TRANSPOSE(transpose_f16_f32, f16, float)
TRANSPOSE(transpose_bf16_f32, bf16, float)
TRANSPOSE(transpose_f64_f32, double, float)
TRANSPOSE(transpose_f16_f64, f16, double)
TRANSPOSE(transpose_bf16_f64, bf16, double)
TRANSPOSE(transpose_f32_f64, float, double)
TRANSPOSE(transpose_f32_f16, float, f16)
TRANSPOSE(transpose_f32_bf16, float, bf16)
TRANSPOSE(transpose_f64_f16, double, f16)
TRANSPOSE(transpose_f64_bf16, double, bf16)

// Computes w(i, j) -= p(i, j) for `lines` lines of `width` elements, rounded once to the type of w. Launch: 256 threads,
// grid (ceil(width / 256), min(lines, 65535)).
template <class A, class E>
__device__ __forceinline__ void subtract(E* __restrict__ w, const A* __restrict__ p, i64 lines, i64 width, i64 ldw,
                                         i64 ldp) {
    const i64 j = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (j >= width) return;
    for (i64 i = blockIdx.y; i < lines; i += gridDim.y)
        w[i * ldw + j] = Narrow<E>::from(widen(w[i * ldw + j]) - p[i * ldp + j]);
}
#define SUBTRACT(NAME, A, E)                                                                                        \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        NAME(E* w, const A* p, i64 lines, i64 width, i64 ldw, i64 ldp) {                                            \
        subtract<A, E>(w, p, lines, width, ldw, ldp);                                                               \
    }                                                                                                               \
    KERNEL(NAME)
SUBTRACT(subtract_f32_f16, float, f16)
SUBTRACT(subtract_f32_bf16, float, bf16)
SUBTRACT(subtract_f32_f64, float, double)
SUBTRACT(subtract_f64_f16, double, f16)
SUBTRACT(subtract_f64_bf16, double, bf16)
SUBTRACT(subtract_f64_f32, double, float)

// Splits each float into three halves that hold its 24 bits: x·scale = p_0 + 2^-s p_1 + 2^-2s p_2 with s = 11 for f16
// (whose small numbers would otherwise be lost) and 0 for bf16. A product of a matrix of halves with a panel of floats
// is then three products on tensor cores, exact before the sums. `parts` gets three panels of `count` elements. Launch:
// 256 threads, ceil(count / 256) blocks.
template <class H, int S>
__device__ __forceinline__ void split(const float* __restrict__ x, H* __restrict__ parts, float scale, i64 count) {
    const i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float rest = x[i] * scale;
#pragma unroll
    for (int p = 0; p < 3; ++p) {
        const H part = Narrow<H>::from(rest);
        parts[p * count + i] = part;
        rest = __fmul_rn(__fadd_rn(rest, -widen(part)), static_cast<float>(1 << S));
    }
}
extern "C" __global__ void __launch_bounds__(256) split_f32_f16(const float* x, f16* parts, float scale, i64 count) {
    split<f16, 11>(x, parts, scale, count);
}
KERNEL(split_f32_f16)
extern "C" __global__ void __launch_bounds__(256) split_f32_bf16(const float* x, bf16* parts, float scale, i64 count) {
    split<bf16, 0>(x, parts, scale, count);
}
KERNEL(split_f32_bf16)
