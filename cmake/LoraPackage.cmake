# The shipped libraries, lora::lora (every layer but the models) and lora::llama, and the installed CMake package.
include(CMakePackageConfigHelpers)

# lora_add_library(<target> <exported name> HEADERS <files...> LAYERS <layers...>): a library from the layers' objects.
function(lora_add_library target name)
  cmake_parse_arguments(ARG "" "" "HEADERS;LAYERS" ${ARGN})
  set(objects "")
  foreach(layer IN LISTS ARG_LAYERS)
    list(APPEND objects $<TARGET_OBJECTS:lora_${layer}>)
  endforeach()
  add_library(${target} ${objects})
  add_library(lora::${name} ALIAS ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name} LINKER_LANGUAGE CXX VERSION ${PROJECT_VERSION}
                        SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
  target_sources(${target} PUBLIC FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR}/include FILES ${ARG_HEADERS})
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_link_libraries(${target} PRIVATE lora_private_dependencies)
  install(TARGETS ${target} EXPORT lora FILE_SET HEADERS)
endfunction()

file(GLOB_RECURSE headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/include/lora/*.h)
set(llama_headers ${headers})
list(FILTER headers EXCLUDE REGEX "/lora/(models/llama|cli/)")
list(FILTER llama_headers INCLUDE REGEX "/lora/models/llama")

lora_add_library(lora lora HEADERS ${headers} LAYERS ${LORA_LAYERS})
target_link_libraries(lora PUBLIC lora_torch)

lora_add_library(lora_llama_library llama HEADERS ${llama_headers} LAYERS llama)
set_target_properties(lora_llama_library PROPERTIES OUTPUT_NAME lora_llama)
target_link_libraries(lora_llama_library PUBLIC lora)

if(NOT BUILD_SHARED_LIBS)
  install(TARGETS lora_private_dependencies EXPORT lora)
endif()
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/lora)
install(EXPORT lora NAMESPACE lora:: FILE loraTargets.cmake DESTINATION ${package_dir})
configure_package_config_file(cmake/loraConfig.cmake.in ${PROJECT_BINARY_DIR}/package/loraConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/package/loraConfigVersion.cmake COMPATIBILITY SameMajorVersion)
install(FILES ${PROJECT_BINARY_DIR}/package/loraConfig.cmake ${PROJECT_BINARY_DIR}/package/loraConfigVersion.cmake
              ${PROJECT_SOURCE_DIR}/cmake/LoraTorch.cmake DESTINATION ${package_dir})
