// The signed gradient step and the projection onto an L-infinity ball inside a box, one element at a time.
#pragma once

#include "math/config.h"

namespace iaat {
inline namespace IAAT_ISA {

// NaN stays NaN, as in torch.clamp, and each select compiles to one min or max instruction.
template <typename T>
IAAT_HD T clamp(T value, T lo, T hi) {
    const T raised = lo > value ? lo : value;
    return hi < raised ? hi : raised;
}

// Onto the ball, then onto the box: the order of torchattacks and foolbox, so the bits agree with theirs.
template <typename T>
IAAT_HD T project_linf(T x_adv, T x, T eps, T lo, T hi) {
    return clamp(x + clamp(x_adv - x, -eps, eps), lo, hi);
}

// alpha > 0 ascends the loss, alpha < 0 descends it; where the gradient is 0 or NaN there is no step.
template <typename T>
IAAT_HD T pgd_step_linf(T x_adv, T grad, T x, T eps, T alpha, T lo, T hi) {
    const T up = grad > T(0) ? alpha : T(0);
    const T step = grad < T(0) ? -alpha : up;
    return project_linf(x_adv + step, x, eps, lo, hi);
}

}  // namespace IAAT_ISA
}  // namespace iaat
