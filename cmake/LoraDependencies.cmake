# The libraries that the sources use and no public header includes, as `lora_private_dependencies`.
# GLOBAL: with a static liblora the parent project of an add_subdirectory() links them too.
find_package(fmt REQUIRED GLOBAL)
find_package(spdlog REQUIRED GLOBAL)
find_package(yaml-cpp REQUIRED GLOBAL)
find_path(LORA_JSON_INCLUDE nlohmann/json.hpp REQUIRED)
find_path(LORA_XXHASH_INCLUDE xxhash.h REQUIRED)
find_library(LORA_XXHASH_LIBRARY xxhash REQUIRED)

add_library(lora_private_dependencies INTERFACE)
set_target_properties(lora_private_dependencies PROPERTIES EXPORT_NAME private_dependencies)
# yaml-cpp 0.8 put its target into a namespace.
target_link_libraries(lora_private_dependencies INTERFACE fmt::fmt spdlog::spdlog
  $<IF:$<TARGET_EXISTS:yaml-cpp::yaml-cpp>,yaml-cpp::yaml-cpp,yaml-cpp> ${LORA_XXHASH_LIBRARY})
target_include_directories(lora_private_dependencies SYSTEM INTERFACE
  $<BUILD_INTERFACE:${LORA_JSON_INCLUDE}> $<BUILD_INTERFACE:${LORA_XXHASH_INCLUDE}>)

if(NOT LORA_GROUND_ONLY)
  find_path(LORA_SENTENCEPIECE_INCLUDE sentencepiece_processor.h REQUIRED)
  find_library(LORA_SENTENCEPIECE_LIBRARY sentencepiece REQUIRED)
  target_link_libraries(lora_private_dependencies INTERFACE ${LORA_SENTENCEPIECE_LIBRARY})
  target_include_directories(lora_private_dependencies SYSTEM INTERFACE
    $<BUILD_INTERFACE:${LORA_SENTENCEPIECE_INCLUDE}>)
endif()

# spdlog is compiled against one fmt; with another one first on the path every file would fail, with pages of errors.
include(CheckCXXSourceCompiles)
function(lora_check_spdlog_and_fmt)
  set(CMAKE_REQUIRED_QUIET ON)
  set(CMAKE_REQUIRED_LIBRARIES fmt::fmt spdlog::spdlog)
  check_cxx_source_compiles("
    #include <fmt/core.h>
    #include <spdlog/spdlog.h>
    int main() { spdlog::info(\"{}\", fmt::format(\"{}\", 1)); }" LORA_SPDLOG_MATCHES_FMT)
  if(NOT LORA_SPDLOG_MATCHES_FMT)
    unset(LORA_SPDLOG_MATCHES_FMT CACHE)
    message(FATAL_ERROR "spdlog ${spdlog_VERSION} (${spdlog_DIR}) does not compile and link with fmt ${fmt_VERSION} "
      "(${fmt_DIR}). Take both from one installation: set spdlog_DIR and fmt_DIR, or install an spdlog made for this fmt.")
  endif()
endfunction()
lora_check_spdlog_and_fmt()
