// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/parameter_setters.h"
#include "triton/parameters.h"

namespace slipstream::triton {
namespace {

template <typename Target>
std::vector<ParameterRow<Target>> TokenizerRows() {
  return {
      {"role", "", Any<Target>()},
      {"tokenizer", "", Text<Target>(SLIPSTREAM_FIELD(Target, tokenizer.tokenizer))},
      {"tokenizer_dir", "tokenizer", Text<Target>(SLIPSTREAM_FIELD(Target, tokenizer.tokenizer))},
      {"revision", "", Text<Target>(SLIPSTREAM_FIELD(Target, tokenizer.revision))},
      {"trust_remote_code", "",
       Bool<Target>(SLIPSTREAM_FIELD(Target, tokenizer.trust_remote_code))},
      {"python_executable", "",
       Text<Target>(SLIPSTREAM_FIELD(Target, tokenizer.python.executable))},
      {"tokenizer_type", "", NoEffect<Target>("the tokenizer says it")},
  };
}

template <typename Target>
std::vector<ParameterRow<Target>> TokenizeRows() {
  auto rows = TokenizerRows<Target>();
  const auto none = [](const char* why) { return NoEffect<Target>(why); };
  rows.push_back({"tokenizer_processes", "",
                  Int<Target>(SLIPSTREAM_FIELD(Target, tokenizer_processes), 1, 64)});
  rows.push_back({"max_queue_requests", "",
                  Int<Target>(SLIPSTREAM_FIELD(Target, max_queue_requests), 0, kMaxInt32)});
  rows.push_back({"max_queue_bytes", "",
                  Int<Target>(SLIPSTREAM_FIELD(Target, max_queue_bytes), 0, kMaxInt64)});
  rows.push_back(
      {"add_special_tokens", "", Bool<Target>(SLIPSTREAM_FIELD(Target, add_special_tokens))});
  rows.push_back({"allow_special", "", Bool<Target>(SLIPSTREAM_FIELD(Target, allow_special))});
  for (const char* key : {"multimodal_model_path", "max_num_images", "hf_model_path"}) {
    rows.push_back({key, "", none("multimodal inputs are not served")});
  }
  for (const char* key : {"gpt_model_path", "engine_dir"}) {
    rows.push_back({key, "", none("only the tokenizer is needed")});
  }
  return rows;
}

Status NeedTokenizer(const TokenizerParameters& tokenizer) {
  if (!tokenizer.tokenizer.empty()) return Status::Ok();
  return Status::InvalidArgument(
      "parameter tokenizer_dir: not set; it must name the directory of a Hugging Face tokenizer");
}

}  // namespace

StatusOr<TokenizeParameters> TokenizeParameters::FromMap(const ParameterMap& map) {
  TokenizeParameters parameters;
  if (Status s = ApplyParameters(map, TokenizeRows<TokenizeParameters>(), &parameters); !s.ok())
    return s;
  if (Status s = NeedTokenizer(parameters.tokenizer); !s.ok()) return s;
  return parameters;
}

StatusOr<PipelineParameters> PipelineParameters::FromMap(const ParameterMap& map) {
  using Target = PipelineParameters;
  auto rows = TokenizeRows<Target>();
  rows.push_back({"llm_model_name", "", Text<Target>(SLIPSTREAM_FIELD(Target, llm_model_name))});
  rows.push_back({"tensorrt_llm_model_name", "",
                  Text<Target>(SLIPSTREAM_FIELD(Target, tensorrt_llm_model_name))});
  rows.push_back(
      {"accumulate_tokens", "", Bool<Target>(SLIPSTREAM_FIELD(Target, accumulate_tokens))});
  rows.push_back({"tensorrt_llm_draft_model_name", "", RefusedIfSet<Target>("draft tokens")});
  rows.push_back({"multimodal_encoders_name", "", RefusedIfSet<Target>("multimodal inputs")});
  PipelineParameters parameters;
  if (Status s = ApplyParameters(map, rows, &parameters); !s.ok()) return s;
  return parameters;
}

StatusOr<DetokenizeParameters> DetokenizeParameters::FromMap(const ParameterMap& map) {
  auto rows = TokenizerRows<DetokenizeParameters>();
  rows.push_back(
      {"skip_special_tokens", "",
       Bool<DetokenizeParameters>(SLIPSTREAM_FIELD(DetokenizeParameters, skip_special_tokens))});
  DetokenizeParameters parameters;
  if (Status s = ApplyParameters(map, rows, &parameters); !s.ok()) return s;
  if (Status s = NeedTokenizer(parameters.tokenizer); !s.ok()) return s;
  return parameters;
}

}  // namespace slipstream::triton
