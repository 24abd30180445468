// The Walsh-Hadamard transform of one vector of 2^LOG_N elements, held by the threads of one block.
//
//   index bits   | chunk | warp | lane | place in 16 bytes |      chunk and place: registers
//
//   registers:   butterflies on chunk and place bits, no communication
//   lane:        5 stages of shuffles
//   warp:        one exchange through shared memory makes them lane bits, then shuffles again
//
//   exchange     thread (warp w, lane h·K + j)  ->  thread (warp h, lane w·K + j),   K = 32 / warps
//
// The exchange moves 16 bytes at a time; the slot of (w, lane) is w·32 + (lane ^ (w·K mod 8)), which keeps both the
// writes and the reads of each quarter warp on different banks. The vector ends in the layout of the second thread;
// stores are runs of K·16 bytes, whole sectors since a block has at most 16 warps. Doing the exchange in rounds of 4
// units keeps shared memory at 64 bytes for each thread, 32 KiB at most.
//
// Cost: n log2 n additions and no multiplication.
#pragma once
#include "dtype.cuh"

// How a vector of 2^LOG_N elements is spread over threads: V adjacent elements in each of C chunks, for each of T
// threads.
template <class E, int LOG_N> struct Layout {
    using A = Arithmetic<E>;
    static constexpr int MAX_THREADS = 9;  // log2; registers hold what is more
    static constexpr int LOG_V = LOG_N < LOG_VECTOR<E> ? LOG_N : LOG_VECTOR<E>;
    // log2 of the elements of a thread, as long as there is a full warp.
    static constexpr int LOG_REGISTERS = sizeof(A) == 8 ? 4 : 5;
    // Chunk bits if one warp does it all.
    static constexpr int SPARE = LOG_N - LOG_V - 5;
    static constexpr int LOG_C0 = SPARE <= 0 ? 0 : SPARE < LOG_REGISTERS - LOG_V ? SPARE : LOG_REGISTERS - LOG_V;
    static constexpr int LOG_T = LOG_N - LOG_V - LOG_C0 < MAX_THREADS ? LOG_N - LOG_V - LOG_C0 : MAX_THREADS;
    static constexpr int LOG_C = LOG_N - LOG_V - LOG_T;
    static constexpr int V = 1 << LOG_V, C = 1 << LOG_C, T = 1 << LOG_T, R = V * C, N = 1 << LOG_N;
    static constexpr int LOG_LANES = LOG_T < 5 ? LOG_T : 5, LOG_WARPS = LOG_T - LOG_LANES;
    // The number of vectors that share a block: enough for 4 warps.
    static constexpr int VECTORS = LOG_WARPS > 0 ? 1 : 128 / T;
    static constexpr int THREADS = T * VECTORS;
    // The elements of a unit of 16 bytes, the units of a thread, and how many of them are exchanged at once.
    static constexpr int UNIT = 16 / sizeof(A), UNITS = R / UNIT > 0 ? R / UNIT : 1, ROUND = UNITS < 4 ? UNITS : 4;
    static constexpr int SHARED = LOG_WARPS > 0 ? ROUND * T * 16 : 0;
    static_assert(LOG_WARPS <= 4, "an exchange leaves at least one lane bit");
};

// Replaces a and b by their sum and difference.
template <class A> __device__ __forceinline__ void butterfly(A& a, A& b) {
    const A sum = a + b;
    b = a - b;
    a = sum;
}

// Does the stages of lane bits FIRST..LAST.
template <int FIRST, int LAST, int R, class A> __device__ __forceinline__ void shuffle_stages(A* v, int lane) {
#pragma unroll
    for (int bit = FIRST; bit < LAST; ++bit) {
        const u32 minus = lane >> bit & 1;
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const A other = __shfl_xor_sync(WARP, v[r], 1 << bit);
            v[r] = other + flip(v[r], minus);
        }
    }
}

// Does all stages but those of the warp bits: v[c·V + i] is element (c·T + thread)·V + i.
template <class E, int LOG_N> __device__ __forceinline__ void fwht_warp(Arithmetic<E>* v, int thread) {
    using L = Layout<E, LOG_N>;
#pragma unroll
    for (int h = 1; h < L::R; h <<= 1)
#pragma unroll
        for (int r = 0; r < L::R; ++r)
            if ((r & h) == 0) butterfly(v[r], v[r + h]);
    shuffle_stages<0, L::LOG_LANES, L::R>(v, thread & 31);
}

// Writes the elements that fwht_warp leaves in v to x[0..N] in shared memory, 16 bytes at a time. For halves, threads
// are 32 bytes apart and half of the banks are idle; places that use all banks cost the SRHT registers, and more time.
template <class E, int LOG_N>
__device__ __forceinline__ void to_shared(const Arithmetic<E>* v, int thread, Arithmetic<E>* x) {
    using L = Layout<E, LOG_N>;
    struct alignas(16) Unit { Arithmetic<E> x[L::UNIT]; };
#pragma unroll
    for (int r = 0; r < L::R; r += L::UNIT) {
        Unit unit;
#pragma unroll
        for (int i = 0; i < L::UNIT; ++i) unit.x[i] = v[r + i];
        *reinterpret_cast<Unit*>(x + (r / L::V * L::T + thread) * L::V + r % L::V) = unit;
    }
}

// Does all stages. v[c·V + i] is element (c·T + slot)·V + i, where slot is `thread` (0..T) before, and the value
// returned after. Every thread of the block takes part. `shared` has L::SHARED bytes and may be reused after the next
// barrier.
template <class E, int LOG_N>
__device__ __forceinline__ int fwht_block(Arithmetic<E>* v, int thread, Arithmetic<E>* shared) {
    using L = Layout<E, LOG_N>;
    using A = Arithmetic<E>;
    const int lane = thread & 31;
    fwht_warp<E, LOG_N>(v, thread);
    if constexpr (L::LOG_WARPS == 0) {
        return thread;
    } else {
        constexpr int LOG_K = 5 - L::LOG_WARPS;
        const int warp = thread >> 5, source_warp = lane >> LOG_K;
        const int source_lane = warp << LOG_K | (lane & ((1 << LOG_K) - 1));
        const int to = warp << 5 | (lane ^ (warp << LOG_K & 7));
        const int from = source_warp << 5 | (source_lane ^ (source_warp << LOG_K & 7));
        struct alignas(16) Unit { A x[L::UNIT]; };
        Unit* const slots = reinterpret_cast<Unit*>(shared);
#pragma unroll
        for (int first = 0; first < L::UNITS; first += L::ROUND) {
            if (first > 0) __syncthreads();
#pragma unroll
            for (int u = 0; u < L::ROUND; ++u) {
                Unit unit;
#pragma unroll
                for (int i = 0; i < L::UNIT; ++i) unit.x[i] = v[(first + u) * L::UNIT + i];
                slots[u * L::T + to] = unit;
            }
            __syncthreads();
#pragma unroll
            for (int u = 0; u < L::ROUND; ++u) {
                const Unit unit = slots[u * L::T + from];
#pragma unroll
                for (int i = 0; i < L::UNIT; ++i) v[(first + u) * L::UNIT + i] = unit.x[i];
            }
        }
        shuffle_stages<LOG_K, 5, L::R>(v, lane);
        return source_warp << 5 | source_lane;
    }
}
