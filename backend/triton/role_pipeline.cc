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
constexpr int kTokenizerStartMs = 10'000;  // where nothing goes without it

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

// Deploy scripts for `tensorrt_llm_bls` know no tokenizer of it: it is the one of the `llm`.
Status TakeTokenizer(PipelineParameters* parameters) {
  WaitForLlm(parameters->llm(), kTokenizerStartMs);
  const auto llm = FindLlm(parameters->llm());
  auto tokenizer = llm == nullptr ? TokenizerParameters() : llm->tokenizer();
  if (tokenizer.tokenizer.empty()) {
    return Status::InvalidArgument(
        "parameter tokenizer_dir: not set; it must name the directory of a Hugging Face tokenizer, "
        "unless model '" +
        parameters->llm() + "' is loaded and names one");
  }
  PythonParameters& python = parameters->tokenizer.python;
  if (!python.executable.empty()) tokenizer.python = python;
  parameters->tokenizer = std::move(tokenizer);
  return Status::Ok();
}

}  // namespace

StatusOr<std::unique_ptr<PipelineModel>> PipelineModel::Create(ModelConfig config) {
  auto parameters = PipelineParameters::FromMap(config.parameters);
  if (!parameters.ok()) return parameters.status();
  auto reader = ReaderSettings::Of(config);
  if (!reader.ok()) return reader.status();
  reader->pipeline = true;
  reader->accumulate_text = parameters->accumulate_tokens;
  LogWithoutEffect(config.name, parameters->without_effect);
  if (parameters->tokenizer.tokenizer.empty()) {
    if (Status s = TakeTokenizer(&*parameters); !s.ok()) return s;
  }
  auto tokenizer = PromptTokenizer::Create(*parameters);
  if (!tokenizer.ok()) return tokenizer.status();
  // A server loads its models side by side, and this one is not ready before its `llm` is.
  WaitForLlm(parameters->llm(), kLlmStartMs);
  return std::unique_ptr<PipelineModel>(new PipelineModel(
      std::move(config), *parameters, std::move(reader).value(), std::move(tokenizer).value()));
}

PipelineModel::PipelineModel(ModelConfig config, const PipelineParameters& parameters,
                             ReaderSettings reader, std::unique_ptr<PromptTokenizer> tokenizer)
    : Model(std::move(config)),
      llm_name_(parameters.llm()),
      reader_(std::move(reader)),
      tokenizer_(std::move(tokenizer)),
      queue_(QueueOptions(this->config(), parameters, *tokenizer_,
                          [this](TextJob* job, std::vector<TokenizedRow> rows) {
                            return NamedForClient(Finish(job, std::move(rows)));
                          })),
      metrics_(ReportTextQueue(this->config(), queue_)),
      registration_(llm_name_, &this->config(),
                    [this](const std::string& id) { queue_.Stop(id); }) {}

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
  reader.skip_special_tokens = llm.reader().skip_special_tokens;
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
  return NamedForClient(Enqueue(std::move(data).value(), arrival, stream));
}

Status PipelineModel::Enqueue(RequestData&& data, TimeNs arrival,
                              std::unique_ptr<ResponseStream>* stream) {
  // Nothing is worth tokenizing for a model that is not there.
  const auto llm = Llm();
  if (!llm.ok()) return llm.status();
  auto ticket = (*llm)->Expect();
  if (!ticket.ok()) return ticket.status();
  TextJob job;
  job.keeps = std::move(ticket).value();
  job.arrival = arrival;
  job.bytes = data.num_bytes();
  auto steps = SplitRequest(std::move(data), config().batched);
  if (!steps.ok()) return steps.status();
  if (Status s = CheckGiven(Role::kPipeline, steps->own); !s.ok()) return s;
  if (Status s = CheckGiven(Role::kTokenize, steps->tokenize); !s.ok()) return s;
  if (Status s = CheckGiven(Role::kLlm, steps->llm); !s.ok()) return s;
  auto standing = ReadStanding(steps->llm, arrival, (*llm)->max_sequences());
  if (!standing.ok()) return standing.status();
  job.standing = *standing;
  auto rows = tokenizer_->Read(steps->tokenize);
  if (!rows.ok()) return rows.status();
  job.rows = std::move(rows).value();
  job.rest = std::move(steps->llm);
  (*stream)->MarkComputeStart();
  job.stream = std::move(*stream);
  const Status status = queue_.Add(&job, [&llm, own = *standing](int64_t ahead) {
    return (*llm)->CheckRoom(own.sequences, own.priority, ahead);
  });
  if (!status.ok()) *stream = std::move(job.stream);
  return status;
}

Status PipelineModel::Finish(TextJob* job, std::vector<TokenizedRow> rows) const {
  // Tokenizing can take long enough for a reload: the newest serves, or the one that was there when
  // the request came, which waits for it.
  auto llm = FindLlm(llm_name_);
  if (llm == nullptr) llm = std::static_pointer_cast<LlmService::Ticket>(job->keeps)->service();
  auto request = ReadPipelineRequest(*job->rest, std::move(rows), ReaderFor(*llm), job->arrival);
  if (!request.ok()) return request.status();
  request->stopped = job->stopped;
  llm->Serve(std::move(request).value(), job->rest->id(),
             std::make_unique<ClientChannel>(std::move(job->stream)));
  return Status::Ok();
}

}  // namespace slipstream::triton
