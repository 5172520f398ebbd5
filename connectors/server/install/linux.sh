#!/usr/bin/env bash
# Installs, upgrades and removes the incident-rca agent on a Linux host. `--help` says how.
#
# The platform that serves this script fills in the version and the public key below. What it downloads is checked against that key
# and against checksums before any of it runs. Everything stands in one block, so that a download which is cut off does nothing.
if [ -z "${BASH_VERSION:-}" ]; then
  case $0 in *linux.sh) [ -r "$0" ] && command -v bash >/dev/null 2>&1 && exec bash "$0" "$@" ;; esac
  echo "incident-rca: failed: this script needs bash: pipe it into bash, not into sh. Nothing was changed." >&2
  exit 1
fi
set +o posix
trap 'echo "incident-rca: failed: the download of this script was cut off; run the command again. Nothing was changed." >&2; exit 1' EXIT
{
  trap - EXIT
  set -euo pipefail

  constants() {
    script_version='@IRCA_VERSION@'
    public_key='@IRCA_PUBLIC_KEY@'
    # The agent's options, as it reads them from its environment; a test compares them with its configuration.
    options="LOG_LEVEL LOG_FORMAT COLLECT_INTERVAL HEARTBEAT_INTERVAL REQUEST_TIMEOUT STATE_DIR SPOOL_MAX_BYTES SPOOL_MAX_AGE CA_FILE LABELS
      LOCKED_OPTIONS CUSTOM_COMMANDS CUSTOM_PROMETHEUS CUSTOM_PROMETHEUS_HOSTS CUSTOM_PROMETHEUS_LABELS CUSTOM_OTLP_ENDPOINT
      CUSTOM_INTERVAL CUSTOM_TIMEOUT CUSTOM_MAX_SERIES CUSTOM_MAX_BYTES
      COLLECTORS CPU_PER_CORE DISK_EXCLUDE_DEVICES FILESYSTEM_EXCLUDE_TYPES FILESYSTEM_EXCLUDE_MOUNTS FILESYSTEM_TIMEOUT
      NETWORK_EXCLUDE_INTERFACES SYSTEMD_UNITS TOP_PROCESSES TOP_PROCESS_ARGUMENTS CHANGE_WATCHERS CHANGE_INTERVAL CHANGE_NOTIFY
      WATCH_FILES WATCH_FILES_EXCLUDE CERTIFICATE_PATHS CERTIFICATE_THRESHOLDS DISK_SPACE_THRESHOLD"
    proxies="HTTPS_PROXY HTTP_PROXY NO_PROXY ALL_PROXY https_proxy http_proxy no_proxy all_proxy"
    inputs="PLATFORM_API_URL AGENT_TOKEN TOKEN_FILE SERVICE_NAME"
    largest_manifest=262144
    start_within=30
    token_line='' dry_run='' wanted_version='' action=install start=yes root='' purge=''
    staging='' changed='' failing='' token='' old_token='' known_token='' fetch_reason='' manager='' activating='' made_release='' made_user='' had_state=''
    export LC_ALL=C PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
  }

  usage() {
    printf 'The install script of version %s.\n\n' "$script_version"
    cat <<'USAGE'
usage: curl -fsSL PLATFORM/install/linux.sh | PLATFORM_API_URL=PLATFORM AGENT_TOKEN=TOKEN bash [-s -- OPTION...]

Installs the incident-rca agent as a service, or brings an installed one up to date. Running it again changes only what is different.

  --dry-run      check everything, say what would be done, and change nothing
  --version V    install this version, even where it is lower than the one that is installed
  --no-start     install without starting or enabling a service
  --uninstall    remove service, program, configuration, token, user and state; needs neither token nor platform
  --purge        as --uninstall, and remove what others added: drop-ins of the unit, /etc/incident-rca, state of runs in the foreground
  --root DIR     work below DIR, to prepare an image: no user is made and nothing is started
  --help         this text

From the environment:
  PLATFORM_API_URL   where the platform is; an installed agent knows it
  AGENT_TOKEN        the enrolment token, or TOKEN_FILE: a file that holds it; without either the terminal is asked
  SERVICE_NAME       name of service, user and directories (incident-rca-agent)
  CA_FILE            PEM bundle to trust for the platform; it is copied
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY   used for the download and handed on to the agent
  LOG_LEVEL, LABELS, COLLECTORS, ...  the agent's options

exit codes: 0 done; 1 failed, and the last line says why; 2 wrong usage
USAGE
  }

  say() { printf 'incident-rca: %s\n' "$*"; }

  warn() { printf 'incident-rca: warning: %s\n' "$*" >&2; }

  # die ITEM REASON: undo what was begun, say why, tell the platform.
  die() {
    trap - EXIT ERR
    local outcome="Nothing was changed."
    if [ -n "$activating" ]; then
      if roll_back; then outcome="What was there before is there again."; else outcome="Undoing failed as well; run this again."; fi
    else
      drop_made
    fi
    clean_up
    progress failed "$1" "$2"
    printf 'incident-rca: failed: %s: %s. %s\n' "$1" "${2%.}" "$outcome" >&2
    exit 1
  }

  misused() {
    trap - EXIT
    printf 'incident-rca: failed: %s; --help says how this is used. Nothing was changed.\n' "$1" >&2
    exit 2
  }

  # What this run has made and nothing uses yet.
  drop_made() {
    if [ -n "$made_release" ]; then rm -rf -- "$made_release"; fi
    if [ -n "$made_user" ]; then remove_user; fi
    made_release='' made_user=''
  }

  clean_up() {
    if [ -n "$staging" ]; then
      rm -rf -- "$staging" 2>/dev/null || true
      [ -n "$dry_run" ] || rmdir -- "$program" 2>/dev/null || true
    fi
    staging=''
  }

  # shellcheck disable=SC2329 # a trap calls it
  unexpected() {
    local status=$?
    trap - EXIT
    [ "$status" -eq 0 ] || die "${failing:-unexpected}" "a step failed with exit code $status"
    clean_up
  }

  has() { command -v "$1" >/dev/null 2>&1; }

  parse() {
    while [ $# -gt 0 ]; do
      case $1 in
        --dry-run) dry_run=yes ;;
        --version | --root)
          [ $# -gt 1 ] && [ -n "$2" ] || misused "$1 needs a value"
          if [ "$1" = --root ]; then root=${2%/}; else wanted_version=$2; fi
          shift
          ;;
        --no-start) start='' ;;
        --uninstall) action=uninstall ;;
        --purge) action=uninstall purge=yes ;;
        --help | -h) usage && exit 0 ;;
        *) misused "there is no option $1" ;;
      esac
      shift
    done
  }

  name_places() {
    service=${SERVICE_NAME:-incident-rca-agent}
    [[ $service =~ ^[a-z][a-z0-9-]{0,63}$ ]] || misused "SERVICE_NAME must be lower-case letters, digits and hyphens, not '$service'"
    user=$service
    [ ${#user} -le 32 ] || user="${service:0:23}-$(printf %s "$service" | sha256sum | cut -c1-8)"
    program="$root/opt/$service" config="$root/etc/$service" state="/var/lib/$service"
    unit="$root/etc/systemd/system/$service.service" rc_script="$root/etc/init.d/$service"
    known=''
    if [ -r "$config/agent.env" ]; then known=yes; fi
  }

  # Bash reads this script from its standard input, so sudo gets the functions there, with the token: neither shows in arguments or logs.
  elevate() {
    has sudo || die "preflight root" "this needs root, and sudo is not installed: run it as root"
    say "asking sudo for root"
    local name words=()
    for name in $inputs $options $proxies; do
      if [ -n "${!name:-}" ]; then words+=("$name"); fi
    done
    {
      for name in ${words[@]+"${words[@]}"}; do printf 'export %s=%q\n' "$name" "${!name}"; done
      declare -f
      printf '{ set -euo pipefail; main "$@" </dev/null; exit; }\n'
    } | sudo -- bash -s -- "$@"
  }

  check_input() {
    local variable
    if [ -z "${PLATFORM_API_URL:-}" ] && [ -n "$known" ]; then
      PLATFORM_API_URL=$(read_setting PLATFORM_API_URL)
      if [ -z "${CA_FILE:-}" ]; then CA_FILE=$(read_setting CA_FILE); fi
      keep_settings=yes
      for variable in $proxies; do
        if [ -z "${!variable:-}" ]; then export "$variable=$(read_setting "$variable")"; fi
        if [ -z "${!variable:-}" ]; then unset "$variable"; fi
      done
    fi
    platform=${PLATFORM_API_URL:-}
    platform=${platform%/}
    [[ $platform =~ ^https?://[^[:space:]]+$ ]] || misused "PLATFORM_API_URL must be the platform's http or https URL, not '$platform'"
    ca_file=${CA_FILE:-}
    if [ -n "$ca_file" ] && [ ! -r "$ca_file" ]; then die "preflight ca" "CA_FILE $ca_file cannot be read"; fi
    [[ ${STATE_DIR:-/} == /* ]] || misused "STATE_DIR must be an absolute path"
  }

  find_token() {
    token=${AGENT_TOKEN:-}
    known_token=''
    if [ -z "$token" ] && [ -n "${TOKEN_FILE:-}" ]; then
      [ -r "$TOKEN_FILE" ] || die "preflight token" "TOKEN_FILE $TOKEN_FILE cannot be read"
      read -r token <"$TOKEN_FILE" || true
      [ -n "$token" ] || die "preflight token" "TOKEN_FILE $TOKEN_FILE is empty"
    fi
    old_token=''
    if [ -r "$config/token" ]; then read -r old_token <"$config/token" || true; fi
    if [ -z "$token" ]; then token=$old_token; fi
    if [ -z "$token" ] && { true </dev/tty; } 2>/dev/null; then
      printf 'incident-rca: enrolment token: ' >/dev/tty
      read -rs token </dev/tty || true
      printf '\n' >/dev/tty
    fi
    [ -n "$token" ] || die "preflight token" "there is no enrolment token: set AGENT_TOKEN or TOKEN_FILE"
    [[ $token =~ ^[!-~]+$ ]] || die "preflight token" "the enrolment token holds characters that no token has"
    if [ "$token" = "$old_token" ]; then known_token=yes; fi
    unset AGENT_TOKEN
  }

  # read_setting NAME: what the installed agent was told; the file is ours and root's.
  read_setting() { (
    set +u
    unset "$1"
    # shellcheck disable=SC1091 # written by this script
    . "$config/agent.env" >/dev/null 2>&1
    printf %s "${!1}"
  ); }

  # fetch URL FILE [HEADERS]: download; the reason of a failure is left in fetch_reason.
  fetch() {
    local code=0 said
    if has curl; then
      # The program's own words are left out: they may hold a proxy's password.
      curl -fsSL --max-redirs 3 --connect-timeout 10 --speed-limit 1 --speed-time 30 --max-time 900 ${ca_file:+--cacert "$ca_file"} \
        ${3:+-D "$3"} -o "$2" "$1" 2>/dev/null 9<&- || code=$?
      case $code in
        0) return 0 ;;
        5 | 6) said="the name cannot be resolved" ;;
        7) said="the connection is refused" ;;
        18 | 56) said="the transfer was cut off" ;;
        22) said="it is not served there" ;;
        23) said="the file cannot be written (is the disk full?)" ;;
        28) said="there is no answer in time" ;;
        60 | 77) said="the certificate is not trusted (CA_FILE names another CA; this machine's clock says $(utc "$(date +%s)"))" ;;
        *) said="curl ended with exit code $code" ;;
      esac
    else
      wget -q --max-redirect=3 --tries=1 --timeout=30 ${ca_file:+--ca-certificate="$ca_file"} -O "$2" "$1" 2>/dev/null 9<&- || code=$?
      case $code in
        0) return 0 ;;
        3) said="the file cannot be written (is the disk full?)" ;;
        4) said="the platform cannot be reached, or the transfer was cut off" ;;
        5) said="the certificate is not trusted (CA_FILE names another CA; this machine's clock says $(utc "$(date +%s)"))" ;;
        8) said="it is not served there" ;;
        *) said="wget ended with exit code $code" ;;
      esac
    fi
    fetch_reason="$1: $said"
    return 1
  }

  # quoted TEXT: as a quoted string of JSON and of curl's configuration.
  quoted() {
    local text=${1//\\/\\\\}
    text=${text//\"/\\\"}
    printf '"%s"' "${text//[$'\x01'-$'\x1f']/ }"
  }

  # progress STEP [ITEM REASON]: tell the platform how far this is; whether it hears of it changes nothing.
  progress() {
    [ -z "$dry_run" ] && [ "$action" = install ] && [ -n "$token" ] && has curl || return 0
    local document
    document="{\"step\":$(quoted "$1"),\"host\":$(quoted "$(uname -n)"),\"check\":$(quoted "${2:-}"),\"reason\":$(quoted "${3:-}")}"
    printf 'url = %s\nheader = %s\nheader = "Content-Type: application/json"\ndata-binary = %s\n' \
      "$(quoted "$platform/api/v1/agent/progress")" "$(quoted "Authorization: Bearer $token")" "$(quoted "$document")" |
      curl -fsS -m 2 ${ca_file:+--cacert "$ca_file"} -o /dev/null -K - >/dev/null 2>&1 9<&- || true
  }

  utc() { date -u -d "@$1" +%Y-%m-%dT%H:%M:%SZ 2>/dev/null || date -u +%Y-%m-%dT%H:%M:%SZ; }

  existing() {
    local path=$1
    while [ ! -d "$path" ]; do path=$(dirname -- "$path"); done
    printf %s "$path"
  }

  # at_least A B: whether version A is B or newer, by its numbers.
  at_least() {
    local a b i
    IFS=. read -ra a <<<"${1%%[!0-9.]*}"
    IFS=. read -ra b <<<"${2%%[!0-9.]*}"
    for i in 0 1 2; do
      if ((10#${a[i]:-0} != 10#${b[i]:-0})); then
        ((10#${a[i]:-0} > 10#${b[i]:-0}))
        return $?
      fi
    done
  }

  # version_key VERSION: a text that sorts as versions do (X.Y.Z, aN, bN or rcN before it, .devN before those); nothing if it is none.
  version_key() {
    [[ $1 =~ ^([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})((a|b|rc)([0-9]{1,6}))?(\.dev([0-9]{1,6}))?$ ]] || return 0
    local m=("${BASH_REMATCH[@]}") rank=4
    case ${m[5]} in a) rank=1 ;; b) rank=2 ;; rc) rank=3 ;; *) [ -z "${m[8]}" ] || rank=0 ;; esac
    printf '%06d%06d%06d%d%06d%07d' "$((10#${m[1]}))" "$((10#${m[2]}))" "$((10#${m[3]}))" "$rank" "$((10#${m[6]:-0}))" "$((10#${m[8]:-9999999}))"
  }

  check_host() {
    [ "$(uname -s)" = Linux ] || die "preflight system" "this script is for Linux, and this is $(uname -s)"
    local tool
    for tool in tar gzip sha256sum mktemp flock date df readlink; do
      has "$tool" || die "preflight tools" "$tool is not installed"
    done
    has curl || has wget || die "preflight tools" "neither curl nor wget is installed"
    machine=$(uname -m)
    case $machine in amd64) machine=x86_64 ;; arm64) machine=aarch64 ;; esac
    libc=glibc libc_version=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/^glibc //') || true
    if [ -z "$libc_version" ]; then libc=$(ldd --version 2>&1 | grep -qi musl && echo musl || echo unknown); fi
    find_manager
    find_python
  }

  find_manager() {
    systemd_version=''
    if [ -d "$root/run/systemd/system" ]; then
      manager=systemd
      systemd_version=$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p') || true
      [ -n "$systemd_version" ] || die "preflight systemd" "systemd runs here, but systemctl does not say its version"
      ((systemd_version >= 239)) || die "preflight systemd" "this is systemd $systemd_version, and 239 or newer is needed"
    elif [ -x "$root/sbin/openrc-run" ]; then
      manager=openrc
    else
      manager=none
      [ -z "$start" ] || [ "$action" = uninstall ] || die "preflight systemd" "neither systemd nor OpenRC runs here, so nothing would restart the \
agent (and nohup would not either): with --no-start this installs the program and says how a supervisor of your own runs it"
    fi
  }

  # The newest suitable interpreter is not looked for, the host's own is preferred: it gets the distribution's security updates.
  find_python() {
    python='' python_version='' python_lacks=''
    local candidate path version
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
      path=$(command -v "$candidate" 2>/dev/null) || continue
      case $path in /home/* | /root/*) continue ;; esac # hidden from the service
      version=$("$path" -I -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
      [ -n "$python_version" ] || python_version=$version
      at_least "$version" 3.11 || continue
      if "$path" -I -c 'import ctypes, sqlite3, ssl, venv, zipfile' 2>/dev/null; then
        python=$path python_version=$version python_lacks=''
        return
      fi
      python_lacks="Python $version is here without some of its modules ctypes, sqlite3, ssl, venv and zipfile"
    done
  }

  # check_place DIRECTORY MEGABYTES: it, or where it will be made, must be writable and have that much room.
  check_place() {
    local place free probe
    place=$(existing "$1")
    if [ -z "$dry_run" ] || [ -w "$place" ]; then
      probe=$(mktemp -d "$place/.irca-probe.XXXXXX" 2>&1) || die "preflight write" "$place cannot be written: ${probe##*: }"
      rmdir -- "$probe"
    elif [ "$(id -u)" -eq 0 ]; then
      die "preflight write" "$place cannot be written"
    fi
    free=$(df -Pk "$place" | awk 'END { print int($4 / 1024) }')
    ((free >= $2)) || die "preflight disk" "$place has $free MB free, and $2 MB are needed"
  }

  check_platform() {
    local headers="$staging/headers" told now
    fetch "$platform/healthz" "$staging/healthz" "$headers" || die "preflight platform" "$fetch_reason"
    skew=0
    [ -s "$headers" ] || return 0
    told=$(sed -n 's/^[Dd]ate: *//p' "$headers" | tr -d '\r' | tail -1)
    told=$(date -u -d "$told" +%s 2>/dev/null) || return 0
    now=$(date +%s)
    skew=$((now - told))
    if ((skew > 300 || skew < -300)); then warn "this machine's clock says $(utc "$now"), the platform's $(utc "$told")"; fi
  }

  check_token() {
    has curl || return 0
    local status body="$staging/whoami" code detail
    status=$(printf 'header = %s\n' "$(quoted "Authorization: Bearer $token")" |
      curl -sS --connect-timeout 10 -m 30 ${ca_file:+--cacert "$ca_file"} -o "$body" -w '%{http_code}' -K - "$platform/api/v1/agent/whoami" 2>/dev/null) || return 0
    case $status in 401 | 403) ;; *) return 0 ;; esac
    code=$(json_text code "$(cat "$body")")
    detail=$(json_text detail "$(cat "$body")")
    if [ -n "$known_token" ]; then
      warn "the platform refuses the token (${code:-$status}); an agent that has enrolled needs it no more"
    else
      die "preflight token" "the platform refuses the enrolment token (${code:-$status}): ${detail:-no reason given}"
    fi
  }

  # json_text KEY JSON: the string of that key; enough for the manifest, whose strings hold nothing escaped.
  json_text() { if [[ $2 =~ \"$1\":[[:space:]]*\"([^\"]*)\" ]]; then printf %s "${BASH_REMATCH[1]}"; fi; }

  # RFC 8032, verification only, for Python 3.6 and newer. Arguments: key in base64, message file, signature file.
  ed25519_program() {
    cat <<'PYTHON'
import base64, hashlib, sys

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P

def add(a, b):
    e = (a[1] - a[0]) * (b[1] - b[0]) % P
    f = (a[1] + a[0]) * (b[1] + b[0]) % P
    g, h = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = f - e, h - g, h + g, f + e
    return (e * f % P, g * h % P, f * g % P, e * h % P)

def times(n, a):
    r = (0, 1, 1, 0)
    while n:
        if n & 1:
            r = add(r, a)
        a = add(a, a)
        n >>= 1
    return r

def same(a, b):
    return (a[0] * b[2] - b[0] * a[2]) % P == 0 and (a[1] * b[2] - b[1] * a[2]) % P == 0

def point(text):
    y = int.from_bytes(text, "little")
    sign, y = y >> 255, y & ((1 << 255) - 1)
    xx = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(xx, (P + 3) // 8, P)
    if x * x % P != xx:
        x = x * pow(2, (P - 1) // 4, P) % P
    if y >= P or x * x % P != xx or (x == 0 and sign):
        raise ValueError("no point")
    if x & 1 != sign:
        x = P - x
    return (x, y, 1, x * y % P)

def verify(key, message, signature):
    if len(key) != 32 or len(signature) != 64:
        return False
    a, r, s = point(key), point(signature[:32]), int.from_bytes(signature[32:], "little")
    if s >= L or same(times(8, a), (0, 1, 1, 0)):
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % L
    y = 4 * pow(5, P - 2, P) % P
    base = point(y.to_bytes(32, "little"))
    return same(times(s, base), add(r, times(h, a)))

try:
    message, signature = (open(name, "rb").read() for name in sys.argv[2:4])
    good = verify(base64.b64decode(sys.argv[1]), message, signature)
except ValueError:
    good = False
sys.exit(0 if good else 3)
PYTHON
  }

  # verify_signature MANIFEST SIGNATURE: whether the key above signed the manifest. Dies where nothing here can tell.
  verify_signature() {
    local version python3
    [ "$(wc -c <"$2")" -eq 64 ] || return 1
    if has openssl && version=$(openssl version) && [[ $version =~ ^OpenSSL\ ([0-9]+)\. ]] && ((BASH_REMATCH[1] >= 3)); then
      printf -- '-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA%s\n-----END PUBLIC KEY-----\n' "$public_key" >"$staging/key.pem"
      openssl pkeyutl -verify -pubin -inkey "$staging/key.pem" -rawin -in "$1" -sigfile "$2" >/dev/null 2>&1
      return $?
    fi
    for python3 in "$python" python3; do
      if [ -n "$python3" ] && "$python3" -I -c 'import sys; sys.exit(sys.version_info < (3, 6))' 2>/dev/null; then
        "$python3" -I -c "$(ed25519_program)" "$public_key" "$1" "$2"
        return $?
      fi
    done
    die "preflight openssl" "nothing here can check an Ed25519 signature: install OpenSSL 3 or newer, or Python 3.6 or newer"
  }

  get_manifest() {
    local place="$platform/packages" manifest="$staging/manifest.json"
    [[ $public_key =~ ^[A-Za-z0-9+/]{43}=$ ]] || die "key" "this copy of the script carries no public key: take the one that the platform serves"
    fetch "$place/manifest.json" "$manifest" || die "manifest" "$fetch_reason"
    fetch "$place/manifest.json.sig" "$manifest.sig" || die "manifest" "$fetch_reason"
    if [ -n "$wanted_version" ] && [ "$(json_text version "$(head -1 "$manifest")")" != "$wanted_version" ]; then
      place="$place/$wanted_version"
      if ! fetch "$place/manifest.json" "$manifest" || ! fetch "$place/manifest.json.sig" "$manifest.sig"; then
        die "version" "the platform does not serve version $wanted_version"
      fi
    fi
    (($(wc -c <"$manifest") <= largest_manifest)) || die "manifest" "it is larger than $largest_manifest bytes"
    verify_signature "$manifest" "$manifest.sig" || die "signature" "the manifest was not signed with the key that came with this script"
    check_manifest "$(head -1 "$manifest")"
  }

  check_manifest() {
    local now created expires item="manifest expired" clock=''
    if ! [[ $1 =~ \"format\":1, ]] || [ "$(json_text product "$1")" != incident-rca-agent ]; then
      die "manifest" "it is of a format or product that this script does not know"
    fi
    version=$(json_text version "$1") created=$(json_text created "$1") expires=$(json_text expires "$1")
    [ -n "$(version_key "$version")" ] || die "manifest" "its version is '$version', which is none"
    now=$(date +%s)
    if ((skew > 300 || skew < -300)); then item="preflight clock" clock=" and the platform's $(utc $((now - skew))): set this machine's clock"; fi
    if [[ $(utc "$now") > $expires ]]; then
      die "$item" "the manifest of version $version ended at $expires; this machine's clock says $(utc "$now")$clock"
    fi
    if [[ $created > $(utc $((now + 86400))) ]]; then
      die "preflight clock" "the manifest was made at $created, but this machine's clock says $(utc "$now"): set the clock"
    fi
    if [ -n "$wanted_version" ]; then
      [ "$version" = "$wanted_version" ] || die "version" "the platform answers with version $version instead of $wanted_version"
    elif [ -n "$installed" ] && [[ $(version_key "$version") < $(version_key "$installed") ]]; then
      die "version" "the platform serves $version, and $installed is installed; --version $version installs the lower one all the same"
    fi
  }

  # Sets file, kind, size and sha256 of the package for this host: a bundle where Python is new enough, for it is smaller.
  choose_file() {
    local wanted line lacks='' missing
    for wanted in bundle executable; do
      while IFS= read -r line; do
        [ "$(json_text kind "$line")" = "$wanted" ] || continue
        case $(json_text os "$line") in any | linux) ;; *) continue ;; esac
        case $(json_text arch "$line") in any | "$machine") ;; *) continue ;; esac
        missing=$(missing_for "$line")
        if [ -n "$missing" ]; then
          lacks="$lacks; the $wanted needs $missing"
          continue
        fi
        kind=$wanted file=$(json_text name "$line") sha256=$(json_text sha256 "$line") size=0
        if [[ $line =~ \"size\":([0-9]+) ]]; then size=${BASH_REMATCH[1]}; fi
        if [[ $file =~ ^[A-Za-z0-9][A-Za-z0-9._+-]*$ && $sha256 =~ ^[0-9a-f]{64}$ ]] && ((size > 0)); then return; fi
        die "manifest" "it describes the $wanted wrongly"
      done <"$staging/manifest.json"
    done
    die "preflight python" "no package of version $version runs here${lacks:-; there is none for Linux on $machine}"
  }

  missing_for() {
    local needs least words=()
    needs=$(json_text python "$1")
    if [ -n "$needs" ] && { [ -z "$python" ] || ! at_least "$python_version" "${needs#>=}"; }; then
      words+=("Python ${needs#>=} or newer (${python_lacks:-${python_version:-none} is here})")
    fi
    needs=$(json_text libc "$1") least=$(json_text libc_minimum "$1")
    if [ -n "$needs" ] && [ "$needs" != "$libc" ]; then
      words+=("$needs ($libc is here)")
    elif [ -n "$least" ] && ! at_least "${libc_version:-0}" "$least"; then
      words+=("$needs $least or newer (${libc_version:-an unknown version} is here)")
    fi
    [ ${#words[@]} -eq 0 ] || printf '%s' "${words[0]}${words[1]:+ and ${words[1]}}"
  }

  # Directory name of the version: another one where other content of the same version is installed.
  name_release() {
    release=$version
    if [ -e "$program/$release" ] && [ "$(cat "$program/$release/PACKAGE" 2>/dev/null)" != "$sha256" ]; then release="$version-${sha256:0:8}"; fi
    if [ -e "$program/$release" ] && [ "$(cat "$program/$release/PACKAGE" 2>/dev/null)" != "$sha256" ]; then rm -rf -- "${program:?}/$release"; fi
    if [ -e "$program/$release" ] && [ -z "$root" ] && ! "$program/$release/bin/incident-rca-agent" version >/dev/null 2>&1; then
      rm -rf -- "${program:?}/$release.damaged"
      mv -- "$program/$release" "$program/$release.damaged"
      changed="$changed program"
    fi
  }

  download() {
    failing=download
    local archive="$staging/$file"
    fetch "$platform/packages/$version/$file" "$archive" || die "download" "$fetch_reason"
    [ "$(wc -c <"$archive")" -eq "$size" ] || die "download" "$file has $(wc -c <"$archive") bytes, and the manifest says $size"
    [ "$(sha256sum "$archive" | cut -d' ' -f1)" = "$sha256" ] || die "checksum" "$file is not what the manifest describes"
    progress downloaded
    failing=unpack
    mkdir "$staging/unpacked" "$staging/release" "$staging/release/bin"
    tar -xzof "$archive" -C "$staging/unpacked" 2>/dev/null 9<&- || die "unpack" "$file cannot be unpacked (is the disk full?)"
    case $kind in bundle) install_bundle ;; executable) install_executable ;; esac
    printf '%s\n' "$sha256" >"$staging/release/PACKAGE"
    printf '%s\n' "$version" >"$staging/release/VERSION"
    chmod -R go-w,a+rX "$staging/release"
    sync -f "$staging/release" 2>/dev/null || true
    made_release="$program/$release"
    mv -- "$staging/release" "$made_release"
    failing="preflight exec"
    local said
    if [ -z "$root" ] && ! said=$("$made_release/bin/incident-rca-agent" version 2>&1); then
      die "preflight exec" "the program does not run from $program (is it mounted noexec?): ${said##*$'\n'}"
    fi
    failing=''
  }

  # A launcher beside the virtual environment names its packages, so that they are found after the host's Python moved on as well.
  install_bundle() {
    local wheel site final="${program#"$root"}/$release"
    "$python" -I -m venv --without-pip "$staging/release/venv" >/dev/null 2>&1 9<&- || die "unpack" "$python cannot make a virtual environment"
    site=$(cd "$staging/release" && echo venv/lib/python3*/site-packages)
    for wheel in "$staging"/unpacked/wheels/*.whl; do
      "$python" -I -m zipfile -e "$wheel" "$staging/release/$site" 2>/dev/null 9<&- || die "unpack" "${wheel##*/} cannot be unpacked (is the disk full?)"
    done
    "$python" -I -m compileall -q -s "$staging/release" -p "$final" "$staging/release/$site" >/dev/null 2>&1 9<&- || true
    cat >"$staging/release/bin/incident-rca-agent" <<LAUNCHER
#!$final/venv/bin/python3 -I
import sys

sys.path.insert(0, "$final/$site")
from connectors.cli import main

sys.exit(main())
LAUNCHER
    chmod 755 "$staging/release/bin/incident-rca-agent"
  }

  install_executable() {
    [ -f "$staging/unpacked/incident-rca-agent/incident-rca-agent" ] || die "unpack" "$file does not hold the program"
    mv -- "$staging/unpacked/incident-rca-agent" "$staging/release/incident-rca-agent"
    ln -s ../incident-rca-agent/incident-rca-agent "$staging/release/bin/incident-rca-agent"
  }

  make_user() {
    [ -z "$root" ] || return 0
    ! id -u "$user" >/dev/null 2>&1 || return 0
    failing=user made_user=yes
    : >"$program/.user" # says that the user is ours to remove
    if has useradd; then
      useradd --system --user-group --home-dir "$state" --no-create-home --shell /usr/sbin/nologin --comment "incident-rca agent" "$user" >/dev/null
    else
      addgroup -S "$user" 2>/dev/null || true
      adduser -S -D -H -h "$state" -s /sbin/nologin -G "$user" -g "incident-rca agent" "$user" >/dev/null
    fi
    failing=''
  }

  # put FILE MODE OWNER: write standard input there in one step, if it differs; remembered in changed.
  put() {
    local content
    content=$(cat && echo .)
    content=${content%.}
    if [ -f "$1" ] && [ "$(cat "$1" && echo .)" = "$content." ]; then
      chmod "$2" "$1" && own "$3" "$1"
      return
    fi
    (umask 077 && printf %s "$content" >"$1.new")
    chmod "$2" "$1.new" && own "$3" "$1.new"
    mv -f -- "$1.new" "$1"
    changed="$changed ${1##*/}"
  }

  own() { if [ "$(id -u)" -eq 0 ] && [ -z "$root" ]; then chown "$1" "$2"; fi; }

  # Assignments that systemd and a shell read alike.
  settings() {
    local name value
    printf '# Written by the installation; change it there, or in a drop-in of the service.\n'
    for name in PLATFORM_API_URL AGENT_TYPE $options $proxies; do
      case $name in
        PLATFORM_API_URL) value=$platform ;;
        AGENT_TYPE) value=server ;;
        CA_FILE) value=${ca_file:+/etc/$service/ca.pem} ;;
        *) value=${!name:-} ;;
      esac
      [ -n "$value" ] || continue
      value=${value//\\/\\\\}
      value=${value//\"/\\\"}
      value=${value//\$/\\\$}
      printf '%s="%s"\n' "$name" "${value//\`/\\\`}"
    done
  }

  systemd_unit() {
    local state_dir=${STATE_DIR:-} groups=''
    if [ -n "${keep_settings:-}" ]; then state_dir=$(read_setting STATE_DIR); fi
    # ProtectHome hides nothing, only makes it read-only: a hidden /home could not be measured. The journal tells of the kernel's alarms; without this group the agent cannot read it.
    if grep -q '^systemd-journal:' "$root/etc/group" 2>/dev/null; then groups="SupplementaryGroups=systemd-journal"; fi
    cat <<UNIT
# Written by the installation; a drop-in (systemctl edit $service) outlives the next one.
[Unit]
Description=incident-rca agent
Documentation=${platform//%/%%}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=300
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
ExecStart=/opt/$service/current/bin/incident-rca-agent run --type server
# One pool of memory for all threads, trimmed soon: the agent has few, and resident memory matters more than speed.
Environment=MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=65536
EnvironmentFile=/etc/$service/agent.env
$token_line
User=$user
Group=$user
$groups
StateDirectory=$service
StateDirectoryMode=0700
${state_dir:+ReadWritePaths=\"${state_dir//%/%%}\"}
UMask=0077
TimeoutStartSec=60
TimeoutStopSec=20
WatchdogSec=60
Restart=always
RestartSec=3
MemoryMax=256M
TasksMax=64
LimitCORE=0

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
DevicePolicy=closed
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
UNIT
  }

  openrc_script() {
    cat <<SCRIPT
#!/sbin/openrc-run
# Written by the installation.
description="incident-rca agent"
supervisor=supervise-daemon
command=/opt/$service/current/bin/incident-rca-agent
command_args="run --type server"
command_user="$user:$user"
respawn_delay=3
respawn_max=10
respawn_period=300
umask=0077
set -a
. /etc/$service/agent.env
AGENT_TOKEN_FILE=/etc/$service/token
MALLOC_ARENA_MAX=1
MALLOC_TRIM_THRESHOLD_=65536
STATE_DIRECTORY=$state
set +a

depend() {
	use net dns
	after firewall
}

start_pre() {
	checkpath --directory --owner "$user:$user" --mode 0700 "$state"
}
SCRIPT
  }

  # What stands now is kept aside until the new one runs.
  remember() {
    local place
    mkdir "$staging/before"
    for place in "$config/agent.env" "$config/token" "$config/ca.pem" "$unit" "$rc_script"; do
      if [ -f "$place" ]; then cp -p -- "$place" "$staging/before/${place##*/}"; fi
    done
    before=$(readlink "$program/current" 2>/dev/null) || before=''
    if [ -e "$root$state" ]; then had_state=yes; fi
    activating=yes
  }

  # Whether systemd can hand the token to the service: from 247 on, but in some containers its mounts go nowhere.
  hands_credentials() {
    [ "$manager" = systemd ] && ((systemd_version >= 247)) || return 1
    token_line="LoadCredential=agent_token:/etc/$service/token"
    [ -z "$root" ] || return 0
    if [ -f "$unit" ] && is_running; then grep -q '^LoadCredential=agent_token:' "$unit" && return 0 || return 1; fi
    # shellcheck disable=SC2016 # for the shell that systemd starts
    systemd-run --quiet --wait -p User="$user" -p "$token_line" /bin/sh -c '[ -r "$CREDENTIALS_DIRECTORY/agent_token" ]' 9<&- >/dev/null 2>&1
  }

  activate() {
    remember
    mkdir -p "$config"
    chmod 750 "$config" && own "root:$user" "$config"
    put "$config/token" 600 root:root < <(printf '%s\n' "$token")
    # Only root reads the token: systemd hands it to the service. Where it cannot, the service's group may read it as well.
    if ! hands_credentials; then
      chmod 640 "$config/token" && own "root:$user" "$config/token"
      token_line="Environment=AGENT_TOKEN_FILE=/etc/$service/token"
    fi
    if [ -z "${keep_settings:-}" ]; then
      if [ -n "$ca_file" ]; then put "$config/ca.pem" 644 root:root <"$ca_file"; else rm -f -- "$config/ca.pem"; fi
      put "$config/agent.env" 640 "root:$user" < <(settings)
      if [ -n "${STATE_DIR:-}" ]; then mkdir -p "$root$STATE_DIR" && own "$user:$user" "$root$STATE_DIR"; fi
    fi
    case $manager in
      systemd) mkdir -p "${unit%/*}" && put "$unit" 644 root:root < <(systemd_unit | sed '/^$/N;/^\n$/D') ;;
      openrc) mkdir -p "${rc_script%/*}" && put "$rc_script" 755 root:root < <(openrc_script) ;;
    esac
    if [ "$before" != "$release" ]; then
      ln -sfn "$release" "$program/current.new"
      mv -Tf -- "$program/current.new" "$program/current"
      changed="$changed program"
    fi
    if [ -z "$root" ] && has restorecon; then restorecon -RF "$program" "$config" "$unit" >/dev/null 2>&1 || true; fi
  }

  roll_back() {
    activating=''
    if [ -z "$before" ]; then
      remove_all "$had_state" >/dev/null 2>&1
      return $? # named: without it, in a trap, it would be the status from before
    fi
    ln -sfn "$before" "$program/current.new" && mv -Tf -- "$program/current.new" "$program/current"
    local place
    for place in "$config/agent.env" "$config/token" "$config/ca.pem" "$unit" "$rc_script"; do
      if [ -f "$staging/before/${place##*/}" ]; then mv -f -- "$staging/before/${place##*/}" "$place"; else rm -f -- "$place"; fi
    done
    drop_made
    [ -z "$start" ] || run_service >/dev/null 2>&1
  }

  run_service() {
    case $manager in
      systemd)
        systemctl daemon-reload 9<&- && systemctl --quiet enable "$service" 9<&- 2>/dev/null && systemctl restart "$service" 2>/dev/null 9<&-
        ;;
      openrc) rc-update -q add "$service" default 9<&- && rc-service "$service" restart >/dev/null 2>&1 9<&- ;;
    esac
  }

  is_running() {
    case $manager in
      systemd) systemctl --quiet is-active "$service" && systemctl --quiet is-enabled "$service" 2>/dev/null ;;
      openrc) rc-service -q "$service" status >/dev/null 2>&1 ;;
    esac
  }

  start_service() {
    local since said
    since=$(date +%s)
    systemctl reset-failed "$service" 2>/dev/null || true
    if ! run_service; then
      said=''
      if [ "$manager" = systemd ]; then
        said=$(journalctl -q -u "$service" --since "@$since" -n 12 -o cat --no-pager 2>/dev/null | grep . | grep -v " $service\.service\|^$service\.service:" | tail -4) || true
      fi
      [ -z "$said" ] || printf '%s\n' "$said" >&2
      die "start" "the service does not start${said:+: ${said##*$'\n'}}"
    fi
  }

  # Waits for the agent's own word that the platform took it in; that it takes longer is no failure: the service goes on trying.
  await_enrolment() {
    local file="${STATE_DIR:-$state}/status.json" waited=0
    if [ -n "${keep_settings:-}" ]; then
      file=$(read_setting STATE_DIR)
      file="${file:-$state}/status.json"
    fi
    while ((waited < start_within * 5)); do
      # The one that was stopped for this one has written as well, but that it stopped.
      if [ "$file" -nt "$staging" ] && grep -q '"enrolled": true' "$file" && ! grep -q '"state": "stopped"' "$file"; then
        say "the agent has enrolled with $platform"
        return
      fi
      if ! is_running; then break; fi
      sleep 0.2
      waited=$((waited + 1))
    done
    warn "the agent has not enrolled yet; it goes on trying. See: journalctl -u $service"
  }

  report() {
    case $manager in
      systemd)
        local score
        score=$(systemd-analyze security --no-pager "$service" 2>/dev/null | sed -n 's/.*Overall exposure level[^:]*: *\([0-9.]* [A-Z]*\).*/\1/p') || true
        say "service $service.service runs${score:+; systemd-analyze security: $score}"
        ;;
      openrc) say "service $service runs under OpenRC" ;;
    esac
  }

  say_how_to_run() {
    say "installed version $version in ${program#"$root"}; no service was started"
    [ "$manager" = none ] || return 0
    say "let a supervisor that restarts it (runit, s6, supervisord; nohup does not) run this as user $user, with state in $state:"
    printf "  set -a; . /etc/%s/agent.env; AGENT_TOKEN_FILE=/etc/%s/token STATE_DIRECTORY=%s; exec /opt/%s/current/bin/incident-rca-agent run --type server\n" \
      "$service" "$service" "$state" "$service"
    [ -n "$root" ] || { mkdir -p "$state" && chmod 700 "$state" && own "$user:$user" "$state"; }
  }

  sweep() {
    local path current
    current=$(readlink "$program/current")
    for path in "$program"/*; do
      case ${path##*/} in current | "$current" | "$before") ;; *) rm -rf -- "$path" ;; esac
    done
  }

  # One installation at a time: a lock on a directory that every host has, so that nothing is left behind.
  lock() {
    mkdir -p "$root/opt" || die "preflight write" "$root/opt cannot be made"
    exec 9<"$root/opt"
    flock -n 9 || die "lock" "another installation is at work on this host; run this again when it is done"
  }

  install() {
    installed='' kind='' file='' before='' release=''
    check_input
    check_host
    find_token
    if [ -n "$dry_run" ]; then
      staging=$(mktemp -d)
    else
      lock
      check_place "$program" 5
      mkdir -p "$program"
      rm -rf -- "$program"/.staging.* "$program"/*.damaged
      staging=$(umask 077 && mktemp -d "$program/.staging.XXXXXX")
    fi
    if [ -e "$program/current/VERSION" ]; then installed=$(cat "$program/current/VERSION"); fi
    check_platform
    check_token
    get_manifest
    choose_file
    # The package, what is in it, and compiled Python; for the state the beginning of a spool.
    check_place "$program" $((size * 6 / 1048576 + 12))
    check_place "$root${STATE_DIR:-$state}" 16
    check_place "$root/etc" 1
    if [ -n "$dry_run" ]; then
      plan
      clean_up
      return
    fi
    name_release
    if [ -e "$program/$release" ]; then progress downloaded; else download; fi
    make_user
    failing=configuration
    activate
    failing=''
    if [ -n "$start" ] && [ -z "$changed" ] && is_running; then
      activating=''
      report
      say "version $version is installed already, and nothing has changed"
    elif [ -n "$start" ]; then
      start_service
      activating=''
      progress installed
      await_enrolment
      report
      say "version $version is installed"
    else
      activating=''
      say_how_to_run
    fi
    sweep
    clean_up
  }

  plan() {
    say "dry run: nothing is changed. This would"
    say "  download $file ($kind, $size bytes) of version $version${installed:+; installed is $installed}, signed and with its checksum verified"
    if [ "$kind" = bundle ]; then say "  run it with $python (Python $python_version)"; fi
    say "  install it in $program as user $user, with configuration in $config and state in ${STATE_DIR:-$state}"
    case $manager in
      systemd) say "  write ${unit#"$root"}${start:+, enable and start it}" ;;
      openrc) say "  write ${rc_script#"$root"}${start:+, enable and start it}" ;;
      none) say "  make no service" ;;
    esac
  }

  # remove_all [KEEP_STATE]: all that an installation made.
  remove_all() {
    local state_dir='' name left places=("$unit" "$rc_script" "$config" "$program")
    if [ -n "$known" ] || [ -r "$config/agent.env" ]; then state_dir=$(read_setting STATE_DIR || true); fi
    if [ -z "$root" ]; then
      if [ "$manager" = systemd ] && [ -e "$unit" ]; then systemctl --quiet disable --now "$service" 2>/dev/null 9<&- || true; fi
      if [ "$manager" = openrc ] && [ -e "$rc_script" ]; then
        rc-service "$service" stop >/dev/null 2>&1 9<&- || true
        rc-update -q del "$service" >/dev/null 2>&1 9<&- || true
      fi
    fi
    rm -f -- "$unit" "$unit.new" "$rc_script" "$rc_script.new"
    if [ -n "$purge" ]; then rm -rf -- "$unit.d" "$root/etc/incident-rca" "$root/var/lib/incident-rca" "$root/root/.local/state/incident-rca"; fi
    if [ "$manager" = systemd ] && [ -z "$root" ]; then
      systemctl daemon-reload 9<&- || true
      systemctl reset-failed "$service" 2>/dev/null || true
    fi
    if [ -n "$state_dir" ] && [ -z "${1:-}" ]; then # somebody else's choice: what the agent writes goes, and the directory if that was all
      for name in 'identity.json*' 'credential*' agent.lock 'status.json*' 'spool.db*' 'host-changes.db*'; do
        # shellcheck disable=SC2086 # the pattern is to be expanded
        rm -f -- "$root$state_dir"/$name
      done
      rmdir -- "$root$state_dir" 2>/dev/null || true
    fi
    [ -n "${1:-}" ] || places+=("$root$state")
    if [ -e "$program/.user" ]; then made_user=yes; fi
    rm -rf -- "${places[@]}"
    if [ -n "$made_user" ] && [ -z "$root" ]; then remove_user; fi
    for left in "${places[@]}"; do
      if [ -e "$left" ]; then return 1; fi
    done
  }

  remove_user() {
    rm -f -- "$program/.user"
    if has userdel; then userdel "$user" 2>/dev/null || true; else deluser "$user" 2>/dev/null || true; fi
    grep -q "^$user:" /etc/group || return 0
    if has groupdel; then groupdel "$user" 2>/dev/null || true; else delgroup "$user" 2>/dev/null || true; fi
  }

  uninstall() {
    has flock || die "preflight tools" "flock is not installed"
    find_manager
    if [ ! -e "$program" ] && [ ! -e "$config" ] && [ ! -e "$unit" ] && [ ! -e "$rc_script" ] && [ -z "$purge" ]; then
      say "$service is not installed here: nothing to remove"
      return
    fi
    if [ -n "$dry_run" ]; then
      say "dry run: this would stop $service and remove $program, $config, $state, its service and its user"
      return
    fi
    lock
    remove_all || die "uninstall" "something could not be removed; see the messages above"
    say "$service is removed, with its configuration, user and state"
  }

  main() {
    constants
    parse "$@"
    name_places
    umask 022
    if [ -n "$root" ]; then start=''; fi
    if [ "$(id -u)" -ne 0 ] && [ -z "$dry_run" ] && [ -z "$root" ]; then
      elevate "$@"
      return
    fi
    trap unexpected EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    case $action in install) install ;; uninstall) uninstall ;; esac
    trap - EXIT
  }

  main "$@" </dev/null
  exit
}
