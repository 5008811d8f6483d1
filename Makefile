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

export TAKO_VM_STATE_DIR = $(STATE)

.PHONY: help demo test bench compat soak deps build setup lint doc root clean

help:
	@echo "make demo    install what is missing, build, set up, and run real programs in sandboxes"
	@echo "make test    the same, and every check: format, lints, docs, unit, integration and root tests"
	@echo "make bench   latency against plain runsc and native Python, and 1,000 kills"
	@echo "make compat  CPython's own tests in a sandbox against the same natively: all but those of make test"
	@echo "make soak    the tests twenty times, and the benchmarks"
	@echo "state lies in $(STATE); change it with STATE=DIR"

demo: setup
	cargo run $(PROFILE_FLAGS) --quiet --example demo -- --tako-vm $(TAKO_VM)

test: root lint doc setup
	cargo test --locked --workspace -- --include-ignored

bench: setup
	cargo bench --locked --bench latency
	cargo bench --locked --bench pure

# An hour at most; the table is in the state directory as well, after each module.
compat: setup
	TAKO_VM_COMPAT=rest cargo test --locked --test compat -- --include-ignored --nocapture

soak: setup
	for round in $$(seq 20); do cargo test --locked --workspace -- --include-ignored || exit 1; done
	$(MAKE) bench

# A test that needs root must not be skipped for the lack of it.
root:
	@[ "$$(id -u)" = 0 ] || { echo "error: make test needs root: run it with sudo" >&2; exit 1; }

deps: root
	@missing=; for package in $(PACKAGES); do \
	  dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null | grep -qx installed \
	    || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
	  echo "installing the Debian packages:$$missing"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends $$missing; \
	fi

build: deps
	cargo build $(PROFILE_FLAGS)

setup: build
	$(TAKO_VM) setup

lint: deps
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --features tako-guest/init -- -D warnings

doc: deps
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items --quiet

clean:
	cargo clean
	rm -rf $(STATE)
