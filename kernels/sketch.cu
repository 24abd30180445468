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
// srht reads A once and writes l of n; it is bound by its five stages of shuffles, each of which is one instruction of
// the load-store unit for 32 elements. sparse_sign reads A once from memory and ζ times from shared memory, 16 bytes at
// a time from anywhere, and is bound by conflicts of banks. srht_panel draws two Philox blocks for each ±1, and
// gaussian takes about 50 instructions for a normal; the product with their panels takes longer. Figures:
// benches/NOTES.md.
#include "fwht.cuh"
#include "philox.cuh"

// Computes Y(i, c) = factor · Σ_blocks ± (H x)_{sample[c]}, where x is the signed piece of row i. The input sign of
// column j is bit j of the input stream; the output sign of column c in block b is bit c % 128 of Philox block (c /
// 128) << 40 | b. A block of threads has `rows` adjacent rows, for which it draws the signs once, and whose sums are
// adjacent in Y. The stages of the warp bits are left to the sampling: l sums of as many elements as there are warps
// take the place of an exchange and butterflies for all elements. Launch: ceil(m / rows) blocks of T threads (struct
// Layout), 2^t·sizeof(arithmetic) + 2^t / 8 + 16·ceil(l / 128) + rows·l·sizeof(arithmetic) bytes.
template <class E, int LOG_R>
__device__ __forceinline__ void srht(const E* __restrict__ a, Arithmetic<E>* __restrict__ y,
                                     const u32* __restrict__ sample, Arithmetic<E> factor, u64 seed, u64 stream, i64 m,
                                     i64 n, int l, int rows, i64 lda, i64 ldy) {
    using L = Layout<E, LOG_R>;
    using A = Arithmetic<E>;
    static_assert(L::LOG_T >= 5, "a block is whole warps");
    constexpr int WARPS = 1 << L::LOG_WARPS, WARP_BIT = L::LOG_V + 5;
    DYNAMIC_SHARED(A, x);
    u32* const signs = reinterpret_cast<u32*>(x + L::N);
    const int blocks = (l + 127) / 128;
    u32* const output_signs = signs + L::N / 32;
    A* const sums = reinterpret_cast<A*>(output_signs + 4 * blocks);
    const int thread = threadIdx.x;
    const i64 top = static_cast<i64>(blockIdx.x) * rows;
    const int count = static_cast<int>(m - top < rows ? m - top : rows);
    const bool wide = aligned(a, lda);
    i64 block = 0;
    for (i64 first = 0; first < n; first += L::N, ++block) {
        if (first > 0) __syncthreads();  // the signs of the block before are used no more
        for (int i = thread; i < L::N / 128 + blocks; i += L::T) {
            const int c = i - L::N / 128;
            const uint4 w =
                c < 0 ? philox(seed, stream::SRHT_SIGNS | stream, static_cast<u64>(first) / 128 + i)
                      : philox(seed, stream::SRHT_OUTPUT_SIGNS | stream, static_cast<u64>(c) << ROW_BITS | block);
            *reinterpret_cast<uint4*>(signs + 4 * i) = w;
        }
#pragma unroll 1
        for (int r = 0; r < count; ++r) {
            const E* const row = a + (top + r) * lda;
            __syncthreads();  // all signs are written, and the gathers from x have ended
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
            fwht_warp<E, LOG_R>(v, thread);
            to_shared<E, LOG_R>(v, thread, x);
            __syncthreads();
            A* const sum = sums + r * l;
            for (int c = thread; c < l; c += L::T) {
                const int p = sample[c], bits = p >> WARP_BIT & (WARPS - 1), rest = p & ~((WARPS - 1) << WARP_BIT);
                A term = x[rest];
#pragma unroll
                for (int w = 1; w < WARPS; ++w) term += flip(x[rest | w << WARP_BIT], __popc(bits & w) & 1);
                term = flip(term, output_signs[c >> 5] >> (c & 31) & 1);
                sum[c] = first == 0 ? term : sum[c] + term;
            }
        }
    }
    __syncthreads();  // all sums are written
    for (int i = thread; i < l * rows; i += L::T) {
        const int c = i / rows, r = i % rows;
        if (r < count) y[c * ldy + top + r] = factor * sums[r * l + c];
    }
}

#define SRHT(NAME, E, K)                                                                                            \
    extern "C" __global__ void __launch_bounds__((Layout<E, K>::T), 768 / Layout<E, K>::T)                          \
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

// Writes panel(i, c) = factor · (± 1), rows first..first + depth of the Ω of an SRHT with blocks of 2^log2_r,
// column-major. Launch: 256 threads, grid (ceil(depth / 256), min(l, 65535)).
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

// Computes Y(i, c) = factor · Σ ± a(i, j) over the nonzeros (j, minus) of column c, j ascending.
//
// A block has V rows, where V is the number of elements in 16 bytes, and each thread one column of Y. 2048 columns of
// these rows at a time are in shared memory, the V elements of one column side by side: a nonzero is one read of 16
// bytes for V sums.
//
//   unit j of a tile is at j ^ (j / 8 % V): the units of a square of V × V, which one thread transposes, and those of
//   its seven neighbours are on different banks
//
// The nonzeros of tile t in columns 32 g..32 g + 32 are quads start[t·ceil(l / 32) + g] up to the next start. Those of
// lane c are at 32 quad + c: `(j - 2048 t) << 1 | minus`, filled up with 2·2048, which is a unit of zeros. Launch: up
// to 384 threads, whole warps, grid (ceil(m / V), ceil(l / threads)), 32 KiB and 16 bytes.
template <class E>
__device__ __forceinline__ void sparse_sign(const E* __restrict__ a, Arithmetic<E>* __restrict__ y,
                                            const u32* __restrict__ start, const uint4* __restrict__ quads,
                                            Arithmetic<E> factor, i64 m, i64 n, int l, i64 lda, i64 ldy) {
    using A = Arithmetic<E>;
    constexpr int V = 16 / sizeof(E), TILE = 2048;
    union Unit { uint4 raw; E x[V]; };
    DYNAMIC_SHARED(uint4, tile);
    const auto place = [](u32 j) { return j ^ (j >> 3 & (V - 1)); };
    const i64 top = static_cast<i64>(blockIdx.x) * V;
    const int c = blockIdx.y * blockDim.x + threadIdx.x, groups = (l + 31) / 32;
    const bool wide = aligned(a, lda);
    if (threadIdx.x == 0) tile[TILE] = make_uint4(0, 0, 0, 0);
    A sum[V];
#pragma unroll
    for (int r = 0; r < V; ++r) sum[r] = A(0);
    for (i64 left = 0; left < n; left += TILE, start += groups) {
        if (left > 0) __syncthreads();  // all reads of the tile have ended
        for (int j = threadIdx.x * V; j < TILE && left + j < n; j += blockDim.x * V) {
            // Half of the rows at a time, because all of them take too many registers for two blocks.
#pragma unroll 1
            for (int half = 0; half < 2; ++half) {
                Unit row[V / 2];
#pragma unroll
                for (int r = 0; r < V / 2; ++r) {
                    const i64 i = top + half * (V / 2) + r;
                    const E* const from = a + i * lda + left + j;
                    if (i < m && left + j + V <= n && wide) {
                        row[r].raw = *reinterpret_cast<const uint4*>(from);
                    } else {
#pragma unroll
                        for (int k = 0; k < V; ++k)
                            row[r].x[k] = i < m && left + j + k < n ? from[k] : Narrow<E>::from(A(0));
                    }
                }
#pragma unroll
                for (int k = 0; k < V; ++k) {
                    union { uint2 raw; E x[V / 2]; } column;
#pragma unroll
                    for (int r = 0; r < V / 2; ++r) column.x[r] = row[r].x[k];
                    reinterpret_cast<uint2*>(tile + place(j + k))[half] = column.raw;
                }
            }
        }
        __syncthreads();
        if (c >= 32 * groups) continue;
        const u32 end = start[(c >> 5) + 1];
#pragma unroll 2
        for (u32 q = start[c >> 5]; q < end; ++q) {
            const uint4 quad = quads[static_cast<i64>(q) * 32 + (c & 31)];
            const u32 entries[4] = {quad.x, quad.y, quad.z, quad.w};
            Unit column[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) column[e].raw = tile[place(entries[e] >> 1)];
#pragma unroll
            for (int e = 0; e < 4; ++e)
#pragma unroll
                for (int r = 0; r < V; ++r) sum[r] += flip(A(widen(column[e].x[r])), entries[e] & 1);
        }
    }
    if (c >= l) return;
#pragma unroll
    for (int r = 0; r < V; ++r)
        if (top + r < m) y[c * ldy + top + r] = factor * sum[r];
}
#define SPARSE_SIGN(NAME, E)                                                                                        \
    extern "C" __global__ void __launch_bounds__(384, 2)                                                            \
        NAME(const E* a, Arithmetic<E>* y, const u32* start, const uint4* quads, Arithmetic<E> factor, i64 m, i64 n, \
             int l, i64 lda, i64 ldy) {                                                                             \
        sparse_sign<E>(a, y, start, quads, factor, m, n, l, lda, ldy);                                            \
    }                                                                                                               \
    KERNEL(NAME)
SPARSE_SIGN(sparse_sign_f32, float)
SPARSE_SIGN(sparse_sign_f16, f16)
SPARSE_SIGN(sparse_sign_bf16, bf16)
SPARSE_SIGN(sparse_sign_f64, double)

// Writes panel(i, c) = scale · z(first + i, c), column-major: normal c % 4 of Philox block (c / 4) << 40 | row, times
// `normalization` in f32.
// Launch: 256 threads, grid (ceil(depth / 256), min(ceil(l / 4), 65535)).
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

// Writes words[4 i + w] = word w of block first + i. Launch: 256 threads, ceil(count / 256) blocks.
extern "C" __global__ void __launch_bounds__(256) philox_words(u32* words, u64 seed, u64 stream, u64 first, i64 count) {
    const i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    reinterpret_cast<uint4*>(words)[i] = philox(seed, stream, first + i);
}
KERNEL(philox_words)
