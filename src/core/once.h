#pragma once

#include <string_view>

namespace lora {

/// Logs the text (info) the first time in this process that it is given. Cheap enough for a step's inner loops.
void say_once(std::string_view text);

}  // namespace lora
