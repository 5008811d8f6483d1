# Everything that a fresh Debian machine with a Rust toolchain needs, in two targets: demo and test.
# Both need root: sandboxes do. Both can be repeated, and do again only what is missing.

# What root executes lies below directories of root's alone: in a clone of somebody else's, elsewhere.
STATE ?= $(shell directory='$(CURDIR)'; \
  while [ "$$(stat -c %u "$$directory")" = 0 ]; do \
    [ "$$directory" = / ] && { echo '$(CURDIR)/state'; exit; }; \
    directory=$$(dirname "$$directory"); \
  done; echo /var/lib/tako-vm)
PROFILE_FLAGS := --release --locked
TAKO_VM := target/release/tako-vm

# Headers to build with, and the tools that build the executor image.
PACKAGES := gcc libc6-dev libseccomp-dev pkg-config mmdebstrap erofs-utils
# What only the tests need: the runtimes of permissive mode, and one more to compare with; a client of the
# supervisor; file capabilities for an image that must not give any; a virtual machine and its disk; to
# apply the patches of mutants, to compile libFuzzer.
TEST_PACKAGES := runc crun bubblewrap python3 libcap2-bin qemu-system-x86 e2fsprogs patch g++
# Seconds of fuzzing for each target.
FUZZ_SECONDS ?= 20
FUZZ_TARGETS := frame image result spec wire
CARGO_FUZZ := target/tools/bin/cargo-fuzz

export TAKO_VM_STATE_DIR = $(STATE)

.PHONY: help demo test bench compat fuzz mutants soak queries deps test-deps build setup setup-data lint doc root clean

help:
	@echo "make demo    install what is missing, build, set up, and run real programs in sandboxes"
	@echo "make test    the same, and every check: format, lints, docs, unit, integration and root tests"
	@echo "make bench   latency, throughput and memory, against other ways to run Python, and 1,000 kills"
	@echo "make compat  CPython's own tests in a sandbox against the same natively: all but those of make test"
	@echo "make fuzz    every fuzz target for FUZZ_SECONDS ($(FUZZ_SECONDS))"
	@echo "make queries what PostgreSQL says of every query of the store, for builds without one"
	@echo "make mutants every control taken out once, and the test that must fail then"
	@echo "make soak    mutants, 10 minutes of each fuzz target, the tests twenty times, 10,000 jobs and"
	@echo "             100 deaths of the supervisor, benchmarks"
	@echo "state lies in $(STATE); change it with STATE=DIR"

demo: setup
	cargo run $(PROFILE_FLAGS) --quiet --example demo -- --tako-vm $(TAKO_VM)

test: root lint doc setup-data test-deps
	cargo test --locked --workspace -- --include-ignored

bench: setup-data test-deps
	$(TAKO_VM) bench --compare --jobs 300 --duration 60 --density 100
	cargo bench --locked --bench kill
	cargo bench --locked --bench queue
	cargo bench --locked --bench server
	cargo bench --locked --bench pure

# About an hour; the table is in the state directory as well, after each module.
compat: setup
	TAKO_VM_COMPAT=rest cargo test --locked --test compat -- --include-ignored --nocapture

# New inputs go below target; what a target fails on lies in fuzz/artifacts then. Images are unpacked in
# memory, since they are synced to disk a hundred times a second.
fuzz: deps test-deps $(CARGO_FUZZ)
	@for target in $(FUZZ_TARGETS); do \
	  echo "fuzz: $$target for $(FUZZ_SECONDS) s"; \
	  mkdir -p target/fuzz/corpus/$$target; \
	  TMPDIR=/dev/shm $(CARGO_FUZZ) run --sanitizer none --target-dir target/fuzz $$target \
	    target/fuzz/corpus/$$target fuzz/corpus/$$target \
	    -- -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
	    || exit 1; \
	done

# After a change of a query or of the schema.
queries: setup
	src/store/queries.sh

# Without sanitizers cargo-fuzz needs no nightly toolchain; what is fuzzed is safe Rust.
$(CARGO_FUZZ):
	cargo install cargo-fuzz@0.13.2 --locked --root target/tools

mutants: setup test-deps
	TAKO_VM_MUTANTS=all cargo test --locked --workspace --test mutants -- --include-ignored --nocapture

# What is most telling for its time comes first, and what must not be disturbed last.
soak: setup-data test-deps
	@echo "soak: mutants"
	$(MAKE) mutants
	@echo "soak: 10 minutes of each fuzz target"
	$(MAKE) fuzz FUZZ_SECONDS=600
	@for round in $$(seq 20); do \
	  echo "soak: round $$round of 20 of the tests, $$(date +%H:%M)"; \
	  cargo test --locked --workspace -- --include-ignored || exit 1; \
	done
	@echo "soak: 10,000 jobs of all kinds, 100 deaths of the supervisor"
	TAKO_VM_SOAK_JOBS=10000 TAKO_VM_SOAK_KILLS=100 \
	  cargo test --locked --test soak -- --include-ignored --nocapture --test-threads 1
	@echo "soak: faults, with an outage of five minutes"
	TAKO_VM_SOAK_OUTAGE_SECONDS=300 TAKO_VM_SOAK_LOAD_SECONDS=300 TAKO_VM_SOAK_REPLIES=5000 \
	  TAKO_VM_SOAK_CANCELS=10000 \
	  cargo test --locked --test faults -- --include-ignored --nocapture --test-threads 1
	@echo "soak: benchmarks"
	$(MAKE) bench

# A test that needs root must not be skipped for the lack of it.
root:
	@[ "$$(id -u)" = 0 ] || { echo "error: make test needs root: run it with sudo" >&2; exit 1; }

deps: root
	$(call install,$(PACKAGES))

test-deps: root
	$(call install,$(TEST_PACKAGES))

define install
	@missing=; for package in $(1); do \
	  dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null | grep -qx installed \
	    || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
	  echo "installing the Debian packages:$$missing"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends $$missing; \
	fi
endef

build: deps
	cargo build $(PROFILE_FLAGS)

setup: build
	$(TAKO_VM) setup

# The image `data` too, which is four times as large.
setup-data: build
	$(TAKO_VM) setup --image data

lint: deps
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --locked --workspace --all-targets --features tako-guest/init -- -D warnings

doc: deps
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items --quiet

clean:
	cargo clean
	rm -rf $(STATE)
