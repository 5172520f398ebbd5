#!/bin/bash
# Installs, upgrades and removes the incident-rca agent on a Mac without Homebrew. `--help` says how.
#
# The platform that serves this script fills in the version and the public key below. What it downloads is checked against that key
# and against checksums before any of it runs. Everything stands in one block, so that a download which is cut off does nothing.
# It keeps to bash 3.2, which is the one that macOS has.
if [ -z "${BASH_VERSION:-}" ]; then
  case $0 in *macos.sh) [ -r "$0" ] && exec /bin/bash "$0" "$@" ;; esac
  echo "incident-rca: failed: this script needs bash: pipe it into bash, not into sh. Nothing was changed." >&2
  exit 1
fi
set +o posix
trap 'echo "incident-rca: failed: the download of this script was cut off. Nothing was changed; run the command again." >&2; exit 1' EXIT
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
    inputs="PLATFORM_API_URL AGENT_TOKEN TOKEN_FILE"
    largest_manifest=262144
    start_within=30
    dry_run='' wanted_version='' action=install start=yes root='' purge='' live=yes
    staging='' changed='' failing='' token='' old_token='' known_token='' fetch_reason='' activating='' made_release='' made_user='' had_state=''
    libc='' libc_version='' skew=0 locked=''
    service=incident-rca-agent user=_incident-rca label=io.incident-rca.agent
    export LC_ALL=C PATH="$PATH:/usr/bin:/bin:/usr/sbin:/sbin"
  }

  usage() {
    printf 'The install script of version %s.\n\n' "$script_version"
    cat <<'USAGE'
usage: curl -fsSL PLATFORM/install/macos.sh | PLATFORM_API_URL=PLATFORM AGENT_TOKEN=TOKEN bash [-s -- OPTION...]

Installs the incident-rca agent as a launchd daemon, or brings an installed one up to date. Running it again changes only what is
different. With Homebrew, the platform's tap does the same for one user.

  --dry-run      check everything, say what would be done, and change nothing
  --version V    install this version, even where it is lower than the one that is installed
  --no-start     install without starting the daemon or having it started at boot
  --uninstall    remove daemon, program, configuration, token, user, log and state; needs neither token nor platform
  --purge        as --uninstall, and remove the state of runs in the foreground
  --root DIR     work below DIR, to prepare an image: no user is made and nothing is started
  --help         this text

From the environment:
  PLATFORM_API_URL   where the platform is; an installed agent knows it
  AGENT_TOKEN        the enrolment token, or TOKEN_FILE: a file that holds it; without either the terminal is asked
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
    if [ -n "$locked" ]; then rm -f -- "$lock_file"; fi
    staging='' locked=''
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
    program="$root/opt/$service" config="$root/etc/$service" state="/var/db/$service" log="/var/log/$service.log"
    daemon="$root/Library/LaunchDaemons/$label.plist" lock_file="$root/opt/.$service.lock"
    known=''
    if [ -r "$config/agent.env" ]; then known=yes; fi
    if ! has sha256sum; then sha256sum() { shasum -a 256 "$@"; }; fi
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

  # BSD's date, which macOS has, and GNU's, which may stand before it on the path.
  utc() { date -u -r "$1" +%Y-%m-%dT%H:%M:%SZ 2>/dev/null || date -u -d "@$1" +%Y-%m-%dT%H:%M:%SZ; }

  seconds_of() { date -j -u -f '%a, %d %b %Y %H:%M:%S GMT' "$1" +%s 2>/dev/null || date -u -d "$1" +%s 2>/dev/null; }

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
    [ "$(uname -s)" = Darwin ] || die "preflight system" "this script is for macOS, and this is $(uname -s)"
    local tool release
    for tool in curl tar shasum mktemp date df sw_vers launchctl dscl; do
      has "$tool" || die "preflight tools" "$tool is not there"
    done
    release=$(sw_vers -productVersion)
    at_least "$release" 11 || die "preflight system" "this is macOS $release, and 11 or newer is needed"
    machine=$(uname -m)
    if [ "$machine" = x86_64 ] && [ "$(sysctl -n hw.optional.arm64 2>/dev/null || true)" = 1 ]; then
      die "preflight system" "this shell is translated by Rosetta: start the command with 'arch -arm64 bash' in place of 'bash'"
    fi
    case $machine in arm64) machine=aarch64 ;; esac
    find_python
    if [ -e "$root/Library/LaunchDaemons/homebrew.mxcl.$service.plist" ]; then
      warn "Homebrew's service $service is installed as well: remove one of the two, or this Mac is measured twice"
    fi
  }

  # One that only root can replace is taken before Homebrew's. The system's own asks for developer tools where there are none.
  find_python() {
    python='' python_version='' python_lacks=''
    local minor candidate path said candidates=''
    for minor in 14 13 12 11; do
      candidates="$candidates /Library/Frameworks/Python.framework/Versions/3.$minor/bin/python3.$minor"
    done
    for minor in 14 13 12 11; do
      candidates="$candidates /opt/homebrew/bin/python3.$minor /usr/local/bin/python3.$minor python3.$minor"
    done
    for candidate in $candidates python3; do
      path=$(command -v "$candidate" 2>/dev/null) || continue
      case $path in
        /Users/*) continue ;; # another user's service may not read it
        /usr/bin/python3) xcode-select -p >/dev/null 2>&1 || continue ;;
      esac
      said=$("$path" -I -c 'import platform, sys; print("%d.%d.%d" % sys.version_info[:3], platform.machine())' 2>/dev/null) || continue
      [ -n "$python_version" ] || python_version=${said% *}
      at_least "${said% *}" 3.11 || continue
      if [ "${said##* }" != "$(uname -m)" ]; then
        python_lacks="the Python ${said% *} in $path is built for ${said##* }"
      elif ! "$path" -I -c 'import ctypes, sqlite3, ssl, zipfile' 2>/dev/null; then
        python_lacks="the Python ${said% *} in $path lacks some of its modules ctypes, sqlite3, ssl and zipfile"
      else
        python=$path python_version=${said% *} python_lacks=''
        return
      fi
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
    [ -s "$headers" ] || return 0
    told=$(sed -n 's/^[Dd]ate: *//p' "$headers" | tr -d '\r' | tail -1)
    told=$(seconds_of "$told") || return 0
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
        case $(json_text os "$line") in any | macos) ;; *) continue ;; esac
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
    die "preflight python" "no package of version $version runs here${lacks:-; there is none for macOS on $machine}"
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

  # A launcher instead of a virtual environment: its interpreter would be gone when the host's Python is upgraded.
  install_bundle() {
    local wheel final="${program#"$root"}/$release"
    mkdir "$staging/release/site-packages"
    for wheel in "$staging"/unpacked/wheels/*.whl; do
      "$python" -I -m zipfile -e "$wheel" "$staging/release/site-packages" 2>/dev/null || die "unpack" "${wheel##*/} cannot be unpacked; is the disk full?"
    done
    "$python" -I -m compileall -q -s "$staging/release" -p "$final" "$staging/release/site-packages" >/dev/null 2>&1 || true
    cat >"$staging/release/bin/incident-rca-agent" <<LAUNCHER
#!$python -I
import sys

sys.path.insert(0, "$final/site-packages")
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
    if [ -z "$live" ] || id -u "$user" >/dev/null 2>&1; then return 0; fi
    failing=user made_user=yes
    : >"$program/.user" # says that the user is ours to remove
    local id=400 taken
    taken=$(
      dscl . -list /Users UniqueID
      dscl . -list /Groups PrimaryGroupID
    )
    taken=" $(awk '{ print $NF }' <<<"$taken" | tr '\n' ' ')"
    while [ $((id -= 1)) -gt 200 ]; do
      case $taken in *" $id "*) ;; *) break ;; esac
    done
    [ "$id" -gt 200 ] || die "user" "no number between 201 and 399 is free for the user $user"
    dscl . -create "/Groups/$user"
    dscl . -create "/Groups/$user" PrimaryGroupID "$id"
    dscl . -create "/Groups/$user" Password '*'
    dscl . -create "/Users/$user"
    dscl . -create "/Users/$user" UniqueID "$id"
    dscl . -create "/Users/$user" PrimaryGroupID "$id"
    dscl . -create "/Users/$user" UserShell /usr/bin/false
    dscl . -create "/Users/$user" NFSHomeDirectory /var/empty
    dscl . -create "/Users/$user" RealName "incident-rca agent"
    dscl . -create "/Users/$user" Password '*'
    dscl . -create "/Users/$user" IsHidden 1
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

  own() { if [ "$(id -u)" -eq 0 ] && [ -n "$live" ]; then chown "$1" "$2"; fi; }

  # Assignments that a shell reads.
  settings() {
    local name value
    printf '# Written by the installation; change it there.\n'
    for name in PLATFORM_API_URL $options $proxies; do
      case $name in
        PLATFORM_API_URL) value=$platform ;;
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

  # What launchd runs. The settings are not in its file: everybody can read those of a daemon with launchctl, and a proxy has a password.
  service_script() {
    cat <<SERVICE
#!/bin/sh
# Written by the installation.
release=$release
umask 077
set -a
STATE_DIRECTORY=$state
AGENT_TOKEN_FILE=/etc/$service/token
. /etc/$service/agent.env
set +a
exec "/opt/$service/\$release/bin/incident-rca-agent" run --type server
SERVICE
  }

  daemon_plist() {
    cat <<PLIST
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
	<key>Label</key>
	<string>$label</string>
	<key>ProgramArguments</key>
	<array>
		<string>/opt/$service/service</string>
	</array>
	<key>UserName</key>
	<string>$user</string>
	<key>GroupName</key>
	<string>$user</string>
	<key>RunAtLoad</key>
	<true/>
	<key>KeepAlive</key>
	<true/>
	<key>ThrottleInterval</key>
	<integer>10</integer>
	<key>ExitTimeOut</key>
	<integer>20</integer>
	<key>ProcessType</key>
	<string>Background</string>
	<key>Umask</key>
	<integer>63</integer>
	<key>WorkingDirectory</key>
	<string>$state</string>
	<key>StandardOutPath</key>
	<string>$log</string>
	<key>StandardErrorPath</key>
	<string>$log</string>
	<key>SoftResourceLimits</key>
	<dict>
		<key>Core</key>
		<integer>0</integer>
	</dict>
</dict>
</plist>
PLIST
  }

  # What stands now is kept aside until the new one runs.
  remember() {
    local place
    mkdir "$staging/before"
    for place in "$config/agent.env" "$config/token" "$config/ca.pem" "$program/service" "$daemon"; do
      if [ -f "$place" ]; then cp -p -- "$place" "$staging/before/${place##*/}"; fi
    done
    before=$(current_release)
    if [ -e "$root$state" ]; then had_state=yes; fi
    activating=yes
  }

  current_release() { sed -n 's/^release=//p' "$program/service" 2>/dev/null || true; }

  activate() {
    remember
    mkdir -p "$config" "$root$state" "$root/var/log" "${daemon%/*}"
    chmod 750 "$config" && own "root:$user" "$config"
    chmod 700 "$root$state" && own "$user:$user" "$root$state"
    put "$config/token" 600 "$user:$user" < <(printf '%s\n' "$token")
    if [ -z "${keep_settings:-}" ]; then
      if [ -n "$ca_file" ]; then put "$config/ca.pem" 644 root:wheel <"$ca_file"; else rm -f -- "$config/ca.pem"; fi
      put "$config/agent.env" 640 "root:$user" < <(settings)
      if [ -n "${STATE_DIR:-}" ]; then mkdir -p "$root$STATE_DIR" && own "$user:$user" "$root$STATE_DIR"; fi
    fi
    if [ ! -e "$root$log" ]; then : >"$root$log"; fi
    chmod 640 "$root$log" && own "$user:wheel" "$root$log"
    put "$daemon" 644 root:wheel < <(daemon_plist)
    put "$program/service" 755 root:wheel < <(service_script)
  }

  roll_back() {
    activating=''
    if [ -z "$before" ]; then
      remove_all "$had_state" >/dev/null 2>&1
      return
    fi
    local place
    for place in "$config/agent.env" "$config/token" "$config/ca.pem" "$program/service" "$daemon"; do
      if [ -f "$staging/before/${place##*/}" ]; then mv -f -- "$staging/before/${place##*/}" "$place"; else rm -f -- "$place"; fi
    done
    drop_made
    [ -z "$start" ] || run_service >/dev/null 2>&1
  }

  is_loaded() { launchctl print "system/$label" >/dev/null 2>&1; }

  is_running() { launchctl print "system/$label" 2>/dev/null | grep -q '^[[:space:]]*state = running'; }

  unload() {
    local waited=0
    if is_loaded; then launchctl bootout "system/$label" >/dev/null 2>&1 || true; fi
    while is_loaded; do # bootout may answer before it is done; an agent that stops may take 10 s
      [ $((waited += 1)) -le 125 ] || return 1
      sleep 0.2
    done
  }

  run_service() {
    unload && launchctl enable "system/$label" && launchctl bootstrap system "$daemon"
  }

  start_service() {
    local said='' waited=0
    : >"$staging/started"
    if said=$(run_service 2>&1); then
      # It must still run after a moment: launchd starts one that dies at once again and again.
      while [ $((waited += 1)) -le 15 ]; do
        sleep 0.2
        if [ "$waited" -ge 5 ] && is_running; then return; fi
      done
      said=$(tail -1 "$root$log" 2>/dev/null) || true
    fi
    die "start" "the daemon does not start${said:+: ${said##*$'\n'}}"
  }

  # Waits for the agent's own word that the platform took it in; that it takes longer is no failure: the service goes on trying.
  await_enrolment() {
    local file="${STATE_DIR:-$state}/status.json" waited=0
    if [ -n "${keep_settings:-}" ]; then
      file=$(read_setting STATE_DIR)
      file="${file:-$state}/status.json"
    fi
    file="$root$file"
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
    warn "the agent has not enrolled yet; it goes on trying. See: $log"
  }

  sweep() {
    local path
    for path in "$program"/*; do
      case ${path##*/} in service | "$release" | "$before") ;; *) rm -rf -- "$path" ;; esac
    done
  }

  # One installation at a time: a link that names the process, which a dead one does not hold for ever.
  lock() {
    mkdir -p "$root/opt" || die "preflight write" "$root/opt cannot be made"
    local holder
    if ! ln -s "$$" "$lock_file" 2>/dev/null; then
      holder=$(readlink "$lock_file") || holder=''
      if [ -n "$holder" ] && kill -0 "$holder" 2>/dev/null; then
        die "lock" "another installation is at work on this host; run this again when it is done"
      fi
      rm -f -- "$lock_file"
      ln -s "$$" "$lock_file" 2>/dev/null || die "lock" "another installation is at work on this host; run this again when it is done"
    fi
    locked=yes
  }

  install() {
    installed='' kind='' file='' before='' release=''
    check_input
    check_host
    find_token
    if [ -n "$dry_run" ]; then
      staging=$(mktemp -d "${TMPDIR:-/tmp}/irca.XXXXXX")
    else
      lock
      check_place "$program" 5
      mkdir -p "$program"
      rm -rf -- "$program"/.staging.* "$program"/*.damaged
      staging=$(umask 077 && mktemp -d "$program/.staging.XXXXXX")
    fi
    installed=$(current_release)
    if [ -n "$installed" ] && [ -r "$program/$installed/VERSION" ]; then installed=$(cat "$program/$installed/VERSION"); fi
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
      say "version $version is installed already, and nothing has changed"
    elif [ -n "$start" ]; then
      start_service
      activating=''
      progress installed
      await_enrolment
      say "version $version is installed; the daemon $label runs, its log is $log"
    else
      activating=''
      if [ -n "$live" ]; then launchctl disable "system/$label" 2>/dev/null || true; fi
      say "installed version $version in ${program#"$root"}; the daemon was not started: run this again without --no-start"
    fi
    sweep
    clean_up
  }

  plan() {
    say "dry run: nothing is changed. This would"
    say "  download $file ($kind, $size bytes) of version $version${installed:+; installed is $installed}, signed and with its checksum verified"
    if [ "$kind" = bundle ]; then say "  run it with $python (Python $python_version)"; fi
    say "  install it in $program as user $user, with configuration in $config and state in ${STATE_DIR:-$state}"
    say "  write ${daemon#"$root"}${start:+ and start the daemon}"
  }

  # remove_all [KEEP_STATE]: all that an installation made.
  remove_all() {
    local state_dir='' name left
    if [ -r "$config/agent.env" ]; then state_dir=$(read_setting STATE_DIR || true); fi
    if [ -n "$live" ]; then
      unload || true
      if [ -e "$daemon" ]; then launchctl enable "system/$label" 2>/dev/null || true; fi # launchd remembers that one was disabled
    fi
    if [ -n "$purge" ]; then rm -rf -- "$root/Library/Application Support/incident-rca" "$root/var/root/Library/Application Support/incident-rca"; fi
    if [ -n "$state_dir" ] && [ -z "${1:-}" ]; then # somebody else's choice: what the agent writes goes, and the directory if that was all
      for name in identity.json identity.json.* credential credential.* agent.lock status.json spool.db spool.db-* spool.db.*; do
        # shellcheck disable=SC2086 # the pattern is to be expanded
        rm -f -- "$root$state_dir"/$name
      done
      rmdir -- "$root$state_dir" 2>/dev/null || true
    fi
    if [ -z "${1:-}" ]; then rm -rf -- "$root$state"; fi
    if [ -e "$program/.user" ]; then made_user=yes; fi
    rm -rf -- "$daemon" "$daemon.new" "$config" "$root$log" "$program"
    if [ -n "$made_user" ] && [ -n "$live" ]; then remove_user; fi
    for left in "$daemon" "$config" "$program" "$root$log"; do
      if [ -e "$left" ]; then return 1; fi
    done
  }

  remove_user() {
    rm -f -- "$program/.user"
    dscl . -delete "/Users/$user" 2>/dev/null || true
    dscl . -delete "/Groups/$user" 2>/dev/null || true
  }

  uninstall() {
    if [ ! -e "$program" ] && [ ! -e "$config" ] && [ ! -e "$daemon" ] && [ -z "$purge" ]; then
      say "$service is not installed here: nothing to remove"
      return
    fi
    if [ -n "$dry_run" ]; then
      say "dry run: this would stop $label and remove $program, $config, $state, $log, its daemon and its user"
      return
    fi
    lock
    remove_all || die "uninstall" "something could not be removed; see the messages above"
    clean_up
    say "$service is removed, with its configuration, user, log and state"
  }

  main() {
    constants
    parse "$@"
    if [ -n "$root" ]; then live='' start=''; fi
    name_places
    umask 022
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
