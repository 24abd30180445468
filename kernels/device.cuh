// Where the kernel sources meet nvcc, or g++ and the emulator of tests/cuda.
//
// KERNEL(name) registers a kernel with the emulator. DYNAMIC_SHARED is the one untyped block of shared memory that
// a launch asks for; a kernel carves it up itself. Sums and products that must round as on the CPU are spelled
// __fadd_rn, __fmul_rn, __fmaf_rn: those are never contracted.
#pragma once
#ifdef SIMT_EMULATOR
#include "simt.hpp"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
extern __shared__ __align__(16) unsigned char dynamic_shared[];
#define DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(dynamic_shared)
#define KERNEL(name)
#endif

using u32 = unsigned;
using u64 = unsigned long long;
using i64 = long long;
using f16 = __half;
using bf16 = __nv_bfloat16;

constexpr u32 WARP = 0xffffffffu;
