# Everything that is done with this repository. `make demo` and `make test` need
# a Debian machine with Go and git, and root; they install the rest themselves.
# Versions of the tools are pinned in one table: test/rig/tools/tools.go.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

export CGO_ENABLED := 0

# How long each fuzz target runs in `make fuzz`.
FUZZTIME ?= 20s

TOOLS := go run ./test/cmd/rigtools
SUM   := go run ./test/cmd/testsum

# Tests of these take root, FUSE or network namespaces. The shaping of the link
# is sensitive to a busy machine, so they run one package at a time.
SYSTEM      := ./snapshotter/... ./test/rig/... ./test/flow ./test/e2e/... ./test/cmd/airlink
SYSTEM_RACE := ./snapshotter/...
SYSTEM_REST := ./test/rig/... ./test/flow ./test/e2e/... ./test/cmd/airlink
unit_packages = go list ./... | grep -v -x -F -f <(go list $(SYSTEM))

.PHONY: build lint test test-unit test-system bench bench-start demo fuzz soak clean tools gcc

build: ## the static binaries, into bin/
	go build -trimpath -o bin/ ./cmd/airstream ./test/cmd/airlink

lint: ## gofmt, go vet, golangci-lint
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	$(TOOLS) install golangci-lint
	"$$($(TOOLS) path golangci-lint)" run ./...

test: tools test-unit test-system ## all tests but the long ones

# Root gets what the tests need. Anybody else is told by the tests what they
# lack.
tools:
	@if [ "$$(id -u)" = 0 ]; then $(TOOLS) install; fi

# The race detector needs a C compiler.
gcc:
	@if ! command -v gcc >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "apt-get install gcc libc6-dev"; export DEBIAN_FRONTEND=noninteractive; \
		apt-get -qq install -y --no-install-recommends gcc libc6-dev >/dev/null 2>&1 || \
		{ apt-get -qq update && apt-get -qq install -y --no-install-recommends gcc libc6-dev >/dev/null; } || true; \
	fi

# race sets $race to what "go test" takes for the race detector, where it works.
define race
race=; if command -v gcc >/dev/null; then export CGO_ENABLED=1; race=-race; else echo "no gcc: testing without the race detector"; fi
endef

test-unit: gcc ## tests that need neither root nor FUSE
	@$(race); echo "go test $$race, without root and FUSE"; \
	{ go test -json $$race -p 2 -timeout 20m $$($(unit_packages)) || failed=1; \
	  [ -z "$$race" ] || CGO_ENABLED=0 go test -json -timeout 20m -run 'TestMemory|TestIdle|TreeIsThatOfTheSource' ./convert ./convert/layer ./internal/bundle ./internal/toc ./proxy || failed=1; \
	  [ -z "$${failed-}" ]; } | $(SUM)

test-system: gcc ## tests that need root, FUSE, network namespaces
	@lacks=$$($(TOOLS) check root fuse tun overlay netns 2>/dev/null) || [ -n "$$lacks" ]; \
	if [ -n "$$lacks" ]; then \
		echo "SKIPPED: the tests of $(SYSTEM): the machine lacks $$(head -n 1 <<<"$$lacks")"; exit 0; \
	fi; \
	$(race); echo "go test, with root and FUSE"; \
	{ go test -json $$race -count 1 -p 1 -timeout 20m $(SYSTEM_RACE) || failed=1; \
	  CGO_ENABLED=0 go test -json -count 1 -p 1 -timeout 40m $(SYSTEM_REST) || failed=1; \
	  [ -z "$${failed-}" ]; } | $(SUM)

bench: tools ## first starts side by side, into docs/benchmarks.md; and Go benchmarks
	go run ./test/cmd/bench -dark -bulk -go

bench-start: tools ## starts and updates side by side, into docs/benchmarks.md: days, but it goes on where it was; ARGS="-links leo -runs 1" chooses
	go run ./test/cmd/benchstart $(ARGS)

demo: ## the main job, as a timeline to read
	@go run ./test/cmd/demo

fuzz: ## every fuzz target for FUZZTIME
	@targets=0; for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
			echo "$$package $$target"; targets=$$((targets + 1)); \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$package; \
		done; \
	done; \
	[ $$targets -gt 0 ]; echo "$$targets targets, $(FUZZTIME) each: nothing found"

soak: tools ## the long variants of tests that have one
	AIRSTREAM_SOAK=1 go test -count 1 -v -p 1 -timeout 3h $$(grep -rl AIRSTREAM_SOAK --include='*_test.go' . | xargs -n 1 dirname | sort -u)

clean:
	rm -rf bin
