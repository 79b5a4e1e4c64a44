# Finds the PyTorch of a Python environment and imports it as TorchWheel::torch.
#
# TorchConfig.cmake is not used: that of a CUDA wheel asks for a system CUDA toolkit even where only the CPU part is
# built, and sets architectures and standards of its own.
#
# Input:  Torch_ROOT, the folder of the torch package, or Python3_EXECUTABLE, whose torch is taken.
# Output: TorchWheel::torch, TorchWheel_VERSION, TorchWheel_MINOR_VERSION (such as 2.11: the binary interface changes
#         with each), Torch_ROOT, TorchWheel_CUDA (whether it is a CUDA wheel); of one also TorchWheel::torch_cuda,
#         TorchWheel::cudart, TorchWheel_CUDA_ROOT, the folder of the CUDA packages of PyPI, which has a whole nvcc in
#         bin where "cuda-toolkit[nvcc,nvvm,cccl,crt,cudart]" is installed.

if(NOT Torch_ROOT)
  if(NOT Python3_EXECUTABLE)
    find_program(Python3_EXECUTABLE NAMES python3 python)
  endif()
  execute_process(
    COMMAND ${Python3_EXECUTABLE} -c
            "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE Torch_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
set(Torch_ROOT "${Torch_ROOT}" CACHE PATH "The folder of the torch package of a Python environment")

set(_header ${Torch_ROOT}/include/torch/headeronly/version.h)
if(EXISTS ${_header})
  foreach(_part IN ITEMS MAJOR MINOR PATCH)
    file(STRINGS ${_header} _line REGEX "define TORCH_VERSION_${_part} ")
    string(REGEX MATCH "[0-9]+$" _${_part} "${_line}")
  endforeach()
  set(TorchWheel_VERSION ${_MAJOR}.${_MINOR}.${_PATCH})
  set(TorchWheel_MINOR_VERSION ${_MAJOR}.${_MINOR})
endif()

foreach(_name IN ITEMS torch_cpu c10 torch_cuda c10_cuda)
  find_library(TorchWheel_${_name}_LIBRARY ${_name} PATHS ${Torch_ROOT}/lib NO_DEFAULT_PATH)
endforeach()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  TorchWheel
  REQUIRED_VARS TorchWheel_torch_cpu_LIBRARY TorchWheel_c10_LIBRARY
  VERSION_VAR TorchWheel_VERSION
  HANDLE_VERSION_RANGE
  REASON_FAILURE_MESSAGE "looked in '${Torch_ROOT}': pass -DPython3_EXECUTABLE=... of an environment with PyTorch, or -DTorch_ROOT=...")

if(TorchWheel_FOUND AND NOT TARGET TorchWheel::torch)
  add_library(TorchWheel::c10 SHARED IMPORTED)
  set_target_properties(TorchWheel::c10 PROPERTIES IMPORTED_LOCATION ${TorchWheel_c10_LIBRARY})
  add_library(TorchWheel::torch SHARED IMPORTED)
  set_target_properties(TorchWheel::torch PROPERTIES IMPORTED_LOCATION ${TorchWheel_torch_cpu_LIBRARY})
  target_include_directories(TorchWheel::torch SYSTEM INTERFACE
                             ${Torch_ROOT}/include ${Torch_ROOT}/include/torch/csrc/api/include)
  # Without -fopenmp at::parallel_for silently runs on one thread. The wheel carries libgomp under its plain name, so
  # that linking it (and not the compiler's) leaves one pool of threads, PyTorch's.
  target_compile_options(TorchWheel::torch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
  target_link_libraries(TorchWheel::torch INTERFACE TorchWheel::c10 ${Torch_ROOT}/lib/libgomp.so.1)
  # libtorch_cpu.so names libraries of sibling packages, which it finds at run time through its own run path.
  target_link_options(TorchWheel::torch INTERFACE -Wl,--allow-shlib-undefined)
endif()

set(TorchWheel_CUDA OFF)
if(TorchWheel_torch_cuda_LIBRARY)
  file(GLOB TorchWheel_CUDA_ROOT ${Torch_ROOT}/../nvidia/cu[0-9]*)
  file(GLOB _cudart ${Torch_ROOT}/../nvidia/cu[0-9]*/lib/libcudart.so.*)
  list(LENGTH TorchWheel_CUDA_ROOT _roots)
  list(LENGTH _cudart _runtimes)
  if(_roots EQUAL 1 AND _runtimes EQUAL 1)
    set(TorchWheel_CUDA ON)
  else()
    message(STATUS "TorchWheel: PyTorch has CUDA, but there is not one CUDA runtime in ${Torch_ROOT}/../nvidia: "
                   "taken for the CPU alone")
  endif()
endif()
if(TorchWheel_CUDA AND NOT TARGET TorchWheel::torch_cuda)
  add_library(TorchWheel::cudart SHARED IMPORTED)
  set_target_properties(TorchWheel::cudart PROPERTIES IMPORTED_LOCATION ${_cudart})
  target_include_directories(TorchWheel::cudart SYSTEM INTERFACE ${TorchWheel_CUDA_ROOT}/include)
  add_library(TorchWheel::c10_cuda SHARED IMPORTED)
  set_target_properties(TorchWheel::c10_cuda PROPERTIES IMPORTED_LOCATION ${TorchWheel_c10_cuda_LIBRARY})
  target_link_libraries(TorchWheel::c10_cuda INTERFACE TorchWheel::torch TorchWheel::cudart)
  # A program calls none of its functions: PyTorch's CUDA kernels register themselves when it is loaded.
  add_library(TorchWheel::torch_cuda INTERFACE IMPORTED)
  target_link_libraries(TorchWheel::torch_cuda INTERFACE
    -Wl,--push-state,--no-as-needed ${TorchWheel_torch_cuda_LIBRARY} -Wl,--pop-state TorchWheel::c10_cuda)
endif()
