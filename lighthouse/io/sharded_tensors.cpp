#include "lighthouse/io/sharded_tensors.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "lighthouse/core/check.h"
#include "lighthouse/io/safetensors.h"

namespace lighthouse::io {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kShardingInfo = "DCP_SHARDING_INFO";

/// Rows of a tensor that a file has. A scalar is one row.
struct Part {
  int64_t begin, end;
  const fs::path* file;
};

/// A tensor as it is put together.
struct Whole {
  at::Tensor tensor;
  std::vector<Part> parts;
};

template <class... Texts>
[[noreturn]] void fail(const fs::path& file, const std::string& tensor, const Texts&... texts) {
  throw std::runtime_error(message("'", file.string(), "': tensor '", tensor, "' ", texts...));
}

int64_t rows_of(at::IntArrayRef shape) { return shape.empty() ? 1 : shape[0]; }

/// The first rows of a file's parts, by tensor.
json sharding_info(const fs::path& file, const std::map<std::string, std::string>& metadata) {
  const auto found = metadata.find(kShardingInfo);
  if (found == metadata.end()) return json::object();
  json info = json::parse(found->second, nullptr, /*allow_exceptions=*/false);
  if (!info.is_object()) {
    throw std::runtime_error(
        message("'", file.string(), "': its metadata ", kShardingInfo, " is not a JSON object"));
  }
  return info;
}

/// The row of the whole tensor at which a part begins.
int64_t first_row(const fs::path& file, const std::string& name, const json& info, int64_t rows,
                  at::IntArrayRef whole) {
  const auto found = info.find(name);
  if (found == info.end()) return 0;
  const json offsets = found->is_object() ? found->value("saved_offsets", json()) : json();
  const auto is_offset = [](const json& offset) { return offset.is_number_unsigned(); };
  if (!offsets.is_array() || offsets.size() != whole.size() ||
      !std::ranges::all_of(offsets, is_offset) ||
      std::any_of(offsets.begin() + !offsets.empty(), offsets.end(),
                  [](const json& offset) { return offset != 0; })) {
    fail(file, name, "has the offsets ", offsets.dump(), "; it must have one for each of its ",
         whole.size(), " dimensions, all 0 but the first");
  }
  if (offsets.empty()) return 0;
  const auto begin = offsets[0].get<uint64_t>();
  if (begin > static_cast<uint64_t>(whole[0]) || rows > whole[0] - static_cast<int64_t>(begin)) {
    fail(file, name, "has ", rows, " rows from row ", begin, " on; the whole tensor has ",
         whole[0]);
  }
  return static_cast<int64_t>(begin);
}

void add_part(Whole& whole, const fs::path& file, const std::string& name, const at::Tensor& part,
              at::IntArrayRef shape, const json& info) {
  if (part.sizes().size() != shape.size() ||
      !std::equal(shape.begin() + !shape.empty(), shape.end(),
                  part.sizes().begin() + !shape.empty())) {
    fail(file, name, "has the shape ", part.sizes(), ", as a part of ", shape);
  }
  const int64_t rows = rows_of(part.sizes());
  const int64_t begin = first_row(file, name, info, rows, shape);
  if (rows > rows_of(shape)) fail(file, name, "has ", rows, " rows; it must have ", shape[0]);
  whole.parts.push_back({begin, begin + rows, &file});
  if (part.sizes() == shape) {
    whole.tensor = part;
    return;
  }
  if (!whole.tensor.defined()) whole.tensor = at::empty(shape, part.options());
  if (whole.tensor.scalar_type() != part.scalar_type()) {
    fail(file, name, "is of type ", part.scalar_type(), "; another part of it is ",
         whole.tensor.scalar_type());
  }
  whole.tensor.narrow(0, begin, rows).copy_(part);
}

/// Throws unless the parts are the whole tensor, each row once.
void check_rows(const std::string& name, std::vector<Part> parts, int64_t rows) {
  std::ranges::stable_sort(parts, {}, &Part::begin);
  int64_t next = 0;
  const Part* before = nullptr;
  for (const Part& part : parts) {
    if (part.begin < next) {
      fail(*part.file, name, "has row ", part.begin, ", which '", before->file->string(),
           "' has too");
    }
    if (part.begin > next) {
      fail(*part.file, name, "begins at row ", part.begin, "; rows from ", next,
           " on are in no file");
    }
    next = part.end;
    before = &part;
  }
  if (next < rows) {
    fail(*before->file, name, "ends after ", next, " rows; the rest of its ", rows,
         " are in no file");
  }
}

}  // namespace

std::map<std::string, at::Tensor> read_sharded_tensors(
    const std::vector<fs::path>& files, const std::map<std::string, std::vector<int64_t>>& shapes) {
  std::map<std::string, Whole> wholes;
  std::string names;
  for (const fs::path& file : files) {
    names += (names.empty() ? "'" : ", '") + file.string() + "'";
    const SafeTensors contents = read_safetensors(file);
    const json info = sharding_info(file, contents.metadata);
    for (const auto& [name, part] : contents.tensors) {
      const auto shape = shapes.find(name);
      if (shape == shapes.end()) fail(file, name, "is not in the manifest");
      add_part(wholes[name], file, name, part, shape->second, info);
    }
  }
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, shape] : shapes) {
    const auto found = wholes.find(name);
    if (found == wholes.end()) {
      throw std::runtime_error(message("tensor '", name, "' is in none of the files ", names));
    }
    check_rows(name, found->second.parts, rows_of(shape));
    tensors[name] = found->second.tensor;
  }
  return tensors;
}

}  // namespace lighthouse::io
