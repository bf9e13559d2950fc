// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/tensor_table.h"

#include "triton/pipeline_wiring.h"

namespace slipstream::triton {
namespace {

constexpr auto kBool = TRITONSERVER_TYPE_BOOL;
constexpr auto kUint8 = TRITONSERVER_TYPE_UINT8;
constexpr auto kInt32 = TRITONSERVER_TYPE_INT32;
constexpr auto kInt64 = TRITONSERVER_TYPE_INT64;
constexpr auto kUint64 = TRITONSERVER_TYPE_UINT64;
constexpr auto kFp16 = TRITONSERVER_TYPE_FP16;
constexpr auto kFp32 = TRITONSERVER_TYPE_FP32;
constexpr auto kString = TRITONSERVER_TYPE_BYTES;
constexpr auto kAny = TRITONSERVER_TYPE_INVALID;

TensorRow Required(const char* name, TRITONSERVER_DataType dtype, const char* dims) {
  return {name, dtype, dims, false, Use::kServed, {}, ""};
}
TensorRow Optional(const char* name, TRITONSERVER_DataType dtype, const char* dims) {
  return {name, dtype, dims, true, Use::kServed, {}, ""};
}
TensorRow Refused(const char* name, TRITONSERVER_DataType dtype, const char* dims,
                  const char* feature) {
  return {name, dtype, dims, true, Use::kRefused, {}, feature};
}
TensorRow Neutral(const char* name, TRITONSERVER_DataType dtype, double a, double b,
                  const char* feature) {
  return {name, dtype, "[1]", true, Use::kNeutralOnly, {a, b}, feature};
}
TensorRow Control(const char* name, TRITONSERVER_DataType dtype) {
  return {name, dtype, "[1]", true, Use::kControl, {}, ""};
}
TensorRow Output(const char* name, TRITONSERVER_DataType dtype, const char* dims) {
  return {name, dtype, dims, true, Use::kServed, {}, ""};
}
TensorRow Never(const char* name, TRITONSERVER_DataType dtype, const char* dims,
                const char* feature) {
  return {name, dtype, dims, true, Use::kRefused, {}, feature};
}

constexpr char kBeams[] = "beam search";
constexpr char kDrafts[] = "draft tokens";
constexpr char kEncoder[] = "encoder-decoder models";
constexpr char kPromptTable[] = "prompt embedding tables";
constexpr char kLora[] = "LoRA adapters";
constexpr char kGuided[] = "guided decoding";
constexpr char kLookahead[] = "lookahead decoding";
constexpr char kDisaggregated[] = "disaggregated serving";
constexpr char kMultimodal[] = "multimodal inputs";

std::vector<TensorRow> LlmInputs() {
  return {
      Optional("input_ids", kInt32, "[-1]"),  // declared optional, needed all the same
      Required("input_lengths", kInt32, "[1]"),
      Required("request_output_len", kInt32, "[1]"),
      Optional("num_return_sequences", kInt32, "[1]"),
      Optional("end_id", kInt32, "[1]"),
      Optional("pad_id", kInt32, "[1]"),
      Optional("stop_words_list", kInt32, "[2,-1]"),
      Optional("bad_words_list", kInt32, "[2,-1]"),
      Optional("embedding_bias", kFp32, "[-1]"),
      Optional("temperature", kFp32, "[1]"),
      Optional("runtime_top_k", kInt32, "[1]"),
      Optional("runtime_top_p", kFp32, "[1]"),
      Optional("runtime_top_p_min", kFp32, "[1]"),
      Optional("runtime_top_p_decay", kFp32, "[1]"),
      Optional("runtime_top_p_reset_ids", kInt32, "[1]"),
      Optional("prompt_ignore_length", kInt32, "[1]"),
      Optional("repetition_penalty", kFp32, "[1]"),
      Optional("min_tokens", kInt32, "[1]"),
      Optional("min_length", kInt32, "[1]"),  // another name of min_tokens
      Optional("presence_penalty", kFp32, "[1]"),
      Optional("frequency_penalty", kFp32, "[1]"),
      Optional("seed", kUint64, "[1]"),
      Optional("return_log_probs", kBool, "[1]"),
      Optional("return_context_logits", kBool, "[1]"),
      Optional("return_generation_logits", kBool, "[1]"),
      Optional("return_perf_metrics", kBool, "[1]"),
      Optional("return_kv_cache_reuse_stats", kBool, "[1]"),  // the KV part of the one above
      Optional("exclude_input_in_output", kBool, "[1]"),
      Optional("stop", kBool, "[1]"),
      Optional("streaming", kBool, "[1]"),
      Optional("retention_token_range_starts", kInt32, "[-1]"),
      Optional("retention_token_range_ends", kInt32, "[-1]"),
      Optional("retention_token_range_priorities", kInt32, "[-1]"),
      Optional("retention_token_range_durations_ms", kInt32, "[-1]"),
      Optional("retention_decode_priority", kInt32, "[1]"),
      Optional("retention_decode_duration_ms", kInt32, "[1]"),
      Optional("return_num_input_tokens", kBool, "[1]"),
      Optional("return_num_output_tokens", kBool, "[1]"),
      // Ours.
      Optional("stop_strings", kString, "[-1]"),
      Optional("include_stop_in_output", kBool, "[1]"),
      Optional("num_logprobs", kInt32, "[1]"),
      Optional("min_p", kFp32, "[1]"),
      Optional("cache_salt", kString, "[1]"),
      Optional("priority", kInt32, "[1]"),
      Optional("timeout_ms", kInt32, "[1]"),
      Optional("return_text", kBool, "[1]"),
      Optional("skip_special_tokens", kBool, "[1]"),
      Optional("return_finish_reason", kBool, "[1]"),
      Optional("return_usage", kBool, "[1]"),
      // Understood, and harmless as long as they ask for nothing. The length penalty has two
      // neutral values because TensorRT-LLM's default is 0 and its clients send 1.
      Neutral("beam_width", kInt32, 1, 1, kBeams),
      Neutral("len_penalty", kFp32, 0, 1, kBeams),
      Neutral("early_stopping", kInt32, 0, 1, kBeams),
      Neutral("beam_search_diversity_rate", kFp32, 0, 0, kBeams),
      Neutral("no_repeat_ngram_size", kInt32, 0, 0, "n-gram blocking"),
      Neutral("draft_acceptance_threshold", kFp32, 0, 0, kDrafts),
      Neutral("prompt_vocab_size", kInt32, 0, 0, kPromptTable),
      Neutral("skip_cross_attn_blocks", kBool, 0, 0, kEncoder),
      Refused("encoder_input_features", kAny, "[-1,-1]", kEncoder),
      Refused("encoder_output_lengths", kInt32, "[1]", kEncoder),
      Refused("decoder_input_ids", kInt32, "[-1]", kEncoder),
      Refused("decoder_input_lengths", kInt32, "[1]", kEncoder),
      Refused("cross_attention_mask", kBool, "[-1,-1]", kEncoder),
      Refused("draft_input_ids", kInt32, "[-1]", kDrafts),
      Refused("draft_logits", kAny, "[-1,-1]", kDrafts),
      Refused("prompt_embedding_table", kAny, "[-1,-1]", kPromptTable),
      Refused("prompt_table_extra_ids", kUint64, "[-1]", kPromptTable),
      Refused("mrope_rotary_cos_sin", kFp32, "[-1]", kMultimodal),
      Refused("mrope_position_deltas", kInt64, "[1]", kMultimodal),
      Refused("multimodal_embedding", kAny, "[-1,-1]", kMultimodal),
      Refused("multimodal_hashes", kAny, "[-1,-1]", kMultimodal),
      Refused("multimodal_positions", kAny, "[-1]", kMultimodal),
      Refused("multimodal_lengths", kAny, "[-1]", kMultimodal),
      Refused("lora_task_id", kUint64, "[1]", kLora),
      Refused("lora_weights", kAny, "[-1,-1]", kLora),
      Refused("lora_config", kInt32, "[-1,3]", kLora),
      Refused("context_phase_params", kUint8, "[-1]", kDisaggregated),
      Refused("guided_decoding_guide_type", kString, "[1]", kGuided),
      Refused("guided_decoding_guide", kString, "[1]", kGuided),
      Refused("lookahead_window_size", kInt32, "[1]", kLookahead),
      Refused("lookahead_ngram_size", kInt32, "[1]", kLookahead),
      Refused("lookahead_verification_set_size", kInt32, "[1]", kLookahead),
      Control("START", kInt32),
      Control("END", kInt32),
      Control("CORRID", kUint64),
  };
}

// In the order of a response: clients index output_ids and sequence_length by position.
std::vector<TensorRow> LlmOutputs() {
  return {
      Output("output_ids", kInt32, "[-1,-1]"),
      Output("sequence_length", kInt32, "[-1]"),
      Output("cum_log_probs", kFp32, "[-1]"),
      Output("output_log_probs", kFp32, "[-1,-1]"),
      Output("context_logits", kAny, "[-1,-1]"),
      Output("generation_logits", kAny, "[-1,-1,-1]"),
      Output("batch_index", kInt32, "[1]"),
      Output("sequence_index", kInt32, "[1]"),
      Never("context_phase_params", kUint8, "[-1]", kDisaggregated),
      Output("kv_cache_alloc_new_blocks", kInt32, "[1]"),
      Output("kv_cache_reused_blocks", kInt32, "[1]"),
      Output("kv_cache_alloc_total_blocks", kInt32, "[1]"),
      Output("arrival_time_ns", kInt64, "[1]"),
      Output("first_scheduled_time_ns", kInt64, "[1]"),
      Output("first_token_time_ns", kInt64, "[1]"),
      Output("last_token_time_ns", kInt64, "[1]"),
      Output("acceptance_rate", kFp32, "[1]"),
      Output("total_accepted_draft_tokens", kInt32, "[1]"),
      Output("total_draft_tokens", kInt32, "[1]"),
      Output("num_input_tokens", kInt32, "[1]"),
      Output("num_output_tokens", kInt32, "[1]"),
      // Ours.
      Output("text_output", kString, "[-1]"),
      Output("top_log_probs", kFp32, "[-1,-1]"),
      Output("top_log_prob_ids", kInt32, "[-1,-1]"),
      Output("finish_reason", kString, "[1]"),
      Output("stop_reason", kString, "[1]"),
      Output("prompt_tokens", kInt32, "[1]"),
      Output("completion_tokens", kInt32, "[1]"),
      Output("cached_tokens", kInt32, "[1]"),
      Output("flow", kString, "[-1]"),
  };
}

std::vector<TensorRow> TokenizeInputs() {
  return {
      Optional("QUERY", kString, "[1]"),  // or MESSAGES
      Optional("REQUEST_OUTPUT_LEN", kInt32, "[1]"),
      Optional("BAD_WORDS_DICT", kString, "[-1]"),
      Optional("STOP_WORDS_DICT", kString, "[-1]"),
      Optional("EMBEDDING_BIAS_WORDS", kString, "[-1]"),
      Optional("EMBEDDING_BIAS_WEIGHTS", kFp32, "[-1]"),
      Optional("END_ID", kInt32, "[1]"),
      Optional("PAD_ID", kInt32, "[1]"),
      // Ours.
      Optional("MESSAGES", kString, "[1]"),
      Optional("CHAT_OPTIONS", kString, "[1]"),
      Refused("PROMPT_TABLE_EXTRA_ID", kUint64, "[1]", kPromptTable),
      Refused("DECODER_QUERY", kString, "[1]", kEncoder),
      Refused("IMAGE_BYTES", kUint8, "[-1,-1,-1,-1]", kMultimodal),
      Refused("IMAGE_URL", kString, "[1]", kMultimodal),
      Refused("VIDEO_BYTES", kUint8, "[-1,-1,-1,-1]", kMultimodal),
      Refused("IMAGES", kString, "[-1]", kMultimodal),
  };
}

std::vector<TensorRow> TokenizeOutputs() {
  return {
      Output("INPUT_ID", kInt32, "[-1]"),
      Output("REQUEST_INPUT_LEN", kInt32, "[1]"),
      Output("DECODER_INPUT_ID", kInt32, "[-1]"),
      Output("REQUEST_DECODER_INPUT_LEN", kInt32, "[1]"),
      Output("BAD_WORDS_IDS", kInt32, "[2,-1]"),
      Output("STOP_WORDS_IDS", kInt32, "[2,-1]"),
      Output("EMBEDDING_BIAS", kFp32, "[-1]"),
      Output("REQUEST_OUTPUT_LEN", kInt32, "[-1]"),
      Output("OUT_END_ID", kInt32, "[1]"),
      Output("OUT_PAD_ID", kInt32, "[1]"),
      Never("OUT_PROMPT_TABLE_EXTRA_IDS", kUint64, "[-1]", kPromptTable),
      Never("PIXEL_VALUES", kFp16, "[-1,-1,-1,-1]", kMultimodal),
      Never("ASPECT_RATIO_IDS", kInt64, "[-1]", kMultimodal),
      Never("ASPECT_RATIO_MASK", kInt64, "[-1,-1]", kMultimodal),
      Never("CROSS_ATTENTION_MASK", kInt64, "[-1,-1,-1]", kMultimodal),
      Never("IMAGE_SIZES", kInt64, "[-1,2]", kMultimodal),
      Never("IS_VIDEO_INPUT", kBool, "[1]", kMultimodal),
      Never("ATTENTION_MASK", kInt64, "[-1]", kMultimodal),
      Never("IMAGE_GRID_THW", kInt64, "[3]", kMultimodal),
      Never("VISION_INPUT_ID", kInt32, "[-1]", kMultimodal),
  };
}

std::vector<TensorRow> DetokenizeInputs() {
  return {
      // Needed unless FLOW brings the text.
      Optional("TOKENS_BATCH", kInt32, "[-1,-1]"),
      Optional("SEQUENCE_LENGTH", kInt32, "[-1]"),
      // Ours: what role `llm` sends in an ensemble.
      Optional("FLOW", kString, "[-1]"),
      Optional("ACCEPTANCE_RATE", kFp32, "[1]"),
  };
}

std::vector<TensorRow> DetokenizeOutputs() {
  return {Output("OUTPUT", kString, "[-1]"), Output("ACCEPTANCE_RATE", kFp32, "[1]")};
}

// Of `tensorrt_llm_bls`: inputs that no step has.
std::vector<TensorRow> OwnPipelineInputs() {
  return {
      Refused("image_input", kFp16, "[-1,3,-1,-1]", kMultimodal),
      Neutral("num_draft_tokens", kInt32, 0, 0, kDrafts),
      Neutral("use_draft_logits", kBool, 0, 0, kDrafts),
  };
}

// As the steps declare them, under the names that clients know.
std::vector<TensorRow> PipelineInputs() {
  const std::vector<TensorRow> own = OwnPipelineInputs();
  std::vector<TensorRow> rows;
  for (const Wire& wire : PipelineWires()) {
    const auto& table = wire.step == Role::kPipeline ? own : InputRows(wire.step);
    rows.push_back(*FindRow(table, wire.tensor));
    rows.back().name = wire.name;
  }
  return rows;
}

// What `llm` answers, but for what only other steps read; the text comes first.
std::vector<TensorRow> PipelineOutputs() {
  std::vector<TensorRow> rows = {*FindRow(OutputRows(Role::kLlm), "text_output")};
  for (const TensorRow& row : OutputRows(Role::kLlm)) {
    const std::string_view name = row.name;
    const bool inner = name == "output_ids" || name == "sequence_length" || name == "flow";
    if (!inner && row.use == Use::kServed && name != "text_output") rows.push_back(row);
  }
  return rows;
}

}  // namespace

const std::vector<TensorRow>& InputRows(Role role) {
  static const std::vector<TensorRow> llm = LlmInputs();
  static const std::vector<TensorRow> tokenize = TokenizeInputs();
  static const std::vector<TensorRow> detokenize = DetokenizeInputs();
  if (role == Role::kLlm) return llm;
  if (role == Role::kTokenize) return tokenize;
  if (role == Role::kDetokenize) return detokenize;
  static const std::vector<TensorRow> pipeline = PipelineInputs();
  return pipeline;
}

const std::vector<TensorRow>& OutputRows(Role role) {
  static const std::vector<TensorRow> llm = LlmOutputs();
  static const std::vector<TensorRow> tokenize = TokenizeOutputs();
  static const std::vector<TensorRow> detokenize = DetokenizeOutputs();
  if (role == Role::kLlm) return llm;
  if (role == Role::kTokenize) return tokenize;
  if (role == Role::kDetokenize) return detokenize;
  static const std::vector<TensorRow> pipeline = PipelineOutputs();
  return pipeline;
}

}  // namespace slipstream::triton
