// From a dtype's code to its C++ type.
#pragma once

#include "math/half.h"
#include "types.h"

namespace iaat {
namespace cuda {

// Calls body with a null pointer of the element type that `dtype` names.
template <typename Body>
void with_type(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::kFloat32:
            return body(static_cast<float*>(nullptr));
        case DType::kFloat64:
            return body(static_cast<double*>(nullptr));
        case DType::kFloat16:
            return body(static_cast<Half*>(nullptr));
        case DType::kBFloat16:
            return body(static_cast<BFloat16*>(nullptr));
    }
}

}  // namespace cuda
}  // namespace iaat
