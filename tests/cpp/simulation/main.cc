// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
//
// slipstream_simulate --workloads N [--seed S]   random workloads, of seeds S, S + 1, …
// slipstream_simulate --requests N [--seed S]    one long run; tells resident memory and its slope
// slipstream_simulate --inject                   a disturbance at every moment of small scenarios
// slipstream_simulate --replay S                 the random workload of seed S
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <string>
#include <vector>

#include "simulation/injection.h"
#include "simulation/simulation.h"
#include "simulation/summary.h"

namespace slipstream::simulation {
namespace {

std::string replay;  // the command line that repeats what runs now

// An assertion of the product failed.
void TellReplay(int) {
  std::fprintf(stderr, "aborted; replay with: %s\n", replay.c_str());
  std::_Exit(1);
}

int Fail(const Workload& workload, const std::string& broken) {
  std::cerr << "seed " << workload.seed << " (" << Describe(workload) << ")\n  " << broken
            << "\nreplay with: " << replay << "\n";
  return 1;
}

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

int64_t ResidentKib() {
  std::ifstream file("/proc/self/statm");
  int64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

int RunWorkloads(uint64_t seed, int64_t count) {
  const auto start = std::chrono::steady_clock::now();
  std::cout << "seeds from " << seed << std::endl;
  Summary summary;
  for (int64_t i = 0; i < count; ++i, ++seed) {
    replay = "slipstream_simulate --replay " + std::to_string(seed);
    const Workload workload = RandomWorkload(seed);
    Simulation simulation(workload, {});
    const std::string broken = simulation.Run();
    if (!broken.empty()) return Fail(workload, broken);
    summary.Add(simulation);
  }
  std::cout << "seeds up to " << seed - 1 << ": " << summary.Text(Seconds(start));
  return 0;
}

struct Sample {
  double requests;
  double kib;
};

// Least squares over the later half, when everything has its final size.
double BytesPerRequest(const std::vector<Sample>& samples) {
  double n = 0, x = 0, y = 0, xx = 0, xy = 0;
  for (size_t i = samples.size() / 2; i < samples.size(); ++i) {
    const Sample& s = samples[i];
    n += 1, x += s.requests, y += s.kib, xx += s.requests * s.requests, xy += s.requests * s.kib;
  }
  const double spread = n * xx - x * x;
  return spread == 0 ? 0 : 1024 * (n * xy - x * y) / spread;
}

int RunRequests(uint64_t seed, int64_t count) {
  replay =
      "slipstream_simulate --requests " + std::to_string(count) + " --seed " + std::to_string(seed);
  const auto start = std::chrono::steady_clock::now();
  const Workload workload = ServerWorkload(seed, count);
  std::vector<Sample> samples;
  Simulation::Options options;
  options.progress = [&](int64_t requests) {
    if (requests % std::max<int64_t>(1, count / 200) != 0) return;
    samples.push_back({static_cast<double>(requests), static_cast<double>(ResidentKib())});
    if (samples.size() % 20 != 0) return;
    std::cout << std::fixed << std::setprecision(0) << requests << " requests, "
              << samples.back().kib << " KiB resident, " << Seconds(start) << " s" << std::endl;
  };
  Simulation simulation(workload, options);
  const std::string broken = simulation.Run();
  if (!broken.empty()) return Fail(workload, broken);
  Summary summary;
  summary.Add(simulation);
  std::cout << "seed " << seed << ": " << summary.Text(Seconds(start));
  std::cout << "memory in the later half: " << std::setprecision(2) << std::showpos
            << BytesPerRequest(samples) << " bytes a request\n";
  return 0;
}

int RunInjection() {
  replay = "slipstream_simulate --inject";
  const auto start = std::chrono::steady_clock::now();
  for (const Workload& workload : SmallScenarios()) {
    const InjectionReport report = InjectEverywhere(workload);
    if (!report.broken.empty()) return Fail(workload, report.broken);
    std::cout << "scenario " << workload.seed << ": " << report.moments << " moments, "
              << report.runs << " runs (" << Describe(workload) << ")\n";
  }
  std::cout << std::fixed << std::setprecision(1) << Seconds(start) << " s\n";
  return 0;
}

int Main(const std::vector<std::string>& arguments) {
  std::string mode;
  int64_t count = 0;
  uint64_t seed = 1;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& name = arguments[i];
    if (name == "--inject") {
      mode = name;
    } else if (i + 1 == arguments.size()) {
      mode.clear();
      break;
    } else if (name == "--seed") {
      seed = std::strtoull(arguments[++i].c_str(), nullptr, 10);
    } else {
      mode = name;
      count = std::strtoll(arguments[++i].c_str(), nullptr, 10);
    }
  }
  std::signal(SIGABRT, TellReplay);
  if (mode == "--workloads") return RunWorkloads(seed, count);
  if (mode == "--requests") return RunRequests(seed, count);
  if (mode == "--replay") return RunWorkloads(static_cast<uint64_t>(count), 1);
  if (mode == "--inject") return RunInjection();
  std::cerr << "slipstream_simulate --workloads N [--seed S] | --requests N [--seed S] | --inject "
               "| --replay S\n";
  return 2;
}

}  // namespace
}  // namespace slipstream::simulation

int main(int argc, char** argv) { return slipstream::simulation::Main({argv + 1, argv + argc}); }
