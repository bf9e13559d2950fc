// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/role_llm.h"

#include <chrono>
#include <string>
#include <utility>

#include "triton/error.h"
#include "triton/process_factory.h"

namespace slipstream::triton {
namespace {

StatusOr<TRITONSERVER_DataType> LogitsType(const ModelConfig& config, const char* output) {
  for (const DeclaredTensor& tensor : config.outputs) {
    if (tensor.name != output || tensor.dtype == "FP32") continue;
    if (tensor.dtype == "FP16") return TRITONSERVER_TYPE_FP16;
    return Status::InvalidArgument("output '" + tensor.name + "': declared TYPE_" + tensor.dtype +
                                   ", must be TYPE_FP32 or TYPE_FP16");
  }
  return TRITONSERVER_TYPE_FP32;
}

// Lines of the log while the model loads: one for every new stage, else one every 5 s.
WorkerPort::Progress LogProgress(const std::string& model) {
  return [model, last = std::string(), next = uint64_t{0}](double fraction,
                                                           const std::string& what) mutable {
    const uint64_t now = MonotonicNs();
    if (what == last && now < next) return;
    last = what;
    next = now + 5'000'000'000;
    LogInfo("model " + model + ": " + std::to_string(static_cast<int>(fraction * 100)) + "% " +
            what);
  };
}

int64_t WallTimeUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

StatusOr<std::unique_ptr<LlmModel>> LlmModel::Create(ModelConfig config) {
  auto parameters = LlmParameters::FromMap(config.parameters);
  if (!parameters.ok()) return parameters.status();
  if (config.instance_count != 1) {
    return Status::Unsupported("instance_group: " + std::to_string(config.instance_count) +
                               " instances; role llm batches all requests in one executor, the "
                               "limit is 1");
  }
  LogWithoutEffect(config.name, parameters->without_effect);
  auto model =
      std::unique_ptr<LlmModel>(new LlmModel(std::move(config), std::move(parameters).value()));
  if (Status s = model->Load(); !s.ok()) return s;
  return model;
}

LlmModel::LlmModel(ModelConfig config, LlmParameters parameters)
    : Model(std::move(config)), parameters_(std::move(parameters)), delivery_(Delivery::Create()) {}

LlmModel::~LlmModel() {
  watch_.reset();
  if (executor_ != nullptr) {
    const TimeNs deadline =
        static_cast<TimeNs>(MonotonicNs()) + TimeNs{parameters_.drain_timeout_ms} * 1'000'000;
    executor_->Shutdown(/*drain=*/true, deadline);
  }
  delivery_->Stop();  // after the last event, before the executor that it cancels requests of
  metrics_.reset();
}

Status LlmModel::Load() {
  const auto context = LogitsType(config(), "context_logits");
  if (!context.ok()) return context.status();
  const auto generation = LogitsType(config(), "generation_logits");
  if (!generation.ok()) return generation.status();
  auto port = MakeWorkerPort(parameters_);
  if (!port.ok()) return port.status();
  auto executor = Executor::Create(parameters_.executor, std::move(port).value(), delivery_.get(),
                                   LogProgress(config().name));
  if (!executor.ok()) return executor.status();
  executor_ = std::move(executor).value();
  if (Status s = CheckLoaded(); !s.ok()) return s;

  reader_.batched = config().batched;
  reader_.decoupled = config().decoupled;
  reader_.exclude_input_in_output = parameters_.exclude_input_in_output;
  reader_.num_declared_outputs = config().outputs.size();
  reader_.context_logits_dtype = *context;
  reader_.generation_logits_dtype = *generation;
  reader_.vocab_size = executor_->limits().vocab_size;
  reader_.end_ids = executor_->worker_info().end_ids;
  reader_.token_table = executor_->token_table();
  delivery_->Start({parameters_.cancellation_check_period_ms, parameters_.flow_window,
                    [this](RequestHandle handle) { executor_->Cancel(handle); }});
  StartReporting();
  return Status::Ok();
}

Status LlmModel::CheckLoaded() const {
  const int32_t context = executor_->limits().max_seq_len;
  for (const int64_t window : parameters_.attention_windows) {
    if (window < context) {
      return Status::Unsupported("parameter max_attention_window_size: " + std::to_string(window) +
                                 " is shorter than the model's context of " +
                                 std::to_string(context) +
                                 "; a window beyond the checkpoint's own is not served");
    }
  }
  return Status::Ok();
}

void LlmModel::StartReporting() {
  const WorkerInfo& worker = executor_->worker_info();
  const bool on_gpu = worker.device.rfind("cuda", 0) == 0;
  metrics_ =
      MetricsReporter::Create(config().name, config().version, parameters_.stats_check_period_ms,
                              [this, on_gpu, weights = worker.weight_bytes] {
                                return MetricsView{executor_->Metrics(), executor_->health(),
                                                   on_gpu, weights, WallTimeUs()};
                              });
  HealthWatch::Options options;
  options.model = config().name;
  options.exit_on_fatal = parameters_.exit_on_fatal;
  options.health = [this] { return executor_->health(); };
  options.idle = [this] { return delivery_->num_live() == 0; };
  watch_ = std::make_unique<HealthWatch>(std::move(options));
}

Status LlmModel::Ready() const {
  const Health health = executor_->health();
  if (health == Health::kReady) return Status::Ok();
  return Status::Unavailable("model " + config().name + " is " + HealthName(health));
}

Status LlmModel::Handle(std::unique_ptr<ResponseStream>* channel) {
  const auto data = ReadTritonRequest((*channel)->request(), config().batched);
  if (!data.ok()) return data.status();
  if (data->cancelled()) return Status::Cancelled("the request was cancelled");
  auto request = ReadLlmRequest(*data, reader_, static_cast<TimeNs>(MonotonicNs()));
  if (!request.ok()) return request.status();
  (*channel)->MarkComputeStart();
  if (request->stop) {
    executor_->CancelByClientId(data->id());
    (*channel)->Send({}, true);
    return Status::Ok();
  }
  auto stream = std::make_shared<LlmStream>(std::move(*channel), std::move(request->plan));
  delivery_->Add(stream);
  Submit(stream, std::move(request->rows));
  return Status::Ok();
}

void LlmModel::Submit(const std::shared_ptr<LlmStream>& stream, std::vector<RequestSpec> rows) {
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto row = static_cast<int32_t>(i);
    rows[i].context = std::make_shared<LlmContext>(stream, row);
    const auto handle = executor_->Submit(std::move(rows[i]));
    if (handle.ok()) {
      delivery_->SetHandle(stream, row, *handle);
    } else {
      delivery_->Fail(stream, row, handle.status());
    }
  }
}

}  // namespace slipstream::triton
