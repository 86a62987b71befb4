# Rackserve's chores. `make demo` and `make test` work on a fresh Debian 12 or Ubuntu.

SHELL := /bin/bash
AS_ROOT := $(shell test "$$(id -u)" = 0 || echo sudo)
PACKAGES := python3-venv systemd-container debootstrap iproute2 iptables openssh-client \
    e2fsprogs ca-certificates haproxy gpg
RACKSERVE := .venv/bin/rackserve

.PHONY: demo test check clean-lab bench

.venv/ready: requirements.lock pyproject.toml
	dpkg -s $(PACKAGES) >/dev/null 2>&1 || \
	    { $(AS_ROOT) apt-get update -qq && \
	      DEBIAN_FRONTEND=noninteractive $(AS_ROOT) apt-get install -y -qq --no-install-recommends $(PACKAGES); }
	python3 -m venv --clear .venv
	.venv/bin/pip install --quiet --no-deps --require-hashes -r requirements.lock
	.venv/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Brings up the lab, runs the playbooks on it, asks a question.
demo: .venv/ready
	$(AS_ROOT) $(RACKSERVE) demo

# All tests: style, types, the fast ones side by side, and the lab's. Fails when the lab cannot start.
# What the lab is made of, mostly downloads, is made beside the fast ones.
test: check
	$(AS_ROOT) true
	$(AS_ROOT) $(RACKSERVE) lab prepare & \
	    $(AS_ROOT) .venv/bin/pytest -m "not lab" --numprocesses auto --dist loadfile; \
	    fast=$$?; wait; exit $$fast
	$(AS_ROOT) .venv/bin/pytest -m lab

check: .venv/ready
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

clean-lab: .venv/ready
	$(AS_ROOT) $(RACKSERVE) lab down
	$(AS_ROOT) rm -rf /var/cache/rackserve-lab

# Every benchmark, or one: `make bench-apply`; of some a part: `make bench-stage PART=fanout`.
# Not among them, for it takes hours: `make bench-rollout`, or `make bench-rollout SCENARIO=latency`;
# what has passed is not run again unless AGAIN=1.
BENCHMARKS := apply serve trial estimate stage simulate doctor
bench: $(addprefix bench-,$(BENCHMARKS))

bench-%: .venv/ready
	$(AS_ROOT) env $(foreach name,PART SCENARIO AGAIN,$(if $($(name)),$(name)=$($(name)))) .venv/bin/python -m tests.bench.$*
