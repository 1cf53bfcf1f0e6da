#include "lora/generate/stop_strings.h"

#include <algorithm>
#include <iterator>

#include "core/check.h"

namespace lora::generate {

std::function<bool(std::span<const int64_t>)> stop_at_strings(std::shared_ptr<const data::Tokenizer> tokenizer,
                                                              std::vector<std::string> strings) {
  require<ConfigError>(!strings.empty() && std::ranges::none_of(strings, &std::string::empty),
                       "[stop_strings] must be texts of at least one character; found {}",
                       strings.empty() ? "none" : "an empty one");
  return [tokenizer = std::move(tokenizer), strings = std::move(strings)](std::span<const int64_t> ids) {
    std::vector<int64_t> known;
    std::ranges::copy_if(ids, std::back_inserter(known), [&](int64_t id) { return id < tokenizer->vocab_size(); });
    const std::string text = tokenizer->decode(known);
    return std::ranges::any_of(strings, [&](const std::string& one) { return text.find(one) != std::string::npos; });
  };
}

}  // namespace lora::generate
