// What tests/cuda/test_emulator.py calls: small kernels that use, or misuse, each feature of the emulated device.
#pragma once

#include <cstdint>

namespace selftest {

void block_sum(uintptr_t out, uintptr_t in, int blocks, int threads, bool barrier);
void count_lanes(uintptr_t out, int n);
void read_an_exited_lane(uintptr_t out, int n);
void diverge(uintptr_t out);
int copy_vectors(uintptr_t out, uintptr_t in, int n, int threads);

}  // namespace selftest
