#include "lora/train/nonfinite.h"

#include <ATen/ATen.h>

#include <unordered_map>
#include <vector>

#include "core/check.h"
#include "lora/nn/linear.h"
#include "lora/nn/probe.h"
#include "lora/ops/autocast.h"
#include "nn/eval_mode.h"
#include "train/device_of.h"

// Legend: B batch, S sequence, D model.
namespace lora::train {
namespace {

bool is_finite(const at::Tensor& tensor) { return at::isfinite(tensor).all().item<bool>(); }

std::string nonfinite_parameter(const nn::CausalLMImpl& model) {
  for (const auto& parameter : nn::readable_parameters(model)) {
    if (!is_finite(parameter.read())) {
      return fmt::format("the parameter {} holds values that are not finite", parameter.name);
    }
  }
  return {};
}

/// Data rows whose part of `output` (B, ...) is not finite; all rows for an output of other form.
std::vector<int64_t> nonfinite_rows(const at::Tensor& output, const std::vector<int64_t>& rows) {
  if (output.dim() == 0 || output.size(0) != static_cast<int64_t>(rows.size())) return rows;
  std::vector<int64_t> found;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!is_finite(output[static_cast<int64_t>(i)])) found.push_back(rows[i]);
  }
  return found;
}

/// Watches a forward pass for the first output that is not finite.
class Watch {
 public:
  explicit Watch(const nn::CausalLMImpl& model) {
    for (const auto& entry : model.named_modules("", /*include_self=*/false)) {
      paths_[entry.value().get()] = entry.key();
    }
  }

  void look_at(const torch::nn::Module& module, const at::Tensor& output, const std::vector<int64_t>& rows) {
    if (!finding_.empty() || is_finite(output)) return;
    const auto path = paths_.find(&module);
    finding_ =
        fmt::format("the output of {} is the first that is not finite, in data row(s) {}",
                    path == paths_.end() ? "an unnamed module" : path->second, fmt::join(nonfinite_rows(output, rows), ", "));
  }
  const std::string& finding() const { return finding_; }

 private:
  std::unordered_map<const torch::nn::Module*, std::string> paths_;
  std::string finding_;
};

/// The head runs one row at a time: logits are the largest tensor of a model.
void run_forward(nn::CausalLMImpl& model, const Batch& batch, Watch& watch) {
  std::vector<int64_t> rows = batch.rows;
  const nn::ProbeGuard probe([&](const auto& module, const at::Tensor& output) { watch.look_at(module, output, rows); });
  const at::Tensor hidden_BSD = model.hidden(batch);
  for (int64_t i = 0; i < hidden_BSD.size(0) && watch.finding().empty(); ++i) {
    if (!batch.rows.empty()) rows = {batch.rows[static_cast<size_t>(i)]};
    model.head()->forward(hidden_BSD.slice(0, i, i + 1));
  }
}

std::string nonfinite_output(nn::CausalLMImpl& model, std::span<const Batch> micro_batches, at::ScalarType amp_dtype) {
  const at::Device device = device_of(model);
  const AutocastGuard autocast(device.type(), amp_dtype);
  const nn::EvalMode eval_mode(model);
  Watch watch(model);
  for (const Batch& batch : micro_batches) {
    run_forward(model, batch.to(device), watch);
    if (!watch.finding().empty()) break;
  }
  return watch.finding();
}

std::string nonfinite_gradient(const nn::CausalLMImpl& model, std::span<const Batch> micro_batches) {
  std::vector<int64_t> rows;
  for (const Batch& batch : micro_batches) {
    rows.insert(rows.end(), batch.rows.begin(), batch.rows.end());
  }
  for (const auto& entry : model.named_parameters()) {
    const at::Tensor& gradient = entry.value().grad();
    if (gradient.defined() && !is_finite(gradient)) {
      return fmt::format("the gradient of {} is not finite, in a step of data row(s) {}", entry.key(), fmt::join(rows, ", "));
    }
  }
  return {};
}

}  // namespace

std::string locate_nonfinite(nn::CausalLMImpl& model, std::span<const Batch> micro_batches, at::ScalarType amp_dtype) {
  const at::NoGradGuard no_grad;
  std::string finding = nonfinite_parameter(model);
  if (finding.empty()) finding = nonfinite_output(model, micro_batches, amp_dtype);
  if (finding.empty()) finding = nonfinite_gradient(model, micro_batches);
  return finding;
}

}  // namespace lora::train
