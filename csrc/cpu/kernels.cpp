// The CPU kernels: vectorised, multithreaded loops over csrc/math, compiled once per instruction set.
#include "cpu/kernels.h"

#include <algorithm>
#include <type_traits>

#include "cpu/crop.h"
#include "cpu/layers.h"
#include "cpu/loops.h"
#include "math/cotangent.h"
#include "math/dtypes.h"
#include "math/epsilon.h"
#include "math/linf.h"
#include "math/philox.h"

namespace iaat {
inline namespace IAAT_ISA {
namespace {

// Splits a flat range of x_adv into pieces within one row each, and calls piece(row, offset in x_adv, offset in x,
// length) for each of them.
template <typename Piece>
void for_each_row_piece(const Rows& size, int64_t begin, int64_t end, const Piece& piece) {
    while (begin < end) {
        const int64_t row = begin / size.row_elems, column = begin % size.row_elems;
        int64_t length = size.row_elems - column;
        if (length > end - begin) length = end - begin;
        if (length > kTile) length = kTile;
        piece(row, begin, row % size.samples * size.row_elems + column, length);
        begin += length;
    }
}

template <typename A>
bool all_radii(const A* eps, int64_t rows) {
    bool valid = true;
    for (int64_t row = 0; row < rows; ++row) valid &= eps[row] >= A(0);
    return valid;
}

template <typename A>
bool all_steps(const A* alpha, const A* eps, int64_t rows) {
    bool valid = true;
    for (int64_t row = 0; row < rows; ++row) valid &= alpha[row] > A(0) || (alpha[row] == A(0) && eps[row] == A(0));
    return valid;
}

bool all_within(const int64_t* values, int64_t n, int64_t size) {
    bool valid = true;
    for (int64_t i = 0; i < n; ++i) valid &= values[i] >= 0 && values[i] < size;
    return valid;
}

template <typename T>
bool project_linf_typed(T* out, const T* x_adv, const T* x, const void* eps_rows, Rows size, double lo64, double hi64) {
    using A = typename Arithmetic<T>::type;
    const A* eps = static_cast<const A*>(eps_rows);
    const A lo = A(lo64), hi = A(hi64);
    if (!all_radii(eps, size.rows)) return false;
    parallel_for(size.rows * size.row_elems, [=](int64_t begin, int64_t end) {
        for_each_row_piece(size, begin, end, [=](int64_t row, int64_t at, int64_t at_x, int64_t length) {
            const A radius = eps[row];
#pragma omp simd
            for (int64_t j = 0; j < length; ++j)
                store(out + at + j, project_linf(load(x_adv[at + j]), load(x[at_x + j]), radius, lo, hi));
        });
    });
    return true;
}

template <bool kCount, typename T>
bool pgd_step_linf_typed(T* x_adv, const T* grad, const T* x, const void* eps_rows, const void* alpha_rows, Rows size,
                         double lo64, double hi64, bool targeted, int64_t* stats) {
    using A = typename Arithmetic<T>::type;
    const A *eps = static_cast<const A*>(eps_rows), *alpha = static_cast<const A*>(alpha_rows);
    const A lo = A(lo64), hi = A(hi64);
    if (!all_radii(eps, size.rows) || !all_steps(alpha, eps, size.rows)) return false;
    parallel_for(size.rows * size.row_elems, [=](int64_t begin, int64_t end) {
        int64_t zeros = 0, nans = 0;
        for_each_row_piece(size, begin, end, [=, &zeros, &nans](int64_t row, int64_t at, int64_t at_x, int64_t length) {
            const A radius = eps[row], step = targeted ? -alpha[row] : alpha[row];
            T* a = x_adv + at;
            const T *g = grad + at, *centre = x + at_x;
            int32_t zero = 0, nan = 0;
#pragma omp simd reduction(+ : zero, nan)
            for (int64_t j = 0; j < length; ++j) {
                const A slope = load(g[j]);
                store(a + j, pgd_step_linf(A(load(a[j])), slope, A(load(centre[j])), radius, step, lo, hi));
                if (kCount) {
                    zero += slope == A(0);
                    nan += slope != slope;
                }
            }
            zeros += zero;
            nans += nan;
        });
        if (kCount) {
#pragma omp atomic
            stats[0] += zeros;
#pragma omp atomic
            stats[1] += nans;
        }
    });
    return true;
}

template <typename T>
bool random_start_linf_typed(T* out, const T* x, const void* eps_rows, const int64_t* stream, const int64_t* index,
                             Rows size, double lo64, double hi64) {
    using A = typename Arithmetic<T>::type;
    const A* eps = static_cast<const A*>(eps_rows);
    const A lo = A(lo64), hi = A(hi64);
    if (!all_radii(eps, size.rows)) return false;
    const uint64_t key = uint64_t(stream[0]);
    const uint32_t restart = uint32_t(stream[1]);
    // kLanes Philox blocks at a time, so that the rounds are vectorised.
    constexpr int64_t kLanes = 16;
    const int64_t lanes = (size.row_elems + 4 * kLanes - 1) / (4 * kLanes);
#pragma omp parallel for if (size.rows * size.row_elems > kGrain)
    for (int64_t job = 0; job < size.rows * lanes; ++job) {
        const int64_t row = job / lanes, first = job % lanes * kLanes;
        const uint32_t sample = uint32_t(index[row % size.samples]);
        const uint32_t candidate = uint32_t(stream[2] + row / size.samples);
        uint32_t words[4][kLanes];
#pragma omp simd
        for (int64_t lane = 0; lane < kLanes; ++lane) {
            const PhiloxState state = philox(key, uint32_t(first + lane), sample, candidate, restart);
            words[0][lane] = state.c0;
            words[1][lane] = state.c1;
            words[2][lane] = state.c2;
            words[3][lane] = state.c3;
        }
        const T* centre = x + row % size.samples * size.row_elems;
        for (int64_t j = 4 * first; j < 4 * (first + kLanes) && j < size.row_elems; ++j) {
            const A noise = uniform_symmetric<A>(words[j % 4][j / 4 - first]);
            store(out + row * size.row_elems + j, clamp(A(load(centre[j])) + noise * eps[row], lo, hi));
        }
    }
    return true;
}

template <typename T>
bool saturation_proof_typed(void* rows, const T* logits, const int64_t* y, int64_t n_rows, int64_t samples,
                            int64_t classes) {
    using A = typename Arithmetic<T>::type;
    if (!all_within(y, samples, classes)) return false;
    bool valid = true;
#pragma omp parallel for reduction(&& : valid) if (n_rows * classes > kGrain)
    for (int64_t r = 0; r < n_rows; ++r)
        valid = saturation_proof(static_cast<A*>(rows) + r * classes, logits + r * classes, y[r % samples], classes) &&
                valid;
    return valid;
}

template <typename A>
bool minus_onehot_typed(A* rows, const int64_t* y, int64_t n_rows, int64_t samples, int64_t classes) {
    if (!all_within(y, samples, classes)) return false;
#pragma omp parallel for if (n_rows * classes > kGrain)
    for (int64_t r = 0; r < n_rows; ++r) {
        std::fill_n(rows + r * classes, classes, A(0));
        rows[r * classes + y[r % samples]] = A(-1);
    }
    return true;
}

template <typename T>
bool select_epsilon_typed(float* memory, int64_t size, const int64_t* index, const T* logits, const int64_t* y,
                          float* eps, int64_t* choice, const bool* misclassified, int64_t samples, int64_t classes,
                          double gamma, double beta, double eps_min, double eps_max, bool clamp_candidate) {
    bool valid = all_within(index, samples, size) && all_within(y, samples, classes);
    for (int64_t r = 0; r < 3 * samples; ++r) valid &= softmax_is_finite(logits + r * classes, classes);
    if (!valid) return false;
    for (int64_t i = 0; i < samples; ++i) {
        const T *first = logits + i * classes, *second = first + samples * classes;
        choice[i] = choose_candidate(argmax(first, classes) == y[i], argmax(second, classes) == y[i]);
        eps[i] =
            smooth_epsilon(memory[index[i]], choice[i], float(gamma), float(beta), float(1.0 - beta), clamp_candidate,
                           misclassified != nullptr && misclassified[i], float(eps_min), float(eps_max));
    }
    for (int64_t i = 0; i < samples; ++i) memory[index[i]] = eps[i];
    return true;
}

bool random_crop_flip(float* out, const uint8_t* images, const int64_t* index, const int64_t* stream, int64_t n,
                      int64_t size, int64_t height, int64_t width, int64_t channels, int64_t padding, bool flip) {
    if (!all_within(index, n, size)) return false;
    const uint64_t key = uint64_t(stream[0]);
    const int64_t elements = height * width * channels;
#pragma omp parallel for if (n * elements > kGrain)
    for (int64_t i = 0; i < n; ++i)
        crop_flip_image(out + i * elements, images + index[i] * elements,
                        draw_crop_flip(key, uint32_t(stream[1]), uint32_t(index[i]), int32_t(padding), flip), height,
                        width, channels);
    return true;
}

bool project_linf_any(DType dtype, void* out, const void* x_adv, const void* x, const void* eps, Rows size, double lo,
                      double hi) {
    return with_type(dtype, [=](auto* type) {
        return project_linf_typed(as(out, type), as(x_adv, type), as(x, type), eps, size, lo, hi);
    });
}

bool pgd_step_linf_any(DType dtype, void* x_adv, const void* grad, const void* x, const void* eps, const void* alpha,
                       Rows size, double lo, double hi, bool targeted, int64_t* stats) {
    return with_type(dtype, [=](auto* type) {
        const auto run = [=](auto count) {
            return pgd_step_linf_typed<decltype(count)::value>(as(x_adv, type), as(grad, type), as(x, type), eps, alpha,
                                                               size, lo, hi, targeted, stats);
        };
        return stats ? run(Bool<true>{}) : run(Bool<false>{});
    });
}

bool random_start_linf_any(DType dtype, void* out, const void* x, const void* eps, const int64_t* stream,
                           const int64_t* index, Rows size, double lo, double hi) {
    return with_type(dtype, [=](auto* type) {
        return random_start_linf_typed(as(out, type), as(x, type), eps, stream, index, size, lo, hi);
    });
}

bool saturation_proof_any(DType dtype, void* rows, const void* logits, const int64_t* y, int64_t n_rows,
                          int64_t samples, int64_t classes) {
    return with_type(
        dtype, [=](auto* type) { return saturation_proof_typed(rows, as(logits, type), y, n_rows, samples, classes); });
}

bool minus_onehot_any(DType dtype, void* rows, const int64_t* y, int64_t n_rows, int64_t samples, int64_t classes) {
    return with_type(dtype, [=](auto* type) {
        using A = typename Arithmetic<std::remove_pointer_t<decltype(type)>>::type;
        return minus_onehot_typed(static_cast<A*>(rows), y, n_rows, samples, classes);
    });
}

bool select_epsilon_any(DType dtype, float* memory, int64_t size, const int64_t* index, const void* logits,
                        const int64_t* y, float* eps, int64_t* choice, const bool* misclassified, int64_t samples,
                        int64_t classes, double gamma, double beta, double eps_min, double eps_max,
                        bool clamp_candidate) {
    return with_type(dtype, [=](auto* type) {
        return select_epsilon_typed(memory, size, index, as(logits, type), y, eps, choice, misclassified, samples,
                                    classes, gamma, beta, eps_min, eps_max, clamp_candidate);
    });
}

}  // namespace

#define IAAT_STRING_(text) #text
#define IAAT_STRING(text) IAAT_STRING_(text)

extern const Kernels kernels;
const Kernels kernels{
    IAAT_STRING(IAAT_ISA),        project_linf_any,   pgd_step_linf_any, random_start_linf_any, minus_onehot_any,
    saturation_proof_any,         select_epsilon_any, random_crop_flip,  relu_backward_any,     scale_shift_relu_any,
    scale_shift_relu_backward_any};

}  // namespace IAAT_ISA
}  // namespace iaat
