// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "triton/tensor.h"
#include "triton/triton_abi.h"

struct TRITONSERVER_Parameter {
  std::string name;
  std::string value;
};
struct TRITONBACKEND_BackendAttribute {
  std::vector<TRITONSERVER_InstanceGroupKind> preferred;
};

// A double of the server's side of Triton's C API, in process: the test binary links it where the
// backend library is loaded by a server. It keeps to the documented ownership rules and counts what
// is alive, so that a test sees leaks, double releases and responses after the final one.

namespace slipstream::triton::host {

struct Output {
  std::string name;
  TRITONSERVER_DataType dtype = TRITONSERVER_TYPE_INVALID;
  std::vector<int64_t> shape;
  std::string data;

  template <typename T>
  std::vector<T> As() const {
    std::vector<T> values(data.size() / sizeof(T));
    if (!data.empty()) std::memcpy(values.data(), data.data(), values.size() * sizeof(T));
    return values;
  }
  std::vector<std::string> Strings() const;
};

struct Response {
  std::vector<Output> outputs;
  bool final = false;
  bool flags_only = false;
  std::shared_ptr<const std::pair<TRITONSERVER_Error_Code, std::string>> error;  // null: none

  const Output* Find(const std::string& name) const;
};

// What a client sees of its request, and what it may do.
class Client {
 public:
  std::function<void(const Response&)> on_response;  // on the sender's thread; may be empty

  void Cancel() { cancelled = true; }
  // Waits for the final response; every response so far. Throws after 20 s.
  std::vector<Response> WaitFinal();
  std::vector<Response> responses() const;

  std::atomic<bool> cancelled{false};
  std::atomic<int> released{0};
  std::atomic<int> reported_success{0};
  std::atomic<int> reported_failure{0};

  void Receive(Response response);

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Response> responses_;  // guarded by mutex_
  bool final_ = false;               // guarded by mutex_
};

struct RequestSpec {
  std::string id;
  std::vector<Output> inputs;  // an input has the same parts
  std::vector<std::string> outputs;
  std::map<std::string, std::string> parameters;
  uint64_t timeout_us = 0;
};

template <typename T>
Output In(const std::string& name, std::vector<int64_t> shape, const std::vector<T>& values) {
  return {name, DataTypeOf<T>(), std::move(shape),
          std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T))};
}
inline Output InBool(const std::string& name, bool value) {
  return {name, TRITONSERVER_TYPE_BOOL, {1, 1}, std::string(1, value ? '\1' : '\0')};
}
inline Output InStrings(const std::string& name, std::vector<int64_t> shape,
                        const std::vector<std::string>& values) {
  return {name, TRITONSERVER_TYPE_BYTES, std::move(shape), SerializeBytesTensor(values)};
}

// The request passes to the backend with Execute.
TRITONBACKEND_Request* NewRequest(const RequestSpec& spec, const std::shared_ptr<Client>& client);

// A model as the backend's API functions get it, and its instance. What the functions attach to it
// is theirs.
class LoadedModel {
 public:
  explicit LoadedModel(const std::string& json);  // its configuration
  ~LoadedModel();
  TRITONBACKEND_Model* model() { return model_.get(); }
  TRITONBACKEND_ModelInstance* instance() { return instance_.get(); }

 private:
  const std::unique_ptr<TRITONBACKEND_Model> model_;
  const std::unique_ptr<TRITONBACKEND_ModelInstance> instance_;
};

// Objects that exist now.
struct Alive {
  int requests = 0;
  int factories = 0;
  int responses = 0;
  int errors = 0;
};
Alive CountAlive();

struct AliveMetrics {
  int metrics = 0;
  int families = 0;
  int orphaned = 0;  // writes so far to samples that were deleted through another metric
};
AliveMetrics CountAliveMetrics();

// What /metrics showed last of a model, by "family{label="value"}" without model and version;
// histograms as "…_count" and "…_sum".
std::map<std::string, double> Metrics(const std::string& model);

// The model repository of a server in explicit control mode, as a backend reaches it from within:
// unloading only takes note, loading makes the model of the configuration that it is given. Calls
// on a null server are refused, as in the other modes.
class Repository {
 public:
  Repository();
  ~Repository();
  TRITONSERVER_Server* server() { return server_.get(); }
  // False: as while the server starts or ends, when it refuses every call. True at first.
  void SetServing(bool serving);
  // Waits for so many calls: "unload NAME", "load NAME: ERROR". Throws after 20 s.
  std::vector<std::string> WaitCalls(size_t count);

 private:
  const std::unique_ptr<TRITONSERVER_Server> server_;
};

}  // namespace slipstream::triton::host
