#!/bin/sh
# Builds fence.bpf.o from fence.bpf.c.
#
#   build.sh          build in place
#   build.sh --check  build to a temporary file, fail when it differs from the committed object
#
# The source includes no header and no path gets into the object, so clang 14 (Debian 12) gives the same bytes
# everywhere. Another clang may give another, equally valid object: --check then says which one it used.
# CLANG and LLVM_STRIP choose other programs.
set -eu
cd "$(dirname "$0")"

clang=${CLANG:-clang}
strip=${LLVM_STRIP:-llvm-strip}

build() {
    # -g makes the BTF that the map definitions need; strip takes the DWARF away and leaves BTF. -mcpu=v1 runs
    # on every kernel and keeps the target independent of the compiler's default.
    "$clang" -target bpfel -mcpu=v1 -O2 -g -std=gnu11 -nostdinc -ffreestanding -Wall -Wextra -Werror \
        -fdebug-compilation-dir=. -c fence.bpf.c -o "$1"
    "$strip" -g "$1"
}

case "${1:-}" in
"")
    build fence.bpf.o
    ;;
--check)
    fresh=$(mktemp)
    trap 'rm -f "$fresh"' EXIT
    build "$fresh"
    if ! cmp "$fresh" fence.bpf.o; then
        echo "fence.bpf.o is not what fence.bpf.c gives with $("$clang" --version | head -n 1)." >&2
        echo "Run crates/vip-net/bpf/build.sh with clang 14 and commit the object." >&2
        exit 1
    fi
    ;;
*)
    echo "usage: build.sh [--check]" >&2
    exit 2
    ;;
esac
