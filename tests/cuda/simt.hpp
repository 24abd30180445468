// Runs CUDA C++ kernels on the host, one fiber for each CUDA thread: what kernels/*.cu see in place of NVIDIA's
// headers.
//
//   kernels/*.cu  --g++ -fsanitize=thread-->  every load and store calls a hook in simt.cpp, which knows for each two
//                                             bytes who wrote and read them, and in which order barriers put them
//
// Found: races in shared and global memory, also between blocks; accesses out of bounds, misaligned, or to memory that
// nothing was written to; barriers that not all threads reach; shuffles in divergent code or outside their mask.
// Not found, because it is below the source: what nvcc makes of it, bank conflicts, occupancy, speed; fused
// multiply-adds that nvcc may form (kernels that must not have them say so); ordering between blocks that wait for each
// other. An intrinsic that is missing here is a compile error.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#define NOTSAN __attribute__((no_sanitize("thread")))
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__ __restrict
#define __shared__ static __attribute__((section("simt_shared")))
#define DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(simt::dyn_shared())

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct uint3 {
    unsigned x, y, z;
};
#define SIMT_VEC(T, N2, N4)                                      \
    struct alignas(2 * sizeof(T)) N2 {                           \
        T x, y;                                                  \
    };                                                           \
    struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) N4 { \
        T x, y, z, w;                                            \
    };                                                           \
    inline N2 make_##N2(T x, T y) {                              \
        return {x, y};                                           \
    }                                                            \
    inline N4 make_##N4(T x, T y, T z, T w) {                    \
        return {x, y, z, w};                                     \
    }
SIMT_VEC(float, float2, float4);
SIMT_VEC(int, int2, int4);
SIMT_VEC(unsigned, uint2, uint4);
SIMT_VEC(double, double2, double4);

namespace simt {
enum Order { FORWARD, REVERSE, RANDOM, WARP_RANDOM };
struct Options {
    Order order = RANDOM;
    uint64_t seed = 1;
    bool races = true;
    size_t stack = 64 << 10;
};
struct Report {
    std::vector<std::string> errors;
    uint64_t accesses = 0, switches = 0;
    std::vector<std::pair<uintptr_t, bool>> touched;  // allocations that the launch read, or (true) wrote
};
using Call = void (*)(void** params);
struct Kernel {
    const char* name;
    Call call;
    std::vector<size_t> sizes;
};
std::vector<Kernel>& kernels();
const Kernel* find(const char* name);
Report launch(const Kernel&, dim3 grid, dim3 block, size_t shared_bytes, void** params, const Options&);
// device memory known to the checker (an access elsewhere is an error once one is known)
void mem_add(void* p, size_t n, bool initialised);
void mem_del(void* p);
void mem_init(void* p, size_t n, bool initialised);
bool mem_is_init(const void* p, size_t n);

struct Tid {
    uint3 tid, bid;
    dim3 bdim, gdim;
    int lane;
};
extern Tid* cur;  // the fiber now running
void* dyn_shared();
// An error if `p` is in shared memory: what a store spelled for global memory would miss on a card.
void expect_global(const void* p);
void sync_block(int line);
void sync_warp(unsigned mask, int line);
// every lane of mask brings v; out[] gets all 32 values once all of mask are there
const uint64_t* exchange(unsigned mask, uint64_t v, int kind, int line, unsigned* present);
void note_atomic(const void* p, size_t n);
void error(const char* fmt, ...);

template <class T>
NOTSAN inline uint64_t bits(T v) {
    static_assert(sizeof(T) <= 8);
    uint64_t u = 0;
    memcpy(&u, &v, sizeof v);
    return u;
}
template <class T>
NOTSAN inline T unbits(uint64_t u) {
    T v;
    memcpy(&v, &u, sizeof v);
    return v;
}
template <class T>
NOTSAN T shfl(unsigned mask, T v, int src, int width, bool clamp_self, int line) {
    (void)clamp_self;
    unsigned present;
    const uint64_t* all = exchange(mask, bits(v), 1, line, &present);
    int lane = cur->lane, base = lane & ~(width - 1);
    if (src < base || src >= base + width) return v;  // out of the segment: own value
    if (!(present >> src & 1)) {
        error("line %d: shuffle reads lane %d, not in mask %08x", line, src, mask);
        return unbits<T>(~0ull);
    }
    return unbits<T>(all[src]);
}
template <class F, class... A, size_t... I>
NOTSAN void apply(F f, void** p, std::index_sequence<I...>, void (*)(A...)) {
    f(*static_cast<std::remove_reference_t<A>*>(p[I])...);
}
template <class... A>
std::vector<size_t> sizes(void (*)(A...)) {
    return {sizeof(A)...};
}
template <class... A>
constexpr size_t arity(void (*)(A...)) {
    return sizeof...(A);
}
template <auto F>
NOTSAN void call(void** p) {
    apply(F, p, std::make_index_sequence<arity(F)>{}, F);
}
struct Registration {
    Registration(const char* n, Call c, std::vector<size_t> s) { kernels().push_back({n, c, std::move(s)}); }
};
template <class T, class F>
NOTSAN T atomic(T* p, F f) {
    note_atomic(p, sizeof(T));
    T old = *p;
    *p = f(old);
    return old;
}
}  // namespace simt

#define KERNEL(name) static simt::Registration simt_registration_##name(#name, &simt::call<&name>, simt::sizes(&name));
namespace simt {  // by value and not instrumented: an index is a register, not memory
NOTSAN inline uint3 tid() {
    return cur->tid;
}
NOTSAN inline uint3 bid() {
    return cur->bid;
}
NOTSAN inline dim3 bdim() {
    return cur->bdim;
}
NOTSAN inline dim3 gdim() {
    return cur->gdim;
}
}  // namespace simt
#define threadIdx (simt::tid())
#define blockIdx (simt::bid())
#define blockDim (simt::bdim())
#define gridDim (simt::gdim())
constexpr int warpSize = 32;
#define __syncthreads() simt::sync_block(__LINE__)
#define __syncwarp(...) simt::sync_warp((__VA_ARGS__ + 0) ? (__VA_ARGS__ + 0) : ~0u, __LINE__)
template <class T>
NOTSAN inline T __shfl_sync(unsigned m, T v, int src, int w = 32) {
    return simt::shfl(m, v, (simt::cur->lane & ~(w - 1)) + (src & (w - 1)), w, false, 0);
}
template <class T>
NOTSAN inline T __shfl_xor_sync(unsigned m, T v, int x, int w = 32) {
    return simt::shfl(m, v, simt::cur->lane ^ x, w, true, 0);
}
template <class T>
NOTSAN inline T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32) {
    return simt::shfl(m, v, simt::cur->lane + (int)d, w, true, 0);
}
template <class T>
NOTSAN inline T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32) {
    return simt::shfl(m, v, simt::cur->lane - (int)d, w, true, 0);
}
NOTSAN inline unsigned __ballot_sync(unsigned m, int p) {
    unsigned present, r = 0;
    const uint64_t* a = simt::exchange(m, p != 0, 2, 0, &present);
    for (int i = 0; i < 32; ++i)
        if ((present >> i & 1) && a[i]) r |= 1u << i;
    return r;
}
NOTSAN inline int __any_sync(unsigned m, int p) {
    return __ballot_sync(m, p) != 0;
}
NOTSAN inline int __all_sync(unsigned m, int p) {
    return __ballot_sync(m, p) == m;
}
template <class T>
NOTSAN inline T atomicAdd(T* p, T v) {
    return simt::atomic(p, [=](T o) { return T(o + v); });
}
template <class T>
NOTSAN inline T atomicMax(T* p, T v) {
    return simt::atomic(p, [=](T o) { return o < v ? v : o; });
}
template <class T>
NOTSAN inline T atomicMin(T* p, T v) {
    return simt::atomic(p, [=](T o) { return v < o ? v : o; });
}
template <class T>
NOTSAN inline T atomicExch(T* p, T v) {
    return simt::atomic(p, [=](T) { return v; });
}
template <class T>
NOTSAN inline T atomicCAS(T* p, T c, T v) {
    return simt::atomic(p, [=](T o) { return o == c ? v : o; });
}
inline void __threadfence() {}
inline void __threadfence_block() {}

inline unsigned __umulhi(unsigned a, unsigned b) {
    return unsigned((uint64_t(a) * b) >> 32);
}
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
    return uint64_t((unsigned __int128)a * b >> 64);
}
inline int __popc(unsigned v) {
    return __builtin_popcount(v);
}
inline int __clz(int v) {
    return v ? __builtin_clz(unsigned(v)) : 32;
}
inline int __ffs(int v) {
    return __builtin_ffs(v);
}
NOTSAN inline unsigned __float_as_uint(float f) {
    return simt::unbits<unsigned>(simt::bits(f));
}
NOTSAN inline float __uint_as_float(unsigned u) {
    return simt::unbits<float>(u);
}
template <class T>
inline T __ldg(const T* p) {
    return *p;
}
inline float rsqrtf(float x) {
    return 1.0f / std::sqrt(x);
}
inline float __fmaf_rn(float a, float b, float c) {
    return std::fmaf(a, b, c);
}
inline float __fsqrt_rn(float x) {
    return std::sqrt(x);
}
NOTSAN inline long long __double_as_longlong(double x) {
    return simt::unbits<long long>(simt::bits(x));
}
NOTSAN inline double __longlong_as_double(long long x) {
    return simt::unbits<double>(simt::bits(x));
}
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline void sincospif(float x, float* s, float* c) {
    double t = 3.14159265358979323846 * double(x);
    *s = float(std::sin(t));
    *c = float(std::cos(t));
}
template <class T>
inline T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
    return a < b ? b : a;
}

// own half types: storage + IEEE round-to-nearest-even conversions only
struct __half {
    uint16_t u;
};
struct __nv_bfloat16 {
    uint16_t u;
};
NOTSAN inline float __bfloat162float(__nv_bfloat16 h) {
    return __uint_as_float(unsigned(h.u) << 16);
}
NOTSAN inline __nv_bfloat16 __float2bfloat16_rn(float f) {
    unsigned u = __float_as_uint(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
    return {uint16_t((u + 0x7fffu + (u >> 16 & 1)) >> 16)};
}
NOTSAN inline float __half2float(__half h) {
    unsigned s = (h.u & 0x8000u) << 16, e = h.u >> 10 & 31, m = h.u & 1023;
    if (e == 31) return __uint_as_float(s | 0x7f800000u | m << 13);
    if (e) return __uint_as_float(s | (e + 112) << 23 | m << 13);
    float v = std::ldexp(float(m), -24);
    return s ? -v : v;
}
NOTSAN inline __half __float2half_rn(float f) {
    unsigned u = __float_as_uint(f), s = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return {0x7fff};
    if (a >= 0x477ff000u) return {uint16_t(s | 0x7c00u)};  // >= 65520 -> inf
    if (a < 0x38800000u)
        return {uint16_t(s | unsigned(std::nearbyint(std::ldexp(__uint_as_float(a), 24))))};  // subnormal
    a += 0xfffu + (a >> 13 & 1);
    return {uint16_t(s | (a - 0x38000000u) >> 13)};
}
