// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
//
// A load generator for Triton's gRPC streaming that costs little beside the server it measures: one
// thread, one connection and one stream per client, HTTP/2 read without a library. It understands
// just what ModelStreamInfer answers, and keeps the arrival time of every response.
//
//   stream_client PORT REQUEST_FILE STREAMS WARMUP_S SECONDS RECORD_FILE
//
// REQUEST_FILE holds a serialized ModelInferRequest that asks for an empty final response. Every
// stream sends it again and again until WARMUP_S + SECONDS have passed, then waits for its last
// answer: cancelled streams would be another benchmark. Standard output: `begin` when the warm-up
// is over, `end N` with the number of responses since then, `done` after the last answer.
// RECORD_FILE gets (uint64 CLOCK_MONOTONIC ns << 16 | stream << 1 | final) of every response.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace {

constexpr uint8_t kData = 0, kHeaders = 1, kReset = 3, kSettings = 4, kPing = 6, kGoAway = 7,
                  kWindowUpdate = 8;
constexpr uint8_t kAck = 1, kEndStream = 1, kEndHeaders = 4;
constexpr uint32_t kMaxWindow = 0x7fffffff;  // never used up in one run: no updates are sent
constexpr uint32_t kInitialWindow = 65535;   // of a connection, by the protocol
constexpr size_t kFrameHeader = 9, kMessageHeader = 5;

[[noreturn]] void Die(const std::string& why) {
  std::fprintf(stderr, "stream_client: %s\n", why.c_str());
  std::exit(1);
}

uint64_t NowNs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000000000 + static_cast<uint64_t>(t.tv_nsec);
}

void AppendBigEndian(uint32_t value, size_t bytes, std::string* out) {
  for (size_t i = bytes; i-- > 0;) out->push_back(static_cast<char>(value >> (8 * i)));
}

uint32_t BigEndian(const char* data, size_t bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < bytes; ++i) value = value << 8 | static_cast<uint8_t>(data[i]);
  return value;
}

std::string Frame(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload) {
  std::string frame;
  AppendBigEndian(static_cast<uint32_t>(payload.size()), 3, &frame);
  frame.push_back(static_cast<char>(type));
  frame.push_back(static_cast<char>(flags));
  AppendBigEndian(stream, 4, &frame);
  return frame.append(payload);
}

// Header fields as literals that are never indexed; the first byte refers to HPACK's static table.
std::string CallHeaders() {
  const auto literal = [](std::string name, std::string_view value) {
    name.push_back(static_cast<char>(value.size()));
    return name.append(value);
  };
  return std::string("\x83\x86") +  // :method POST, :scheme http
         literal("\x04", "/inference.GRPCInferenceService/ModelStreamInfer") +
         literal("\x01", "localhost") + literal("\x0f\x10", "application/grpc") +
         literal(std::string("\x00\x02te", 4), "trailers");
}

std::string Opening() {
  std::string window;
  AppendBigEndian(4, 2, &window);  // SETTINGS_INITIAL_WINDOW_SIZE, of streams
  AppendBigEndian(kMaxWindow, 4, &window);
  std::string more;
  AppendBigEndian(kMaxWindow - kInitialWindow, 4, &more);
  return "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Frame(kSettings, 0, 0, window) +
         Frame(kWindowUpdate, 0, 0, more) + Frame(kHeaders, kEndHeaders, 1, CallHeaders());
}

bool IsFinal(std::string_view message) {
  // The map entry's value follows its key: field 2, a message of 2 bytes, field 1, the bool.
  static constexpr std::string_view kKey = "triton_final_response";
  const size_t at = message.rfind(kKey);
  if (at == std::string_view::npos || at + kKey.size() + 5 > message.size()) return false;
  return message[at + kKey.size() + 3] == 1;
}

// One client: a connection with one stream on it, and at most one request at a time.
class Client {
 public:
  Client(uint16_t port, const std::string& request, uint32_t index) : index_(index) {
    AppendBigEndian(0, 1, &call_);  // not compressed
    AppendBigEndian(static_cast<uint32_t>(request.size()), 4, &call_);
    call_ = Frame(kData, 0, 1, call_ + request);
    fd_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd_ < 0 || connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      Die(std::string("connect: ") + std::strerror(errno));
    }
    const int on = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    Write(Opening());
  }
  ~Client() { close(fd_); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  int fd() const { return fd_; }
  bool closed() const { return closed_; }
  void Call() { Write(call_); }
  void HalfClose() { Write(Frame(kData, kEndStream, 1, {})); }

  // Reads what there is. Appends a record for every response; true if one of them was final.
  bool Read(std::vector<uint64_t>* records) {
    static char buffer[1 << 18];
    const ssize_t n = recv(fd_, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (n <= 0) Die("the server closed a connection");
    const uint64_t now = NowNs();
    input_.append(buffer, static_cast<size_t>(n));
    size_t at = 0;
    while (input_.size() - at >= kFrameHeader) {
      const size_t size = BigEndian(&input_[at], 3);
      if (input_.size() - at - kFrameHeader < size) break;
      OnFrame(static_cast<uint8_t>(input_[at + 3]), static_cast<uint8_t>(input_[at + 4]),
              std::string_view(input_).substr(at + kFrameHeader, size));
      at += kFrameHeader + size;
    }
    input_.erase(0, at);
    return TakeMessages(now, records);
  }

 private:
  void OnFrame(uint8_t type, uint8_t flags, std::string_view payload) {
    if (type == kData) messages_.append(payload);
    if (type == kSettings && (flags & kAck) == 0) Write(Frame(kSettings, kAck, 0, {}));
    if (type == kPing && (flags & kAck) == 0) Write(Frame(kPing, kAck, 0, payload));
    if (type == kReset || type == kGoAway) Die("the server reset a stream");
    if (type == kHeaders && (flags & kEndStream) != 0) closed_ = true;
  }

  bool TakeMessages(uint64_t now, std::vector<uint64_t>* records) {
    bool any_final = false;
    size_t at = 0;
    while (messages_.size() - at >= kMessageHeader) {
      const size_t size = BigEndian(&messages_[at + 1], 4);
      if (messages_.size() - at - kMessageHeader < size) break;
      const auto message = std::string_view(messages_).substr(at + kMessageHeader, size);
      if (!message.empty() && message[0] == '\x0a') Die("an error: " + std::string(message));
      const bool final = IsFinal(message);
      any_final |= final;
      records->push_back(now << 16 | index_ << 1 | (final ? 1 : 0));
      at += kMessageHeader + size;
    }
    messages_.erase(0, at);
    return any_final;
  }

  void Write(std::string_view data) {  // small, and the server reads: may block for a moment
    while (!data.empty()) {
      const ssize_t n = send(fd_, data.data(), data.size(), MSG_NOSIGNAL);
      if (n < 0) Die(std::string("send: ") + std::strerror(errno));
      data.remove_prefix(static_cast<size_t>(n));
    }
  }

  const uint32_t index_;
  std::string call_;
  int fd_ = -1;
  bool closed_ = false;
  std::string input_;     // frames that are not complete
  std::string messages_;  // likewise
};

struct Load {
  std::vector<std::unique_ptr<Client>> clients;
  uint64_t warm_ns = 0;
  uint64_t end_ns = 0;
  std::vector<uint64_t> records;
};

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

// Polls all clients until every one has had its last answer and its stream is closed.
void Run(Load* load) {
  const int poll = epoll_create1(0);
  for (const auto& client : load->clients) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = client.get();
    if (epoll_ctl(poll, EPOLL_CTL_ADD, client->fd(), &event) != 0) Die("epoll_ctl");
    client->Call();
  }
  bool warm = false, ended = false;
  size_t first = 0, open = load->clients.size();
  std::vector<epoll_event> events(load->clients.size());
  while (open > 0) {
    const int n = epoll_wait(poll, events.data(), static_cast<int>(events.size()), 10);
    const uint64_t now = NowNs();
    if (!warm && now >= load->warm_ns) {
      warm = true;
      first = load->records.size();
      Say("begin");
    }
    if (!ended && now >= load->end_ns) {
      ended = true;
      Say("end " + std::to_string(load->records.size() - first));
    }
    for (int i = 0; i < n; ++i) {
      auto* client = static_cast<Client*>(events[static_cast<size_t>(i)].data.ptr);
      if (client->Read(&load->records)) ended ? client->HalfClose() : client->Call();
      if (!client->closed()) continue;
      if (!ended) Die("the server ended a stream");
      epoll_ctl(poll, EPOLL_CTL_DEL, client->fd(), nullptr);
      --open;
    }
  }
  close(poll);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) Die("PORT REQUEST_FILE STREAMS WARMUP_S SECONDS RECORD_FILE");
  std::ifstream file(argv[2], std::ios::binary);
  const std::string request{std::istreambuf_iterator<char>(file), {}};
  if (request.empty()) Die(std::string(argv[2]) + ": nothing to send");
  Load load;
  const auto streams = static_cast<uint32_t>(std::atoi(argv[3]));
  for (uint32_t i = 0; i < streams; ++i) {
    load.clients.push_back(
        std::make_unique<Client>(static_cast<uint16_t>(std::atoi(argv[1])), request, i));
  }
  load.warm_ns = NowNs() + static_cast<uint64_t>(std::atof(argv[4]) * 1e9);
  load.end_ns = load.warm_ns + static_cast<uint64_t>(std::atof(argv[5]) * 1e9);
  load.records.reserve(1 << 22);
  Run(&load);
  std::ofstream record(argv[6], std::ios::binary);
  record.write(reinterpret_cast<const char*>(load.records.data()),
               static_cast<std::streamsize>(load.records.size() * sizeof(uint64_t)));
  if (!record.flush()) Die(std::string(argv[6]) + ": cannot be written");
  Say("done");
  return 0;
}
