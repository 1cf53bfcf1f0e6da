#include "cli/merge_report.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>

#include "cli/row_reader.h"
#include "core/check.h"
#include "lora/core/random.h"
#include "lora/formats/jsonl.h"
#include "lora/io/dtype.h"
#include "lora/nn/probe.h"

// Legend: S positions of a row, V vocabulary.
namespace lora::cli {
namespace {

using at::Tensor;
using formats::Json;

constexpr int64_t kLogitBytes = int64_t{1} << 30;

Batch batch_of(const Tensor& ids_1S, const at::Device& device) {
  Batch batch;
  batch.input_ids_BS = ids_1S.to(device);
  return batch;
}

/// An id that no model gives a meaning among `reserved`.
int64_t drawn_id(SplitMix64& random, int64_t vocabulary, const std::vector<int64_t>& reserved) {
  const auto id = static_cast<int64_t>(random.below(static_cast<uint64_t>(vocabulary)));
  return std::ranges::find(reserved, id) == reserved.end() ? id : drawn_id(random, vocabulary, reserved);
}

/// Token ids spread over the vocabulary, the same on every machine; where rows need tokens between prompt and answer, with these
/// in the middle.
std::vector<Tensor> built_in_rows(const nn::CausalLMImpl& model) {
  constexpr int64_t kRows = 4, kLength = 32;
  const int64_t length = std::min(kLength, model.longest_row());
  const std::vector<int64_t> middle = model.answer_start();
  SplitMix64 random(0);
  std::vector<Tensor> rows;
  for (int64_t row = 0; row < kRows; ++row) {
    std::vector<int64_t> ids;
    for (int64_t i = 0; i < length; ++i) ids.push_back(drawn_id(random, model.vocab_size(), middle));
    std::ranges::copy(middle, ids.begin() + length / 2);
    rows.push_back(at::tensor(ids, at::kLong).unsqueeze(0));
  }
  return rows;
}

ReportRows rows_of_file(const LoadedModel& loaded, const std::string& file) {
  const int64_t room = kLogitBytes / (2 * 4 * loaded.model->vocab_size());
  formats::LineReader lines(file);
  const RowReader reader(loaded, file);
  ReportRows rows{.source = file};
  bool full = false;
  for (auto line = lines.next(); line; line = lines.next(), ++rows.given) {
    if (full) continue;
    const auto example = reader.read(*line, lines.line_number());
    const auto length = static_cast<int64_t>(example.input_ids.size());
    require<DataError>(length <= loaded.model->longest_row(),
                       "[{}:{}] a row must fit the model's {} positions; found {} tokens; shorten it", file, lines.line_number(),
                       loaded.model->longest_row(), length);
    full = !rows.ids_1S.empty() && rows.num_tokens() + length > room;
    if (!full) rows.ids_1S.push_back(at::tensor(example.input_ids, at::kLong).unsqueeze(0));
  }
  require<DataError>(rows.given > 0, "[{}] must hold at least one row; found none; leave --input out for built-in rows", file);
  return rows;
}

/// Of a weight in its own type, and of the same with the adapter in it, in a wide one.
ModuleNorms norms_of(const Tensor& base, const Tensor& merged, const std::string& name) {
  const Tensor stored = merged.to(base.scalar_type()).to(merged.scalar_type());
  require<NonFiniteError>(stored.isfinite().all().item<bool>(),
                          "[merge] merged weights must be finite numbers in {}; found others in {}; nothing was written; check "
                          "the adapter, or merge with --dtype bf16 or fp32",
                          short_name(io::from_torch(base.scalar_type())), name);
  const Tensor before = base.to(merged.scalar_type());
  return {.update = (merged - before).norm().item<double>(),
          .weight = before.norm().item<double>(),
          .rounding = (merged - stored).norm().item<double>()};
}

/// The slot's weight with its active adapters, by a merge of a copy.
ModuleNorms norms_at(const AdapterSet::Slot& slot) {
  const bool is_linear = !slot.linear.is_empty();
  const Tensor base = (is_linear ? slot.linear->weight_value() : slot.embedding->weight).detach();
  Tensor merged = base.to(base.scalar_type() == at::kDouble ? at::kDouble : at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  nn::AdapterSlot trial = is_linear ? slot.linear->slot : slot.embedding->slot;
  try {
    Tensor bias = is_linear && slot.linear->bias.defined() ? slot.linear->bias.detach().clone() : Tensor();
    trial.merge(merged, bias);
  } catch (const NonFiniteError&) {
    merged.fill_(NAN);  // said with the module's name
  }
  return norms_of(base, merged, slot.path);
}

/// The path of the first module whose output is not finite.
std::string first_nonfinite(nn::CausalLMImpl& model, const Batch& batch) {
  const torch::nn::Module* found = nullptr;
  {
    const nn::ProbeGuard probe([&](const torch::nn::Module& module, const Tensor& output) {
      if (found == nullptr && !output.isfinite().all().item<bool>()) found = &module;
    });
    model.forward(batch);
  }
  for (const auto& named : model.named_modules()) {
    if (named.value().get() == found) return named.key();
  }
  return "its attention";
}

}  // namespace

void LogitChange::add(const Tensor& before_SV, const Tensor& after_SV) {
  const Tensor change = (after_SV - before_SV).abs();
  largest_ = std::max(largest_, change.max().item<double>());
  sum_ += change.sum(at::kDouble).item<double>();
  logits_ += change.numel();
  positions_ += change.size(0);
  kept_ += (before_SV.argmax(1) == after_SV.argmax(1)).sum().item<int64_t>();
}

double LogitChange::mean() const { return sum_ / static_cast<double>(std::max<int64_t>(1, logits_)); }

double LogitChange::top_token_kept() const {
  return static_cast<double>(kept_) / static_cast<double>(std::max<int64_t>(1, positions_));
}

Json LogitChange::to_json() const {
  return {{"max_logit_change", largest()}, {"mean_logit_change", mean()}, {"top_token_kept", top_token_kept()}};
}

int64_t ReportRows::num_tokens() const {
  int64_t sum = 0;
  for (const Tensor& ids : ids_1S) sum += ids.numel();
  return sum;
}

ReportRows report_rows(const LoadedModel& loaded, const std::string& file) {
  if (!file.empty()) return rows_of_file(loaded, file);
  ReportRows rows{.source = "built-in", .ids_1S = built_in_rows(*loaded.model)};
  rows.given = static_cast<int64_t>(rows.ids_1S.size());
  return rows;
}

std::map<std::string, ModuleNorms> module_norms(const AdapterSets& adapters) {
  std::map<std::string, ModuleNorms> norms;
  for (const AdapterSet& set : adapters) {
    for (const auto& slot : set.slots()) norms[slot.path] = norms_at(slot);
    for (const auto* whole : {&set.saved_parameters(), &set.biases()}) {
      for (const auto& saved : *whole) {
        norms[saved.name] = norms_of(saved.other.to(saved.parameter.device()), saved.parameter.detach(), saved.name);
      }
    }
  }
  return norms;
}

Tensor logits_of(const LoadedModel& loaded, const Tensor& ids_1S, std::string_view what) {
  const Batch batch = batch_of(ids_1S, loaded.device);
  Tensor logits_SV = loaded.model->forward(batch)[0].to(at::kCPU, at::kFloat);
  if (logits_SV.isfinite().all().item<bool>()) return logits_SV;
  fail<NonFiniteError>(
      "[merge] logits must be finite; found others with {}, first at {}; check the weights, or use --dtype bf16 "
      "or fp32",
      what, first_nonfinite(*loaded.model, batch));
}

}  // namespace lora::cli
