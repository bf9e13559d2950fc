// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "bindings/request_spec.h"

#include <pybind11/stl.h>

#include <functional>
#include <limits>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

namespace py = pybind11;

namespace slipstream {
namespace {

struct Setter {
  std::function<void(RequestSpec*, const py::handle&)> set;
  std::string expected;  // for the message when it throws cast_error
};

template <typename T>
std::string Expected() {
  if constexpr (std::is_same_v<T, bool>) return "a bool";
  if constexpr (std::is_floating_point_v<T>) return "a number";
  if constexpr (std::is_same_v<T, std::string>) return "a str";
  if constexpr (std::is_integral_v<T>) {
    return "an integer in [" + std::to_string(std::numeric_limits<T>::min()) + ", " +
           std::to_string(std::numeric_limits<T>::max()) + "]";
  }
  if constexpr (std::is_same_v<T, std::vector<int32_t>>) return "a list of " + Expected<int32_t>();
  return "of the type that the signature names";
}

template <typename T>
Setter Field(T RequestSpec::* member) {
  return {[member](RequestSpec* spec, const py::handle& value) { spec->*member = value.cast<T>(); },
          Expected<T>()};
}

template <typename T>
Setter Sampling(T SamplingParams::* member) {
  return {[member](RequestSpec* spec, const py::handle& value) {
            spec->sampling.*member = value.cast<T>();
          },
          Expected<T>()};
}

void SetRetentionRanges(RequestSpec* spec, const py::handle& value) {
  for (const py::handle& item : value) {
    const auto tuple = item.cast<std::tuple<int32_t, int32_t, int32_t, int32_t>>();
    spec->retention.prompt.push_back(
        {std::get<0>(tuple), std::get<1>(tuple), std::get<2>(tuple), std::get<3>(tuple)});
  }
}

const std::unordered_map<std::string, Setter>& Setters() {
  static const std::unordered_map<std::string, Setter> setters = {
      {"client_id", Field(&RequestSpec::client_id)},
      {"prompt", Field(&RequestSpec::prompt)},
      {"max_new_tokens", Field(&RequestSpec::max_new_tokens)},
      {"end_ids", Field(&RequestSpec::end_ids)},
      {"stop_sequences", Field(&RequestSpec::stop_sequences)},
      {"stop_strings", Field(&RequestSpec::stop_strings)},
      {"include_stop", Field(&RequestSpec::include_stop)},
      {"bad_words", Field(&RequestSpec::bad_words)},
      {"logit_bias", Field(&RequestSpec::logit_bias)},
      {"num_return_sequences", Field(&RequestSpec::num_return_sequences)},
      {"num_logprobs", Field(&RequestSpec::num_logprobs)},
      {"return_context_logits", Field(&RequestSpec::return_context_logits)},
      {"return_generation_logits", Field(&RequestSpec::return_generation_logits)},
      {"return_text", Field(&RequestSpec::return_text)},
      {"skip_special_tokens", Field(&RequestSpec::skip_special_tokens)},
      {"streaming", Field(&RequestSpec::streaming)},
      {"priority", Field(&RequestSpec::priority)},
      {"deadline", Field(&RequestSpec::deadline)},
      {"cache_salt", Field(&RequestSpec::cache_salt)},
      {"temperature", Sampling(&SamplingParams::temperature)},
      {"top_k", Sampling(&SamplingParams::top_k)},
      {"top_p", Sampling(&SamplingParams::top_p)},
      {"min_p", Sampling(&SamplingParams::min_p)},
      {"top_p_decay", Sampling(&SamplingParams::top_p_decay)},
      {"top_p_min", Sampling(&SamplingParams::top_p_min)},
      {"top_p_reset_id", Sampling(&SamplingParams::top_p_reset_id)},
      {"repetition_penalty", Sampling(&SamplingParams::repetition_penalty)},
      {"presence_penalty", Sampling(&SamplingParams::presence_penalty)},
      {"frequency_penalty", Sampling(&SamplingParams::frequency_penalty)},
      {"prompt_ignore_length", Sampling(&SamplingParams::prompt_ignore_length)},
      {"min_tokens", Sampling(&SamplingParams::min_tokens)},
      {"seed",
       {[](RequestSpec* spec, const py::handle& value) {
          spec->sampling.seed = value.cast<uint64_t>();
          spec->sampling.has_seed = true;
        },
        Expected<uint64_t>()}},
      {"retention_ranges", {SetRetentionRanges, "tuples (start, end, priority, duration_ms)"}},
      {"decode_retention_priority",
       {[](RequestSpec* spec, const py::handle& value) {
          spec->retention.decode_priority = value.cast<int32_t>();
        },
        Expected<int32_t>()}},
  };
  return setters;
}

}  // namespace

RequestSpec SpecFromKwargs(const py::kwargs& fields) {
  RequestSpec spec;
  for (const auto& [key, value] : fields) {
    const auto name = key.cast<std::string>();
    const auto setter = Setters().find(name);
    if (setter == Setters().end()) throw py::value_error(name + ": no such request field");
    try {
      setter->second.set(&spec, value);
    } catch (const py::cast_error&) {
      throw py::value_error(name + ": " + py::repr(value).cast<std::string>() + " is not " +
                            setter->second.expected);
    }
  }
  return spec;
}

}  // namespace slipstream
