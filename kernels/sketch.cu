// Random embeddings Y = A Ω with the Ω of src/sketch: the same seeds, the same matrices.
//
//   srht_<dtype>_<t>            blocks of r = 2^t: signs, widening, transform, sampling, sum, in one sweep over A
//   srht_panel_<arithmetic>     rows of that Ω, entry by entry, for blocks that srht_<dtype> has no instance for
//   sparse_sign_<dtype>         columns of Ω as lists of positions and signs
//   gaussian_<arithmetic>       rows of a Gaussian Ω, to be multiplied by GEMM
//   philox_words                the generator itself
//
// A is row-major with `lda` elements from row to row, Y column-major.
//
// Roofline, H100: srht reads A once and writes l of n: 4096 × 4096 bf16 at l = 266: 34 MB + 4 MB, 11 us; 12 additions for each
// element, 200 M: 3 us. Philox for the signs: one block for 128 elements, but one for
// each output in each piece of 2^t: n / 2^t · l · 100 integer operations a row, 7 us at one piece, 58 us at eight; only with few
// pieces can it run at 1.0 to 1.3 times a copy of A.
// srht_panel: two Philox blocks (200 integer operations, 15 T/s) for each ± 1: 4096 × 266 take 15 us; only for blocks that the
// fused kernel has no instance for, and the product with the panel takes longer.
// sparse_sign reads A once from memory and ζ times from L1; ζ m n additions. gaussian: about 50 instructions for a
// normal, n l of them: 4096 × 266 take 3 us, against 130 us for the f32 product. philox_words writes 16 bytes for 100
// integer operations: 0.7 of a fill.
#include "fwht.cuh"
#include "philox.cuh"

// Y(i, c) = factor · Σ_blocks ± (H x)_{sample[c]}, x the signed piece of row i. Input sign of column j: bit j of the
// input stream; output sign of column c in block b: bit c % 128 of Philox block (c / 128) << 40 | b. A block has `rows`
// adjacent rows, for which it draws the signs once, and whose sums are adjacent in Y.
// Launch: ceil(m / rows) blocks of T threads (struct Layout), max(SHARED, 2^t·sizeof(arithmetic)) + 2^t / 8 +
// 16·ceil(l / 128) + rows·l·sizeof(arithmetic) bytes.
template <class E, int LOG_R>
__device__ __forceinline__ void srht(const E* __restrict__ a, Arithmetic<E>* __restrict__ y,
                                     const u32* __restrict__ sample, Arithmetic<E> factor, u64 seed, u64 stream, i64 m,
                                     i64 n, int l, int rows, i64 lda, i64 ldy) {
    using L = Layout<E, LOG_R>;
    using A = Arithmetic<E>;
    static_assert(L::LOG_T >= 5, "a block is whole warps");
    constexpr int X_BYTES = L::N * sizeof(A) > L::SHARED ? L::N * sizeof(A) : L::SHARED;
    DYNAMIC_SHARED(unsigned char, shared);
    A* const x = reinterpret_cast<A*>(shared);  // the exchange, then the transform
    u32* const signs = reinterpret_cast<u32*>(shared + X_BYTES);
    const int blocks = (l + 127) / 128;
    u32* const output_signs = signs + L::N / 32;
    A* const sums = reinterpret_cast<A*>(output_signs + 4 * blocks);
    const int thread = threadIdx.x;
    const i64 top = static_cast<i64>(blockIdx.x) * rows;
    const int count = static_cast<int>(m - top < rows ? m - top : rows);
    const bool wide = aligned(a, lda);
    i64 block = 0;
    for (i64 first = 0; first < n; first += L::N, ++block) {
        if (first > 0) __syncthreads();  // nobody needs the signs of the block before any more
        for (int i = thread; i < L::N / 128 + blocks; i += L::T) {
            const int c = i - L::N / 128;
            const uint4 w = c < 0 ? philox(seed, stream::SRHT_SIGNS | stream, static_cast<u64>(first) / 128 + i)
                                  : philox(seed, stream::SRHT_OUTPUT_SIGNS | stream, static_cast<u64>(c) << ROW_BITS | block);
            *reinterpret_cast<uint4*>(signs + 4 * i) = w;
        }
#pragma unroll 1
        for (int r = 0; r < count; ++r) {
            const E* const row = a + (top + r) * lda;
            __syncthreads();  // the signs are there, and nobody gathers from x any more
            A v[L::R];
#pragma unroll
            for (int c = 0; c < L::C; ++c) {
                const int at = (c * L::T + thread) * L::V;
                A* const part = v + c * L::V;
                if (first + at + L::V <= n) {
                    load<L::V>(row + first + at, part, wide);
                } else {
#pragma unroll
                    for (int i = 0; i < L::V; ++i) part[i] = first + at + i < n ? A(widen(row[first + at + i])) : A(0);
                }
                const u32 minus = signs[at >> 5] >> (at & 31);
#pragma unroll
                for (int i = 0; i < L::V; ++i) part[i] = flip(part[i], minus >> i & 1);
            }
            const int slot = fwht_block<E, LOG_R>(v, thread, x);
            __syncthreads();  // the exchange is over
#pragma unroll
            for (int c = 0; c < L::C; ++c)
#pragma unroll
                for (int i = 0; i < L::V; ++i) x[(c * L::T + slot) * L::V + i] = v[c * L::V + i];
            __syncthreads();
            A* const sum = sums + r * l;
            for (int c = thread; c < l; c += L::T) {
                const A term = flip(x[sample[c]], output_signs[c >> 5] >> (c & 31) & 1);
                sum[c] = first == 0 ? term : sum[c] + term;
            }
        }
    }
    __syncthreads();  // all sums are there
    for (int i = thread; i < l * rows; i += L::T) {
        const int c = i / rows, r = i % rows;
        if (r < count) y[c * ldy + top + r] = factor * sums[r * l + c];
    }
}

#define SRHT(NAME, E, K)                                                                                            \
    extern "C" __global__ void __launch_bounds__((Layout<E, K>::T), 768 / Layout<E, K>::T)                                  \
        NAME(const E* a, Arithmetic<E>* y, const u32* sample, Arithmetic<E> factor, u64 seed, u64 stream, i64 m,    \
             i64 n, int l, int rows, i64 lda, i64 ldy) {                                                            \
        srht<E, K>(a, y, sample, factor, seed, stream, m, n, l, rows, lda, ldy);                                    \
    }                                                                                                               \
    KERNEL(NAME)
#ifdef EMULATE_FEW
#define FOR_SRHT(M, D, E) M(srht_##D##_8, E, 8) M(srht_##D##_10, E, 10) M(srht_##D##_11, E, 11)
#else
#define FOR_SRHT(M, D, E)                                                                                           \
    M(srht_##D##_8, E, 8) M(srht_##D##_9, E, 9) M(srht_##D##_10, E, 10) M(srht_##D##_11, E, 11)                     \
    M(srht_##D##_12, E, 12) M(srht_##D##_13, E, 13)
#endif
FOR_SRHT(SRHT, f32, float)
FOR_SRHT(SRHT, f16, f16)
FOR_SRHT(SRHT, bf16, bf16)
FOR_SRHT(SRHT, f64, double)

// panel(i, c) = factor · (± 1), rows first..first + depth of the Ω of an SRHT of block 2^log2_r, column-major.
// Launch: 256 threads, grid (ceil(depth / 256), min(l, 65535)).
template <class A>
__device__ __forceinline__ void srht_panel(A* panel, const u32* sample, A factor, u64 seed, u64 stream, i64 first,
                                           i64 depth, int l, int log2_r, i64 ld) {
    const i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= depth) return;
    const u64 row = first + i, block = row >> log2_r;
    const u32 p = static_cast<u32>(row & ((1ull << log2_r) - 1));
    const u32 input = sign_bit(seed, stream::SRHT_SIGNS | stream, row);
    for (int c = blockIdx.y; c < l; c += gridDim.y) {
        const u64 index = ((static_cast<u64>(c) / 128) << ROW_BITS | block) * 128 + c % 128;
        const u32 output = sign_bit(seed, stream::SRHT_OUTPUT_SIGNS | stream, index);
        panel[c * ld + i] = flip(factor, (input ^ output ^ __popc(p & sample[c])) & 1);
    }
}
#define SRHT_PANEL(NAME, A)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        NAME(A* panel, const u32* sample, A factor, u64 seed, u64 stream, i64 first, i64 depth, int l, int log2_r,   \
             i64 ld) {                                                                                              \
        srht_panel<A>(panel, sample, factor, seed, stream, first, depth, l, log2_r, ld);                            \
    }                                                                                                               \
    KERNEL(NAME)
SRHT_PANEL(srht_panel_f32, float)
SRHT_PANEL(srht_panel_f64, double)

// Y(i, c) = factor · Σ ± a(i, j) over the entries `j << 1 | minus` of column c, j ascending. Entry e of it is
// entries[start[c / 32] + 32 e + c % 32]: a warp reads 32 lists side by side, each ended by ~0.
//
// A block has V rows, V the elements in 16 bytes, and one column in each thread. 2048 columns of the rows at a time lie in
// shared memory, the V elements of one column side by side: an entry is one read of 16 bytes for V sums.
//
//   unit j of a tile lies at j ^ (j / 8 % V): units of a square of V × V, which a thread turns, and of its seven
//   neighbours are on different banks
//
// Launch: up to 512 threads, whole warps, grid (ceil(m / V), ceil(l / threads)), 32 KiB.
template <class E>
__device__ __forceinline__ void sparse_sign(const E* __restrict__ a, Arithmetic<E>* __restrict__ y,
                                            const u32* __restrict__ start, const u32* __restrict__ entries,
                                            Arithmetic<E> factor, i64 m, i64 n, int l, i64 lda, i64 ldy) {
    using A = Arithmetic<E>;
    constexpr int V = 16 / sizeof(E), TILE = 2048;
    union Unit { uint4 raw; E x[V]; };
    DYNAMIC_SHARED(uint4, tile);
    const auto place = [](int j) { return j ^ (j >> 3 & (V - 1)); };
    const i64 top = static_cast<i64>(blockIdx.x) * V;
    const int c = blockIdx.y * blockDim.x + threadIdx.x;
    const u32* list = entries + (c < l ? start[c >> 5] + (c & 31) : 0);
    u32 entry = c < l ? *list : ~0u;
    const bool wide = aligned(a, lda);
    A sum[V];
#pragma unroll
    for (int r = 0; r < V; ++r) sum[r] = A(0);
    for (i64 left = 0; left < n; left += TILE) {
        if (left > 0) __syncthreads();  // nobody reads the tile any more
        for (int j = threadIdx.x * V; j < TILE && left + j < n; j += blockDim.x * V) {
            Unit row[V];
#pragma unroll
            for (int r = 0; r < V; ++r) {
                const E* const from = a + (top + r) * lda + left + j;
                if (top + r < m && left + j + V <= n && wide) {
                    row[r].raw = *reinterpret_cast<const uint4*>(from);
                } else {
#pragma unroll
                    for (int i = 0; i < V; ++i) row[r].x[i] = top + r < m && left + j + i < n ? from[i] : Narrow<E>::from(A(0));
                }
            }
#pragma unroll
            for (int i = 0; i < V; ++i) {
                Unit column;
#pragma unroll
                for (int r = 0; r < V; ++r) column.x[r] = row[r].x[i];
                tile[place(j + i)] = column.raw;
            }
        }
        __syncthreads();
        while ((entry >> 1) < left + TILE) {
            list += 32;
            const u32 next = *list;
            Unit column;
            column.raw = tile[place(static_cast<int>((entry >> 1) - left))];
#pragma unroll
            for (int r = 0; r < V; ++r) sum[r] += flip(A(widen(column.x[r])), entry & 1);
            entry = next;
        }
    }
    if (c >= l) return;
#pragma unroll
    for (int r = 0; r < V; ++r)
        if (top + r < m) y[c * ldy + top + r] = factor * sum[r];
}
#define SPARSE_SIGN(NAME, E)                                                                                        \
    extern "C" __global__ void __launch_bounds__(512)                                                               \
        NAME(const E* a, Arithmetic<E>* y, const u32* start, const u32* entries, Arithmetic<E> factor, i64 m, i64 n, \
             int l, i64 lda, i64 ldy) {                                                                             \
        sparse_sign<E>(a, y, start, entries, factor, m, n, l, lda, ldy);                                            \
    }                                                                                                               \
    KERNEL(NAME)
SPARSE_SIGN(sparse_sign_f32, float)
SPARSE_SIGN(sparse_sign_f16, f16)
SPARSE_SIGN(sparse_sign_bf16, bf16)
SPARSE_SIGN(sparse_sign_f64, double)

// panel(i, c) = scale · z(first + i, c): normal c % 4 of Philox block (c / 4) << 40 | row, times `normalization` in f32.
// Column-major. Launch: 256 threads, grid (ceil(depth / 256), min(ceil(l / 4), 65535)).
template <class A>
__device__ __forceinline__ void gaussian(A* panel, float normalization, A scale, u64 seed, u64 stream, i64 first,
                                         i64 depth, int l, i64 ld) {
    const i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= depth) return;
    for (int group = blockIdx.y; 4 * group < l; group += gridDim.y) {
        const uint4 w = philox(seed, stream::GAUSSIAN | stream, static_cast<u64>(group) << ROW_BITS | (first + i));
        const float2 p = box_muller(w.x, w.y), q = box_muller(w.z, w.w);
        const float z[4] = {p.x, p.y, q.x, q.y};
#pragma unroll
        for (int k = 0; k < 4; ++k)
            if (4 * group + k < l) panel[(4 * group + k) * ld + i] = A(__fmul_rn(z[k], normalization)) * scale;
    }
}
#define GAUSSIAN(NAME, A)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        NAME(A* panel, float normalization, A scale, u64 seed, u64 stream, i64 first, i64 depth, int l, i64 ld) {   \
        gaussian<A>(panel, normalization, scale, seed, stream, first, depth, l, ld);                                \
    }                                                                                                               \
    KERNEL(NAME)
GAUSSIAN(gaussian_f32, float)
GAUSSIAN(gaussian_f64, double)

// words[4 i + w] = word w of block first + i. Launch: 256 threads, ceil(count / 256) blocks.
extern "C" __global__ void __launch_bounds__(256) philox_words(u32* words, u64 seed, u64 stream, u64 first, i64 count) {
    const i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    reinterpret_cast<uint4*>(words)[i] = philox(seed, stream, first + i);
}
KERNEL(philox_words)
