#include "lighthouse/data/mapping.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "lighthouse/core/check.h"

namespace lighthouse::data {
namespace {

[[noreturn]] void fail(const std::string& name, int error) {
  throw std::runtime_error(message("cannot read '", name, "': ", std::strerror(error)));
}

}  // namespace

Mapping map_descriptor(int fd, const std::string& name) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) fail(name, errno);
  if (S_ISDIR(status.st_mode)) fail(name, EISDIR);
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size == 0) return {};
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) fail(name, errno);
  return {{static_cast<const uint8_t*>(data), [data, size](const void*) { ::munmap(data, size); }},
          size};
}

Mapping map_file(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(path.string(), errno);
  try {
    Mapping mapping = map_descriptor(fd, path.string());
    ::close(fd);
    return mapping;
  } catch (...) {
    ::close(fd);
    throw;
  }
}

void release(const uint8_t* data, uint64_t size) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(data) + size;
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace lighthouse::data
