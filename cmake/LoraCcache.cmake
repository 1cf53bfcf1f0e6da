# Compiles through ccache when it is there. The sloppiness settings let it serve translation units that use the
# precompiled header, which it keys by content (-fpch-preprocess, see lora_options).
if(CMAKE_CXX_COMPILER_LAUNCHER)
  return()
endif()
find_program(LORA_CCACHE ccache)
if(LORA_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${LORA_CCACHE})
endif()
