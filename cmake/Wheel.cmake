# What the Python wheel carries beside the Python files: the one library, and what it was built for.
# In site-packages PyTorch and its CUDA are siblings.
set(_rpath $ORIGIN/../torch/lib)
if(LIGHTHOUSE_CUDA)
  get_filename_component(_cuda ${TorchWheel_CUDA_ROOT} NAME)
  list(APPEND _rpath $ORIGIN/../nvidia/${_cuda}/lib)
endif()
set_target_properties(lighthouse PROPERTIES INSTALL_RPATH "${_rpath}")
install(TARGETS lighthouse LIBRARY DESTINATION lighthouse_attention)

file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/_build.py CONTENT
"\"\"\"Written by the build.\"\"\"

VERSION = \"@PROJECT_VERSION@\"
TORCH = \"@TorchWheel_MINOR_VERSION@\"
" @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/_build.py DESTINATION lighthouse_attention)
