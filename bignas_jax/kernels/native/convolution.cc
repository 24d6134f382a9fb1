// Convolution of images, forward with the moments of its result, and the gradient of its kernel: products of the patches
// that the kernel covers, which are copied a few at a time and never lie in memory as a whole.
//
// x is [B, H, W, I], g and y are [B, ceil(H / stride), ceil(W / stride), O], the kernel is [k, k, I, O], float32 and
// row-major, with padding k // 2. used is int32 [2]: all k * k * I entries of a patch, and the sampled channels of the
// output. Others are not read; of y they get nothing: whatever was in memory stays.

#include "tiles.h"

namespace bignas {
namespace {

// The patches of images as rows [B * H' * W', k * k * I].
struct Patches {
  const float* floats;
  int64_t height, width, channels, side, stride, down, across, step;

  Patches(const Floats& x, int64_t side, int64_t stride)
      : floats(x.typed_data()), height(x.dimensions()[1]), width(x.dimensions()[2]), channels(x.dimensions()[3]),
        side(side), stride(stride), down((height + stride - 1) / stride), across((width + stride - 1) / stride),
        step(side * side * channels) {}

  int64_t scratch() const { return kChunk * step; }

  const float* rows(int64_t begin, int64_t end, float* to) const {
    const int64_t strip = side * channels;  // what a patch covers of one row of pixels
    int64_t j = begin % across, i = begin / across % down, image = begin / (across * down);
    float* patch = to;
    for (int64_t r = begin; r < end; ++r, patch += step) {
      const int64_t left = j * stride - side / 2, top = i * stride - side / 2;
      const int64_t skip = std::max<int64_t>(-left, 0), stop = std::min(side, width - left);
      for (int64_t v = 0; v < side; ++v) {
        float* place = patch + v * strip;
        const int64_t h = top + v;
        if (h < 0 || h >= height || skip > 0 || stop < side) std::fill(place, place + strip, 0.0f);
        if (h < 0 || h >= height || stop <= skip) continue;
        const float* from = floats + ((image * height + h) * width + left + skip) * channels;
        float* first = place + skip * channels;
        for (int64_t n = 0, all = (stop - skip) * channels; n < all; ++n) first[n] = from[n];
      }
      if (++j == across) {
        j = 0;
        if (++i == down) i = 0, ++image;
      }
    }
    return to;
  }
};

int64_t rows_of(const ffi::Buffer<ffi::F32>::Dimensions d) { return d[0] * d[1] * d[2]; }

ffi::Error convolution(ffi::ThreadPool pool, Floats x, Floats kernel, Ints used_, FloatsOut y, FloatsOut mean,
                       FloatsOut variance, int64_t stride) {
  const Patches patches(x, kernel.dimensions()[0], stride);
  const int64_t outputs = kernel.dimensions()[3];
  const Used used(used_, patches.step, outputs);
  const Packed packed(pool, kernel.typed_data(), patches.step, used.outputs, outputs, 1);
  multiply_with_moments(pool, patches, rows_of(y->dimensions()), packed, y->typed_data(), outputs, false,
                        mean->typed_data(), variance->typed_data());
  return ffi::Error::Success();
}

ffi::Error kernel_gradient(ffi::ThreadPool pool, Floats x, Floats g, Ints used, FloatsOut d_kernel, int64_t stride) {
  const Patches patches(x, d_kernel->dimensions()[0], stride);
  const int64_t outputs = g.dimensions()[3];
  sum_kernel_gradient(pool, patches, rows_of(g.dimensions()), g.typed_data(), Used(used, patches.step, outputs),
                      patches.step, outputs, d_kernel->typed_data());
  return ffi::Error::Success();
}

}  // namespace
}  // namespace bignas

using bignas::Floats;

XLA_FFI_DEFINE_HANDLER_SYMBOL(bignas_convolution, bignas::convolution,
                              bignas::binding().Ret<Floats>().Ret<Floats>().Attr<int64_t>("stride"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(bignas_convolution_kernel_gradient, bignas::kernel_gradient,
                              bignas::binding().Attr<int64_t>("stride"));
