// The generator Philox4x32-10 and its Box-Muller normals, with the bits of src/rng.rs, which explains them.
//
//   key = seed      counter = index | stream << 64
//
// All operations are correctly rounded and none is contracted: the words and the normals are those of the CPU.
#pragma once
#include "device.cuh"

namespace stream {  // as in src/rng.rs
constexpr u64 GAUSSIAN = 1ull << 56;
constexpr u64 SRHT_SIGNS = 2ull << 56;
constexpr u64 SRHT_OUTPUT_SIGNS = 3ull << 56;
}  // namespace stream

// The bits of a row in a block index of the sketches, which is (column block) << 40 | row.
constexpr int ROW_BITS = 40;

// The four words of block `index`.
__device__ __forceinline__ uint4 philox(u64 seed, u64 stream, u64 index) {
    u32 k0 = static_cast<u32>(seed), k1 = static_cast<u32>(seed >> 32);
    uint4 c = make_uint4(static_cast<u32>(index), static_cast<u32>(index >> 32), static_cast<u32>(stream),
                         static_cast<u32>(stream >> 32));
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u32 h0 = __umulhi(0xD2511F53u, c.x), l0 = 0xD2511F53u * c.x;
        const u32 h1 = __umulhi(0xCD9E8D57u, c.z), l1 = 0xCD9E8D57u * c.z;
        c = make_uint4(h1 ^ c.y ^ k0, l1, h0 ^ c.w ^ k1, l0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// Returns word i of a block, without an array, which would be in local memory.
__device__ __forceinline__ u32 word(uint4 w, u32 i) { return i == 0 ? w.x : i == 1 ? w.y : i == 2 ? w.z : w.w; }

// Returns random sign number `index`: bit `index % 128` of block `index / 128`. 1 stands for the sign -1.
__device__ __forceinline__ u32 sign_bit(u64 seed, u64 stream, u64 index) {
    const u32 bit = static_cast<u32>(index) & 127;
    return word(philox(seed, stream, index >> 7), bit >> 5) >> (bit & 31) & 1;
}

// Returns an integer below 2^23 as a float, exactly.
__device__ __forceinline__ float small_integer(u32 x) {
    return __fadd_rn(__uint_as_float(x | 0x4b000000u), -8388608.0f);
}

// Returns ln((w + 1/2) 2^-32).
__device__ __forceinline__ float ln_uniform(u32 w) {
    const float high = small_integer(w >> 16), low = __fadd_rn(small_integer(w & 0xffff), 0.5f);
    const float x = __fmaf_rn(high, 65536.0f, low);
    constexpr u32 SQRT_HALF = 0x3f3504f3u;
    const u32 t = __float_as_uint(x) + ((2u << 23) - SQRT_HALF);
    const float e = __fadd_rn(small_integer(t >> 23), -34.0f);
    const float y = __fadd_rn(__uint_as_float((t & 0x7fffff) + SQRT_HALF), -1.0f);
    const float yy = __fmul_rn(y, y);
    float p = 7.0376836e-2f;
    p = __fmaf_rn(p, y, -1.151461e-1f);
    p = __fmaf_rn(p, y, 1.1676999e-1f);
    p = __fmaf_rn(p, y, -1.2420141e-1f);
    p = __fmaf_rn(p, y, 1.4249323e-1f);
    p = __fmaf_rn(p, y, -1.6668057e-1f);
    p = __fmaf_rn(p, y, 2.0000715e-1f);
    p = __fmaf_rn(p, y, -2.4999994e-1f);
    p = __fmaf_rn(p, y, 3.333333e-1f);
    float tail = __fmul_rn(e, -2.1219444e-4f);
    tail = __fmaf_rn(__fmul_rn(y, yy), p, tail);
    tail = __fmaf_rn(yy, -0.5f, tail);
    return __fmaf_rn(e, 0.6933594f, __fadd_rn(y, tail));
}

// Returns two independent standard normals from two words.
__device__ __forceinline__ float2 box_muller(u32 w0, u32 w1) {
    const float r = __fsqrt_rn(fabsf(__fmul_rn(-2.0f, ln_uniform(w0))));
    const u32 t = w1 + (1u << 29), q = t >> 30;
    const u32 bits = (t & ((1u << 30) - 1)) >> 7;
    const float rest = __fadd_rn(__uint_as_float(bits | 0x4b000000u), -(8388608.0f + 4194304.0f));
    constexpr float STEP = 1.57079632679489661923f / 8388608.0f;
    const float x = __fmaf_rn(rest, STEP, STEP / 2.0f), xx = __fmul_rn(x, x);
    float s = __fmaf_rn(-1.9515296e-4f, xx, 8.332161e-3f);
    s = __fmaf_rn(s, xx, -1.6666655e-1f);
    s = __fmaf_rn(__fmul_rn(s, xx), x, x);
    float c = __fmaf_rn(2.4433157e-5f, xx, -1.3887316e-3f);
    c = __fmaf_rn(c, xx, 4.1666646e-2f);
    c = __fmaf_rn(__fmul_rn(c, xx), xx, __fmaf_rn(xx, -0.5f, 1.0f));
    // Odd quadrants exchange the two; signs come from the bits of q.
    const u32 sb = __float_as_uint(s), cb = __float_as_uint(c), swap = (sb ^ cb) & (0u - (q & 1));
    const u32 sine = sb ^ swap ^ (q & 2) << 30, cosine = cb ^ swap ^ ((q + 1) & 2) << 30;
    return make_float2(__fmul_rn(r, __uint_as_float(cosine)), __fmul_rn(r, __uint_as_float(sine)));
}
