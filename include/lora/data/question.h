#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "lora/data/example.h"
#include "lora/data/tokenizer.h"

namespace lora::data {

/// Where a row's last answer begins: at its last run of targets; at its end without any. ChatGLM's `start` token <sop> belongs to
/// the question, whether it is a target or not.
size_t last_answer(const Example& example, std::optional<int64_t> start = std::nullopt);

/// What a model is asked: the tokens before the last answer. Earlier answers of a conversation are part of the question.
std::vector<int64_t> question_ids(const Example& example, std::optional<int64_t> start = std::nullopt);

/// A row of tokens as text: its question, and the targets of its last answer. Ids outside the tokenizer's vocabulary are left
/// out.
TextPair text_of(const Example& example, const Tokenizer& tokenizer);

}  // namespace lora::data
