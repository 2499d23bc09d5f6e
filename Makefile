# What can be made here. "scripts/test" runs all the checks in a row and installs
# what they need first; these targets expect it to be there.

SHELL := /bin/bash
GO := $(shell scripts/setup go 2>/dev/null || echo go)
export PATH := $(dir $(GO)):$(PATH):/usr/sbin:/sbin

# Packages whose tests trace the running kernel, and so need root.
KERNEL_PACKAGES := ./internal/kerneltest/... ./internal/programtest ./internal/probe ./internal/lab ./internal/host
# Packages that are tested under other kernels. The last one tests the machines.
VM_PACKAGES ?= ./internal/kerneltest/... ./internal/probe ./internal/vm/testdata/sample
# Kernels and attach modes of test-vm; "go run ./scripts/vm test -h" tells how
# any other kernel is named.
KERNELS ?= 5.10,6.1,6.12,7.3
ATTACH ?= auto,kprobe,tracepoint
# Where auto takes fentry for all hooks, fentry alone is no other test.
FENTRY_KERNELS ?= 6.1
# Machines at the same time, and the longest time for all of them.
JOBS ?= 2
VM_TIME ?= 45m
# Only tests that match, in test-kernel and test-vm.
RUN ?=
FUZZTIME ?= 8s

# Nothing before a root's command, sudo before anybody else's.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=CI,TCPTRACE_ATTACH)

.PHONY: build
build: ## bin/tcptrace
	CGO_ENABLED=0 $(GO) build -o bin/tcptrace ./cmd/tcptrace

.PHONY: generate
generate: ## compile the BPF programs; needs clang-14
	scripts/generate

.PHONY: check-generate
check-generate: ## is what is committed what would be generated?
	scripts/generate --check

.PHONY: lint
lint: ## formatting, vet, and which package may import which
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not formatted by gofmt:"; echo "$$unformatted"; exit 1; fi
	@for script in scripts/setup scripts/watch scripts/test scripts/fuzz scripts/generate scripts/lib.sh .ci/run; do bash -n $$script || exit 1; done
	$(GO) vet ./...
	$(GO) test -count=1 ./internal/arch

# A package of KERNEL_PACKAGES with all that is below it: what its import path
# ends in.
kernel_pattern := $(subst $() $(),|,$(patsubst ./%,/%,$(patsubst %/...,%,$(KERNEL_PACKAGES))))

.PHONY: test
test: ## tests that need no kernel's help, with the race detector
	@packages=$$($(GO) list ./... | grep -vE '($(kernel_pattern))(/|$$)') && $(GO) test -race -timeout=20m $$packages

.PHONY: test-duckdb
test-duckdb: ## read back with DuckDB what export writes; a module of its own, needs g++
	cd internal/export/readback && $(GO) vet ./... && CGO_ENABLED=1 $(GO) test -count=1 ./...

.PHONY: test-kernel
test-kernel: ## tests on the running kernel, as root
	$(GO) test -count=1 -p=1 -timeout=15m $(if $(RUN),-run='$(RUN)') $(if $(AS_ROOT),-exec='$(AS_ROOT)') $(KERNEL_PACKAGES)

.PHONY: test-vm
test-vm: ## tests under other kernels: KERNELS=5.10,sid ATTACH=kprobe RUN=TestName
	$(GO) run ./scripts/vm test --kernels '$(KERNELS)' --attach '$(ATTACH)' -j $(JOBS) --total $(VM_TIME) --run '$(RUN)' $(VM_PACKAGES)
	$(if $(FENTRY_KERNELS),$(GO) run ./scripts/vm test --kernels '$(FENTRY_KERNELS)' --attach fentry -j $(JOBS) --total $(VM_TIME) --run '$(RUN)' $(VM_PACKAGES))

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME
	FUZZTIME=$(FUZZTIME) scripts/fuzz

.PHONY: bench
bench: ## what tracing costs, as ratios measured in one run
	CGO_ENABLED=0 $(GO) build -o bin/bench ./scripts/bench
	$(AS_ROOT) bin/bench

# A build, then a program that runs the demos as root.
.PHONY: cases
cases: build ## run the demos of docs/cases and take over what they say; PAGES="a k" for some
	CGO_ENABLED=0 $(GO) build -o bin/cases ./scripts/cases
	$(AS_ROOT) bin/cases $(PAGES)

.PHONY: check-cases
check-cases: build ## do the demos still say what docs/cases shows?
	CGO_ENABLED=0 $(GO) build -o bin/cases ./scripts/cases
	$(AS_ROOT) bin/cases --check $(PAGES)

.PHONY: check-vagrant
check-vagrant: ## is the Vagrantfile valid?
	@if command -v vagrant >/dev/null; then \
		home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && \
		VAGRANT_HOME=$$home VAGRANT_CHECKPOINT_DISABLE=1 vagrant validate --ignore-provider; \
	elif [ -n "$$(apt-cache policy vagrant 2>/dev/null | sed -n 's/^  Candidate: [^(]/&/p')" ]; then \
		echo "error: vagrant is not installed" >&2; echo "hint: scripts/setup test installs it" >&2; exit 1; \
	else \
		echo "check-vagrant: WARNING: NOT CHECKED: this release has no package vagrant"; \
	fi

.PHONY: clean
clean: ## remove what was built; kernels and logs in the cache stay
	rm -rf bin

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18
