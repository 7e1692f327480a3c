# What people and CI call; every target may be run at any time and in any order. `make test` needs root: it starts daemons and containers.

CARGO ?= cargo
HOST := $(shell rustc --print host-tuple)
export BETA9_SHIM ?= $(CURDIR)/target/$(HOST)/release/containerd-shim-beta9-v2

.PHONY: all demo test bench lint clean

all:
	$(CARGO) build --quiet --release

test: all
	tests/lab/fetch.sh $(LAB_PACKAGES)
	$(CARGO) test --quiet --lib --bins
	$(CARGO) test --quiet --test it -- --format pretty

bench: all
	tests/lab/fetch.sh $(LAB_PACKAGES)
	$(CARGO) bench --quiet --profile dev --bench side_by_side -- --write docs/performance.md

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --quiet --all-targets -- -D warnings
	sh -n tests/lab/fetch.sh
	sh -n tests/fake/runtime.sh

clean:
	$(CARGO) clean

demo: all
	@demo/run.sh
