# One target for each thing that a person or CI does with this repository. `make` alone lists them.
#
# Every cargo command for the tests takes the whole workspace, and picks targets by kind or name, never packages; and
# what is built is built together with the tests, whose dependencies switch on features of other crates. So all
# commands resolve the same features, and each dependency is compiled once (and once more without code generation, for
# clippy and rustdoc).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# The tests in namespaces measure times, and cargo runs its own jobs.
.NOTPARALLEL:

CARGO ?= cargo
ALL := --workspace --locked
# ip, tc and nft are there for everybody, but not in everybody's path.
export PATH := $(PATH):/usr/sbin:/sbin

# Every file of tests that is not part of a library or program belongs to one of these (tests/tests/tidy.rs checks it):
# those that lay out hosts of their own, and so run one after the other and after everything else, and the rest.
TESTS := storage cli tidy config_check version
TESTS_ON_HOSTS := address carried fence monitor oracle runner cluster netns
# Needs Python and what it gets from PyPI, too.
TESTS_OF_EXAMPLES := example_python
# A workspace of its own, so that the rules that it takes out can be taken out of nothing else.
SIMULATION := --locked --manifest-path tests/simulation/Cargo.toml

# $(call step,WHAT,COMMAND): says what it does, and how long that took.
define step
	@echo; echo "=== $(1): $(subst ",\",$(2))"; started=$$SECONDS; $(2); echo "=== $(1): done in $$((SECONDS - started)) s"
endef

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build vipd, vipctl and vip-lab for use (target/release)
	$(CARGO) build --release --locked -p vipd -p vipctl -p vip-lab

.PHONY: deb
deb: ## Build the Debian package of vipd and vipctl (target/debian)
	packaging/build-deb

.PHONY: test-deb
test-deb: deb ## Install, start, upgrade, remove and purge the package; needs root, and debootstrap or apt
	@command -v debootstrap >/dev/null || [ "$$(id -u)" != 0 ] \
		|| { apt-get update -q && apt-get install -qy --no-install-recommends debootstrap; } \
		|| echo '=== packages: debootstrap cannot be installed' >&2
	$(call step,packages,tests/packaging/run)

.PHONY: test
test: deps fmt-check lint doc fence-check build-dev test-units test-simulation test-hosts ## The tests; those on hosts in namespaces need root

.PHONY: demo
demo: deps build ## Watch a VIP survive four faults in network namespaces; needs root
	target/release/vip-lab demo

# Debian's package and the libraries that it needs and that are not here are unpacked below target. Nothing is installed,
# so nothing is started either: keepalived runs in the laboratory only.
KEEPALIVED := target/keepalived
TRIALS ?= 30

.PHONY: bench
bench: deps build ## Measure vipd beside keepalived (TRIALS=30) for docs/benchmarks.md; needs root, apt and half an hour
	@if ! [ -x $(KEEPALIVED)/unpacked/usr/sbin/keepalived ] && ! [ -x /usr/sbin/keepalived ]; then \
		echo "=== bench: unpacking keepalived below $(KEEPALIVED)"; \
		rm -rf $(KEEPALIVED); mkdir -p $(KEEPALIVED)/archives/partial; \
		apt-get update -q; \
		apt-get install -qy --no-install-recommends --download-only \
			-o Dir::Cache::archives=$(CURDIR)/$(KEEPALIVED)/archives keepalived; \
		for deb in $(KEEPALIVED)/archives/*.deb; do dpkg -x "$$deb" $(KEEPALIVED)/new; done; \
		mv $(KEEPALIVED)/new $(KEEPALIVED)/unpacked; \
	fi
	target/release/vip-lab bench --trials $(TRIALS) --json target/bench.json --markdown docs/benchmarks.md

.PHONY: fmt
fmt: ## Format the code
	$(CARGO) fmt --all
	$(CARGO) fmt --manifest-path tests/simulation/Cargo.toml

.PHONY: fmt-check
fmt-check: ## Check the format
	$(call step,format,$(CARGO) fmt --all --check && $(CARGO) fmt --manifest-path tests/simulation/Cargo.toml --check)

.PHONY: lint
lint: ## Clippy; a warning is an error
	$(call step,clippy,$(CARGO) clippy $(ALL) --all-targets --keep-going -- -D warnings)
	$(call step,clippy of the simulation,$(CARGO) clippy $(SIMULATION) --all-targets -- -D warnings)

.PHONY: doc
doc: ## Build the documentation of the code; a warning is an error
	$(call step,rustdoc,RUSTDOCFLAGS='-D warnings' $(CARGO) doc $(ALL) --no-deps --document-private-items)

.PHONY: fence-check
fence-check: ## Compile the kernel fence and compare it with the committed object
	$(call step,fence object,crates/vip-net/bpf/build.sh --check)

.PHONY: build-dev
build-dev: ## Build programs and tests (target/debug)
	$(call step,build,$(CARGO) build $(ALL) --all-targets)

.PHONY: test-units
test-units: ## Unit and property tests, storage suite, rules of the repository
	$(call step,unit tests,$(CARGO) test $(ALL) --no-fail-fast --lib --bins $(addprefix --test ,$(TESTS)))
	$(call step,examples in the documentation,$(CARGO) test $(ALL) --doc)

.PHONY: test-hosts
test-hosts: ## Tests on hosts in network namespaces, with real daemons; needs root
	$(call step,tests on hosts,$(CARGO) test $(ALL) --no-fail-fast $(addprefix --test ,$(TESTS_ON_HOSTS)) -- --test-threads=1)

.PHONY: test-simulation
test-simulation: ## A cluster in simulated time: thousands of seeds, and each rule taken out
	$(call step,simulation,$(CARGO) test $(SIMULATION))

.PHONY: test-examples
test-examples: deps ## The examples against a live cluster; needs root, Python and PyPI
	$(call step,examples,$(CARGO) test $(ALL) --no-fail-fast $(addprefix --test ,$(TESTS_OF_EXAMPLES)) -- --test-threads=1)

.PHONY: test-fuzz
test-fuzz: deps ## Build the fuzz targets, and run each over its corpus once
	$(call step,fuzz targets,fuzz/run --replay)

.PHONY: test-compose
test-compose: deps build-dev ## The laboratory in containers, through every partition; needs root, and an engine or apt
	$(call step,compose,tests/compose/run)

.PHONY: bench-compose
bench-compose: deps build ## Measure vipd in containers (TRIALS=30) for docs/benchmarks.md; needs root, and an engine or apt
	VIPD_LAB_PROGRAMS=target/release docker/lab up
	docker/lab bench --trials $(TRIALS) --markdown docs/benchmarks.md || { docker/lab down; exit 1; }
	docker/lab down

SECONDS ?= 60
PROFILE ?= default

.PHONY: steady
steady: SECONDS := 1800
steady: deps build ## Half an hour (SECONDS=1800) of PROFILE=default|fast beside two endless loops a processor: no owner may change; needs root
	target/release/vip-lab run steady --profile $(PROFILE) --vips 10 --seconds $(SECONDS) --busy-loops 2

.PHONY: soak
soak: ## Simulate on all cores for SECONDS (60), with seeds never tried
	$(CARGO) run $(SIMULATION) -- --seconds $(SECONDS)

FENCE ?= bpf

.PHONY: faults
faults: deps ## Every fault on the real kernel, TRIALS times (30) with random details and FENCE=bpf|nftables; needs root
	VIPD_FAULT_TRIALS=$(TRIALS) VIPD_FAULT_FENCE=$(FENCE) $(CARGO) test $(ALL) --test netns -- --ignored --nocapture --test-threads=1 campaign every_kill_point

# A package for each command that is missing; nothing is asked of the network when none is.
NEEDED := clang:clang llvm-strip:llvm ip:iproute2 tc:iproute2 nft:nftables nsenter:util-linux mount:mount \
	arping:iputils-arping git:git cc:gcc c++:g++ python3:python3 mkfs.ext4:e2fsprogs

.PHONY: deps
deps: ## Install the Debian packages that are missing
	@missing=; \
	for pair in $(NEEDED); do \
		command -v "$${pair%%:*}" >/dev/null || missing+=" $${pair#*:}"; \
	done; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" != 0 ]; then echo "Missing packages. As root: apt-get install$$missing" >&2; exit 1; fi; \
		echo "=== deps: installing$$missing"; \
		apt-get update -q && apt-get install -qy --no-install-recommends $$missing; \
	fi; \
	for tool in fmt clippy; do \
		$(CARGO) $$tool --version >/dev/null 2>&1 \
			|| { echo "cargo $$tool is missing: rustup component add rustfmt clippy" >&2; exit 1; }; \
	done

.PHONY: clean
clean: ## Remove what was built, and what killed laboratories left behind
	@[ ! -x target/release/vip-lab ] || target/release/vip-lab clean
	$(CARGO) clean
