// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "bindings/request_spec.h"

#include <pybind11/stl.h>

#include <functional>
#include <string>
#include <unordered_map>

namespace py = pybind11;

namespace slipstream {
namespace {

using Setter = std::function<void(RequestSpec*, const py::handle&)>;

template <typename T>
Setter Field(T RequestSpec::* member) {
  return [member](RequestSpec* spec, const py::handle& value) { spec->*member = value.cast<T>(); };
}

template <typename T>
Setter Sampling(T SamplingParams::* member) {
  return [member](RequestSpec* spec, const py::handle& value) {
    spec->sampling.*member = value.cast<T>();
  };
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
       [](RequestSpec* spec, const py::handle& value) {
         spec->sampling.seed = value.cast<uint64_t>();
         spec->sampling.has_seed = true;
       }},
      {"retention_ranges", SetRetentionRanges},
      {"decode_retention_priority",
       [](RequestSpec* spec, const py::handle& value) {
         spec->retention.decode_priority = value.cast<int32_t>();
       }},
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
      setter->second(&spec, value);
    } catch (const py::cast_error&) {
      throw py::value_error(name + ": " + py::repr(value).cast<std::string>() +
                            " has the wrong type or is out of range");
    }
  }
  return spec;
}

}  // namespace slipstream
