// Sums over a warp and over a block, in an order that depends on the launch shape alone.
#pragma once
#include "device.cuh"

// Merges the values of all lanes of a warp; every lane gets the result.
template <class T, class Merge> __device__ __forceinline__ T reduce_warp(T x, Merge merge) {
#pragma unroll
    for (int distance = 16; distance > 0; distance >>= 1) x = merge(x, __shfl_xor_sync(WARP, x, distance));
    return x;
}

// Merges the values of all threads of a block; thread 0 gets the result. `shared` has one place for each warp, which
// nothing before has used; `neutral` stands for warps that do not exist. Every thread of the block takes part.
template <class T, class Merge> __device__ __forceinline__ T reduce_block(T x, T neutral, T* shared, Merge merge) {
    const int thread = threadIdx.x, warps = blockDim.x >> 5;
    x = reduce_warp(x, merge);
    if ((thread & 31) == 0) shared[thread >> 5] = x;
    __syncthreads();
    if (thread < 32) x = reduce_warp(thread < warps ? shared[thread] : neutral, merge);
    return x;
}
