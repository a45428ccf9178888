#include "team.h"

#include <sched.h>

#include <chrono>

namespace weir {

// Within a step members are microseconds apart; between two steps of a busy engine there is less than a millisecond, and a
// virtual core that has lain down takes a good part of one to get up.
constexpr auto AWAKE = std::chrono::milliseconds(1);
// So many looks with the core kept, some 10 microseconds; then it is offered to others between looks, for whoever is
// waited for may need this very core.
constexpr int LOOKS = 400;

static inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

Nanoseconds now() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void look_again(int looks) {
  if (looks < LOOKS)
    pause();
  else
    sched_yield();
}

void wait_until_not(const std::atomic<uint32_t> &value, uint32_t old) {
  const auto changed = [&] { return value.load(std::memory_order_acquire) != old; };
  for (int i = 0; i < LOOKS; i++) {
    if (changed()) return;
    pause();
  }
  const auto until = std::chrono::steady_clock::now() + AWAKE;
  while (std::chrono::steady_clock::now() < until) {
    if (changed()) return;
    sched_yield();
  }
  while (!changed()) value.wait(old, std::memory_order_acquire);
}

void Barrier::wait() {
  if (members_ == 1) return;
  const uint32_t round = round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
    arrived_.store(0, std::memory_order_relaxed);
    // Sequentially consistent, unlike the rest: `notify_all` looks whether anyone sleeps, and that look must not overtake
    // the store, or a member that lies down between the two is never woken.
    round_.store(round + 1);
    round_.notify_all();
  } else {
    wait_until_not(round_, round);
  }
}

Team::Team(int members, int parts)
    : count_(members), barrier_(members), shares_((size_t)parts * members), places_(members) {
  for (int index = 1; index < members; index++) helpers_.emplace_back([this, index] { serve(index); });
}

Team::~Team() {
  closing_.store(true);
  round_.fetch_add(1);
  round_.notify_all();
  for (auto &helper : helpers_) helper.join();
}

void Team::run(const std::function<void(Member &)> &work) {
  work_ = &work;
  // Nobody is at work: all came back to the barrier.
  for (Share &share : shares_) {
    share.taken.store(0, std::memory_order_relaxed);
    share.done.store(0, std::memory_order_relaxed);
  }
  round_.fetch_add(1);
  round_.notify_all();
  this->work(0);
}

void Team::serve(int index) {
  uint32_t seen = 0;
  while (true) {
    wait_until_not(round_, seen);
    seen++;
    if (closing_.load()) return;
    work(index);
  }
}

void Team::work(int index) {
  Member member(index, count_, shares_.data(), places_.data());
  (*work_)(member);
  places_[index].now.store(Place::CLOSED, std::memory_order_release);
  barrier_.wait();
}

}  // namespace weir
