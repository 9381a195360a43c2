// The interface of the CPU kernels: a table of functions on pointers and sizes, one per instruction set.
#pragma once

#include "types.h"

namespace iaat {

// Kernels that read radii, classes or logits return false if one of them is invalid: a radius or step size that is
// negative or NaN (or a step size of 0 with a radius > 0), a class or index out of range, a row of logits whose softmax
// is NaN. They have written nothing then, except saturation_proof, which may have replaced other rows. Python then
// finds the invalid value and raises.
struct Kernels {
    const char* isa;
    bool (*project_linf)(DType, void* out, const void* x_adv, const void* x, const void* eps, Rows, double lo,
                         double hi);
    // stats: two int64 counters, zero and NaN gradient entries, added to; or null.
    bool (*pgd_step_linf)(DType, void* x_adv, const void* grad, const void* x, const void* eps, const void* alpha, Rows,
                          double lo, double hi, bool targeted, int64_t* stats);
    // stream: key, restart and first candidate.
    bool (*random_start_linf)(DType, void* out, const void* x, const void* eps, const int64_t* stream,
                              const int64_t* index, Rows, double lo, double hi);
    // rows: -onehot in float (double for double logits); y[r % samples] is row r's class.
    bool (*minus_onehot)(DType, void* rows, const int64_t* y, int64_t n_rows, int64_t samples, int64_t classes);
    // rows: softmax - onehot in float (double for double logits), replaced in place; y[r % samples] is row r's class.
    bool (*saturation_proof)(DType, void* rows, const void* logits, const int64_t* y, int64_t n_rows, int64_t samples,
                             int64_t classes);
    bool (*select_epsilon)(DType, float* memory, int64_t size, const int64_t* index, const void* logits,
                           const int64_t* y, float* eps, int64_t* choice, const bool* misclassified, int64_t samples,
                           int64_t classes, double gamma, double beta, double eps_min, double eps_max,
                           bool clamp_candidate);
    // images: uint8 [size, height, width, channels]; out: float [n, channels, height, width]; stream: key and stream.
    bool (*random_crop_flip)(float* out, const uint8_t* images, const int64_t* index, const int64_t* stream, int64_t n,
                             int64_t size, int64_t height, int64_t width, int64_t channels, int64_t padding, bool flip);
    // other: a second gradient, or null.
    void (*relu_backward)(DType, void* grad, const void* out, const void* other, int64_t elements, double floor,
                          double ceiling);
    // residual: null, or a tensor added to x before all else (backward: to grad after all else). scale, shift: a value
    // per channel.
    void (*scale_shift_relu)(DType, void* out, void* x, const void* residual, const void* scale, const void* shift,
                             Layer, double floor, double ceiling);
    void (*scale_shift_relu_backward)(DType, void* grad, const void* out, const void* scale, const void* residual,
                                      Layer, double floor, double ceiling);
};

// The best table for this processor, and the one named, or null if that is not built or cannot run here.
const Kernels& best_kernels();
const Kernels* kernels_named(const char* name);

}  // namespace iaat
