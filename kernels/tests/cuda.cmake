# ctest: what of the CUDA scan a machine without a GPU can check. The kernels' own code compiled by the C++ compiler and run
# by an emulation of the grid, the plan's arithmetic, and what the C ABI says to bad arguments and without a driver.
add_executable(cuda_tests
  tests/cuda_main.cpp
  tests/check.cpp
  tests/cuda_block.cpp
  tests/cuda_emulation.cpp
  tests/table.cpp
  tests/test_cuda_api.cpp
  tests/test_cuda_conversions.cpp
  tests/test_cuda_emulation.cpp
  tests/test_cuda_plan.cpp
  tests/case.cpp
  src/arguments.cpp
  src/cuda_arguments.cpp
  src/cuda_plan.cpp)
target_include_directories(cuda_tests PRIVATE src)
target_link_libraries(cuda_tests PRIVATE edgemamba Threads::Threads)
edgemamba_strict(cuda_tests)
foreach(what emulation barriers conversions plan api)
  add_test(NAME cuda_${what} COMMAND cuda_tests ${what})
  set_tests_properties(cuda_${what} PROPERTIES TIMEOUT 300)
endforeach()
