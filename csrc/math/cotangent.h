// The saturation-proof gradient of the cross-entropy for one row of logits; in float the same bits on every backend.
#pragma once

#include <math.h>

#include "math/half.h"

namespace iaat {
inline namespace IAAT_ISA {

// If 1 - p_y is at most this, the plain gradient has lost too many of float's 24 bits.
constexpr double kSaturation = 1.0 / 4096;

IAAT_HD float pow2(float exponent) { return bits_float(uint32_t(int32_t(exponent) + 127) << 23); }

// exp(x) for x <= 0 by additions and multiplications only, each rounded once: Cody and Waite's reduction to
// |r| <= ln(2)/2, then the Taylor polynomial of degree 7, whose error is below 2^-24. So float has the same bits on all
// platforms, unlike a library's exp, which is used for double.
IAAT_HD float exp_nonpositive(float x) {
    const float n = rintf(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return x < -87.0f ? 0.0f : p * pow2(n < -126.0f ? -126.0f : n);
}
IAAT_HD double exp_nonpositive(double x) { return exp(x); }

// The power of two that scales |value| into [0.5, 1); 1 for zero, infinity and NaN.
IAAT_HD float normalising_power(float value) {
    const int exponent = int((float_bits(value) >> 23) & 0xffu);
    return exponent == 0 || exponent == 255 ? 1.0f : bits_float(uint32_t(253 - exponent) << 23);
}
IAAT_HD double normalising_power(double value) {
    if (value == 0 || value != value || value - value != 0) return 1.0;
    int exponent;
    frexp(value, &exponent);
    return ldexp(1.0, -exponent);
}

// One row, in place: `row` is the plain gradient, softmax - onehot of `logits`. It is scaled by a power of two or, if
// it saturates, replaced by exponentials shifted by the largest other logit. Returns false and leaves the row as it is
// if its softmax is NaN, as for a logit that is NaN or +infinity.
template <typename T, typename Logit>
IAAT_HD bool saturation_proof(T* row, const Logit* logits, int64_t y, int64_t classes) {
    const T missing = -row[y];  // 1 - p_y
    if (missing != missing) return false;
    if (missing > T(kSaturation)) {
        const T scale = normalising_power(missing);
        for (int64_t j = 0; j < classes; ++j) row[j] *= scale;
        return true;
    }
    T largest = -T(INFINITY);
    for (int64_t j = 0; j < classes; ++j) {
        const T z = T(load(logits[j]));
        if (j != y && z > largest) largest = z;
    }
    // In double the sum of the terms that matter is exact in any order, so backends need not use the same one.
    double others = 0;
    for (int64_t j = 0; j < classes; ++j) {
        const T z = T(load(logits[j]));
        row[j] = j == y || z == -T(INFINITY) ? T(0) : exp_nonpositive(z - largest);
        others += double(row[j]);
    }
    row[y] = -T(others);
    return true;
}

}  // namespace IAAT_ISA
}  // namespace iaat
