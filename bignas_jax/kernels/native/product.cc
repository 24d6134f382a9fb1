// Products of activations and a kernel, forward and backward, that compute no more than the sampled channels.
//
// x is [M, I], g and y are [M, O], the kernel is [I, O]. used is int32 [2]: the sampled channels of the input and of the
// output. Others are not read. Of the results they get zeros if `whole`, or else nothing: whatever was in memory stays.

#include "tiles.h"

namespace bignas {
namespace {

// y = x @ kernel, or, turned, x @ kernel transposed, where x is [M, O] and y [M, I].
ffi::Error product(ffi::ThreadPool pool, Floats x, Floats kernel, Ints used_, FloatsOut y, bool turned, bool whole) {
  const int64_t across = kernel.dimensions()[1];
  const Used used(used_, kernel.dimensions()[0], across);
  const Packed packed = turned ? Packed(pool, kernel.typed_data(), used.outputs, used.inputs, 1, across)
                               : Packed(pool, kernel.typed_data(), used.inputs, used.outputs, across, 1);
  const Matrix from{x.typed_data(), x.dimensions()[1]};
  multiply(pool, from, x.dimensions()[0], packed, y->typed_data(), y->dimensions()[1], whole);
  return ffi::Error::Success();
}

ffi::Error product_moments(ffi::ThreadPool pool, Floats x, Floats kernel, Ints used_, FloatsOut y, FloatsOut mean,
                           FloatsOut variance, bool whole) {
  const int64_t inputs = x.dimensions()[1], outputs = kernel.dimensions()[1];
  const Used used(used_, inputs, outputs);
  const Packed packed(pool, kernel.typed_data(), used.inputs, used.outputs, outputs, 1);
  multiply_with_moments(pool, Matrix{x.typed_data(), inputs}, x.dimensions()[0], packed, y->typed_data(), outputs,
                        whole, mean->typed_data(), variance->typed_data());
  return ffi::Error::Success();
}

ffi::Error kernel_gradient(ffi::ThreadPool pool, Floats x, Floats g, Ints used, FloatsOut d_kernel) {
  const int64_t inputs = x.dimensions()[1], outputs = g.dimensions()[1];
  sum_kernel_gradient(pool, Matrix{x.typed_data(), inputs}, x.dimensions()[0], g.typed_data(),
                      Used(used, inputs, outputs), inputs, outputs, d_kernel->typed_data());
  return ffi::Error::Success();
}

}  // namespace
}  // namespace bignas

using bignas::Floats;

XLA_FFI_DEFINE_HANDLER_SYMBOL(bignas_product, bignas::product,
                              bignas::binding().Attr<bool>("turned").Attr<bool>("whole"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(bignas_product_moments, bignas::product_moments,
                              bignas::binding().Ret<Floats>().Ret<Floats>().Attr<bool>("whole"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(bignas_product_kernel_gradient, bignas::kernel_gradient, bignas::binding());
