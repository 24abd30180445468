/*
 * The C interface as a C program uses it: what it computes is right, and every failure that it can have is reached.
 * `.ci/capi` compiles it from the installed header, and runs it under valgrind.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tensorslim.h>

#define OK TENSORSLIM_STATUS_OK
#define F32 TENSORSLIM_DTYPE_F32
#define F64 TENSORSLIM_DTYPE_F64

static unsigned reached;

#define CHECK(condition)                                                                     \
    do {                                                                                     \
        if (!(condition)) {                                                                  \
            fprintf(stderr, "%s:%d: not so: %s (last error: %s)\n", __FILE__, __LINE__,      \
                    #condition, tensorslim_last_error());                                    \
            exit(1);                                                                         \
        }                                                                                    \
    } while (0)

/* A call that fails with `kind`, and says something in one line. */
#define FAILS(kind, call)                                                                    \
    do {                                                                                     \
        enum tensorslim_status got = (call);                                                 \
        reached |= 1u << TENSORSLIM_STATUS_##kind;                                           \
        CHECK(got == TENSORSLIM_STATUS_##kind);                                              \
        CHECK(strlen(tensorslim_last_error()) > 8 && !strchr(tensorslim_last_error(), '\n')); \
    } while (0)

enum { M = 48, N = 32, K = 3, SAMPLES = 80 };

static struct tensorslim_matrix in(const void *data, size_t rows, size_t cols, int32_t dtype)
{
    struct tensorslim_matrix a = {data, rows, cols, (ptrdiff_t)cols, 1, dtype};
    return a;
}

static struct tensorslim_matrix_mut out(void *data, size_t rows, size_t cols, int32_t dtype)
{
    struct tensorslim_matrix_mut a = {data, rows, cols, (ptrdiff_t)cols, 1, dtype};
    return a;
}

/* Numbers in -1 .. 1 without a pattern. */
static double noise(void)
{
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (double)(int64_t)state / 9223372036854775808.0;
}

/* A matrix of rank K, but for noise of size `eps`. */
static void fill(double *w, size_t m, size_t n, double eps)
{
    size_t i, j, k;
    double *left = malloc(m * K * sizeof *left), *right = malloc(K * n * sizeof *right);
    for (i = 0; i < m * K; i++)
        left[i] = noise();
    for (i = 0; i < K * n; i++)
        right[i] = noise();
    for (i = 0; i < m; i++)
        for (j = 0; j < n; j++) {
            w[i * n + j] = eps * noise();
            for (k = 0; k < K; k++)
                w[i * n + j] += left[i * K + k] * right[k * n + j];
        }
    free(left);
    free(right);
}

/* The largest difference between w and up * down. */
static double difference(const double *w, const double *up, const double *down, size_t k)
{
    size_t i, j, l;
    double most = 0;
    for (i = 0; i < M; i++)
        for (j = 0; j < N; j++) {
            double x = w[i * N + j];
            for (l = 0; l < k; l++)
                x -= up[i * k + l] * down[l * N + j];
            most = fmax(most, fabs(x));
        }
    return most;
}

static int32_t stop(uint64_t bytes, void *context)
{
    *(uint64_t *)context += bytes;
    return 1;
}

static int32_t go_on(uint64_t bytes, void *context)
{
    *(uint64_t *)context += bytes;
    return 0;
}

static void factors(void)
{
    static double w[M * N], u[M * K], s[K], vt[K * N], up[M * K], down[K * N], transposed[N * M];
    static double x[2 * N], y[2 * M];
    struct tensorslim_matrix a = in(w, M, N, F64), flipped = a, ax = in(x, 2, N, F64);
    struct tensorslim_matrix_mut to, to_down, ay = out(y, 2, M, F64);
    struct tensorslim_svd *svd;
    struct tensorslim_factors *f, *cut;
    struct tensorslim_report report;
    size_t bytes, count, i, j;
    uint64_t heard = 0;
    static double rest[M * N];
    double spectrum[N], part[2];
    struct { struct tensorslim_report known; char later[8]; } larger;

    fill(w, M, N, 1e-9);
    for (i = 0; i < 2 * N; i++)
        x[i] = noise();
    CHECK(tensorslim_svd_new(TENSORSLIM_RANK_FIXED, K, &svd) == OK);
    CHECK(tensorslim_svd_set_method(svd, TENSORSLIM_METHOD_RANDOMIZED) == OK);
    CHECK(tensorslim_svd_set_sketch(svd, TENSORSLIM_SKETCH_GAUSSIAN, 5, 42) == OK);
    CHECK(tensorslim_svd_set_power_iterations(svd, 1) == OK);
    CHECK(tensorslim_svd_set_device(svd, -1) == OK);
    CHECK(tensorslim_workspace(svd, M, N, F64, F64, &bytes) == OK && bytes > 0);
    CHECK(tensorslim_factor(svd, &a, F64, go_on, &heard, &f) == OK);
    CHECK(heard >= sizeof w);

    CHECK(tensorslim_factors_report(f, &report, sizeof report) == OK);
    CHECK(report.rows == M && report.cols == N && report.rank == K && report.seed == 42 && report.oversample == 5);
    CHECK(report.method == TENSORSLIM_METHOD_RANDOMIZED && report.sketch == TENSORSLIM_SKETCH_GAUSSIAN);
    CHECK(report.dtype == F64 && report.precision == F64 && report.power_iterations == 1);
    CHECK(report.relative_error < 1e-8 && (report.error_probes > 0) == (report.error_std_dev > 0) );
    CHECK(report.norm > 1 && report.seconds > 0);
    CHECK(report.peak_bytes <= bytes && report.params_before == M * N && report.params_after == K * (M + N + 1));
    CHECK(isnan(report.cosine) && report.samples == 0);
    memset(&larger, 1, sizeof larger);
    CHECK(tensorslim_factors_report(f, &larger.known, sizeof larger) == OK);
    CHECK(memcmp(&larger.known, &report, sizeof report) == 0 && larger.later[0] == 0 && larger.later[7] == 0);
    CHECK(tensorslim_factors_reason(f) && tensorslim_factors_note(f, report.notes) == NULL);

    to = out(u, M, K, F64);
    CHECK(tensorslim_factors_get(f, TENSORSLIM_PART_U, &to) == OK);
    to = out(s, K, 1, F64);
    CHECK(tensorslim_factors_get(f, TENSORSLIM_PART_S, &to) == OK);
    to = out(vt, K, N, F64);
    CHECK(tensorslim_factors_get(f, TENSORSLIM_PART_VT, &to) == OK);
    CHECK(s[0] >= s[1] && s[1] >= s[2] && s[2] > 0);
    for (i = 0; i < M; i++)
        for (j = 0; j < K; j++)
            up[i * K + j] = u[i * K + j] * s[j];
    CHECK(difference(w, up, vt, K) < 1e-7);
    to = out(up, M, K, F64);
    to_down = out(down, K, N, F64);
    CHECK(tensorslim_factors_split(f, TENSORSLIM_SPLIT_BALANCED, &to, &to_down) == OK);
    CHECK(difference(w, up, down, K) < 1e-7);

    CHECK(tensorslim_factors_apply(f, &ax, &ay) == OK);
    for (i = 0; i < 2; i++) {
        double want = 0;
        for (j = 0; j < N; j++)
            want += x[i * N + j] * w[5 * N + j];
        CHECK(fabs(want - y[i * M + 5]) < 1e-7);
    }
    CHECK(tensorslim_factors_spectrum(f, 0, NULL, 0, &count) == OK && count >= K && count <= N);
    CHECK(tensorslim_factors_spectrum(f, 0, spectrum, N, NULL) == OK && fabs(spectrum[0] - s[0]) < 1e-12 * s[0]);

    CHECK(tensorslim_factors_truncate(f, 1, &cut) == OK);
    CHECK(tensorslim_factors_report(cut, &report, sizeof report) == OK && report.rank == 1);
    CHECK(report.relative_error > 0.1);
    tensorslim_factors_free(cut);

    CHECK(tensorslim_factors_range(f, 1, 2, &cut) == OK);
    CHECK(tensorslim_factors_report(cut, &report, sizeof report) == OK && report.rank == 2);
    to = out(part, 2, 1, F64);
    CHECK(tensorslim_factors_get(cut, TENSORSLIM_PART_S, &to) == OK && part[0] == s[1] && part[1] == s[2]);
    to = out(rest, M, N, F64);
    CHECK(tensorslim_factors_residual(cut, &a, &to) == OK);
    tensorslim_factors_free(cut);
    for (i = 0; i < M; i++)
        for (j = 0; j < N; j++)
            CHECK(fabs(rest[i * N + j] - u[i * K] * s[0] * vt[j]) < 1e-7);
    FAILS(RANK, tensorslim_factors_range(f, 1, K, &cut));
    CHECK(cut == NULL);
    FAILS(RANK, tensorslim_factors_range(f, 1, 0, &cut));
    FAILS(RANK, tensorslim_factors_range(f, 1, SIZE_MAX, &cut));
    FAILS(NULL_POINTER, tensorslim_factors_range(NULL, 0, 1, &cut));
    FAILS(NULL_POINTER, tensorslim_factors_residual(f, &a, NULL));
    FAILS(NULL_POINTER, tensorslim_factors_residual(f, NULL, &to));
    FAILS(NULL_POINTER, tensorslim_factors_residual(NULL, &a, &to));
    to.rows = M - 1;
    FAILS(SHAPE, tensorslim_factors_residual(f, &a, &to));
    to = out(w, M, N, F64);
    FAILS(OVERLAP, tensorslim_factors_residual(f, &a, &to));
    flipped.rows = N;
    flipped.cols = flipped.row_stride = M;
    to = out(rest, M, N, F64);
    FAILS(SHAPE, tensorslim_factors_residual(f, &flipped, &to));
    flipped = a;
    {
        float single[M * N];
        to = out(single, M, N, F32);
        CHECK(tensorslim_factors_residual(f, &a, &to) == OK);
        for (i = 0; i < M * N; i++)
            CHECK(fabs(single[i]) < 1e-7);
    }

    /* Failures of what factors give. */
    FAILS(RANK, tensorslim_factors_truncate(f, K + 1, &cut));
    CHECK(cut == NULL);
    FAILS(RANK, tensorslim_factors_truncate(f, 0, &cut));
    FAILS(NULL_POINTER, tensorslim_factors_truncate(f, 1, NULL));
    FAILS(NULL_POINTER, tensorslim_factors_truncate(NULL, 1, &cut));
    FAILS(NULL_POINTER, tensorslim_factors_report(f, NULL, 0));
    FAILS(NULL_POINTER, tensorslim_factors_report(NULL, &report, sizeof report));
    FAILS(BUFFER, tensorslim_factors_spectrum(f, 0, spectrum, K - 1, &count));
    FAILS(OPTION, tensorslim_factors_spectrum(f, 1, spectrum, N, &count));
    FAILS(NULL_POINTER, tensorslim_factors_spectrum(f, 0, NULL, 0, NULL));
    to = out(u, K, M, F64);
    FAILS(SHAPE, tensorslim_factors_get(f, TENSORSLIM_PART_U, &to));
    to = out(u, M, K, F64);
    FAILS(OPTION, tensorslim_factors_get(f, 3, &to));
    FAILS(NULL_POINTER, tensorslim_factors_get(f, TENSORSLIM_PART_U, NULL));
    FAILS(NULL_POINTER, tensorslim_factors_get(NULL, TENSORSLIM_PART_U, &to));
    to.dtype = 9;
    FAILS(OPTION, tensorslim_factors_get(f, TENSORSLIM_PART_U, &to));
    to = out(NULL, M, K, F64);
    FAILS(NULL_POINTER, tensorslim_factors_get(f, TENSORSLIM_PART_U, &to));
    to = out((char *)u + 1, M, K, F64);
    FAILS(MISALIGNED, tensorslim_factors_get(f, TENSORSLIM_PART_U, &to));
    to = out(u, M, K, F64);
    to.row_stride = 2;
    FAILS(OVERLAP, tensorslim_factors_get(f, TENSORSLIM_PART_U, &to));
    to = out(up, M, K, F64);
    to_down = out(up + 1, K, N, F64);
    FAILS(OVERLAP, tensorslim_factors_split(f, TENSORSLIM_SPLIT_LEFT, &to, &to_down));
    to_down = out(down, K, N, F64);
    FAILS(OPTION, tensorslim_factors_split(f, -1, &to, &to_down));
    ax.cols = N - 1;
    FAILS(SHAPE, tensorslim_factors_apply(f, &ax, &ay));
    CHECK(tensorslim_factors_note(NULL, 0) == NULL && tensorslim_factors_reason(NULL) == NULL);
    tensorslim_factors_free(f);
    tensorslim_factors_free(NULL);

    /* The transpose with reversed rows, by strides alone, in float; halves come out. */
    for (i = 0; i < M; i++)
        for (j = 0; j < N; j++)
            transposed[j * M + i] = w[(M - 1 - i) * N + j];
    flipped.data = transposed + M - 1;
    flipped.row_stride = -1;
    flipped.col_stride = M;
    CHECK(tensorslim_factor(svd, &flipped, F32, NULL, NULL, &f) == OK);
    {
        uint16_t half[2 * K * N];
        struct tensorslim_matrix_mut wide = {half, K, N, 2 * N, 2, TENSORSLIM_DTYPE_BF16};
        float bits[K * N];
        struct tensorslim_matrix_mut single = out(bits, K, N, F32);
        memset(half, 0x55, sizeof half);
        CHECK(tensorslim_factors_get(f, TENSORSLIM_PART_VT, &wide) == OK);
        CHECK(tensorslim_factors_get(f, TENSORSLIM_PART_VT, &single) == OK);
        for (i = 0; i < K * N; i++) {
            uint32_t word = (uint32_t)half[2 * i] << 16;
            float value;
            memcpy(&value, &word, 4);
            CHECK(fabs(value - bits[i]) <= fabs(bits[i]) / 256 && half[2 * i + 1] == 0x5555);
            CHECK(fabs(fabs(bits[i]) - fabs(vt[i])) < 1e-4);
        }
    }
    tensorslim_factors_free(f);

    /* Rules for the rank. */
    {
        static const struct { int32_t rule; double value; } rules[] = {
            {TENSORSLIM_RANK_RATIO, 6.0}, {TENSORSLIM_RANK_ENERGY, 0.9999999}, {TENSORSLIM_RANK_TOLERANCE, 1e-3},
            {TENSORSLIM_RANK_ABOVE, 0.01}};
        CHECK(tensorslim_svd_set_method(svd, TENSORSLIM_METHOD_AUTO) == OK);
        for (i = 0; i < 4; i++) {
            CHECK(tensorslim_svd_set_rank(svd, rules[i].rule, rules[i].value) == OK);
            CHECK(tensorslim_factor(svd, &a, F64, NULL, NULL, &f) == OK);
            CHECK(tensorslim_factors_report(f, &report, sizeof report) == OK && report.rank == K);
            tensorslim_factors_free(f);
        }
        CHECK(tensorslim_svd_set_rank(svd, TENSORSLIM_RANK_ENERGY, 0.9999999) == OK);
        CHECK(tensorslim_svd_set_max_rank(svd, 1) == OK);
        CHECK(tensorslim_factor(svd, &a, F64, NULL, NULL, &f) == OK);
        CHECK(tensorslim_factors_report(f, &report, sizeof report) == OK && report.rank == 1 && report.notes > 0);
        CHECK(strlen(tensorslim_factors_note(f, 0)) > 8);
        tensorslim_factors_free(f);
    }
    tensorslim_svd_free(svd);
    tensorslim_svd_free(NULL);
}

static void options(void)
{
    static double w[M * N];
    struct tensorslim_matrix a = in(w, M, N, F64);
    struct tensorslim_svd *svd = (struct tensorslim_svd *)w;
    struct tensorslim_factors *f;
    size_t bytes;
    uint64_t heard = 0;

    FAILS(OPTION, tensorslim_svd_new(6, 1, &svd));
    CHECK(svd == NULL);
    FAILS(OPTION, tensorslim_svd_new(TENSORSLIM_RANK_FIXED, 2.5, &svd));
    FAILS(OPTION, tensorslim_svd_new(TENSORSLIM_RANK_FIXED, -1, &svd));
    FAILS(OPTION, tensorslim_svd_new(TENSORSLIM_RANK_FIXED, NAN, &svd));
    FAILS(NULL_POINTER, tensorslim_svd_new(TENSORSLIM_RANK_FIXED, 1, NULL));
    FAILS(NULL_POINTER, tensorslim_svd_set_rank(NULL, TENSORSLIM_RANK_FIXED, 1));
    CHECK(tensorslim_svd_new(TENSORSLIM_RANK_FIXED, K, &svd) == OK);
    FAILS(OPTION, tensorslim_svd_set_method(svd, 7));
    FAILS(OPTION, tensorslim_svd_set_sketch(svd, -1, 5, 1));
    FAILS(OPTION, tensorslim_svd_set_device(svd, -2));
    FAILS(OPTION, tensorslim_svd_set_rank(svd, TENSORSLIM_RANK_FIXED, 1e300));
    FAILS(NULL_POINTER, tensorslim_svd_set_calibration(svd, NULL, 0, 1.0));
    FAILS(NULL_POINTER, tensorslim_svd_set_output_calibration(svd, NULL, 0, 1.0));
    FAILS(NULL_POINTER, tensorslim_svd_set_quality_on(svd, NULL));
    FAILS(NULL_POINTER, tensorslim_workspace(svd, M, N, F64, F64, NULL));
    FAILS(NULL_POINTER, tensorslim_workspace(NULL, M, N, F64, F64, &bytes));
    FAILS(OPTION, tensorslim_workspace(svd, M, N, F64, TENSORSLIM_DTYPE_F16, &bytes));
    FAILS(EMPTY, tensorslim_workspace(svd, 0, N, F64, F64, &bytes));
    FAILS(RANK, tensorslim_workspace(svd, M, K - 1, F64, F64, &bytes));

    fill(w, M, N, 0.1);
    FAILS(NULL_POINTER, tensorslim_factor(svd, NULL, F64, NULL, NULL, &f));
    CHECK(f == NULL);
    FAILS(NULL_POINTER, tensorslim_factor(NULL, &a, F64, NULL, NULL, &f));
    FAILS(NULL_POINTER, tensorslim_factor(svd, &a, F64, NULL, NULL, NULL));
    FAILS(OPTION, tensorslim_factor(svd, &a, TENSORSLIM_DTYPE_BF16, NULL, NULL, &f));
    FAILS(CANCELLED, tensorslim_factor(svd, &a, F64, stop, &heard, &f));
    CHECK(heard > 0 && f == NULL);
    CHECK(tensorslim_svd_set_method(svd, TENSORSLIM_METHOD_RANDOMIZED) == OK);
    FAILS(CANCELLED, tensorslim_factor(svd, &a, F64, stop, &heard, &f));
    CHECK(tensorslim_svd_set_method(svd, TENSORSLIM_METHOD_AUTO) == OK);
    a.rows = 0;
    FAILS(EMPTY, tensorslim_factor(svd, &a, F64, NULL, NULL, &f));
    a.rows = M;
    a.col_stride = 0;
    FAILS(OVERLAP, tensorslim_factor(svd, &a, F64, NULL, NULL, &f));
    a.col_stride = PTRDIFF_MAX;
    FAILS(TOO_LARGE, tensorslim_factor(svd, &a, F64, NULL, NULL, &f));
    a = in(w, SIZE_MAX / 2, SIZE_MAX / 2, F64);
    FAILS(TOO_LARGE, tensorslim_factor(svd, &a, F64, NULL, NULL, &f));
    a = in(w, M, N, F64);
    a.row_stride = PTRDIFF_MIN;
    FAILS(TOO_LARGE, tensorslim_factor(svd, &a, F64, NULL, NULL, &f));
    a = in(w, M, N, F64);
    CHECK(tensorslim_svd_set_memory_limit(svd, 1) == OK);
    FAILS(MEMORY, tensorslim_factor(svd, &a, F64, NULL, NULL, &f));
    CHECK(tensorslim_svd_set_memory_limit(svd, 1 << 30) == OK);
    CHECK(tensorslim_svd_set_device(svd, 99) == OK);
    FAILS(DEVICE, tensorslim_factor(svd, &a, F64, NULL, NULL, &f));
    CHECK(tensorslim_svd_set_device(svd, -1) == OK);
    w[N + 1] = 1e300;
    FAILS(RANGE, tensorslim_factor(svd, &a, F32, NULL, NULL, &f));
    w[N + 1] = NAN;
    FAILS(NOT_FINITE, tensorslim_factor(svd, &a, F64, NULL, NULL, &f));
    CHECK(strstr(tensorslim_last_error(), "(1, 1)"));
    tensorslim_svd_free(svd);
}

/* A matrix that is read line by line, and how often. */
struct lines {
    const double *w;
    size_t width, calls, fails_at;
};

static int32_t read_lines(size_t first, size_t count, void *to, void *context)
{
    struct lines *lines = context;
    CHECK((uintptr_t)to % sizeof *lines->w == 0);
    if (++lines->calls == lines->fails_at)
        return 7;
    memcpy(to, lines->w + first * lines->width, count * lines->width * sizeof *lines->w);
    return 0;
}

static void rows(void)
{
    static double w[M * N], by_columns[M * N], s[2 * K];
    struct lines lines = {w, N, 0, 0};
    struct tensorslim_source source = {read_lines, &lines, M, N, F64, 0};
    struct tensorslim_matrix_mut to;
    struct tensorslim_report report;
    struct tensorslim_svd *svd;
    struct tensorslim_factors *f;
    uint64_t heard = 0;
    size_t i, j;

    fill(w, M, N, 1e-9);
    for (i = 0; i < M; i++)
        for (j = 0; j < N; j++)
            by_columns[j * M + i] = w[i * N + j];
    CHECK(tensorslim_svd_new(TENSORSLIM_RANK_FIXED, K, &svd) == OK);
    CHECK(tensorslim_factor_rows(svd, &source, F64, go_on, &heard, &f) == OK);
    CHECK(heard >= sizeof w && lines.calls > 0);
    CHECK(tensorslim_factors_report(f, &report, sizeof report) == OK);
    CHECK(report.rows == M && report.cols == N && report.relative_error < 1e-8 && report.passes > 0);
    to = out(s, K, 1, F64);
    CHECK(tensorslim_factors_get(f, TENSORSLIM_PART_S, &to) == OK);
    tensorslim_factors_free(f);
    lines.w = by_columns;
    lines.width = M;
    source.by_columns = 1;
    CHECK(tensorslim_factor_rows(svd, &source, F64, NULL, NULL, &f) == OK);
    to = out(s + K, K, 1, F64);
    CHECK(tensorslim_factors_get(f, TENSORSLIM_PART_S, &to) == OK);
    tensorslim_factors_free(f);
    for (i = 0; i < K; i++)
        CHECK(fabs(s[i] - s[K + i]) < 1e-12 * s[0]);

    lines.fails_at = lines.calls + 1;
    FAILS(FILE, tensorslim_factor_rows(svd, &source, F64, NULL, NULL, &f));
    CHECK(f == NULL && strstr(tensorslim_last_error(), "returned 7"));
    FAILS(CANCELLED, tensorslim_factor_rows(svd, &source, F64, stop, &heard, &f));
    FAILS(OPTION, tensorslim_factor_rows(svd, &source, TENSORSLIM_DTYPE_F16, NULL, NULL, &f));
    FAILS(NULL_POINTER, tensorslim_factor_rows(svd, NULL, F64, NULL, NULL, &f));
    FAILS(NULL_POINTER, tensorslim_factor_rows(NULL, &source, F64, NULL, NULL, &f));
    FAILS(NULL_POINTER, tensorslim_factor_rows(svd, &source, F64, NULL, NULL, NULL));
    source.dtype = 4;
    FAILS(OPTION, tensorslim_factor_rows(svd, &source, F64, NULL, NULL, &f));
    source.dtype = F64;
    source.rows = 0;
    FAILS(EMPTY, tensorslim_factor_rows(svd, &source, F64, NULL, NULL, &f));
    source.rows = SIZE_MAX / 2;
    FAILS(TOO_LARGE, tensorslim_factor_rows(svd, &source, F64, NULL, NULL, &f));
    source.rows = M;
    source.read = NULL;
    FAILS(NULL_POINTER, tensorslim_factor_rows(svd, &source, F64, NULL, NULL, &f));
    tensorslim_svd_free(svd);
}

static void budgets(void)
{
    /* One number costs M + N + 1; the first layer loses most by far. */
    static const double large[4] = {100, 90, 80, 70}, small[4] = {4, 3, 2, 1};
    struct tensorslim_layer layers[2] = {
        {M, N, large, NULL, 4, 100 * 100 + 90 * 90 + 80 * 80 + 70 * 70, 1, 0, 0, F32, 0},
        {M, N, small, NULL, 4, 16 + 9 + 4 + 1, 1, 0, 0, F32, 0}};
    struct tensorslim_allocation found;
    size_t ranks[2];
    const uint64_t one = M + N + 1;

    CHECK(tensorslim_allocate(layers, 2, 5 * one, TENSORSLIM_COST_PARAMETERS, 1, TENSORSLIM_SHARING_LEAST_LOSS, ranks,
                              &found) == OK);
    CHECK(ranks[0] == 4 && ranks[1] == 1 && found.total == 5 * one);
    CHECK(fabs(found.loss - 14) < 1e-9 && fabs(found.bound - 14) < 1e-9);
    CHECK(tensorslim_allocate(layers, 2, 4 * one, TENSORSLIM_COST_PARAMETERS, 1, TENSORSLIM_SHARING_ALIKE, ranks,
                              NULL) == OK);
    CHECK(ranks[0] == 2 && ranks[1] == 2);
    layers[0].most = 2;
    CHECK(tensorslim_allocate(layers, 2, 5 * 4 * one, TENSORSLIM_COST_BYTES, 1, TENSORSLIM_SHARING_LEAST_LOSS, ranks,
                              NULL) == OK);
    CHECK(ranks[0] == 2 && ranks[1] == 3);
    layers[1].keep = 1;
    CHECK(tensorslim_allocate(layers, 2, M * N + one, TENSORSLIM_COST_PARAMETERS, 1, TENSORSLIM_SHARING_LEAST_LOSS,
                              ranks, &found) == OK);
    CHECK(ranks[0] == 1 && ranks[1] == 0 && found.total == M * N + one);
    layers[1].keep = 0;
    layers[1].savings = layers[1].spectrum;
    layers[1].spectrum = NULL;
    CHECK(tensorslim_allocate(layers, 2, 4 * one, TENSORSLIM_COST_PARAMETERS, 1, TENSORSLIM_SHARING_LEAST_LOSS, ranks,
                              &found) == OK);
    CHECK(ranks[0] == 2 && ranks[1] == 2);

    FAILS(OPTION, tensorslim_allocate(layers, 2, one, 0, 1, 0, ranks, &found));
    FAILS(OPTION, tensorslim_allocate(layers, 2, 4 * one, 3, 1, 0, ranks, &found));
    FAILS(OPTION, tensorslim_allocate(layers, 2, 4 * one, 0, 1, 2, ranks, &found));
    FAILS(OPTION, tensorslim_allocate(layers, 2, 4 * one, 0, 0, 0, ranks, &found));
    FAILS(EMPTY, tensorslim_allocate(layers, 0, 4 * one, 0, 1, 0, ranks, &found));
    FAILS(NULL_POINTER, tensorslim_allocate(NULL, 2, 4 * one, 0, 1, 0, ranks, &found));
    FAILS(NULL_POINTER, tensorslim_allocate(layers, 2, 4 * one, 0, 1, 0, NULL, &found));
    layers[1].savings = NULL;
    FAILS(NULL_POINTER, tensorslim_allocate(layers, 2, 4 * one, 0, 1, 0, ranks, &found));
    layers[1].spectrum = small;
    layers[1].dtype = -1;
    FAILS(OPTION, tensorslim_allocate(layers, 2, 4 * one, 0, 1, 0, ranks, &found));
    layers[1].dtype = F32;
    layers[1].weight = NAN;
    FAILS(OPTION, tensorslim_allocate(layers, 2, 4 * one, 0, 1, 0, ranks, &found));
}

static void calibration(void)
{
    static double w[M * N], x[SAMPLES * N], g[SAMPLES * M];
    struct tensorslim_matrix a = in(w, M, N, F64), ax = in(x, SAMPLES, N, F64), ag = in(g, SAMPLES, M, F64);
    struct tensorslim_calibration *inputs, *more, *outputs, *again;
    struct tensorslim_svd *svd;
    struct tensorslim_factors *f;
    struct tensorslim_report plain, weighted, report;
    size_t features, count, i;
    uint64_t samples, skipped;
    unsigned char *bytes;

    fill(w, M, N, 0.5);
    for (i = 0; i < SAMPLES * N; i++)
        x[i] = noise() * (double)(1 + i % N);
    for (i = 0; i < SAMPLES * M; i++)
        g[i] = noise() * (i % M < 8 ? 10.0 : 0.1);
    CHECK(tensorslim_calibration_new(N, TENSORSLIM_CALIBRATION_FORM_GRAM, TENSORSLIM_CALIBRATION_NON_FINITE_SKIP,
                                     &inputs) == OK);
    CHECK(tensorslim_calibration_new(N, TENSORSLIM_CALIBRATION_FORM_GRAM, TENSORSLIM_CALIBRATION_NON_FINITE_REFUSE,
                                     &more) == OK);
    CHECK(tensorslim_calibration_new(M, TENSORSLIM_CALIBRATION_FORM_FACTOR, TENSORSLIM_CALIBRATION_NON_FINITE_REFUSE,
                                     &outputs) == OK);
    CHECK(tensorslim_calibration_update(inputs, &ax) == OK && tensorslim_calibration_update(more, &ax) == OK);
    CHECK(tensorslim_calibration_update(outputs, &ag) == OK);
    CHECK(tensorslim_calibration_merge(inputs, more) == OK && tensorslim_calibration_merge(more, more) == OK);
    x[7] = INFINITY;
    CHECK(tensorslim_calibration_update(inputs, &ax) == OK);
    CHECK(tensorslim_calibration_counts(inputs, &features, &samples, &skipped) == OK);
    CHECK(features == N && samples == 3 * SAMPLES - 1 && skipped == 1);
    FAILS(NOT_FINITE, tensorslim_calibration_update(more, &ax));
    CHECK(tensorslim_calibration_counts(more, NULL, &samples, NULL) == OK && samples == 2 * SAMPLES);
    x[7] = 0;

    CHECK(tensorslim_calibration_to_bytes(inputs, NULL, 0, &count) == OK && count > 100);
    bytes = malloc(count);
    FAILS(BUFFER, tensorslim_calibration_to_bytes(inputs, bytes, count - 1, NULL));
    FAILS(NULL_POINTER, tensorslim_calibration_to_bytes(inputs, NULL, 0, NULL));
    CHECK(tensorslim_calibration_to_bytes(inputs, bytes, count, NULL) == OK);
    CHECK(tensorslim_calibration_from_bytes(bytes, count, &again) == OK);
    CHECK(tensorslim_calibration_counts(again, NULL, &samples, NULL) == OK && samples == 3 * SAMPLES - 1);
    tensorslim_calibration_free(again);
    bytes[count / 2] ^= 1;
    FAILS(FORMAT, tensorslim_calibration_from_bytes(bytes, count, &again));
    FAILS(FORMAT, tensorslim_calibration_from_bytes(bytes, 0, &again));
    FAILS(NULL_POINTER, tensorslim_calibration_from_bytes(NULL, 0, &again));
    CHECK(again == NULL);
    free(bytes);

    CHECK(tensorslim_svd_new(TENSORSLIM_RANK_FIXED, K, &svd) == OK);
    CHECK(tensorslim_factor(svd, &a, F64, NULL, NULL, &f) == OK);
    CHECK(tensorslim_factors_report(f, &plain, sizeof plain) == OK);
    tensorslim_factors_free(f);
    CHECK(tensorslim_svd_set_calibration(svd, inputs, TENSORSLIM_CALIBRATION_PART_FULL, 1.0) == OK);
    CHECK(tensorslim_factor(svd, &a, F64, NULL, NULL, &f) == OK);
    CHECK(tensorslim_factors_report(f, &weighted, sizeof weighted) == OK);
    CHECK(weighted.samples == 3 * SAMPLES - 1 && weighted.output_samples == 0);
    CHECK(weighted.relative_error >= plain.relative_error && weighted.weighted_error < 1 && weighted.cosine > 0);
    CHECK(tensorslim_factors_spectrum(f, 1, NULL, 0, &count) == OK && count >= K);
    tensorslim_factors_free(f);
    CHECK(tensorslim_svd_set_output_calibration(svd, outputs, TENSORSLIM_CALIBRATION_PART_FULL, 1.0) == OK);
    CHECK(tensorslim_factor(svd, &a, F64, NULL, NULL, &f) == OK);
    CHECK(tensorslim_factors_report(f, &report, sizeof report) == OK && report.output_samples == SAMPLES);
    CHECK(report.weighted_error > 0 && report.weighted_error < 1);
    tensorslim_factors_free(f);
    tensorslim_svd_free(svd);

    /* A quality, measured on other samples than those that weight the error. */
    CHECK(tensorslim_svd_new(TENSORSLIM_RANK_QUALITY, 0.9, &svd) == OK);
    FAILS(OPTION, tensorslim_factor(svd, &a, F64, NULL, NULL, &f));
    CHECK(tensorslim_svd_set_calibration(svd, inputs, TENSORSLIM_CALIBRATION_PART_DIAGONAL, 0.5) == OK);
    CHECK(tensorslim_svd_set_quality_on(svd, more) == OK);
    CHECK(tensorslim_factor(svd, &a, F32, NULL, NULL, &f) == OK);
    tensorslim_factors_free(f);
    FAILS(OPTION, tensorslim_svd_set_calibration(svd, inputs, 2, 0.5));
    CHECK(tensorslim_svd_set_calibration(svd, inputs, 0, 1.5) == OK);
    FAILS(OPTION, tensorslim_factor(svd, &a, F64, NULL, NULL, &f));
    CHECK(tensorslim_svd_set_calibration(svd, outputs, 0, 1.0) == OK);
    FAILS(SHAPE, tensorslim_factor(svd, &a, F64, NULL, NULL, &f));
    tensorslim_svd_free(svd);

    FAILS(SHAPE, tensorslim_calibration_update(inputs, &ag));
    FAILS(SHAPE, tensorslim_calibration_merge(inputs, outputs));
    FAILS(NULL_POINTER, tensorslim_calibration_merge(inputs, NULL));
    FAILS(NULL_POINTER, tensorslim_calibration_update(NULL, &ax));
    FAILS(NULL_POINTER, tensorslim_calibration_update(inputs, NULL));
    FAILS(NULL_POINTER, tensorslim_calibration_counts(NULL, &features, NULL, NULL));
    tensorslim_calibration_free(inputs);
    tensorslim_calibration_free(more);
    tensorslim_calibration_free(outputs);
    tensorslim_calibration_free(NULL);
    FAILS(EMPTY, tensorslim_calibration_new(0, 0, 0, &inputs));
    CHECK(inputs == NULL);
    FAILS(OPTION, tensorslim_calibration_new(N, 3, 0, &inputs));
    FAILS(OPTION, tensorslim_calibration_new(N, 0, 2, &inputs));
    FAILS(TOO_LARGE, tensorslim_calibration_new(SIZE_MAX / 16, 0, 0, &inputs));
}

static void transforms(void)
{
    static float x[4 * 16], before[4 * 16], y[4 * 32];
    static double panel[M * 4], r[4 * 4], original[M * 4];
    struct tensorslim_matrix_mut ax = out(x, 4, 16, F32), ay = out(y, 4, 32, F32), ar = out(r, 4, 4, F64);
    struct tensorslim_matrix_mut ap = {panel, M, 4, 1, M, F64};
    struct tensorslim_matrix from = in(x, 4, 16, F32);
    struct tensorslim_rotation *q;
    size_t length, i, j, k;
    double condition;

    for (i = 0; i < 64; i++)
        x[i] = before[i] = (float)noise();
    CHECK(tensorslim_fwht_rows(&ax, TENSORSLIM_SCALE_PLAIN, TENSORSLIM_THREADS_ONE) == OK);
    for (i = 0; i < 16; i++) {
        double want = 0;
        for (j = 0; j < 16; j++) {
            size_t bits = i & j, odd = 0;
            for (; bits; bits >>= 1)
                odd ^= bits & 1;
            want += odd ? -before[j] : before[j];
        }
        CHECK(fabs(x[i] - want) < 1e-5);
    }
    CHECK(tensorslim_fwht_rows(&ax, TENSORSLIM_SCALE_PLAIN, TENSORSLIM_THREADS_POOL) == OK);
    for (i = 0; i < 64; i++)
        CHECK(fabs(x[i] - 16 * before[i]) < 1e-4);
    memcpy(x, before, sizeof x);
    CHECK(tensorslim_fwht_columns(&ax, TENSORSLIM_SCALE_ORTHONORMAL, TENSORSLIM_THREADS_ONE) == OK);
    CHECK(fabs(x[0] - (before[0] + before[16] + before[32] + before[48]) / 2) < 1e-6);
    CHECK(tensorslim_fwht_columns(&ax, TENSORSLIM_SCALE_ORTHONORMAL, TENSORSLIM_THREADS_ONE) == OK);
    CHECK(tensorslim_fwht_rows(&ax, TENSORSLIM_SCALE_ORTHONORMAL, TENSORSLIM_THREADS_ONE) == OK);
    CHECK(tensorslim_fwht_rows(&ax, TENSORSLIM_SCALE_ORTHONORMAL, TENSORSLIM_THREADS_ONE) == OK);
    for (i = 0; i < 64; i++)
        CHECK(fabs(x[i] - before[i]) < 1e-6);
    FAILS(OPTION, tensorslim_fwht_rows(&ax, 2, 0));
    FAILS(OPTION, tensorslim_fwht_columns(&ax, 0, 2));
    FAILS(NULL_POINTER, tensorslim_fwht_rows(NULL, 0, 0));
    FAILS(NULL_POINTER, tensorslim_fwht_columns(NULL, 0, 0));
    ax.cols = 7;
    FAILS(ORDER, tensorslim_fwht_rows(&ax, 0, 0));
    ax.cols = 0;
    FAILS(EMPTY, tensorslim_fwht_rows(&ax, 0, 0));
    ax = out(x, 4, 16, F32);

    CHECK(tensorslim_rotation_new(16, TENSORSLIM_SCHEME_KAC, 0, 7, &q) == OK);
    CHECK(tensorslim_rotation_apply(q, &ax, 0, TENSORSLIM_THREADS_ONE) == OK);
    CHECK(memcmp(x, before, sizeof x) != 0);
    CHECK(tensorslim_rotation_apply(q, &ax, 1, TENSORSLIM_THREADS_ONE) == OK);
    for (i = 0; i < 64; i++)
        CHECK(fabs(x[i] - before[i]) < 1e-6);
    FAILS(OPTION, tensorslim_rotation_apply(q, &ax, 2, 0));
    FAILS(NULL_POINTER, tensorslim_rotation_apply(q, NULL, 0, 0));
    FAILS(NULL_POINTER, tensorslim_rotation_apply(NULL, &ax, 0, 0));
    FAILS(NULL_POINTER, tensorslim_rotation_output_length(q, NULL));
    ax.cols = 8;
    FAILS(SHAPE, tensorslim_rotation_apply(q, &ax, 0, 0));
    tensorslim_rotation_free(q);
    tensorslim_rotation_free(NULL);
    FAILS(ROTATION, tensorslim_rotation_new(7, TENSORSLIM_SCHEME_KAC, 0, 7, &q));
    CHECK(q == NULL);
    FAILS(OPTION, tensorslim_rotation_new(7, 4, 0, 7, &q));
    CHECK(tensorslim_rotation_new(24, TENSORSLIM_SCHEME_BLOCKS, 12, 7, &q) == OK);
    tensorslim_rotation_free(q);

    CHECK(tensorslim_rotation_new(11, TENSORSLIM_SCHEME_PADDED, 0, 7, &q) == OK);
    CHECK(tensorslim_rotation_output_length(q, &length) == OK && length == 16);
    from = in(x, 4, 11, F32);
    ay = out(y, 4, 16, F32);
    CHECK(tensorslim_rotation_apply_to(q, &from, &ay, 0, TENSORSLIM_THREADS_ONE) == OK);
    {
        struct tensorslim_matrix turned = in(y, 4, 16, F32);
        float back[4 * 11];
        struct tensorslim_matrix_mut to = out(back, 4, 11, F32);
        CHECK(tensorslim_rotation_apply_to(q, &turned, &to, 1, TENSORSLIM_THREADS_ONE) == OK);
        for (i = 0; i < 44; i++)
            CHECK(fabs(back[i] - before[i]) < 1e-6);
    }
    from.row_stride = 16;
    FAILS(OPTION, tensorslim_rotation_apply_to(q, &from, &ay, 0, 0));
    from.cols = 10;
    FAILS(SHAPE, tensorslim_rotation_apply_to(q, &from, &ay, 0, 0));
    from = in(y + 8, 4, 11, F32);
    FAILS(OVERLAP, tensorslim_rotation_apply_to(q, &from, &ay, 0, 0));
    from = in(x, 4, 11, TENSORSLIM_DTYPE_F16);
    FAILS(OPTION, tensorslim_rotation_apply_to(q, &from, &ay, 0, 0));
    tensorslim_rotation_free(q);

    for (i = 0; i < M * 4; i++)
        panel[i] = original[i] = noise();
    CHECK(tensorslim_orthonormalize(&ap, &ar, TENSORSLIM_THREADS_POOL, &condition) == OK);
    CHECK(condition >= 1 && condition < 100);
    for (j = 0; j < 4; j++)
        for (k = 0; k < 4; k++) {
            double dot = 0;
            for (i = 0; i < M; i++)
                dot += panel[j * M + i] * panel[k * M + i];
            CHECK(fabs(dot - (j == k)) < 1e-13);
            CHECK(k >= j || r[j * 4 + k] == 0);
        }
    for (i = 0; i < M; i++)
        CHECK(fabs(original[i] - panel[i] * r[0]) < 1e-13);
    CHECK(tensorslim_orthonormalize(&ap, NULL, TENSORSLIM_THREADS_ONE, NULL) == OK);
    ar.rows = 3;
    FAILS(SHAPE, tensorslim_orthonormalize(&ap, &ar, 0, NULL));
    ar = out(panel, 4, 4, F64);
    FAILS(OVERLAP, tensorslim_orthonormalize(&ap, &ar, 0, NULL));
    ar = out(r, 4, 4, F32);
    FAILS(OPTION, tensorslim_orthonormalize(&ap, &ar, 0, NULL));
    panel[3] = NAN;
    FAILS(NOT_FINITE, tensorslim_orthonormalize(&ap, NULL, 0, NULL));
    ap.dtype = TENSORSLIM_DTYPE_F16;
    FAILS(OPTION, tensorslim_orthonormalize(&ap, NULL, 0, NULL));
    ap = out(panel, 4, M, F64);
    FAILS(SHAPE, tensorslim_orthonormalize(&ap, NULL, 0, NULL));
    FAILS(NULL_POINTER, tensorslim_orthonormalize(NULL, NULL, 0, NULL));
}

int main(void)
{
    unsigned kind, unreachable;
    CHECK(strcmp(tensorslim_last_error(), "") == 0);
    CHECK(strlen(tensorslim_version()) >= 5);
    factors();
    options();
    rows();
    budgets();
    calibration();
    transforms();
    /* There are no axes to merge here; nothing is known that does not converge; a panic would be a bug. */
    unreachable = 1u << TENSORSLIM_STATUS_LAYOUT | 1u << TENSORSLIM_STATUS_NO_CONVERGENCE |
                  1u << TENSORSLIM_STATUS_INTERNAL;
    for (kind = 1; kind <= TENSORSLIM_STATUS_BUFFER; kind++)
        CHECK((reached | unreachable) >> kind & 1);
    printf("version %s, all well\n", tensorslim_version());
    return 0;
}
