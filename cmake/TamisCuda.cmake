# The CUDA language and what .cu files are compiled with. Included with TAMIS_CUDA alone.

if(NOT CMAKE_CUDA_COMPILER)
  find_program(TAMIS_NVCC nvcc PATHS /usr/local/cuda/bin)
  if(NOT TAMIS_NVCC)
    message(FATAL_ERROR "TAMIS_CUDA is on and nvcc is nowhere: install the CUDA toolkit (12.8 or "
      "later), or name it with -DCMAKE_CUDA_COMPILER=/path/to/nvcc")
  endif()
  set(CMAKE_CUDA_COMPILER "${TAMIS_NVCC}")
endif()
set(CMAKE_CUDA_ARCHITECTURES OFF)  # tamis_cuda_codes says which
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  message(FATAL_ERROR "nvcc ${CMAKE_CUDA_COMPILER_VERSION}: want 12.8 or later (sm_120)")
endif()
# CMake 3.25 does not know that nvcc takes C++20. Goes with CMake 3.26.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
if(TAMIS_CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER "${TAMIS_CCACHE}")
endif()
find_package(CUDAToolkit REQUIRED)

# -fmad=false is the device's
# -ffp-contract=off: a fused operation is written as fmaf. -lineinfo names lines in
# compute-sanitizer and the profilers; it costs no speed, but two thirds of the program's size, so
# only a build with tests has it.
add_library(tamis_cuda_flags INTERFACE)
option(TAMIS_PTXAS_REPORT "ptxas prints registers and spills of every kernel" OFF)
if(TAMIS_PTXAS_REPORT)
  target_compile_options(tamis_cuda_flags INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=-v>")
endif()
target_compile_options(tamis_cuda_flags INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:\
-fmad=false $<$<BOOL:${TAMIS_TESTS}>:-lineinfo> --expt-relaxed-constexpr -Wno-deprecated-gpu-targets \
-Xcompiler=-Wall,-Wextra,-ffp-contract=off $<$<BOOL:${TAMIS_WERROR}>:-Werror=all-warnings>>")

# Machine code for each capability, and PTX of the last. The compiler's front end runs once for each
# virtual architecture, which takes as long as the assembler. A portable file asks for 8.0 and no
# more, but for FP8 conversions (kernels/cuda/fp8.cuh), which have instructions from 8.9 on: so a
# file without them is made from the PTX of 8.0 alone, and one with them from that of 8.0 (8.0, 8.6)
# and of 8.9 (what comes after). A file that asks for more belongs in a folder of its own, see below.
function(tamis_cuda_codes result)
  set(codes "")
  foreach(arch ${TAMIS_CUDA_ARCHS})
    foreach(known ${ARGN})
      if(NOT arch LESS known)
        set(virtual ${known})
      endif()
    endforeach()
    list(APPEND codes "-gencode=arch=compute_${virtual},code=sm_${arch}")
  endforeach()
  list(APPEND codes "-gencode=arch=compute_${virtual},code=compute_${virtual}")
  set(${result} ${codes} PARENT_SCOPE)
endfunction()
tamis_cuda_codes(TAMIS_CUDA_CODES 80)
tamis_cuda_codes(TAMIS_CUDA_FP8_CODES 80 89)

# Sets `result` to whether `path` includes kernels/cuda/fp8.cuh, itself or through .cuh files.
function(tamis_includes_fp8 path result)
  set(found OFF)
  file(STRINGS "${path}" lines REGEX "^#include \"[^\"]+\\.cuh\"")
  foreach(line ${lines})
    string(REGEX REPLACE "^#include \"([^\"]+)\".*" "\\1" included "${line}")
    if(included STREQUAL "kernels/cuda/fp8.cuh")
      set(found ON)
    elseif(NOT found)
      tamis_includes_fp8("${PROJECT_SOURCE_DIR}/src/${included}" found)
    endif()
  endforeach()
  set(${result} ${found} PARENT_SCOPE)
endfunction()

# Takes the .cu files out of the list `sources` and makes a target of them alone, TARGET_device, so
# that they can be compiled without the rest; the list gets its objects instead. Files in folders
# named sm90 use instructions that Hopper alone has: they are compiled for sm_90a and nothing else,
# where 90 is asked for, and TAMIS_SM90 tells the others that they are there.
function(tamis_cuda_objects target sources)
  set(device ${${sources}})
  list(FILTER device INCLUDE REGEX "\\.cu$")
  if(NOT device)
    return()
  endif()
  set(hopper ${device})
  list(FILTER hopper INCLUDE REGEX "/sm90/")
  list(FILTER device EXCLUDE REGEX "/sm90/")
  add_library(${target}_device OBJECT ${device})
  foreach(source ${device})
    tamis_includes_fp8("${source}" fp8)
    if(fp8)
      set_source_files_properties("${source}" PROPERTIES COMPILE_OPTIONS "${TAMIS_CUDA_FP8_CODES}"
        COMPILE_DEFINITIONS TAMIS_CUDA_FP8)
    else()
      set_source_files_properties("${source}" PROPERTIES COMPILE_OPTIONS "${TAMIS_CUDA_CODES}")
    endif()
  endforeach()
  set(objects $<TARGET_OBJECTS:${target}_device>)
  if(hopper AND 90 IN_LIST TAMIS_CUDA_ARCHS)
    add_library(${target}_sm90 OBJECT ${hopper})
    target_compile_options(${target}_sm90 PRIVATE
      "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-gencode=arch=compute_90a,code=sm_90a>")
    target_compile_definitions(${target}_sm90 PRIVATE TAMIS_CUDA_FP8)
    target_compile_definitions(${target}_device PRIVATE TAMIS_SM90)
    add_dependencies(${target}_device ${target}_sm90)
    list(APPEND objects $<TARGET_OBJECTS:${target}_sm90>)
  endif()
  foreach(part ${target}_device ${target}_sm90)
    if(TARGET ${part})
      target_include_directories(${part} PRIVATE "${PROJECT_SOURCE_DIR}/src")
      target_link_libraries(${part} PRIVATE tamis_flags tamis_cuda_flags)
    endif()
  endforeach()
  set(host ${${sources}})
  list(FILTER host EXCLUDE REGEX "\\.cu$")
  set(${sources} ${host} ${objects} PARENT_SCOPE)
endfunction()

function(tamis_cuda_library target)
  target_link_libraries(${target} PRIVATE tamis_cuda_flags PUBLIC CUDA::cudart_static)
endfunction()

# A test binary that needs a GPU: built, and run by scripts/test-gpu, never by ctest.
function(tamis_cuda_test)
  cmake_parse_arguments(T "" "NAME" "SOURCES;DEPS;LIBS" ${ARGN})
  if(NOT TAMIS_TESTS OR NOT T_SOURCES)
    return()
  endif()
  add_executable(${T_NAME} ${T_SOURCES})
  target_include_directories(${T_NAME} PRIVATE "${PROJECT_SOURCE_DIR}/tests")
  target_compile_definitions(${T_NAME} PRIVATE TAMIS_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_link_libraries(${T_NAME} PRIVATE ${T_DEPS} ${T_LIBS} tamis_flags tamis_cuda_flags
    GTest::gtest GTest::gtest_main)
endfunction()
