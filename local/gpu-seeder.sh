#!/usr/bin/env bash
# Registers the GPU machine with platform-api: upserts its row of gpu_nodes with the machine's address on
# wopr-dev, and restarts platform-api, whose watchdog finds it at its next poll. Doing it again changes
# nothing. `wopr seed` does the same, with the same statement.
#
#   GPU_NODE_ID   id of the node (local-gpu-node-001)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
node=${GPU_NODE_ID:-local-gpu-node-001}
vps=wopr-vps gpu=wopr-gpu postgres=wopr-vps-postgres api=wopr-vps-platform-api

fail() { printf 'gpu-seeder: %s\n' "$*" >&2; exit 1; }

[[ $node =~ ^[a-zA-Z0-9][a-zA-Z0-9-]{0,62}$ ]] ||
  fail "GPU_NODE_ID '$node' is not a node's id: 1 to 63 letters, digits and dashes, the first not a dash"
for machine in $vps $gpu; do
  [ "$(docker inspect --format '{{.State.Running}}' $machine 2>/dev/null)" = true ] ||
    fail "machine $machine does not run: docker compose -f local/docker-compose.yml up -d"
done
# The address on wopr-dev and not a name: names do not survive two layers of Docker's DNS.
host=$(docker inspect --format '{{(index .NetworkSettings.Networks "wopr-dev").IPAddress}}' $gpu)
[ -n "$host" ] || fail "machine $gpu has no address on wopr-dev"

inner() { docker exec "$@"; }
# platform-api makes the table at its first start.
wait_for() { # seconds, what, command…
  local seconds=$1 what=$2; shift 2
  for ((n = 0; n < seconds * 5; n++)); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.2
  done
  fail "$what was not there after $seconds s; \`docker logs $vps\` and \`docker exec $vps docker logs $api\` may say why"
}
sql() { inner -i $vps docker exec -i $postgres psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 -U wopr -d wopr_platform "$@"; }
healthy() { inner $vps curl --silent --fail --max-time 5 --output /dev/null http://127.0.0.1:3100/health; }
wait_for 90 "platform-api" healthy

# \bind hands id and address over as parameters: no value becomes part of the statement.
{ cat "$here/gpu-seeder.sql"; printf '\n\\bind :node :host \\g\n'; } | sql --set node="$node" --set host="$host"
inner $vps docker restart $api >/dev/null
wait_for 90 "platform-api, restarted," healthy
echo "node $node is seeded with $host"
