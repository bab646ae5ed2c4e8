#!/usr/bin/env bash
# Builds the image from a clean clone of HEAD on a machine without a container engine (as root, by buildah).
#
#   docker/build.sh [IMAGE]
#
# BASE     the image to build on; without it debootstrap makes one of Debian bookworm and its Python
# OPTIONS  further words for `buildah bud`, as: --build-arg TORCH_INDEX= --volume /wheels:/wheels:ro
set -euo pipefail
image=${1:-localhost/udr:latest}
top=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -z "${BASE:-}" ]; then
  BASE=localhost/udr-base:bookworm
  if [ -z "$(buildah images --quiet "$BASE" 2> /dev/null)" ]; then
    debootstrap --variant=minbase --include=python3,python3-venv bookworm "$work/base" > "$work/log" \
      || { tail "$work/log"; exit 1; }
    rm -rf "$work"/base/var/cache/apt/archives/*.deb "$work"/base/var/lib/apt/lists/*
    holder=$(buildah from scratch)
    buildah add --quiet "$holder" "$work/base" / > /dev/null
    buildah commit --quiet --rm "$holder" "$BASE" > /dev/null
  fi
fi

git clone --quiet --depth 1 "file://$top" "$work/clone"
# shellcheck disable=SC2086  # several words are meant
buildah bud --isolation chroot --format docker --quiet \
  --build-arg BASE="$BASE" --build-arg REVISION="$(git -C "$work/clone" rev-parse HEAD)" ${OPTIONS:-} \
  --file "$work/clone/docker/Dockerfile" --tag "$image" "$work/clone"
