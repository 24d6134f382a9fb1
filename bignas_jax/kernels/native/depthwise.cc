// Depthwise convolution, forward and backward, over neighbouring channels at once.
//
// Arrays are float32 and row-major. x and dx are [N, H, W, C]; y and g are [N, ceil(H / stride), ceil(W / stride), C];
// the kernel is [k, k, C] with k odd. Padding is k // 2. used is int32 [2]. Channels from used[0] on belong to the
// bucket but not to the sampled architecture: their results are zeros. Taps outside the centre of side used[1] are
// skipped.

#include <vector>

#include "common.h"

namespace bignas {
namespace {

constexpr int kColumns = 6;  // output columns that share the kernel's taps in registers
constexpr int kLargest = 15;  // side of the largest kernel

struct Geometry {
  int64_t images, height, width, channels, rows, columns, side, stride, used, first, last;

  // Taps [first, last) of each axis are inside the sampled kernel.
  Geometry(const Floats& x, int64_t side, int64_t stride, const Ints& used_)
      : images(x.dimensions()[0]), height(x.dimensions()[1]), width(x.dimensions()[2]), channels(x.dimensions()[3]),
        rows((height + stride - 1) / stride), columns((width + stride - 1) / stride), side(side), stride(stride),
        used(std::clamp<int64_t>(used_.typed_data()[0], 0, channels)) {
    first = (side - std::clamp<int64_t>(used_.typed_data()[1], 1, side)) / 2;
    last = side - first;
  }
  int64_t pad() const { return side / 2; }
};

// One source of an output row: a row of pixels, and the taps that it is multiplied with.
struct Source {
  const float* pixels;
  const float* taps;  // [taps, C]; tap q lies at `taps + q * tap_step`
};

// The taps along a row: output t reads pixel `step * t + offset[q]` for tap q, if this pixel is in [0, width).
struct Reach {
  int count = 0;
  int64_t offset[kLargest], tap[kLargest], step, width;

  // The outputs [low, high) of [0, columns) whose taps are all inside.
  void inside(int64_t columns, int64_t& low, int64_t& high) const {
    low = 0, high = columns;
    for (int q = 0; q < count; ++q) {
      const int64_t o = offset[q];
      if (o < 0) low = std::max(low, (-o + step - 1) / step);
      const int64_t room = width - 1 - o;
      high = std::min(high, room < 0 ? 0 : room / step + 1);
    }
    high = std::max(high, low);
    low = std::min(low, columns), high = std::min(high, columns);
  }
};

// `n` neighbouring outputs for one block of channels, all taps inside.
template <int n, typename L>
inline void outputs(const std::vector<Source>& sources, const Reach& reach, int64_t channels, int64_t tap_step,
                    int64_t t, int64_t c, float* to, int64_t to_step) {
  typename L::Vec sum[n];
  for (int k = 0; k < n; ++k) sum[k] = L::all(0.0f);
  for (const Source& source : sources) {
    for (int q = 0; q < reach.count; ++q) {
      const auto weight = L::load(source.taps + reach.tap[q] * tap_step + c);
      const float* from = source.pixels + (reach.step * t + reach.offset[q]) * channels + c;
      for (int k = 0; k < n; ++k) sum[k] += weight * L::load(from + k * reach.step * channels);
    }
  }
  for (int k = 0; k < n; ++k) L::store(to + k * to_step + c, sum[k]);
}

// One output whose taps may fall outside.
template <typename L>
inline void border_output(const std::vector<Source>& sources, const Reach& reach, int64_t channels, int64_t tap_step,
                          int64_t t, int64_t c, float* to) {
  auto sum = L::all(0.0f);
  for (int q = 0; q < reach.count; ++q) {
    const int64_t pixel = reach.step * t + reach.offset[q];
    if (pixel < 0 || pixel >= reach.width) continue;
    for (const Source& source : sources)
      sum += L::load(source.taps + reach.tap[q] * tap_step + c) * L::load(source.pixels + pixel * channels + c);
  }
  L::store(to + c, sum);
}

// A row of outputs [columns], `to_step` floats apart, for the used channels.
void output_row(const std::vector<Source>& sources, const Reach& reach, int64_t used, int64_t channels,
                int64_t tap_step, int64_t columns, float* to, int64_t to_step) {
  int64_t low, high;
  reach.inside(columns, low, high);
  // Channels are the innermost loop: memory is read in order, and the next tile finds its pixels in the cache.
  auto tile = [&](auto width, int64_t t) {
    for_channels(used, [&](auto lanes, int64_t c) {
      outputs<width, decltype(lanes)>(sources, reach, channels, tap_step, t, c, to + t * to_step, to_step);
    });
  };
  auto border = [&](int64_t t) {
    for_channels(used, [&](auto lanes, int64_t c) {
      border_output<decltype(lanes)>(sources, reach, channels, tap_step, t, c, to + t * to_step);
    });
  };
  int64_t t = 0;
  for (; t < low; ++t) border(t);
  for (; t + kColumns <= high; t += kColumns) tile(std::integral_constant<int, kColumns>{}, t);
  for (; t + 2 <= high; t += 2) tile(std::integral_constant<int, 2>{}, t);
  for (; t < high; ++t) tile(std::integral_constant<int, 1>{}, t);
  for (; t < columns; ++t) border(t);
}

void zero_unused(float* pixel, int64_t used, int64_t channels) {
  if (used < channels) std::fill(pixel + used, pixel + channels, 0.0f);
}

ffi::Error forward(ffi::ThreadPool pool, Floats x, Floats kernel, Ints used, FloatsOut y, int64_t stride) {
  const Geometry s(x, kernel.dimensions()[0], stride, used);
  if (s.side > kLargest) return ffi::Error::InvalidArgument("the kernel is larger than 15x15");
  Reach reach;
  reach.step = stride, reach.width = s.width;
  for (int64_t j = s.first; j < s.last; ++j) {
    reach.tap[reach.count] = j;
    reach.offset[reach.count++] = j - s.pad();
  }
  const float *from = x.typed_data(), *taps = kernel.typed_data();
  float* to = y->typed_data();
  parallel_for(pool, s.images * s.rows, [&](int64_t task) {
    const int64_t n = task / s.rows, row = task % s.rows;
    std::vector<Source> sources;
    for (int64_t i = s.first; i < s.last; ++i) {
      const int64_t r = row * stride + i - s.pad();
      if (r < 0 || r >= s.height) continue;
      sources.push_back({from + (n * s.height + r) * s.width * s.channels, taps + i * s.side * s.channels});
    }
    float* out = to + task * s.columns * s.channels;
    output_row(sources, reach, s.used, s.channels, s.channels, s.columns, out, s.channels);
    for (int64_t t = 0; t < s.columns; ++t) zero_unused(out + t * s.channels, s.used, s.channels);
  });
  return ffi::Error::Success();
}

// dx: every input pixel collects the gradients of the outputs that it was used in. With stride 2, pixels of one parity
// use the taps of one parity, so that each parity is a dense convolution.
ffi::Error input_gradient(ffi::ThreadPool pool, Floats g, Floats kernel, Ints used, FloatsOut dx, int64_t stride) {
  const Geometry s(*dx, kernel.dimensions()[0], stride, used);
  if (s.side > kLargest) return ffi::Error::InvalidArgument("the kernel is larger than 15x15");
  std::vector<Reach> reaches(stride);
  for (int64_t parity = 0; parity < stride; ++parity) {
    Reach& reach = reaches[parity];
    reach.step = 1, reach.width = s.columns;
    for (int64_t j = s.first; j < s.last; ++j) {
      if ((parity + s.pad() - j) % stride != 0) continue;
      reach.tap[reach.count] = j;
      reach.offset[reach.count++] = (parity + s.pad() - j) / stride;
    }
  }
  const float *from = g.typed_data(), *taps = kernel.typed_data();
  float* to = dx->typed_data();
  parallel_for(pool, s.images * s.height, [&](int64_t task) {
    const int64_t n = task / s.height, row = task % s.height;
    std::vector<Source> sources;
    for (int64_t i = s.first; i < s.last; ++i) {
      const int64_t r = row + s.pad() - i;
      if (r < 0 || r % stride != 0 || r / stride >= s.rows) continue;
      const float* pixels = from + (n * s.rows + r / stride) * s.columns * s.channels;
      sources.push_back({pixels, taps + i * s.side * s.channels});
    }
    float* out = to + task * s.width * s.channels;
    for (int64_t parity = 0; parity < stride; ++parity) {
      const int64_t columns = (s.width - parity + stride - 1) / stride;
      output_row(sources, reaches[parity], s.used, s.channels, s.channels, columns, out + parity * s.channels,
                 stride * s.channels);
    }
    for (int64_t t = 0; t < s.width; ++t) zero_unused(out + t * s.channels, s.used, s.channels);
  });
  return ffi::Error::Success();
}

// Adds the products of one row of x and one row of g to sum [taps of a row, C], for one block of channels.
template <int n, typename L>
inline void row_products(const float* x, const float* g, const Geometry& s, int64_t first, int64_t c, float* sum) {
  typename L::Vec total[n];
  for (int q = 0; q < n; ++q) total[q] = L::load(sum + q * s.channels + c);
  const int64_t shift = first - s.pad();
  for (int64_t t = 0; t < s.columns; ++t) {
    const auto grad = L::load(g + t * s.channels + c);
    const int64_t pixel = t * s.stride + shift;
    const float* from = x + pixel * s.channels + c;
    if (pixel >= 0 && pixel + n <= s.width) {
      for (int q = 0; q < n; ++q) total[q] += grad * L::load(from + q * s.channels);
    } else {
      for (int q = 0; q < n; ++q)
        if (pixel + q >= 0 && pixel + q < s.width) total[q] += grad * L::load(from + q * s.channels);
    }
  }
  for (int q = 0; q < n; ++q) L::store(sum + q * s.channels + c, total[q]);
}

// d_kernel: sums of shifted input times gradient, over images and positions. The images are divided into at most 8
// runs. Their partial sums are added in a fixed order, so that the bits do not depend on the threads.
ffi::Error kernel_gradient(ffi::ThreadPool pool, Floats x, Floats g, Ints used, FloatsOut d_kernel, int64_t stride) {
  const Geometry s(x, d_kernel->dimensions()[0], stride, used);
  const int64_t size = s.side * s.side * s.channels, run = std::max<int64_t>(1, (s.images + 7) / 8);
  const int64_t runs = (s.images + run - 1) / run;
  std::vector<float> partial(runs * size, 0.0f);
  const float *from = x.typed_data(), *grads = g.typed_data();
  parallel_for(pool, runs, [&](int64_t task) {
    float* sums = partial.data() + task * size;
    for (int64_t n = task * run; n < std::min(s.images, (task + 1) * run); ++n) {
      for (int64_t row = 0; row < s.rows; ++row) {
        const float* grad = grads + (n * s.rows + row) * s.columns * s.channels;
        for (int64_t i = s.first; i < s.last; ++i) {
          const int64_t r = row * stride + i - s.pad();
          if (r < 0 || r >= s.height) continue;
          const float* pixels = from + (n * s.height + r) * s.width * s.channels;
          for_channels(s.used, [&](auto lanes, int64_t c) {
            using L = decltype(lanes);
            int64_t j = s.first;
            auto to = [&](int64_t j) { return sums + (i * s.side + j) * s.channels; };
            for (; j + 5 <= s.last; j += 5) row_products<5, L>(pixels, grad, s, j, c, to(j));
            for (; j + 3 <= s.last; j += 3) row_products<3, L>(pixels, grad, s, j, c, to(j));
            for (; j < s.last; ++j) row_products<1, L>(pixels, grad, s, j, c, to(j));
          });
        }
      }
    }
  });
  float* total = d_kernel->typed_data();
  std::fill(total, total + size, 0.0f);
  if (runs > 0) std::copy(partial.begin(), partial.begin() + size, total);
  for (int64_t k = 1; k < runs; ++k)
    for (int64_t i = 0; i < size; ++i) total[i] += partial[k * size + i];
  return ffi::Error::Success();
}

}  // namespace
}  // namespace bignas

using bignas::Floats;
using bignas::Ints;
#define HANDLER(name, function)                                                                                  \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function,                                                                  \
                                xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>().Arg<Floats>().Arg<Floats>()    \
                                    .Arg<Ints>().Ret<Floats>().Attr<int64_t>("stride"))

HANDLER(bignas_depthwise_forward, bignas::forward);
HANDLER(bignas_depthwise_input_gradient, bignas::input_gradient);
HANDLER(bignas_depthwise_kernel_gradient, bignas::kernel_gradient);
