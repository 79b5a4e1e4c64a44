#include "apps/lighthouse/verbs/verify.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/nonzero.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <charconv>
#include <iomanip>
#include <iostream>
#include <limits>
#include <optional>
#include <set>
#include <stdexcept>

#include "apps/lighthouse/device.h"
#include "apps/lighthouse/verbs.h"
#include "lighthouse/core/check.h"
#include "lighthouse/ops/attention.h"
#include "lighthouse/train/device.h"

namespace lighthouse::app {
namespace {

using at::Tensor;

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw std::runtime_error(message(parts...));
}

/// An integer of the metadata.
/// @param missing what it is where it is not there; if not given, it must be there
int64_t number(const io::SafeTensors& file, const std::string& key, int64_t least = 1,
               std::optional<int64_t> missing = {}) {
  const auto found = file.metadata.find(key);
  if (found == file.metadata.end() && missing) return *missing;
  require(found != file.metadata.end(), "its metadata has no ", key);
  const std::string& text = found->second;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  require(error == std::errc() && end == text.data() + text.size() && value >= least,
          "its metadata gives ", key, " as '", text, "'; it must be an integer of ", least,
          " and above");
  return value;
}

/// The tensor of that name, of that shape, or an undefined one.
Tensor find(const io::SafeTensors& file, const std::string& name, at::IntArrayRef shape) {
  const auto found = file.tensors.find(name);
  if (found == file.tensors.end()) return {};
  require(found->second.sizes() == shape, "tensor '", name, "' has the shape ",
          found->second.sizes(), "; by q, k and the metadata it must have ", shape);
  return found->second;
}

Comparison compare(const std::string& name, const Tensor& ours, const Tensor& theirs,
                   double tolerance) {
  require(at::isFloatingType(theirs.scalar_type()), "tensor '", name, "' is of type ",
          theirs.scalar_type(), "; it must be a floating-point type");
  const Tensor reference = theirs.to(at::kDouble);
  const double difference = (ours.cpu().to(at::kDouble) - reference).abs().max().item<double>();
  const double largest = reference.abs().max().item<double>();
  const double error = difference == 0 ? 0 : difference / largest;
  const bool within = error <= tolerance;
  return {name, error, within, within ? "" : message("over the tolerance, ", tolerance)};
}

Comparison compare_index(const Tensor& ours, const Tensor& theirs) {
  require(at::isIntegralType(theirs.scalar_type(), /*includeBool=*/false),
          "tensor 'index' is of type ", theirs.scalar_type(), "; it must be an integer type");
  const Tensor places = at::nonzero(ours.ne(theirs));
  if (places.size(0) == 0) return {"index", 0, true, ""};
  const auto place = [&](int64_t dimension) { return places[0][dimension].item<int64_t>(); };
  const auto at_place = [&](const Tensor& t) {
    return t[place(0)][place(1)][place(2)].item<int64_t>();
  };
  return {"index", static_cast<double>(places.size(0)) / static_cast<double>(theirs.numel()), false,
          message(places.size(0), " of ", theirs.numel(), " differ, first [", place(0), ", ",
                  place(1), ", ", place(2), "]: ", at_place(ours), ", not ", at_place(theirs))};
}

}  // namespace

std::vector<Comparison> verify(const io::SafeTensors& file, double tolerance, at::Device device) {
  static const std::set<std::string> kNames = {"q",   "k",      "v",      "grad_out", "index",
                                               "out", "grad_q", "grad_k", "grad_v",   "starts"};
  for (const auto& [name, tensor] : file.tensors)
    require(kNames.contains(name), "it has a tensor '", name,
            "'; there may be q, k, v, starts, grad_out, index, out, grad_q, grad_k and grad_v");
  for (const char* name : {"q", "k", "v"})
    require(file.tensors.contains(name), "it has no tensor '", name, "'");

  const int64_t batch = number(file, "B"), heads = number(file, "H"), tokens = number(file, "N"),
                dim = number(file, "D");
  Config config;
  config.levels = number(file, "num_levels");
  config.pooling_factor = number(file, "pooling_factor");
  config.budget = number(file, "top_k");
  config.tile_budget = number(file, "tile_budget");
  config.local = number(file, "local", 0, config.local);
  config.local_shift = number(file, "local_shift", 0, config.local_shift);
  if (const auto rule = file.metadata.find("selection"); rule != file.metadata.end()) {
    config.selection = parse_word<SelectionRule>(rule->second, "selection");
  }

  const auto leaf = [device](const Tensor& tensor) {
    return tensor.to(device).transpose(1, 2).detach().requires_grad_();
  };
  const Tensor q_file = find(file, "q", {batch, tokens, heads, dim});
  const Tensor& k_any = file.tensors.at("k");
  const int64_t groups = k_any.dim() == 4 ? k_any.size(2) : heads;
  const std::vector<int64_t> kv_shape{batch, tokens, groups, dim};
  require(at::isFloatingType(q_file.scalar_type()), "tensor 'q' is of type ", q_file.scalar_type(),
          "; it must be a floating-point type");
  const Tensor q = leaf(q_file);
  const Tensor k = leaf(find(file, "k", kv_shape));
  const Tensor v = leaf(find(file, "v", kv_shape));

  std::optional<Tensor> starts;
  if (const auto found = file.tensors.find("starts"); found != file.tensors.end()) {
    starts = found->second.to(device);
  }

  const Selection selection = select(q, k, v, config, {}, starts);
  const Tensor out = attention(q, k, v, config, selection, starts);
  std::vector<Comparison> results;
  if (const Tensor index = find(file, "index", selection.rows.sizes()); index.defined())
    results.push_back(compare_index(selection.rows.cpu(), index));
  if (const Tensor reference = find(file, "out", out.sizes()); reference.defined())
    results.push_back(compare("out", out.detach(), reference, tolerance));

  const Tensor grad_out = find(file, "grad_out", out.sizes());
  std::vector<Tensor> grads(3);
  if (grad_out.defined())
    grads = torch::autograd::grad({out}, {q, k, v}, {grad_out.to(device, out.scalar_type())});
  const Tensor* grad = grads.data();
  for (const char* name : {"grad_q", "grad_k", "grad_v"}) {
    const Tensor& ours = *grad++;
    const Tensor reference = find(
        file, name, name == std::string("grad_q") ? q_file.sizes() : at::IntArrayRef(kv_shape));
    if (!reference.defined()) continue;
    require(grad_out.defined(), "it has a tensor '", name, "', but no grad_out");
    results.push_back(compare(name, ours.transpose(1, 2), reference, tolerance));
  }
  require(!results.empty(), "it has nothing to compare: index, out, grad_q, grad_k or grad_v");
  return results;
}

int verify_files(const std::vector<std::filesystem::path>& files, double tolerance,
                 at::Device device, std::ostream& out, std::ostream& err) {
  bool unusable = false;
  bool failed = false;
  for (const auto& path : files) {
    const auto refuse = [&](const char* why) {
      err << "lighthouse: '" << path.string() << "': " << why << '\n';
      unusable = true;
    };
    try {
      for (const Comparison& c : verify(io::read_safetensors(path), tolerance, device)) {
        out << path.string() << "  " << std::left << std::setw(6) << c.tensor << "  "
            << std::scientific << std::setprecision(2) << c.error << "  "
            << (c.within ? "ok" : "FAILED: " + c.remark) << '\n';
        failed |= !c.within;
      }
    } catch (const c10::Error& error) {
      refuse(error.what_without_backtrace());
    } catch (const std::exception& error) {
      refuse(error.what());
    }
  }
  return unusable ? kUnusable : failed ? kFailed : 0;
}

void add_verify(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "verify",
      "Compare Lighthouse Attention with another implementation's results.\n"
      "Each FILE is a safetensors file with q, k, v (B, N, H, D) and grad_out (B, H, N, D), and "
      "some of index (B, H, S), out (B, H, N, D), grad_q, grad_k and grad_v (B, N, H, D); starts "
      "(B, M) int32 where documents are packed into the rows, ended by N. Its "
      "metadata gives B, H, N, D, num_levels, pooling_factor, top_k and tile_budget, and may give "
      "local, local_shift and selection.\n"
      "The exit status is 1 if a tensor differs by more than the tolerance, and 2 if a file is not "
      "of that form.");
  struct Options {
    std::vector<std::string> files;
    double tolerance = 1e-5;
    std::string device = "cpu";
  };
  auto options = std::make_shared<Options>();
  verb->add_option("FILE", options->files, "safetensors files to verify")->required();
  verb->add_option("--tolerance", options->tolerance,
                   "largest max|ours - theirs| / max|theirs| of a tensor; index must be equal")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  verb->add_option("--device", options->device, "cpu, cuda or cuda:N")->capture_default_str();
  verb->callback([options] {
    const int status =
        verify_files({options->files.begin(), options->files.end()}, options->tolerance,
                     train::find_device(options->device, "--device"), std::cout, std::cerr);
    if (status != 0) throw CLI::RuntimeError(status);
  });
}

}  // namespace lighthouse::app
