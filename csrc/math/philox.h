// Philox4x32-10 (Salmon et al., SC 2011) and its mapping to uniform noise in (-1, 1).
#pragma once

#include "math/config.h"

namespace iaat {
inline namespace IAAT_ISA {

constexpr int kPhiloxRounds = 10;

struct PhiloxState {
    uint32_t c0, c1, c2, c3;
};

IAAT_HD PhiloxState philox_round(PhiloxState s, uint32_t key0, uint32_t key1) {
    const uint64_t product0 = uint64_t(0xD2511F53u) * s.c0;
    const uint64_t product1 = uint64_t(0xCD9E8D57u) * s.c2;
    return {uint32_t(product1 >> 32) ^ s.c1 ^ key0, uint32_t(product1), uint32_t(product0 >> 32) ^ s.c3 ^ key1,
            uint32_t(product0)};
}

// counter = (element / 4, sample, candidate, restart): noise depends on the sample number, not the place in a batch.
IAAT_HD PhiloxState philox(uint64_t key, uint32_t block, uint32_t sample, uint32_t candidate, uint32_t restart) {
    PhiloxState state{block, sample, candidate, restart};
    uint32_t key0 = uint32_t(key), key1 = uint32_t(key >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
        state = philox_round(state, key0, key1);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return state;
}

// (2k + 1 - 2^24) / 2^24 for the word's top 24 bits k: symmetric about 0, strictly inside (-1, 1), exact in float.
template <typename T>
IAAT_HD T uniform_symmetric(uint32_t word) {
    return T(2 * int32_t(word >> 8) + 1 - (1 << 24)) * T(1.0 / (1 << 24));
}

}  // namespace IAAT_ISA
}  // namespace iaat
