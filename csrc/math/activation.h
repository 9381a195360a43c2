// A scale and shift followed by a clamp, and the gradient through both, one element at a time.
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

// The bounds at which an activation of type T blocks the gradient, rounded to T like its output. Infinite bounds become
// NaN, which no comparison matches: as in autograd, they block nothing, not even at an infinite output.
template <typename T>
Bounds<typename Arithmetic<T>::type> blocking_bounds(double floor, double ceiling) {
    using A = typename Arithmetic<T>::type;
    T low, high;
    store(&low, A(floor));
    store(&high, A(ceiling));
    return {floor == -INFINITY ? A(NAN) : A(load(low)), ceiling == INFINITY ? A(NAN) : A(load(high))};
}

// Whether the gradient is 0 at this output; not where the output is NaN.
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
