# Compiler settings of every target, and the functions that declare a folder:
#   tamis_library(NAME base DEPS ... LIBS ...)   one folder = one static library + its tests
#   tamis_test(NAME x SOURCES ... DEPS ... LABELS ...)
# and tamis_mpi_test(NAME x RANKS n COMMAND ...) for a test under mpirun.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

find_program(TAMIS_CCACHE ccache)
if(TAMIS_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${TAMIS_CCACHE}")
endif()

find_package(Threads REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(Boost 1.81 REQUIRED)  # headers: Asio and Beast
find_package(OpenSSL REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(HWY REQUIRED IMPORTED_TARGET libhwy)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(TOMLPP REQUIRED IMPORTED_TARGET tomlplusplus)
# TAMIS_MPI_FOUND chooses between comm/mpi.cpp and comm/no_mpi.cpp.
set(TAMIS_MPI_FOUND OFF)
if(TAMIS_MPI)
  set(MPI_CXX_SKIP_MPICXX ON)
  find_package(MPI COMPONENTS CXX QUIET)
  set(TAMIS_MPI_FOUND ${MPI_CXX_FOUND})
endif()
if(NOT TAMIS_MPI_FOUND)
  message(STATUS "No MPI (TAMIS_MPI=${TAMIS_MPI}): one process only, no tests under mpirun")
endif()
# TAMIS_NCCL_INCLUDE chooses between comm/nccl.cpp and comm/no_nccl.cpp.
set(TAMIS_NCCL_INCLUDE "")
if(TAMIS_CUDA)
  include(TamisCuda)
  find_path(TAMIS_NCCL_HEADER nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
  if(TAMIS_NCCL_HEADER)
    set(TAMIS_NCCL_INCLUDE "${TAMIS_NCCL_HEADER}")
  else()
    message(STATUS "No NCCL (nccl.h): training runs on one GPU")
  endif()
endif()
if(TAMIS_TESTS)
  find_package(GTest REQUIRED)
  find_path(RAPIDCHECK_INCLUDE rapidcheck.h REQUIRED)
  find_library(RAPIDCHECK_LIBRARY rapidcheck REQUIRED)
  enable_testing()
  include(GoogleTest)
endif()
if(TAMIS_BENCH)
  find_package(benchmark REQUIRED)
endif()

add_library(tamis_flags INTERFACE)
target_include_directories(tamis_flags INTERFACE "${PROJECT_SOURCE_DIR}/src")
# -ffp-contract=off: the compiler may not fuse a*b+c on its own, so that a reference and a fast
# version round where their source says they do. Fused operations are written as such.
set(TAMIS_CXX_FLAGS -Wall -Wextra -Wpedantic $<$<BOOL:${TAMIS_WERROR}>:-Werror> -Wshadow
  -Wnon-virtual-dtor -Wimplicit-fallthrough -ffp-contract=off)
target_compile_options(tamis_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${TAMIS_CXX_FLAGS}>")
# GCC 12 warns of overlapping copies in "text" + std::string at -O3, where there are none:
# https://gcc.gnu.org/bugzilla/show_bug.cgi?id=105651. Goes when GCC 12 is no longer supported.
target_compile_options(tamis_flags INTERFACE
  "$<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release>,$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-restrict>")
target_link_libraries(tamis_flags INTERFACE Threads::Threads)
if(TAMIS_SANITIZE)
  target_compile_options(tamis_flags INTERFACE -fsanitize=${TAMIS_SANITIZE}
    -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(tamis_flags INTERFACE -fsanitize=${TAMIS_SANITIZE})
endif()

# The sources of this folder and below, split by role: x.cpp, x.cu, x_test.cpp, x_bench.cpp, and
# x_cuda_test.cpp, which needs a GPU.
macro(tamis_glob_sources)
  file(GLOB_RECURSE _all CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/*.cpp"
    "${CMAKE_CURRENT_SOURCE_DIR}/*.cu")
  # cuda/no_cuda.cpp stands for everything else in cuda/ and for every .cu file.
  if(TAMIS_CUDA)
    list(FILTER _all EXCLUDE REGEX "/cuda/no_cuda\\.cpp$")
  else()
    file(GLOB _device CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/cuda/*.cpp")
    list(FILTER _device EXCLUDE REGEX "/no_cuda\\.cpp$")
    list(REMOVE_ITEM _all ${_device} "")
    list(FILTER _all EXCLUDE REGEX "\\.cu$|_cuda_test\\.cpp$")
  endif()
  set(_cuda_tests ${_all})
  list(FILTER _cuda_tests INCLUDE REGEX "_cuda_test\\.(cpp|cu)$")
  list(FILTER _all EXCLUDE REGEX "_cuda_test\\.(cpp|cu)$")
  set(_tests ${_all})
  list(FILTER _tests INCLUDE REGEX "_test\\.cpp$")
  set(_benches ${_all})
  list(FILTER _benches INCLUDE REGEX "_bench\\.cpp$")
  set(_sources ${_all})
  list(FILTER _sources EXCLUDE REGEX "_(test|bench)\\.cpp$")
endmacro()

function(tamis_test)
  cmake_parse_arguments(T "" "NAME;LABEL" "SOURCES;DEPS;LIBS" ${ARGN})
  if(NOT TAMIS_TESTS OR NOT T_SOURCES)
    return()
  endif()
  if(NOT T_LABEL)
    set(T_LABEL unit)
  endif()
  add_executable(${T_NAME} ${T_SOURCES})
  target_include_directories(${T_NAME} PRIVATE "${RAPIDCHECK_INCLUDE}" "${PROJECT_SOURCE_DIR}/tests")
  target_compile_definitions(${T_NAME} PRIVATE TAMIS_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_link_libraries(${T_NAME} PRIVATE ${T_DEPS} ${T_LIBS} tamis_flags
    GTest::gtest GTest::gtest_main "${RAPIDCHECK_LIBRARY}")
  # One ctest entry a binary: GoogleTest's own output names the case that failed.
  add_test(NAME ${T_NAME} COMMAND ${T_NAME})
  set(_timeout 600)
  if(TAMIS_SANITIZE MATCHES "thread")
    set(_timeout 3600)
  endif()
  set_tests_properties(${T_NAME} PROPERTIES LABELS "${T_LABEL}" TIMEOUT ${_timeout})
endfunction()

# The ctest entry NAME_RANKS: COMMAND (a target or a program, and its arguments) on RANKS ranks, in
# label dist. It passes when mpirun exits with 0; with FAILS_WITH "text", when mpirun exits with
# something else within 10 s and "text" is in the output. No entry without MPI.
function(tamis_mpi_test)
  cmake_parse_arguments(T "" "NAME;RANKS;FAILS_WITH" "COMMAND" ${ARGN})
  if(NOT TAMIS_TESTS OR NOT TAMIS_MPI_FOUND)
    return()
  endif()
  # ThreadSanitizer does not understand the library's own locks.
  if(TAMIS_SANITIZE MATCHES "thread")
    return()
  endif()
  list(POP_FRONT T_COMMAND program)
  if(TARGET ${program})
    set(program "$<TARGET_FILE:${program}>")
  endif()
  set(expect "")
  if(T_FAILS_WITH)
    set(expect "${PROJECT_SOURCE_DIR}/tests/dist/expect_failure" 10 "${T_FAILS_WITH}")
  endif()
  set(name "${T_NAME}_${T_RANKS}")
  add_test(NAME ${name} COMMAND ${expect} "${MPIEXEC_EXECUTABLE}" ${MPIEXEC_NUMPROC_FLAG}
    ${T_RANKS} "${program}" ${T_COMMAND})
  # The variables of Open MPI for: root may run (containers), more ranks than cores, ranks not tied
  # to one core each, and no copying between processes by a system call that containers refuse;
  # without that call, messages in pieces of 1 MiB, as each piece waits for the other rank's turn.
  # Leaks: Open MPI keeps its tables until the end.
  set_tests_properties(${name} PROPERTIES LABELS dist TIMEOUT 120 PROCESSORS ${T_RANKS}
    ENVIRONMENT "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1;\
OMPI_MCA_rmaps_base_oversubscribe=1;OMPI_MCA_hwloc_base_binding_policy=none;\
OMPI_MCA_btl_vader_single_copy_mechanism=none;OMPI_MCA_btl_vader_max_send_size=1048576;\
ASAN_OPTIONS=detect_leaks=0")
endfunction()

function(tamis_library)
  cmake_parse_arguments(T "" "NAME" "DEPS;LIBS;EXCLUDE" ${ARGN})
  tamis_glob_sources()
  foreach(pattern ${T_EXCLUDE})
    list(FILTER _sources EXCLUDE REGEX "${pattern}")
  endforeach()
  set(_deps "")
  foreach(dep ${T_DEPS})
    list(APPEND _deps tamis_${dep})
  endforeach()
  if(TAMIS_CUDA)
    tamis_cuda_objects(tamis_${T_NAME} _sources)
  endif()
  add_library(tamis_${T_NAME} STATIC ${_sources})
  target_link_libraries(tamis_${T_NAME} PUBLIC ${_deps} PRIVATE tamis_flags ${T_LIBS})
  if(TAMIS_CUDA)
    tamis_cuda_library(tamis_${T_NAME})
    tamis_cuda_test(NAME ${T_NAME}_cuda_test SOURCES ${_cuda_tests} DEPS tamis_${T_NAME}
      LIBS ${T_LIBS})
  endif()
  if(TAMIS_FUZZ)
    target_compile_options(tamis_${T_NAME} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
  target_include_directories(tamis_${T_NAME} PUBLIC "${PROJECT_SOURCE_DIR}/src")
  tamis_test(NAME ${T_NAME}_test SOURCES ${_tests} DEPS tamis_${T_NAME} LIBS ${T_LIBS})
  if(TAMIS_BENCH AND _benches)
    add_executable(${T_NAME}_bench ${_benches})
    target_include_directories(${T_NAME}_bench PRIVATE "${PROJECT_SOURCE_DIR}")
    target_link_libraries(${T_NAME}_bench PRIVATE tamis_${T_NAME} tamis_flags ${T_LIBS}
      benchmark::benchmark benchmark::benchmark_main)
  endif()
endfunction()
