// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
//
// slipstream_fuzz_replay [--runs N] [--seed S] [TARGET …]   seeded mutations of the valid inputs
// slipstream_fuzz_replay --corpus DIRECTORY                 writes the valid inputs, for libFuzzer
// slipstream_fuzz_replay TARGET FILE                        one input, such as libFuzzer's crash-…
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz_target.h"
#include "mutator.h"
#include "tokenizer_double.h"

namespace slipstream::fuzz {
namespace {

namespace fs = std::filesystem;

std::string replay;        // what to tell of the run at hand
const std::string* input;  // that it runs on

// Keeps the input that ended it.
void KeepInput(int signal) {
  std::signal(signal, SIG_DFL);
  const char* name = "slipstream-fuzz-failure";
  std::ofstream(name, std::ios::binary) << *input;
  std::fprintf(stderr, "%s; the input is in ./%s\n", replay.c_str(), name);
  std::raise(signal);
}

void Run(const FuzzTarget& target, const std::string& bytes) {
  input = &bytes;
  target.run(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
}

void RunMutants(const FuzzTarget& target, uint64_t seed, int64_t runs) {
  const auto start = std::chrono::steady_clock::now();
  const std::vector<std::string> seeds = target.seeds();
  for (size_t i = 0; i < seeds.size(); ++i) {
    replay = std::string(target.name) + ", valid input " + std::to_string(i);
    Run(target, seeds[i]);
  }
  for (int64_t i = 0; i < runs; ++i) {
    replay = std::string(target.name) + ", run " + std::to_string(i) + " of seed " +
             std::to_string(seed);
    simulation::Dice dice(Mix64(seed, static_cast<uint64_t>(i)));
    Run(target, Mutant(seeds, &dice));
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  std::printf("%-18s %zu valid inputs, %lld mutations in %.1f s\n", target.name, seeds.size(),
              static_cast<long long>(runs), took.count());
}

int WriteCorpus(const fs::path& folder) {
  for (const FuzzTarget& target : FuzzTargets()) {
    fs::create_directories(folder / target.name);
    const std::vector<std::string> seeds = target.seeds();
    for (size_t i = 0; i < seeds.size(); ++i) {
      std::ofstream(folder / target.name / std::to_string(i), std::ios::binary) << seeds[i];
    }
  }
  return 0;
}

int RunFile(const FuzzTarget& target, const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    std::cerr << path << ": cannot be read\n";
    return 2;
  }
  const std::string bytes(std::istreambuf_iterator<char>(file), {});
  Run(target, bytes);
  return 0;
}

int Main(const std::vector<std::string>& arguments) {
  int64_t runs = 2000;
  uint64_t seed = 1;
  std::vector<const FuzzTarget*> targets;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    const bool has_value = i + 1 < arguments.size();
    if (argument == "--runs" && has_value) {
      runs = std::atoll(arguments[++i].c_str());
    } else if (argument == "--seed" && has_value) {
      seed = std::strtoull(arguments[++i].c_str(), nullptr, 10);
    } else if (argument == "--corpus" && has_value) {
      return WriteCorpus(arguments[i + 1]);
    } else if (const FuzzTarget* target = FindTarget(argument); target != nullptr) {
      if (has_value && FindTarget(arguments[i + 1]) == nullptr && arguments[i + 1][0] != '-') {
        return RunFile(*target, arguments[i + 1].c_str());
      }
      targets.push_back(target);
    } else {
      std::cerr << "'" << argument << "' is neither an option nor a target; the targets are";
      for (const FuzzTarget& known : FuzzTargets()) std::cerr << " " << known.name;
      std::cerr << "\n";
      return 2;
    }
  }
  std::signal(SIGABRT, KeepInput);
  std::signal(SIGSEGV, KeepInput);
  for (const FuzzTarget& target : FuzzTargets()) {
    if (targets.empty()) RunMutants(target, seed, runs);
  }
  for (const FuzzTarget* target : targets) RunMutants(*target, seed, runs);
  return 0;
}

}  // namespace
}  // namespace slipstream::fuzz

int main(int argc, char** argv) {
  // Like the unit tests' binary it is its own tokenizer process.
  if (argc > 1 && std::string_view(argv[1]) == "-m") return slipstream::RunTokenizerDouble();
  return slipstream::fuzz::Main({argv + 1, argv + argc});
}
