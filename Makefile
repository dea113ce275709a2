# SPDX-License-Identifier: Apache-2.0
#
#   make demo     install what is missing, build, and show it working
#   make build    bin/memspan, and the Vulkan driver if there is a C compiler
#   make test     everything that must hold before a change goes in
#   make test-apps  the same for programs that take long to get: ffmpeg,
#                   llama.cpp, zink, GStreamer, WebGPU

GO          ?= go
STATICCHECK ?= $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
FUZZTIME    ?= 20s
# How long the tests of one package may take: never reached but by a hang, also where
# two slow processors test all packages at once.
PATIENCE    ?= 30m
PAIRS       ?= 11
BUILD        = CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

# What client programs import must compile where the daemon does not run, and so
# must the command.
PORTABLE = . ./coherency/... ./mapping/... ./wire/... ./sharedbuf/... ./surface/... ./internal/...

.PHONY: all build driver build-static setup demo test test-apps race search e2e test-slow lint vet generate bench fuzz cover clean
.NOTPARALLEL:

all: build

build: driver
	$(BUILD) -o bin/memspan ./cmd/memspan

# What Vulkan applications load, and the manifest that names it. It is linked so
# that it shows the loader's three functions and nothing of Go.
DRIVER_LDFLAGS = -s -w -extldflags=-Wl,--version-script=$(CURDIR)/vulkan/icd/exports.map
driver:
	@if ! command -v $${CC:-cc} >/dev/null; then \
		echo "no C compiler: bin/libvulkan_memspan.so is not built"; exit 0; fi; \
	set -x; \
	CGO_ENABLED=1 $(GO) build -buildmode=c-shared -trimpath -ldflags '$(DRIVER_LDFLAGS)' \
		-o bin/libvulkan_memspan.so ./cmd/libvulkan_memspan && \
	rm -f bin/libvulkan_memspan.h && \
	cp cmd/libvulkan_memspan/memspan_icd.json bin/memspan_icd.json

# Fully static, without the VRAM tier: opening Vulkan links the C library.
build-static:
	$(BUILD) -tags novulkan -o bin/memspan-static ./cmd/memspan

setup:
	scripts/setup

demo: setup build
	bin/memspan demo -v

test:
	scripts/setup test
	$(MAKE) generate-check lint race search e2e

# Vulkan applications that others wrote: they have to be installed first.
test-apps: build
	scripts/setup apps
	MEMSPAN_BINARY=$(CURDIR)/bin/memspan MEMSPAN_TEST_APPS=1 $(GO) test -count=1 -v -timeout 30m ./test/apps

race:
	$(GO) test -race -timeout $(PATIENCE) ./...

# All states of the coherency protocol; under the race detector the largest
# machine stops early.
search:
	$(GO) test -count=1 -v -run 'Search' ./coherency

# The command and the whole once more, with the binaries that are shipped.
e2e: build build-static
	MEMSPAN_BINARY=$(CURDIR)/bin/memspan $(GO) test -count=1 -timeout $(PATIENCE) ./cmd/memspan ./test/e2e ./test/apps
	MEMSPAN_BINARY=$(CURDIR)/bin/memspan-static MEMSPAN_TEST_NO_VULKAN=1 $(GO) test -count=1 -timeout $(PATIENCE) ./cmd/memspan ./test/e2e

# What takes minutes of waiting: 1 GiB over a link of 10 MB/s, 50 clients, a
# minute of Vulkan in four threads.
test-slow:
	MEMSPAN_SLOW=1 $(GO) test -count=1 -timeout 20m -run 'TestSlowLink|TestManyClients|TestThreads' ./test/e2e ./test/apps

lint: vet
	@files=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	if [ -n "$$files" ]; then echo "gofmt these:"; echo "$$files"; exit 1; fi
	$(STATICCHECK) ./...
	$(STATICCHECK) -tags novulkan ./...
	$(GO) mod tidy -diff

vet:
	$(GO) vet ./...
	$(GO) vet -tags novulkan ./...
	GOARCH=arm64 $(GO) vet ./...
	GOOS=darwin $(GO) vet $(PORTABLE)
	GOOS=windows $(GO) vet $(PORTABLE)
	GOOS=darwin $(GO) build -o /dev/null ./cmd/memspan
	GOOS=windows $(GO) build -o /dev/null ./cmd/memspan

generate:
	$(GO) generate ./...

.PHONY: generate-check
generate-check:
	@before=$$(git diff | git hash-object --stdin); \
	$(GO) generate ./... || exit 1; \
	if [ "$$(git diff | git hash-object --stdin)" != "$$before" ]; then \
		echo "generated files were not up to date: look at git diff"; exit 1; fi

# Ratios of interleaved pairs first, then what single parts cost. Nothing else
# should run: docs/benchmarks.md.
bench: build
	$(GO) test -run '^$$' -bench . -benchtime $(PAIRS)x -timeout 60m ./test/bench
	bin/memspan bench vulkan --pairs $(PAIRS) --link 10Gbit/10ms --link 1Gbit/1ms --link 100Mbit/10ms
	$(GO) test -run '^$$' -bench . -benchmem ./coherency ./wire ./mapping ./tier/vram .

# Every fuzz target for a short while.
fuzz:
	@for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			echo "== $$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
		done; \
	done

cover:
	$(GO) test -coverprofile cover.out ./...
	$(GO) tool cover -func cover.out | tail -1

clean:
	rm -rf bin cover.out
