// The element types. Storage: f16, bf16, float, double. Arithmetic: double for double, float for all others.
//
// Vectors are loaded and stored 16 bytes at a time where the address allows it:
//
//   type     elements in 16 bytes     registers after widening
//   f16      8                        8
//   bf16     8                        8
//   float    4                        4
//   double   2                        4
#pragma once
#include "device.cuh"

template <class E> struct Storage { using arithmetic = float; };
template <> struct Storage<double> { using arithmetic = double; };
template <class E> using Arithmetic = typename Storage<E>::arithmetic;

// The value in the arithmetic type, exactly.
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(f16 x) { return __half2float(x); }
__device__ __forceinline__ float widen(bf16 x) { return __bfloat162float(x); }

// Rounds to the nearest E, ties to even.
template <class E> struct Narrow;
template <> struct Narrow<float> {
    static __device__ __forceinline__ float from(float x) { return x; }
    static __device__ __forceinline__ float from(double x) { return static_cast<float>(x); }
};
template <> struct Narrow<double> {
    static __device__ __forceinline__ double from(double x) { return x; }
};
// Returns a float that rounds to the same half as x does: x cut off, with the last bit set if something was cut off.
__device__ __forceinline__ float to_odd(double x) {
    const float near = static_cast<float>(x);
    u32 bits = __float_as_uint(near);
    if (fabs(static_cast<double>(near)) > fabs(x)) bits -= 1;
    if (static_cast<double>(near) != x) bits |= 1;
    return __uint_as_float(bits);
}
template <> struct Narrow<f16> {
    static __device__ __forceinline__ f16 from(float x) { return __float2half_rn(x); }
    static __device__ __forceinline__ f16 from(double x) { return from(to_odd(x)); }
};
template <> struct Narrow<bf16> {
    static __device__ __forceinline__ bf16 from(float x) { return __float2bfloat16_rn(x); }
    static __device__ __forceinline__ bf16 from(double x) { return from(to_odd(x)); }
};

// Rounds to the arithmetic of E in such a way that rounding to E afterwards is as one rounding.
template <class E> __device__ __forceinline__ Arithmetic<E> before_narrowing(float x) { return x; }
template <class E> __device__ __forceinline__ Arithmetic<E> before_narrowing(double x) {
    if constexpr (sizeof(E) == 2) return to_odd(x);
    return static_cast<Arithmetic<E>>(x);
}

// Returns -x if `minus` is 1 and x if it is 0, by one exclusive or.
__device__ __forceinline__ float flip(float x, u32 minus) { return __uint_as_float(__float_as_uint(x) ^ minus << 31); }
__device__ __forceinline__ double flip(double x, u32 minus) {
    return __longlong_as_double(__double_as_longlong(x) ^ static_cast<i64>(minus) << 63);
}

// log2 of the number of elements in 16 bytes.
template <class E> constexpr int LOG_VECTOR = sizeof(E) == 2 ? 3 : sizeof(E) == 4 ? 2 : 1;

// Whether lines that begin at p and are `stride` elements apart all begin at multiples of 16 bytes.
template <class E> __device__ __forceinline__ bool aligned(const E* p, i64 stride) {
    return ((reinterpret_cast<u64>(p) | static_cast<u64>(stride) * sizeof(E)) & 15) == 0;
}

// Loads N adjacent elements and widens them. If `wide`, and if N elements are 16 bytes, it is one load.
template <int N, class E> __device__ __forceinline__ void load(const E* p, Arithmetic<E>* v, bool wide) {
    if (N * sizeof(E) == 16 && wide) {
        union { uint4 raw; E element[16 / sizeof(E)]; } line;
        line.raw = *reinterpret_cast<const uint4*>(p);
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = widen(line.element[i]);
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = widen(p[i]);
    }
}

// Narrows N values and stores them side by side. If `wide`, and if N elements are 16 bytes, it is one store.
template <int N, class E> __device__ __forceinline__ void store(E* p, const Arithmetic<E>* v, bool wide) {
    if (N * sizeof(E) == 16 && wide) {
        union { uint4 raw; E element[16 / sizeof(E)]; } line;
#pragma unroll
        for (int i = 0; i < N; ++i) line.element[i] = Narrow<E>::from(v[i]);
        store16(reinterpret_cast<uint4*>(p), line.raw);
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) p[i] = Narrow<E>::from(v[i]);
    }
}
