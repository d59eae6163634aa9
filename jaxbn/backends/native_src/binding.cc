// The kernels as XLA custom calls: buffers and attributes in, nothing else.

#include <cstdlib>

#include "check.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jaxbn {
namespace {

class XlaPool : public Pool {
 public:
  explicit XlaPool(ffi::ThreadPool& pool) : pool_(pool) {}
  int64_t threads() const override { return pool_.num_threads(); }
  void schedule(std::function<void()> task) override { pool_.Schedule(std::move(task)); }

 private:
  ffi::ThreadPool& pool_;
};

const Loops* loops() {
  static const Loops* const chosen = loops_here(std::getenv("JAXBN_NATIVE_ISA"));
  return chosen;
}

Array array_of(const ffi::AnyBuffer& buffer) {
  int type = -1;
  switch (buffer.element_type()) {
    case ffi::F16: type = int(Type::kF16); break;
    case ffi::BF16: type = int(Type::kBF16); break;
    case ffi::F32: type = int(Type::kF32); break;
    case ffi::F64: type = int(Type::kF64); break;
    case ffi::PRED: type = kBytes; break;
    default: break;
  }
  return {buffer.untyped_data(), type, int64_t(buffer.element_count()), true};
}

ffi::Error invalid(const std::string& what) { return ffi::Error::InvalidArgument("jaxbn: " + what + "."); }

using Sizes = ffi::Span<const int64_t>;

// Operands in the order of Slot, those of `present` (a bit for each slot).
// `sizes` are batch, outer, channels, inner, batch and repeat of where.
std::string read(Call& call, ffi::RemainingArgs& args, int64_t present, Sizes sizes,
                 int64_t activation, double high) {
  if (loops() == nullptr) return "JAXBN_NATIVE_ISA names no instruction set of this machine";
  if (sizes.size() != 6) return "six sizes are needed";
  call.shape = {sizes[0], sizes[1], sizes[2], sizes[3]};
  call.where_batch = sizes[4];
  call.where_repeat = sizes[5];
  call.activation = activation;
  call.high = high;
  size_t next = 0;
  for (int slot = 0; slot < kSlots; ++slot) {
    if (!(present >> slot & 1)) continue;
    const auto buffer = args.get<ffi::AnyBuffer>(next++);
    if (buffer.has_error()) return "an operand is missing";
    call.operands[slot] = array_of(*buffer);
  }
  return next == args.size() ? "" : "there are too many operands";
}

ffi::Error run_moments(ffi::ThreadPool threads, int64_t present, Sizes sizes, int64_t activation,
                       double high, ffi::RemainingArgs args, ffi::Result<ffi::AnyBuffer> center,
                       ffi::Result<ffi::AnyBuffer> delta, ffi::Result<ffi::AnyBuffer> m2,
                       ffi::Result<ffi::AnyBuffer> unit) {
  Call call;
  std::string error = read(call, args, present, sizes, activation, high);
  if (error.empty()) error = wrong_operands(call, {kX});
  for (auto result : {center, delta, m2, unit})
    if (error.empty()) error = wrong_result(call, array_of(*result), false);
  if (!error.empty()) return invalid(error);
  XlaPool pool(threads);
  const Reduction reduction{call.type(), Activation::kNone, 0, call.data(kX), nullptr, {}};
  moments({loops(), &pool}, reduction, call.shape, call.where(), center->untyped_data(),
          delta->untyped_data(), m2->untyped_data(), unit->untyped_data());
  return ffi::Error::Success();
}

ffi::Error run_sums(ffi::ThreadPool threads, int64_t present, Sizes sizes, int64_t activation,
                    double high, ffi::RemainingArgs args, ffi::Result<ffi::AnyBuffer> total,
                    ffi::Result<ffi::AnyBuffer> moment) {
  Call call;
  std::string error = read(call, args, present, sizes, activation, high);
  if (error.empty()) error = wrong_operands(call, {kX, kA, kCenter});
  if (error.empty() && activation != 0) error = wrong_operands(call, {kGateSlope, kGateOffset});
  for (auto result : {total, moment})
    if (error.empty()) error = wrong_result(call, array_of(*result), false);
  if (!error.empty()) return invalid(error);
  XlaPool pool(threads);
  const Reduction reduction{call.type(),   Activation(activation), high,
                            call.data(kX), call.data(kA),          call.vectors()};
  sums({loops(), &pool}, reduction, call.shape, call.where(), total->untyped_data(),
       moment->untyped_data());
  return ffi::Error::Success();
}

ffi::Error run_map(ffi::ThreadPool threads, int64_t present, Sizes sizes, int64_t activation,
                   double high, int64_t form, ffi::RemainingArgs args,
                   ffi::Result<ffi::AnyBuffer> y) {
  Call call;
  std::string error = read(call, args, present, sizes, activation, high);
  if (error.empty()) error = wrong_operands(call, {kX, kCenter});
  if (error.empty()) error = wrong_result(call, array_of(*y), true);
  if (error.empty() && Form(form) == Form::kExpand) {
    error = wrong_operands(call, {kSlope, kOffset});
    if (error.empty() && call.data(kA)) error = wrong_operands(call, {kMultiplier});
  } else if (error.empty()) {
    if (form < 0 || form > int(Form::kBack) || activation == 0) error = "unknown form";
    if (error.empty()) error = wrong_operands(call, {kA, kGateSlope, kGateOffset});
    if (error.empty() && Form(form) == Form::kBack)
      error = wrong_operands(call, {kSlope, kOffset, kMultiplier});
  }
  if (!error.empty()) return invalid(error);
  XlaPool pool(threads);
  const Map operation{call.type(),   Form(form),           Activation(activation), high,
                      call.data(kX), call.data(kA),        call.data(kResidual),   y->untyped_data(),
                      call.vectors(), false};
  map({loops(), &pool}, operation, call.shape, call.where());
  return ffi::Error::Success();
}

auto common() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<int64_t>("present")
      .Attr<Sizes>("sizes")
      .Attr<int64_t>("activation")
      .Attr<double>("high");
}

}  // namespace
}  // namespace jaxbn

#define JAXBN_EXPORT extern "C" __attribute__((visibility("default")))

// Not XLA_FFI_DEFINE_HANDLER_SYMBOL: the macro does not export from a library built with
// hidden symbols.
#define JAXBN_HANDLER(NAME, FUNCTION, BINDING)                           \
  JAXBN_EXPORT XLA_FFI_Error* NAME(XLA_FFI_CallFrame* frame) {           \
    static auto* handler = (BINDING).To(FUNCTION).release();             \
    return handler->Call(frame);                                         \
  }

JAXBN_HANDLER(jaxbn_moments, jaxbn::run_moments,
              jaxbn::common().RemainingArgs().Ret<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>())
JAXBN_HANDLER(jaxbn_sums, jaxbn::run_sums,
              jaxbn::common().RemainingArgs().Ret<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>())
JAXBN_HANDLER(jaxbn_map, jaxbn::run_map,
              jaxbn::common().Attr<int64_t>("form").RemainingArgs().Ret<ffi::AnyBuffer>())

// The instruction set in use.
JAXBN_EXPORT const char* jaxbn_isa() {
  return jaxbn::loops() == nullptr ? "" : jaxbn::loops()->name;
}
