// What this machine gives right now, on all of its threads: prints "<bytes read per second> <BF16 operations per second>".
// A multiply-add is two operations. Without a BF16 dot product in the processor, the rate is that of float32.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>
#include <sys/mman.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static const int THREADS = std::thread::hardware_concurrency() ? std::thread::hardware_concurrency() : 1;
static const int ROUNDS = 9;  // the best one counts: the others were disturbed

static double seconds_on_all_threads(const std::function<void(int)>& work) {
    const auto began = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (int i = 0; i < THREADS; i++) threads.emplace_back(work, i);
    for (auto& thread : threads) thread.join();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

// Uses every sum: what nobody uses, the compiler does not compute.
static void keep(const float* sums, int count) {
    float total = 0;
    for (int i = 0; i < count; i++) total += sums[i];
    volatile float kept = total;
    (void)kept;
}

// Reads `BYTES` that no cache holds: a model's weights as one decode step reads them. Huge pages, as a fast engine has.
static double read_rate() {
    const size_t BYTES = size_t(1) << 28, HUGE_PAGE = size_t(1) << 21, share = BYTES / THREADS / 512 * 512;
    char* mapped = static_cast<char*>(mmap(nullptr, BYTES + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (mapped == MAP_FAILED) std::exit(1);
    char* memory = reinterpret_cast<char*>((reinterpret_cast<size_t>(mapped) + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
#if defined(MADV_HUGEPAGE)
    madvise(memory, BYTES, MADV_HUGEPAGE);
#endif
    std::memset(memory, 1, BYTES);
    double best = 0;
    for (int round = 0; round < ROUNDS; round++) {
        const double seconds = seconds_on_all_threads([&](int thread) {
            const float* values = reinterpret_cast<const float*>(memory + thread * share);
            float sums[128] = {};  // enough independent sums to keep every load port busy
            for (size_t i = 0; i < share / sizeof(float); i += 128)
                for (int k = 0; k < 128; k++) sums[k] += values[i + k];
            keep(sums, 128);
        });
        const double rate = double(share) * THREADS / seconds;
        if (rate > best) best = rate;
    }
    return best;
}

#if defined(__AVX512BF16__)
static const double OPERATIONS = 64;  // of one instruction: 16 sums of two products each
static void dot_products(long count) {
    __m512 sums[12];  // as many as hide the instruction's latency
    for (auto& sum : sums) sum = _mm512_setzero_ps();
    const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    for (long n = 0; n < count; n++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) sums[i] = _mm512_dpbf16_ps(sums[i], ones, ones);
        asm volatile("" ::"x"(sums[0]), "x"(sums[6]));  // each round anew
    }
    keep(reinterpret_cast<float*>(sums), 12 * 16);
}
#else
static const double OPERATIONS = 32;  // of the inner loop over 16 floats
static void dot_products(long count) {
    float sums[12][16] = {};
    volatile float factor = 1.0001f;
    const float x = factor;
    for (long n = 0; n < count; n++)
        for (int i = 0; i < 12; i++)
            for (int k = 0; k < 16; k++) sums[i][k] = sums[i][k] * x + x;
    keep(&sums[0][0], 12 * 16);
}
#endif

static double operation_rate() {
    const long COUNT = 2000000;
    double best = 0;
    for (int round = 0; round < 3; round++) {
        const double rate = COUNT * 12.0 * OPERATIONS * THREADS / seconds_on_all_threads([&](int) { dot_products(COUNT); });
        if (rate > best) best = rate;
    }
    return best;
}

int main() { std::printf("%.6g %.6g\n", read_rate(), operation_rate()); }
