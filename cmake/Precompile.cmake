# PyTorch's headers are most of what a file of ours takes to compile: precompiled once, they halve a build.

file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/precompiled.cpp CONTENT "")
add_library(lighthouse_precompiled OBJECT ${CMAKE_BINARY_DIR}/precompiled.cpp)
target_link_libraries(lighthouse_precompiled PRIVATE lighthouse_options TorchWheel::torch)
target_precompile_headers(lighthouse_precompiled PRIVATE
  <ATen/ATen.h> <torch/csrc/autograd/custom_function.h> <torch/library.h> <torch/nn/module.h> <torch/nn/pimpl.h>)

# Gives a target that links TorchWheel::torch the precompiled headers.
function(lighthouse_precompile target)
  target_precompile_headers(${target} REUSE_FROM lighthouse_precompiled)
  target_compile_options(${target} PRIVATE -fPIC)  # as they were compiled; an executable's -fPIE is not the same
endfunction()
