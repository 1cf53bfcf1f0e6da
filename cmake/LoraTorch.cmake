# Defines `lora_torch`: LibTorch as an interface target.
#
# The torch wheel's own TorchConfig.cmake insists on a CUDA toolkit and puts the wheel's bundled third-party
# headers (fmt, protobuf, ...) on the include path, where they clash with the system's. This module takes the
# libraries and only the folders ATen, c10, caffe2 and torch, through links in the build tree.
#
# Where LibTorch is looked for, first match wins:
#   LORA_TORCH_ROOT (cache or environment), Torch_DIR, CMAKE_PREFIX_PATH, <project>/.venv, LORA_TORCH_HINT.
# LORA_CUDA=ON links libtorch_cuda and the CUDA toolkit besides.

set(LORA_TORCH_ROOT "$ENV{LORA_TORCH_ROOT}" CACHE PATH "Folder of LibTorch: holds lib/libtorch_cpu.so and include/")

set(_lora_torch_candidates ${LORA_TORCH_ROOT})
if(Torch_DIR)
  list(APPEND _lora_torch_candidates ${Torch_DIR}/../../..)
endif()
foreach(prefix IN LISTS CMAKE_PREFIX_PATH)
  list(APPEND _lora_torch_candidates ${prefix} ${prefix}/torch ${prefix}/../..)
endforeach()
foreach(prefix IN ITEMS ${CMAKE_CURRENT_LIST_DIR}/.. ${CMAKE_SOURCE_DIR})
  file(GLOB _lora_venv ${prefix}/.venv/lib/python3*/site-packages/torch)
  list(APPEND _lora_torch_candidates ${_lora_venv})
endforeach()
list(APPEND _lora_torch_candidates ${LORA_TORCH_HINT})

set(LORA_TORCH_DIR "")
foreach(candidate IN LISTS _lora_torch_candidates)
  if(EXISTS ${candidate}/lib/libtorch_cpu.so AND EXISTS ${candidate}/include/ATen/ATen.h)
    get_filename_component(LORA_TORCH_DIR ${candidate} ABSOLUTE)
    break()
  endif()
endforeach()
if(NOT LORA_TORCH_DIR)
  message(FATAL_ERROR "LibTorch not found. Run scripts/setup.sh, or pass -DCMAKE_PREFIX_PATH=<libtorch>.")
endif()

set(LORA_TORCH_VERSION "")
foreach(part MAJOR MINOR PATCH)
  file(STRINGS ${LORA_TORCH_DIR}/include/torch/headeronly/version.h line REGEX "#define TORCH_VERSION_${part} ")
  string(REGEX MATCH "[0-9]+" number "${line}")
  list(APPEND LORA_TORCH_VERSION ${number})
endforeach()
list(JOIN LORA_TORCH_VERSION "." LORA_TORCH_VERSION)

set(_lora_torch_include ${CMAKE_BINARY_DIR}/torch_include)
file(MAKE_DIRECTORY ${_lora_torch_include})
foreach(folder ATen c10 caffe2 torch)
  file(REMOVE ${_lora_torch_include}/${folder})
  file(CREATE_LINK ${LORA_TORCH_DIR}/include/${folder} ${_lora_torch_include}/${folder} SYMBOLIC)
endforeach()

find_package(Threads REQUIRED)
add_library(lora_torch INTERFACE IMPORTED GLOBAL)
target_include_directories(lora_torch SYSTEM INTERFACE ${_lora_torch_include}
                                                       ${_lora_torch_include}/torch/csrc/api/include)
set(_lora_torch_libraries ${LORA_TORCH_DIR}/lib/libtorch_cpu.so ${LORA_TORCH_DIR}/lib/libc10.so)
if(LORA_CUDA)
  find_package(CUDAToolkit REQUIRED)
  target_include_directories(lora_torch SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS})
  list(APPEND _lora_torch_libraries ${LORA_TORCH_DIR}/lib/libtorch_cuda.so ${LORA_TORCH_DIR}/lib/libc10_cuda.so)
  target_link_options(lora_torch INTERFACE LINKER:--no-as-needed)
endif()
# The wheel's libraries find their own dependencies through their run path; the linker need not see them.
target_link_options(lora_torch INTERFACE LINKER:--allow-shlib-undefined LINKER:-rpath,${LORA_TORCH_DIR}/lib)
target_link_libraries(lora_torch INTERFACE ${_lora_torch_libraries} Threads::Threads ${CMAKE_DL_LIBS})
