// The threads of one decoder. A step is a row of parts, and every part is shared out item by item. Between steps they sleep.
//
// A core is lent: whoever else runs on the machine takes it from a member for milliseconds, in the middle of an item. The
// others do not wait for it. They take what is left of its share, then do its item over; who is first to say so gives the
// result, and the late one finds it done. It runs through the parts that were done without it and joins in again.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace weir {

using Nanoseconds = int64_t;
Nanoseconds now();

struct Range {
  int first, end;
};

// Waits for a value by looking again and again for a moment, then by sleeping. A step's parts are microseconds apart, so
// looking nearly always suffices. Where more threads run than cores, whoever is waited for gets the core.
void wait_until_not(const std::atomic<uint32_t> &value, uint32_t old);

// One look of somebody who has looked so many times before: with the core kept, then with it offered to others.
void look_again(int looks);

class Barrier {
 public:
  explicit Barrier(int members) : members_(members) {}
  void wait();

 private:
  const uint32_t members_;
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
};

// One member's share of one part: how much of it has been taken, by anybody, and how many items the member has done.
struct alignas(64) Share {
  std::atomic<int> taken{0}, done{0};
};

// The item that a member is at. Only while it is OPEN may another member do it over.
struct alignas(64) Place {
  enum State : uint64_t { OPEN, CLOSED };
  std::atomic<uint64_t> now{CLOSED};

  static uint64_t of(int part, int item, State state) { return (uint64_t)part << 33 | (uint64_t)item << 1 | state; }
};

// What a member knows while it works. All members go through the same parts in the same order.
class Member {
 public:
  Member(int index, int count, Share *shares, Place *places)
      : index(index), count(count), shares_(shares), places_(places) {}

  const int index, count;

  // Does every item once, all members together, and returns when all are done. `compute` may be begun by several
  // members and writes to the member's own room only; `give` is called once for each item, after it.
  template <class Compute, class Give>
  void each(int items, const Compute &compute, const Give &give) {
    const Nanoseconds item_time = each_taken(items, [&](int item) {
      std::atomic<uint64_t> &here = places_[index].now;
      here.store(Place::of(part_, item, Place::OPEN), std::memory_order_release);
      compute(item);
      if (close(here, item)) give(item), tell();
    });
    wait(items, 2 * item_time, [&](int item, std::atomic<uint64_t> &there) {
      compute(item);
      if (close(there, item)) give(item), tell();
    });
    part_++;
  }

  // The same for items that are written as they are computed: nobody does them over.
  template <class Do>
  void each(int items, const Do &work) {
    each_taken(items, [&](int item) { work(item), tell(); });
    wait(items, 0, [](int, std::atomic<uint64_t> &) {});
    part_++;
  }

  // So many things in a row, as a few items for each member.
  template <class Do>
  void each_of(int things, const Do &work) {
    const int most = 4 * count, items = things < most ? things : most;
    each(items, [&](int item) {
      for (int i = part_of(things, item, items).first; i < part_of(things, item, items).end; i++) work(i);
    });
  }

  static Range part_of(int total, int index, int count) {
    return {(int)((int64_t)total * index / count), (int)((int64_t)total * (index + 1) / count)};
  }

 private:
  int part_ = 0;  // of the step: the one at hand
  Share *const shares_;  // [parts][members]
  Place *const places_;  // [members]

  Share &share(int member) const { return shares_[(size_t)part_ * count + member]; }
  void tell() const { share(index).done.fetch_add(1, std::memory_order_release); }
  bool close(std::atomic<uint64_t> &at, int item) const {
    uint64_t open = Place::of(part_, item, Place::OPEN);
    return at.compare_exchange_strong(open, Place::of(part_, item, Place::CLOSED), std::memory_order_acq_rel);
  }

  // Its own share first, in order, as memory likes it; then what is left of the others'.
  // Returns how long an item took.
  template <class Take>
  Nanoseconds each_taken(int items, const Take &take) {
    const Nanoseconds begin = now();
    int taken_here = 0;
    for (int i = 0; i < count; i++) {
      const int whose = (index + i) % count;
      const Range range = part_of(items, whose, count);
      std::atomic<int> &taken = share(whose).taken;
      if (i && taken.load(std::memory_order_relaxed) >= range.end - range.first) continue;
      for (int at; (at = range.first + taken.fetch_add(1, std::memory_order_relaxed)) < range.end;)
        take(at), taken_here++;
    }
    return taken_here ? (now() - begin) / taken_here : 0;
  }

  bool all_done(int items) const {
    int done = 0;
    for (int member = 0; member < count; member++) done += share(member).done.load(std::memory_order_acquire);
    return done == items;
  }

  // Until all items are done. Those that another member has open for longer than `patience` are handed to `overtake`.
  template <class Overtake>
  void wait(int items, Nanoseconds patience, const Overtake &overtake) {
    constexpr Nanoseconds LEAST = 10'000;  // a core that was taken is gone for longer
    if (all_done(items)) return;
    const Nanoseconds until = now() + (patience > LEAST ? patience : LEAST);
    for (int looks = 0; !all_done(items); looks++) {
      look_again(looks);
      if (now() < until) continue;
      for (int member = 0; member < count; member++) {
        const uint64_t there = places_[member].now.load(std::memory_order_acquire);
        if (member != index && there >> 33 == (uint64_t)part_ && (there & 1) == Place::OPEN)
          overtake((int)(uint32_t)(there >> 1), places_[member].now);
      }
    }
  }
};

class Team {
 public:
  Team(int members, int parts);
  ~Team();

  // Every member runs `work`, the caller as member 0. Returns when all are back from it. At most `parts` parts.
  void run(const std::function<void(Member &)> &work);
  int count() const { return count_; }

 private:
  void serve(int index);
  void work(int index);

  const int count_;
  Barrier barrier_;
  std::vector<Share> shares_;
  std::vector<Place> places_;
  const std::function<void(Member &)> *work_ = nullptr;
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<bool> closing_{false};
  std::vector<std::thread> helpers_;
};

}  // namespace weir
