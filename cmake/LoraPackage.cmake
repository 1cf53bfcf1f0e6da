# The shipped libraries, lora::lora (every layer but the models), lora::llama and lora::glm, and the installed CMake package.
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
set(model_headers ${headers})
list(FILTER headers EXCLUDE REGEX "/lora/(models/(llama|glm)|cli/)")

lora_add_library(lora lora HEADERS ${headers} LAYERS ${LORA_LAYERS})
target_link_libraries(lora PUBLIC lora_torch)

foreach(model llama glm)
  set(own_headers ${model_headers})
  list(FILTER own_headers INCLUDE REGEX "/lora/models/${model}[./]")
  lora_add_library(lora_${model}_library ${model} HEADERS ${own_headers} LAYERS ${model})
  set_target_properties(lora_${model}_library PROPERTIES OUTPUT_NAME lora_${model})
  target_link_libraries(lora_${model}_library PUBLIC lora)
endforeach()

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
