// Copies of whole directories.
#pragma once

#include "lora/core/path.h"

namespace lora {

/// Copies everything in the directory `from`, folders with what is in them, into the existing directory `to`. Nothing is synced:
/// AtomicDirectory does that. Throws IoError.
void copy_directory(const Path& from, const Path& to);

}  // namespace lora
