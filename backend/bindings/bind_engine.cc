// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/request_spec.h"
#include "bindings/status_error.h"
#include "executor/engine.h"

namespace py = pybind11;

namespace slipstream {
namespace {

void BindConfig(py::module_& m) {
  py::enum_<SchedulerPolicy>(m, "SchedulerPolicy")
      .value("GUARANTEED_NO_EVICT", SchedulerPolicy::kGuaranteedNoEvict)
      .value("MAX_UTILIZATION", SchedulerPolicy::kMaxUtilization);
  py::class_<ExecutorConfig>(m, "ExecutorConfig")
      .def(py::init<>())
      .def_readwrite("max_num_seqs", &ExecutorConfig::max_num_seqs)
      .def_readwrite("max_num_tokens", &ExecutorConfig::max_num_tokens)
      .def_readwrite("policy", &ExecutorConfig::policy)
      .def_readwrite("enable_chunked_prefill", &ExecutorConfig::enable_chunked_prefill)
      .def_readwrite("enable_prefix_reuse", &ExecutorConfig::enable_prefix_reuse)
      .def_readwrite("enable_partial_reuse", &ExecutorConfig::enable_partial_reuse)
      .def_readwrite("pipeline_depth", &ExecutorConfig::pipeline_depth)
      .def_readwrite("max_queue_requests", &ExecutorConfig::max_queue_requests)
      .def_readwrite("max_queue_tokens", &ExecutorConfig::max_queue_tokens)
      .def_readwrite("priority_ageing_ms", &ExecutorConfig::priority_ageing_ms)
      .def_readwrite("watchdog_ms", &ExecutorConfig::watchdog_ms)
      .def_readwrite("max_restarts", &ExecutorConfig::max_restarts)
      .def_readwrite("restart_backoff_ms", &ExecutorConfig::restart_backoff_ms)
      .def_readwrite("wrap_out_of_vocab_ids", &ExecutorConfig::wrap_out_of_vocab_ids)
      .def_readwrite("max_logprobs", &ExecutorConfig::max_logprobs)
      .def_readwrite("send_history", &ExecutorConfig::send_history);
  py::class_<KvGroup>(m, "KvGroup")
      .def(py::init([](const std::string& kind, int32_t num_blocks, int32_t window,
                       int64_t bytes_per_block) {
             KvGroup group{KvKind::kFull, window, num_blocks, bytes_per_block};
             if (KvKindFromName(kind, &group.kind)) return group;
             throw py::value_error("kind: '" + kind + "' is not full, sliding or chunked");
           }),
           py::arg("kind"), py::arg("num_blocks"), py::arg("window") = 0,
           py::arg("bytes_per_block") = 0)
      .def_property_readonly("kind", [](const KvGroup& g) { return KvKindName(g.kind); })
      .def_readonly("window", &KvGroup::window)
      .def_readonly("num_blocks", &KvGroup::num_blocks)
      .def_readonly("bytes_per_block", &KvGroup::bytes_per_block)
      .def("first_visible", &KvGroup::FirstVisible, py::arg("position"));
  py::class_<WorkerInfo>(m, "WorkerInfo")
      .def(py::init<>())
      .def_readwrite("vocab_size", &WorkerInfo::vocab_size)
      .def_readwrite("max_seq_len", &WorkerInfo::max_seq_len)
      .def_readwrite("tokens_per_block", &WorkerInfo::tokens_per_block)
      .def_readwrite("max_num_seqs", &WorkerInfo::max_num_seqs)
      .def_readwrite("max_num_tokens", &WorkerInfo::max_num_tokens)
      .def_readwrite("kv_groups", &WorkerInfo::kv_groups)
      .def_readwrite("end_ids", &WorkerInfo::end_ids)
      .def_readwrite("pad_id", &WorkerInfo::pad_id)
      .def_readwrite("wants_history", &WorkerInfo::wants_history)
      .def_readwrite("model_name", &WorkerInfo::model_name)
      .def_readwrite("device", &WorkerInfo::device)
      .def_readwrite("weight_bytes", &WorkerInfo::weight_bytes)
      .def_readwrite("expert_layers", &WorkerInfo::expert_layers)
      .def_readwrite("num_experts", &WorkerInfo::num_experts);
}

void BindStep(py::module_& m) {
  py::class_<StepPlan>(m, "StepPlan")
      .def(py::init<>())
      .def_readwrite("step_id", &StepPlan::step_id)
      .def_readwrite("num_groups", &StepPlan::num_groups)
      .def_readwrite("slot", &StepPlan::slot)
      .def_readwrite("num_tokens", &StepPlan::num_tokens)
      .def_readwrite("first_position", &StepPlan::first_position)
      .def_readwrite("num_new_blocks", &StepPlan::num_new_blocks)
      .def_readwrite("flags", &StepPlan::flags)
      .def_readwrite("token_ids", &StepPlan::token_ids)
      .def_readwrite("new_block_ids", &StepPlan::new_block_ids)
      .def_readwrite("retired", &StepPlan::retired)
      .def_readwrite("aux", &StepPlan::aux)
      .def_property_readonly("admitted_slots",
                             [](const StepPlan& p) {
                               std::vector<uint32_t> slots;
                               for (const AdmitRecord& r : p.admitted) slots.push_back(r.slot);
                               return slots;
                             })
      .def_property_readonly("copies", [](const StepPlan& p) {
        std::vector<std::tuple<int32_t, int32_t, int32_t, int32_t>> copies;
        for (const BlockCopy& c : p.copies) {
          copies.emplace_back(c.src, c.dst, c.num_tokens, c.group);
        }
        return copies;
      });
  py::class_<StepResult>(m, "StepResult")
      .def(py::init<>())
      .def_readwrite("step_id", &StepResult::step_id)
      .def_readwrite("start_ns", &StepResult::start_ns)
      .def_readwrite("end_ns", &StepResult::end_ns)
      .def_readwrite("slot", &StepResult::slot)
      .def_readwrite("status", &StepResult::status)
      .def_readwrite("num_tokens", &StepResult::num_tokens)
      .def_readwrite("logprob_width", &StepResult::logprob_width)
      .def_readwrite("context_rows", &StepResult::context_rows)
      .def_readwrite("generation_rows", &StepResult::generation_rows)
      .def_readwrite("tokens", &StepResult::tokens)
      .def_readwrite("logprob_ids", &StepResult::logprob_ids)
      .def_readwrite("logprob_values", &StepResult::logprob_values)
      .def_readwrite("logits", &StepResult::logits);
}

py::dict HistogramDict(const Histogram& h) {
  py::dict d;
  d["bounds"] = h.bounds;
  d["counts"] = h.counts;
  d["sum"] = h.sum;
  d["count"] = h.count;
  return d;
}

// By layer; both are empty without experts.
void AddExperts(const ExpertLoad* load, py::dict* metrics) {
  py::dict tokens, imbalance;
  for (size_t row = 0; load != nullptr && row < load->layers.size(); ++row) {
    const auto begin = load->tokens.begin() + static_cast<ptrdiff_t>(row) * load->num_experts;
    const py::int_ layer(load->layers[row]);
    tokens[layer] = std::vector<uint64_t>(begin, begin + load->num_experts);
    imbalance[layer] = load->Imbalance(row);
  }
  (*metrics)["expert_tokens"] = tokens;
  (*metrics)["expert_imbalance"] = imbalance;
}

}  // namespace

py::dict MetricsDict(const MetricsSnapshot& s) {
  py::dict d;
#define SLIPSTREAM_FIELD(name) d[#name] = s.name;
  SLIPSTREAM_FIELD(running)
  SLIPSTREAM_FIELD(waiting)
  SLIPSTREAM_FIELD(preempted)
  SLIPSTREAM_FIELD(waiting_tokens)
  SLIPSTREAM_FIELD(max_num_seqs)
  SLIPSTREAM_FIELD(scheduled)
  SLIPSTREAM_FIELD(context_requests)
  SLIPSTREAM_FIELD(generation_requests)
  SLIPSTREAM_FIELD(context_tokens)
  SLIPSTREAM_FIELD(step_in_flight)
  SLIPSTREAM_FIELD(kv_blocks_total)
  SLIPSTREAM_FIELD(kv_blocks_used)
  SLIPSTREAM_FIELD(kv_blocks_cached)
  SLIPSTREAM_FIELD(kv_blocks_free)
  SLIPSTREAM_FIELD(tokens_per_block)
  SLIPSTREAM_FIELD(kv_bytes)
  SLIPSTREAM_FIELD(kv_bytes_used)
  SLIPSTREAM_FIELD(steps)
  SLIPSTREAM_FIELD(requests_accepted)
  SLIPSTREAM_FIELD(requests_rejected)
  SLIPSTREAM_FIELD(requests_displaced)
  SLIPSTREAM_FIELD(prompt_tokens)
  SLIPSTREAM_FIELD(generated_tokens)
  SLIPSTREAM_FIELD(kv_hit_tokens)
  SLIPSTREAM_FIELD(kv_lookup_tokens)
  SLIPSTREAM_FIELD(kv_reused_blocks)
  SLIPSTREAM_FIELD(kv_evicted_blocks)
  SLIPSTREAM_FIELD(preemptions)
  SLIPSTREAM_FIELD(worker_restarts)
#undef SLIPSTREAM_FIELD
  py::dict finished;
  for (size_t i = 1; i < s.finished.size(); ++i) {
    finished[FinishReasonName(static_cast<FinishReason>(i))] = s.finished[i];
  }
  d["finished"] = finished;
  d["time_to_first_token_s"] = HistogramDict(s.time_to_first_token_s);
  d["inter_token_latency_s"] = HistogramDict(s.inter_token_latency_s);
  d["queue_time_s"] = HistogramDict(s.queue_time_s);
  d["e2e_latency_s"] = HistogramDict(s.e2e_latency_s);
  d["input_tokens"] = HistogramDict(s.input_tokens);
  d["output_tokens"] = HistogramDict(s.output_tokens);
  AddExperts(s.expert_load.get(), &d);
  return d;
}

py::dict EventDict(const Event& e) {
  py::dict d;
  d["request"] = e.request;
  d["sequence_index"] = e.sequence_index;
  d["tokens"] = e.tokens;
  d["text"] = e.text;
  d["logprob_width"] = e.logprobs.width;
  d["logprob_ids"] = e.logprobs.ids;
  d["logprob_values"] = e.logprobs.values;
  d["cum_logprob"] = e.cum_logprob;
  d["context_logits"] = e.context_logits;
  d["generation_logits"] = e.generation_logits;
  d["reason"] = FinishReasonName(e.reason);
  d["request_done"] = e.request_done;
  d["stop_reason"] = e.stop_reason;
  d["error"] = e.error.message();
  d["error_code"] = static_cast<int>(e.error.code());
  d["prompt_tokens"] = e.usage.prompt_tokens;
  d["completion_tokens"] = e.usage.completion_tokens;
  d["cached_tokens"] = e.usage.cached_tokens;
  d["arrival_ns"] = e.perf.arrival_ns;
  d["first_scheduled_ns"] = e.perf.first_scheduled_ns;
  d["first_token_ns"] = e.perf.first_token_ns;
  d["last_token_ns"] = e.perf.last_token_ns;
  d["preemptions"] = e.perf.preemptions;
  return d;
}

namespace {

FinishReason ReasonFromName(const std::string& name) {
  for (int i = 1; i <= static_cast<int>(FinishReason::kError); ++i) {
    if (name == FinishReasonName(static_cast<FinishReason>(i))) return static_cast<FinishReason>(i);
  }
  throw py::value_error("reason: '" + name + "' is not a finish reason");
}

void BindEngineClass(py::module_& m) {
  py::class_<Engine>(m, "Engine")
      .def(py::init([](const ExecutorConfig& config, const WorkerInfo& info,
                       std::shared_ptr<TokenTable> table) {
             ThrowIfError(CheckKvGroups(info, config));
             return std::make_unique<Engine>(config, info, std::move(table));
           }),
           py::arg("config"), py::arg("worker_info"), py::arg("token_table") = nullptr)
      .def(
          "submit",
          [](Engine& engine, RequestId id, TimeNs now, const py::kwargs& fields) {
            auto request = ValueOrThrow(Request::Create(SpecFromKwargs(fields), engine.limits()));
            ThrowIfError(engine.Submit(id, std::move(request), now));
          },
          py::arg("id"), py::arg("now"))
      .def(
          "finish",
          [](Engine& engine, RequestId id, const std::string& reason, TimeNs now) {
            return engine.Finish(id, ReasonFromName(reason), Status::Cancelled(reason), now);
          },
          py::arg("id"), py::arg("reason"), py::arg("now"))
      .def("finish_by_client_id", &Engine::FinishByClientId)
      .def("expire_deadlines", &Engine::ExpireDeadlines)
      .def_property_readonly("next_deadline", &Engine::next_deadline)
      .def("build_step",
           [](Engine& engine, TimeNs now) -> std::unique_ptr<StepPlan> {
             auto plan = std::make_unique<StepPlan>();
             if (!engine.BuildStep(now, plan.get())) return nullptr;
             return plan;
           })
      .def("on_result", [](Engine& engine, const StepResult& result,
                           TimeNs now) { ThrowIfError(engine.OnResult(result, now)); })
      .def("on_worker_lost", [](Engine& engine, const std::string& why,
                                TimeNs now) { engine.OnWorkerLost(Status::Internal(why), now); })
      .def("take_events",
           [](Engine& engine) {
             py::list events;
             for (const Event& e : engine.TakeEvents()) events.append(EventDict(e));
             return events;
           })
      .def_property_readonly("steps_in_flight", &Engine::steps_in_flight)
      .def_property_readonly("live_requests", &Engine::live_requests)
      .def_property_readonly("idle", &Engine::idle)
      .def("metrics",
           [](const Engine& engine) {
             MetricsSnapshot snapshot;
             engine.FillMetrics(&snapshot);
             return MetricsDict(snapshot);
           })
      .def("check_integrity", &Engine::CheckIntegrity);
}

}  // namespace

void BindEngine(py::module_& m) {
  BindConfig(m);
  BindStep(m);
  BindEngineClass(m);
}

}  // namespace slipstream
