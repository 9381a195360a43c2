// fp16 and bf16 storage types: bit conversions to and from float, rounding to nearest even.
#pragma once

#include <cstring>

#include "math/config.h"

namespace iaat {
inline namespace IAAT_ISA {

struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

IAAT_HD uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

IAAT_HD float bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

IAAT_HD float load(float value) { return value; }
IAAT_HD double load(double value) { return value; }
IAAT_HD float load(BFloat16 value) { return bits_float(uint32_t(value.bits) << 16); }

// Shifts exponent and mantissa into place; multiplying by 2^112 corrects the exponent's bias and is exact for
// subnormals too. For infinity and NaN the largest exponent is set instead.
IAAT_HD float load(Half value) {
    const uint32_t magnitude = uint32_t(value.bits & 0x7fffu) << 13;
    const uint32_t finite = float_bits(bits_float(magnitude) * bits_float(0x77800000u));
    const uint32_t bits = magnitude >= 0x0f800000u ? (magnitude | 0x7f800000u) : finite;
    return bits_float(bits | uint32_t(value.bits & 0x8000u) << 16);
}

IAAT_HD void store(float* to, float value) { *to = value; }
IAAT_HD void store(double* to, double value) { *to = value; }

IAAT_HD void store(BFloat16* to, float value) {
    const uint32_t bits = float_bits(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    to->bits = uint16_t(value != value ? 0x7fc0u : rounded);
}

// For subnormal results: adding 0.5 aligns their last bit with that of float, so that the addition rounds.
IAAT_HD void store(Half* to, float value) {
    const uint32_t bits = float_bits(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half;
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    to->bits = uint16_t(half | sign);
}

// The type of the arithmetic: half types are computed in float and rounded once, when stored.
template <typename T>
struct Arithmetic {
    using type = float;
};
template <>
struct Arithmetic<double> {
    using type = double;
};

}  // namespace IAAT_ISA
}  // namespace iaat
