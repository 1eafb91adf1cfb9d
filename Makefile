# Every target is thin: the work is in `cargo xtask` (crates/xtask) and in scripts/setup.
#
#   make run      install what is missing, build, and open a sandbox on this repository
#   make test     everything: format, lints, unit, in-process and VM tests
#   make check    the fast half of it: no VM, no root
#   make build    the host programs and the guest's init, optimised
#   make install  the programs to PREFIX (default ~/.local) and the Docker CLI plugin
#   make bench    the measurements of docs/benchmarks.md
#   make fuzz     each fuzz target for FUZZ_SECONDS (default 30); a finding fails it and is kept in fuzz/findings
#   make clean    what was built

PREFIX ?= $(HOME)/.local
FUZZ_SECONDS ?= 30
XTASK := scripts/cargo run --quiet --package xtask --

.PHONY: run test check build install bench fuzz clean deny

run:
	@scripts/setup run
	@$(XTASK) run --prefix "$(PREFIX)"

test:
	@scripts/setup test
	@$(XTASK) test

check:
	@scripts/setup build
	@$(XTASK) check

build:
	@scripts/setup build
	@$(XTASK) build

install:
	@scripts/setup run
	@$(XTASK) install --prefix "$(PREFIX)"

bench:
	@scripts/setup bench
	@$(XTASK) bench

fuzz:
	@scripts/setup build
	@fuzz/run all $(FUZZ_SECONDS)

deny:
	@$(XTASK) deny

clean:
	@scripts/cargo clean
