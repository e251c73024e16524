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
TESTS := storage cli tidy config_check
TESTS_ON_HOSTS := address carried fence monitor oracle runner cluster

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

.PHONY: test
test: deps fmt-check lint doc fence-check build-dev test-units test-hosts ## Everything that CI checks; the tests on hosts in namespaces need root

.PHONY: demo
demo: deps build ## Watch a VIP survive four faults in network namespaces; needs root
	target/release/vip-lab demo

.PHONY: fmt
fmt: ## Format the code
	$(CARGO) fmt --all

.PHONY: fmt-check
fmt-check: ## Check the format
	$(call step,format,$(CARGO) fmt --all --check)

.PHONY: lint
lint: ## Clippy; a warning is an error
	$(call step,clippy,$(CARGO) clippy $(ALL) --all-targets --keep-going -- -D warnings)

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

# A package for each command that is missing; nothing is asked of the network when none is.
NEEDED := clang:clang llvm-strip:llvm ip:iproute2 tc:iproute2 nft:nftables nsenter:util-linux mount:mount \
	arping:iputils-arping git:git cc:gcc

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
