# What `cmake --install` puts down: the library with its headers and package config, and the program.
include(CMakePackageConfigHelpers)

set(_config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/Lighthouse)
install(TARGETS lighthouse EXPORT LighthouseTargets)
if(TARGET lighthouse_program)
  install(TARGETS lighthouse_program)
  install(FILES python/lighthouse_attention/plot.py DESTINATION ${CMAKE_INSTALL_DATADIR}/lighthouse)
endif()
foreach(_header IN ITEMS core/check.h core/config.h core/geometry.h core/settings.h core/words.h
        ops/attend.h ops/attention.h ops/scorers.h ops/stages.h
        distributed/attend_across.h distributed/attention.h distributed/connect.h distributed/exchange.h
        distributed/launch.h distributed/world.h nn/attention.h)
  get_filename_component(_folder ${_header} DIRECTORY)
  install(FILES lighthouse/${_header} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/lighthouse/${_folder})
endforeach()
install(EXPORT LighthouseTargets NAMESPACE Lighthouse:: DESTINATION ${_config_dir})

configure_package_config_file(cmake/LighthouseConfig.cmake.in ${CMAKE_BINARY_DIR}/LighthouseConfig.cmake
                              INSTALL_DESTINATION ${_config_dir})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/LighthouseConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/LighthouseConfig.cmake ${CMAKE_BINARY_DIR}/LighthouseConfigVersion.cmake
              cmake/FindTorchWheel.cmake
        DESTINATION ${_config_dir})
