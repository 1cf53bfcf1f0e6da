// The parts of a template that a run file may give, each named once.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "lora/formats/prompt_template.h"

namespace lora::formats {

using TemplateText = std::pair<std::string_view, std::string PromptTemplate::*>;
using TemplateSwitch = std::pair<std::string_view, bool PromptTemplate::*>;

inline constexpr std::array kTemplateTexts = {
    TemplateText{"prefix", &PromptTemplate::prefix},
    TemplateText{"system", &PromptTemplate::system},
    TemplateText{"user", &PromptTemplate::user},
    TemplateText{"assistant", &PromptTemplate::assistant},
    TemplateText{"default_system", &PromptTemplate::default_system},
    TemplateText{"input", &PromptTemplate::input},
};
inline constexpr std::array kTemplateSwitches = {
    TemplateSwitch{"system_in_user", &PromptTemplate::system_in_user},
    TemplateSwitch{"strip", &PromptTemplate::strip},
};

}  // namespace lora::formats
