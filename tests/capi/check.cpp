// The C interface as a C++ program uses it: handles in std::unique_ptr, failures as exceptions.
#include <cmath>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <tensorslim.h>

namespace {

struct Free {
    void operator()(tensorslim_svd *p) const { tensorslim_svd_free(p); }
    void operator()(tensorslim_factors *p) const { tensorslim_factors_free(p); }
};

void check(tensorslim_status status)
{
    if (status != TENSORSLIM_STATUS_OK)
        throw std::runtime_error(tensorslim_last_error());
}

std::unique_ptr<tensorslim_svd, Free> options(double rank)
{
    tensorslim_svd *svd = nullptr;
    check(tensorslim_svd_new(TENSORSLIM_RANK_FIXED, rank, &svd));
    return std::unique_ptr<tensorslim_svd, Free>(svd);
}

// The singular values of rank 2 of a matrix.
std::vector<float> factor(const std::vector<float> &w, std::size_t m, std::size_t n)
{
    const auto svd = options(2);
    const tensorslim_matrix a = {w.data(), m, n, static_cast<std::ptrdiff_t>(n), 1, TENSORSLIM_DTYPE_F32};
    tensorslim_factors *made = nullptr;
    check(tensorslim_factor(svd.get(), &a, TENSORSLIM_DTYPE_F32, nullptr, nullptr, &made));
    const std::unique_ptr<tensorslim_factors, Free> factors(made);
    std::vector<float> s(2);
    const tensorslim_matrix_mut to = {s.data(), 2, 1, 1, 1, TENSORSLIM_DTYPE_F32};
    check(tensorslim_factors_get(factors.get(), TENSORSLIM_PART_S, &to));
    return s;
}

} // namespace

int main()
{
    const std::size_t m = 96, n = 64;
    std::vector<float> w(m * n);
    for (std::size_t i = 0; i < w.size(); i++)
        w[i] = std::sin(0.37f * static_cast<float>(i));
    const auto s = factor(w, m, n);
    double squares = 0;
    for (const float x : w)
        squares += double(x) * x;
    // sin(a + b) has rank 2.
    if (std::fabs(double(s[0]) * s[0] + double(s[1]) * s[1] - squares) > 1e-3 * squares)
        return 1;

    // A failure is an exception, with a text of its own on each thread.
    std::string text;
    try {
        factor(w, 1, n);
    } catch (const std::runtime_error &error) {
        text = error.what();
    }
    bool clean = false, same = false;
    std::thread([&] {
        clean = *tensorslim_last_error() == '\0';
        same = factor(w, m, n) == s;
    }).join();
    if (text != "rank 2 is outside 1..=1" || !clean || !same)
        return 1;
    std::puts("all well");
    return 0;
}
