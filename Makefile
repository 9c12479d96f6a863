# Everything that a developer does often. `make` alone says what there is.
.DEFAULT_GOAL := help
CARGO ?= cargo

.PHONY: help setup run build test check check-packaging deb fuzz bench bench-peers clean

help: ## Says what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Installs what is missing for building and testing
	scripts/setup

run: ## The demo: a gateway, two Hive nodes, and commands to try (ARGS="--port 0")
	scripts/setup --build
	$(CARGO) run --locked -- demo $(ARGS)

build: ## The gateway as it is shipped: target/release/hive-gateway
	$(CARGO) build --release --locked

test: setup ## Every test: units, the whole gateway on real sockets, the A2A SDK, examples in the documentation
	$(CARGO) test --locked --features waf

check: ## Format, lints, documentation, dependencies
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --all-targets --features waf -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --locked --no-deps --document-private-items
	scripts/audit

fuzz: ## The JSON-RPC scanner against what nobody thought of, for SECONDS=60; needs cargo-fuzz and a nightly compiler
	mkdir -p tests/fuzz/corpus/scan
	$(CARGO) +nightly fuzz run --fuzz-dir tests/fuzz scan tests/fuzz/corpus/scan tests/fuzz/seeds/scan -- \
		-max_total_time=$(or $(SECONDS),60) -timeout=10 -rss_limit_mb=2048

check-packaging: ## The Helm chart and the Dockerfile, with tools that weigh 400 MB
	scripts/check-packaging

deb: build ## A Debian package in target/debian (installs cargo-deb into target/tools if it is missing)
	target/release/hive-gateway extras target/package
	command -v cargo-deb >/dev/null || test -x target/tools/bin/cargo-deb || $(CARGO) install --locked --root target/tools cargo-deb
	PATH="$(CURDIR)/target/tools/bin:$$PATH" $(CARGO) deb --no-build

bench: ## Hot functions by criterion, load on a whole gateway, instructions (fails if 5 % more); leave the machine alone
	$(CARGO) bench --locked
	scripts/growth

bench-peers: ## Processor time beside the nginx and HAProxy that Debian installs
	$(CARGO) bench --locked --bench peers

clean: ## Removes what was built
	$(CARGO) clean
