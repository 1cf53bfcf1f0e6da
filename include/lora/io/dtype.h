#pragma once

#include <c10/core/ScalarType.h>

#include <string_view>

#include "lora/core/dtype.h"

namespace lora::io {

/// The torch type of a file's element type. Throws FormatError for types that torch 2.11 cannot
/// hold in a plain tensor (F4, F6); `where` opens the message.
c10::ScalarType to_torch(DType dtype, std::string_view where);

/// The file type of a torch type. Throws ShapeError for quantised and other types that files cannot
/// hold.
DType from_torch(c10::ScalarType type);

}  // namespace lora::io
