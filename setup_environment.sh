#!/usr/bin/env bash
# Install what a lock file names into an environment, and check that headless rendering finds its library:
#
#     ./setup_environment.sh [ENVIRONMENT [LOCK]]      .venv and requirements/default.lock.txt by default
#
# With the default lock robowire itself is installed too, editable: "import robowire" and the program robowire work from
# any folder. start_policy_server.sh and run_tests.sh call this at every start; with nothing to do it costs some
# milliseconds. One environment may hold several locks, if they agree; setup_simulator.sh adds those of simulators.
# pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, a proxy, pip.conf) are obeyed and never changed.
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"

venv=${1:-.venv}
lock=${2:-requirements/default.lock.txt}
# A copy of the lock that was installed.
stamp=$venv/installed.$(basename -- "$lock")
# The folder and pyproject.toml of the robowire that was installed.
own_stamp=$venv/installed.robowire
# Holds a link to the package and nothing else: what scripts find in sys.path.
import_path=$venv/import_path
# An installation holds a lock on this file and writes text into it: text without a holder means an interrupted one.
busy=$venv.lock

say() { printf 'set-up: %s\n' "$*" >&2; }

packages_are_current() { [[ -x $venv/bin/python && ! -s $busy ]] && cmp -s "$lock" "$stamp"; }

# Environments of simulators get their robowire from the server that starts them.
wants_robowire() { [[ $lock == requirements/default.lock.txt ]]; }

robowire_stamp() { pwd && echo "with $import_path" && cat pyproject.toml; }

robowire_is_current() { ! wants_robowire || robowire_stamp | cmp -s - "$own_stamp"; }

environment_is_current() { packages_are_current && robowire_is_current; }

# ensurepip is what Debian leaves out of python3 and puts into python3-venv.
is_usable_python() {
    "$1" -c 'import ensurepip, sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' 2> /dev/null
}

# Built with profile-guided optimisation, without which a request takes a fifth more CPU time: conda, uv and python.org
# configure it, pyenv does not unless it is told to, and distributions do it without a word in sysconfig.
is_optimized_python() {
    [[ $(command -v "$1") == /usr/bin/* ]] ||
        "$1" -c 'import sys, sysconfig
sys.exit("--enable-optimizations" not in (sysconfig.get_config_var("CONFIG_ARGS") or ""))' 2> /dev/null
}

# Prints the first usable Python. 3.11 goes first because the pins were measured with it; of two builds of one version
# the optimised one.
find_python() {
    local name candidate
    for name in python3.11 python3.12 python3.10 python3.13 python3.14 python3; do
        for candidate in "$name" "/usr/bin/$name"; do
            if is_usable_python "$candidate" && is_optimized_python "$candidate"; then
                printf '%s\n' "$candidate"
                return
            fi
        done
        is_usable_python "$name" || continue
        # Not optimised; the distribution's own may lack venv alone.
        if [[ -x $candidate ]] && install_debian_packages "$name-venv" && is_usable_python "$candidate"; then
            name=$candidate
        fi
        printf '%s\n' "$name"
        return
    done
    return 1
}

# Installs Debian packages where we may (root, apt); elsewhere it fails, and the caller names the command.
install_debian_packages() {
    [[ $EUID -eq 0 ]] && command -v apt-get > /dev/null || return 1
    say "installing $* with apt-get"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq)
    # The first try spares a machine with package lists the update; a fresh container has none.
    "${apt[@]}" install -y --no-install-recommends "$@" &> /dev/null && return
    { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "$@"; } > /dev/null
}

# A bar on a terminal, a line now and then in a log: log_due is when the next one is due, in seconds of this script.
log_due=0
bar_is_shown=false

# show WHAT [DONE TOTAL]: how far a step is, in place of the bar before.
show() {
    local what=$1 done=${2:-0} total=${3:-0} bar='' filled
    if [[ -t 2 && ${TERM:-dumb} != dumb ]]; then
        if ((total > 0)); then
            filled=$((20 * done / total))
            printf -v bar '%*s' "$filled" ''
            bar=${bar// /#}
            printf -v bar ' [%-20s] %d/%d' "$bar" "$done" "$total"
        fi
        printf '\r\e[Kset-up: %s%s, %d s' "$what" "$bar" "$SECONDS" >&2
        bar_is_shown=true
    elif ((SECONDS >= log_due)); then
        ((total == 0)) || bar=": $done of $total"
        say "$what$bar, $SECONDS s"
        log_due=$((SECONDS + 10 + SECONDS / 5))
    fi
}

hide_bar() {
    if $bar_is_shown; then printf '\r\e[K' >&2; fi
    bar_is_shown=false
}

# Prints how many packages the environment holds.
count_packages() {
    local found=("$venv"/lib/python*/site-packages/*.dist-info)
    [[ -e ${found[0]} ]] && printf '%d\n' "${#found[@]}" || printf '0\n'
}

# pip_install WHAT TOTAL ARGUMENTS...: pip's output is shown when it fails, and what to do; else how far it is. TOTAL is
# the number of packages, 0 where it is not known; pip fetches all of them first, and then unpacks one after the other.
pip_install() {
    local what=$1 total=$2 log pid status=0 before now fetched package free
    shift 2
    log=$(mktemp)
    before=$(count_packages)
    log_due=$((SECONDS + 5))
    "$venv/bin/python" -m pip install --progress-bar off --no-input --disable-pip-version-check "$@" &> "$log" &
    pid=$!
    # An interrupted set-up leaves no pip behind that goes on installing.
    trap 'kill "$pid" 2> /dev/null || true; exit 130' INT TERM
    while kill -0 "$pid" 2> /dev/null; do
        fetched=$(grep -cE '^(Collecting|Requirement already|Processing|Obtaining) ' "$log" || true)
        package=$(sed -nE 's/^Collecting ([^ (]+).*/\1/p' "$log" | tail -n 1)
        if grep -q '^Installing collected packages' "$log"; then
            now=$(($(count_packages) - before))
            show "$what, unpacking" "$((now > total ? total : now))" "$total"
        else
            show "$what, fetching${package:+ $package}" "$((fetched > total ? total : fetched))" "$total"
        fi
        sleep 0.5
    done
    wait "$pid" || status=$?
    trap - INT TERM
    hide_bar
    if ((status == 0)); then
        rm -f -- "$log"
        return
    fi
    free=$(df -Ph . | awk 'NR == 2 { print $4 }')
    cat -- "$log" >&2
    rm -f -- "$log"
    say "FAILED at $what; pip's own output is above. The usual reasons:"
    say "  no network, or a proxy or mirror that pip does not know: set HTTPS_PROXY or PIP_INDEX_URL"
    say "  no disk space: $free are free here, and 3 GB are needed, 10 GB where torch comes with CUDA"
    say "  (PIP_EXTRA_INDEX_URL with PyTorch's index of CPU builds chooses the torch without CUDA)"
    say "Correct it and run the same command again: it starts the environment from scratch."
    exit 1
}

install_environment() {
    local python torch packages step=0 steps=2 from_scratch=false
    # An interrupted installation may have left half a package that pip takes for a whole one.
    if [[ -s $busy || ! -x $venv/bin/pip ]] || ! is_usable_python "$venv/bin/python"; then
        from_scratch=true
    fi
    torch=$(grep '^torch==' "$lock" || true)
    packages=$(grep -cE '^[A-Za-z0-9]' "$lock" || true)
    [[ -z $torch ]] || steps=3
    echo "installing, or interrupted" > "$busy"
    if $from_scratch; then
        if ! python=$(find_python); then
            install_debian_packages python3 python3-venv || true
            if ! python=$(find_python); then
                say "FAILED: no Python from 3.10 to 3.14 with venv was found. On Debian or Ubuntu:"
                say "  sudo apt-get update && sudo apt-get install -y python3 python3-venv"
                exit 1
            fi
        fi
        say "$((++step)) of $steps: creating $venv with $("$python" --version)"
        is_optimized_python "$python" ||
            say "this Python was built without optimisations: a request takes a fifth more CPU time than it could"
        if ! "$python" -m venv --clear "$venv" > /dev/null; then
            say "FAILED: $python could not create $venv; its own output is above"
            exit 1
        fi
    else
        say "$((++step)) of $steps: adding $lock to $venv"
    fi

    if [[ -n $torch ]]; then
        say "$((++step)) of $steps: installing $torch (the largest part: half a minute to some minutes)"
        pip_install "$torch" 0 "$torch"
    fi
    say "$((++step)) of $steps: installing the $packages pinned packages (one to three minutes)"
    pip_install "$lock" "$packages" --no-deps -r "$lock"
    cp "$lock" "$stamp"
    : > "$busy"
    say "the environment is ready after $SECONDS s"
}

# Without build isolation: setuptools is in the lock, so this needs no network.
# The import hook of an editable installation is asked after sys.path, where a script that lies next to a checkout named
# robowire has that folder as an empty namespace package. So the package gets an entry in sys.path too, of its own:
# with the checkout's folder there, policies/ and benchmark/ of users would be found in ours.
install_robowire() {
    local packages
    pip_install robowire 1 --no-deps --no-build-isolation --editable .
    packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir -p "$import_path"
    ln -sfn "$PWD/robowire" "$import_path/robowire"
    realpath "$import_path" > "$packages/robowire_import_path.pth"
    robowire_stamp > "$own_stamp"
}

# MuJoCo draws without a screen through OSMesa unless MUJOCO_GL names another way.
rendering_library_is_present() {
    [[ ${MUJOCO_GL:-osmesa} == osmesa ]] || return 0
    local PATH=$PATH:/usr/sbin:/sbin  # Debian keeps ldconfig out of an ordinary user's PATH
    command -v ldconfig > /dev/null || return 0
    [[ $(ldconfig -p) == *libOSMesa.so* ]]
}

if ! environment_is_current; then
    # Two starts at once: the second waits here and then finds the work done. The lock ends with this process.
    exec 9>> "$busy"
    if ! flock --nonblock 9; then
        say "another start is setting the environment up; waiting for it"
        flock 9
    fi
    packages_are_current || install_environment
    robowire_is_current || install_robowire
fi

if ! rendering_library_is_present && ! install_debian_packages libosmesa6; then
    say "the simulators need a library for rendering without a screen (the policy server does not). Once:"
    say "  sudo apt-get update && sudo apt-get install -y --no-install-recommends libosmesa6"
fi
