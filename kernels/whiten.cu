// The kernels that calibration needs beside GEMM and SYRK: scaling by features, and symmetric matrices made whole.
//
//   scale_<arithmetic>       x(i, j) *= row[i]·column[j], either absent               W diag(d), diag(d) L
//   mirror_<arithmetic>      the lower triangle copied to the upper one               G after SYRK
//   shift_<arithmetic>       x(i, i) += delta                                         relative damping of G
//
// Matrices are column-major. Cost: scale moves 2·size bytes for each element. mirror reads and writes half of the
// matrix, in rows of 128 bytes. shift touches a sector of 32 bytes for each element of the diagonal. Figures:
// benches/NOTES.md.
#include "dtype.cuh"

// Multiplies element (i, j) of an m × n matrix by row[i]·column[j]; a null pointer stands for ones.
// Launch: 256 threads, grid (ceil(m / 256), min(n, 65535)).
template <class A>
__device__ __forceinline__ void scale(A* x, const A* row, const A* column, i64 m, i64 n, i64 ld) {
    const i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= m) return;
    const A r = row ? row[i] : A(1);
    for (i64 j = blockIdx.y; j < n; j += gridDim.y) x[j * ld + i] *= column ? r * column[j] : r;
}
extern "C" __global__ void __launch_bounds__(256)
    scale_f32(float* x, const float* row, const float* column, i64 m, i64 n, i64 ld) {
    scale(x, row, column, m, n, ld);
}
KERNEL(scale_f32)
extern "C" __global__ void __launch_bounds__(256)
    scale_f64(double* x, const double* row, const double* column, i64 m, i64 n, i64 ld) {
    scale(x, row, column, m, n, ld);
}
KERNEL(scale_f64)

// Copies the lower triangle of an n × n matrix to the upper one. Tiles go through shared memory to their places.
// Launch: 32 × 8 threads, grid (ceil(n / 32), ceil(n / 32)), 32·33·sizeof(arithmetic) bytes.
template <class A> __device__ __forceinline__ void mirror(A* x, i64 n, i64 ld) {
    DYNAMIC_SHARED(A, tile);
    const i64 i0 = static_cast<i64>(blockIdx.x) * 32, j0 = static_cast<i64>(blockIdx.y) * 32;
    if (i0 < j0) return;
    for (int k = threadIdx.y; k < 32; k += 8)
        if (i0 + threadIdx.x < n && j0 + k < n) tile[k * 33 + threadIdx.x] = x[(j0 + k) * ld + i0 + threadIdx.x];
    __syncthreads();
    for (int k = threadIdx.y; k < 32; k += 8) {
        const i64 i = i0 + k, j = j0 + threadIdx.x;
        if (i < n && j < n && i > j) x[i * ld + j] = tile[threadIdx.x * 33 + k];
    }
}
extern "C" __global__ void __launch_bounds__(256) mirror_f32(float* x, i64 n, i64 ld) { mirror(x, n, ld); }
KERNEL(mirror_f32)
extern "C" __global__ void __launch_bounds__(256) mirror_f64(double* x, i64 n, i64 ld) { mirror(x, n, ld); }
KERNEL(mirror_f64)

// Adds delta to the diagonal of an n × n matrix. Launch: 256 threads, ceil(n / 256) blocks.
template <class A> __device__ __forceinline__ void shift(A* x, A delta, i64 n, i64 ld) {
    const i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) x[i * ld + i] += delta;
}
extern "C" __global__ void __launch_bounds__(256) shift_f32(float* x, float delta, i64 n, i64 ld) {
    shift(x, delta, n, ld);
}
KERNEL(shift_f32)
extern "C" __global__ void __launch_bounds__(256) shift_f64(double* x, double delta, i64 n, i64 ld) {
    shift(x, delta, n, ld);
}
KERNEL(shift_f64)
