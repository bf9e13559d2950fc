// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
//
// For LD_PRELOAD, in front of tritonserver: answers over HTTP wait where they would be lost.
//
// A response comes to tritonserver's HTTP front end on a thread of the backend, and goes to the
// thread of its connection as a command of 17 bytes (libevhtp's `evthr_cmd`) through a pair of
// sockets. That thread serves nearly all connections, since an idle one is preferred, and the pair
// holds some 280 commands. When it is full `send` fails with EAGAIN, which tritonserver does not
// look at: the response is never sent, and its request never ends (2.51, and so in later sources).
//
// Here such a `send` waits until the thread has read, and with it the backend's thread that calls
// it. Nothing else is changed.

#include <dlfcn.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdlib>
#include <sstream>
#include <string>

namespace {

constexpr size_t kCommandSize = 17;
// A thread that sends to itself would wait for ever: then a command is lost as it was before.
constexpr int kPatienceMs = 5000;

bool IsUnixSocket(int fd) {
  int domain = 0;
  socklen_t size = sizeof(domain);
  return ::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX;
}

// Worker and tokenizer processes inherit the environment, and have no use for this.
__attribute__((constructor)) void LeaveTheEnvironment() {
  const char* found = std::getenv("LD_PRELOAD");
  if (found == nullptr) return;
  std::istringstream names(found);
  std::string kept;
  for (std::string name; std::getline(names, name, ':');) {
    if (name.find("libslipstream_preload.so") == std::string::npos) {
      kept += (kept.empty() ? "" : ":") + name;
    }
  }
  if (kept.empty()) {
    ::unsetenv("LD_PRELOAD");
  } else {
    ::setenv("LD_PRELOAD", kept.c_str(), 1);
  }
}

}  // namespace

extern "C" ssize_t send(int fd, const void* data, size_t size, int flags) {
  using Send = ssize_t (*)(int, const void*, size_t, int);
  static const Send next = reinterpret_cast<Send>(::dlsym(RTLD_NEXT, "send"));
  ssize_t sent = next(fd, data, size, flags);
  if (size != kCommandSize || flags != 0) return sent;
  while (sent < 0 && errno == EAGAIN && IsUnixSocket(fd)) {
    pollfd room{fd, POLLOUT, 0};
    const int ready = ::poll(&room, 1, kPatienceMs);
    if (ready == 0 || (ready < 0 && errno != EINTR)) {
      errno = EAGAIN;
      return -1;
    }
    sent = next(fd, data, size, flags);
  }
  return sent;
}
