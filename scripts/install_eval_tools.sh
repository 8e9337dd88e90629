#!/usr/bin/env bash
# Installs the system packages that evaluation runs programs with, on Debian or Ubuntu: the sandbox, compilers, and what task sets import.
# With --tests also what tests alone need: Chromium, which opens the report's page, and qemu, whose CPUs lack what this one has.
# Usage: scripts/install_eval_tools.sh [--tests]              (as root, or with sudo)
set -euo pipefail
say() { printf '== %s\n' "$*"; }

packages=(bubblewrap util-linux python3 libboost-dev libssl-dev node-lodash libjavatuples-java junit4 junit5 libassertj-core-java)
# Compilers that are there already, from whatever source, are left as they are.
command -v g++ > /dev/null || packages+=(g++)
command -v javac > /dev/null || packages+=(default-jdk-headless)
command -v node > /dev/null || packages+=(nodejs)
if [ "${1:-}" = --tests ]; then
  command -v chromium chromium-browser google-chrome > /dev/null || packages+=(chromium)
  command -v qemu-x86_64 qemu-x86_64-static > /dev/null || packages+=(qemu-user)
fi

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2> /dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  say "evaluation's system packages are installed"
  exit 0
fi
command -v apt-get > /dev/null || { echo "apt-get is not here; install the counterparts of: ${missing[*]}" >&2; exit 2; }
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo > /dev/null || { echo "run this as root: it installs ${missing[*]}" >&2; exit 2; }
  as_root=(sudo)
fi
say "installing ${missing[*]}"
"${as_root[@]}" apt-get update --quiet=2
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends "${missing[@]}" > /dev/null
say "ready"
