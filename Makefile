# The commands of this project: a person types them, and CI runs the same ones (.ci/run calls `make test`).

.DEFAULT_GOAL := help
SHELL := bash
comma := ,
.PHONY: help setup demo test check unit snapshots explore bench bench-dataplane bench-updates bench-agent bench-source size instructions clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what the tests and the demo need (Debian: nftables, iproute2)
	@scripts/setup

demo: setup ## build a cluster of network namespaces, enforce policies in it, send real packets, show the outcome
	cargo run --locked --quiet -- demo

# One after the other, whatever MAKEFLAGS says: the tests need what setup installs.
.NOTPARALLEL:

test: setup check unit ## everything that CI runs

check: ## formatting, lints, documentation
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --quiet

# The property tests try the same cases every time; `make explore` and a plain `cargo test` try others.
unit snapshots: export PROPTEST_RNG_SEED ?= 1

# The tests serve on these addresses, which no proxy reaches. Whoever spells the variable one way only means both.
own := 127.0.0.1,::1
upper := $(or $(NO_PROXY),$(no_proxy))
lower := $(or $(no_proxy),$(NO_PROXY))
unit snapshots: export NO_PROXY := $(if $(upper),$(upper)$(comma))$(own)
unit snapshots: export no_proxy := $(if $(lower),$(lower)$(comma))$(own)

unit: ## all tests: unit, snapshot, property, and real packets in network namespaces
	INSTA_UPDATE=no cargo test --locked --workspace

snapshots: ## run the tests and accept what they now print (look at the difference before you commit it)
	INSTA_UPDATE=always cargo test --locked --workspace

MINUTES ?= 10
explore: ## run the property tests on other cases, for MINUTES or up to the first failure: make explore MINUTES=60
	@scripts/explore $(MINUTES)

bench: ## time the compiler against its budgets and a naive rival (docs/benchmarks.md); writes target/bench/compiler.json
	cargo bench --locked -p policy-compiler --bench compiler

bench-dataplane: setup ## time packets through a node beside the common encodings (root; docs/benchmarks.md); rewrites docs/dataplane.svg
	cargo bench --locked --bench dataplane

bench-updates: ## time each kind of update from the event to the kernel at 50,000 peers (root); writes target/bench/updates.json
	cargo bench --locked --bench updates

bench-agent: ## measure the whole agent at 50,000 pods: time to ready, event to kernel, CPU, memory (root); writes target/bench/agent.json
	cargo bench --locked --bench agent

bench-source: ## measure reading and following an API server at 50,000 pods
	cargo bench --locked --bench source

PODS ?= 50000
size: ## what a cluster of PODS pods costs an agent: make size PODS=20000
	cargo run --locked --release --quiet -p policy-compiler --features generate --example size -- $(PODS)

instructions: ## count the compiler's instructions under valgrind; fails when they have grown
	scripts/instructions

clean: ## remove what was built
	cargo clean
