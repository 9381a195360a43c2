// Element types and shapes, which the kernels of all devices take in addition to pointers.
#pragma once

#include <cstdint>

namespace iaat {

// Codes shared with iaat_fast/ops/native/signatures.py.
enum class DType : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

// Images are rows of `row_elems` elements. x_adv has `rows` of them, x has `samples`; rows = K * samples, and row
// k * samples + i is candidate k of sample i. eps and alpha hold one value per row, in float (double for double
// images).
struct Rows {
    int64_t rows, samples, row_elems;
};

// A tensor of a network: element i belongs to channel i / inner % channels; inner is 1 if channels are the fastest
// dimension. Values per channel are in float (double for double tensors).
struct Layer {
    int64_t elements, channels, inner;
};

}  // namespace iaat
