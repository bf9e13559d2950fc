// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/role_pipeline.h"

#include <vector>

#include "triton/pipeline_wiring.h"
#include "triton/tensor_table.h"

namespace slipstream::triton {
namespace {

// How much later than this model a server may begin to load the `llm`.
constexpr int kLlmStartMs = 1000;

// Errors on their way to a client who knows the ensemble's names.
class ClientChannel final : public ResponseChannel {
 public:
  explicit ClientChannel(std::unique_ptr<ResponseStream> stream) : stream_(std::move(stream)) {}
  void Send(const std::vector<OutputTensor>& outputs, bool final) override {
    stream_->Send(outputs, final);
  }
  void SendError(const Status& error, bool final) override {
    stream_->SendError(NamedForClient(error), final);
  }
  bool cancelled() override { return stream_->cancelled(); }

 private:
  const std::unique_ptr<ResponseStream> stream_;
};

}  // namespace

StatusOr<std::unique_ptr<PipelineModel>> PipelineModel::Create(ModelConfig config) {
  auto parameters = PipelineParameters::FromMap(config.parameters);
  if (!parameters.ok()) return parameters.status();
  auto reader = ReaderSettings::Of(config);
  if (!reader.ok()) return reader.status();
  reader->pipeline = true;
  LogWithoutEffect(config.name, parameters->without_effect);
  auto tokenizer = PromptTokenizer::Create(*parameters);
  if (!tokenizer.ok()) return tokenizer.status();
  // A server loads its models side by side, and this one is not ready before its `llm` is.
  WaitForLlm(parameters->llm_model_name, kLlmStartMs);
  return std::unique_ptr<PipelineModel>(
      new PipelineModel(std::move(config), std::move(parameters->llm_model_name),
                        std::move(reader).value(), std::move(tokenizer).value()));
}

StatusOr<std::shared_ptr<LlmService>> PipelineModel::Llm() const {
  auto llm = FindLlm(llm_name_);
  if (llm != nullptr) return llm;
  return Status::Unavailable("parameter llm_model_name: model '" + llm_name_ +
                             "' is not loaded here, or is no model of role llm");
}

Status PipelineModel::Ready() const {
  const auto llm = Llm();
  return llm.ok() ? (*llm)->Ready() : llm.status();
}

ReaderSettings PipelineModel::ReaderFor(const LlmService& llm) const {
  ReaderSettings reader = reader_;
  reader.exclude_input_in_output = llm.reader().exclude_input_in_output;
  reader.vocab_size = llm.reader().vocab_size;
  reader.end_ids = llm.reader().end_ids;
  reader.token_table = llm.reader().token_table;
  return reader;
}

Status PipelineModel::Handle(std::unique_ptr<ResponseStream>* stream) {
  const auto arrival = static_cast<TimeNs>(MonotonicNs());
  auto data = ReadTritonRequest((*stream)->request(), config().batched);
  if (!data.ok()) return data.status();
  if (data->cancelled()) return Status::Cancelled("the request was cancelled");
  if (Status s = CheckRequired(Role::kPipeline, *data); !s.ok()) return s;
  return NamedForClient(Serve(std::move(data).value(), arrival, stream));
}

Status PipelineModel::Serve(RequestData&& data, TimeNs arrival,
                            std::unique_ptr<ResponseStream>* stream) {
  // Nothing is worth tokenizing for a model that is not there. The one to serve is looked up
  // afterwards, since tokenizing can take long enough for a reload.
  if (const auto llm = Llm(); !llm.ok()) return llm.status();
  auto steps = SplitRequest(std::move(data), config().batched);
  if (!steps.ok()) return steps.status();
  if (Status s = CheckGiven(Role::kTokenize, steps->tokenize); !s.ok()) return s;
  if (Status s = CheckGiven(Role::kLlm, steps->llm); !s.ok()) return s;
  (*stream)->MarkComputeStart();
  auto rows = tokenizer_->TokenizeAll(steps->tokenize);
  if (!rows.ok()) return rows.status();
  const auto llm = Llm();
  if (!llm.ok()) return llm.status();
  auto request =
      ReadPipelineRequest(steps->llm, std::move(rows).value(), ReaderFor(**llm), arrival);
  if (!request.ok()) return request.status();
  (*llm)->Serve(std::move(request).value(), steps->llm.id(),
                std::make_unique<ClientChannel>(std::move(*stream)));
  return Status::Ok();
}

}  // namespace slipstream::triton
