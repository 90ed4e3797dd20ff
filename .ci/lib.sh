# Shared by ./quickstart, ./test and .ci/run: finds, or installs as root on Debian, what they need.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# libunwind links only so on Debian 12; the referee's tests need it.
export LIBUNWIND_PTRACE_STATIC=1

say() { printf '\n== %s\n' "$*" >&2; }

# install PACKAGE...: by apt when root; else says the command and ends the script.
install() {
    if ! command -v apt-get >/dev/null; then
        echo "These are missing, under their Debian names: $*. Please install them and run this again." >&2
        exit 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        echo "Some programs are missing. Please run this, and then the script again:" >&2
        echo "    sudo apt-get update && sudo apt-get install -y --no-install-recommends $*" >&2
        exit 1
    fi
    say "installing $*"
    apt-get update -qq
    # Servers are for the tests to start: their packages must not. A rule that is there already stays.
    local rule=/usr/sbin/policy-rc.d failed=0
    if [ -e "$rule" ]; then
        rule=
    else
        printf '#!/bin/sh\nexit 101\n' >"$rule"
        chmod +x "$rule"
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null || failed=1
    [ -z "$rule" ] || rm "$rule"
    return "$failed"
}

# True if the first version is at least the second.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

rust_is_good() {
    local have want
    command -v cargo >/dev/null || return 1
    have=$(rustc --version 2>/dev/null | awk '{ print $2 }') || return 1
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    at_least "${have:-0}" "$want"
}

# needs WHAT...: makes sure that all of it is here. "rust" and "c" are the compilers, "test" and "lint"
# the programs that the tests record and the checks run.
needs() {
    local missing=() what
    for what in "$@"; do
        case $what in
            rust) rust_is_good || missing+=(cargo-web rustc-web ca-certificates) ;;
            c)
                command -v gcc >/dev/null || missing+=(gcc)
                [ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
                ;;
            test)
                /usr/bin/python3 -c 'import numpy' 2>/dev/null || missing+=(python3 python3-numpy)
                command -v node >/dev/null || missing+=(nodejs)
                command -v javac >/dev/null || missing+=(default-jdk-headless)
                command -v sqlite3 >/dev/null || missing+=(sqlite3)
                command -v redis-benchmark >/dev/null && command -v redis-server >/dev/null ||
                    missing+=(redis-server)
                compgen -G '/usr/lib/postgresql/*/bin/pgbench' >/dev/null ||
                    command -v initdb >/dev/null || missing+=(postgresql)
                command -v strace >/dev/null || missing+=(strace)
                command -v gdb >/dev/null || missing+=(gdb)
                command -v objdump >/dev/null || missing+=(binutils)
                command -v taskset >/dev/null || missing+=(util-linux)
                command -v awk >/dev/null || missing+=(mawk)
                # For the referee of our stacks, and what it looks at.
                [ -e /usr/include/libunwind-ptrace.h ] || compgen -G '/usr/include/*/libunwind-ptrace.h' >/dev/null ||
                    missing+=(libunwind-dev)
                [ -e /usr/include/lzma.h ] || missing+=(liblzma-dev)
                command -v pkg-config >/dev/null || missing+=(pkg-config)
                command -v g++ >/dev/null || missing+=(g++)
                command -v musl-gcc >/dev/null || missing+=(musl-tools)
                command -v go >/dev/null || missing+=(golang-go)
                command -v openssl >/dev/null || missing+=(openssl)
                command -v dwz >/dev/null || missing+=(dwz)
                ;;
            lint)
                command -v shellcheck >/dev/null || missing+=(shellcheck)
                if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
                    if command -v rustup >/dev/null; then
                        rustup component add rustfmt clippy
                    else
                        missing+=(rustfmt-web rust-web-clippy)
                    fi
                fi
                ;;
        esac
    done
    if [ ${#missing[@]} -gt 0 ]; then
        install "${missing[@]}"
    fi
    hash -r
    if ! rust_is_good; then
        echo "A newer Rust is needed than the $(rustc --version 2>/dev/null) that is first in PATH." >&2
        echo "Please update it (with rustup: rustup update stable) and run this again." >&2
        exit 1
    fi
}
