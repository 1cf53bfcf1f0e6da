#pragma once

namespace lora::ops {

template <class T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
/// The type in which kernels compute with numbers of type T.
template <class T>
using Wide = typename WideOf<T>::type;

}  // namespace lora::ops
