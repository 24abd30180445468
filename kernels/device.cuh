// The border between the kernel sources and their compiler: nvcc, or g++ with the emulator of tests/cuda.
//
// KERNEL(name) registers a kernel with the emulator. DYNAMIC_SHARED names the one untyped block of shared memory that a
// launch asks for; a kernel divides it up itself. Sums and products that must round as on the CPU are written as
// __fadd_rn, __fmul_rn, __fmaf_rn, which are never contracted.
#pragma once
#ifdef SIMT_EMULATOR
#include "simt.hpp"
inline void store16(uint4* p, uint4 x) {
    simt::expect_global(p);
    *p = x;
}
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
extern __shared__ __align__(16) unsigned char dynamic_shared[];
#define DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(dynamic_shared)
#define KERNEL(name)
// Stores 16 bytes at once. It is written in PTX, because nvcc splits a plain store where the scalar path beside it ends
// with the same elements, so that each thread's last store is four. (The intrinsic __stwb is one store, too, but a
// strong one.)
__device__ __forceinline__ void store16(uint4* p, uint4 x) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "r"(x.x), "r"(x.y),
                 "r"(x.z), "r"(x.w)
                 : "memory");
}
#endif

using u32 = unsigned;
using u64 = unsigned long long;
using i64 = long long;
using f16 = __half;
using bf16 = __nv_bfloat16;

// All lanes of a warp, as a mask.
constexpr u32 WARP = 0xffffffffu;
