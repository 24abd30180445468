// Walsh-Hadamard transforms of rows and columns, in natural order, scaled by `scale` and not otherwise normalized.
//
//   fwht_rows_<dtype>_<k>      vectors of 2^k adjacent elements, each in one block    one sweep
//   fwht_based_<dtype>_<k>     vectors of b·2^k adjacent elements, likewise           one sweep
//   fwht_columns_<types>_<r>   r stages between elements `inner·ld` apart             one sweep for r stages
//   hadamard_<types>           H_b on b elements 2^k apart, b = 12, 20, ..., 188      one sweep
//
// A vector of b·2^k elements that fits shared memory is one sweep. A longer one is transformed as rows of at most 2^15
// elements, then by columns, then by H_b. Halves that need more than one sweep go through a workspace of f32: <types>
// is one type, or the two of a first sweep (<half>_f32) or of a last one (f32_<half>).
//
// Cost: a sweep moves 2·size bytes for each element; n log2 n additions. Based rows are bound by shared memory and
// additions. Columns of halves take two sweeps, of which the first writes and the second reads f32: 3 times the bytes.
// Figures: benches/NOTES.md.
#include "fwht.cuh"

// Computes y <- scale · H x for `count` vectors; vector i begins at (i / per_row)·stride + (i % per_row)·2^k. x may be
// y. Launch: ceil(count / VECTORS) blocks of THREADS threads, SHARED bytes (struct Layout; src/cuda/fwht.rs repeats
// them).
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

// Does r stages: for every o < outer, i < inner, j < columns it transforms the 2^r elements ((o·2^r + t)·inner + i)·ld
// + j of x, t < 2^r, times `scale`, to the same places of y, which may be x. Launch: 256 threads, grid (ceil(columns /
// 256), min(outer·inner, 65535)).
template <class E, class F, int LOG_R>
__device__ __forceinline__ void fwht_columns(const E* x, F* y, Arithmetic<F> scale, i64 outer, i64 inner, i64 ld,
                                             i64 columns) {
    using A = Arithmetic<F>;
    constexpr int R = 1 << LOG_R;
    const i64 j = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (j >= columns) return;
    for (i64 q = blockIdx.y; q < outer * inner; q += gridDim.y) {
        const i64 first = (q / inner * R * inner + q % inner) * ld + j;
        const E* from = x + first;
        F* to = y + first;
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
        for (int r = 0; r < R; ++r, to += inner * ld) *to = Narrow<F>::from(v[r]);
    }
}

#define FWHT_COLUMNS(NAME, E, F, R)                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        NAME(const E* x, F* y, Arithmetic<F> scale, i64 outer, i64 inner, i64 ld, i64 columns) {                    \
        fwht_columns<E, F, R>(x, y, scale, outer, inner, ld, columns);                                              \
    }                                                                                                               \
    KERNEL(NAME)
#define FOR_COLUMNS_F64(M, D, E, F)                                                                                 \
    M(fwht_columns_##D##_1, E, F, 1) M(fwht_columns_##D##_2, E, F, 2) M(fwht_columns_##D##_3, E, F, 3)              \
    M(fwht_columns_##D##_4, E, F, 4) M(fwht_columns_##D##_5, E, F, 5)
#define FOR_COLUMNS(M, D, E, F) FOR_COLUMNS_F64(M, D, E, F) M(fwht_columns_##D##_6, E, F, 6)
FOR_COLUMNS(FWHT_COLUMNS, f32, float, float)
FOR_COLUMNS(FWHT_COLUMNS, f16, f16, f16)
FOR_COLUMNS(FWHT_COLUMNS, bf16, bf16, bf16)
FOR_COLUMNS(FWHT_COLUMNS, f16_f32, f16, float)
FOR_COLUMNS(FWHT_COLUMNS, bf16_f32, bf16, float)
FOR_COLUMNS(FWHT_COLUMNS, f32_f16, float, f16)
FOR_COLUMNS(FWHT_COLUMNS, f32_bf16, float, bf16)
FOR_COLUMNS_F64(FWHT_COLUMNS, f64, double, double)

// Multiplies by H_b with tables: b is a multiple of four, and four elements have only eight signed sums, up to sign.
//
//   table[8 g + p]   v_4g ± v_4g+1 ± v_4g+2 ± v_4g+3, minus where bits 0, 1, 2 of p are set     3 additions per element
//   row i            the sum over g of ± table[code(i, g)]                                      b / 4 additions
//
// `codes` has b / 4 words for each row: 8 g + p, and bit 31 for a minus. A lane of the warp has 8 bytes of columns:
// `in(j, w)` reads element j and `out(i, w, value)` writes element i of column w·32 + lane. The table takes 2 b · 256
// bytes. Every thread of the block of 8 warps takes part; the table may be written again after the next barrier.
template <class A> struct alignas(8) Lane { A x[8 / sizeof(A)]; };
template <class A, class In, class Out>
__device__ __forceinline__ void hadamard_tile(Lane<A>* table, const u32* codes, int b, In in, Out out) {
    constexpr int W = 8 / sizeof(A);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, groups = b / 4;
    for (int g = warp; g < groups; g += 8) {
        Lane<A> sums[8];
#pragma unroll
        for (int w = 0; w < W; ++w) {
            const A v0 = in(4 * g, w), v1 = in(4 * g + 1, w), v2 = in(4 * g + 2, w), v3 = in(4 * g + 3, w);
            const A s = v0 + v1, d = v0 - v1, t = v2 + v3, u = v2 - v3;
            sums[0].x[w] = s + t;
            sums[1].x[w] = d + t;
            sums[2].x[w] = s - u;
            sums[3].x[w] = d - u;
            sums[4].x[w] = s + u;
            sums[5].x[w] = d + u;
            sums[6].x[w] = s - t;
            sums[7].x[w] = d - t;
        }
#pragma unroll
        for (int p = 0; p < 8; ++p) table[(8 * g + p) * 32 + lane] = sums[p];
    }
    __syncthreads();
    for (int i = warp; i < b; i += 8) {
        const u32* const row = codes + i * groups;
        A sum[W];
#pragma unroll
        for (int w = 0; w < W; ++w) sum[w] = A(0);
#pragma unroll 4
        for (int g = 0; g < groups; ++g) {
            const u32 code = row[g];
            const Lane<A> term = table[(code & 0xffff) * 32 + lane];
#pragma unroll
            for (int w = 0; w < W; ++w) sum[w] += flip(term.x[w], code >> 31);
        }
#pragma unroll
        for (int w = 0; w < W; ++w) out(i, w, sum[w]);
    }
}

// Multiplies `count` vectors of b·width elements, `stride` apart, by scale · (H_b ⊗ I); y may be x.
// Launch: 256 threads, ceil(count·width / (256 / sizeof(arithmetic))) blocks, 512·b bytes.
template <class E, class F>
__device__ __forceinline__ void hadamard(const E* x, F* y, const u32* codes, Arithmetic<F> scale, int b, i64 width,
                                         i64 count, i64 stride) {
    using A = Arithmetic<F>;
    constexpr int W = 8 / sizeof(A);
    DYNAMIC_SHARED(Lane<A>, table);
    i64 at[W];
#pragma unroll
    for (int w = 0; w < W; ++w) {
        const i64 column = static_cast<i64>(blockIdx.x) * (32 * W) + 32 * w + (threadIdx.x & 31);
        at[w] = column < count * width ? column / width * stride + column % width : -1;
    }
    const auto in = [&](int j, int w) { return at[w] < 0 ? A(0) : A(widen(x[at[w] + j * width])); };
    const auto out = [&](int i, int w, A value) {
        if (at[w] >= 0) y[at[w] + i * width] = Narrow<F>::from(value * scale);
    };
    hadamard_tile<A>(table, codes, b, in, out);
}

#define HADAMARD(NAME, E, F)                                                                                        \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        NAME(const E* x, F* y, const u32* codes, Arithmetic<F> scale, int b, i64 width, i64 count, i64 stride) {    \
        hadamard<E, F>(x, y, codes, scale, b, width, count, stride);                                                \
    }                                                                                                               \
    KERNEL(NAME)
HADAMARD(hadamard_f32, float, float)
HADAMARD(hadamard_f16, f16, f16)
HADAMARD(hadamard_bf16, bf16, bf16)
HADAMARD(hadamard_f32_f16, float, f16)
HADAMARD(hadamard_f32_bf16, float, bf16)
HADAMARD(hadamard_f64, double, double)

// Multiplies adjacent vectors of b·2^k elements by scale · (H_b ⊗ H_{2^k}), in place: each piece of 2^k elements is
// transformed by the threads of one warp, then H_b is applied with tables, to 256 bytes of each piece at a time.
// Launch: a block of 256 threads for each vector, b·2^k·sizeof(arithmetic) + 512·b bytes.
template <class E, int LOG_N>
__device__ __forceinline__ void fwht_based(E* x, const u32* codes, Arithmetic<E> scale, int b) {
    using L = Layout<E, LOG_N>;
    using A = Arithmetic<E>;
    static_assert(L::LOG_WARPS == 0, "a piece lies in one warp");
    constexpr int W = 8 / sizeof(A), AT_ONCE = 256 / L::T;
    DYNAMIC_SHARED(A, pieces);
    Lane<A>* const table = reinterpret_cast<Lane<A>*>(pieces + b * L::N);
    E* const vector = x + static_cast<i64>(blockIdx.x) * b * L::N;
    const bool wide = aligned(x, L::N);
    const int thread = threadIdx.x & (L::T - 1);
    for (int first = 0; first < b; first += AT_ONCE) {
        const int piece = first + threadIdx.x / L::T;
        A v[L::R];
#pragma unroll
        for (int c = 0; c < L::C; ++c) {
            const int at = piece * L::N + (c * L::T + thread) * L::V;
            if (piece < b) {
                load<L::V>(vector + at, v + c * L::V, wide);
            } else {
#pragma unroll
                for (int i = 0; i < L::V; ++i) v[c * L::V + i] = A(0);
            }
        }
        fwht_warp<E, LOG_N>(v, thread);
        if (piece < b) to_shared<E, LOG_N>(v, thread, pieces + piece * L::N);
    }
    __syncthreads();  // all pieces are written
    const int lane = threadIdx.x & 31;
    for (int left = 0; left < L::N; left += 32 * W) {
        if (left > 0) __syncthreads();  // all reads of the table have ended
        const auto in = [&](int j, int w) {
            const int column = left + 32 * w + lane;
            return column < L::N ? pieces[j * L::N + column] : A(0);
        };
        const auto out = [&](int i, int w, A value) {
            const int column = left + 32 * w + lane;
            if (column < L::N) vector[i * L::N + column] = Narrow<E>::from(value * scale);
        };
        hadamard_tile<A>(table, codes, b, in, out);
    }
}

#define FWHT_BASED(NAME, E, K)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256, 1) NAME(E* x, const u32* codes, Arithmetic<E> scale, int b) { \
        fwht_based<E, K>(x, codes, scale, b);                                                                       \
    }                                                                                                               \
    KERNEL(NAME)
#ifdef EMULATE_FEW
#define FOR_BASED(M, D, E) M(fwht_based_##D##_7, E, 7)
#define FOR_BASED_F64(M, D, E) M(fwht_based_##D##_7, E, 7)
#else
#define FOR_BASED_F64(M, D, E)                                                                                      \
    M(fwht_based_##D##_5, E, 5) M(fwht_based_##D##_6, E, 6) M(fwht_based_##D##_7, E, 7) M(fwht_based_##D##_8, E, 8) \
    M(fwht_based_##D##_9, E, 9)
#define FOR_BASED(M, D, E) FOR_BASED_F64(M, D, E) M(fwht_based_##D##_10, E, 10)
#endif
FOR_BASED(FWHT_BASED, f32, float)
FOR_BASED(FWHT_BASED, f16, f16)
FOR_BASED(FWHT_BASED, bf16, bf16)
FOR_BASED_F64(FWHT_BASED, f64, double)
