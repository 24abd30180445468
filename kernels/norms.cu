// Reductions, each in one sweep: the largest modulus, the sum of squares and whether all elements are finite, which a
// factorization asks for before and after; the inner product of two panels; the trace.
//
//   statistics_<dtype>       {max |x|, Σ x², number of NaN and infinities}, in f64, one triple for each block
//   dot_<arithmetic>         Σ x(i, j) y(i, j), in f64, one sum for each block
//   trace_<arithmetic>       Σ x(i, i), in f64
//   peaks_<arithmetic>       the entry of largest modulus of each line, with its sign
//
// The host adds the blocks' results in order, so the sum depends on the shape alone. Cost: one read of the matrix; its
// f64 operations take less. Figures: benches/NOTES.md.
#include "dtype.cuh"
#include "reduce.cuh"

// Writes the triples of `lines` lines of `width` elements, `ld` apart; block b takes lines b, b + blocks, ....
// Launch: 256 threads, any number of blocks up to `lines`, 24·8 bytes.
template <class E>
__device__ __forceinline__ void statistics(const E* __restrict__ x, double* __restrict__ partial, i64 lines, i64 width,
                                           i64 ld) {
    DYNAMIC_SHARED(double, shared);
    constexpr int V = 16 / sizeof(E);
    double largest = 0, squares = 0, bad = 0;
    const auto take = [&](double x) {
        const double v = fabs(x);
        if (v < HUGE_VAL) {
            largest = fmax(largest, v);
            squares += v * v;
        } else {
            bad += 1;
        }
    };
    const bool wide = aligned(x, ld);
    for (i64 i = blockIdx.x; i < lines; i += gridDim.x) {
        const E* const line = x + i * ld;
        for (i64 j = static_cast<i64>(threadIdx.x) * V; j < width; j += static_cast<i64>(blockDim.x) * V) {
            if (j + V <= width) {
                Arithmetic<E> v[V];
                load<V>(line + j, v, wide);
#pragma unroll
                for (int k = 0; k < V; ++k) take(v[k]);
            } else {
                for (i64 k = j; k < width; ++k) take(widen(line[k]));
            }
        }
    }
    const auto add = [](double a, double b) { return a + b; };
    const auto most = [](double a, double b) { return fmax(a, b); };
    largest = reduce_block(largest, 0.0, shared, most);
    squares = reduce_block(squares, 0.0, shared + 8, add);
    bad = reduce_block(bad, 0.0, shared + 16, add);
    if (threadIdx.x == 0) {
        partial[3 * blockIdx.x] = largest;
        partial[3 * blockIdx.x + 1] = squares;
        partial[3 * blockIdx.x + 2] = bad;
    }
}
#define STATISTICS(NAME, E)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        NAME(const E* x, double* partial, i64 lines, i64 width, i64 ld) {                                           \
        statistics<E>(x, partial, lines, width, ld);                                                                \
    }                                                                                                               \
    KERNEL(NAME)
STATISTICS(statistics_f32, float)
STATISTICS(statistics_f16, f16)
STATISTICS(statistics_bf16, bf16)
STATISTICS(statistics_f64, double)

// Writes the sums of the products of `lines` lines of `width` elements, `ldx` and `ldy` apart; block b takes lines b,
// b + blocks, ....
// Launch: 256 threads, any number of blocks up to `lines`, 8·8 bytes.
template <class A>
__device__ __forceinline__ void dot(const A* __restrict__ x, const A* __restrict__ y, double* __restrict__ partial,
                                    i64 lines, i64 width, i64 ldx, i64 ldy) {
    DYNAMIC_SHARED(double, shared);
    constexpr int V = 16 / sizeof(A);
    double sum = 0;
    const bool wide = aligned(x, ldx) && aligned(y, ldy);
    for (i64 i = blockIdx.x; i < lines; i += gridDim.x) {
        const A *const a = x + i * ldx, *const b = y + i * ldy;
        for (i64 j = static_cast<i64>(threadIdx.x) * V; j < width; j += static_cast<i64>(blockDim.x) * V) {
            if (j + V <= width) {
                A v[V], w[V];
                load<V>(a + j, v, wide);
                load<V>(b + j, w, wide);
#pragma unroll
                for (int k = 0; k < V; ++k) sum += static_cast<double>(v[k]) * w[k];
            } else {
#pragma unroll 1
                for (i64 k = j; k < width; ++k) sum += static_cast<double>(a[k]) * b[k];
            }
        }
    }
    sum = reduce_block(sum, 0.0, shared, [](double a, double b) { return a + b; });
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
extern "C" __global__ void __launch_bounds__(256)
    dot_f32(const float* x, const float* y, double* partial, i64 lines, i64 width, i64 ldx, i64 ldy) {
    dot(x, y, partial, lines, width, ldx, ldy);
}
KERNEL(dot_f32)
extern "C" __global__ void __launch_bounds__(256)
    dot_f64(const double* x, const double* y, double* partial, i64 lines, i64 width, i64 ldx, i64 ldy) {
    dot(x, y, partial, lines, width, ldx, ldy);
}
KERNEL(dot_f64)

// Writes the sum of the diagonal of an n × n matrix. Launch: 256 threads, one block, 8·8 bytes.
template <class A>
__device__ __forceinline__ void trace(const A* __restrict__ x, double* __restrict__ sum, i64 n, i64 ld) {
    DYNAMIC_SHARED(double, shared);
    double part = 0;
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) part += x[i * ld + i];
    part = reduce_block(part, 0.0, shared, [](double a, double b) { return a + b; });
    if (threadIdx.x == 0) *sum = part;
}
extern "C" __global__ void __launch_bounds__(256) trace_f32(const float* x, double* sum, i64 n, i64 ld) {
    trace(x, sum, n, ld);
}
KERNEL(trace_f32)
extern "C" __global__ void __launch_bounds__(256) trace_f64(const double* x, double* sum, i64 n, i64 ld) {
    trace(x, sum, n, ld);
}
KERNEL(trace_f64)

// Writes the entry of largest modulus of each line of `width` elements, of several the first one. Launch: 256 threads, a
// block for each line, 24·8 bytes.
template <class A>
__device__ __forceinline__ void peaks(const A* __restrict__ x, A* __restrict__ peak, i64 width, i64 ld) {
    DYNAMIC_SHARED(double, shared);
    const A* const line = x + blockIdx.x * ld;
    double most = -1, first = 0;
    for (i64 j = threadIdx.x; j < width; j += blockDim.x) {
        const double v = fabs(static_cast<double>(line[j]));
        if (v > most) {
            most = v;
            first = static_cast<double>(j);
        }
    }
    const double largest = reduce_block(most, -1.0, shared, [](double a, double b) { return fmax(a, b); });
    if (threadIdx.x == 0) shared[8] = largest;
    __syncthreads();
    const double none = static_cast<double>(width);
    first = reduce_block(most == shared[8] ? first : none, none, shared + 9, [](double a, double b) { return fmin(a, b); });
    if (threadIdx.x == 0) peak[blockIdx.x] = line[static_cast<i64>(first)];
}
extern "C" __global__ void __launch_bounds__(256) peaks_f32(const float* x, float* peak, i64 width, i64 ld) {
    peaks(x, peak, width, ld);
}
KERNEL(peaks_f32)
extern "C" __global__ void __launch_bounds__(256) peaks_f64(const double* x, double* peak, i64 width, i64 ld) {
    peaks(x, peak, width, ld);
}
KERNEL(peaks_f64)
