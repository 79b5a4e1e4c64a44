# CUDA for the kernels: the nvcc that PyPI carries, beside the runtime that PyTorch itself uses, so that no CUDA toolkit
# need be installed; CUDACXX or CMAKE_CUDA_COMPILER name another.

if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(CMAKE_CUDA_COMPILER nvcc HINTS ${TorchWheel_CUDA_ROOT}/bin)
  if(NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "LIGHTHOUSE_CUDA is ON, and there is no nvcc. Install it beside PyTorch, "
                        "pip install 'cuda-toolkit[nvcc,nvvm,cccl,crt,cudart]', "
                        "or pass -DCMAKE_CUDA_COMPILER=... or, for the CPU alone, -DLIGHTHOUSE_CUDA=OFF "
                        "(pip install -C cmake.define.LIGHTHOUSE_CUDA=OFF)")
  endif()
endif()
# Hopper first. The first of them also as PTX, from which a driver makes code for a card that is not listed.
set(CMAKE_CUDA_ARCHITECTURES 80 90a-real 100-real CACHE STRING "Architectures that the CUDA kernels are compiled for")
# PyTorch's copy of the runtime, which has no name that a linker finds: CMake's check of the compiler links one.
set(ENV{LIBRARY_PATH} "${TorchWheel_CUDA_ROOT}/lib:$ENV{LIBRARY_PATH}")
set(CMAKE_CUDA_RUNTIME_LIBRARY None)
enable_language(CUDA)
# CMake before 3.26 does not know how nvcc is asked for C++20.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
if(CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()

string(REGEX MATCH "cu([0-9]+)$" _ ${TorchWheel_CUDA_ROOT})
if(NOT CMAKE_CUDA_COMPILER_VERSION MATCHES "^${CMAKE_MATCH_1}\\.")
  message(FATAL_ERROR "${CMAKE_CUDA_COMPILER} is of CUDA ${CMAKE_CUDA_COMPILER_VERSION}, and PyTorch's CUDA is that of "
                      "${TorchWheel_CUDA_ROOT}. Install nvcc beside PyTorch, or pass -DCMAKE_CUDA_COMPILER=...")
endif()

# As messages say them.
set(LIGHTHOUSE_CUDA_ARCHITECTURES)
foreach(_architecture IN LISTS CMAKE_CUDA_ARCHITECTURES)
  if(_architecture MATCHES "^(.+)-real$")
    list(APPEND LIGHTHOUSE_CUDA_ARCHITECTURES ${CMAKE_MATCH_1})
  elseif(_architecture MATCHES "^(.+)-virtual$")
    list(APPEND LIGHTHOUSE_CUDA_ARCHITECTURES "PTX of ${CMAKE_MATCH_1}")
  else()
    list(APPEND LIGHTHOUSE_CUDA_ARCHITECTURES "${_architecture} and its PTX")
  endif()
endforeach()
list(JOIN LIGHTHOUSE_CUDA_ARCHITECTURES ", " LIGHTHOUSE_CUDA_ARCHITECTURES)
