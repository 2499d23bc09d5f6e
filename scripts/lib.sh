# What the scripts in this directory share. To be sourced by bash, after
# "set -euo pipefail".
#
# shellcheck shell=bash

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# Everything that is fetched or built for this project's own use is kept here,
# outside the repository.
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/tcptrace

say() { printf '%s\n' "$*" >&2; }

# die MESSAGE [HINT]
die() {
	printf 'error: %s\n' "$1" >&2
	if [ $# -gt 1 ]; then
		printf 'hint: %s\n' "$2" >&2
	fi
	exit 1
}

# have COMMAND: is it there?
have() { command -v "$1" >/dev/null 2>&1; }

# as_root COMMAND...: run it with root's rights.
as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif have sudo; then
		sudo -- "$@"
	else
		die "root's rights are needed for: $*" "run this as root, or install sudo"
	fi
}

# required_go: the lowest Go version that go.mod allows, such as 1.25.0.
required_go() {
	local version
	version=$(sed -n 's/^go \([0-9][0-9.]*\)$/\1/p' "$root/go.mod")
	[ -n "$version" ] || die "go.mod does not say which Go it needs"
	printf '%s\n' "$version"
}

# at_least VERSION MINIMUM: is it?
at_least() {
	[ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

# go_version GO: the version of that Go itself, such as 1.25.0; empty if it does
# not run. Asked outside every module, or Go might look for the module's.
go_version() {
	(cd / && GOTOOLCHAIN=local GOFLAGS='' "$1" env GOVERSION 2>/dev/null) | sed -n 's/^go\([0-9][0-9a-z.]*\).*/\1/p'
}

# find_go: the path of a Go that is new enough; fails if there is none.
find_go() {
	local candidate version need
	need=$(required_go)
	for candidate in "$(command -v go || true)" /usr/local/go/bin/go "$cache/go/bin/go"; do
		[ -x "$candidate" ] || continue
		version=$(go_version "$candidate")
		if [ -n "$version" ] && at_least "$version" "$need"; then
			printf '%s\n' "$candidate"
			return 0
		fi
	done
	return 1
}

# use_go: put a Go that is new enough first in PATH.
use_go() {
	local go
	go=$(find_go) || die "no Go of version $(required_go) or newer is here" "scripts/setup build installs one"
	PATH=$(dirname -- "$go"):$PATH
	export PATH
	# A checkout that belongs to somebody else (a shared folder, a clone made by
	# root) makes git refuse, and go build with it.
	if ! git -C "$root" rev-parse HEAD >/dev/null 2>&1; then
		export GOFLAGS="${GOFLAGS:-} -buildvcs=false"
	fi
}
