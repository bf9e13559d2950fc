// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <time.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/request_spec.h"
#include "bindings/status_error.h"
#include "executor/executor.h"
#include "worker_link/process_worker.h"
#include "worker_link/scripted_worker.h"

namespace py = pybind11;

namespace slipstream {
namespace {

TimeNs MonotonicNow() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<TimeNs>(t.tv_sec) * 1000000000 + t.tv_nsec;
}

TimeNs After(double seconds) { return MonotonicNow() + static_cast<TimeNs>(seconds * 1e9); }

// Which submission an event belongs to, in the caller's own numbering: events may arrive before
// submit() has returned an id.
struct Ticket : ClientContext {
  explicit Ticket(uint64_t n) : number(n) {}
  const uint64_t number;
};

// Events wait here for a Python thread that takes them without holding up the executor's.
class EventQueue : public EventSink {
 public:
  void OnEvents(std::vector<Event>&& events) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (Event& e : events) events_.push_back(std::move(e));
    }
    ready_.notify_one();
  }

  std::vector<Event> Take(double timeout_s) {
    std::unique_lock<std::mutex> lock(mutex_);
    ready_.wait_for(lock, std::chrono::duration<double>(timeout_s),
                    [this] { return !events_.empty(); });
    return std::exchange(events_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::vector<Event> events_;  // guarded by mutex_
};

class PyExecutor {
 public:
  PyExecutor(const ExecutorConfig& config, std::unique_ptr<WorkerPort> port,
             const WorkerPort::Progress& progress) {
    auto executor = Executor::Create(config, std::move(port), &queue_, progress);
    if (executor.ok()) {
      executor_ = std::move(*executor);
    } else {
      failure_ = executor.status();
    }
  }

  const Status& failure() const { return failure_; }
  Executor& executor() { return *executor_; }
  EventQueue& queue() { return queue_; }

 private:
  EventQueue queue_;  // outlives executor_
  Status failure_;
  std::unique_ptr<Executor> executor_;
};

WorkerPort::Progress WrapProgress(const py::object& callback) {
  if (callback.is_none()) return nullptr;
  return [callback](double fraction, const std::string& what) {
    py::gil_scoped_acquire gil;
    callback(fraction, what);
  };
}

std::unique_ptr<PyExecutor> Start(const ExecutorConfig& config, std::unique_ptr<WorkerPort> port,
                                  const py::object& progress) {
  const WorkerPort::Progress wrapped = WrapProgress(progress);
  std::unique_ptr<PyExecutor> executor;
  {
    py::gil_scoped_release release;
    executor = std::make_unique<PyExecutor>(config, std::move(port), wrapped);
  }
  ThrowIfError(executor->failure());
  return executor;
}

std::unique_ptr<PyExecutor> StartProcess(const ExecutorConfig& config, const std::string& python,
                                         const std::string& worker_config_json,
                                         const py::object& progress) {
  ProcessWorkerConfig worker;
  worker.python = python;
  worker.config = nlohmann::json::parse(worker_config_json);
  worker.config["version"] = SLIPSTREAM_VERSION;
  return Start(config, std::make_unique<ProcessWorker>(std::move(worker)), progress);
}

std::unique_ptr<PyExecutor> StartScripted(const ExecutorConfig& config, const std::string& script,
                                          const py::object& progress) {
  auto worker = ValueOrThrow(ScriptedWorkerConfig::FromJson(script));
  return Start(config, std::make_unique<ScriptedWorker>(std::move(worker)), progress);
}

RequestSpec SpecFor(uint64_t ticket, double timeout_s, const py::kwargs& fields) {
  RequestSpec spec = SpecFromKwargs(fields);
  spec.context = std::make_shared<Ticket>(ticket);
  if (timeout_s > 0) spec.deadline = After(timeout_s);
  return spec;
}

uint64_t Submit(PyExecutor& self, uint64_t ticket, double timeout_s, const py::kwargs& fields) {
  RequestSpec spec = SpecFor(ticket, timeout_s, fields);
  py::gil_scoped_release release;
  auto handle = self.executor().Submit(std::move(spec));
  py::gil_scoped_acquire acquire;
  return ValueOrThrow(std::move(handle)).id;
}

std::vector<uint64_t> SubmitAll(PyExecutor& self, const std::vector<uint64_t>& tickets,
                                const py::list& requests) {
  std::vector<RequestSpec> specs;
  for (size_t i = 0; i < requests.size(); ++i) {
    const py::dict fields(requests[i].attr("copy")());
    const double timeout_s = fields.attr("pop")("timeout_s", 0.0).cast<double>();
    specs.push_back(SpecFor(tickets.at(i), timeout_s, py::reinterpret_borrow<py::kwargs>(fields)));
  }
  py::gil_scoped_release release;
  auto handles = self.executor().SubmitAll(std::move(specs));
  py::gil_scoped_acquire acquire;
  std::vector<uint64_t> ids;
  for (const RequestHandle handle : ValueOrThrow(std::move(handles))) ids.push_back(handle.id);
  return ids;
}

py::list WaitEvents(PyExecutor& self, double timeout_s) {
  std::vector<Event> events;
  {
    py::gil_scoped_release release;
    events = self.queue().Take(timeout_s);
  }
  py::list list;
  for (const Event& event : events) {
    py::dict d = EventDict(event);
    d["ticket"] = static_cast<const Ticket*>(event.context.get())->number;
    list.append(d);
  }
  return list;
}

}  // namespace

void BindExecutor(py::module_& m) {
  py::class_<PyExecutor>(m, "Executor", "The Engine on its own thread, with a worker.")
      .def_static("start_process", &StartProcess, py::arg("config"), py::arg("python"),
                  py::arg("worker_config_json"), py::arg("progress") = py::none(),
                  "Starts a worker process and waits until its model is loaded. `progress` is "
                  "called with (fraction, what). RuntimeError with the worker's own message.")
      .def_static("start_scripted", &StartScripted, py::arg("config"), py::arg("script"),
                  py::arg("progress") = py::none(), "A worker that follows a JSON script.")
      .def("submit", &Submit, py::arg("ticket"), py::arg("timeout_s") = 0.0,
           "Queues a request. ValueError: the request is wrong; RuntimeError: no room for it now. "
           "Its events carry `ticket`.")
      .def("submit_all", &SubmitAll, py::arg("tickets"), py::arg("requests"),
           "Queues requests, each a dict of submit()'s keywords, all or none.")
      .def("cancel", [](PyExecutor& self, uint64_t id) { self.executor().Cancel({id}); })
      .def("cancel_by_client_id",
           [](PyExecutor& self, const std::string& id) { self.executor().CancelByClientId(id); })
      .def("wait_events", &WaitEvents, py::arg("timeout_s"))
      .def(
          "shutdown",
          [](PyExecutor& self, bool drain, double timeout_s) {
            py::gil_scoped_release release;
            self.executor().Shutdown(drain, After(timeout_s));
          },
          py::arg("drain") = false, py::arg("timeout_s") = 0.0)
      .def_property_readonly("health",
                             [](PyExecutor& self) { return HealthName(self.executor().health()); })
      .def_property_readonly("worker_info",
                             [](PyExecutor& self) { return self.executor().worker_info(); })
      .def_property_readonly(
          "has_text", [](PyExecutor& self) { return self.executor().token_table() != nullptr; },
          "Whether the model came with a tokenizer, so that events can carry text.")
      .def("metrics", [](PyExecutor& self) { return MetricsDict(self.executor().Metrics()); });
}

}  // namespace slipstream
