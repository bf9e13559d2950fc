// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/child_process.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cerrno>
#include <chrono>
#include <cstring>

namespace slipstream {
namespace {

// Everything that the child does between fork and exec.
class SpawnPlan {
 public:
  explicit SpawnPlan(int child_end) {
    ::posix_spawn_file_actions_init(&actions_);
    ::posix_spawn_file_actions_adddup2(&actions_, child_end, ChildProcess::kChildFd);
    ::posix_spawn_file_actions_addopen(&actions_, 0, "/dev/null", O_RDONLY, 0);
    // What the child prints goes to the server's log, not into the output of a command line tool.
    ::posix_spawn_file_actions_adddup2(&actions_, 2, 1);
    // The host process may have opened descriptors without close-on-exec.
    ::posix_spawn_file_actions_addclosefrom_np(&actions_, ChildProcess::kChildFd + 1);
    ::posix_spawnattr_init(&attributes_);
    sigset_t signals;
    sigemptyset(&signals);
    ::posix_spawnattr_setsigmask(&attributes_, &signals);
    sigfillset(&signals);
    ::posix_spawnattr_setsigdefault(&attributes_, &signals);
    ::posix_spawnattr_setflags(&attributes_,
                               POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
  }
  ~SpawnPlan() {
    ::posix_spawn_file_actions_destroy(&actions_);
    ::posix_spawnattr_destroy(&attributes_);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;

  int Run(const std::vector<std::string>& argv, pid_t* pid) const {
    std::vector<char*> arguments;
    arguments.reserve(argv.size() + 1);
    for (const std::string& argument : argv) {
      arguments.push_back(const_cast<char*>(argument.c_str()));
    }
    arguments.push_back(nullptr);
    return ::posix_spawnp(pid, arguments[0], &actions_, &attributes_, arguments.data(), environ);
  }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

// The host's signals are for the host's threads. The mask is inherited from here.
void BlockAllSignals() {
  sigset_t all;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
}

}  // namespace

StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Spawn(const std::vector<std::string>& argv,
                                                            UniqueFd* ours) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return Status::Unavailable(std::string("socketpair failed: ") + std::strerror(errno));
  }
  UniqueFd parent_end(ends[0]);
  UniqueFd child_end(ends[1]);
  // Per end: the child's stays blocking.
  ::fcntl(parent_end.get(), F_SETFL, O_NONBLOCK);

  std::unique_ptr<ChildProcess> child(new ChildProcess);  // NOLINT: private constructor
  child->keeper_ = std::thread([self = child.get(), &argv, &child_end] {
    BlockAllSignals();
    self->Keep(argv, std::move(child_end));
  });
  std::unique_lock<std::mutex> lock(child->mutex_);
  child->changed_.wait(lock, [&] { return child->started_; });
  if (child->spawn_error_ != 0) {
    return Status::Unavailable("could not start '" + argv[0] +
                               "': " + std::strerror(child->spawn_error_));
  }
  *ours = std::move(parent_end);
  return {std::move(child)};
}

void ChildProcess::Keep(const std::vector<std::string>& argv, UniqueFd theirs) {
  pid_t pid = -1;
  const int error = SpawnPlan(theirs.get()).Run(argv, &pid);
  theirs.Reset();  // so that our end sees the child's death
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    pid_ = pid;
    spawn_error_ = error;
    exited_ = error != 0;
    started_ = true;  // argv is gone from here on
    changed_.notify_all();
  }
  if (error != 0) return;
  siginfo_t info{};
  while (::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT) != 0 && errno == EINTR) {
  }
  // Reaped under the lock: Kill() never meets a pid that was given to another process.
  const std::lock_guard<std::mutex> lock(mutex_);
  ::kill(-pid, SIGKILL);  // what the child left behind; the group's id is ours until we reap
  int status = -1;
  if (::waitpid(pid, &status, WNOHANG) == pid) wait_status_ = status;
  exited_ = true;
  changed_.notify_all();
}

ChildProcess::~ChildProcess() {
  Kill();
  if (keeper_.joinable()) keeper_.join();
}

void ChildProcess::Kill() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!started_ || exited_) return;
  ::kill(-pid_, SIGKILL);
}

bool ChildProcess::WaitExit(int64_t timeout_ms) {
  std::unique_lock<std::mutex> lock(mutex_);
  return changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return exited_; });
}

std::string ChildProcess::ExitDescription() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!exited_) return "running";
  if (wait_status_ == -1) return "exited";
  if (WIFSIGNALED(wait_status_)) {
    const int number = WTERMSIG(wait_status_);
    return "killed by signal " + std::to_string(number) + " (" + ::strsignal(number) + ")";
  }
  return "exit code " + std::to_string(WEXITSTATUS(wait_status_));
}

}  // namespace slipstream
