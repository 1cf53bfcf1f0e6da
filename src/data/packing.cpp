#include "lora/data/packing.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "core/check.h"

namespace lora::data {

std::vector<std::vector<int64_t>> pack_rows(const RowSource& rows, int64_t max_length) {
  std::vector<int64_t> longest_first(static_cast<size_t>(rows.size()));
  std::iota(longest_first.begin(), longest_first.end(), int64_t{0});
  std::stable_sort(longest_first.begin(), longest_first.end(),
                   [&](int64_t a, int64_t b) { return rows.length(a) > rows.length(b); });

  std::vector<std::vector<int64_t>> packs;
  std::multimap<int64_t, size_t> room;  // what is left in each open pack
  for (const int64_t row : longest_first) {
    const int64_t length = rows.length(row);
    require<ConfigError>(length <= max_length,
                         "[data.packing] rows must fit a pack of {} tokens; found one of {}; raise data.max_length", max_length,
                         length);
    const auto fit = room.lower_bound(length);
    size_t pack = packs.size();
    int64_t left = max_length - length;
    if (fit == room.end()) {
      packs.emplace_back();
    } else {
      pack = fit->second;
      left = fit->first - length;
      room.erase(fit);
    }
    packs[pack].push_back(row);
    if (left > 0) room.emplace(left, pack);
  }
  for (auto& pack : packs) std::sort(pack.begin(), pack.end());
  std::sort(packs.begin(), packs.end());
  return packs;
}

}  // namespace lora::data
