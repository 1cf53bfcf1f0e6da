# Builds SOURCE as static libraries in BINARY, installs them there, and builds and runs CONSUMER against them.
function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

file(REMOVE_RECURSE ${BINARY}/stage ${BINARY}/consumer)
run(${CMAKE_COMMAND} -S ${SOURCE} -B ${BINARY}/lora -G Ninja -DBUILD_SHARED_LIBS=OFF -DLORA_TESTS=OFF
    -DLORA_PROGRAMS=OFF -DLORA_TORCH_ROOT=${TORCH})
run(${CMAKE_COMMAND} --build ${BINARY}/lora --parallel 2)
run(${CMAKE_COMMAND} --install ${BINARY}/lora --prefix ${BINARY}/stage)
run(${CMAKE_COMMAND} -S ${CONSUMER} -B ${BINARY}/consumer -G Ninja -DCMAKE_PREFIX_PATH=${BINARY}/stage)
run(${CMAKE_COMMAND} --build ${BINARY}/consumer)
run(${BINARY}/consumer/consumer)
