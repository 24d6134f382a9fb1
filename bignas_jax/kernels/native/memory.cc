// Results that are left as they are in memory, for those that need arrays and never read them.
#include "common.h"

namespace bignas {
namespace {

ffi::Error unwritten(ffi::RemainingRets) { return ffi::Error::Success(); }

}  // namespace
}  // namespace bignas

XLA_FFI_DEFINE_HANDLER_SYMBOL(bignas_unwritten, bignas::unwritten, xla::ffi::Ffi::Bind().RemainingRets());
