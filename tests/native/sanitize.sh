#!/bin/sh
# Builds the C++ test of the kernels with each sanitizer and runs it.
set -e
root=$(cd "$(dirname "$0")/../.." && pwd)
for sanitizer in ${*:-address,undefined thread}; do
  build=$root/build/$(echo "$sanitizer" | tr , -)
  cmake -S "$root" -B "$build" -DJAXBN_TESTS=ON -DJAXBN_SANITIZE="$sanitizer"
  cmake --build "$build" --parallel
  "$build/kernel_test"
done
