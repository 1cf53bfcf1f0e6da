// Owner of the precompiled header; see cmake/LoraLayers.cmake.
