# What people and CI call; every target may be run at any time and in any order. `make test` needs root: it starts daemons and containers.

CARGO ?= cargo
HOST := $(shell rustc --print host-tuple)
TOOLS := $(CURDIR)/target/tools
# How long each fuzz target runs, and which.
FUZZ_SECONDS ?= 10
FUZZ_TARGETS ?= $(basename $(notdir $(wildcard fuzz/targets/*.rs)))
export BETA9_SHIM ?= $(CURDIR)/target/$(HOST)/release/containerd-shim-beta9-v2

.PHONY: all demo test test-v2 bench fuzz lint clean

all:
	$(CARGO) build --quiet --release

test: all
	tests/lab/fetch.sh $(LAB_PACKAGES)
	$(CARGO) test --quiet --lib --bins
	$(CARGO) test --quiet --test it -- --format pretty
	tests/lab/v2/test.sh

# The part of `make test` that runs on cgroup v2, in a guest.
test-v2: all
	tests/lab/fetch.sh $(LAB_PACKAGES)
	tests/lab/v2/test.sh

bench: all
	tests/lab/fetch.sh $(LAB_PACKAGES)
	$(CARGO) bench --quiet --profile dev --bench side_by_side -- --write docs/performance.md

# Each target from the corpus of the runs before; `make fuzz FUZZ_TARGETS=rpc FUZZ_SECONDS=600` for one alone.
# The sanitizer is an unstable option, which the stable compiler takes with RUSTC_BOOTSTRAP.
fuzz: export RUSTC_BOOTSTRAP = 1
fuzz: export PATH := $(TOOLS)/bin:$(PATH)
fuzz: $(TOOLS)/bin/cargo-fuzz
	$(CARGO) fuzz build --target-dir target/fuzz
	@set -e; for target in $(FUZZ_TARGETS); do \
		echo "fuzzing $$target for $(FUZZ_SECONDS) s"; \
		mkdir -p target/corpus/$$target; \
		$(CARGO) fuzz run --target-dir target/fuzz $$target target/corpus/$$target config -- \
			-max_total_time=$(FUZZ_SECONDS) -dict=fuzz/words.dict -timeout=10 -verbosity=0 -print_final_stats=1; \
	done

$(TOOLS)/bin/cargo-fuzz:
	$(CARGO) install cargo-fuzz --locked --root $(TOOLS)

# cargo-deny takes minutes to build, so it is not asked for: where it is installed (in PATH or target/tools), all but the
# advisories is checked, which need their database: `cargo deny check` checks all of deny.toml.
lint: export PATH := $(TOOLS)/bin:$(PATH)
lint:
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --quiet --all-targets -- -D warnings
	$(CARGO) clippy --quiet --manifest-path fuzz/Cargo.toml --target-dir target/fuzz -- -D warnings
	@if command -v cargo-deny > /dev/null; then $(CARGO) deny --locked --log-level error check licenses bans sources; \
	else echo "cargo-deny is not installed: licenses, bans and sources are not checked"; fi
	for script in tests/lab/*.sh tests/lab/v2/*.sh; do sh -n $$script || exit; done
	sh -n tests/fake/runsc.sh
	sh -n tests/fake/runtime.sh
	bash -n demo/run.sh

clean:
	$(CARGO) clean

demo: all
	@demo/run.sh
