# The two commands of the project, and the parts they are made of. Everything else is plain cargo.

.PHONY: up test test-clients faults install build images unit deny clean-cluster conformance

# Root is needed for nodes; without it `up` runs the control plane with one hollow node.
UP_FLAGS ?=
DATA_DIR ?= $(HOME)/.local/share/coxswain
APP_TARGET := $(shell rustc -vV | sed -n 's/^host: //p')
APP := target/app/$(APP_TARGET)/release/testapp
IMAGES := target/images.tar

# Installs what is missing, builds, and starts a cluster in the foreground. Ctrl-C ends it; pods go on running.
up: install
	cargo build --release -p coxswain
	@if [ "$$(id -u)" -eq 0 ]; then $(MAKE) --no-print-directory images && \
	    exec target/release/coxswain up --data-dir $(DATA_DIR) --image-archive $(IMAGES) $(UP_FLAGS); \
	else exec target/release/coxswain up --data-dir $(DATA_DIR) --hollow-nodes 1 $(UP_FLAGS); fi

# Installs what is missing and runs all tests; the ones that need a cluster run in namespaces of their own.
test: install
	dev/test.sh

# Kills, halts, cuts off and fills up servers and stores, 300 times, and checks what clients saw. `make test` has a shorter
# draw. FAULTS=N for another number, FAULT_SEED=N to repeat a run.
FAULTS ?= 100
faults: install
	cargo build -p coxswain -p conformance
	dev/in-namespace.sh target/debug/conformance faults --coxswain $(CURDIR)/target/debug/coxswain --rounds $(FAULTS) \
	    --backend embedded --backend etcd --backend postgres $(if $(FAULT_SEED),--seed $(FAULT_SEED))

# Runs the clients of others against a cluster: every kubectl, Helm, the Python, JavaScript and Rust libraries.
test-clients: install
	dev/test-clients.sh

install:
	dev/install.sh

build:
	cargo build --workspace

# The images that test pods run, as one archive.
images: $(IMAGES)

$(APP): $(wildcard testapp/src/*.rs) testapp/Cargo.toml
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --release -p testapp --target $(APP_TARGET) --target-dir target/app

$(IMAGES): $(APP) conformance/src/images.rs
	cargo build -p conformance
	target/debug/conformance images --out $@ --app $(APP) $$([ -x /bin/busybox ] && echo --busybox /bin/busybox) >/dev/null

unit:
	cargo nextest run --workspace

deny:
	cargo deny check
