// A clamped activation behind a scale and a shift, and the gradient through both, one element at a time.
#pragma once

#include <math.h>

#include "math/half.h"
#include "math/linf.h"

namespace iaat {
inline namespace IAAT_ISA {

template <typename A>
struct Bounds {
    A floor, ceiling;
};

// The bounds that decide where an activation of T blocks the gradient: rounded as its output was. An infinite one is
// NaN here, which no comparison meets: as in autograd, an infinite output then lets the gradient pass.
template <typename T>
Bounds<typename Arithmetic<T>::type> blocking_bounds(double floor, double ceiling) {
    using A = typename Arithmetic<T>::type;
    T low, high;
    store(&low, A(floor));
    store(&high, A(ceiling));
    return {floor == -INFINITY ? A(NAN) : A(load(low)), ceiling == INFINITY ? A(NAN) : A(load(high))};
}

// NaN is not blocked.
template <typename A>
IAAT_HD bool blocked(A out, Bounds<A> bounds) {
    return (out <= bounds.floor) | (out >= bounds.ceiling);
}

template <typename A>
IAAT_HD A relu_backward(A grad, A out, Bounds<A> bounds) {
    return blocked(out, bounds) ? A(0) : grad;
}

template <typename A>
IAAT_HD A scale_shift_relu(A x, A scale, A shift, Bounds<A> bounds) {
    return clamp(x * scale + shift, bounds.floor, bounds.ceiling);
}

template <typename A>
IAAT_HD A scale_shift_relu_backward(A grad, A out, A scale, Bounds<A> bounds) {
    return blocked(out, bounds) ? A(0) : grad * scale;
}

}  // namespace IAAT_ISA
}  // namespace iaat
