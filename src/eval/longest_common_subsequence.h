#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace lora::eval {

/// Length of the longest sequence that both have in this order, not necessarily without gaps.
/// Numbers are below `num_symbols`. Takes |a| * |b| / 64 steps plus the pairs of equal numbers; no
/// more memory than both and num_symbols.
///
/// Source: Hyyrö, Bit-parallel LCS-length computation revisited (2004).
size_t longest_common_subsequence(std::span<const uint32_t> a, std::span<const uint32_t> b, size_t num_symbols);

}  // namespace lora::eval
