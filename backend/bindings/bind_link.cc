// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/status_error.h"
#include "executor/engine_config.h"
#include "worker_link/scripted_model.h"
#include "worker_link/step_codec.h"
#include "worker_link/step_frame.h"
#include "worker_link/tokenizer_pool.h"

namespace slipstream {
namespace {

namespace py = pybind11;

// {field: (offset, size)}
#define SLIPSTREAM_FIELD(type, field) \
  fields[#field] = py::make_tuple(offsetof(type, field), sizeof(type::field))

py::dict FrameHeaderLayout() {
  py::dict fields;
  SLIPSTREAM_FIELD(FrameHeader, magic);
  SLIPSTREAM_FIELD(FrameHeader, version);
  SLIPSTREAM_FIELD(FrameHeader, type);
  SLIPSTREAM_FIELD(FrameHeader, payload_bytes);
  return fields;
}

py::dict StepHeaderLayout() {
  py::dict fields;
  SLIPSTREAM_FIELD(StepHeader, step_id);
  SLIPSTREAM_FIELD(StepHeader, num_seqs);
  SLIPSTREAM_FIELD(StepHeader, num_tokens);
  SLIPSTREAM_FIELD(StepHeader, num_new_blocks);
  SLIPSTREAM_FIELD(StepHeader, num_copies);
  SLIPSTREAM_FIELD(StepHeader, num_admitted);
  SLIPSTREAM_FIELD(StepHeader, num_retired);
  SLIPSTREAM_FIELD(StepHeader, num_aux);
  SLIPSTREAM_FIELD(StepHeader, num_groups);
  return fields;
}

py::dict ResultHeaderLayout() {
  py::dict fields;
  SLIPSTREAM_FIELD(ResultHeader, step_id);
  SLIPSTREAM_FIELD(ResultHeader, start_ns);
  SLIPSTREAM_FIELD(ResultHeader, end_ns);
  SLIPSTREAM_FIELD(ResultHeader, num_logits);
  SLIPSTREAM_FIELD(ResultHeader, num_seqs);
  SLIPSTREAM_FIELD(ResultHeader, num_tokens);
  SLIPSTREAM_FIELD(ResultHeader, num_logprobs);
  SLIPSTREAM_FIELD(ResultHeader, reserved);
  return fields;
}

py::dict BlockCopyLayout() {
  py::dict fields;
  SLIPSTREAM_FIELD(BlockCopy, src);
  SLIPSTREAM_FIELD(BlockCopy, dst);
  SLIPSTREAM_FIELD(BlockCopy, num_tokens);
  SLIPSTREAM_FIELD(BlockCopy, group);
  return fields;
}

py::dict AdmitRecordLayout() {
  py::dict fields;
  SLIPSTREAM_FIELD(AdmitRecord, seed);
  SLIPSTREAM_FIELD(AdmitRecord, slot);
  SLIPSTREAM_FIELD(AdmitRecord, flags);
  SLIPSTREAM_FIELD(AdmitRecord, temperature);
  SLIPSTREAM_FIELD(AdmitRecord, top_k);
  SLIPSTREAM_FIELD(AdmitRecord, top_p);
  SLIPSTREAM_FIELD(AdmitRecord, min_p);
  SLIPSTREAM_FIELD(AdmitRecord, top_p_decay);
  SLIPSTREAM_FIELD(AdmitRecord, top_p_min);
  SLIPSTREAM_FIELD(AdmitRecord, top_p_reset_id);
  SLIPSTREAM_FIELD(AdmitRecord, repetition_penalty);
  SLIPSTREAM_FIELD(AdmitRecord, presence_penalty);
  SLIPSTREAM_FIELD(AdmitRecord, frequency_penalty);
  SLIPSTREAM_FIELD(AdmitRecord, prompt_ignore_length);
  SLIPSTREAM_FIELD(AdmitRecord, min_tokens);
  SLIPSTREAM_FIELD(AdmitRecord, num_logprobs);
  SLIPSTREAM_FIELD(AdmitRecord, prompt_len);
  SLIPSTREAM_FIELD(AdmitRecord, history_offset);
  SLIPSTREAM_FIELD(AdmitRecord, history_len);
  SLIPSTREAM_FIELD(AdmitRecord, end_ids_offset);
  SLIPSTREAM_FIELD(AdmitRecord, end_ids_len);
  SLIPSTREAM_FIELD(AdmitRecord, bad_words_offset);
  SLIPSTREAM_FIELD(AdmitRecord, bad_words_len);
  SLIPSTREAM_FIELD(AdmitRecord, bias_offset);
  SLIPSTREAM_FIELD(AdmitRecord, bias_len);
  return fields;
}

#undef SLIPSTREAM_FIELD

constexpr std::pair<const char*, FrameType> kFrameTypes[] = {
    {"CONFIG", FrameType::kConfig},     {"PROGRESS", FrameType::kProgress},
    {"HELLO", FrameType::kHello},       {"ERROR", FrameType::kError},
    {"SHUTDOWN", FrameType::kShutdown}, {"STEP", FrameType::kStep},
    {"RESULT", FrameType::kResult},     {"REQUEST", FrameType::kRequest},
    {"REPLY", FrameType::kReply},       {"STATS", FrameType::kStats},
};

py::dict FrameLayout() {
  py::dict layout;
  layout["FrameHeader"] = FrameHeaderLayout();
  layout["StepHeader"] = StepHeaderLayout();
  layout["ResultHeader"] = ResultHeaderLayout();
  layout["BlockCopy"] = BlockCopyLayout();
  layout["AdmitRecord"] = AdmitRecordLayout();
  py::dict constants;
  constants["magic"] = kFrameMagic;
  constants["version"] = kFrameVersion;
  constants["max_payload"] = kMaxFramePayload;
  constants["token_from_slot"] = kTokenFromSlot;
  constants["slots_per_seq"] = kSlotsPerSeq;
  layout["constants"] = constants;
  py::dict types;
  for (const auto& [name, type] : kFrameTypes) types[name] = static_cast<int>(type);
  layout["frame_types"] = types;
  return layout;
}

py::bytes EncodeStep(const StepPlan& plan) {
  StepEncoder encoder;
  std::string payload;
  for (const iovec& part : encoder.Encode(plan)) {
    payload.append(static_cast<const char*>(part.iov_base), part.iov_len);
  }
  return py::bytes(payload);
}

StepResult DecodeResultOf(const py::bytes& payload, uint64_t step_id, std::vector<uint32_t> slots) {
  const std::string_view bytes(payload);
  StepResult result;
  ThrowIfError(DecodeResult(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(),
                            {step_id, std::move(slots)}, &result));
  return result;
}

nlohmann::json ParseJson(const char* name, const std::optional<std::string>& text) {
  if (!text) return nullptr;
  nlohmann::json value = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) throw py::value_error(std::string(name) + " is not JSON");
  return value;
}

py::dict Tokenize(TokenizerPool& pool, std::optional<std::string> text,
                  const std::optional<std::string>& messages,
                  const std::optional<std::string>& chat, bool add_special_tokens,
                  std::optional<bool> allow_special,
                  std::map<std::string, std::vector<std::string>> words) {
  TokenizerRequest request;
  request.text = std::move(text);
  request.messages = ParseJson("messages_json", messages);
  request.chat = ParseJson("chat_json", chat);
  request.add_special_tokens = add_special_tokens;
  request.allow_special = allow_special;
  request.words = std::move(words);
  auto reply = [&] {
    const py::gil_scoped_release release;
    return pool.Tokenize(request);
  }();
  const TokenizerReply value = ValueOrThrow(std::move(reply));
  py::dict result;
  result["ids"] = value.ids;
  result["words"] = value.words;
  return result;
}

void BindScriptedModel(py::module_& m) {
  py::class_<ScriptedModel>(m, "ScriptedModel",
                            "A model without weights that checks every plan it is given.")
      .def(py::init([](const std::string& script) {
             return std::make_unique<ScriptedModel>(
                 ValueOrThrow(ScriptedWorkerConfig::FromJson(script)));
           }),
           py::arg("script") = "{}", "`script`: JSON; ValueError names the key at fault.")
      .def_property_readonly("info", &ScriptedModel::Info)
      .def(
          "run",
          [](ScriptedModel& model, const StepPlan& plan) { return ValueOrThrow(model.Run(plan)); },
          py::arg("plan"), "Applies a StepPlan; RuntimeError when it breaks the contract.")
      .def("reset", &ScriptedModel::Reset)
      .def("counters", [](const ScriptedModel& model) {
        const ScriptedCounters c = model.counters();
        py::dict counters;
        counters["live_slots"] = c.live_slots;
        counters["steps"] = c.steps;
        counters["tokens"] = c.tokens;
        counters["max_seqs"] = c.max_seqs;
        return counters;
      });
}

void BindTokenizerPool(py::module_& m) {
  py::class_<TokenizerPool>(m, "TokenizerPool", "Supervised tokenizer processes.")
      .def(py::init([](const std::string& tokenizer, const std::string& python,
                       int32_t num_processes, bool trust_remote_code, const std::string& revision,
                       int64_t load_timeout_ms, int64_t request_timeout_ms) {
             TokenizerPoolConfig config;
             config.tokenizer = tokenizer;
             config.python = python;
             config.num_processes = num_processes;
             config.trust_remote_code = trust_remote_code;
             config.revision = revision;
             config.load_timeout_ms = load_timeout_ms;
             config.request_timeout_ms = request_timeout_ms;
             auto pool = [&] {
               const py::gil_scoped_release release;
               return TokenizerPool::Create(std::move(config));
             }();
             return ValueOrThrow(std::move(pool));
           }),
           py::arg("tokenizer"), py::kw_only(), py::arg("python") = "python3",
           py::arg("num_processes") = 1, py::arg("trust_remote_code") = false,
           py::arg("revision") = "", py::arg("load_timeout_ms") = 300000,
           py::arg("request_timeout_ms") = 60000)
      .def("tokenize", &Tokenize, py::kw_only(), py::arg("text") = py::none(),
           py::arg("messages_json") = py::none(), py::arg("chat_json") = py::none(),
           py::arg("add_special_tokens") = true, py::arg("allow_special") = py::none(),
           py::arg("words") = std::map<std::string, std::vector<std::string>>(),
           "{ids, words}; ValueError naming the field when the request is wrong.")
      .def("stop", &TokenizerPool::Stop)
      .def_property_readonly("vocab_size",
                             [](const TokenizerPool& p) { return p.info().vocab_size; })
      .def_property_readonly("eos_id", [](const TokenizerPool& p) { return p.info().eos_id; })
      .def_property_readonly("pad_id", [](const TokenizerPool& p) { return p.info().pad_id; })
      .def_property_readonly("bos_id", [](const TokenizerPool& p) { return p.info().bos_id; })
      .def_property_readonly("has_chat_template",
                             [](const TokenizerPool& p) { return p.info().has_chat_template; })
      .def_property_readonly(
          "token_table", [](const TokenizerPool& p) { return py::bytes(p.info().token_table); });
}

}  // namespace

void BindLink(py::module_& m) {
  m.def("frame_layout", &FrameLayout,
        "{struct: {field: (offset, size)}} of the step link, its constants and frame types.");
  m.def("encode_step", &EncodeStep, py::arg("plan"), "The payload of a STEP frame.");
  m.def(
      "decode_result", &DecodeResultOf, py::arg("payload"), py::arg("step_id"), py::arg("slots"),
      "Reads the payload of a RESULT frame that answers such a step; RuntimeError if it does not.");
  BindScriptedModel(m);
  BindTokenizerPool(m);
}

}  // namespace slipstream
