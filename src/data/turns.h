#pragma once

#include <span>
#include <string>
#include <vector>

#include "lora/data/chat_template.h"

namespace lora::data {

/// A conversation without its template.
struct Turns {
  std::string system;                 ///< empty: none
  std::vector<std::string> contents;  ///< of user and assistant in alternation, at least one
};

/// Throws DataError when roles do not alternate or nobody asks anything.
Turns turns_of(std::span<const Message> messages);

}  // namespace lora::data
