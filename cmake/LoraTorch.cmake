# Defines `lora_torch`: LibTorch as an interface target. Also installed, for projects that use the package.
#
# The torch wheel's own TorchConfig.cmake insists on a CUDA toolkit and puts the wheel's bundled third-party
# headers (fmt, protobuf, ...) on the include path, where they clash with the system's. This module takes the
# libraries and only the header folders ATen, c10, caffe2 and torch, through links in the build tree.
#
# Where LibTorch is looked for, first match wins:
#   LORA_TORCH_ROOT (cache or environment); what find_package(Torch) has found; Torch_DIR; CMAKE_PREFIX_PATH (variable
#   or environment); LORA_TORCH_HINT (an installed package: the LibTorch that it was built with); .venv of the source tree.
# Sets LORA_TORCH_DIR, LORA_TORCH_VERSION and LORA_TORCH_RUN_PATH. LORA_CUDA=ON links libtorch_cuda besides.

set(LORA_TORCH_ROOT "$ENV{LORA_TORCH_ROOT}" CACHE PATH "Folder of LibTorch: holds lib/libtorch_cpu.so and include/")

# First folder of the arguments that holds LibTorch, or "".
function(lora_first_torch result)
  set(${result} "" PARENT_SCOPE)
  foreach(candidate IN LISTS ARGN)
    if(EXISTS ${candidate}/lib/libtorch_cpu.so AND EXISTS ${candidate}/include/ATen/ATen.h)
      get_filename_component(candidate ${candidate} ABSOLUTE)
      set(${result} ${candidate} PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

function(lora_find_torch)
  if(LORA_TORCH_ROOT)
    lora_first_torch(found ${LORA_TORCH_ROOT})
    if(NOT found)
      message(FATAL_ERROR "LORA_TORCH_ROOT must hold lib/libtorch_cpu.so and include/ATen; ${LORA_TORCH_ROOT} does not.")
    endif()
  else()
    set(candidates ${TORCH_INSTALL_PREFIX})
    foreach(config IN ITEMS ${Torch_DIR} $ENV{Torch_DIR})
      list(APPEND candidates ${config}/../../..)
    endforeach()
    string(REPLACE ":" ";" prefixes "$ENV{CMAKE_PREFIX_PATH}")
    foreach(prefix IN LISTS CMAKE_PREFIX_PATH prefixes)
      # A LibTorch archive; a Python environment's site-packages; torch.utils.cmake_prefix_path.
      list(APPEND candidates ${prefix} ${prefix}/torch ${prefix}/../..)
    endforeach()
    list(APPEND candidates ${LORA_TORCH_HINT})
    file(GLOB virtual_environment ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../.venv/lib/python3*/site-packages/torch
                                  ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
    lora_first_torch(found ${candidates} ${virtual_environment})
    if(NOT found)
      message(FATAL_ERROR "LibTorch not found. Run scripts/setup.sh, or pass -DCMAKE_PREFIX_PATH=<folder of LibTorch>.")
    endif()
  endif()
  set(LORA_TORCH_DIR ${found} PARENT_SCOPE)

  set(version_header ${found}/include/torch/headeronly/version.h)
  if(NOT EXISTS ${version_header})  # before LibTorch 2.9
    set(version_header ${found}/include/torch/csrc/api/include/torch/version.h)
  endif()
  file(STRINGS ${version_header} lines REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
  list(TRANSFORM lines REPLACE "[^0-9]*([0-9]+).*" "\\1")
  list(JOIN lines "." version)
  set(LORA_TORCH_VERSION ${version} PARENT_SCOPE)
endfunction()

# The interface target, with its folder of links to the headers at `include`.
function(lora_add_torch include)
  file(MAKE_DIRECTORY ${include})
  foreach(folder ATen c10 caffe2 torch)
    file(REMOVE ${include}/${folder})
    file(CREATE_LINK ${LORA_TORCH_DIR}/include/${folder} ${include}/${folder} SYMBOLIC)
  endforeach()
  find_package(Threads REQUIRED)
  set(run_path ${LORA_TORCH_DIR}/lib)
  # Our threaded kernels must use the OpenMP runtime that LibTorch uses: two would fight for the cores.
  file(GLOB openmp ${LORA_TORCH_DIR}/lib/libgomp*.so*)
  if(NOT openmp)
    set(openmp -lgomp)
  endif()
  set(libraries ${LORA_TORCH_DIR}/lib/libtorch_cpu.so ${LORA_TORCH_DIR}/lib/libc10.so ${openmp})
  add_library(lora_torch INTERFACE IMPORTED GLOBAL)
  target_include_directories(lora_torch SYSTEM INTERFACE ${include} ${include}/torch/csrc/api/include)
  if(LORA_CUDA)
    # The CUDA headers and runtime of the wheel when they are there (scripts/setup.sh --cuda), else a toolkit's.
    file(GLOB cuda_include ${LORA_TORCH_DIR}/../nvidia/cu[0-9]*/include)
    file(GLOB cuda_runtime ${LORA_TORCH_DIR}/../nvidia/cu[0-9]*/lib/libcudart.so.*)
    if(NOT EXISTS "${cuda_include}/cublas_v2.h" OR NOT EXISTS "${cuda_runtime}")
      find_package(CUDAToolkit REQUIRED)
      set(cuda_include ${CUDAToolkit_INCLUDE_DIRS})
      set(cuda_runtime ${CUDA_cudart_LIBRARY})
    endif()
    target_include_directories(lora_torch SYSTEM INTERFACE ${cuda_include})
    get_filename_component(cuda_runtime_dir ${cuda_runtime} DIRECTORY)
    list(APPEND run_path ${cuda_runtime_dir})
    # Loading libtorch_cuda registers its kernels; nothing needs to refer to one of its symbols.
    list(APPEND libraries -Wl,--push-state,--no-as-needed,${LORA_TORCH_DIR}/lib/libtorch_cuda.so,--pop-state
                          ${LORA_TORCH_DIR}/lib/libc10_cuda.so ${cuda_runtime})
  endif()
  # LibTorch's libraries find their own dependencies through their run path; the linker need not see them.
  target_link_options(lora_torch INTERFACE LINKER:--allow-shlib-undefined)
  target_link_libraries(lora_torch INTERFACE ${libraries} ${CMAKE_THREAD_LIBS_INIT} ${CMAKE_DL_LIBS})
  set(LORA_TORCH_RUN_PATH ${run_path} PARENT_SCOPE)
endfunction()

lora_find_torch()
if(NOT TARGET lora_torch)
  lora_add_torch(${CMAKE_CURRENT_BINARY_DIR}/lora_torch_include)
endif()
