// Dispatch from a dtype code to the C++ type.
#pragma once

#include "math/half.h"
#include "types.h"

namespace iaat {
inline namespace IAAT_ISA {

// Calls body with a null pointer of the element type that `dtype` names, and returns what it returns.
template <typename Body>
auto with_type(DType dtype, const Body& body) -> decltype(body(static_cast<float*>(nullptr))) {
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
    return decltype(body(static_cast<float*>(nullptr)))();
}

}  // namespace IAAT_ISA
}  // namespace iaat
