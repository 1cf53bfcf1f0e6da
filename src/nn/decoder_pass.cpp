#include "nn/decoder_pass.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "core/check.h"
#include "lora/nn/linear.h"

namespace lora::nn {
namespace {

/// The layers that keep their weights in few bits, by their parameters.
std::map<const at::TensorImpl*, LinearImpl*> layers_in_few_bits(torch::nn::Module& model) {
  std::map<const at::TensorImpl*, LinearImpl*> layers;
  for (const auto& module : model.modules(/*include_self=*/false)) {
    auto* linear = module->as<LinearImpl>();
    if (linear != nullptr && linear->options.parameters.quantization)
      layers.emplace(linear->weight.unsafeGetTensorImpl(), linear);
  }
  return layers;
}

}  // namespace

Residual recomputed(const Residual& stream, const DecoderContext& context, const PrefixKeys& prefix, const PartOfStream& body) {
  std::vector<Tensor> inputs = {stream.x_BSD};
  const bool is_pending = stream.pending_BSD.defined(), has_prefix = prefix.k_GPK.defined();
  if (is_pending) inputs.push_back(stream.pending_BSD);
  if (has_prefix) inputs.insert(inputs.end(), {prefix.k_GPK, prefix.v_GPK});
  const auto outputs = recomputed(
      [body, is_pending, has_prefix](const std::vector<Tensor>& given) {
        const size_t end = given.size();
        const PrefixKeys keys = has_prefix ? PrefixKeys{given[end - 2], given[end - 1]} : PrefixKeys();
        const Residual result = body(Residual{given[0], is_pending ? given[1] : Tensor()}, keys);
        return std::vector<Tensor>{result.x_BSD, result.pending_BSD};
      },
      inputs, context.activations);
  return {outputs[0], outputs[1]};
}

VirtualTokens virtual_tokens(const PromptSlotImpl* prompts, const KvCache* cache, at::ScalarType dtype) {
  VirtualTokens tokens;
  if (prompts == nullptr || (cache != nullptr && cache->virtual_tokens() > 0)) return tokens;
  if (const auto prompt = prompts->embeddings()) tokens.embeddings_PD = prompt->values();
  if (const auto prefix = prompts->prefix()) {
    const auto parts = prefix->values().to(dtype).unbind(0);
    for (size_t i = 0; i < parts.size(); i += 2) tokens.by_layer.push_back({parts[i], parts[i + 1]});
  }
  return tokens;
}

void fill(KvCache& cache, const std::vector<PrefixKeys>& by_layer, int64_t rows) {
  if (by_layer.empty()) return;
  const auto of_all_rows = [rows](const Tensor& x_GPK) { return x_GPK.unsqueeze(0).expand({rows, -1, -1, -1}); };
  for (size_t i = 0; i < by_layer.size(); ++i) {
    cache.append(static_cast<int64_t>(i), of_all_rows(by_layer[i].k_GPK), of_all_rows(by_layer[i].v_GPK));
  }
  cache.advance_virtual(by_layer.front().k_GPK.size(1));
}

Tensor with_virtual_columns(const Tensor& seen, int64_t count) {
  if (count == 0) return seen;
  auto shape = seen.sizes().vec();
  shape.back() = count;
  return at::cat({at::ones(shape, seen.options()), seen}, -1);
}

Interleaved interleaved(const std::vector<int64_t>& lengths, int64_t count, const at::Device& device) {
  std::vector<int64_t> source, real, last, longer;
  int64_t token = 0;
  for (const int64_t length : lengths) {
    for (int64_t i = 0; i < count; ++i) source.push_back(i);
    last.push_back(static_cast<int64_t>(source.size()) - 1);
    for (int64_t i = 0; i < length; ++i) {
      real.push_back(static_cast<int64_t>(source.size()));
      source.push_back(count + token++);
    }
    longer.push_back(length + count);
  }
  const auto on_device = [&](const std::vector<int64_t>& places) { return at::tensor(places, at::kLong).to(device); };
  return {longer, on_device(source), on_device(real), on_device(last)};
}

Prompted with_embeddings(const Batch& given, const Tensor& x_BSD, const Tensor& prompt_PD) {
  const int64_t rows = x_BSD.size(0), count = prompt_PD.size(0);
  const auto before = [&](const Tensor& values_BS, const Tensor& virtual_P) {
    return at::cat({virtual_P.to(values_BS.options()).unsqueeze(0).expand({rows, -1}), values_BS}, 1);
  };
  Prompted result{given, Tensor()};
  Batch& batch = result.batch;
  if (given.segment_lengths.empty()) {
    result.x_BSD = at::cat({prompt_PD.to(x_BSD.scalar_type()).unsqueeze(0).expand({rows, -1, -1}), x_BSD}, 1);
    batch.input_ids_BS = before(given.input_ids_BS, at::zeros({count}));
    if (given.attention_mask_BS.defined()) batch.attention_mask_BS = before(given.attention_mask_BS, at::ones({count}));
    if (given.position_ids_BS.defined()) {
      batch.position_ids_BS = before(given.position_ids_BS.add(count), at::arange(count));
    }
    return result;
  }
  const Interleaved places = interleaved(given.segment_lengths, count, x_BSD.device());
  batch.segment_lengths = places.lengths;
  const Tensor all = at::cat({prompt_PD.to(x_BSD.scalar_type()), x_BSD.squeeze(0)});
  result.x_BSD = all.index_select(0, places.source_N).unsqueeze(0);
  result.real_N = places.real_N;
  result.last_N = places.last_N;
  batch.input_ids_BS = at::zeros({1, places.source_N.size(0)}, given.input_ids_BS.options());
  return result;
}

PredictingStates taken_apart(const Tensor& states_BSD, const Prompted& prompted, int64_t count) {
  if (count == 0) return {states_BSD, Tensor()};
  if (!prompted.real_N.defined()) return {states_BSD.slice(1, count), states_BSD.select(1, count - 1)};
  return {states_BSD.index_select(1, prompted.real_N), states_BSD.squeeze(0).index_select(0, prompted.last_N)};
}

void check_packed(const Batch& batch, const KvCache* cache, std::string_view where) {
  const auto& lengths = batch.segment_lengths;
  const int64_t tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  const bool positive = std::all_of(lengths.begin(), lengths.end(), [](int64_t length) { return length > 0; });
  require<ShapeError>(positive && batch.input_ids_BS.size(0) == 1 && tokens == batch.input_ids_BS.size(1),
                      "[{}] a packed batch must be one row whose segment lengths are positive and add up to it; found {} "
                      "rows of {} tokens and segments of {} in all",
                      where, batch.input_ids_BS.size(0), batch.input_ids_BS.size(1), tokens);
  require<ShapeError>(cache == nullptr && !batch.attention_mask_BS.defined() && !batch.position_ids_BS.defined(),
                      "[{}] a packed batch must have no cache, mask or position ids: its segments say it all", where);
}

void initialize(torch::nn::Module& model, double deviation, const std::string& tied_twin) {
  const torch::NoGradGuard no_grad;
  const auto in_few_bits = layers_in_few_bits(model);
  for (auto& entry : model.named_parameters()) {
    const auto layer = in_few_bits.find(entry.value().unsafeGetTensorImpl());
    if (layer != in_few_bits.end()) {
      const Tensor drawn = at::empty(entry.value().sizes(), entry.value().options()).normal_(0, deviation);
      layer->second->quantize_weight(ops::QuantizedTensor::quantize(drawn, *layer->second->options.parameters.quantization));
      continue;
    }
    if (entry.key().ends_with("norm.weight")) {
      entry.value().fill_(1);
    } else if (entry.key().ends_with(".bias")) {
      entry.value().zero_();
    } else if (entry.key() != tied_twin) {
      entry.value().normal_(0, deviation);
    }
  }
}

}  // namespace lora::nn
