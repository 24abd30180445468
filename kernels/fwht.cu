// Walsh-Hadamard transforms of rows and columns, unnormalized but for `scale`, natural order.
//
//   fwht_rows_<dtype>_<k>      vectors of 2^k adjacent elements, each in one block    one sweep
//   fwht_columns_<dtype>_<r>   r stages between elements `inner·ld` apart             one sweep for r stages
//   hadamard_<dtype>           H_b on b elements 2^k apart, b = 12, 20, ..., 140      one sweep
//
// A vector of b·2^k elements with k <= 15 is b vectors of 2^k, then H_b; a longer one is rows of 2^15 and columns of
// the rest. Halves that need more than one sweep go through a workspace of f32 (src/cuda/fwht.rs).
//
// Roofline, H100 (3.35 TB/s): a sweep moves 2·size bytes for each element. 4096 × 4096: f32 134 MB, 40 us; f16 67 MB, 20 us.
// rows: 12 additions and 12 shuffles-or-moves for each element, 200 M each: 3 us of FADD, 6 us of SHFL and LDS:
// below the time of the copy, so 1.0 to 1.2 times a copy is what it should reach (Dao's kernel: 1.0 to 1.2 up to 8192 points).
// HadaCore (tensor cores, halves) reports 1.0 to 1.3 over that; neither is built on here.
// columns: 4096 rows are two sweeps, 2.0 times a copy. Halves are moved two bytes a thread, 64 a warp.
// hadamard: one sweep, b^2 additions for b elements: at b = 140 140 for each, 2.3 G for 4096 × 4096, 70 us at 33 T/s:
// twice the copy; at b = 12 to 28 the copy bounds it.
#include "fwht.cuh"

// y <- scale · H x for `count` vectors; vector i begins at (i / per_row)·stride + (i % per_row)·2^k. x may be y.
// Launch: ceil(count / VECTORS) blocks of THREADS threads, SHARED bytes (struct Layout; src/cuda/fwht.rs repeats them).
template <class E, int LOG_N>
__device__ __forceinline__ void fwht_rows(const E* x, E* y, Arithmetic<E> scale, i64 count, int per_row, i64 x_stride,
                                          i64 y_stride) {
    using L = Layout<E, LOG_N>;
    using A = Arithmetic<E>;
    DYNAMIC_SHARED(A, shared);
    const int thread = threadIdx.x & (L::T - 1);
    const i64 vector = static_cast<i64>(blockIdx.x) * L::VECTORS + (threadIdx.x >> L::LOG_T);
    const bool present = vector < count;
    const i64 row = vector / per_row, part = vector % per_row * L::N;
    A v[L::R];
    const E* const from = x + row * x_stride + part;
    const bool wide_from = aligned(x, x_stride), wide_to = aligned(y, y_stride);
#pragma unroll
    for (int c = 0; c < L::C; ++c) {
        if (present) {
            load<L::V>(from + (c * L::T + thread) * L::V, v + c * L::V, wide_from);
        } else {
#pragma unroll
            for (int i = 0; i < L::V; ++i) v[c * L::V + i] = A(0);
        }
    }
    const int slot = fwht_block<E, LOG_N>(v, thread, shared);
    if (!present) return;
    if (scale != A(1)) {
#pragma unroll
        for (int r = 0; r < L::R; ++r) v[r] *= scale;
    }
    E* const to = y + row * y_stride + part;
#pragma unroll
    for (int c = 0; c < L::C; ++c) store<L::V>(to + (c * L::T + slot) * L::V, v + c * L::V, wide_to);
}

#define FWHT_ROWS(NAME, E, K)                                                                                       \
    extern "C" __global__ void __launch_bounds__((Layout<E, K>::THREADS))                                           \
        NAME(const E* x, E* y, Arithmetic<E> scale, i64 count, int per_row, i64 x_stride, i64 y_stride) {           \
        fwht_rows<E, K>(x, y, scale, count, per_row, x_stride, y_stride);                                           \
    }                                                                                                               \
    KERNEL(NAME)
#ifdef EMULATE_FEW  // the mutation run compiles these sources many times
#define FOR_ROWS(M, D, E) M(fwht_rows_##D##_5, E, 5) M(fwht_rows_##D##_11, E, 11) M(fwht_rows_##D##_13, E, 13)
#define FOR_ROWS_F64(M, D, E) M(fwht_rows_##D##_11, E, 11)
#else
#define FOR_ROWS_F64(M, D, E)                                                                                       \
    M(fwht_rows_##D##_1, E, 1) M(fwht_rows_##D##_2, E, 2) M(fwht_rows_##D##_3, E, 3) M(fwht_rows_##D##_4, E, 4)     \
    M(fwht_rows_##D##_5, E, 5) M(fwht_rows_##D##_6, E, 6) M(fwht_rows_##D##_7, E, 7) M(fwht_rows_##D##_8, E, 8)     \
    M(fwht_rows_##D##_9, E, 9) M(fwht_rows_##D##_10, E, 10) M(fwht_rows_##D##_11, E, 11)                            \
    M(fwht_rows_##D##_12, E, 12) M(fwht_rows_##D##_13, E, 13) M(fwht_rows_##D##_14, E, 14)
#define FOR_ROWS(M, D, E) FOR_ROWS_F64(M, D, E) M(fwht_rows_##D##_15, E, 15)
#endif
FOR_ROWS(FWHT_ROWS, f32, float)
FOR_ROWS(FWHT_ROWS, f16, f16)
FOR_ROWS(FWHT_ROWS, bf16, bf16)
FOR_ROWS_F64(FWHT_ROWS, f64, double)

// In place: for every o < outer, i < inner, j < columns, the 2^r elements x[((o·2^r + t)·inner + i)·ld + j].
// Launch: 256 threads, grid (ceil(columns / 256), min(outer·inner, 65535)).
template <class E, int LOG_R>
__device__ __forceinline__ void fwht_columns(E* x, Arithmetic<E> scale, i64 outer, i64 inner, i64 ld, i64 columns) {
    using A = Arithmetic<E>;
    constexpr int R = 1 << LOG_R;
    const i64 j = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (j >= columns) return;
    for (i64 q = blockIdx.y; q < outer * inner; q += gridDim.y) {
        E* at = x + (q / inner * R * inner + q % inner) * ld + j;
        const E* from = at;
        A v[R];
#pragma unroll
        for (int r = 0; r < R; ++r, from += inner * ld) v[r] = widen(*from);
#pragma unroll
        for (int h = 1; h < R; h <<= 1)
#pragma unroll
            for (int r = 0; r < R; ++r)
                if ((r & h) == 0) butterfly(v[r], v[r + h]);
        if (scale != A(1)) {
#pragma unroll
            for (int r = 0; r < R; ++r) v[r] *= scale;
        }
#pragma unroll
        for (int r = 0; r < R; ++r, at += inner * ld) *at = Narrow<E>::from(v[r]);
    }
}

#define FWHT_COLUMNS(NAME, E, R)                                                                                    \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        NAME(E* x, Arithmetic<E> scale, i64 outer, i64 inner, i64 ld, i64 columns) {                                \
        fwht_columns<E, R>(x, scale, outer, inner, ld, columns);                                                    \
    }                                                                                                               \
    KERNEL(NAME)
#define FOR_COLUMNS_F64(M, D, E)                                                                                    \
    M(fwht_columns_##D##_1, E, 1) M(fwht_columns_##D##_2, E, 2) M(fwht_columns_##D##_3, E, 3)                       \
    M(fwht_columns_##D##_4, E, 4) M(fwht_columns_##D##_5, E, 5)
#define FOR_COLUMNS(M, D, E) FOR_COLUMNS_F64(M, D, E) M(fwht_columns_##D##_6, E, 6)
FOR_COLUMNS(FWHT_COLUMNS, f32, float)
FOR_COLUMNS(FWHT_COLUMNS, f16, f16)
FOR_COLUMNS(FWHT_COLUMNS, bf16, bf16)
FOR_COLUMNS_F64(FWHT_COLUMNS, f64, double)

// In place: (H_b ⊗ I) on `count` vectors of b·width elements, `stride` apart. Bit j of minus[5 i + j / 32] says that
// H_b(i, j) is -1. A tile of 32 columns goes through shared memory.
// Launch: 32 × 8 threads, ceil(count·width / 32) blocks, b·32·sizeof(arithmetic) bytes.
template <class E>
__device__ __forceinline__ void hadamard(E* x, const u32* minus, Arithmetic<E> scale, int b, i64 width, i64 count,
                                         i64 stride) {
    using A = Arithmetic<E>;
    DYNAMIC_SHARED(A, tile);
    const i64 column = static_cast<i64>(blockIdx.x) * 32 + threadIdx.x;
    const bool present = column < count * width;
    E* const at = x + column / width * stride + column % width;
    for (int i = threadIdx.y; i < b; i += 8) tile[i * 32 + threadIdx.x] = present ? widen(at[i * width]) : A(0);
    __syncthreads();
    if (!present) return;
    for (int i = threadIdx.y; i < b; i += 8) {
        A sum = A(0);
        for (int first = 0; first < b; first += 32) {
            const u32 signs = minus[5 * i + first / 32];
            const int terms = b - first < 32 ? b - first : 32;
            for (int j = 0; j < terms; ++j) sum += flip(tile[(first + j) * 32 + threadIdx.x], signs >> j & 1);
        }
        at[i * width] = Narrow<E>::from(sum * scale);
    }
}

#define HADAMARD(NAME, E)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        NAME(E* x, const u32* minus, Arithmetic<E> scale, int b, i64 width, i64 count, i64 stride) {                \
        hadamard<E>(x, minus, scale, b, width, count, stride);                                                      \
    }                                                                                                               \
    KERNEL(NAME)
HADAMARD(hadamard_f32, float)
HADAMARD(hadamard_f16, f16)
HADAMARD(hadamard_bf16, bf16)
HADAMARD(hadamard_f64, double)
