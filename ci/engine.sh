# Sourced by the scripts here: what a fresh Debian or Ubuntu machine lacks, and a Docker engine that
# answers. Doing it again changes nothing.

say() { printf 'ci: %s\n' "$*" >&2; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Packages of the build (a C linker, OpenSSL for toxiproxy_rust) and of the images (mmdebstrap makes
# the base image where no registry can be reached).
install_packages() {
  local missing=()
  command -v cc >/dev/null || missing+=(gcc libc6-dev)
  command -v pkg-config >/dev/null || missing+=(pkg-config)
  pkg-config --exists openssl 2>/dev/null || missing+=(libssl-dev)
  command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
  if ! docker_answers && ! command -v dockerd >/dev/null; then
    missing+=(docker.io iptables tini)
  fi
  [ ${#missing[@]} = 0 ] && return
  say "installing ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

socket() { printf '%s' "${DOCKER_HOST:-unix:///var/run/docker.sock}"; }

docker_answers() {
  curl --silent --fail --max-time 5 --output /dev/null \
    --unix-socket "$(socket | sed 's|^unix://||')" http://docker/_ping 2>/dev/null
}

start_engine() {
  docker_answers && return
  if [ -d /run/systemd/system ]; then
    as_root systemctl start docker
  else
    say "starting dockerd"
    # A pid file of an engine that was killed would keep this one from starting.
    pgrep -x dockerd >/dev/null || as_root rm -f /var/run/docker.pid
    as_root sh -c 'setsid dockerd >>/var/log/dockerd.log 2>&1 </dev/null &'
    engine_is_ours=yes
  fi
  for _ in $(seq 120); do
    docker_answers && return
    sleep 0.5
  done
  say "no Docker engine answers at $(socket) after 60 s; the end of its log:"
  as_root tail -n 20 /var/log/dockerd.log >&2 || true
  if ! [ -w "$(socket | sed 's|^unix://||')" ]; then
    say "you may not use the socket: join its group (sudo usermod -aG docker $USER), log in again, and run this again"
  fi
  return 1
}

# Ends the engine that this script started, and starts it again.
restart_engine() {
  local pid
  pid=$(cat /var/run/docker.pid)
  as_root kill "$pid"
  for _ in $(seq 120); do
    as_root kill -0 "$pid" 2>/dev/null || break
    sleep 0.5
  done
  start_engine
}

# Topologies of which nothing is left but a network that the engine has lost count of: it lists nothing that is
# attached to it, and refuses to remove it since something were (moby issue 42119). A restart of it cures that.
miscounted() {
  local network refusal
  for network in $(docker network ls --quiet --filter label=wopr.owner); do
    [ "$(docker network inspect --format '{{len .Containers}}' "$network")" = 0 ] || continue
    refusal=$(docker network rm "$network" 2>&1 || true)
    if [[ $refusal == *'has active endpoints'* ]]; then
      docker network inspect --format '{{index .Labels "wopr.topology"}}' "$network"
    fi
  done
}

need_rust() {
  command -v cargo >/dev/null && return
  say "no Rust toolchain: install Rust 1.95 or newer with rustup, and run this again"
  return 1
}

# `docker compose`, for those who start the topology by it: Debian 12 has no package of it. The machine
# image brings one, which also runs here.
compose_plugin() {
  command -v docker >/dev/null || return 0
  docker compose version >/dev/null 2>&1 && return
  local image container plugins="$HOME/.docker/cli-plugins"
  image=$(docker images --filter reference='wopr/machine' --format '{{.Repository}}:{{.Tag}}' | head -n 1)
  [ -n "$image" ] || return 0
  say "putting the compose plugin of $image into $plugins"
  mkdir -p "$plugins"
  container=$(docker create --label wopr.topology=compose-plugin "$image")
  docker cp "$container:/usr/libexec/docker/cli-plugins/docker-compose" "$plugins/docker-compose"
  docker rm "$container" >/dev/null
}

set_up() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  need_rust
  command -v curl >/dev/null || { as_root apt-get update -qq && as_root apt-get install -y -qq curl >/dev/null; }
  install_packages
  start_engine
}
