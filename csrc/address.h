// Conversions of arguments from Python: addresses to pointers, and dtype codes to DType.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "types.h"

namespace iaat {

using Address = uintptr_t;

template <typename T = void>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

inline DType dtype_of(int code) {
    if (code < 0 || code > int(DType::kBFloat16))
        throw pybind11::value_error("dtype code " + std::to_string(code) + ": expected 0 to 3");
    return DType(code);
}

}  // namespace iaat
