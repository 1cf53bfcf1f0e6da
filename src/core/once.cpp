#include "core/once.h"

#include <mutex>
#include <set>
#include <string>

#include "lora/core/log.h"

namespace lora {

void say_once(std::string_view text) {
  static std::mutex mutex;
  static std::set<std::string, std::less<>> said;
  {
    const std::lock_guard lock(mutex);
    if (said.contains(text)) return;
    said.emplace(text);
  }
  log::info(std::string(text));
}

}  // namespace lora
