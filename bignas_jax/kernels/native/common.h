// Shared by the kernels: vectors of channels, loops on XLA's own threads, and the activations.
#ifndef BIGNAS_JAX_NATIVE_COMMON_H_
#define BIGNAS_JAX_NATIVE_COMMON_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace bignas {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using FloatsOut = ffi::ResultBuffer<ffi::F32>;

#ifdef __AVX512F__
constexpr int kWidth = 16;
#else
constexpr int kWidth = 8;
#endif

// `width` floats of neighbouring channels, and integers of the same size.
template <int width>
struct Lanes {
  typedef float Vec __attribute__((vector_size(width * sizeof(float))));
  typedef int32_t Int __attribute__((vector_size(width * sizeof(int32_t))));
  static constexpr int size = width;

  static Vec load(const float* from) {
    Vec v;
    std::memcpy(&v, from, sizeof(v));
    return v;
  }
  static void store(float* to, Vec v) { std::memcpy(to, &v, sizeof(v)); }
  // To subtract 0 changes no x, so that the compiler leaves it out. To add 0 would change -0, and costs an addition.
  static Vec all(float x) { return x - Vec{}; }
};

// Calls f(lanes, channel) for blocks of channels that cover [begin, channels): wide ones, then narrower ones.
template <typename F>
inline void for_channels(int64_t channels, F&& f, int64_t begin = 0) {
  int64_t c = begin;
  for (; c + kWidth <= channels; c += kWidth) f(Lanes<kWidth>{}, c);
  if constexpr (kWidth > 8) {
    for (; c + 8 <= channels; c += 8) f(Lanes<8>{}, c);
  }
  for (; c < channels; ++c) f(Lanes<1>{}, c);
}

// Runs f(0) .. f(count - 1) on XLA's threads, the caller's included; returns when all are done.
//
// The caller takes work itself and waits only for work that a running thread has taken. So there is no deadlock if all
// threads of the pool are inside kernels. A helper that starts late finds no work left and touches nothing but the
// shared counter.
template <typename F>
void parallel_for(ffi::ThreadPool& pool, int64_t count, F&& f) {
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto shared = std::make_shared<Shared>();
  auto* body = &f;
  auto work = [shared, body, count] {
    int64_t mine = 0;
    for (int64_t i; (i = shared->next.fetch_add(1)) < count; ++mine) (*body)(i);
    if (mine == 0) return;
    std::lock_guard<std::mutex> lock(shared->mutex);
    shared->done += mine;
    if (shared->done == count) shared->all_done.notify_all();
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t h = 0; h < helpers; ++h) pool.Schedule(decltype(work)(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == count; });
}

// Rows, divided into at most 32 runs of at least 64 rows, and of a multiple of `multiple` (the last one may be shorter).
struct Runs {
  int64_t rows, length;
  explicit Runs(int64_t rows, int64_t multiple = 1) : rows(rows), length(std::max<int64_t>((rows + 31) / 32, 64)) {
    length = (length + multiple - 1) / multiple * multiple;
  }
  int64_t count() const { return (rows + length - 1) / length; }
  int64_t begin(int64_t run) const { return run * length; }
  int64_t end(int64_t run) const { return std::min(rows, (run + 1) * length); }
};

// e^x, accurate to 2 units in the last place from -87 to 88. Beyond these it saturates. NaN stays NaN.
template <int width>
inline typename Lanes<width>::Vec exponential(typename Lanes<width>::Vec x) {
  using L = Lanes<width>;
  x = x < -87.0f ? L::all(-87.0f) : x;
  x = x > 88.0f ? L::all(88.0f) : x;
  const float round = 12582912.0f;  // 1.5 * 2^23: added, it leaves an integer in the low bits
  typename L::Vec shifted = x * 1.44269504f + round;
  typename L::Vec n = shifted - round;
  typename L::Vec r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  // Minimax polynomial of Cephes' expf (Moshier, 1989).
  typename L::Vec p = L::all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  typename L::Int power;
  std::memcpy(&power, &shifted, sizeof(power));
  power = (power << 23) + 0x3f800000;  // the low bits of `shifted` are n
  typename L::Vec scale;
  std::memcpy(&scale, &power, sizeof(scale));
  return p * scale;
}

// The activations, with value and derivative at z. `with_activation` knows them by their position in ACTIVATIONS of
// bignas_jax/kernels/native/__init__.py.
template <int w>
struct Both {
  typename Lanes<w>::Vec value, slope;
};

struct Identity {
  template <int w> static Both<w> both(typename Lanes<w>::Vec z) { return {z, Lanes<w>::all(1.0f)}; }
  template <int w> static auto value(typename Lanes<w>::Vec z) { return z; }
  template <int w> static auto slope(typename Lanes<w>::Vec) { return Lanes<w>::all(1.0f); }
};

struct Swish {
  template <int w> static Both<w> both(typename Lanes<w>::Vec z) {
    const typename Lanes<w>::Vec s = 1.0f / (1.0f + exponential<w>(-z));
    return {z * s, s * (1.0f + z * (1.0f - s))};
  }
  template <int w> static auto value(typename Lanes<w>::Vec z) { return z / (1.0f + exponential<w>(-z)); }
  template <int w> static auto slope(typename Lanes<w>::Vec z) { return both<w>(z).slope; }
};

struct HSwish {
  template <int w> static auto value(typename Lanes<w>::Vec z) {
    typename Lanes<w>::Vec t = z + 3.0f;
    t = t < 0.0f ? Lanes<w>::all(0.0f) : t;
    t = t > 6.0f ? Lanes<w>::all(6.0f) : t;
    return z * t * (1.0f / 6.0f);
  }
  template <int w> static auto slope(typename Lanes<w>::Vec z) {
    typename Lanes<w>::Vec s = (2.0f * z + 3.0f) * (1.0f / 6.0f);
    s = z <= -3.0f ? Lanes<w>::all(0.0f) : s;
    return z >= 3.0f ? Lanes<w>::all(1.0f) : s;
  }
  template <int w> static Both<w> both(typename Lanes<w>::Vec z) { return {value<w>(z), slope<w>(z)}; }
};

struct Relu {
  // Written so that NaN stays NaN.
  template <int w> static auto value(typename Lanes<w>::Vec z) { return z < 0.0f ? Lanes<w>::all(0.0f) : z; }
  template <int w> static auto slope(typename Lanes<w>::Vec z) {
    return z > 0.0f ? Lanes<w>::all(1.0f) : Lanes<w>::all(0.0f);
  }
  template <int w> static Both<w> both(typename Lanes<w>::Vec z) { return {value<w>(z), slope<w>(z)}; }
};

struct Relu6 {
  template <int w> static auto value(typename Lanes<w>::Vec z) {
    z = z < 0.0f ? Lanes<w>::all(0.0f) : z;
    return z > 6.0f ? Lanes<w>::all(6.0f) : z;
  }
  template <int w> static auto slope(typename Lanes<w>::Vec z) {
    typename Lanes<w>::Vec s = z > 0.0f ? Lanes<w>::all(1.0f) : Lanes<w>::all(0.0f);
    return z < 6.0f ? s : Lanes<w>::all(0.0f);
  }
  template <int w> static Both<w> both(typename Lanes<w>::Vec z) { return {value<w>(z), slope<w>(z)}; }
};

template <typename F>
ffi::Error with_activation(int64_t number, F&& f) {
  switch (number) {
    case 0: f(Identity{}); break;
    case 1: f(Swish{}); break;
    case 2: f(HSwish{}); break;
    case 3: f(Relu{}); break;
    case 4: f(Relu6{}); break;
    default: return ffi::Error::InvalidArgument("unknown activation");
  }
  return ffi::Error::Success();
}

}  // namespace bignas

#endif  // BIGNAS_JAX_NATIVE_COMMON_H_
