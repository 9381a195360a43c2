// Algorithm 2 of IAAT for one sample: choose a candidate radius, smooth it, clamp it.
#pragma once

#include "math/half.h"
#include "math/linf.h"

namespace iaat {
inline namespace IAAT_ISA {

// Whether the softmax of a row of logits is finite: no logit is NaN, and the largest is finite.
template <typename T>
IAAT_HD bool softmax_is_finite(const T* logits, int64_t classes) {
    bool valid = true;
    auto largest = load(logits[0]);
    for (int64_t j = 0; j < classes; ++j) {
        const auto z = load(logits[j]);
        valid &= z == z;
        largest = z > largest ? z : largest;
    }
    return valid && largest - largest == 0;
}

// Predicted class of a row of logits; the first of equals, as in torch.argmax.
template <typename T>
IAAT_HD int64_t argmax(const T* logits, int64_t classes) {
    int64_t best = 0;
    for (int64_t j = 1; j < classes; ++j)
        if (load(logits[j]) > load(logits[best])) best = j;
    return best;
}

// Lines 4-10: 0 (prev + gamma), 1 (prev) or 2 (prev - gamma).
IAAT_HD int64_t choose_candidate(bool robust_at_first, bool robust_at_second) {
    return robust_at_first ? 0 : (robust_at_second ? 1 : 2);
}

// Lines 1-3 and 11; keep is 1 - beta. Both are rounded from double to float, as torch rounds Python scalars.
IAAT_HD float smooth_epsilon(float prev, int64_t choice, float gamma, float beta, float keep, bool clamp_candidate,
                             bool misclassified, float lo, float hi) {
    float candidate = choice == 0 ? prev + gamma : (choice == 1 ? prev : prev - gamma);
    if (clamp_candidate && candidate < 0.0f) candidate = 0.0f;
    if (misclassified) candidate = 0.0f;
    return clamp(keep * prev + beta * candidate, lo, hi);
}

}  // namespace IAAT_ISA
}  // namespace iaat
