#include "lighthouse/io/safetensors.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <vector>

#include "lighthouse/core/check.h"
#include "lighthouse/io/file.h"

// The format is little-endian, and tensors are read and written as they lie in memory.
static_assert(std::endian::native == std::endian::little);

namespace lighthouse::io {
namespace {

using nlohmann::json;

constexpr const char* kMetadata = "__metadata__";
constexpr uint64_t kLengthBytes = 8;
// The bound of the format's own implementation: a wrong length must not allocate the machine away.
constexpr uint64_t kMostHeaderBytes = 100'000'000;

// The numbers of a shape: header, tensor, shape, number. Printing recurses, so depth is bounded.
constexpr int kDeepest = 3;

struct TypeName {
  const char* name;
  at::ScalarType type;
};
constexpr TypeName kTypes[] = {
    {"F64", at::kDouble}, {"F32", at::kFloat}, {"BF16", at::kBFloat16}, {"F16", at::kHalf},
    {"I64", at::kLong},   {"I32", at::kInt},   {"U8", at::kByte},       {"BOOL", at::kBool},
};

/// One tensor as the header describes it; offsets are in bytes from the end of the header.
struct Entry {
  std::string name;
  at::ScalarType type;
  std::vector<int64_t> shape;
  uint64_t begin;
  uint64_t end;
};

/// Checks of one file, whose messages name it.
class Checker {
 public:
  explicit Checker(const std::filesystem::path& path) : path_(path.string()) {}

  template <class... Parts>
  void operator()(bool condition, const Parts&... parts) const {
    if (!condition)
      throw std::runtime_error(message("'", path_, "' is not a safetensors file: ", parts...));
  }

 private:
  std::string path_;
};

/// The JSON of the header. The parser keeps the last of two equal keys, so they are counted here.
json parse_header(const std::string& text, const Checker& check) {
  check(text.starts_with('{'), "its header begins with byte ",
        static_cast<int>(static_cast<unsigned char>(text.front())), "; it must begin with '{'");
  std::vector<std::set<std::string>> keys;
  const auto on_event = [&](int depth, json::parse_event_t event, json& value) {
    check(depth <= kDeepest, "its header is nested too deeply");
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key)
      check(keys.back().insert(value.get<std::string>()).second, "its header has the key ",
            value.dump(), " twice");
    return true;
  };
  try {
    return json::parse(text, on_event);
  } catch (const json::exception& error) {
    check(false, "its header is not JSON: ", error.what());
    throw;
  }
}

Entry parse_entry(const std::string& name, const json& value, const Checker& check) {
  const std::string what = "tensor '" + name + "' ";
  const auto print = [](const json& j) { return j.dump(-1, ' ', true); };
  check(value.is_object() && value.size() == 3 && value.contains("dtype") &&
            value.contains("shape") && value.contains("data_offsets"),
        what, "is described by ", print(value),
        "; it must have the keys dtype, shape and data_offsets, and no other");

  Entry entry{name, at::kByte, {}, 0, 0};
  const json& dtype = value["dtype"];
  const auto* type =
      std::ranges::find_if(kTypes, [&](const TypeName& t) { return dtype == t.name; });
  check(type != std::end(kTypes), what, "has the dtype ", print(dtype),
        "; it must be one of F64, F32, BF16, F16, I64, I32, U8 and BOOL");
  entry.type = type->type;

  const json& shape = value["shape"];
  check(shape.is_array() && std::ranges::all_of(shape, &json::is_number_unsigned), what,
        "has the shape ", print(shape), "; it must be a list of integers of 0 and above");
  // Strides are products of sizes too, so those must fit even where another size is 0.
  uint64_t most = std::numeric_limits<int64_t>::max() / c10::elementSize(entry.type);
  uint64_t bytes = c10::elementSize(entry.type);
  for (const json& size_json : shape) {
    const auto size = size_json.get<uint64_t>();
    check(size <= most, what, "has the shape ", print(shape), ", which has too many elements");
    most /= std::max<uint64_t>(size, 1);
    bytes *= size;
    entry.shape.push_back(static_cast<int64_t>(size));
  }

  const json& offsets = value["data_offsets"];
  check(offsets.is_array() && offsets.size() == 2 &&
            std::ranges::all_of(offsets, &json::is_number_unsigned),
        what, "has the data_offsets ", print(offsets),
        "; they must be two integers of 0 and above");
  entry.begin = offsets[0].get<uint64_t>();
  entry.end = offsets[1].get<uint64_t>();
  check(entry.begin <= entry.end && entry.end - entry.begin == bytes, what, "has the data_offsets ",
        print(offsets), "; dtype ", type->name, " and shape ", print(shape), " need ", bytes,
        " bytes");
  return entry;
}

std::map<std::string, std::string> parse_metadata(const json& value, const Checker& check) {
  check(value.is_object() && std::ranges::all_of(value, &json::is_string), "its ", kMetadata,
        " must map strings to strings");
  return value.get<std::map<std::string, std::string>>();
}

}  // namespace

SafeTensors read_safetensors(const std::filesystem::path& path) {
  const Checker check(path);
  std::error_code error;
  const uint64_t file_bytes = std::filesystem::file_size(path, error);
  if (error)
    throw std::runtime_error(message("cannot read '", path.string(), "': ", error.message()));
  std::ifstream file(path, std::ios::binary);
  const auto read = [&](void* to, uint64_t bytes) {
    if (!file.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes)))
      throw std::runtime_error(message("cannot read '", path.string(), "'"));
  };

  check(file_bytes >= kLengthBytes, "it has ", file_bytes, " bytes; it must begin with ",
        kLengthBytes, " bytes that give the length of its header");
  uint64_t header_bytes = 0;
  read(&header_bytes, kLengthBytes);
  check(header_bytes >= 1 && header_bytes <= kMostHeaderBytes, "its header has ", header_bytes,
        " bytes; it must have 1 to ", kMostHeaderBytes);
  check(header_bytes <= file_bytes - kLengthBytes, "its header has ", header_bytes, " bytes, but ",
        file_bytes - kLengthBytes, " follow; the file may have been cut short");
  std::string text(header_bytes, '\0');
  read(text.data(), header_bytes);

  SafeTensors contents;
  std::vector<Entry> entries;
  const json header = parse_header(text, check);
  for (const auto& [name, value] : header.items()) {
    if (name == kMetadata) {
      contents.metadata = parse_metadata(value, check);
    } else {
      entries.push_back(parse_entry(name, value, check));
    }
  }
  std::ranges::sort(entries, {}, [](const Entry& e) { return std::tuple(e.begin, e.end); });
  uint64_t data_bytes = 0;
  for (const Entry& entry : entries) {
    check(entry.begin == data_bytes, "tensor '", entry.name, "' begins at byte ", entry.begin,
          " of the data; it must begin at ", data_bytes, ", where the one before it ends");
    data_bytes = entry.end;
  }
  const uint64_t present = file_bytes - kLengthBytes - header_bytes;
  check(data_bytes == present, "its tensors take ", data_bytes, " bytes, but ", present,
        " follow its header", data_bytes > present ? "; the file may have been cut short" : "");

  for (const Entry& entry : entries) {
    at::Tensor tensor = at::empty(entry.shape, entry.type);
    const uint64_t bytes = entry.end - entry.begin;
    if (bytes > 0) read(tensor.data_ptr(), bytes);
    if (entry.type == at::kBool) {
      const auto* values = static_cast<const uint8_t*>(tensor.data_ptr());
      check(std::all_of(values, values + bytes, [](uint8_t value) { return value <= 1; }),
            "tensor '", entry.name, "' is BOOL and has a byte that is neither 0 nor 1");
    }
    contents.tensors.emplace(entry.name, std::move(tensor));
  }
  return contents;
}

void write_safetensors(const std::filesystem::path& path, const SafeTensors& contents) {
  const auto require = [&](bool condition, const auto&... parts) {
    if (!condition)
      throw std::runtime_error(message("cannot write '", path.string(), "': ", parts...));
  };
  struct Item {
    const std::string* name;
    const char* dtype;
    at::Tensor data;
  };
  std::vector<Item> items;
  for (const auto& [name, tensor] : contents.tensors) {
    require(name != kMetadata, "a tensor must not be called ", kMetadata);
    require(tensor.defined(), "tensor '", name, "' is undefined");
    const auto* type = std::ranges::find(kTypes, tensor.scalar_type(), &TypeName::type);
    require(
        type != std::end(kTypes), "tensor '", name, "' is of type ",
        c10::toString(tensor.scalar_type()),
        "; it must be of one of float64, float32, bfloat16, float16, int64, int32, uint8 and bool");
    items.push_back({&name, type->name, tensor.detach().cpu().contiguous()});
  }
  // Large elements first, so that every tensor is aligned to its elements.
  std::ranges::stable_sort(items, std::ranges::greater(),
                           [](const Item& item) { return item.data.element_size(); });

  json header = json::object();
  if (!contents.metadata.empty()) header[kMetadata] = contents.metadata;
  std::vector<std::string_view> parts(2);
  size_t offset = 0;
  for (const Item& item : items) {
    const size_t bytes = item.data.nbytes();
    header[*item.name] = {{"dtype", item.dtype},
                          {"shape", item.data.sizes().vec()},
                          {"data_offsets", {offset, offset + bytes}}};
    if (bytes > 0) parts.emplace_back(static_cast<const char*>(item.data.data_ptr()), bytes);
    offset += bytes;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const json::exception& error) {
    require(false, "a name or the metadata is not UTF-8: ", error.what());
  }
  text.resize((text.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  const uint64_t header_bytes = text.size();
  require(header_bytes <= kMostHeaderBytes, "its header would have ", header_bytes,
          " bytes; it must have at most ", kMostHeaderBytes);
  parts[0] = {reinterpret_cast<const char*>(&header_bytes), kLengthBytes};
  parts[1] = text;
  write_atomically(path, parts);
}

}  // namespace lighthouse::io
