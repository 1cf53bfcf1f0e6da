# The layers, lowest first, and what each may use. Every layer is one OBJECT library `lora_<layer>`;
# the shipped libraries are made of these objects, and each layer's tests link only what lies below it.
# tests/architecture/layers_test.py reads the includes and enforces the same table.
set(LORA_LAYERS core formats config io ops nn data adapters train generate)
set(LORA_TORCH_FREE_LAYERS core formats config)

set(LORA_USES_core "")
set(LORA_USES_formats core)
set(LORA_USES_config core formats)
set(LORA_USES_io core formats)
set(LORA_USES_ops core io)
set(LORA_USES_nn core formats io ops)
set(LORA_USES_data core formats io ops)
set(LORA_USES_adapters core formats io ops nn)
set(LORA_USES_llama core formats io ops nn data adapters)
set(LORA_USES_glm core formats io ops nn)
set(LORA_USES_train core formats config io ops nn data adapters)
set(LORA_USES_generate core formats io ops nn data adapters)

# lora_add_layer(<layer> <source dir>): an object library from every .cpp of the folder, and from its twin folder
# cuda/ (LORA_CUDA=ON) or no_cuda/ (OFF), so that no caller needs to know which one it has.
function(lora_add_layer layer dir)
  set(folder ${PROJECT_SOURCE_DIR}/${dir})
  if(LORA_CUDA)
    set(twins ${folder}/cuda/*.cpp ${folder}/cuda/*.cu)
  else()
    set(twins ${folder}/no_cuda/*.cpp)
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${folder}/*.cpp ${twins})
  add_library(lora_${layer} OBJECT ${sources})
  set_target_properties(lora_${layer} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_include_directories(lora_${layer} PUBLIC ${PROJECT_SOURCE_DIR}/include PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(lora_${layer} PRIVATE lora_options lora_private_dependencies)
  if(NOT layer IN_LIST LORA_TORCH_FREE_LAYERS)
    target_link_libraries(lora_${layer} PUBLIC lora_torch)
    lora_reuse_pch(lora_${layer})
  endif()
endfunction()

# lora_add_test(<name> LAYERS <layers...> DIR <folder>): one Catch2 program per module, its cases as ctest tests.
function(lora_add_test name)
  cmake_parse_arguments(ARG "" "DIR;LABEL" "LAYERS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${ARG_DIR}/*_test.cpp)
  if(NOT sources)
    return()
  endif()
  set(target test_${name})
  add_executable(${target} ${sources} $<TARGET_OBJECTS:lora_catch_main>)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src
                                               ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(${target} PRIVATE lora_options lora_private_dependencies Catch2::Catch2)
  set(needs_torch OFF)
  foreach(layer IN LISTS ARG_LAYERS)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:lora_${layer}>)
    if(NOT layer IN_LIST LORA_TORCH_FREE_LAYERS)
      set(needs_torch ON)
    endif()
  endforeach()
  if(needs_torch)
    target_link_libraries(${target} PRIVATE lora_torch)
    lora_reuse_pch(${target})
  endif()
  add_test(NAME ${name} COMMAND ${target})
  set_tests_properties(${name} PROPERTIES LABELS "${name}" ENVIRONMENT
    "LORA_SOURCE_DIR=${PROJECT_SOURCE_DIR};OMP_NUM_THREADS=2;GOMP_SPINCOUNT=3000")
endfunction()

# One precompiled header for everything that includes torch: parsing it costs seconds per file otherwise.
# -fPIC also in programs: g++ ignores a header that was precompiled with another code model.
function(lora_reuse_pch target)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fPIC>)
  target_precompile_headers(${target} REUSE_FROM lora_pch)
endfunction()
