#!/usr/bin/env bash
# Installs what tests/slurm/cluster.py starts, from Debian. No daemon of the system is started by it.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
if command -v slurmctld >/dev/null && command -v munged >/dev/null && command -v mariadbd >/dev/null; then exit 0; fi
if [ "$(id -u)" = 0 ]; then as_root=""; else as_root="sudo"; fi
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
  $as_root chmod 755 "$policy"
  trap '$as_root rm -f "$policy"' EXIT
fi
$as_root apt-get update -qq >/dev/null
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends \
  slurmctld slurmd slurm-client slurmdbd munge mariadb-server-core >/dev/null
