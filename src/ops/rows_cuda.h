// The GPU's kernels behind rows.h. Twins: cuda/rows.cu, and no_cuda/rows.cpp for a build without them.
#pragma once

#include "ops/rows.h"

namespace lora::ops::rows::cuda {

/// Types that the kernels exist for; none without CUDA.
bool supports(at::ScalarType type);

void add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& weight, double eps, Tensor& sum, Tensor& y,
                  Tensor& inverse_rms);
void rms_norm_backward(const Tensor& dy, const Tensor& dsum, const Tensor& sum, const Tensor& weight, const Tensor& inverse_rms,
                       Tensor& dx);
void add_layer_norm(const Tensor& x, const Tensor& delta, double x_scale, const Tensor& weight, const Tensor& bias, double eps,
                    Tensor& sum, Tensor& y, Tensor& mean, Tensor& inverse_deviation);
void layer_norm_backward(const Tensor& dy, const Tensor& dsum, const Tensor& sum, const Tensor& weight, const Tensor& mean,
                         const Tensor& inverse_deviation, Tensor& dx);
void gelu_tanh(const Tensor& x, Tensor& y);
void gelu_tanh_backward(const Tensor& dy, const Tensor& x, Tensor& dx);
void swiglu(const Tensor& gate_up, Tensor& h);
void swiglu_backward(const Tensor& dh, const Tensor& gate_up, Tensor& dgate_up);
void cross_entropy(Tensor& logits, const Tensor& labels, bool gradient, Tensor& losses);
void split_rotated(const Tensor& qkv, const Tensor& cos, const Tensor& sin, Tensor& q, Tensor& k, Tensor& v);
void join_rotated(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& cos, const Tensor& sin, Tensor& dqkv);
void joint_adamw(const AdamWStep& step, bool corrects_bias, const std::vector<AdamWTensors>& tensors);

}  // namespace lora::ops::rows::cuda
