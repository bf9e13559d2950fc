// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton_host.h"

#include <chrono>
#include <cstdlib>
#include <stdexcept>

#include "allocation_faults.h"

using slipstream::FaultPause;
namespace host = slipstream::triton::host;

struct TRITONSERVER_Error {
  TRITONSERVER_Error_Code code;
  std::string message;
};
struct TRITONSERVER_Message {
  std::string json;
};
struct TRITONBACKEND_Model {
  std::string json;
  void* state = nullptr;
};
struct TRITONBACKEND_ModelInstance {
  TRITONBACKEND_Model* model = nullptr;
};
struct TRITONBACKEND_Input {
  host::Output tensor;
};
struct HostParameter {
  std::string key;
  std::string text;
  TRITONSERVER_ParameterType type = TRITONSERVER_PARAMETER_STRING;
  int64_t number = 0;
  double real = 0;
  bool flag = false;
};
struct TRITONBACKEND_Request {
  host::RequestSpec spec;
  std::shared_ptr<host::Client> client;
  std::vector<std::unique_ptr<TRITONBACKEND_Input>> inputs;
  std::vector<HostParameter> parameters;
};
struct TRITONBACKEND_ResponseFactory {
  std::shared_ptr<host::Client> client;
};
struct TRITONBACKEND_Output {
  host::Output tensor;
};
struct TRITONBACKEND_Response {
  std::shared_ptr<host::Client> client;
  std::vector<std::unique_ptr<TRITONBACKEND_Output>> outputs;
};

namespace {

std::atomic<int> g_requests{0};
std::atomic<int> g_factories{0};
std::atomic<int> g_responses{0};
std::atomic<int> g_errors{0};

// What is written like a number or a boolean is one, as clients send it.
HostParameter Typed(const std::string& key, const std::string& text) {
  HostParameter parameter{key, text};
  parameter.number = std::strtoll(text.c_str(), nullptr, 10);
  parameter.real = std::strtod(text.c_str(), nullptr);
  parameter.flag = text == "true";
  if (text == std::to_string(parameter.number)) {
    parameter.type = TRITONSERVER_PARAMETER_INT;
  } else if (text == std::to_string(parameter.real)) {
    parameter.type = TRITONSERVER_PARAMETER_DOUBLE;
  } else if (text == "true" || text == "false") {
    parameter.type = TRITONSERVER_PARAMETER_BOOL;
  }
  return parameter;
}

}  // namespace

namespace slipstream::triton::host {

std::vector<std::string> Output::Strings() const {
  Tensor tensor;
  tensor.name = name;
  tensor.data = data;
  tensor.elements = 1;
  for (const int64_t dim : shape) tensor.elements *= dim;
  auto strings = ParseBytesTensor(tensor);
  if (!strings.ok()) throw std::runtime_error(strings.status().message());
  return *strings;
}

const Output* Response::Find(const std::string& name) const {
  for (const Output& output : outputs) {
    if (output.name == name) return &output;
  }
  return nullptr;
}

void Client::Receive(Response response) {
  if (on_response) on_response(response);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (final_) throw std::logic_error("a response after the final one");
  final_ = response.final;
  responses_.push_back(std::move(response));
  changed_.notify_all();
}

std::vector<Response> Client::WaitFinal() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!changed_.wait_for(lock, std::chrono::seconds(20), [this] { return final_; })) {
    throw std::runtime_error("no final response within 20 s");
  }
  return responses_;
}

std::vector<Response> Client::responses() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return responses_;
}

TRITONBACKEND_Request* NewRequest(const RequestSpec& spec, const std::shared_ptr<Client>& client) {
  auto* request = new TRITONBACKEND_Request{spec, client, {}, {}};
  for (const Output& input : spec.inputs) {
    request->inputs.push_back(std::make_unique<TRITONBACKEND_Input>(TRITONBACKEND_Input{input}));
  }
  for (const auto& [key, text] : spec.parameters) request->parameters.push_back(Typed(key, text));
  ++g_requests;
  return request;
}

LoadedModel::LoadedModel(const std::string& json)
    : model_(std::make_unique<TRITONBACKEND_Model>(TRITONBACKEND_Model{json})),
      instance_(std::make_unique<TRITONBACKEND_ModelInstance>(
          TRITONBACKEND_ModelInstance{model_.get()})) {}
LoadedModel::~LoadedModel() = default;

Alive CountAlive() { return {g_requests, g_factories, g_responses, g_errors}; }

}  // namespace slipstream::triton::host

extern "C" {

TRITONSERVER_Error* TRITONSERVER_ErrorNew(TRITONSERVER_Error_Code code, const char* msg) {
  const FaultPause pause;
  ++g_errors;
  return new TRITONSERVER_Error{code, msg};
}
void TRITONSERVER_ErrorDelete(TRITONSERVER_Error* error) {
  const FaultPause pause;
  --g_errors;
  delete error;
}
TRITONSERVER_Error_Code TRITONSERVER_ErrorCode(TRITONSERVER_Error* error) { return error->code; }
const char* TRITONSERVER_ErrorMessage(TRITONSERVER_Error* error) { return error->message.c_str(); }
bool TRITONSERVER_LogIsEnabled(TRITONSERVER_LogLevel) { return false; }
TRITONSERVER_Error* TRITONSERVER_LogMessage(TRITONSERVER_LogLevel, const char*, const int,
                                            const char*) {
  const FaultPause pause;
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MessageSerializeToJson(TRITONSERVER_Message* message,
                                                        const char** base, size_t* size) {
  const FaultPause pause;
  *base = message->json.data();
  *size = message->json.size();
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MessageDelete(TRITONSERVER_Message* message) {
  const FaultPause pause;
  delete message;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ApiVersion(uint32_t* major, uint32_t* minor) {
  const FaultPause pause;
  *major = TRITONBACKEND_API_VERSION_MAJOR;
  *minor = TRITONBACKEND_API_VERSION_MINOR;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_BackendAttributeAddPreferredInstanceGroup(
    TRITONBACKEND_BackendAttribute* attributes, const TRITONSERVER_InstanceGroupKind kind,
    const uint64_t, const uint64_t*, const uint64_t) {
  const FaultPause pause;
  attributes->preferred.push_back(kind);
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelConfig(TRITONBACKEND_Model* model, const uint32_t,
                                              TRITONSERVER_Message** message) {
  const FaultPause pause;
  *message = new TRITONSERVER_Message{model->json};
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelServer(TRITONBACKEND_Model*, TRITONSERVER_Server** server) {
  const FaultPause pause;
  *server = nullptr;  // as of one without model control
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelVersion(TRITONBACKEND_Model*, uint64_t* version) {
  const FaultPause pause;
  *version = 1;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelState(TRITONBACKEND_Model* model, void** state) {
  const FaultPause pause;
  *state = model->state;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelSetState(TRITONBACKEND_Model* model, void* state) {
  const FaultPause pause;
  model->state = state;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceModel(TRITONBACKEND_ModelInstance* instance,
                                                     TRITONBACKEND_Model** model) {
  const FaultPause pause;
  *model = instance->model;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportStatistics(TRITONBACKEND_ModelInstance*,
                                                                TRITONBACKEND_Request* request,
                                                                const bool success, const uint64_t,
                                                                const uint64_t, const uint64_t,
                                                                const uint64_t) {
  const FaultPause pause;
  ++(success ? request->client->reported_success : request->client->reported_failure);
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportBatchStatistics(TRITONBACKEND_ModelInstance*,
                                                                     const uint64_t, const uint64_t,
                                                                     const uint64_t, const uint64_t,
                                                                     const uint64_t) {
  const FaultPause pause;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_RequestId(TRITONBACKEND_Request* request, const char** id) {
  const FaultPause pause;
  *id = request->spec.id.c_str();
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestIsCancelled(TRITONBACKEND_Request* request,
                                                     bool* is_cancelled) {
  const FaultPause pause;
  *is_cancelled = request->client->cancelled;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_InferenceRequestTimeoutMicroseconds(
    TRITONBACKEND_Request* request, uint64_t* timeout) {
  const FaultPause pause;
  *timeout = request->spec.timeout_us;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestParameterCount(TRITONBACKEND_Request* request,
                                                        uint32_t* count) {
  const FaultPause pause;
  *count = static_cast<uint32_t>(request->parameters.size());
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestParameter(TRITONBACKEND_Request* request,
                                                   const uint32_t index, const char** key,
                                                   TRITONSERVER_ParameterType* type,
                                                   const void** vvalue) {
  const FaultPause pause;
  const HostParameter& parameter = request->parameters[index];
  *key = parameter.key.c_str();
  *type = parameter.type;
  *vvalue = parameter.text.c_str();
  if (parameter.type == TRITONSERVER_PARAMETER_INT) *vvalue = &parameter.number;
  if (parameter.type == TRITONSERVER_PARAMETER_DOUBLE) *vvalue = &parameter.real;
  if (parameter.type == TRITONSERVER_PARAMETER_BOOL) *vvalue = &parameter.flag;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestInputCount(TRITONBACKEND_Request* request,
                                                    uint32_t* count) {
  const FaultPause pause;
  *count = static_cast<uint32_t>(request->inputs.size());
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestInputByIndex(TRITONBACKEND_Request* request,
                                                      const uint32_t index,
                                                      TRITONBACKEND_Input** input) {
  const FaultPause pause;
  *input = request->inputs[index].get();
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestOutputCount(TRITONBACKEND_Request* request,
                                                     uint32_t* count) {
  const FaultPause pause;
  *count = static_cast<uint32_t>(request->spec.outputs.size());
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestOutputName(TRITONBACKEND_Request* request,
                                                    const uint32_t index,
                                                    const char** output_name) {
  const FaultPause pause;
  *output_name = request->spec.outputs[index].c_str();
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestRelease(TRITONBACKEND_Request* request, uint32_t) {
  const FaultPause pause;
  const auto client = request->client;
  delete request;
  --g_requests;
  ++client->released;  // last: who waits for it counts what is left
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_InputProperties(TRITONBACKEND_Input* input, const char** name,
                                                  TRITONSERVER_DataType* datatype,
                                                  const int64_t** shape, uint32_t* dims_count,
                                                  uint64_t* byte_size, uint32_t* buffer_count) {
  const FaultPause pause;
  *name = input->tensor.name.c_str();
  *datatype = input->tensor.dtype;
  *shape = input->tensor.shape.data();
  *dims_count = static_cast<uint32_t>(input->tensor.shape.size());
  *byte_size = input->tensor.data.size();
  // Larger tensors come in two pieces, as they do from the network.
  *buffer_count = input->tensor.data.size() > 64 ? 2 : 1;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_InputBuffer(TRITONBACKEND_Input* input, const uint32_t index,
                                              const void** buffer, uint64_t* buffer_byte_size,
                                              TRITONSERVER_MemoryType* memory_type,
                                              int64_t* memory_type_id) {
  const FaultPause pause;
  const std::string& data = input->tensor.data;
  const size_t cut = data.size() > 64 ? 13 : data.size();
  *buffer = data.data() + (index == 0 ? 0 : cut);
  *buffer_byte_size = index == 0 ? cut : data.size() - cut;
  *memory_type = TRITONSERVER_MEMORY_CPU;
  *memory_type_id = 0;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ResponseFactoryNew(TRITONBACKEND_ResponseFactory** factory,
                                                     TRITONBACKEND_Request* request) {
  const FaultPause pause;
  ++g_factories;
  *factory = new TRITONBACKEND_ResponseFactory{request->client};
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseFactoryDelete(TRITONBACKEND_ResponseFactory* factory) {
  const FaultPause pause;
  --g_factories;
  delete factory;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseFactorySendFlags(TRITONBACKEND_ResponseFactory* factory,
                                                           const uint32_t send_flags) {
  const FaultPause pause;
  host::Response response;
  response.flags_only = true;
  response.final = (send_flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL) != 0;
  factory->client->Receive(std::move(response));
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseFactoryIsCancelled(TRITONBACKEND_ResponseFactory* factory,
                                                             bool* is_cancelled) {
  const FaultPause pause;
  *is_cancelled = factory->client->cancelled;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseNewFromFactory(TRITONBACKEND_Response** response,
                                                         TRITONBACKEND_ResponseFactory* factory) {
  const FaultPause pause;
  ++g_responses;
  *response = new TRITONBACKEND_Response{factory->client, {}};
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseOutput(TRITONBACKEND_Response* response,
                                                 TRITONBACKEND_Output** output, const char* name,
                                                 const TRITONSERVER_DataType datatype,
                                                 const int64_t* shape, const uint32_t dims_count) {
  const FaultPause pause;
  response->outputs.push_back(std::make_unique<TRITONBACKEND_Output>(
      TRITONBACKEND_Output{{name, datatype, {shape, shape + dims_count}, ""}}));
  *output = response->outputs.back().get();
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_OutputBuffer(TRITONBACKEND_Output* output, void** buffer,
                                               const uint64_t buffer_byte_size,
                                               TRITONSERVER_MemoryType* memory_type,
                                               int64_t* memory_type_id) {
  const FaultPause pause;
  output->tensor.data.resize(buffer_byte_size);
  *buffer = output->tensor.data.data();
  *memory_type = TRITONSERVER_MEMORY_CPU;
  *memory_type_id = 0;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseSend(TRITONBACKEND_Response* response,
                                               const uint32_t send_flags,
                                               TRITONSERVER_Error* error) {
  const FaultPause pause;
  host::Response sent;
  sent.final = (send_flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL) != 0;
  for (const auto& output : response->outputs) sent.outputs.push_back(output->tensor);
  if (error != nullptr)
    sent.error = std::make_shared<const std::pair<TRITONSERVER_Error_Code, std::string>>(
        error->code, error->message);
  const auto client = response->client;
  --g_responses;
  delete response;
  client->Receive(std::move(sent));
  return nullptr;
}

}  // extern "C"
