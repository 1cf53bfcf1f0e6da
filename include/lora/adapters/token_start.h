#pragma once

#include "lora/adapters/adapter_set.h"
#include "lora/io/adapter_files.h"

namespace lora {

/// Lets the rows of an adapter's tokens start as those of another's files (trainable tokens alone, or beside another method).
/// Throws ConfigError unless both have the same tokens in the same tables, ShapeError where the file's rows do not fit.
void start_token_rows(const AdapterSet& adapters, const io::AdapterFiles& files);

}  // namespace lora
