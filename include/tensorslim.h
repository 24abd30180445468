/*
 * The C interface of tensorslim: low-rank factorization of matrices, with a certificate.
 *
 * Made of src/capi by cbindgen; do not edit.
 *
 * Numbers    An int32_t named rule, method, dtype, .. takes a constant of the enum that its function names. Sizes are
 *            in elements unless they are said to be bytes. Matrices are m × n; a sample is a row.
 * Failures   A function returns TENSORSLIM_STATUS_OK or the kind of its failure, which its text here names without
 *            TENSORSLIM_STATUS_; tensorslim_last_error() has the text. NULL, wrong sizes, strides that overlap and
 *            unknown numbers are failures. Memory that is not there, or was freed, cannot be found out.
 * Ownership  A handle belongs to the caller until the function named .._free of its kind takes it. Buffers and matrices
 *            are the caller's; no address of them is kept after a call.
 * Threads    Calls may run at the same time on any threads, as long as no call changes (update, merge, set, free) a
 *            handle that another one uses. Work is shared by one pool of RAYON_NUM_THREADS threads; the same seed gives
 *            the same bits for any number of them.
 * Build      cc $(pkg-config --cflags tensorslim) program.c $(pkg-config --libs tensorslim)
 */

#ifndef TENSORSLIM_H
#define TENSORSLIM_H

#include <stddef.h>
#include <stdint.h>

/**
 * What a function returns. Anything but TENSORSLIM_STATUS_OK is a failure; tensorslim_last_error() has its text.
 */
typedef enum tensorslim_status {
    /**
     * Done.
     */
    TENSORSLIM_STATUS_OK = 0,
    /**
     * A pointer that must not be NULL is.
     */
    TENSORSLIM_STATUS_NULL_POINTER = 1,
    /**
     * Two sizes that must agree do not.
     */
    TENSORSLIM_STATUS_SHAPE = 2,
    /**
     * A dimension is zero.
     */
    TENSORSLIM_STATUS_EMPTY = 3,
    /**
     * A shape, or its bytes, does not fit the address space.
     */
    TENSORSLIM_STATUS_TOO_LARGE = 4,
    /**
     * Strides place two elements at one address, or two matrices share memory that must not.
     */
    TENSORSLIM_STATUS_OVERLAP = 5,
    /**
     * The axes of a tensor cannot be merged without a copy.
     */
    TENSORSLIM_STATUS_LAYOUT = 6,
    /**
     * An address is not a multiple of the size of its elements.
     */
    TENSORSLIM_STATUS_MISALIGNED = 7,
    /**
     * A matrix has a NaN or an infinity.
     */
    TENSORSLIM_STATUS_NOT_FINITE = 8,
    /**
     * A rank is below 1 or above the smaller side of the matrix.
     */
    TENSORSLIM_STATUS_RANK = 9,
    /**
     * An option is outside its range, or does not go with the others.
     */
    TENSORSLIM_STATUS_OPTION = 10,
    /**
     * A value does not fit the arithmetic.
     */
    TENSORSLIM_STATUS_RANGE = 11,
    /**
     * No Hadamard matrix of this library has that order.
     */
    TENSORSLIM_STATUS_ORDER = 12,
    /**
     * The scheme of a rotation does not take vectors of that length.
     */
    TENSORSLIM_STATUS_ROTATION = 13,
    /**
     * An iteration did not converge.
     */
    TENSORSLIM_STATUS_NO_CONVERGENCE = 14,
    /**
     * The memory limit is below what the most frugal way needs.
     */
    TENSORSLIM_STATUS_MEMORY = 15,
    /**
     * A bug of this library. Handles that the call could change may be freed, and nothing else.
     */
    TENSORSLIM_STATUS_INTERNAL = 16,
    /**
     * The progress function said to stop.
     */
    TENSORSLIM_STATUS_CANCELLED = 17,
    /**
     * A device cannot be used, or failed.
     */
    TENSORSLIM_STATUS_DEVICE = 18,
    /**
     * A file, or what a function of the caller reads, cannot be read or written.
     */
    TENSORSLIM_STATUS_FILE = 19,
    /**
     * Bytes do not have the format that they should have.
     */
    TENSORSLIM_STATUS_FORMAT = 20,
    /**
     * A buffer is too small; the size that it needs has been written.
     */
    TENSORSLIM_STATUS_BUFFER = 21,
    /**
     * A rank of a distributed factorization failed.
     */
    TENSORSLIM_STATUS_REMOTE = 22,
} tensorslim_status;

/**
 * The element types of matrices. f16 is IEEE binary16, bf16 the upper half of a binary32; both are 16-bit words in C.
 */
typedef enum tensorslim_dtype {
    /**
     * IEEE binary16.
     */
    TENSORSLIM_DTYPE_F16 = 0,
    /**
     * bfloat16.
     */
    TENSORSLIM_DTYPE_BF16 = 1,
    /**
     * float.
     */
    TENSORSLIM_DTYPE_F32 = 2,
    /**
     * double.
     */
    TENSORSLIM_DTYPE_F64 = 3,
} tensorslim_dtype;

/**
 * What is kept of the samples X, one per row.
 */
typedef enum tensorslim_calibration_form {
    /**
     * The Gram matrix of X, summed in double.
     */
    TENSORSLIM_CALIBRATION_FORM_GRAM = 0,
    /**
     * The Gram matrix of X, whose blocks are multiplied in float: twice as fast, correct to 1e-6 of the norm.
     */
    TENSORSLIM_CALIBRATION_FORM_GRAM_F32 = 1,
    /**
     * The triangular factor of X: twice the digits for small directions, at four times the work.
     */
    TENSORSLIM_CALIBRATION_FORM_FACTOR = 2,
} tensorslim_calibration_form;

/**
 * What is done with a sample that has a NaN or an infinity.
 */
typedef enum tensorslim_calibration_non_finite {
    /**
     * The whole block is refused and changes nothing.
     */
    TENSORSLIM_CALIBRATION_NON_FINITE_REFUSE = 0,
    /**
     * The sample is left out and counted.
     */
    TENSORSLIM_CALIBRATION_NON_FINITE_SKIP = 1,
} tensorslim_calibration_non_finite;

/**
 * Which part of the statistics weights the error.
 */
typedef enum tensorslim_calibration_part {
    /**
     * All second moments: the optimum for the samples.
     */
    TENSORSLIM_CALIBRATION_PART_FULL = 0,
    /**
     * The mean square of each feature, as if features were independent.
     */
    TENSORSLIM_CALIBRATION_PART_DIAGONAL = 1,
} tensorslim_calibration_part;

/**
 * The rule for the rank k of a matrix A of m × n elements, and what its value means.
 */
typedef enum tensorslim_rank {
    /**
     * This rank, a whole number from 1 to the smaller side.
     */
    TENSORSLIM_RANK_FIXED = 0,
    /**
     * The largest rank whose k (m + n + 1) numbers are at least this many times fewer than m n.
     */
    TENSORSLIM_RANK_RATIO = 1,
    /**
     * The smallest rank that keeps this share of the squared norm, above 0 and at most 1.
     */
    TENSORSLIM_RANK_ENERGY = 2,
    /**
     * The smallest rank with a relative error of at most this, above 0 and below 1.
     */
    TENSORSLIM_RANK_TOLERANCE = 3,
    /**
     * The smallest rank whose outputs on calibration inputs have at least this cosine with the true ones, above 0 and
     * below 1.
     */
    TENSORSLIM_RANK_QUALITY = 4,
    /**
     * The number of singular values above this one, 0 or more, or 1 if there is none.
     */
    TENSORSLIM_RANK_ABOVE = 5,
} tensorslim_rank;

/**
 * The method of a factorization.
 */
typedef enum tensorslim_method {
    /**
     * The cheapest method that is never less accurate than the randomized one.
     */
    TENSORSLIM_METHOD_AUTO = 0,
    /**
     * The optimum, by a QR and a dense SVD.
     */
    TENSORSLIM_METHOD_FULL = 1,
    /**
     * Eigenvectors of the Gram matrix on the short side.
     */
    TENSORSLIM_METHOD_GRAM = 2,
    /**
     * A randomized range finder with power iterations.
     */
    TENSORSLIM_METHOD_RANDOMIZED = 3,
    /**
     * Block Krylov iteration.
     */
    TENSORSLIM_METHOD_KRYLOV = 4,
    /**
     * Three sketches of one pass.
     */
    TENSORSLIM_METHOD_SINGLE_PASS = 5,
    /**
     * Two sketches of one pass.
     */
    TENSORSLIM_METHOD_NYSTROM = 6,
} tensorslim_method;

/**
 * The random matrix of a factorization.
 */
typedef enum tensorslim_sketch {
    /**
     * Independent normals.
     */
    TENSORSLIM_SKETCH_GAUSSIAN = 0,
    /**
     * A subsampled randomized Hadamard transform, the default.
     */
    TENSORSLIM_SKETCH_SRHT = 1,
    /**
     * Eight entries in each row.
     */
    TENSORSLIM_SKETCH_SPARSE_SIGN = 2,
} tensorslim_sketch;

/**
 * A part of the factors.
 */
typedef enum tensorslim_part {
    /**
     * The left singular vectors, m × k, orthonormal columns.
     */
    TENSORSLIM_PART_U = 0,
    /**
     * The singular values, k × 1, nonincreasing.
     */
    TENSORSLIM_PART_S = 1,
    /**
     * The right singular vectors, k × n, orthonormal rows.
     */
    TENSORSLIM_PART_VT = 2,
} tensorslim_part;

/**
 * The place of the singular values when the factors become two layers, up (m × k) and down (k × n).
 */
typedef enum tensorslim_split {
    /**
     * up = U diag(s), down = Vᵀ.
     */
    TENSORSLIM_SPLIT_LEFT = 0,
    /**
     * up = U, down = diag(s) Vᵀ.
     */
    TENSORSLIM_SPLIT_RIGHT = 1,
    /**
     * up = U diag(√s), down = diag(√s) Vᵀ.
     */
    TENSORSLIM_SPLIT_BALANCED = 2,
} tensorslim_split;

/**
 * What a budget counts.
 */
typedef enum tensorslim_cost {
    /**
     * Numbers: k (m + n + 1) for factors, m n for a layer that stays whole.
     */
    TENSORSLIM_COST_PARAMETERS = 0,
    /**
     * Their bytes in the element type of the layer.
     */
    TENSORSLIM_COST_BYTES = 1,
    /**
     * Multiplications and additions for each sample.
     */
    TENSORSLIM_COST_FLOPS = 2,
} tensorslim_cost;

/**
 * How a budget is shared.
 */
typedef enum tensorslim_sharing {
    /**
     * So that the sum of all losses is least. They need one unit: losses weighted by output statistics have it.
     */
    TENSORSLIM_SHARING_LEAST_LOSS = 0,
    /**
     * So that all layers are reduced alike.
     */
    TENSORSLIM_SHARING_ALIKE = 1,
} tensorslim_sharing;

/**
 * The threads that a transform runs on. Results have the same bits on any number of them.
 */
typedef enum tensorslim_threads {
    /**
     * Those of the pool, as many as RAYON_NUM_THREADS says or the machine has.
     */
    TENSORSLIM_THREADS_POOL = 0,
    /**
     * The calling thread alone.
     */
    TENSORSLIM_THREADS_ONE = 1,
} tensorslim_threads;

/**
 * How a transform is scaled.
 */
typedef enum tensorslim_scale {
    /**
     * The entries of H are +1 and -1.
     */
    TENSORSLIM_SCALE_PLAIN = 0,
    /**
     * H is divided by the square root of its order, and so orthogonal.
     */
    TENSORSLIM_SCALE_ORTHONORMAL = 1,
} tensorslim_scale;

/**
 * How a rotation is made of transforms, and which lengths n it takes.
 */
typedef enum tensorslim_scheme {
    /**
     * One transform of the whole vector, for the lengths that have one: b 2^t.
     */
    TENSORSLIM_SCHEME_ORDER = 0,
    /**
     * A transform of each block, of a length that divides n.
     */
    TENSORSLIM_SCHEME_BLOCKS = 1,
    /**
     * Four rounds that mix all elements, for even lengths and 1.
     */
    TENSORSLIM_SCHEME_KAC = 2,
    /**
     * One transform of the vector and zeros behind it, for every length; it has more outputs than inputs unless n is a
     * power of two.
     */
    TENSORSLIM_SCHEME_PADDED = 3,
} tensorslim_scheme;

/**
 * Statistics of the samples that a layer meets: it is fed with blocks of them and weights a factorization.
 */
typedef struct tensorslim_calibration tensorslim_calibration;

/**
 * The factors U (m × k), s (k) and Vᵀ (k × n) of a matrix, with their report.
 */
typedef struct tensorslim_factors tensorslim_factors;

/**
 * A seeded orthogonal rotation of vectors. Its bits are the same on every machine and in every version.
 */
typedef struct tensorslim_rotation tensorslim_rotation;

/**
 * The options of a factorization.
 */
typedef struct tensorslim_svd tensorslim_svd;

/**
 * A matrix that is only read. Element (i, j) is at data + i * row_stride + j * col_stride, counted in elements.
 * Strides may be negative. All memory from the element of lowest address to that of the highest must be readable, and
 * nobody may write to it during a call.
 */
typedef struct tensorslim_matrix {
    /**
     * The address of element (0, 0), a multiple of the size of an element.
     */
    const void *data;
    /**
     * The number of rows.
     */
    size_t rows;
    /**
     * The number of columns.
     */
    size_t cols;
    /**
     * The distance from a row to the next one, in elements: cols for a C array, 1 for a Fortran one.
     */
    ptrdiff_t row_stride;
    /**
     * The distance from a column to the next one, in elements: 1 for a C array, rows for a Fortran one.
     */
    ptrdiff_t col_stride;
    /**
     * A tensorslim_dtype.
     */
    int32_t dtype;
} tensorslim_matrix;

/**
 * A function that hears how many bytes of the matrix were read since its last call, and returns 0 to go on or anything
 * else to stop. It may be called from another thread, from one at a time. It must not throw, jump, or call this
 * library with a handle that is in use.
 */
typedef int32_t (*tensorslim_progress)(uint64_t bytes, void *context);

/**
 * A function that fills `to` with `count` lines from line `first` on, one after another without gaps, and returns 0,
 * or anything else if it cannot. A line is a row, or a column of a matrix that is stored by columns. It may be called
 * from another thread, from one at a time, for any lines and for the same ones again. `to` is aligned for its elements.
 * It must not throw, jump, or call this library with a handle that is in use.
 */
typedef int32_t (*tensorslim_read_lines)(size_t first, size_t count, void *to, void *context);

/**
 * A matrix that is read in blocks, as often as a method needs.
 */
typedef struct tensorslim_source {
    /**
     * Reads lines.
     */
    tensorslim_read_lines read;
    /**
     * What `read` is called with.
     */
    void *context;
    /**
     * The number of rows.
     */
    size_t rows;
    /**
     * The number of columns.
     */
    size_t cols;
    /**
     * A tensorslim_dtype.
     */
    int32_t dtype;
    /**
     * 0 if lines are rows, anything else if they are columns.
     */
    int32_t by_columns;
} tensorslim_source;

/**
 * A matrix that is written, with the fields of tensorslim_matrix. The memory between its elements is left alone.
 */
typedef struct tensorslim_matrix_mut {
    /**
     * The address of element (0, 0), a multiple of the size of an element.
     */
    void *data;
    /**
     * The number of rows.
     */
    size_t rows;
    /**
     * The number of columns.
     */
    size_t cols;
    /**
     * The distance from a row to the next one, in elements.
     */
    ptrdiff_t row_stride;
    /**
     * The distance from a column to the next one, in elements.
     */
    ptrdiff_t col_stride;
    /**
     * A tensorslim_dtype.
     */
    int32_t dtype;
} tensorslim_matrix_mut;

/**
 * The numbers of a report. Later versions may append fields; see tensorslim_factors_report.
 */
typedef struct tensorslim_report {
    /**
     * The rows of the matrix, m.
     */
    size_t rows;
    /**
     * The columns of the matrix, n.
     */
    size_t cols;
    /**
     * The rank of the factors, k.
     */
    size_t rank;
    /**
     * The columns beyond the rank that the panels had.
     */
    size_t oversample;
    /**
     * The power iterations that were asked for.
     */
    size_t power_iterations;
    /**
     * How often the matrix was read.
     */
    size_t passes;
    /**
     * The most bytes that were allocated.
     */
    size_t peak_bytes;
    /**
     * The numbers in the matrix, m n.
     */
    size_t params_before;
    /**
     * The numbers in the factors, k (m + n + 1).
     */
    size_t params_after;
    /**
     * The number of notes; see tensorslim_factors_note.
     */
    size_t notes;
    /**
     * The seed.
     */
    uint64_t seed;
    /**
     * The norm of the matrix (Frobenius).
     */
    double norm;
    /**
     * The norm of the error over that of the matrix.
     */
    double relative_error;
    /**
     * The standard deviation of relative_error, 0 if it is exact.
     */
    double error_std_dev;
    /**
     * The probes that relative_error is an estimate from, 0 if it is exact.
     */
    size_t error_probes;
    /**
     * The wall time of the call, in seconds.
     */
    double seconds;
    /**
     * The samples of the input statistics; 0 without them.
     */
    uint64_t samples;
    /**
     * The samples of the output statistics; 0 without them.
     */
    uint64_t output_samples;
    /**
     * The relative error as the statistics see it; NaN without them.
     */
    double weighted_error;
    /**
     * The norm of the matrix as the statistics see it; NaN without them.
     */
    double weighted_norm;
    /**
     * The cosine between outputs before and after, all samples together; NaN without statistics.
     */
    double cosine;
    /**
     * The element type of the matrix, a tensorslim_dtype.
     */
    int32_t dtype;
    /**
     * The arithmetic, a tensorslim_dtype.
     */
    int32_t precision;
    /**
     * The method that gave the factors, a tensorslim_method.
     */
    int32_t method;
    /**
     * The random matrix, a tensorslim_sketch; -1 for none.
     */
    int32_t sketch;
} tensorslim_report;

/**
 * A layer that shares a budget.
 */
typedef struct tensorslim_layer {
    /**
     * The number of rows.
     */
    size_t rows;
    /**
     * The number of columns.
     */
    size_t cols;
    /**
     * The singular values, `count` of them, nonincreasing; ranks beyond them are not considered. See
     * tensorslim_factors_spectrum.
     */
    const double *spectrum;
    /**
     * The losses that the ranks save, `count` of them in their order, in place of the squares of `spectrum`, which is
     * then not read; NULL for none.
     */
    const double *savings;
    /**
     * How many values there are.
     */
    size_t count;
    /**
     * The squared norm, which is the loss at rank 0: at least the sum of what is saved.
     */
    double norm_squared;
    /**
     * The factor by which the loss of this layer counts; 1 for the loss as it is.
     */
    double weight;
    /**
     * The least rank; 0 is taken as 1.
     */
    size_t least;
    /**
     * The largest rank; 0 for any.
     */
    size_t most;
    /**
     * A tensorslim_dtype, for TENSORSLIM_COST_BYTES.
     */
    int32_t dtype;
    /**
     * Anything but 0 if the layer must stay whole.
     */
    int32_t keep;
} tensorslim_layer;

/**
 * What a budget gives.
 */
typedef struct tensorslim_allocation {
    /**
     * The cost of all layers together.
     */
    uint64_t total;
    /**
     * Their weighted losses together.
     */
    double loss;
    /**
     * A lower bound of the loss within the budget; equal to `loss` if the search was complete.
     */
    double bound;
} tensorslim_allocation;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Returns the version of the library, such as "0.1.0". The text lives for ever.
 */
const char *tensorslim_version(void);

/**
 * Returns the text of the last failure on the calling thread, one line of UTF-8; empty if there was none. It lives
 * until the next failure on this thread, or the end of the thread.
 */
const char *tensorslim_last_error(void);

/**
 * Makes statistics of no samples for a layer of `features` inputs, about 8 features² bytes. `form` is a
 * tensorslim_calibration_form, `non_finite` a tensorslim_calibration_non_finite. The handle written to `out` is the
 * caller's, to be freed by tensorslim_calibration_free; it is NULL after a failure.
 *
 * Errors: NULL_POINTER, EMPTY for no features, OPTION for an unknown number, TOO_LARGE.
 *
 * # Safety
 * `out` is NULL or valid for a write.
 */
enum tensorslim_status tensorslim_calibration_new(size_t features,
                                                  int32_t form,
                                                  int32_t non_finite,
                                                  struct tensorslim_calibration **out);

/**
 * Frees statistics; NULL is allowed. Options that were set with them keep what they need.
 *
 * # Safety
 * `calibration` is NULL, or a handle that has not been freed and that no other call uses.
 */
void tensorslim_calibration_free(struct tensorslim_calibration *calibration);

/**
 * Adds samples: `x` is samples × features, one sample per row.
 *
 * Errors: NULL_POINTER, SHAPE for another number of columns, NOT_FINITE unless such samples are skipped, OPTION for
 * more than 2^43 samples in all, and those of a matrix: EMPTY, OVERLAP, MISALIGNED, TOO_LARGE, OPTION. Nothing has
 * changed after an error.
 *
 * # Safety
 * `calibration` is NULL or a handle that no other call uses; `x` is NULL or a matrix whose elements are readable.
 */
enum tensorslim_status tensorslim_calibration_update(struct tensorslim_calibration *calibration,
                                                     const struct tensorslim_matrix *x);

/**
 * Adds the samples that `other` has seen, such as those of another thread. The two may be one.
 *
 * Errors: NULL_POINTER, SHAPE for another number of features, OPTION for another form or more than 2^43 samples in
 * all. Nothing has changed after an error.
 *
 * # Safety
 * Both are NULL or handles; no other call uses the first one, or changes the second one.
 */
enum tensorslim_status tensorslim_calibration_merge(struct tensorslim_calibration *calibration,
                                                    const struct tensorslim_calibration *other);

/**
 * Writes the number of features, of samples that were added, and of those that were skipped. Each pointer may be NULL.
 *
 * Errors: NULL_POINTER for the handle.
 *
 * # Safety
 * `calibration` is NULL or a handle; the others are NULL or valid for a write.
 */
enum tensorslim_status tensorslim_calibration_counts(const struct tensorslim_calibration *calibration,
                                                     size_t *features,
                                                     uint64_t *samples,
                                                     uint64_t *skipped);

/**
 * Copies the statistics as bytes, with a checksum, for a file or another machine. With NULL for `buffer` only the
 * number of bytes is written to `count`. Between two calls the number stays the same unless samples are added.
 *
 * Errors: NULL_POINTER, BUFFER if `capacity` is less than that number.
 *
 * # Safety
 * `calibration` is NULL or a handle; `buffer` is NULL or valid for writes of `capacity` bytes; `count` is NULL or
 * valid for a write.
 */
enum tensorslim_status tensorslim_calibration_to_bytes(const struct tensorslim_calibration *calibration,
                                                       uint8_t *buffer,
                                                       size_t capacity,
                                                       size_t *count);

/**
 * Makes statistics from bytes that tensorslim_calibration_to_bytes has written. Bytes from a stranger do no harm. The
 * handle written to `out` is the caller's, to be freed by tensorslim_calibration_free; it is NULL after a failure.
 *
 * Errors: NULL_POINTER, FORMAT with what is wrong with the bytes.
 *
 * # Safety
 * `bytes` is NULL or valid for reads of `count` bytes; `out` is NULL or valid for a write.
 */
enum tensorslim_status tensorslim_calibration_from_bytes(const uint8_t *bytes,
                                                         size_t count,
                                                         struct tensorslim_calibration **out);

/**
 * Makes the options of a factorization with defaults: METHOD_AUTO, SKETCH_SRHT, 10 columns of oversampling, 2 power
 * iterations, seed 0, no calibration, no memory limit, the CPU. `rule` is a tensorslim_rank, `value` what it needs.
 * The handle written to `out` is the caller's, to be freed by tensorslim_svd_free; it is NULL after a failure.
 *
 * Whether the value suits a matrix is checked with the matrix. Errors: NULL_POINTER, OPTION for an unknown rule or a
 * fixed rank that is no whole number.
 *
 * # Safety
 * `out` is NULL or valid for a write.
 */
enum tensorslim_status tensorslim_svd_new(int32_t rule, double value, struct tensorslim_svd **out);

/**
 * Frees options; NULL is allowed.
 *
 * # Safety
 * `svd` is NULL, or a handle that has not been freed and that no other call uses.
 */
void tensorslim_svd_free(struct tensorslim_svd *svd);

/**
 * Sets the rule for the rank and its value, as tensorslim_svd_new does.
 *
 * Errors: NULL_POINTER, OPTION.
 *
 * # Safety
 * `svd` is NULL or a handle that no other call uses.
 */
enum tensorslim_status tensorslim_svd_set_rank(struct tensorslim_svd *svd, int32_t rule, double value);

/**
 * Sets the method, a tensorslim_method.
 *
 * Errors: NULL_POINTER, OPTION.
 *
 * # Safety
 * `svd` is NULL or a handle that no other call uses.
 */
enum tensorslim_status tensorslim_svd_set_method(struct tensorslim_svd *svd, int32_t method);

/**
 * Sets the random matrix: `kind` is a tensorslim_sketch, `oversample` the columns beyond the rank, and one seed gives
 * the same bits on any number of threads.
 *
 * Errors: NULL_POINTER, OPTION.
 *
 * # Safety
 * `svd` is NULL or a handle that no other call uses.
 */
enum tensorslim_status tensorslim_svd_set_sketch(struct tensorslim_svd *svd,
                                                 int32_t kind,
                                                 size_t oversample,
                                                 uint64_t seed);

/**
 * Sets the number of power iterations. Each costs two products with the matrix.
 *
 * Errors: NULL_POINTER.
 *
 * # Safety
 * `svd` is NULL or a handle that no other call uses.
 */
enum tensorslim_status tensorslim_svd_set_power_iterations(struct tensorslim_svd *svd, size_t count);

/**
 * Sets the largest rank that a rule which looks at the singular values may return.
 *
 * Errors: NULL_POINTER. A largest rank of 0 is an error of tensorslim_factor.
 *
 * # Safety
 * `svd` is NULL or a handle that no other call uses.
 */
enum tensorslim_status tensorslim_svd_set_max_rank(struct tensorslim_svd *svd, size_t rank);

/**
 * Sets the most bytes that a factorization may allocate, beside the matrix of the caller.
 *
 * Errors: NULL_POINTER. A limit that is too low is an error of tensorslim_factor, with the least that would do.
 *
 * # Safety
 * `svd` is NULL or a handle that no other call uses.
 */
enum tensorslim_status tensorslim_svd_set_memory_limit(struct tensorslim_svd *svd, size_t bytes);

/**
 * Sets where to compute: -1 for the CPU, otherwise the number of a CUDA device.
 *
 * Errors: NULL_POINTER, OPTION for a number below -1. A device that cannot be used is an error of tensorslim_factor.
 *
 * # Safety
 * `svd` is NULL or a handle that no other call uses.
 */
enum tensorslim_status tensorslim_svd_set_device(struct tensorslim_svd *svd, int32_t device);

/**
 * Weights the error by the inputs that the layer will meet: `inputs` has the statistics of its n inputs. `part` is a
 * tensorslim_calibration_part; `blend` says how much they are trusted, from 0 (not at all) to 1 (entirely). The
 * options share the statistics; the handle may be freed or fed afterwards, which does not change them.
 *
 * Errors: NULL_POINTER, OPTION for an unknown part. What does not suit a matrix is an error of tensorslim_factor.
 *
 * # Safety
 * `svd` is NULL or a handle that no other call uses; `inputs` is NULL or a handle that no other call changes.
 */
enum tensorslim_status tensorslim_svd_set_calibration(struct tensorslim_svd *svd,
                                                      const struct tensorslim_calibration *inputs,
                                                      int32_t part,
                                                      double blend);

/**
 * Weights the error by the outputs as well: `gradients` has the statistics of the gradients of a loss with respect to
 * the m outputs of the layer, one sample per row. The other arguments and the errors are those of
 * tensorslim_svd_set_calibration.
 *
 * # Safety
 * `svd` is NULL or a handle that no other call uses; `gradients` is NULL or a handle that no other call changes.
 */
enum tensorslim_status tensorslim_svd_set_output_calibration(struct tensorslim_svd *svd,
                                                             const struct tensorslim_calibration *gradients,
                                                             int32_t part,
                                                             double blend);

/**
 * Sets the statistics of inputs that RANK_QUALITY is measured on. By default it is measured on those that weight the
 * error, which flatters.
 *
 * Errors: NULL_POINTER.
 *
 * # Safety
 * `svd` is NULL or a handle that no other call uses; `inputs` is NULL or a handle that no other call changes.
 */
enum tensorslim_status tensorslim_svd_set_quality_on(struct tensorslim_svd *svd,
                                                     const struct tensorslim_calibration *inputs);

/**
 * Writes the most bytes that tensorslim_factor allocates for a rows × cols matrix of elements `dtype` in arithmetic
 * `precision`, the factors included. The caller's matrix does not count.
 *
 * Errors: NULL_POINTER, EMPTY, RANK, OPTION, and MEMORY under a limit that is too low.
 *
 * # Safety
 * `svd` is NULL or a handle that no other call changes; `bytes` is NULL or valid for a write.
 */
enum tensorslim_status tensorslim_workspace(const struct tensorslim_svd *svd,
                                            size_t rows,
                                            size_t cols,
                                            int32_t dtype,
                                            int32_t precision,
                                            size_t *bytes);

/**
 * Factors the m × n matrix `a` as U diag(s) Vᵀ of rank k, in arithmetic `precision`: TENSORSLIM_DTYPE_F32 or _F64.
 * The threads are those of one pool for the process, as many as RAYON_NUM_THREADS says or the machine has. `progress`
 * may be NULL; `context` is handed to it. The handle written to `out` is the caller's, to be freed by
 * tensorslim_factors_free; it is NULL after a failure.
 *
 * Errors: NULL_POINTER, NOT_FINITE, RANK, OPTION, MEMORY, CANCELLED, RANGE for values beyond the arithmetic, SHAPE for
 * statistics of another number of features, DEVICE, NO_CONVERGENCE, and those of a matrix: EMPTY, OVERLAP, MISALIGNED,
 * TOO_LARGE.
 *
 * # Safety
 * `svd` is NULL or a handle that no other call changes; `a` is NULL or a matrix whose elements are readable; `context`
 * is what `progress` needs, on any thread; `out` is NULL or valid for a write.
 */
enum tensorslim_status tensorslim_factor(const struct tensorslim_svd *svd,
                                         const struct tensorslim_matrix *a,
                                         int32_t precision,
                                         tensorslim_progress progress,
                                         void *context,
                                         struct tensorslim_factors **out);

/**
 * Factors as tensorslim_factor does, and reads the matrix in blocks of lines. Every pass counts in the report. The
 * memory is that of the report, the buffers for blocks included.
 *
 * Errors: NULL_POINTER, also for a source that has no function; FILE if `read` returns anything but 0; EMPTY,
 * TOO_LARGE; OPTION also for the GPU; the others of tensorslim_factor.
 *
 * # Safety
 * `svd` is NULL or a handle that no other call changes; `source` is NULL or valid, and its function may be called with
 * its context, as is said there; `context` is what `progress` needs, on any thread; `out` is NULL or valid for a write.
 */
enum tensorslim_status tensorslim_factor_rows(const struct tensorslim_svd *svd,
                                              const struct tensorslim_source *source,
                                              int32_t precision,
                                              tensorslim_progress progress,
                                              void *context,
                                              struct tensorslim_factors **out);

/**
 * Frees factors; NULL is allowed. Their texts go with them.
 *
 * # Safety
 * `factors` is NULL, or a handle that has not been freed and that no other call uses.
 */
void tensorslim_factors_free(struct tensorslim_factors *factors);

/**
 * Copies a part of the factors, a tensorslim_part, to the caller's matrix, rounded to nearest in its element type. The
 * sizes are in the report: U is rows × rank, S is rank × 1, VT is rank × cols.
 *
 * Errors: NULL_POINTER, OPTION for an unknown part, SHAPE, and those of a matrix: EMPTY, OVERLAP, MISALIGNED,
 * TOO_LARGE.
 *
 * # Safety
 * `factors` is NULL or a handle; `to` is NULL or a matrix whose elements are writable and used by this call alone.
 */
enum tensorslim_status tensorslim_factors_get(const struct tensorslim_factors *factors,
                                              int32_t part,
                                              const struct tensorslim_matrix_mut *to);

/**
 * Copies the weights of two layers, whose product is U diag(s) Vᵀ: `up` is rows × rank, `down` is rank × cols, each
 * rounded to nearest in its element type. `split` is a tensorslim_split. A sample goes through y = (x downᵀ) upᵀ.
 *
 * Errors: NULL_POINTER, OPTION for an unknown split, SHAPE, OVERLAP if the two share memory, and those of a matrix:
 * EMPTY, MISALIGNED, TOO_LARGE.
 *
 * # Safety
 * `factors` is NULL or a handle; `up` and `down` are NULL or matrices whose elements are writable and used by this
 * call alone.
 */
enum tensorslim_status tensorslim_factors_split(const struct tensorslim_factors *factors,
                                                int32_t split,
                                                const struct tensorslim_matrix_mut *up,
                                                const struct tensorslim_matrix_mut *down);

/**
 * Takes the factorization of a smaller rank out of this one, with a report of its own. The handle written to `out` is
 * the caller's, to be freed by tensorslim_factors_free; it is NULL after a failure.
 *
 * Errors: NULL_POINTER, RANK unless 1 <= rank <= that of the factors.
 *
 * # Safety
 * `factors` is NULL or a handle; `out` is NULL or valid for a write.
 */
enum tensorslim_status tensorslim_factors_truncate(const struct tensorslim_factors *factors,
                                                   size_t rank,
                                                   struct tensorslim_factors **out);

/**
 * Takes the directions `first` .. `first + count` - 1 out of the factors, in their order: a part of the spectrum, such
 * as the minor ones. The report is that of their product as an approximation of the matrix. The handle written to `out`
 * is the caller's, to be freed by tensorslim_factors_free; it is NULL after a failure.
 *
 * Errors: NULL_POINTER, RANK for no directions or some beyond the rank, OPTION for factors under output statistics,
 * whose parts are not orthogonal.
 *
 * # Safety
 * `factors` is NULL or a handle; `out` is NULL or valid for a write.
 */
enum tensorslim_status tensorslim_factors_range(const struct tensorslim_factors *factors,
                                                size_t first,
                                                size_t count,
                                                struct tensorslim_factors **out);

/**
 * Computes W - U diag(s) Vᵀ, what the factors leave of the matrix `w`, rows × cols, in the arithmetic of the factors:
 * `to` has the same shape, and is rounded to nearest in its element type. The two may not share memory.
 *
 * Errors: NULL_POINTER, SHAPE, OVERLAP if they share memory, and those of a matrix: EMPTY, MISALIGNED, TOO_LARGE.
 *
 * # Safety
 * `factors` is NULL or a handle; `w` is NULL or a matrix whose elements are readable; `to` is NULL or a matrix whose
 * elements are writable and used by this call alone.
 */
enum tensorslim_status tensorslim_factors_residual(const struct tensorslim_factors *factors,
                                                   const struct tensorslim_matrix *w,
                                                   const struct tensorslim_matrix_mut *to);

/**
 * Computes y = x Wᵀ through the factors of W: `x` is samples × cols, `y` is samples × rows, rounded to nearest in its
 * element type.
 *
 * Errors: NULL_POINTER, SHAPE, OVERLAP if `x` and `y` share memory, and those of a matrix: EMPTY, MISALIGNED,
 * TOO_LARGE.
 *
 * # Safety
 * `factors` is NULL or a handle; `x` is NULL or a matrix whose elements are readable; `y` is NULL or a matrix whose
 * elements are writable and used by this call alone.
 */
enum tensorslim_status tensorslim_factors_apply(const struct tensorslim_factors *factors,
                                                const struct tensorslim_matrix *x,
                                                const struct tensorslim_matrix_mut *y);

/**
 * Copies the numbers of the report to `report`, of which the caller has `size` = sizeof(tensorslim_report) bytes.
 * Fields that this library does not know yet become 0 bytes.
 *
 * Errors: NULL_POINTER.
 *
 * # Safety
 * `factors` is NULL or a handle; `report` is NULL or valid for writes of `size` bytes.
 */
enum tensorslim_status tensorslim_factors_report(const struct tensorslim_factors *factors,
                                                 struct tensorslim_report *report,
                                                 size_t size);

/**
 * Copies all singular values that were computed, at least rank of them, nonincreasing. `weighted` is 0 for those of
 * the matrix, 1 for those that the statistics see, which a budget is shared by. With NULL for `buffer` only their
 * number is written to `count`.
 *
 * Errors: NULL_POINTER, OPTION for another `weighted`, or for 1 without statistics; BUFFER if `capacity` is less than
 * that number.
 *
 * # Safety
 * `factors` is NULL or a handle; `buffer` is NULL or valid for writes of `capacity` elements; `count` is NULL or valid
 * for a write.
 */
enum tensorslim_status tensorslim_factors_spectrum(const struct tensorslim_factors *factors,
                                                   int32_t weighted,
                                                   double *buffer,
                                                   size_t capacity,
                                                   size_t *count);

/**
 * Returns note `index` of the report, from 0 on: what was clamped, fell back or was not routine, in UTF-8. It is NULL
 * behind the last one, or for a NULL handle. The text belongs to the handle and lives as long.
 *
 * # Safety
 * `factors` is NULL or a handle.
 */
const char *tensorslim_factors_note(const struct tensorslim_factors *factors, size_t index);

/**
 * Returns the reason why the method was taken, in UTF-8; NULL for a NULL handle. The text belongs to the handle and
 * lives as long.
 *
 * # Safety
 * `factors` is NULL or a handle.
 */
const char *tensorslim_factors_reason(const struct tensorslim_factors *factors);

/**
 * Shares a budget of `limit` among `count` layers, in units of `unit`, a tensorslim_cost, as `sharing`, a
 * tensorslim_sharing, says. `align` divides all ranks; 1 allows any. The rank of each layer is written to `ranks`, 0
 * for one that stays whole, and the sums to `found`, which may be NULL.
 *
 * Errors: NULL_POINTER, EMPTY without layers or for an empty one, OPTION for unknown numbers, a budget below the least
 * that the layers can cost, an alignment of 0, weights and values that are not finite or negative, and a spectrum that
 * increases.
 *
 * # Safety
 * `layers` is NULL or has `count` layers, whose values are readable; `ranks` is NULL or valid for `count` writes;
 * `found` is NULL or valid for a write.
 */
enum tensorslim_status tensorslim_allocate(const struct tensorslim_layer *layers,
                                           size_t count,
                                           uint64_t limit,
                                           int32_t unit,
                                           size_t align,
                                           int32_t sharing,
                                           size_t *ranks,
                                           struct tensorslim_allocation *found);

/**
 * Transforms each row of `x` in place by the Walsh-Hadamard matrix H of its length: x_i <- H x_i, in natural order.
 * `scale` is a tensorslim_scale, `threads` a tensorslim_threads. Halves are widened to float inside and rounded once.
 *
 * Errors: NULL_POINTER, ORDER for a length without such a matrix, OPTION, and those of a matrix: EMPTY, OVERLAP,
 * MISALIGNED, TOO_LARGE.
 *
 * # Safety
 * `x` is NULL or a matrix whose elements are readable, writable and used by this call alone.
 */
enum tensorslim_status tensorslim_fwht_rows(const struct tensorslim_matrix_mut *x, int32_t scale, int32_t threads);

/**
 * Transforms each column of `x` in place: X <- H X. The arguments and the errors are those of tensorslim_fwht_rows.
 *
 * # Safety
 * `x` is NULL or a matrix whose elements are readable, writable and used by this call alone.
 */
enum tensorslim_status tensorslim_fwht_columns(const struct tensorslim_matrix_mut *x, int32_t scale, int32_t threads);

/**
 * Makes the rotation of vectors of `length` elements with the random signs of `seed`. `scheme` is a tensorslim_scheme;
 * `block` is the length of a block of SCHEME_BLOCKS, or 0 for the largest power of two that divides the length, and
 * means nothing to the others. The handle written to `out` is the caller's, to be freed by tensorslim_rotation_free;
 * it is NULL after a failure.
 *
 * Errors: NULL_POINTER, ROTATION, with the nearest lengths, if the scheme does not take this one, OPTION, TOO_LARGE.
 *
 * # Safety
 * `out` is NULL or valid for a write.
 */
enum tensorslim_status tensorslim_rotation_new(size_t length,
                                               int32_t scheme,
                                               size_t block,
                                               uint64_t seed,
                                               struct tensorslim_rotation **out);

/**
 * Frees a rotation; NULL is allowed.
 *
 * # Safety
 * `rotation` is NULL, or a handle that has not been freed and that no other call uses.
 */
void tensorslim_rotation_free(struct tensorslim_rotation *rotation);

/**
 * Writes the length of a rotated vector: that of the vector, or the next power of two for SCHEME_PADDED.
 *
 * Errors: NULL_POINTER.
 *
 * # Safety
 * `rotation` is NULL or a handle; `length` is NULL or valid for a write.
 */
enum tensorslim_status tensorslim_rotation_output_length(const struct tensorslim_rotation *rotation, size_t *length);

/**
 * Rotates each row of `x` in place, or back if `inverse` is 1. `threads` is a tensorslim_threads.
 *
 * Errors: NULL_POINTER, SHAPE unless a row has the length of the rotation, and a rotated one too; OPTION, and those of
 * a matrix: EMPTY, OVERLAP, MISALIGNED, TOO_LARGE.
 *
 * # Safety
 * `rotation` is NULL or a handle; `x` is NULL or a matrix whose elements are readable, writable and used by this call
 * alone.
 */
enum tensorslim_status tensorslim_rotation_apply(const struct tensorslim_rotation *rotation,
                                                 const struct tensorslim_matrix_mut *x,
                                                 int32_t inverse,
                                                 int32_t threads);

/**
 * Rotates each row of `x` into the same row of `y`, or back if `inverse` is 1, as SCHEME_PADDED needs it. Both have
 * one element type and as many rows, adjacent ones of adjacent elements: col_stride 1, row_stride cols.
 *
 * Errors: NULL_POINTER, SHAPE, OPTION for two element types or other strides, OVERLAP if `x` and `y` share memory, and
 * those of a matrix: EMPTY, MISALIGNED, TOO_LARGE.
 *
 * # Safety
 * `rotation` is NULL or a handle; `x` is NULL or a matrix whose elements are readable; `y` is NULL or a matrix whose
 * elements are writable and used by this call alone.
 */
enum tensorslim_status tensorslim_rotation_apply_to(const struct tensorslim_rotation *rotation,
                                                    const struct tensorslim_matrix *x,
                                                    const struct tensorslim_matrix_mut *y,
                                                    int32_t inverse,
                                                    int32_t threads);

/**
 * Replaces the columns of `y` (m × l, m >= l) by an orthonormal basis Q of their span, in the element type of `y`, F32
 * or F64. If `r` is not NULL it gets the upper triangular l × l matrix R with y = Q R, in the same type, with a
 * diagonal that is not negative. `condition`, if not NULL, gets an estimate of the condition number of `y` with
 * columns of equal length. A column-major `y` is the fastest. `threads` is a tensorslim_threads.
 *
 * Errors: NULL_POINTER, SHAPE, NOT_FINITE, RANGE if R does not fit the type, OPTION for a half type, two types or an
 * unknown number, OVERLAP if `y` and `r` share memory, and those of a matrix: EMPTY, MISALIGNED, TOO_LARGE. The panel
 * may have been scaled after NOT_FINITE and RANGE.
 *
 * # Safety
 * `y` is NULL or a matrix whose elements are readable, writable and used by this call alone; `r` is NULL or a matrix
 * whose elements are writable and used by this call alone; `condition` is NULL or valid for a write.
 */
enum tensorslim_status tensorslim_orthonormalize(const struct tensorslim_matrix_mut *y,
                                                 const struct tensorslim_matrix_mut *r,
                                                 int32_t threads,
                                                 double *condition);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TENSORSLIM_H */
