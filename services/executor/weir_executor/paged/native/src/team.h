// The threads of one decoder. Within a step they meet at barriers, hundreds of times; between steps they sleep.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace weir {

// Waits for a value by looking again and again for a moment, then by sleeping. A step's parts are microseconds apart, so
// looking nearly always suffices. Where more threads run than cores, whoever is waited for gets the core.
void wait_until_not(const std::atomic<uint32_t> &value, uint32_t old);

class Barrier {
 public:
  explicit Barrier(int members) : members_(members) {}
  void wait();

 private:
  const uint32_t members_;
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
};

// What a member knows while it works.
struct Member {
  int index, count;
  Barrier *barrier;

  void meet() const { barrier->wait(); }
};

class Team {
 public:
  explicit Team(int members);
  ~Team();

  // Every member runs `work`, the caller as member 0. Returns when all are done.
  void run(const std::function<void(const Member &)> &work);
  int count() const { return count_; }

 private:
  void serve(int index);

  const int count_;
  Barrier barrier_;
  const std::function<void(const Member &)> *work_ = nullptr;
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<bool> closing_{false};
  std::vector<std::thread> helpers_;
};

}  // namespace weir
