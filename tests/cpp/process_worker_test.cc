// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/process_worker.h"
#include "worker_hello.h"

#include <dirent.h>
#include <doctest/doctest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "worker_hello.h"
#include "worker_link/child_process.h"

namespace slipstream {
namespace {

constexpr int64_t kLong = 120000;  // ms; no test waits that long unless it fails

// The worker's side of the conversation in plain Python: argv[1] is the HELLO payload in hex,
// argv[2] the behaviour. Its token for a sequence is 1000 + slot.
const char kWorkerScript[] = R"(
import os, signal, socket, struct, sys, time
link = socket.socket(fileno=3)
def read(size):
    data = b""
    while len(data) < size:
        piece = link.recv(size - len(data))
        if not piece:
            sys.exit(0)
        data += piece
    return data
def receive():
    magic, version, kind, size = struct.unpack("<IHHQ", read(16))
    return kind, read(size)
def send(kind, payload):
    global held
    held += struct.pack("<IHHQ", 0x4d525453, 3, kind, len(payload)) + payload
    if how == "pairs" and kind == 7 and held.count(struct.pack("<I", 0x4d525453)) < 2:
        return
    link.sendall(held)
    held = b""
def result(step, fill=0):
    step_id, n = struct.unpack_from("<QI", step)
    slots = struct.unpack_from(f"<{n}I", step, 40)
    def array(values):
        data = struct.pack(f"<{n}I", *values)
        return data + bytes(-len(data) % 8)
    zero, one = array([0] * n), array([1] * n)
    width = array([fill] * n)
    logprobs = bytes(4 * n * fill + (-4 * n * fill) % 8)
    head = struct.pack("<QQQQIIII", step_id, 1, 2, 0, n, n, n * fill, 0)
    send(7, head + array(slots) + zero + one + width + zero + zero
         + array([1000 + s for s in slots]) + logprobs * 2)
hello, how, held = bytes.fromhex(sys.argv[1]), sys.argv[2], b""
error = b"\x82\xa7message\xabout of luck\xa9traceback\xa4here"
kind, config = receive()
assert kind == 1
if how == "silent":
    time.sleep(60)
if how == "exit":
    sys.exit(3)
if how == "garbage":
    link.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    time.sleep(60)
if how == "error":
    send(4, error)
    sys.exit(1)
# 128 tokens are what HELLO offers: 16 blocks of 8.
stats = 0
pinned = b"kv_cache_tokens\xcc\x80" in config and b"token_table\xc2" in config
pinned = pinned and b"kv_cache_bytes\x00" in config
pinned = pinned and b"kv_cache_fraction\xca\x00\x00\x00\x00" in config
what = b"\xa6pinned" if pinned else b"\xa7loading"
send(2, b"\x82\xa8fraction\xcb\x3f\xe0\x00\x00\x00\x00\x00\x00\xa4what" + what)
if how == "once" and what == b"\xa6pinned":
    time.sleep(60)
send(3, hello)
if how == "stuck":  # before it reads a byte: a frame that is read in time is no error
    time.sleep(60)
while True:
    kind, payload = receive()
    if kind == 5:
        sys.exit(0)
    if how == "fail":
        send(4, error)
        sys.exit(1)
    if how == "counts":  # msgpack: {"expert_tokens": 32 bytes, or 24}
        size = 24 if stats == 2 else 32
        tokens = struct.pack("<4Q", 1, 2**40, 0, stats)[:size]
        send(10, b"\x81\xadexpert_tokens\xc4" + bytes([size]) + tokens)
        stats += 1
    result(payload, 4000000 if how == "large" else 0)
)";

std::string Hex(const std::vector<uint8_t>& bytes) {
  std::string hex;
  for (const uint8_t byte : bytes) {
    hex += "0123456789abcdef"[byte >> 4];
    hex += "0123456789abcdef"[byte & 15];
  }
  return hex;
}

ProcessWorkerConfig Config(const std::string& how, const nlohmann::json& hello = WorkerHello()) {
  ProcessWorkerConfig config;
  config.args = {"-c", kWorkerScript, Hex(nlohmann::json::to_msgpack(hello)), how};
  config.load_timeout_ms = kLong;
  config.send_timeout_ms = kLong;
  return config;
}

StepPlan Plan(uint64_t step_id, uint32_t num_seqs, size_t aux = 0) {
  StepPlan plan;
  plan.step_id = step_id;
  for (uint32_t i = 0; i < num_seqs; ++i) {
    plan.slot.push_back(10 - i);
    plan.num_tokens.push_back(1);
    plan.first_position.push_back(0);
    plan.num_new_blocks.push_back(0);
    plan.flags.push_back(kSeqSample);
    plan.token_ids.push_back(7);
  }
  plan.aux.assign(aux, 1);
  return plan;
}

WorkerPort::Reply AwaitReply(ProcessWorker* worker, StepResult* result, std::string* why) {
  const int64_t deadline_ns = DeadlineNs(kLong);
  while (MonotonicNs() < deadline_ns) {
    const auto reply = worker->Receive(result, why);
    if (reply != WorkerPort::Reply::kNone) return reply;
    pollfd poll_fd{worker->fd(), POLLIN, 0};
    ::poll(&poll_fd, 1, 1000);
  }
  return WorkerPort::Reply::kNone;
}

std::set<std::string> OpenFds() {
  std::set<std::string> fds;
  DIR* directory = ::opendir("/proc/self/fd");
  REQUIRE(directory != nullptr);
  while (const dirent* entry = ::readdir(directory)) fds.insert(entry->d_name);
  ::closedir(directory);
  return fds;
}

bool HasChildren() {
  siginfo_t info{};
  return ::waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
}

std::string Output(const std::string& script) {
  UniqueFd fd;
  auto child = ChildProcess::Spawn({"sh", "-c", script + " >&3"}, &fd);
  REQUIRE(child.ok());
  REQUIRE((*child)->WaitExit(kLong));
  char text[4096];
  const ssize_t got = ::read(fd.get(), text, sizeof text);
  return {text, static_cast<size_t>(std::max<ssize_t>(got, 0))};
}

}  // namespace

TEST_CASE("child process: exit descriptions") {
  UniqueFd fd;
  auto exits = ChildProcess::Spawn({"sh", "-c", "exit 7"}, &fd);
  REQUIRE(exits.ok());
  REQUIRE((*exits)->WaitExit(kLong));
  CHECK((*exits)->ExitDescription() == "exit code 7");
  auto sleeps = ChildProcess::Spawn({"sleep", "60"}, &fd);
  REQUIRE(sleeps.ok());
  CHECK((*sleeps)->ExitDescription() == "running");
  CHECK_FALSE((*sleeps)->WaitExit(1));
  (*sleeps)->Kill();
  REQUIRE((*sleeps)->WaitExit(kLong));
  CHECK((*sleeps)->ExitDescription() == "killed by signal 9 (Killed)");
  (*sleeps)->Kill();
  const auto missing = ChildProcess::Spawn({"slipstream-no-such-program"}, &fd);
  REQUIRE_FALSE(missing.ok());
  CHECK(missing.status().message() ==
        "could not start 'slipstream-no-such-program': No such file or directory");
}

TEST_CASE("child process: inherits nothing but its socket, in a session of its own") {
  const UniqueFd leaky(::dup(2));  // without close-on-exec
  CHECK(Output(R"(exec python3 -c '
import os
def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
print([fd for fd in range(1024) if is_open(fd)])')") == "[0, 1, 2, 3]\n");
  CHECK(Output("readlink /proc/$$/fd/0") == "/dev/null\n");
  const std::string stat = Output("cat /proc/$$/stat");  // pid (comm) state ppid pgrp session
  const pid_t pid = std::stoi(stat);
  CHECK(stat.find(" " + std::to_string(pid) + " " + std::to_string(pid) + " ") !=
        std::string::npos);
}

TEST_CASE("child process: default signals, whatever the host does with them") {
  sigset_t blocked, before;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1);
  ::pthread_sigmask(SIG_BLOCK, &blocked, &before);
  auto* old_handler = ::signal(SIGINT, SIG_IGN);
  const std::string masks = Output("sed -n 's/^Sig\\(Blk\\|Ign\\):\\t/0x/p' /proc/self/status");
  ::signal(SIGINT, old_handler);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  size_t length = 0;
  constexpr uint64_t kStandardSignals = 0x7fffffff;  // the C library keeps 32 and 33 for itself
  CHECK(std::stoull(masks, &length, 16) == 0);
  CHECK((std::stoull(masks.substr(length), nullptr, 16) & kStandardSignals) == 0);
}

TEST_CASE(
    "child process: what a child leaves behind is killed, and the end of file shows at once") {
  UniqueFd fd;
  // The grandchild holds the socket too.
  auto child = ChildProcess::Spawn({"sh", "-c", "sleep 60 & exit 0"}, &fd);
  REQUIRE(child.ok());
  REQUIRE((*child)->WaitExit(kLong));
  pollfd poll_fd{fd.get(), POLLIN, 0};
  REQUIRE(::poll(&poll_fd, 1, kLong) == 1);
  char byte;
  CHECK(::read(fd.get(), &byte, 1) == 0);
}

TEST_CASE("child process: works where the host ignores SIGCHLD") {
  auto* old_handler = ::signal(SIGCHLD, SIG_IGN);
  UniqueFd fd;
  auto child = ChildProcess::Spawn({"sh", "-c", "exit 7"}, &fd);
  REQUIRE(child.ok());
  CHECK((*child)->WaitExit(kLong));
  CHECK((*child)->ExitDescription().rfind("exit", 0) == 0);
  ::signal(SIGCHLD, old_handler);
}

TEST_CASE("process worker: handshake and steps") {
  ProcessWorker worker(Config("serve"));
  CHECK(worker.fd() == -1);
  std::string progress;
  const auto info = worker.Start([&](double fraction, const std::string& what) {
    progress += what + " " + std::to_string(static_cast<int>(fraction * 100));
  });
  REQUIRE_MESSAGE(info.ok(), info.status().message());
  CHECK(progress == "loading 50");
  CHECK(info->vocab_size == 2000);
  CHECK(info->end_ids == std::vector<int32_t>{2, 3});
  CHECK(info->pad_id == -1);
  REQUIRE(info->kv_groups.size() == 2);
  CHECK(info->kv_groups[0].kind == KvKind::kFull);
  CHECK(info->kv_groups[1].kind == KvKind::kSliding);
  CHECK(info->kv_groups[1].window == 24);
  CHECK(info->kv_groups[1].num_blocks == 9);
  CHECK(info->kv_groups[1].bytes_per_block == 64);
  CHECK(info->weight_bytes == 5000000000);
  CHECK(info->expert_layers == std::vector<int32_t>{1, 4});
  CHECK(info->num_experts == 2);
  CHECK(info->token_table == std::string("\1\2\3"));
  REQUIRE(worker.Send(Plan(1, 3)).ok());
  REQUIRE(worker.Send(Plan(2, 1)).ok());
  StepResult result;
  std::string why;
  REQUIRE(AwaitReply(&worker, &result, &why) == WorkerPort::Reply::kResult);
  CHECK(result.step_id == 1);
  CHECK(result.slot == std::vector<uint32_t>{10, 9, 8});
  CHECK(result.tokens == std::vector<int32_t>{1010, 1009, 1008});
  REQUIRE(AwaitReply(&worker, &result, &why) == WorkerPort::Reply::kResult);
  CHECK(result.step_id == 2);
  CHECK(worker.Receive(&result, &why) == WorkerPort::Reply::kNone);
  worker.Stop();
  worker.Stop();
  CHECK(worker.fd() == -1);
  CHECK_FALSE(HasChildren());
}

TEST_CASE("process worker: tokens of experts add up until they are taken, over a restart, too") {
  ProcessWorker worker(Config("counts"));
  REQUIRE(worker.Start(nullptr).ok());
  StepResult result;
  std::string why;
  const auto step = [&](uint64_t id) {
    REQUIRE(worker.Send(Plan(id, 1)).ok());
    return AwaitReply(&worker, &result, &why);
  };
  using Tokens = std::vector<uint64_t>;
  constexpr uint64_t kMany = uint64_t{1} << 40;
  CHECK(worker.TakeExpertTokens().empty());
  REQUIRE(step(1) == WorkerPort::Reply::kResult);
  CHECK(worker.TakeExpertTokens() == Tokens{1, kMany, 0, 0});
  CHECK(worker.TakeExpertTokens().empty());
  REQUIRE(step(2) == WorkerPort::Reply::kResult);
  REQUIRE(worker.Start(nullptr).ok());
  REQUIRE(step(1) == WorkerPort::Reply::kResult);
  REQUIRE(step(2) == WorkerPort::Reply::kResult);
  CHECK(worker.TakeExpertTokens() == Tokens{3, 3 * kMany, 0, 2});
  REQUIRE(step(3) == WorkerPort::Reply::kFailed);
  CHECK(why == "the worker's STATS: expert_tokens has 24 bytes, must have 32");
}

TEST_CASE("process worker: large steps and large results cross without a deadlock") {
  ProcessWorker worker(Config("large"));
  REQUIRE(worker.Start(nullptr).ok());
  StepResult result;
  std::string why;
  for (uint64_t step = 1; step <= 3; ++step) {
    REQUIRE(worker.Send(Plan(step, 1, 4 << 20)).ok());
  }
  for (uint64_t step = 1; step <= 3; ++step) {
    REQUIRE(AwaitReply(&worker, &result, &why) == WorkerPort::Reply::kResult);
    CHECK(result.step_id == step);
    CHECK(result.logprob_ids.size() == 4000000);
  }
}

TEST_CASE("process worker: fd() is readable while a received frame waits in the buffer") {
  ProcessWorker worker(Config("pairs"));  // sends two answers at once: one read fetches both
  REQUIRE(worker.Start(nullptr).ok());
  StepResult result;
  std::string why;
  REQUIRE(worker.Send(Plan(1, 1)).ok());
  REQUIRE(worker.Send(Plan(2, 1)).ok());
  REQUIRE(AwaitReply(&worker, &result, &why) == WorkerPort::Reply::kResult);
  pollfd poll_fd{worker.fd(), POLLIN, 0};
  CHECK(::poll(&poll_fd, 1, kLong) == 1);
  REQUIRE(worker.Receive(&result, &why) == WorkerPort::Reply::kResult);
  CHECK(worker.Receive(&result, &why) == WorkerPort::Reply::kNone);
  CHECK(::poll(&poll_fd, 1, 0) == 0);
}

TEST_CASE("process worker: a restart may take no longer than starts do") {
  ProcessWorkerConfig config = Config("once");
  config.restart_timeout_ms = 1;
  ProcessWorker worker(config);
  const int64_t before = DeadlineNs(0);
  REQUIRE(worker.Start(nullptr).ok());
  const int64_t took_ms = (DeadlineNs(0) - before) / 1'000'000;
  const Status status = worker.Start(nullptr).status();
  const std::string text = "the worker did not finish loading within ";
  REQUIRE(status.message().rfind(text, 0) == 0);
  const int64_t limit_ms = std::stoll(status.message().substr(text.size()));
  CHECK(limit_ms <= 4 * took_ms + 4);
  CHECK(limit_ms >= 4);
}

TEST_CASE("process worker: a failed start says why") {
  std::string how, expected;
  nlohmann::json hello = WorkerHello();
  int64_t load_timeout_ms = kLong;
  SUBCASE("exit") {
    how = "exit";
    expected = "the worker died: exit code 3";
  }
  SUBCASE("error") {
    how = "error";
    expected = "the worker failed: out of luck";
  }
  SUBCASE("garbage") {
    how = "garbage";
    expected = "the worker: the peer sent something that is not a frame (magic 1347703880)";
  }
  SUBCASE("time-out") {
    how = "silent";
    load_timeout_ms = 300;
    expected = "the worker did not finish loading within 300 ms (the load time-out)";
  }
  SUBCASE("missing key") {
    hello.erase("kv_groups");
    expected = "the worker's HELLO: kv_groups is missing";
  }
  SUBCASE("missing key of a group") {
    hello["kv_groups"][1].erase("num_blocks");
    expected = "kv_groups in the worker's HELLO: num_blocks is missing";
  }
  SUBCASE("unknown kind of a group") {
    hello["kv_groups"][1]["kind"] = "round";
    expected = "kv_groups in the worker's HELLO: kind is 'round', must be full, sliding or chunked";
  }
  SUBCASE("value out of range") {
    hello["vocab_size"] = 0;
    expected = "the worker's HELLO: vocab_size is 0, must be between 1 and 2147483647";
  }
  SUBCASE("layers without experts") {
    hello["num_experts"] = 0;
    expected = "the worker's HELLO: num_experts is 0, must be between 1 and 65536";
  }
  SUBCASE("wrong type of layers") {
    hello["expert_layers"] = "all";
    expected = "the worker's HELLO: expert_layers is not a list of layer numbers";
  }
  SUBCASE("wrong type") {
    hello["end_ids"] = {1, -2};
    expected = "the worker's HELLO: end_ids is not a list of token ids";
  }
  ProcessWorkerConfig config = Config(how, hello);
  config.load_timeout_ms = load_timeout_ms;
  std::string log;
  config.log = [&](const std::string& line) { log += line; };
  ProcessWorker worker(config);
  const auto info = worker.Start(nullptr);
  REQUIRE_FALSE(info.ok());
  CHECK(info.status().message() == expected);
  CHECK(worker.fd() == -1);
  CHECK(log == (how == "error" ? "the worker failed:\nhere" : ""));
  CHECK_FALSE(HasChildren());
}

TEST_CASE("process worker: Interrupt ends one start, the one that waits or the next") {
  ProcessWorker worker(Config("silent"));
  std::thread interrupter([&] { worker.Interrupt(); });
  const auto info = worker.Start(nullptr);
  interrupter.join();
  REQUIRE_FALSE(info.ok());
  CHECK(info.status().code() == StatusCode::kUnavailable);
  CHECK(info.status().message() == "the start of the worker was interrupted");
}

TEST_CASE("process worker: kill -9 shows at once, and a restart serves again") {
  ProcessWorker worker(Config("serve"));
  REQUIRE(worker.Start(nullptr).ok());
  REQUIRE(worker.Send(Plan(1, 1)).ok());
  StepResult result;
  std::string why;
  REQUIRE(AwaitReply(&worker, &result, &why) == WorkerPort::Reply::kResult);
  const int64_t begin_ns = MonotonicNs();
  REQUIRE(::kill(worker.pid(), SIGKILL) == 0);
  REQUIRE(AwaitReply(&worker, &result, &why) == WorkerPort::Reply::kFailed);
  CHECK(MonotonicNs() - begin_ns < kLong * 1'000'000 / 2);
  CHECK(why == "the worker died: killed by signal 9 (Killed)");
  CHECK_FALSE(worker.Send(Plan(2, 1)).ok());
  REQUIRE(worker.Start(nullptr).ok());
  CHECK(worker.Receive(&result, &why) == WorkerPort::Reply::kNone);
  REQUIRE(worker.Send(Plan(2, 1)).ok());
  CHECK(AwaitReply(&worker, &result, &why) == WorkerPort::Reply::kResult);
}

TEST_CASE(
    "process worker: a restart asks for the cache that the first start settled, and for no table") {
  ProcessWorker worker(Config("serve"));
  std::vector<std::string> told;
  const auto progress = [&](double, const std::string& what) { told.push_back(what); };
  REQUIRE(worker.Start(progress).ok());
  REQUIRE(worker.Start(progress).ok());
  CHECK(told == std::vector<std::string>{"loading", "pinned"});
}

TEST_CASE("process worker: Send to a dead worker says how it died") {
  ProcessWorker worker(Config("serve"));
  REQUIRE(worker.Start(nullptr).ok());
  REQUIRE(::kill(worker.pid(), SIGKILL) == 0);
  pollfd poll_fd{worker.fd(), POLLIN, 0};
  REQUIRE(::poll(&poll_fd, 1, kLong) == 1);
  CHECK(worker.Send(Plan(1, 1)).message() == "the worker died: killed by signal 9 (Killed)");
}

TEST_CASE("process worker: an ERROR frame ends it with the worker's words") {
  ProcessWorker worker(Config("fail"));
  REQUIRE(worker.Start(nullptr).ok());
  REQUIRE(worker.Send(Plan(1, 1)).ok());
  StepResult result;
  std::string why;
  CHECK(AwaitReply(&worker, &result, &why) == WorkerPort::Reply::kFailed);
  CHECK(why == "the worker failed: out of luck");
}

TEST_CASE("process worker: a worker that takes no bytes fails Send, one that hangs is stopped") {
  ProcessWorkerConfig config = Config("stuck");
  config.send_timeout_ms = 100;
  config.stop_grace_ms = kLong;
  ProcessWorker worker(config);
  REQUIRE(worker.Start(nullptr).ok());
  CHECK(worker.Send(Plan(1, 1, 8 << 20)).message() ==
        "the worker: the peer does not read from its socket");
  const int64_t begin_ns = MonotonicNs();
  worker.Stop();
  CHECK(MonotonicNs() - begin_ns < kLong * 1'000'000 / 2);
  CHECK_FALSE(HasChildren());
}

TEST_CASE("process worker: fifty starts leak no descriptor and leave no zombie") {
  std::set<std::string> before;
  {
    ProcessWorkerConfig config;
    config.python = "sh";
    config.args = {"-c", "exit 1"};
    ProcessWorker worker(config);
    (void)worker.Start(nullptr).ok();
    before = OpenFds();
    for (int i = 0; i < 50; ++i) CHECK_FALSE(worker.Start(nullptr).ok());
    CHECK(OpenFds() == before);
  }
  CHECK_FALSE(HasChildren());
}

}  // namespace slipstream
