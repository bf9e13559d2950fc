// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0

// The exported functions themselves, called as a server does, while memory runs out at every
// allocation in turn. An exception that left one of them would end the process, since they are
// called through Guarded, which is noexcept; what is checked beyond that is what they leave behind.

#include <doctest/doctest.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "allocation_faults.h"
#include "triton/error.h"
#include "triton_models.h"

namespace {

thread_local int64_t countdown = 0;  // 0: no fault is set
thread_local std::size_t least = 0;  // bytes of an allocation that counts
thread_local bool struck = false;

bool Strikes(std::size_t size) {
  if (countdown == 0 || size < least || slipstream::FaultPause::depth > 0) return false;
  if (countdown > 1) {
    --countdown;
    return false;
  }
  countdown = 0;
  return struck = true;
}

}  // namespace

void* operator new(std::size_t size) {
  void* memory = Strikes(size) ? nullptr : std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return Strikes(size) ? nullptr : std::malloc(size == 0 ? 1 : size);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace slipstream {

AllocationFault::AllocationFault(int64_t n, std::size_t at_least) : n_(n) {
  least = at_least;
  countdown = n;
  ::struck = false;
}
AllocationFault::~AllocationFault() { countdown = 0; }
bool AllocationFault::struck() const { return ::struck; }
int64_t AllocationFault::counted() const { return n_ - countdown; }

}  // namespace slipstream

namespace slipstream::triton {
namespace {

constexpr char kScripted[] = R"({
  "name": "llm", "max_batch_size": 4, "model_transaction_policy": {"decoupled": true},
  "input": [{"name": "input_ids", "data_type": "TYPE_INT32"},
            {"name": "input_lengths", "data_type": "TYPE_INT32"},
            {"name": "request_output_len", "data_type": "TYPE_INT32"}],
  "output": [{"name": "output_ids", "data_type": "TYPE_INT32"},
             {"name": "sequence_length", "data_type": "TYPE_INT32"}],
  "parameters": {"role": {"string_value": "llm"}, "worker": {"string_value": "scripted"}}})";

Status Load(host::LoadedModel* model) {
  return FromTritonError(TRITONBACKEND_ModelInitialize(model->model()));
}
Status Unload(host::LoadedModel* model) {
  return FromTritonError(TRITONBACKEND_ModelFinalize(model->model()));
}

std::vector<std::shared_ptr<host::Client>> Execute(host::LoadedModel* model, size_t count) {
  std::vector<std::shared_ptr<host::Client>> clients;
  std::vector<TRITONBACKEND_Request*> requests;
  {
    const FaultPause pause;
    for (size_t i = 0; i < count; ++i) {
      clients.push_back(std::make_shared<host::Client>());
      requests.push_back(host::NewRequest(Ask({5, 6, 7}, 3, true), clients.back()));
    }
  }
  TRITONSERVER_Error* error = TRITONBACKEND_ModelInstanceExecute(model->instance(), requests.data(),
                                                                 static_cast<uint32_t>(count));
  // An error would leave every request with the server, also those that have been answered.
  REQUIRE(error == nullptr);
  return clients;
}

TEST_CASE("abi: a model loads, serves and unloads through the exported functions") {
  CHECK(TRITONBACKEND_Initialize(nullptr) == nullptr);
  host::LoadedModel model(kScripted);
  CHECK(Load(&model).message() == "");
  CHECK(TRITONBACKEND_ModelInstanceInitialize(model.instance()) == nullptr);
  CHECK(TRITONBACKEND_ModelInstanceReady(model.instance()) == nullptr);
  const Status changed = FromTritonError(TRITONBACKEND_ModelInstanceInitialize(model.instance()));
  CHECK(changed.message().find("instance_group: was changed while the model is loaded") == 0);
  const auto clients = Execute(&model, 2);
  for (const auto& client : clients) CHECK(Ids(client->WaitFinal()).size() == 3);
  CheckClean(clients);
  CHECK(TRITONBACKEND_ModelInstanceFinalize(model.instance()) == nullptr);
  CHECK(Unload(&model).ok());
  CHECK(TRITONBACKEND_Finalize(nullptr) == nullptr);
}

TEST_CASE("abi: whatever allocation fails, every request of a batch is answered once") {
  host::LoadedModel model(kScripted);
  REQUIRE(Load(&model).ok());
  int64_t n = 1;
  for (bool struck = true; struck; ++n) {
    std::vector<std::shared_ptr<host::Client>> clients;
    {
      const AllocationFault fault(n);
      clients = Execute(&model, 3);
      struck = fault.struck();
    }
    for (const auto& client : clients) {
      for (int i = 0; i < 20000 && client->released == 0; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      REQUIRE_MESSAGE(client->released == 1, "allocation ", n);
    }
  }
  CHECK(n > 100);
  // It serves as before.
  const auto clients = Execute(&model, 1);
  CHECK(Ids(clients[0]->WaitFinal()).size() == 3);
  CheckClean(clients);
  CHECK(Unload(&model).ok());
}

// Past the configuration: nlohmann's values allocate in their destructors, which are noexcept.
TEST_CASE("abi: whatever allocation fails, loading ends") {
  int64_t parsing = 0;
  {
    const AllocationFault fault(int64_t{1} << 40);
    REQUIRE(ModelConfig::FromJson(kScripted).ok());
    parsing = fault.counted();
  }
  int64_t failures = 0;
  // One by one, then further and further apart: there are thousands.
  for (int64_t n = parsing + 2, step = 1;; n += step, step = (n - parsing) / 20 + 1) {
    host::LoadedModel model(kScripted);
    bool struck = false;
    Status loaded;
    {
      const AllocationFault fault(n);
      loaded = Load(&model);
      struck = fault.struck();
    }
    failures += loaded.ok() ? 0 : 1;
    if (loaded.ok()) CHECK(Unload(&model).ok());
    if (!struck) break;
  }
  CHECK(failures > 20);
  CHECK(host::CountAlive().errors == 0);
}

TEST_CASE("abi: what is thrown becomes an error") {
  // Not even JSON.
  host::LoadedModel model("[");
  CHECK(Load(&model).message().rfind("model configuration: ", 0) == 0);
  const auto thrown = [](auto what) {
    return FromTritonError(Guarded("f", [&]() -> Status { throw what; })).message();
  };
  CHECK(thrown(std::runtime_error("lost")) == "f: lost");
  CHECK(thrown(42) == "f");
}

TEST_CASE("abi: messages are UTF-8 and fit a header, whatever a client made them quote") {
  const auto sent = [](const std::string& message) {
    TRITONSERVER_Error* error = ToTritonError(Status::InvalidArgument(message));
    std::string text = TRITONSERVER_ErrorMessage(error);
    TRITONSERVER_ErrorDelete(error);
    return text;
  };
  CHECK(sent("top_k: -1 is wrong") == "top_k: -1 is wrong");
  CHECK(sent("a\xFFz\xC3") == "a\xEF\xBF\xBDz\xEF\xBF\xBD");
  std::string long_text = "x";
  for (int i = 0; i < 1500; ++i) long_text += "\xC3\xA9";
  const std::string cut = sent(long_text);
  CHECK(cut.size() == 1999 + 3);  // whole characters, then "…"
  CHECK(cut.substr(1999) == "\xE2\x80\xA6");
}

}  // namespace
}  // namespace slipstream::triton
