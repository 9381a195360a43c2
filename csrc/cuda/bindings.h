// The part of iaat_fast._C that exists in builds with CUDA kernels.
#pragma once

#include <pybind11/pybind11.h>

namespace iaat {
namespace cuda {

// Adds the functions that launch kernels to `module`, iaat_fast._C.cuda.
void bind(pybind11::module_& module);

}  // namespace cuda
}  // namespace iaat
