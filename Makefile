# `make help` says what there is.

.PHONY: help run build plugins test lint bench bench-quick bench-tools faults fuzz
.DEFAULT_GOAL := help

# What `make run` makes; git does not see it.
SCRATCH := $(CURDIR)/.run

help:
	@echo 'make run       build, and start the mirror with the example plugins in ./.run'
	@echo 'make test      bring what the tests need, build, and run all tests'
	@echo 'make plugins   build the plugins into plugins/dist'
	@echo 'make build     build the program: target/release/tidegate'
	@echo 'make lint      check the format, and what clippy says'
	@echo 'make faults    kill, reset, crowd and soak it for an hour: SOAK_SECONDS=60 and CHANGES=100 shorten, RUNS="kills soak" chooses'
	@echo 'make fuzz      fuzz every parser for a minute each: FUZZ_SECONDS, TARGETS="endpoint range"'
	@echo 'make bench     measure it beside nginx, docker-registry and Varnish: ROWS="manifest blob" chooses, ROUNDS=2 shortens'
	@echo 'make bench-quick  the same in two minutes'

build:
	cargo build --release --locked -p tidegate

plugins:
	plugins/build

test:
	.ci/setup
	plugins/build
	cargo build --release --locked -p tidegate
	# Most tests wait for somebody else: more of them at once than there are processors.
	RUST_TEST_THREADS=4 cargo test --release --workspace --locked
	cd plugins && cargo test --locked

lint:
	@cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	@cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets --locked -- -D warnings
	cd plugins && cargo fmt --all --check
	cd plugins && cargo clippy --release --workspace --all-targets --locked -- -D warnings

faults: build
	TIDEGATE_BIN='$(CURDIR)/target/release/tidegate' cargo run --release --locked -p tidegate-tests --bin faults -- $(RUNS)
	TIDEGATE_FAULTS=long TIDEGATE_BIN='$(CURDIR)/target/release/tidegate' \
	    cargo test --release --locked -p tidegate-tests --test e2e -- d3_kills_during --nocapture

# Instruments need a compiler that is told to have them; sanitizers find nothing in a program without unsafe code of its own.
fuzz:
	@cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
	@cd tests/fuzz && for target in $${TARGETS:-$$(ls targets | sed 's/[.]rs$$//')}; do \
	    mkdir -p "found/$$target"; \
	    RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir . --sanitizer none "$$target" "found/$$target" "corpus/$$target" \
	        -- -max_total_time=$${FUZZ_SECONDS:-60} -max_len=4096 -timeout=5 -print_final_stats=1 || exit 1; \
	done

# With TIDEGATE_BIN that program is measured, and nothing is built but the benchmark. What it needs lies in a folder that
# goes with it, however it ends; TMPDIR says on which disk.
BENCH = cargo build --release --locked -p tidegate-tests --bin bench && \
    folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && trap 'exit 1' INT TERM && \
    TMPDIR="$$folder" TIDEGATE_BIN="$${TIDEGATE_BIN:-$(CURDIR)/target/release/tidegate}" target/release/bench

bench-tools:
	@.ci/setup bench
	@test -e plugins/dist/quota.wasm || plugins/build
	@test -n "$$TIDEGATE_BIN" || cargo build --release --locked -p tidegate

bench: bench-tools
	@$(BENCH) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ROWS)
	@test -n "$(ROWS)" || cargo bench --locked -p tidegate --bench admission

bench-quick: bench-tools
	@$(BENCH) --quick $(if $(ROUNDS),--rounds $(ROUNDS)) $(ROWS)

define RUN_CONFIG
listen = "127.0.0.1:5000"
admin = "127.0.0.1:5001"

[cache]
dir = "$(SCRATCH)/cache"

[plugins]
dir = "$(SCRATCH)/plugins.d"
state_dir = "$(SCRATCH)/state"
endef

define RUN_TEXT

The mirror listens on 127.0.0.1:5000, and on 127.0.0.1:5001 for /healthz, /readyz and /metrics. Pull through it:

  docker pull 127.0.0.1:5000/docker.io/library/alpine
  podman pull --tls-verify=false 127.0.0.1:5000/docker.io/library/alpine
  skopeo inspect --tls-verify=false docker://127.0.0.1:5000/docker.io/library/alpine
  ctr images pull --plain-http 127.0.0.1:5000/docker.io/library/alpine:latest

Change the policy while it runs: put "docker.io/library/alpine" into the list in

  .run/plugins.d/10-allowlist.toml

save, and pull again. Ask what is decided, and why:

  target/release/tidegate explain --config .run/tidegate.toml docker.io/library/alpine

Ctrl-C stops it; what is in .run stays.

endef
export RUN_CONFIG RUN_TEXT

# The plugins are always those just built; a configuration that is there already is the user's.
run: build plugins
	@mkdir -p '$(SCRATCH)/plugins.d' '$(SCRATCH)/cache' '$(SCRATCH)/state'
	@test -e '$(SCRATCH)/tidegate.toml' || printf '%s\n' "$$RUN_CONFIG" >'$(SCRATCH)/tidegate.toml'
	@for plugin in 10-allowlist 20-failover; do \
	    name=$${plugin#*-}; \
	    cp "plugins/dist/$$name.wasm" '$(SCRATCH)/plugins.d/'"$$plugin.wasm" || exit 1; \
	    test -e '$(SCRATCH)/plugins.d/'"$$plugin.toml" || \
	        cp "plugins/$$name/$$name.toml" '$(SCRATCH)/plugins.d/'"$$plugin.toml" || exit 1; \
	done
	@printf '%s\n' "$$RUN_TEXT"
	@exec target/release/tidegate serve --config .run/tidegate.toml
