#include "lora/data/chat_template.h"

#include <algorithm>
#include <string_view>

#include "core/check.h"
#include "data/prompt_and_answer.h"
#include "data/strip.h"
#include "data/turns.h"
#include "lora/data/dataset.h"
#include "lora/data/glm_chat.h"

namespace lora::data {
namespace {

using formats::PromptTemplate;
using formats::TemplatePiece;
using Kind = TemplatePiece::Kind;

/// A part of a row before it is tokens: text, or a begin or end token.
struct Segment {
  Kind kind = Kind::kText;
  std::string text = {};
  size_t answer = 0;  ///< number of the answer that it belongs to, from 1; 0: no target
};

void check_content(const Message& message, const PromptTemplate& form) {
  for (const std::string& tag : form.reserved) {
    require<DataError>(message.content.find(tag) == std::string::npos,
                       "[chat] messages must not hold the template's tags; a {} message has {}; "
                       "remove it",
                       message.role, tag);
  }
}

/// Writes a conversation down, text by text of the template.
class Writer {
 public:
  explicit Writer(const PromptTemplate& form) : form_(form) {}

  void write_all(const std::string& system, const std::vector<std::string>& turns) {
    write("prefix", form_.prefix, {});
    std::string first = turns.front();
    if (!system.empty() && form_.system_in_user) {
      first = filled(form_.system, system) + first;
    } else if (!system.empty()) {
      write("system", form_.system, system);
    }
    for (size_t i = 0; i < turns.size(); i += 2) {
      round_ = i / 2;
      write("user", form_.user, said(i == 0 ? first : turns[i]));
      if (i + 1 < turns.size()) write_answer(said(turns[i + 1]));
    }
  }

  const std::vector<Segment>& segments() const { return segments_; }

 private:
  std::string_view said(std::string_view content) const { return form_.strip ? strip(content) : content; }

  std::string filled(const std::string& text, std::string_view content) const {
    std::string result;
    for (const auto& piece : formats::template_pieces(text, "template"))
      result += piece.kind == Kind::kContent ? content : piece.text;
    return result;
  }

  void write(std::string_view name, const std::string& text, std::string_view content) {
    for (const TemplatePiece& piece : formats::template_pieces(text, name)) {
      switch (piece.kind) {
        case Kind::kBegin:
        case Kind::kEnd:
          segments_.push_back({.kind = piece.kind, .answer = answer_});
          if (piece.kind == Kind::kEnd) answer_ = 0;  // what an answer's template has behind it is not learned
          break;
        case Kind::kContent:
          add_text(content);
          break;
        case Kind::kRound:
          add_text(fmt::format("{}", round_));
          break;
        default:
          add_text(piece.text);
      }
    }
  }

  void write_answer(std::string_view content) {
    answer_ = round_ + 1;
    write("assistant", form_.assistant, content);
    answer_ = 0;
  }

  void add_text(std::string_view text) {
    const bool goes_on = !segments_.empty() && segments_.back().kind == Kind::kText && segments_.back().answer == answer_;
    if (!goes_on) segments_.push_back({.answer = answer_});
    segments_.back().text += text;
  }

  const PromptTemplate& form_;
  std::vector<Segment> segments_;
  size_t round_ = 0, answer_ = 0;
};

/// Ids of a text as it reads behind another one: without the space that SentencePiece puts in front of every text. Behind a
/// line end, since no piece reaches over one; a tokenizer that has no place for it encodes the text by itself.
std::vector<int64_t> encode_behind(const Tokenizer& tokenizer, const std::string& text) {
  const std::vector<int64_t> lead = tokenizer.encode("\n");
  std::vector<int64_t> ids = tokenizer.encode("\n" + text);
  const bool is_kept = !lead.empty() && ids.size() >= lead.size() && std::equal(lead.begin(), lead.end(), ids.begin());
  if (!is_kept) return tokenizer.encode(text);
  ids.erase(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(lead.size()));
  return ids;
}

void append(Example& example, const std::vector<int64_t>& ids, bool are_targets) {
  for (const int64_t id : ids) {
    example.input_ids.push_back(static_cast<int32_t>(id));
    example.labels.push_back(static_cast<int32_t>(are_targets ? id : kIgnoreLabel));
  }
}

Example row_of(const std::vector<Segment>& segments, const Tokenizer& tokenizer) {
  Example example;
  bool follows_text = false;
  for (const Segment& segment : segments) {
    if (segment.kind == Kind::kText) {
      append(example, follows_text ? encode_behind(tokenizer, segment.text) : tokenizer.encode(segment.text), segment.answer > 0);
      follows_text = true;
      continue;
    }
    const int64_t id = segment.kind == Kind::kBegin ? tokenizer.bos_id() : tokenizer.eos_id();
    if (id < 0) continue;
    append(example, {id}, segment.answer > 0);
    follows_text = false;
  }
  return example;
}

/// ChatGLM's row: everything before the last answer is its prompt; what follows it is left out.
Example glm_row_of(const std::vector<Segment>& segments, const Tokenizer& tokenizer) {
  size_t last = 0;
  for (const Segment& segment : segments) last = std::max(last, segment.answer);
  const auto begin = last == 0 ? segments.end() : std::ranges::find(segments, last, &Segment::answer);
  std::string prompt, answer;
  for (auto segment = segments.begin(); segment != begin; ++segment) prompt += segment->text;
  for (auto segment = begin; segment != segments.end() && segment->answer == last; ++segment) answer += segment->text;
  return join(encode_prompt(tokenizer, prompt), last == 0 ? std::vector<int64_t>{} : encode_completion(tokenizer, answer));
}

}  // namespace

PromptTemplate model_template(const Tokenizer& tokenizer) {
  return formats::prompt_template(tokenizer.glm_ids() ? "chatglm" : "llama2");
}

Example encode_chat(const std::vector<Message>& messages, const Tokenizer& tokenizer, const PromptTemplate& form) {
  if (form.rounds) return encode_glm_chat(messages, tokenizer);
  formats::check_prompt_template(form, "chat");
  const auto [system, turns] = turns_of(messages);
  for (const Message& message : messages) check_content(message, form);
  Writer writer(form);
  writer.write_all(system.empty() ? form.default_system : system, turns);
  return tokenizer.glm_ids() ? glm_row_of(writer.segments(), tokenizer) : row_of(writer.segments(), tokenizer);
}

Example encode_chat(const std::vector<Message>& messages, const Tokenizer& tokenizer) {
  return encode_chat(messages, tokenizer, model_template(tokenizer));
}

}  // namespace lora::data
